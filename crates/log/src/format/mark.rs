//! `synced.mark`: every record below the mark was synced.
//!
//! Two slots, each in a sector of its own, written in turn: a torn write spoils the older knowledge at most.
//!
//! ```text
//! slot at 0 and at 512:  0 magic "LGMK" 4   4 checksum 4   8 durable offset 8   16 count of writes 8
//! ```
//!
//! Written after each successful sync and before anybody is told, never synced itself while the log runs (a clean
//! close does): after a kill it is exact, after a power loss it may lag, and it is never ahead of the truth.

use lakegate_model::LogId;

use super::{Fields, checksum};

const MAGIC: &[u8; 4] = b"LGMK";
const SLOT_BYTES: usize = 24;
const SLOT_STRIDE: usize = 512;

/// The size of the file.
pub(crate) const MARK_FILE_BYTES: usize = 2 * SLOT_STRIDE;

/// One writing of the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    /// Every record below it was synced.
    pub(crate) durable_offset: u64,
    /// Grows by one at each writing.
    pub(crate) count: u64,
}

impl Mark {
    /// Where in the file this writing goes.
    pub(crate) fn slot_position(&self) -> u64 {
        (self.count % 2) * SLOT_STRIDE as u64
    }

    pub(crate) fn encode(&self, log: LogId) -> [u8; SLOT_BYTES] {
        let mut covered = [0; 16];
        let (offset, count) = covered.split_at_mut(8);
        offset.copy_from_slice(&self.durable_offset.to_le_bytes());
        count.copy_from_slice(&self.count.to_le_bytes());
        let mut out = [0; SLOT_BYTES];
        let (magic, rest) = out.split_at_mut(4);
        let (sum, fields) = rest.split_at_mut(4);
        magic.copy_from_slice(MAGIC);
        sum.copy_from_slice(&checksum(log, &covered).to_le_bytes());
        fields.copy_from_slice(&covered);
        out
    }

    fn decode_slot(log: LogId, slot: &[u8]) -> Option<Self> {
        let covered = slot.get(8..SLOT_BYTES)?;
        let mut fields = Fields::new(slot.get(4..)?);
        (slot.starts_with(MAGIC) && fields.u32() == checksum(log, covered))
            .then(|| Self { durable_offset: fields.u64(), count: fields.u64() })
    }

    /// The newest valid slot of the file.
    pub(crate) fn decode_file(log: LogId, bytes: &[u8]) -> Option<Self> {
        bytes.chunks(SLOT_STRIDE).filter_map(|slot| Self::decode_slot(log, slot)).max()
    }

    /// The whole file, both slots the same.
    pub(crate) fn encode_file(&self, log: LogId) -> Vec<u8> {
        let mut slot = self.encode(log).to_vec();
        slot.resize(SLOT_STRIDE, 0);
        slot.repeat(2)
    }
}
