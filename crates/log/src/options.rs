//! What a log is opened with.

use std::path::PathBuf;

/// Whether what is appended survives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogMode {
    /// Appended records are durable once their ticket says so.
    Durable,
    /// Nothing touches the disk; every append is called durable at once, and lost with the process. Nothing can be
    /// read back. Each opening is a new log with a new identity.
    Volatile,
}

/// Who writes the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// A thread of the log's own, and a second one that prepares segments.
    Thread,
    /// Nobody but the caller of [`crate::Log::step`]: no thread is started, so that a simulation decides every order.
    Manual,
}

/// What a log is opened with.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The folder that holds the log and nothing else.
    pub dir: PathBuf,
    /// Size of a segment in bytes. The first ones of a new log are smaller, so that it starts at once.
    pub segment_bytes: u64,
    /// What all segments may hold together in bytes; an append that needs more is refused.
    pub quota_bytes: u64,
    /// The largest payload of a frame in bytes.
    pub max_frame_bytes: usize,
    /// How many bytes may wait to be written; an append beyond it is refused.
    pub max_queued_bytes: usize,
    /// Whether the log's thread asks for the real-time class. Where that is not permitted it runs as a normal one.
    pub realtime: bool,
    /// Durable or volatile.
    pub mode: LogMode,
    /// By a thread or by the caller.
    pub driver: Driver,
}

impl LogOptions {
    /// A durable log in `dir` with the defaults: segments of 64 MiB, a quota of 10 GiB, frames of up to 64 MiB, at
    /// most 256 MiB waiting.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            dir: dir.into(),
            segment_bytes: 64 * MIB,
            quota_bytes: 10 * 1024 * MIB,
            max_frame_bytes: 64 * 1024 * 1024,
            max_queued_bytes: 256 * 1024 * 1024,
            realtime: true,
            mode: LogMode::Durable,
            driver: Driver::Thread,
        }
    }
}
