//! Files on local disks: written and synced with their folders' entries.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::WarehouseError;

/// `file:/x`, `file:///x` and `/x` are one place, and so are `s3://b/x`, `s3a://b/x` and `s3n://b/x`.
pub(super) fn uniform(location: &str) -> std::borrow::Cow<'_, str> {
    if location.starts_with('/') {
        return format!("file://{location}").into();
    }
    let bucket = location.strip_prefix("s3a://").or_else(|| location.strip_prefix("s3n://"));
    match (location.strip_prefix("file:/"), bucket) {
        (Some(rest), _) if !rest.starts_with('/') => format!("file:///{rest}").into(),
        (_, Some(rest)) => format!("s3://{rest}").into(),
        _ => location.into(),
    }
}

pub(super) fn path_of(location: &str) -> PathBuf {
    let location = uniform(location);
    PathBuf::from(location.strip_prefix("file://").unwrap_or(&location))
}

pub(super) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WarehouseError> + Send + 'static,
) -> Result<T, WarehouseError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        let (action, location) = ("run a disk task for", "the warehouse".to_owned());
        Err(WarehouseError::Store { action, location, message: e.to_string() })
    })
}

pub(super) fn save_on_disk(files: &[(String, Bytes)]) -> Result<(), WarehouseError> {
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
pub(super) fn create_on_disk(path: &Path, location: &str) -> Result<File, WarehouseError> {
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

pub(super) fn create_folders(folder: &Path) -> Result<(), WarehouseError> {
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

pub(super) fn sync_folder(folder: Option<&Path>) -> Result<(), WarehouseError> {
    let Some(folder) = folder else { return Ok(()) };
    let wrong =
        |source| WarehouseError::Io { action: "sync the folder", location: folder.display().to_string(), source };
    File::open(folder).and_then(|f| f.sync_all()).map_err(wrong)
}

pub(super) fn remove_from_disk(location: &str) -> Result<(), WarehouseError> {
    match std::fs::remove_file(path_of(location)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(WarehouseError::Io { action: "remove", location: location.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Symbolic links are neither followed nor listed.
pub(super) fn list_on_disk(folder: &str) -> Result<Vec<(String, u64)>, WarehouseError> {
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
