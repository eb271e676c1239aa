//! The bytes on disk, one file per format. `docs/formats/wal.md` draws them.
//!
//! All numbers are little endian. Every structure carries a CRC-32C that also covers the log's identity, so that a
//! file from elsewhere is never taken for one's own.

mod frame;
mod mark;
mod meta;
mod segment;

pub(crate) use frame::{FRAME_HEADER_BYTES, FrameFault, FrameHeader, MAGIC as FRAME_MAGIC, seal_frame};
pub(crate) use mark::{MARK_FILE_BYTES, Mark};
pub(crate) use meta::{Meta, MetaFault, MetaState};
pub(crate) use segment::{SEGMENT_HEADER_BYTES, SegmentFault, SegmentHeader, parse_segment_name, segment_name};

use lakegate_model::LogId;
use uuid::Uuid;

/// The newest version of the formats that this program knows, and the one it writes.
pub(crate) const VERSION: u16 = 1;

/// Writes at page borders and in whole pages never make the kernel read what it overwrites.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// The next multiple of a page.
pub(crate) fn round_to_page(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES
}

/// Reads numbers from bytes, one after the other.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `N` bytes; zeros past the end, which no checksum accepts.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) =
            self.0.split_first_chunk::<N>().map_or(([0; N], [].as_slice()), |(taken, rest)| (*taken, rest));
        self.0 = rest;
        taken
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    pub(crate) fn log_id(&mut self) -> LogId {
        LogId(Uuid::from_bytes(self.take()))
    }
}

/// CRC-32C over the log's identity and then `bytes`.
pub(crate) fn checksum(log: LogId, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(log.0.as_bytes()), bytes)
}
