//! Opens a log: makes a new one or recovers what is there, and puts its parts together.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};

use lakegate_env::{Clock, DirLock, Disk, Random};
use lakegate_model::LogId;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::error::OpenError;
use crate::format::{
    FRAME_HEADER_BYTES, Mark, Meta, MetaState, PAGE_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, parse_segment_name,
};
use crate::options::{LogMode, LogOptions};
use crate::prepare::{create_segment, ensure_reserve, with_reserve};
use crate::queue::{Batch, FIRST_SEGMENT_BYTES, Layout, Queue, Room};
use crate::recover::{Liveness, MARK_NAME, Survey, failed, mend, read_meta, survey};
use crate::scan::MAX_PAYLOAD_BYTES;
use crate::shared::{Bell, Prepared, Progress, SegmentEntry, Shared, Spare};
use crate::status::Counters;
use crate::trim::META_NAME;
use crate::writer::Writer;

/// The smallest segment: its header's page and one of frames.
const MIN_SEGMENT_BYTES: u64 = 2 * PAGE_BYTES;

/// The smallest quota.
const MIN_QUOTA_BYTES: u64 = 8 * MIN_SEGMENT_BYTES;

/// The parts of an open log.
pub(crate) struct OpenedLog {
    pub(crate) shared: Arc<Shared>,
    /// None if nothing is written.
    pub(crate) writer: Option<Writer>,
}

/// What a log goes on from.
struct Start {
    meta: Meta,
    next_offset: u64,
    layout: Layout,
    segments: VecDeque<SegmentEntry>,
    prepared: VecDeque<Prepared>,
    spares: Vec<Spare>,
    dir_lock: Option<Box<dyn DirLock>>,
}

/// Opens a log.
pub(crate) fn open_log(
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    random: &dyn Random,
    options: LogOptions,
) -> Result<OpenedLog, OpenError> {
    check_options(&options)?;
    let new_id = LogId(uuid::Builder::from_random_bytes(random.next_u128().to_le_bytes()).into_uuid());
    if options.mode == LogMode::Volatile {
        let start = Start::volatile(new_id, &options);
        return Ok(OpenedLog { shared: Arc::new(start.into_shared(disk, clock, options)), writer: None });
    }
    let dir = options.dir.as_path();
    disk.create_dir_all(dir).map_err(failed(dir, "making the folder"))?;
    let dir_lock = disk.lock_dir(dir).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::InUse { dir: dir.to_path_buf() },
        _ => failed(dir, "locking the folder")(error),
    })?;
    let meta = match read_meta(&*disk, dir)? {
        Some(meta) if meta.state == MetaState::Made => meta,
        unmade => make_log(&*disk, &options, unmade.map_or(new_id, |meta| meta.log))
            .map_err(failed(dir, "making a new log"))?,
    };
    let survey = survey(&*disk, dir, meta, Liveness::Stopped)?;
    mend(&*disk, dir, &survey).map_err(failed(dir, "cutting off the torn tail"))?;
    let (start, mark, active) =
        begin_epoch(&*disk, &options, &survey, dir_lock).map_err(failed(dir, "beginning a new epoch"))?;
    let mark_file = disk.open(&dir.join(MARK_NAME)).map_err(failed(dir, "opening the mark"))?;
    let shared = Arc::new(start.into_shared(disk, clock, options));
    let writer = Writer::new(Arc::clone(&shared), active, mark_file, mark);
    Ok(OpenedLog { shared, writer: Some(writer) })
}

fn check_options(options: &LogOptions) -> Result<(), OpenError> {
    let refuse = |message: String| Err(OpenError::Settings(message));
    if options.segment_bytes < MIN_SEGMENT_BYTES {
        return refuse(format!(
            "a segment of {} bytes is too small, it needs {MIN_SEGMENT_BYTES}",
            options.segment_bytes
        ));
    }
    if options.quota_bytes < MIN_QUOTA_BYTES {
        return refuse(format!("a quota of {} bytes is too small, it needs {MIN_QUOTA_BYTES}", options.quota_bytes));
    }
    if options.max_frame_bytes > MAX_PAYLOAD_BYTES as usize {
        return refuse(format!(
            "frames of {} bytes are too large, {MAX_PAYLOAD_BYTES} are possible",
            options.max_frame_bytes
        ));
    }
    Ok(())
}

/// The size of a full segment: with a quota of at least four, trimming always has something to take.
fn full_segment_bytes(options: &LogOptions) -> u64 {
    let bytes = options.segment_bytes.min(options.quota_bytes / 4);
    (bytes / PAGE_BYTES * PAGE_BYTES).max(MIN_SEGMENT_BYTES)
}

/// The largest payload: two segments that hold one such frame each fit into the quota.
fn max_payload_bytes(options: &LogOptions) -> usize {
    let half = options.quota_bytes / 2 - SEGMENT_HEADER_BYTES - FRAME_HEADER_BYTES as u64 - PAGE_BYTES;
    options.max_frame_bytes.min(usize::try_from(half).unwrap_or(usize::MAX))
}

/// Makes a new log. Until the last step its state says that nothing in the folder counts.
fn make_log(disk: &dyn Disk, options: &LogOptions, log: LogId) -> io::Result<Meta> {
    let dir = options.dir.as_path();
    let making = Meta { state: MetaState::Making, log, epoch: 0, first_segment: 1, first_offset: 0 };
    disk.write_atomic(&dir.join(META_NAME), &making.encode())?;
    for name in disk.list(dir)?.iter().filter(|name| parse_segment_name(name).is_some()) {
        disk.remove(&dir.join(name))?;
    }
    disk.write_atomic(&dir.join(MARK_NAME), &Mark { durable_offset: 0, count: 0 }.encode_file(log))?;
    let header = SegmentHeader { log, segment: 1, epoch: 1 };
    create_segment(disk, dir, &header, FIRST_SEGMENT_BYTES.min(full_segment_bytes(options)))?;
    disk.sync_dir(dir)?;
    let made = Meta { state: MetaState::Made, ..making };
    disk.write_atomic(&dir.join(META_NAME), &made.encode())?;
    Ok(made)
}

/// Makes what was found durable as the state to go on from: first the mark, then the new epoch.
fn begin_epoch(
    disk: &dyn Disk,
    options: &LogOptions,
    survey: &Survey,
    dir_lock: Box<dyn DirLock>,
) -> io::Result<(Start, Mark, Prepared)> {
    let dir = options.dir.as_path();
    let mark = Mark { durable_offset: survey.next_offset, count: survey.mark.count + 1 };
    let meta = Meta { epoch: survey.meta.epoch + 1, ..survey.meta };
    with_reserve(disk, dir, || disk.write_atomic(&dir.join(MARK_NAME), &mark.encode_file(meta.log)))?;
    with_reserve(disk, dir, || disk.write_atomic(&dir.join(META_NAME), &meta.encode()))?;
    ensure_reserve(disk, dir);
    let mut segments = VecDeque::new();
    let mut files = VecDeque::new();
    for (at, walk) in survey.walks.iter().enumerate() {
        let room = Room { segment: walk.segment, bytes: walk.length };
        if at <= survey.active {
            segments.push_back(SegmentEntry { room, first_offset: walk.first_offset });
        }
        if at >= survey.active {
            files.push_back(Prepared { room, file: disk.open(&walk.path)?.into() });
        }
    }
    let active = files.pop_front().ok_or(io::ErrorKind::NotFound)?;
    let position = survey.walks.get(survey.active).map_or(SEGMENT_HEADER_BYTES, |walk| walk.end);
    let layout = Layout {
        segment: active.room.segment,
        position,
        capacity: active.room.bytes,
        total_bytes: survey.walks.iter().map(|walk| walk.length).sum(),
        segment_count: survey.walks.len() as u64,
        quota_bytes: options.quota_bytes,
        max_segment_bytes: full_segment_bytes(options),
        promised: files.iter().map(|prepared| prepared.room).collect(),
        to_prepare: VecDeque::new(),
        out_of_room: None,
    };
    let spares = take_spares(disk, dir, survey, &layout)?;
    let start = Start {
        meta,
        next_offset: survey.next_offset,
        layout,
        segments,
        prepared: files,
        spares,
        dir_lock: Some(dir_lock),
    };
    Ok((start, mark, active))
}

/// Keeps the spares that can be used, removes the others.
fn take_spares(disk: &dyn Disk, dir: &Path, survey: &Survey, layout: &Layout) -> io::Result<Vec<Spare>> {
    let mut kept: Vec<Spare> = Vec::new();
    for name in &survey.spares {
        let path = dir.join(name);
        let bytes = disk.len(&path)?;
        let taken: u64 = kept.iter().map(|spare| spare.bytes).sum();
        if bytes == layout.max_segment_bytes && layout.total_bytes + taken + bytes <= layout.quota_bytes {
            kept.push(Spare { path, bytes });
        } else {
            disk.remove(&path)?;
        }
    }
    Ok(kept)
}

impl Start {
    fn volatile(log: LogId, options: &LogOptions) -> Self {
        let layout = Layout {
            segment: 0,
            position: 0,
            capacity: 0,
            total_bytes: 0,
            segment_count: 0,
            quota_bytes: options.quota_bytes,
            max_segment_bytes: 0,
            promised: VecDeque::new(),
            to_prepare: VecDeque::new(),
            out_of_room: None,
        };
        let meta = Meta { state: MetaState::Made, log, epoch: 1, first_segment: 0, first_offset: 0 };
        Self {
            meta,
            next_offset: 0,
            layout,
            segments: VecDeque::new(),
            prepared: VecDeque::new(),
            spares: Vec::new(),
            dir_lock: None,
        }
    }

    fn into_shared(self, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>, options: LogOptions) -> Shared {
        let written = self.layout.segment;
        let queue = Queue {
            next_offset: self.next_offset,
            epoch: self.meta.epoch,
            batch: Batch::default(),
            spare: None,
            in_flight_bytes: 0,
            max_queued_bytes: options.max_queued_bytes,
            layout: self.layout,
            stopped: None,
        };
        Shared {
            max_payload_bytes: max_payload_bytes(&options),
            options,
            disk,
            clock,
            id: self.meta.log,
            epoch: self.meta.epoch,
            durable: Arc::new(AtomicU64::new(self.next_offset)),
            queue: Mutex::new(queue),
            segments: Mutex::new(self.segments),
            meta: Mutex::new(self.meta),
            prepared: Mutex::new(self.prepared),
            spares: Mutex::new(self.spares),
            written_segment: AtomicU64::new(written),
            work_wanted: Condvar::new(),
            room_ready: Condvar::new(),
            writer_bell: Bell::default(),
            closing: AtomicBool::new(false),
            progress: watch::Sender::new(Progress { durable_offset: self.next_offset, stopped: None }),
            counters: Counters::default(),
            scheduling: OnceLock::new(),
            dir_lock: Mutex::new(self.dir_lock),
        }
    }
}
