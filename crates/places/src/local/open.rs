//! Opens a file beneath its root, and reads it.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use lakegate_formats::Input;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Resolved, io_error, version_of};
use crate::error::PlaceError;
use crate::text::shown;

/// The sequential reader asks the system for so much at a time.
const READ_BYTES: usize = 1 << 20;
/// A path that is renamed around us is tried so often.
const ATTEMPTS: usize = 16;

/// File systems whose "regular files" are views into the kernel (magic numbers of `statfs(2)`): proc, sysfs, debugfs,
/// tracefs, securityfs, cgroup, cgroup2, bpf, pstore, efivarfs, configfs, devpts.
const KERNEL_FILE_SYSTEMS: [i128; 12] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x0027_e0eb,
    0x6367_7270,
    0xcafe_4a11,
    0x6165_676c,
    0xde5e_81e4,
    0x6265_6570,
    0x1cd1,
];

/// An open local file.
#[derive(Debug)]
pub(crate) struct LocalInput {
    name: String,
    file: Arc<File>,
    bytes: u64,
    version: String,
}

impl LocalInput {
    /// Opens what [`super::Folders::resolve`] found.
    pub(crate) fn open(found: &Resolved) -> Result<Self, PlaceError> {
        let failed = |e: io::Error| io_error(&found.path, &e);
        let place = || shown(&found.path.to_string_lossy());
        let root = rustix::fs::open(&found.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| failed(e.into()))?;
        let below = found.path.strip_prefix(&found.root).map_err(|_| failed(io::ErrorKind::NotFound.into()))?;
        // Looked at before it is opened for reading: to open a device or a pipe can already do something.
        let looked_at = File::from(open_beneath(&root, below, OFlags::PATH).map_err(failed)?);
        refuse_irregular(&looked_at.metadata().map_err(failed)?, place)?;
        let file =
            File::from(open_beneath(&root, below, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).map_err(failed)?);
        let metadata = file.metadata().map_err(failed)?;
        refuse_irregular(&metadata, place)?;
        let kind = rustix::fs::fstatfs(&file).map_err(|e| failed(e.into()))?.f_type;
        if KERNEL_FILE_SYSTEMS.contains(&i128::from(kind)) {
            return Err(PlaceError::NotAFile { place: place(), what: "a view into the kernel" });
        }
        // Read once from front to back, mostly: the system may read ahead further. No matter if it will not.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        Ok(Self { name: place(), bytes: metadata.len(), version: version_of(&metadata), file: Arc::new(file) })
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Whether nobody wrote to the file since it was opened. One that was replaced by another of its name is still read
    /// whole, as it was.
    pub(crate) fn check_unchanged(&self) -> Result<(), PlaceError> {
        let metadata = self.file.metadata();
        let now = metadata.map(|m| version_of(&m)).unwrap_or_default();
        if now == self.version {
            return Ok(());
        }
        let what = format!("size and time of change were {}, now they are {now}", self.version);
        Err(PlaceError::Changed { place: self.name.clone(), what })
    }

    fn shortened(&self) -> io::Error {
        let what = format!("it had {} bytes when it was opened and has fewer now", self.bytes);
        PlaceError::Changed { place: self.name.clone(), what }.into()
    }
}

/// Opens a path that has no links in it, beneath a folder, following none.
fn open_beneath(root: &OwnedFd, below: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat2(root.as_fd(), below, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Ok(file) => return Ok(file),
            // The system could not tell whether a folder moved out from under the root meanwhile.
            Err(e @ (rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)) => last = e.into(),
            Err(e) => return Err(e.into()),
        }
    }
    Err(last)
}

fn refuse_irregular(metadata: &std::fs::Metadata, place: impl Fn() -> String) -> Result<(), PlaceError> {
    let kind = metadata.file_type();
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "a link"
    };
    Err(PlaceError::NotAFile { place: place(), what })
}

impl Input for LocalInput {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Option<u64> {
        Some(self.bytes)
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut buffer = vec![0; len];
        self.file.read_exact_at(&mut buffer, offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => self.shortened(),
            _ => e,
        })?;
        Ok(buffer.into())
    }

    fn read_ranges(&self, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
        let read = |range: &Range<u64>| {
            let len =
                usize::try_from(range.end.saturating_sub(range.start)).map_err(|_| io::ErrorKind::InvalidInput)?;
            self.read_at(range.start, len)
        };
        ranges.iter().map(read).collect()
    }

    fn stream(&self, from: u64) -> io::Result<Box<dyn Read + Send>> {
        let reader =
            LocalReader { file: self.file.clone(), at: from, end: self.bytes, changed: self.shortened().to_string() };
        Ok(Box::new(io::BufReader::with_capacity(READ_BYTES, reader)))
    }
}

/// Reads from front to back, as far as the file reached when it was opened.
struct LocalReader {
    file: Arc<File>,
    at: u64,
    end: u64,
    changed: String,
}

impl Read for LocalReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let Some(buffer) = buffer.get_mut(..wanted).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let read = self.file.read_at(buffer, self.at)?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, self.changed.clone()));
        }
        self.at += read as u64;
        Ok(read)
    }
}

/// Which file of the disk it is, whatever its names are.
pub(super) fn same_file(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
