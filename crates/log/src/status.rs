//! How the log is doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lakegate_model::LogId;

/// Whether the log works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogHealth {
    /// It does.
    Healthy,
    /// The disk has no room for another segment; what does not fit into the present one is refused until it has.
    OutOfRoom {
        /// What the disk answered.
        reason: Arc<str>,
    },
    /// A write or sync failed; nothing more is acknowledged until the process starts again.
    Poisoned {
        /// What failed.
        reason: Arc<str>,
    },
    /// It was closed.
    Closed,
}

/// How the log is doing, at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStatus {
    /// The log's identity.
    pub id: LogId,
    /// Which opening this is.
    pub epoch: u64,
    /// What all segments take on disk, in bytes.
    pub bytes: u64,
    /// How many segments there are, the one prepared ahead included.
    pub segments: u64,
    /// The oldest offset.
    pub first_offset: u64,
    /// The offset that the next record gets.
    pub next_offset: u64,
    /// Every record below it is durable.
    pub durable_offset: u64,
    /// What the segments may take, in bytes.
    pub quota_bytes: u64,
    /// What waits to be written, in bytes.
    pub queued_bytes: usize,
    /// Whether it works.
    pub health: LogHealth,
    /// How long the last sync took, in microseconds.
    pub last_sync_us: u64,
    /// Groups synced since the opening.
    pub groups: u64,
    /// Frames synced since the opening.
    pub frames: u64,
    /// The scheduling class of the log's thread: "realtime", "normal" or "none".
    pub scheduling: &'static str,
}

/// What is counted while the log runs.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) last_sync_us: AtomicU64,
    pub(crate) groups: AtomicU64,
    pub(crate) frames: AtomicU64,
    /// Bytes of the newest group.
    pub(crate) last_bytes: AtomicU64,
}

impl Counters {
    /// Counts a synced group.
    pub(crate) fn count_group(&self, frames: u64, bytes: u64, sync_us: u64) {
        self.last_sync_us.store(sync_us, Ordering::Relaxed);
        self.last_bytes.store(bytes, Ordering::Relaxed);
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.frames.fetch_add(frames, Ordering::Relaxed);
    }
}
