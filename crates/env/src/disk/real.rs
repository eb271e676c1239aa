//! The system's file system.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use super::{DirLock, Disk, DiskFile, parent};

/// As many slices as the kernel takes in one call (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

/// Zeros are written in pieces of this size, each synced before the next: a log that syncs beside it then never waits
/// behind more than one piece.
const ZERO_PIECE_BYTES: u64 = 1024 * 1024;

/// What writes past the page cache are aligned to.
const DIRECT_ALIGN: usize = 4096;

/// The name of the file in a folder that its lock is taken on.
const LOCK_NAME: &str = "LOCK";

/// The system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

struct RealFile(File);

struct RealLock {
    _file: File,
}

impl DirLock for RealLock {}

fn opened(options: &OpenOptions, path: &Path) -> io::Result<Box<dyn DiskFile>> {
    Ok(Box::new(RealFile(options.open(path)?)))
}

impl Disk for RealDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        opened(OpenOptions::new().read(true).write(true).create_new(true).mode(0o600), path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        opened(OpenOptions::new().read(true).write(true), path)
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        opened(OpenOptions::new().read(true), path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut at = Some(dir);
        while let Some(here) = at.filter(|here| !here.as_os_str().is_empty() && !here.exists()) {
            missing.push(here);
            at = here.parent();
        }
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        for made in missing {
            self.sync_dir(&parent(made))?;
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DirLock>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(LOCK_NAME))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        // The holder's process id, for whoever finds the lock taken.
        file.set_len(0)?;
        file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)?;
        Ok(Box::new(RealLock { _file: file }))
    }
}

/// Writes of a file go past the page cache as long as this lives: zeros that nobody reads need not take memory, nor a
/// core to copy them.
struct PastTheCache<'f> {
    file: &'f File,
    flags: OFlags,
}

impl<'f> PastTheCache<'f> {
    fn begin(file: &'f File) -> Option<Self> {
        let flags = rustix::fs::fcntl_getfl(file).ok()?;
        rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).ok()?;
        Some(Self { file, flags })
    }
}

impl Drop for PastTheCache<'_> {
    fn drop(&mut self) {
        // It was taken with the same flags before.
        let _ = rustix::fs::fcntl_setfl(self.file, self.flags);
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.0.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn write_vectored_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left: &mut [IoSlice<'_>] = &mut slices;
        let mut at = offset;
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let few = left.get(..MAX_SLICES.min(left.len())).unwrap_or_default();
            match rustix::io::pwritev(&self.0, few, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    at += count as u64;
                    IoSlice::advance_slices(&mut left, count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate_zeroed(&self, length: u64) -> io::Result<()> {
        let mut at = self.0.metadata()?.len();
        if at >= length {
            return Ok(());
        }
        // First the room, so that a full disk is met before any work is done; not every file system can.
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), at, length - at) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => {
                let _ = self.0.set_len(at);
                return Err(error.into());
            }
        }
        let piece = usize::try_from(ZERO_PIECE_BYTES.min(length - at)).unwrap_or(0);
        let zeros = vec![0_u8; piece + DIRECT_ALIGN];
        let aligned = zeros.as_ptr().align_offset(DIRECT_ALIGN).min(DIRECT_ALIGN);
        let zeros = zeros.get(aligned..aligned + piece).unwrap_or_default();
        let mut past_the_cache = PastTheCache::begin(&self.0);
        while at < length {
            let count = usize::try_from(length - at).unwrap_or(usize::MAX).min(zeros.len());
            match self.0.write_all_at(zeros.get(..count).unwrap_or_default(), at) {
                // Not for this place or this file system.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput && past_the_cache.take().is_some() => {
                    continue;
                }
                other => other?,
            }
            self.0.sync_data()?;
            at += count as u64;
        }
        drop(past_the_cache);
        self.0.sync_all()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
