//! The bytes of one file, wherever it lies.

use std::io::{self, Read};
use std::ops::Range;

use bytes::{Buf, Bytes};

/// The bytes of one file, pinned to one version of it. All methods may block.
#[expect(clippy::len_without_is_empty, reason = "a length that is not known is not empty")]
pub trait Input: Send + Sync {
    /// For messages: safe to print, without secrets.
    fn name(&self) -> &str;

    /// How many bytes there are. None: only reading to the end tells.
    fn len(&self) -> Option<u64>;

    /// Exactly `len` bytes from `offset` on.
    ///
    /// # Errors
    /// There are not so many, or they could not be read.
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes>;

    /// Each of these parts, in their order. Where the file is remote, several are under way at once.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    fn read_ranges(&self, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>>;

    /// Tells which parts will be asked for next, by [`Self::read_ranges`]. Where the file is remote, they are fetched
    /// meanwhile, as far as memory is spent on it.
    fn expect_ranges(&self, _ranges: &[Range<u64>]) {}

    /// Everything from `from` on, from front to back.
    ///
    /// # Errors
    /// The reading could not begin; the reader tells what goes wrong later.
    fn stream(&self, from: u64) -> io::Result<Box<dyn Read + Send>>;
}

/// A file that is in memory: the body of a request.
#[derive(Debug, Clone)]
pub struct BytesInput {
    name: String,
    bytes: Bytes,
}

impl BytesInput {
    /// These bytes under this name; its ending helps to tell the format.
    #[must_use]
    pub fn new(name: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

impl Input for BytesInput {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Option<u64> {
        Some(self.bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match start.checked_add(len) {
            Some(end) if end <= self.bytes.len() => Ok(self.bytes.slice(start..end)),
            _ => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{len} bytes at {offset} asked of {} bytes", self.bytes.len()),
            )),
        }
    }

    fn read_ranges(&self, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
        ranges
            .iter()
            .map(|r| self.read_at(r.start, usize::try_from(r.end.saturating_sub(r.start)).unwrap_or(usize::MAX)))
            .collect()
    }

    fn stream(&self, from: u64) -> io::Result<Box<dyn Read + Send>> {
        let start = usize::try_from(from).unwrap_or(usize::MAX).min(self.bytes.len());
        Ok(Box::new(self.bytes.slice(start..).reader()))
    }
}
