//! What each operation can refuse, and what its caller can do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use lakegate_model::LogId;

/// Damage that was found in the log: where, and which records it concerns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is damaged at byte {position}: {found}; this concerns records {first_offset} up to {}", file.display(), next_offset.map_or_else(|| "an unknown one".to_owned(), |next| format!("(not including) {next}")))]
pub struct Damage {
    /// The damaged file.
    pub file: PathBuf,
    /// Where in the file.
    pub position: u64,
    /// What was found there.
    pub found: String,
    /// The first record that cannot be read.
    pub first_offset: u64,
    /// The first record after the damage, exclusive end of the range; unknown if nothing tells.
    pub next_offset: Option<u64>,
}

/// Why a log could not be opened. Nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process (or another handle in this one) has it.
    #[error("the log in {} is in use by another process; stop that one first (its process id is in the file LOCK there)", dir.display())]
    InUse {
        /// The log's folder.
        dir: PathBuf,
    },
    /// Acknowledged records cannot be read.
    #[error(
        "{0}; nothing was changed. Put the file back from a copy, or set it aside with `lakegate wal set-aside`, which gives these records up"
    )]
    Damaged(Damage),
    /// A segment is missing.
    #[error("segment {segment} of the log in {} is missing, though {reason}; put it back from a copy, or give its records up with `lakegate wal set-aside`", dir.display())]
    MissingSegment {
        /// The log's folder.
        dir: PathBuf,
        /// Its number.
        segment: u64,
        /// How it is known that there was one.
        reason: String,
    },
    /// A file belongs to another log.
    #[error("{} belongs to log {found}, not to log {expected} of this folder; move it back to where it came from", file.display())]
    WrongLog {
        /// The file.
        file: PathBuf,
        /// The log that the folder holds.
        expected: LogId,
        /// The log that the file names.
        found: LogId,
    },
    /// A segment's file holds another segment.
    #[error("{} holds segment {found}, not segment {expected}; it was renamed or copied over, put the right file back", file.display())]
    MisplacedSegment {
        /// The file.
        file: PathBuf,
        /// The number in its name.
        expected: u64,
        /// The number in its header.
        found: u64,
    },
    /// A file was written by a newer version.
    #[error("{} has format version {found}, this program knows up to {known}; use the program that wrote it, or a newer one", file.display())]
    NewerVersion {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u16,
        /// The newest known here.
        known: u16,
    },
    /// One of the small files that hold the log's identity and marks is missing or damaged.
    #[error("{} is {found}, and without it nothing can be said about the segments beside it; put it back from a copy", file.display())]
    Identity {
        /// The file.
        file: PathBuf,
        /// "missing" or what is wrong with it.
        found: String,
    },
    /// The options contradict themselves or the folder.
    #[error("the log cannot be opened with these settings: {0}")]
    Settings(String),
    /// The disk failed.
    #[error("the log in {} cannot be opened: {doing}: {source}", dir.display())]
    Disk {
        /// The log's folder.
        dir: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the disk answered.
        source: io::Error,
    },
}

/// Why an append was refused. Nothing of it is in the log, and no offset was used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The quota is used up; there is room again once the lake has taken records and the log was trimmed.
    #[error(
        "the log has used {used_bytes} of {quota_bytes} bytes and needs {needed_bytes} more; try again when the lake has caught up"
    )]
    QuotaFull {
        /// What the segments take.
        used_bytes: u64,
        /// What they may take.
        quota_bytes: u64,
        /// What this append would have added.
        needed_bytes: u64,
    },
    /// The disk has no room for a new segment; tried again by itself until it has.
    #[error("the disk has no room for another segment of the log ({reason}); free some, writing goes on by itself")]
    OutOfRoom {
        /// What the disk answered.
        reason: Arc<str>,
    },
    /// Too much is waiting to be written.
    #[error("{queued_bytes} bytes are waiting to be written, {limit_bytes} are allowed; try again in a moment")]
    QueueFull {
        /// What waits.
        queued_bytes: usize,
        /// What may wait.
        limit_bytes: usize,
    },
    /// The frame is larger than any can be.
    #[error("a frame of {bytes} bytes is larger than the {limit_bytes} allowed; send smaller batches")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest.
        limit_bytes: usize,
    },
    /// A frame must hold a record.
    #[error("a frame without records cannot be appended")]
    NoRecords,
    /// The log has stopped.
    #[error(transparent)]
    Stopped(#[from] LogError),
}

impl AppendError {
    /// Whether the same append can succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::QuotaFull { .. } | Self::OutOfRoom { .. } | Self::QueueFull { .. } => true,
            Self::TooLarge { .. } | Self::NoRecords | Self::Stopped(_) => false,
        }
    }
}

/// Why the log has stopped. Whether records that were waiting survive is unknown until it is opened again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// A write or a sync failed. That is final: what the disk holds now is known only after a restart.
    #[error("the log has stopped because its disk failed ({reason}); see to the disk and start again")]
    Poisoned {
        /// What was being done, and what the disk answered.
        reason: Arc<str>,
    },
    /// It was closed.
    #[error("the log is closed")]
    Closed,
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is no longer in the log.
    #[error("offset {asked} is no longer in the log, which begins at {first_offset}")]
    Trimmed {
        /// The offset asked for.
        asked: u64,
        /// The oldest one there is.
        first_offset: u64,
    },
    /// What lies there is damaged.
    #[error("{0}")]
    Damaged(Damage),
    /// The disk failed.
    #[error("{} cannot be read: {source}", file.display())]
    Disk {
        /// The file.
        file: PathBuf,
        /// What the disk answered.
        source: io::Error,
    },
}

/// Why the log could not be trimmed. It is as it was, or shorter; trimming again is safe.
#[derive(Debug, thiserror::Error)]
pub enum TrimError {
    /// The log has stopped.
    #[error(transparent)]
    Stopped(#[from] LogError),
    /// The disk failed.
    #[error("the log cannot be trimmed: {doing}: {source}")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// What the disk answered.
        source: io::Error,
    },
}
