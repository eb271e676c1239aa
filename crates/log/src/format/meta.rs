//! `log.meta`: what the log is, and where it begins. Replaced as a whole, durably, at each opening and trimming.
//!
//! ```text
//! 0  magic "LGWALLOG"  8   8 checksum 4   12 version 2   14 state 2 (0 being made, 1 made)
//! 16 log id 16   32 epoch 8   40 first segment 8   48 first offset 8
//! ```
//!
//! While the state is "being made" nothing was ever acknowledged, and whatever lies beside it may be begun anew.

use lakegate_model::LogId;

use super::{Fields, VERSION, checksum};

const MAGIC: &[u8; 8] = b"LGWALLOG";
const META_BYTES: usize = 56;
const COVERED: std::ops::Range<usize> = 12..META_BYTES;

/// Whether the log was ever usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetaState {
    Making,
    Made,
}

/// The log's identity and beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) state: MetaState,
    pub(crate) log: LogId,
    /// Counts the openings.
    pub(crate) epoch: u64,
    /// Segments below it are trimmed, whether their files are gone or not.
    pub(crate) first_segment: u64,
    /// The offset of the first record in the first segment.
    pub(crate) first_offset: u64,
}

/// Why bytes are not a log's identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MetaFault {
    #[error("damaged")]
    Broken,
    #[error("of the newer version {0}")]
    Newer(u16),
}

impl Meta {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let state: u16 = match self.state {
            MetaState::Making => 0,
            MetaState::Made => 1,
        };
        let mut rest = Vec::with_capacity(META_BYTES);
        rest.extend_from_slice(&VERSION.to_le_bytes());
        rest.extend_from_slice(&state.to_le_bytes());
        rest.extend_from_slice(self.log.0.as_bytes());
        rest.extend_from_slice(&self.epoch.to_le_bytes());
        rest.extend_from_slice(&self.first_segment.to_le_bytes());
        rest.extend_from_slice(&self.first_offset.to_le_bytes());
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&checksum(self.log, &rest).to_le_bytes());
        out.extend_from_slice(&rest);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, MetaFault> {
        let covered = bytes.get(COVERED).ok_or(MetaFault::Broken)?;
        let mut fields = Fields::new(bytes.get(8..).unwrap_or_default());
        let (sum, version, state, log) = (fields.u32(), fields.u16(), fields.u16(), fields.log_id());
        // Before the checksum, which a newer version may compute otherwise.
        if bytes.starts_with(MAGIC) && version > VERSION {
            return Err(MetaFault::Newer(version));
        }
        if !bytes.starts_with(MAGIC) || sum != checksum(log, covered) {
            return Err(MetaFault::Broken);
        }
        let state = match state {
            0 => MetaState::Making,
            1 => MetaState::Made,
            _ => return Err(MetaFault::Broken),
        };
        Ok(Self { state, log, epoch: fields.u64(), first_segment: fields.u64(), first_offset: fields.u64() })
    }
}
