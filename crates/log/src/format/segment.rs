//! A segment file: a page that says what it is, then frames.
//!
//! ```text
//! 0  magic "LGWALSEG"  8   8 checksum 4   12 version 2   14 zero 2   16 log id 16   32 segment 8   40 epoch 8   48 zero …4096
//! 4096  frames, one after the other; then zeros, or what a recycled file held before
//! ```
//!
//! The name is `wal-` and the segment's number in 16 digits. A segment has that name only once its header is
//! durable, so one with a broken header was damaged, or its file system lost what it had promised to keep.

use lakegate_model::LogId;

use super::{Fields, VERSION, checksum};

const MAGIC: &[u8; 8] = b"LGWALSEG";
const CHECKSUM_AT: usize = 8;
const COVERED: std::ops::Range<usize> = 12..48;

/// Where the frames begin.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 4096;

/// What a segment's first page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) log: LogId,
    pub(crate) segment: u64,
    /// Of the opening that made it.
    pub(crate) epoch: u64,
}

/// Why bytes are not a segment's header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SegmentFault {
    #[error("the file is too short to be a segment")]
    Short,
    #[error("the segment's header is all zeros")]
    Blank,
    #[error("the segment's header does not match its checksum")]
    Broken,
    #[error("format version {0} is newer than known")]
    Newer(u16),
}

impl SegmentHeader {
    /// The first page.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4096);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(self.log.0.as_bytes());
        out.extend_from_slice(&self.segment.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        let sum = checksum(self.log, out.get(COVERED).unwrap_or_default());
        if let Some(field) = out.get_mut(CHECKSUM_AT..CHECKSUM_AT + 4) {
            field.copy_from_slice(&sum.to_le_bytes());
        }
        out.resize(4096, 0);
        out
    }

    /// Reads the first page, as much of it as there is.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SegmentFault> {
        let covered = bytes.get(COVERED).ok_or(SegmentFault::Short)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(SegmentFault::Blank);
        }
        let mut fields = Fields::new(bytes.get(CHECKSUM_AT..).unwrap_or_default());
        let (sum, version, _) = (fields.u32(), fields.u16(), fields.u16());
        let log = fields.log_id();
        // Before the checksum, which a newer version may compute otherwise.
        if bytes.starts_with(MAGIC) && version > VERSION {
            return Err(SegmentFault::Newer(version));
        }
        if !bytes.starts_with(MAGIC) || sum != checksum(log, covered) {
            return Err(SegmentFault::Broken);
        }
        Ok(Self { log, segment: fields.u64(), epoch: fields.u64() })
    }
}

/// The file name of a segment.
pub(crate) fn segment_name(segment: u64) -> String {
    format!("wal-{segment:016}")
}

/// The number in a segment's file name.
pub(crate) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("wal-")?;
    (digits.len() == 16).then(|| digits.parse().ok())?
}
