//! A frame: what one append put into the log.
//!
//! ```text
//!  0  magic "LGF1"        4   8  payload length  4
//!  4  header checksum     4  12  records         4
//! 16  first offset        8  24  durable offset  8   every record below it was synced when this was written
//! 32  epoch               8  40  segment         8   of the opening that wrote it; number of the segment
//! 48  position            8  56  payload crc     4   where in the segment this header begins
//! 60  flags               4  64  payload …           bit 0: a gap, its records were given up
//! ```
//!
//! The header checksum covers the log's identity and bytes 8..64, and with them the payload's checksum: a frame is
//! valid in its own log, segment and position only. What a recycled segment held before carries another segment
//! number; what a crash left behind in this one carries a lower epoch than the frames that follow it.

use lakegate_model::LogId;

use super::{Fields, checksum};

/// The first bytes of a frame.
pub(crate) const MAGIC: [u8; 4] = *b"LGF1";

/// The size of a frame's header.
pub(crate) const FRAME_HEADER_BYTES: usize = 64;

/// Flag: the records of this frame were given up by setting damage aside.
const GAP: u32 = 1;

/// Where the checksum and what it covers lie in the header.
const CHECKSUM_AT: usize = 4;
const COVERED_FROM: usize = 8;
const DURABLE_AT: usize = 24;

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) payload_bytes: u32,
    pub(crate) records: u32,
    pub(crate) first_offset: u64,
    pub(crate) durable_offset: u64,
    pub(crate) epoch: u64,
    pub(crate) segment: u64,
    pub(crate) position: u64,
    pub(crate) payload_crc: u32,
    pub(crate) is_gap: bool,
}

/// Why bytes are not the frame that belongs there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameFault {
    /// Not even a frame's first bytes.
    #[error("no frame begins here")]
    NoFrame,
    /// The file ends within.
    #[error("the file ends within the frame")]
    CutOff,
    /// Header checksum.
    #[error("the frame's header does not match its checksum")]
    HeaderChecksum,
    /// A valid frame from another place or time.
    #[error(
        "a frame that does not belong here: it is of segment {segment}, position {position}, epoch {epoch}, offset {first_offset}"
    )]
    Misplaced { segment: u64, position: u64, epoch: u64, first_offset: u64 },
    /// A length that no writer makes.
    #[error("the frame claims {0} bytes of payload, more than any may have")]
    TooLong(u32),
    /// Payload checksum.
    #[error("the frame's payload does not match its checksum")]
    PayloadChecksum,
}

impl FrameHeader {
    /// Appends the header, not yet sealed.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.payload_bytes.to_le_bytes());
        out.extend_from_slice(&self.records.to_le_bytes());
        out.extend_from_slice(&self.first_offset.to_le_bytes());
        out.extend_from_slice(&self.durable_offset.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.segment.to_le_bytes());
        out.extend_from_slice(&self.position.to_le_bytes());
        out.extend_from_slice(&self.payload_crc.to_le_bytes());
        out.extend_from_slice(&u32::from(self.is_gap).to_le_bytes());
    }

    /// Reads a header whose checksum is right; says nothing yet about whether it belongs where it was found.
    pub(crate) fn decode(log: LogId, bytes: &[u8]) -> Result<Self, FrameFault> {
        if !bytes.starts_with(&MAGIC) {
            return Err(FrameFault::NoFrame);
        }
        let covered = bytes.get(COVERED_FROM..FRAME_HEADER_BYTES).ok_or(FrameFault::CutOff)?;
        let mut fields = Fields::new(bytes.get(CHECKSUM_AT..).unwrap_or_default());
        if fields.u32() != checksum(log, covered) {
            return Err(FrameFault::HeaderChecksum);
        }
        Ok(Self {
            payload_bytes: fields.u32(),
            records: fields.u32(),
            first_offset: fields.u64(),
            durable_offset: fields.u64(),
            epoch: fields.u64(),
            segment: fields.u64(),
            position: fields.u64(),
            payload_crc: fields.u32(),
            is_gap: fields.u32() & GAP != 0,
        })
    }

    /// The frame's whole size.
    pub(crate) fn bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }

    /// The offset after its last record.
    pub(crate) fn next_offset(&self) -> u64 {
        self.first_offset.saturating_add(u64::from(self.records))
    }

    /// The fault of a valid frame that was found where it does not belong.
    pub(crate) fn misplaced(&self) -> FrameFault {
        FrameFault::Misplaced {
            segment: self.segment,
            position: self.position,
            epoch: self.epoch,
            first_offset: self.first_offset,
        }
    }
}

/// Puts the durable offset known now into an encoded header, and its checksum.
pub(crate) fn seal_frame(log: LogId, header: &mut [u8], durable_offset: u64) {
    if let Some(field) = header.get_mut(DURABLE_AT..DURABLE_AT + 8) {
        field.copy_from_slice(&durable_offset.to_le_bytes());
    }
    let sum = checksum(log, header.get(COVERED_FROM..FRAME_HEADER_BYTES).unwrap_or_default());
    if let Some(field) = header.get_mut(CHECKSUM_AT..CHECKSUM_AT + 4) {
        field.copy_from_slice(&sum.to_le_bytes());
    }
}
