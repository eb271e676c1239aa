//! The handle: what the rest of the system sees of the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use lakegate_env::{Clock, Disk, Random, set_realtime};
use lakegate_model::LogId;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::{AppendError, LogError, OpenError, ReadError, TrimError};
use crate::open::{OpenedLog, open_log};
use crate::options::{Driver, LogMode, LogOptions};
use crate::pace::Pace;
use crate::prepare::{PREPARE_RETRY, prepare_next, run_preparer};
use crate::queue::Payload;
use crate::reader::Reader;
use crate::shared::{Progress, SegmentEntry, Shared};
use crate::status::{LogHealth, LogStatus};
use crate::ticket::Ticket;
use crate::trim::{TrimOutcome, trim_log};
use crate::writer::{Step, Writer};

/// A write-ahead log. Clones are the same log; it is closed when the last one goes.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    running: Arc<Running>,
}

/// Ends the log when the last handle is dropped.
struct Running {
    shared: Arc<Shared>,
    /// With [`Driver::Manual`] the writer; the caller runs it.
    writer: Mutex<Option<Writer>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Log {
    /// Opens the log in the options' folder, or makes a new one there. When this returns, recovery is done: a torn
    /// tail is cut off, everything that can be read is durable, and the opening has an epoch of its own.
    ///
    /// # Errors
    /// See [`OpenError`]; damage to acknowledged records is one of them, and nothing is changed then.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        options: LogOptions,
    ) -> Result<Self, OpenError> {
        let driver = options.driver;
        let mode = options.mode;
        let OpenedLog { shared, writer } = open_log(disk, clock, &*random, options)?;
        let running = Running { shared: Arc::clone(&shared), writer: Mutex::new(None), threads: Mutex::default() };
        match (writer, driver) {
            (Some(writer), Driver::Thread) => start_threads(&running, writer)?,
            (writer, _) => *running.writer.lock() = writer,
        }
        metrics::gauge!("lakegate_wal_poisoned").set(0.0);
        tracing::info!(log = %shared.id, epoch = shared.epoch, ?mode, next_offset = shared.queue.lock().next_offset, "the log is open");
        Ok(Self { shared, running: Arc::new(running) })
    }

    /// The log's identity.
    #[must_use]
    pub fn id(&self) -> LogId {
        self.shared.id
    }

    /// Which opening of the log this is; grows by one at each, durably.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.shared.epoch
    }

    /// The oldest offset that is still there.
    #[must_use]
    pub fn first_offset(&self) -> u64 {
        self.shared.meta.lock().first_offset
    }

    /// The offset that the next record gets.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.shared.queue.lock().next_offset
    }

    /// Every record below it is durable.
    #[must_use]
    pub fn durable_offset(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// The durable offset itself, for those who look at it all the time. To be read only.
    #[must_use]
    pub fn durable_handle(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.durable)
    }

    /// Appends one frame of `records` records, whose payload is the concatenation of `parts`. Offsets are assigned at
    /// once; no I/O is done and nothing is waited for but a short lock.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was appended then.
    pub fn append(&self, records: u32, parts: &[Bytes]) -> Result<Ticket, AppendError> {
        if records == 0 {
            return Err(AppendError::NoRecords);
        }
        let payload = Payload::new(parts, self.shared.max_payload_bytes)?;
        let mut queue = self.shared.queue.lock();
        let next_offset = queue.next_offset;
        self.push(&mut queue, records, &payload).inspect(|ticket| {
            debug_assert_eq!(ticket.first_offset, next_offset);
            drop(queue);
            self.shared.writer_bell.ring();
        })
    }

    /// As [`Log::append`], for a payload that must know its first offset. `make_parts` runs under the log's lock: it
    /// must be quick and must not call the log.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was appended then.
    pub fn append_with(&self, records: u32, make_parts: impl FnOnce(u64) -> Vec<Bytes>) -> Result<Ticket, AppendError> {
        if records == 0 {
            return Err(AppendError::NoRecords);
        }
        let mut queue = self.shared.queue.lock();
        let parts = make_parts(queue.next_offset);
        let payload = Payload::new(&parts, self.shared.max_payload_bytes)?;
        self.push(&mut queue, records, &payload).inspect(|_| {
            drop(queue);
            self.shared.writer_bell.ring();
        })
    }

    fn push(
        &self,
        queue: &mut crate::queue::Queue,
        records: u32,
        payload: &Payload<'_>,
    ) -> Result<Ticket, AppendError> {
        if self.shared.options.mode == LogMode::Volatile {
            return self.push_volatile(queue, records);
        }
        let accepted = queue.push(records, payload)?;
        if let Some(room) = accepted.new_segment {
            self.shared.segments.lock().push_back(SegmentEntry { room, first_offset: accepted.first_offset });
            self.shared.work_wanted.notify_all();
        }
        self.shared.writer_bell.queued.store(true, Ordering::Relaxed);
        Ok(Ticket {
            first_offset: accepted.first_offset,
            records,
            group: accepted.group,
            durable: Arc::clone(&self.shared.durable),
        })
    }

    fn push_volatile(&self, queue: &mut crate::queue::Queue, records: u32) -> Result<Ticket, AppendError> {
        if let Some(error) = &queue.stopped {
            return Err(AppendError::Stopped(error.clone()));
        }
        let first_offset = queue.next_offset;
        queue.next_offset += u64::from(records);
        let group = Arc::clone(&queue.batch.group);
        self.shared.publish(queue.next_offset, &group);
        Ok(Ticket { first_offset, records, group, durable: Arc::clone(&self.shared.durable) })
    }

    /// Waits until every record below `offset` is durable.
    ///
    /// # Errors
    /// The log has stopped before that.
    pub async fn wait_durable(&self, offset: u64) -> Result<(), LogError> {
        let mut progress = self.subscribe();
        let reached = progress.wait_for(|now| now.durable_offset >= offset || now.stopped.is_some()).await;
        match reached {
            Ok(now) if now.durable_offset >= offset => Ok(()),
            Ok(now) => Err(now.stopped.clone().unwrap_or(LogError::Closed)),
            Err(_) => Err(LogError::Closed),
        }
    }

    /// Follows the durable offset; a slow follower sees the newest value, not each.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Whether frames are kept in memory alone and cannot be read back.
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        self.shared.options.mode == LogMode::Volatile
    }

    /// Reads frames from the one that holds `from_offset`. Nothing that is not durable is read; when the reader has
    /// caught up it ends, and goes on if asked again after more has become durable.
    ///
    /// # Errors
    /// [`ReadError::Trimmed`] if the offset is no longer there.
    pub fn read(&self, from_offset: u64) -> Result<Reader, ReadError> {
        Reader::new(Arc::clone(&self.shared), from_offset)
    }

    /// Gives up all records below `before_offset`, as far as whole segments hold nothing else. Blocks for some disk
    /// operations.
    ///
    /// # Errors
    /// See [`TrimError`].
    pub fn trim(&self, before_offset: u64) -> Result<TrimOutcome, TrimError> {
        trim_log(&self.shared, before_offset)
    }

    /// Gives up the reserve file, so that something else can finish on a full disk; it is taken again when there is
    /// room. `true` if there was one.
    #[must_use]
    pub fn release_reserve(&self) -> bool {
        self.shared.disk.remove(&self.shared.path(crate::prepare::RESERVE_NAME)).is_ok()
    }

    /// How the log is doing.
    #[must_use]
    pub fn status(&self) -> LogStatus {
        let shared = &self.shared;
        let first_offset = self.first_offset();
        let queue = shared.queue.lock();
        let layout = &queue.layout;
        let health = match (&queue.stopped, &layout.out_of_room) {
            (Some(LogError::Poisoned { reason }), _) => LogHealth::Poisoned { reason: Arc::clone(reason) },
            (Some(LogError::Closed), _) => LogHealth::Closed,
            (None, Some(reason)) => LogHealth::OutOfRoom { reason: Arc::clone(reason) },
            (None, None) => LogHealth::Healthy,
        };
        let status = LogStatus {
            id: shared.id,
            epoch: shared.epoch,
            bytes: layout.total_bytes,
            segments: layout.segment_count,
            first_offset,
            next_offset: queue.next_offset,
            durable_offset: self.durable_offset(),
            quota_bytes: layout.quota_bytes,
            queued_bytes: queue.batch.bytes + queue.in_flight_bytes,
            health,
            last_sync_us: shared.counters.last_sync_us.load(Ordering::Relaxed),
            groups: shared.counters.groups.load(Ordering::Relaxed),
            frames: shared.counters.frames.load(Ordering::Relaxed),
            scheduling: shared.scheduling.get().map_or("none", |class| class.as_str()),
        };
        drop(queue);
        report_gauges(&status);
        status
    }

    /// Writes, syncs and publishes what is queued, on the caller's thread. For [`Driver::Manual`]; does nothing with
    /// a thread. `true` if a group was written, `false` if nothing was queued or there is no room for it now.
    ///
    /// # Errors
    /// The log has stopped.
    pub fn step(&self) -> Result<bool, LogError> {
        let mut writer = self.running.writer.lock();
        let Some(writer) = writer.as_mut() else { return Ok(false) };
        if let Some(error) = self.shared.stopped().filter(|error| *error != LogError::Closed) {
            return Err(error);
        }
        Ok(writer.write_next()? == Step::Wrote)
    }

    /// Prepares the next segment ahead, on the caller's thread. For [`Driver::Manual`], where otherwise a segment is
    /// prepared when it is needed. `true` if one was.
    ///
    /// # Errors
    /// The log has stopped.
    pub fn prepare_ahead(&self) -> Result<bool, LogError> {
        if self.shared.options.driver != Driver::Manual || self.shared.options.mode == LogMode::Volatile {
            return Ok(false);
        }
        {
            let mut queue = self.shared.queue.lock();
            if let Some(error) = &queue.stopped {
                return Err(error.clone());
            }
            queue.layout.promise_ahead();
        }
        prepare_next(&self.shared)
    }

    /// Refuses further appends, writes what is queued, and ends the log's threads. Whoever still waits for what could
    /// not be written is told so.
    pub fn close(&self) {
        self.running.close();
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("id", &self.shared.id).field("epoch", &self.shared.epoch).finish_non_exhaustive()
    }
}

fn report_gauges(status: &LogStatus) {
    #[allow(clippy::cast_precision_loss, reason = "a measurement")]
    let set = |name: &'static str, value: u64| metrics::gauge!(name).set(value as f64);
    set("lakegate_wal_bytes", status.bytes);
    set("lakegate_wal_quota_bytes", status.quota_bytes);
    set("lakegate_wal_segments", status.segments);
    set("lakegate_wal_queued_bytes", status.queued_bytes as u64);
    set("lakegate_wal_next_offset", status.next_offset);
    set("lakegate_wal_durable_offset", status.durable_offset);
}

impl Running {
    fn close(&self) {
        {
            let mut queue = self.shared.queue.lock();
            queue.stopped.get_or_insert(LogError::Closed);
            self.shared.closing.store(true, Ordering::SeqCst);
        }
        self.shared.work_wanted.notify_all();
        self.shared.writer_bell.ring();
        if let Some(mut writer) = self.writer.lock().take() {
            let poisoned = self.shared.stopped().is_some_and(|error| error != LogError::Closed);
            while !poisoned && writer.write_next() == Ok(Step::Wrote) {}
            writer.finish();
        }
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!(log = %self.shared.id, "a thread of the log has panicked");
            }
        }
        self.shared.stop(&LogError::Closed, None);
        self.shared.prepared.lock().clear();
        *self.shared.dir_lock.lock() = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.close();
    }
}

fn start_threads(running: &Running, mut writer: Writer) -> Result<(), OpenError> {
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        thread.map_err(|source| OpenError::Disk {
            dir: running.shared.options.dir.clone(),
            doing: "starting a thread",
            source,
        })
    };
    let shared = Arc::clone(&running.shared);
    let preparer = spawn("wal-prepare", Box::new(move || run_preparer(&shared)))?;
    running.threads.lock().push(preparer);
    let shared = Arc::clone(&running.shared);
    let writer = spawn("wal-write", Box::new(move || run_writer(&shared, &mut writer)))?;
    running.threads.lock().push(writer);
    Ok(())
}

/// The writer's thread: works until the log ends.
fn run_writer(shared: &Shared, writer: &mut Writer) {
    let class = if shared.options.realtime { set_realtime() } else { lakegate_env::SchedulingClass::Normal };
    let _ = shared.scheduling.set(class);
    tracing::debug!(log = %shared.id, class = class.as_str(), "the log's thread runs");
    shared.writer_bell.belongs_to_this_thread();
    let mut pace = Pace::default();
    loop {
        match writer.write_next() {
            Ok(Step::Wrote) => pace.next_group(shared),
            Ok(Step::Idle) => {
                shared.writer_bell.announce_sleep();
                let (idle, closing) = {
                    let queue = shared.queue.lock();
                    (queue.batch.frames.is_empty(), shared.closing.load(Ordering::SeqCst))
                };
                match (idle, closing) {
                    (true, true) => break,
                    (true, false) => shared.writer_bell.sleep(),
                    (false, _) => shared.writer_bell.stay_awake(),
                }
            }
            Ok(Step::Blocked) => {
                if shared.closing.load(Ordering::SeqCst) {
                    break;
                }
                std::thread::sleep(PREPARE_RETRY);
            }
            Err(_) => break,
        }
    }
    writer.finish();
}
