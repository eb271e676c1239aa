//! What the handles, the writer, the preparer and the readers of one log share.
//!
//! Locks are taken in this order, where more than one is held: `meta`, `queue`, `segments`.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use lakegate_env::{Clock, DirLock, Disk, DiskFile, SchedulingClass};
use lakegate_model::LogId;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::error::LogError;
use crate::format::{Meta, segment_name};
use crate::options::LogOptions;
use crate::queue::{Queue, Room};
use crate::status::Counters;
use crate::ticket::Group;

/// How far the log is, for those who follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Every record below it is durable.
    pub durable_offset: u64,
    /// Set when nothing more will become durable.
    pub stopped: Option<LogError>,
}

/// A segment that holds frames, or is the next to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentEntry {
    pub(crate) room: Room,
    /// The offset of its first record.
    pub(crate) first_offset: u64,
}

/// A segment that is ready to be written.
pub(crate) struct Prepared {
    pub(crate) room: Room,
    pub(crate) file: Arc<dyn DiskFile>,
}

/// A trimmed segment's file, to be used again.
pub(crate) struct Spare {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// What all parts of one log share.
pub(crate) struct Shared {
    pub(crate) options: LogOptions,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) id: LogId,
    pub(crate) epoch: u64,
    pub(crate) max_payload_bytes: usize,
    /// Every record below it is durable. Stored by the writer alone.
    pub(crate) durable: Arc<AtomicU64>,
    pub(crate) queue: Mutex<Queue>,
    pub(crate) segments: Mutex<VecDeque<SegmentEntry>>,
    pub(crate) meta: Mutex<Meta>,
    pub(crate) prepared: Mutex<VecDeque<Prepared>>,
    pub(crate) spares: Mutex<Vec<Spare>>,
    /// The newest segment that the writer has begun.
    pub(crate) written_segment: AtomicU64,
    /// Signals on `queue`: there is something to prepare, or the end has come.
    pub(crate) work_wanted: Condvar,
    /// Signals on `prepared`: a segment is ready, or the end has come.
    pub(crate) room_ready: Condvar,
    pub(crate) writer_bell: Bell,
    pub(crate) closing: AtomicBool,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) counters: Counters,
    pub(crate) scheduling: OnceLock<SchedulingClass>,
    pub(crate) dir_lock: Mutex<Option<Box<dyn DirLock>>>,
}

impl Shared {
    /// The path of a file in the log's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.options.dir.join(name)
    }

    /// The path of a segment.
    pub(crate) fn segment_path(&self, segment: u64) -> PathBuf {
        self.path(&segment_name(segment))
    }

    /// Makes records below `durable_offset` visible, and wakes those who waited for them.
    pub(crate) fn publish(&self, durable_offset: u64, group: &Group) {
        self.durable.store(durable_offset, Ordering::Release);
        group.wake_below(durable_offset);
        self.progress.send_if_modified(|progress| {
            progress.durable_offset = durable_offset;
            true
        });
    }

    /// Ends the log: no append is accepted, nothing more becomes durable, everyone who waits is told.
    pub(crate) fn stop(&self, error: &LogError, in_flight: Option<&Group>) -> LogError {
        let (error, queued) = {
            let mut queue = self.queue.lock();
            let error = queue.stopped.get_or_insert_with(|| error.clone()).clone();
            (error, Arc::clone(&queue.batch.group))
        };
        if let Some(group) = in_flight {
            group.fail(&error);
        }
        queued.fail(&error);
        self.progress.send_modify(|progress| progress.stopped = Some(error.clone()));
        self.work_wanted.notify_all();
        // Under the lock, so that a writer that has just looked and is about to wait is not missed.
        drop(self.prepared.lock());
        self.room_ready.notify_all();
        self.writer_bell.ring();
        error
    }

    /// Ends the log because its disk failed.
    pub(crate) fn poison(&self, doing: &str, source: &std::io::Error, in_flight: Option<&Group>) -> LogError {
        tracing::error!(log = %self.id, doing, error = %source, "the log has stopped: its disk failed");
        metrics::gauge!("lakegate_wal_poisoned").set(1.0);
        self.stop(&LogError::Poisoned { reason: format!("{doing}: {source}").into() }, in_flight)
    }

    /// Why no more is accepted, if so.
    pub(crate) fn stopped(&self) -> Option<LogError> {
        self.queue.lock().stopped.clone()
    }
}

/// Wakes the writer's thread, at no cost while it is awake.
#[derive(Default)]
pub(crate) struct Bell {
    thread: OnceLock<Thread>,
    sleeping: AtomicBool,
    /// Something was queued since the writer last took everything. A hint for its spinning, no more.
    pub(crate) queued: AtomicBool,
}

impl Bell {
    /// Says whose bell it is.
    pub(crate) fn belongs_to_this_thread(&self) {
        let _ = self.thread.set(std::thread::current());
    }

    /// Wakes the writer if it sleeps. To be called after what it should see was put under the queue's lock.
    pub(crate) fn ring(&self) {
        if self.sleeping.load(Ordering::SeqCst)
            && self.sleeping.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Declares that the writer is about to sleep; it must look at the queue once more before it does.
    pub(crate) fn announce_sleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
    }

    /// Sleeps until the bell is rung.
    pub(crate) fn sleep(&self) {
        while self.sleeping.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }

    /// Takes the announcement back.
    pub(crate) fn stay_awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }
}
