//! Where the tables' files lie: a local folder, or memory.
//!
//! Promises: what [`Warehouse::save`] and a finished [`Sink`] report as written survives a power cut, file and folder
//! entry; a location outside the root is refused before anything is opened. Every location is a URI below
//! [`Warehouse::root`]; a scheme such as `s3://` would be another [`Place`].

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use iceberg::io::FileIO;

/// A place for tables' files. Clones share it.
#[derive(Debug, Clone)]
pub struct Warehouse {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: String,
    io: FileIO,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Folder,
    Memory,
}

/// Why the warehouse did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WarehouseError {
    /// A location that is not below the root, or could leave it.
    #[error(
        "the location {location:?} does not lie in the warehouse {root:?}; nothing outside it is read, written or removed"
    )]
    Outside {
        /// What was found.
        location: String,
        /// What it must begin with.
        root: String,
    },
    /// The disk refused.
    #[error("cannot {action} {location}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        location: String,
        /// What the system said.
        source: io::Error,
    },
    /// Memory or another store refused.
    #[error("cannot {action} {location}: {message}")]
    Store {
        /// What was tried.
        action: &'static str,
        /// On which file.
        location: String,
        /// What the store said.
        message: String,
    },
}

impl WarehouseError {
    /// Whether the disk has no room, or the user's quota is spent.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl Warehouse {
    /// A local folder, made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made or its real path cannot be read.
    pub fn open_folder(folder: &Path) -> Result<Self, WarehouseError> {
        let wrong = |source| WarehouseError::Io {
            action: "open the warehouse",
            location: folder.display().to_string(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(wrong)?;
        let real = folder.canonicalize().map_err(wrong)?;
        let text =
            real.to_str().ok_or_else(|| wrong(io::Error::new(io::ErrorKind::InvalidInput, "its path is not UTF-8")))?;
        let root = format!("file://{}", text.trim_end_matches('/'));
        Ok(Self { inner: Arc::new(Inner { root, io: FileIO::new_with_fs(), place: Place::Folder }) })
    }

    /// Memory: for simulations and tests. Gone with the last clone.
    #[must_use]
    pub fn in_memory() -> Self {
        let root = "memory:///warehouse".to_owned();
        Self { inner: Arc::new(Inner { root, io: FileIO::new_with_memory(), place: Place::Memory }) }
    }

    /// What every location begins with, without a slash at the end.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.inner.root
    }

    pub(crate) fn io(&self) -> &FileIO {
        &self.inner.io
    }

    /// Checks that a location lies below the root.
    ///
    /// # Errors
    /// It does not, or it has `..`, `.`, control characters or a query in it.
    pub fn check(&self, location: &str) -> Result<(), WarehouseError> {
        let outside =
            || WarehouseError::Outside { location: location.chars().take(300).collect(), root: self.root().to_owned() };
        let location = uniform(location);
        let rest = location.strip_prefix(self.root()).and_then(|r| r.strip_prefix('/')).ok_or_else(outside)?;
        let clean = rest.split('/').all(|part| part != ".." && part != ".")
            && !rest.chars().any(|c| c.is_control() || c == '?' || c == '#');
        if clean { Ok(()) } else { Err(outside()) }
    }

    /// The whole content of a file.
    ///
    /// # Errors
    /// It lies outside, or cannot be read.
    pub async fn read(&self, location: &str) -> Result<Bytes, WarehouseError> {
        self.check(location)?;
        let wrong = |e: iceberg::Error| WarehouseError::Store {
            action: "read",
            location: location.to_owned(),
            message: e.to_string(),
        };
        self.io().new_input(location).map_err(wrong)?.read().await.map_err(wrong)
    }

    /// Whether there is such a file.
    ///
    /// # Errors
    /// It lies outside, or the store cannot say.
    pub async fn exists(&self, location: &str) -> Result<bool, WarehouseError> {
        self.check(location)?;
        let wrong = |e: iceberg::Error| WarehouseError::Store {
            action: "look for",
            location: location.to_owned(),
            message: e.to_string(),
        };
        self.io().exists(location).await.map_err(wrong)
    }

    /// Writes new files so that they and their folders' entries survive a power cut. None of them may exist.
    ///
    /// # Errors
    /// A location lies outside, exists, or the disk refused; files already written stay.
    pub async fn save(&self, files: Vec<(String, Bytes)>) -> Result<(), WarehouseError> {
        for (location, _) in &files {
            self.check(location)?;
        }
        match self.inner.place {
            Place::Folder => on_disk(move || save_on_disk(&files)).await,
            Place::Memory => {
                for (location, bytes) in files {
                    self.save_in_memory(&location, bytes).await?;
                }
                Ok(())
            }
        }
    }

    async fn save_in_memory(&self, location: &str, bytes: Bytes) -> Result<(), WarehouseError> {
        let wrong = |e: iceberg::Error| WarehouseError::Store {
            action: "write",
            location: location.to_owned(),
            message: e.to_string(),
        };
        if self.io().exists(location).await.map_err(wrong)? {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(WarehouseError::Io { action: "create", location: location.to_owned(), source });
        }
        self.io().new_output(location).map_err(wrong)?.write(bytes).await.map_err(wrong)
    }

    /// Removes files; one that is not there is no error.
    ///
    /// # Errors
    /// A location lies outside, or the disk refused.
    pub async fn remove(&self, locations: Vec<String>) -> Result<(), WarehouseError> {
        for location in &locations {
            self.check(location)?;
        }
        match self.inner.place {
            Place::Folder => on_disk(move || locations.iter().try_for_each(|l| remove_from_disk(l))).await,
            Place::Memory => {
                for location in locations {
                    let wrong = |e: iceberg::Error| WarehouseError::Store {
                        action: "remove",
                        location: location.clone(),
                        message: e.to_string(),
                    };
                    self.io().delete(&location).await.map_err(wrong)?;
                }
                Ok(())
            }
        }
    }

    /// Makes folders, where the place has such: engines that write to a local folder expect them.
    pub(crate) async fn make_folders(&self, locations: Vec<String>) -> Result<(), WarehouseError> {
        for location in &locations {
            self.check(location)?;
        }
        match self.inner.place {
            Place::Folder => on_disk(move || locations.iter().try_for_each(|l| create_folders(&path_of(l)))).await,
            Place::Memory => Ok(()),
        }
    }

    /// The files below a folder, with their age in seconds; empty for a place that cannot list.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<(String, u64)>, WarehouseError> {
        self.check(folder)?;
        match self.inner.place {
            Place::Folder => {
                let folder = folder.to_owned();
                on_disk(move || list_on_disk(&folder)).await
            }
            Place::Memory => Ok(Vec::new()),
        }
    }

    /// Opens a new file to be written piece by piece.
    pub(crate) fn create(&self, location: &str) -> Result<Sink, WarehouseError> {
        self.check(location)?;
        let to = match self.inner.place {
            Place::Folder => SinkTo::File(create_on_disk(&path_of(location), location)?),
            Place::Memory => SinkTo::Memory(Vec::new()),
        };
        Ok(Sink { location: location.to_owned(), to })
    }

    /// Makes a finished sink's content survive a power cut.
    pub(crate) async fn finish(&self, sink: Finished) -> Result<(), WarehouseError> {
        if let Finished::Memory { location, bytes } = sink {
            self.save_in_memory(&location, bytes).await?;
        }
        Ok(())
    }
}

/// A file being written.
#[derive(Debug)]
pub(crate) struct Sink {
    location: String,
    to: SinkTo,
}

#[derive(Debug)]
enum SinkTo {
    File(File),
    Memory(Vec<u8>),
}

/// A file written to its end.
#[derive(Debug)]
pub(crate) enum Finished {
    /// On disk, synced with its folder.
    Disk,
    /// Still to be put into the memory's store.
    Memory { location: String, bytes: Bytes },
}

impl Sink {
    /// Syncs file and folder.
    pub(crate) fn sync(self) -> Result<Finished, WarehouseError> {
        let Self { location, to } = self;
        match to {
            SinkTo::File(file) => {
                let wrong = |source| WarehouseError::Io { action: "sync", location: location.clone(), source };
                file.sync_data().map_err(wrong)?;
                sync_folder(path_of(&location).parent())?;
                Ok(Finished::Disk)
            }
            SinkTo::Memory(bytes) => Ok(Finished::Memory { location, bytes: Bytes::from(bytes) }),
        }
    }

    /// Removes what was written so far.
    pub(crate) fn abandon(location: &str) {
        let path = path_of(location);
        if location.starts_with("file:")
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(%location, %error, "an unfinished data file could not be removed");
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            SinkTo::File(file) => file.write(bytes),
            SinkTo::Memory(buffer) => buffer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `file:/x`, `file:///x` and `/x` are one place.
fn uniform(location: &str) -> std::borrow::Cow<'_, str> {
    if location.starts_with('/') {
        return format!("file://{location}").into();
    }
    match location.strip_prefix("file:/") {
        Some(rest) if !rest.starts_with('/') => format!("file:///{rest}").into(),
        _ => location.into(),
    }
}

fn path_of(location: &str) -> PathBuf {
    let location = uniform(location);
    PathBuf::from(location.strip_prefix("file://").unwrap_or(&location))
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WarehouseError> + Send + 'static,
) -> Result<T, WarehouseError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        let (action, location) = ("run a disk task for", "the warehouse".to_owned());
        Err(WarehouseError::Store { action, location, message: e.to_string() })
    })
}

fn save_on_disk(files: &[(String, Bytes)]) -> Result<(), WarehouseError> {
    let mut folders = BTreeSet::new();
    for (location, bytes) in files {
        let wrong = |source| WarehouseError::Io { action: "write", location: location.clone(), source };
        let path = path_of(location);
        let mut file = create_on_disk(&path, location)?;
        file.write_all(bytes).and_then(|()| file.sync_data()).map_err(wrong)?;
        folders.extend(path.parent().map(Path::to_path_buf));
    }
    folders.iter().try_for_each(|folder| sync_folder(Some(folder)))
}

/// Creates a file that must not exist; missing folders above it are made, and synced into theirs.
fn create_on_disk(path: &Path, location: &str) -> Result<File, WarehouseError> {
    let wrong = |source| WarehouseError::Io { action: "create", location: location.to_owned(), source };
    let open = || OpenOptions::new().write(true).create_new(true).open(path);
    match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().ok_or_else(|| wrong(e))?;
            create_folders(folder)?;
            open().map_err(wrong)
        }
        other => other.map_err(wrong),
    }
}

fn create_folders(folder: &Path) -> Result<(), WarehouseError> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        create_folders(above)?;
    }
    match std::fs::create_dir(folder) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(WarehouseError::Io { action: "create the folder", location: folder.display().to_string(), source })
        }
        _ => sync_folder(folder.parent()),
    }
}

fn sync_folder(folder: Option<&Path>) -> Result<(), WarehouseError> {
    let Some(folder) = folder else { return Ok(()) };
    let wrong =
        |source| WarehouseError::Io { action: "sync the folder", location: folder.display().to_string(), source };
    File::open(folder).and_then(|f| f.sync_all()).map_err(wrong)
}

fn remove_from_disk(location: &str) -> Result<(), WarehouseError> {
    match std::fs::remove_file(path_of(location)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(WarehouseError::Io { action: "remove", location: location.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Symbolic links are neither followed nor listed.
fn list_on_disk(folder: &str) -> Result<Vec<(String, u64)>, WarehouseError> {
    let mut found = Vec::new();
    let mut folders = vec![folder.trim_end_matches('/').to_owned()];
    while let Some(folder) = folders.pop() {
        let wrong = |source| WarehouseError::Io { action: "list", location: folder.clone(), source };
        let entries = match std::fs::read_dir(path_of(&folder)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(wrong)?,
        };
        for entry in entries {
            let entry = entry.map_err(wrong)?;
            // Removed since it was listed: another sweep, or a commit.
            let Ok(meta) = entry.metadata() else { continue };
            let Some(location) = entry.file_name().to_str().map(|name| format!("{folder}/{name}")) else { continue };
            if meta.is_dir() {
                folders.push(location);
            } else if meta.is_file() {
                let age = meta.modified().ok().and_then(|t| t.elapsed().ok()).map_or(0, |d| d.as_secs());
                found.push((location, age));
            }
        }
    }
    Ok(found)
}
