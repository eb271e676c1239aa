//! The disk as a seam: what the log, the contracts and the spill files need of a file system, and no more.
//!
//! [`RealDisk`] is the system's, [`MemDisk`] a model of one that can lose power, [`FaultyDisk`] fails at a chosen
//! operation. All durable protocols are written against [`Disk`], so that every one of their instants can be tested.
//!
//! Promised by every implementation: a write is durable after [`DiskFile::sync_data`] of that file; a creation, a
//! rename or a removal after [`Disk::sync_dir`] of its folder; before that each may be lost on its own, and a write
//! may be torn. Files are made readable by their owner alone (0600), folders likewise (0700).

mod faulty;
mod mem;
mod real;

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

pub use faulty::{Fault, FaultyDisk, OpKind};
pub use mem::MemDisk;
pub use real::RealDisk;

/// Held while a folder is locked; dropping it unlocks.
pub trait DirLock: Send + Sync {}

/// A file system.
pub trait Disk: Send + Sync + 'static {
    /// Makes a new, empty file and opens it for reading and writing; fails if the name is taken.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for reading; writing to it fails.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes a folder and those above it, durably.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Renames a file, replacing the one at `to`. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in a folder durable.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Whether a file or folder is there.
    ///
    /// # Errors
    /// Whatever the file system answers, other than that it is not there.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// The length of a file in bytes.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn len(&self, path: &Path) -> io::Result<u64>;

    /// Locks a folder against other processes (and other openers in this one) until the guard is dropped.
    ///
    /// # Errors
    /// `WouldBlock` if it is locked already; else whatever the file system answers.
    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DirLock>>;

    /// The whole content of a file.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open_read(path)?;
        let length = usize::try_from(file.len()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut content = vec![0; length];
        let filled = read_full_at(&*file, &mut content, 0)?;
        content.truncate(filled);
        Ok(content)
    }

    /// Puts `bytes` in the place of a file's content, durably: after a crash there is the old content or the new.
    ///
    /// # Errors
    /// Whatever the file system answers; then the old content is there, or (if only the last step failed) the new.
    fn write_atomic(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        match self.remove(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let written = self.create_new(&temporary).and_then(|file| {
            file.write_all_at(bytes, 0)?;
            file.sync_data()
        });
        if let Err(error) = written.and_then(|()| self.rename(&temporary, path)) {
            let _ = self.remove(&temporary);
            return Err(error);
        }
        self.sync_dir(&parent(path))
    }
}

/// An open file. All operations name their place, so that one handle serves several threads.
pub trait DiskFile: Send + Sync {
    /// Reads into `buffer` from `offset`; returns how much, 0 at the end. May return less than there is.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`. After an error any part may have been written.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all of `parts`, one after the other, from `offset`. After an error any part may have been written.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn write_vectored_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Makes what was written durable. A failure is final: what was not synced must be held for lost.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn sync_data(&self) -> io::Result<()>;

    /// Extends the file to `length` with zeros that are really written and synced, so that overwriting them later
    /// needs neither new room nor a change of metadata. Does nothing to a file that is that long already.
    ///
    /// # Errors
    /// `StorageFull` or `QuotaExceeded` if there is no room; else whatever the file system answers.
    fn allocate_zeroed(&self, length: u64) -> io::Result<()>;

    /// Cuts the file off at `length`.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn len(&self) -> io::Result<u64>;

    /// Whether there is nothing in it.
    ///
    /// # Errors
    /// Whatever the file system answers.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Reads until `buffer` is full or the file ends; returns how much was read.
///
/// # Errors
/// Whatever the file system answers.
pub fn read_full_at(file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let count = file.read_at(rest, offset + filled as u64)?;
        if count == 0 {
            break;
        }
        filled += count;
    }
    Ok(filled)
}

/// Whether an error says that there is no room: the one kind that waiting can cure.
#[must_use]
pub fn is_out_of_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The folder a file lies in.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests;
