//! The bytes of one file, wherever it lies.

use std::io::{self, Read};
use std::ops::Range;

use bytes::Bytes;

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

    /// Everything from `from` on, from front to back.
    ///
    /// # Errors
    /// The reading could not begin; the reader tells what goes wrong later.
    fn stream(&self, from: u64) -> io::Result<Box<dyn Read + Send>>;
}
