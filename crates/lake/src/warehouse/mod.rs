//! Where the tables' files lie: a local folder, a bucket, or memory.
//!
//! Promises: what [`Warehouse::save`] and a finished [`Sink`] report as written survives a power cut, file and folder
//! entry, or is in the store under its name, whole; a location outside the root is refused before anything is opened.
//! Every location is a URI below [`Warehouse::root`].

mod bucket;
mod disk;
mod sink;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::TryStreamExt;
use iceberg::io::FileIO;

use bucket::Bucket;
use disk::{create_folders, create_on_disk, list_on_disk, on_disk, path_of, remove_from_disk, save_on_disk, uniform};

pub use bucket::BucketOptions;
use sink::SinkTo;
pub(crate) use sink::{Finished, Sink};

/// How many requests to a bucket one call has under way at once.
const REQUESTS_AT_ONCE: usize = 8;

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
    Bucket(Arc<Bucket>),
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

    /// A bucket of an S3 store. Nothing is asked of the store yet: it may be away.
    ///
    /// # Errors
    /// The options do not hold together.
    pub fn open_bucket(options: BucketOptions) -> Result<Self, WarehouseError> {
        Ok(Self::of_bucket(Bucket::open(options)?))
    }

    fn of_bucket(bucket: Bucket) -> Self {
        let bucket = Arc::new(bucket);
        let (root, io) = (bucket.root().to_owned(), bucket::file_io(&bucket));
        Self { inner: Arc::new(Inner { root, io, place: Place::Bucket(bucket) }) }
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
        match &self.inner.place {
            Place::Folder => on_disk(move || save_on_disk(&files)).await,
            Place::Bucket(bucket) => {
                let puts = files
                    .into_iter()
                    .map(|(location, bytes)| Ok(async move { bucket.put_new(&location, bytes).await }));
                futures::stream::iter(puts).try_buffer_unordered(REQUESTS_AT_ONCE).try_collect().await
            }
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
        match &self.inner.place {
            Place::Folder => on_disk(move || locations.iter().try_for_each(|l| remove_from_disk(l))).await,
            Place::Bucket(bucket) => {
                let removals = locations.into_iter().map(|location| Ok(async move { bucket.remove(&location).await }));
                futures::stream::iter(removals).try_buffer_unordered(REQUESTS_AT_ONCE).try_collect().await
            }
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
        match &self.inner.place {
            Place::Folder => on_disk(move || locations.iter().try_for_each(|l| create_folders(&path_of(l)))).await,
            Place::Bucket(_) | Place::Memory => Ok(()),
        }
    }

    /// Removes folders that hold nothing, in this order. Those that do stay.
    pub(crate) async fn remove_empty_folders(&self, locations: Vec<String>) {
        let is_ours = locations.iter().all(|location| self.check(location).is_ok());
        if is_ours && matches!(self.inner.place, Place::Folder) {
            let remove = move || {
                for location in &locations {
                    let _ = std::fs::remove_dir(path_of(location));
                }
                Ok(())
            };
            let _ = on_disk(remove).await;
        }
    }

    /// The files below a folder, with their age in seconds; empty for a place that cannot list.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<(String, u64)>, WarehouseError> {
        self.check(folder)?;
        match &self.inner.place {
            Place::Folder => {
                let folder = folder.to_owned();
                on_disk(move || list_on_disk(&folder)).await
            }
            Place::Bucket(bucket) => bucket.list(folder).await,
            Place::Memory => Ok(Vec::new()),
        }
    }

    /// Opens a new file to be written piece by piece.
    pub(crate) fn create(&self, location: &str) -> Result<Sink, WarehouseError> {
        self.check(location)?;
        let to = match &self.inner.place {
            Place::Folder => SinkTo::File(create_on_disk(&path_of(location), location)?),
            Place::Bucket(bucket) => SinkTo::Object(Box::new(bucket.upload(location)?)),
            Place::Memory => SinkTo::Memory(Vec::new()),
        };
        Ok(Sink::new(location, to))
    }

    /// Makes a finished sink's content survive a power cut.
    pub(crate) async fn finish(&self, sink: Finished) -> Result<(), WarehouseError> {
        match sink {
            Finished::Disk => Ok(()),
            Finished::Object(upload) => upload.finish().await,
            Finished::Memory { location, bytes } => self.save_in_memory(&location, bytes).await,
        }
    }

    /// As [`Self::finish`] for each, several at once where that is faster. When one errs, others may be there or not.
    pub(crate) async fn finish_all(&self, sinks: Vec<Finished>) -> Result<(), WarehouseError> {
        let each = sinks.into_iter().map(|sink| Ok(self.finish(sink)));
        futures::stream::iter(each).try_buffer_unordered(REQUESTS_AT_ONCE).try_collect().await
    }
}
