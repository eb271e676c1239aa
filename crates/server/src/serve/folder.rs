//! The data folder: made for its owner alone, and used by one process at a time.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use lakegate_env::{DirLock, Disk};

use super::ServeError;

/// Makes the folder, readable by its owner alone, if it is not there. One that is there keeps its rights.
pub(crate) fn make(dir: &Path) -> Result<(), ServeError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| ServeError::Folder { dir: dir.to_owned(), source })
}

/// Locks the folder until the guard is dropped.
pub(super) fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn DirLock>, ServeError> {
    disk.lock_dir(dir).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => ServeError::DataDirInUse { dir: dir.to_owned() },
        _ => ServeError::Folder { dir: dir.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use lakegate_env::RealDisk;

    use super::*;

    #[test]
    fn s43_the_data_folder_is_its_owners_alone_and_locked_once() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("a/b");
        make(&dir).unwrap();
        make(&dir).unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        let disk = RealDisk;
        let held = lock(&disk, &dir).unwrap();
        assert!(matches!(lock(&disk, &dir), Err(ServeError::DataDirInUse { .. })));
        drop(held);
        lock(&disk, &dir).unwrap();
    }
}
