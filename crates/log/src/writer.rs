//! The writer: takes everything queued, writes it in one go, syncs once, and then tells everybody.
//!
//! Invariants:
//! - the durable offset is stored only after the sync of the frames below it has returned successfully;
//! - a segment's frames are synced before the first frame goes into the next segment;
//! - after the first failed write or sync nothing is written, synced or published any more: the failed sync is never
//!   tried again, for a second one may succeed without having written what the first one lost;
//! - a segment that cannot be had for lack of room stops the writer, not the log: nothing of the frames that need it
//!   was written, they keep their offsets and wait, and later ones are refused until there is room.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lakegate_env::disk::is_out_of_room;
use lakegate_env::{DiskFile, hit_failpoint};

use crate::error::LogError;
use crate::format::{FRAME_HEADER_BYTES, Mark, PAGE_BYTES, round_to_page, seal_frame};
use crate::options::Driver;
use crate::prepare::{PREPARE_RETRY, prepare_next};
use crate::queue::{Batch, FrameSlot};
use crate::shared::{Prepared, Shared};

/// What fills up the last page of a write: the kernel then never has to read the page that it overwrites.
static ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// The one that writes.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    active: Prepared,
    mark_file: Box<dyn DiskFile>,
    mark: Mark,
    /// A batch that waits for room, and how many of its frames are done.
    pending: Option<(Batch, usize)>,
    sync_seconds: metrics::Histogram,
    group_frames: metrics::Histogram,
    group_bytes: metrics::Histogram,
}

/// What came of trying to write a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A group was written and acknowledged.
    Wrote,
    /// Nothing was queued.
    Idle,
    /// What is queued needs a segment that cannot be had now.
    Blocked,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, active: Prepared, mark_file: Box<dyn DiskFile>, mark: Mark) -> Self {
        Self {
            shared,
            active,
            mark_file,
            mark,
            pending: None,
            sync_seconds: metrics::histogram!("lakegate_wal_sync_seconds"),
            group_frames: metrics::histogram!("lakegate_wal_group_frames"),
            group_bytes: metrics::histogram!("lakegate_wal_group_bytes"),
        }
    }

    /// Writes everything that is queued now.
    pub(crate) fn write_next(&mut self) -> Result<Step, LogError> {
        let taken = self.pending.take().or_else(|| {
            let mut queue = self.shared.queue.lock();
            self.shared.writer_bell.queued.store(false, Ordering::Relaxed);
            Some((queue.take()?, 0))
        });
        if let Some(error) = self.shared.stopped().filter(|error| *error != LogError::Closed) {
            if let Some((batch, _)) = taken {
                batch.group.fail(&error);
            }
            return Err(error);
        }
        let Some((mut batch, mut done)) = taken else { return Ok(Step::Idle) };
        while let Some(first) = batch.frames.get(done) {
            let segment = first.segment;
            if !self.has_segment(segment) {
                match self.turn_to(segment) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.pending = Some((batch, done));
                        return Ok(Step::Blocked);
                    }
                    Err(error) => {
                        batch.group.fail(&error);
                        return Err(error);
                    }
                }
            }
            let count = batch.frames.iter().skip(done).take_while(|frame| frame.segment == segment).count();
            if let Err(failure) = self.write_run(&mut batch, done, count) {
                return Err(self.shared.poison(failure.doing, &failure.source, Some(&batch.group)));
            }
            done += count;
        }
        self.shared.queue.lock().give_back(batch);
        Ok(Step::Wrote)
    }

    fn has_segment(&self, segment: u64) -> bool {
        self.active.room.segment == segment
    }

    /// Makes `segment` the active one. `false` if there is no room for it now.
    fn turn_to(&mut self, segment: u64) -> Result<bool, LogError> {
        let shared = Arc::clone(&self.shared);
        loop {
            let ready = {
                let mut prepared = shared.prepared.lock();
                // One that was prepared ahead and skipped over is none of ours to keep.
                prepared
                    .front()
                    .is_some_and(|next| next.room.segment <= segment)
                    .then(|| prepared.pop_front())
                    .flatten()
            };
            if let Some(next) = ready.filter(|next| next.room.segment == segment) {
                return self.grow_and_enter(next);
            }
            if let Some(error) = shared.stopped().filter(|error| *error != LogError::Closed) {
                return Err(error);
            }
            match shared.options.driver {
                Driver::Manual => {
                    if !prepare_next(&shared)? {
                        return Ok(false);
                    }
                }
                Driver::Thread => {
                    let mut prepared = shared.prepared.lock();
                    if prepared.is_empty() {
                        shared.room_ready.wait_for(&mut prepared, PREPARE_RETRY);
                    }
                    drop(prepared);
                    if shared.closing.load(Ordering::SeqCst) && shared.queue.lock().layout.out_of_room.is_some() {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Enters a prepared segment; one that must hold a frame larger than foreseen is made larger first.
    fn grow_and_enter(&mut self, mut next: Prepared) -> Result<bool, LogError> {
        let segment = next.room.segment;
        let planned = self
            .shared
            .segments
            .lock()
            .iter()
            .find(|entry| entry.room.segment == segment)
            .map(|entry| entry.room.bytes);
        if let Some(bytes) = planned.filter(|bytes| *bytes > next.room.bytes) {
            match next.file.allocate_zeroed(bytes) {
                Ok(()) => next.room.bytes = bytes,
                Err(error) if is_out_of_room(&error) => {
                    self.shared.queue.lock().layout.out_of_room = Some(error.to_string().into());
                    self.shared.prepared.lock().push_front(next);
                    return Ok(false);
                }
                Err(error) => return Err(self.shared.poison("making a segment larger", &error, None)),
            }
            self.shared.queue.lock().layout.out_of_room = None;
        }
        self.active = next;
        self.shared.written_segment.store(segment, Ordering::Release);
        Ok(true)
    }

    /// Writes `count` frames of one segment, syncs them, and publishes.
    fn write_run(&mut self, batch: &mut Batch, from: usize, count: usize) -> Result<(), Failure> {
        let durable = self.shared.durable.load(Ordering::Relaxed);
        let Batch { buffer, frames, .. } = batch;
        let run = frames.get(from..from + count).unwrap_or_default();
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        for frame in run {
            let header =
                buffer.get_mut(frame.copied.start..frame.copied.start + FRAME_HEADER_BYTES).unwrap_or_default();
            seal_frame(self.shared.id, header, durable);
        }
        let (position, end, end_offset) = (first.position, last.position + last.bytes, last.end_offset);
        let slices = slices_of(batch, from, count, usize::try_from(round_to_page(end) - end).unwrap_or(0));
        hit_failpoint("wal.before_write").map_err(during("writing frames"))?;
        self.write(&slices, position).map_err(during("writing frames"))?;
        hit_failpoint("wal.after_write_before_sync").map_err(during("syncing frames"))?;
        let began_us = self.shared.clock.monotonic_us();
        self.active.file.sync_data().map_err(during("syncing frames"))?;
        let sync_us = self.shared.clock.monotonic_us().saturating_sub(began_us);
        hit_failpoint("wal.after_sync").map_err(during("acknowledging frames"))?;
        self.advance_mark(end_offset).map_err(during("writing the mark"))?;
        self.shared.publish(end_offset, &batch.group);
        self.measure(count, end - position, sync_us);
        Ok(())
    }

    fn write(&self, slices: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let file = &self.active.file;
        // Builds with fail points write in two parts, so that there is an instant between them.
        if cfg!(debug_assertions)
            && let Some((first, rest)) = slices.split_first()
        {
            let (one, two) = first.split_at(first.len() / 2);
            file.write_all_at(one, position)?;
            hit_failpoint("wal.after_partial_write")?;
            let rest: Vec<IoSlice<'_>> =
                std::iter::once(two).chain(rest.iter().map(|slice| &**slice)).map(IoSlice::new).collect();
            return file.write_vectored_at(&rest, position + one.len() as u64);
        }
        file.write_vectored_at(slices, position)
    }

    fn advance_mark(&mut self, durable_offset: u64) -> io::Result<()> {
        self.mark = Mark { durable_offset, count: self.mark.count + 1 };
        self.mark_file.write_all_at(&self.mark.encode(self.shared.id), self.mark.slot_position())
    }

    fn measure(&self, frames: usize, bytes: u64, sync_us: u64) {
        self.shared.counters.count_group(frames as u64, bytes, sync_us);
        self.sync_seconds.record(std::time::Duration::from_micros(sync_us));
        #[allow(clippy::cast_precision_loss, reason = "a measurement")]
        {
            self.group_frames.record(frames as f64);
            self.group_bytes.record(bytes as f64);
        }
    }

    /// Fails what could not be written, and makes the mark durable.
    pub(crate) fn finish(&mut self) {
        if let Some((batch, _)) = self.pending.take() {
            batch.group.fail(&LogError::Closed);
        }
        let poisoned = self.shared.stopped().is_some_and(|error| error != LogError::Closed);
        if !poisoned && let Err(error) = self.mark_file.sync_data() {
            tracing::warn!(log = %self.shared.id, error = %error, "the mark of the log could not be synced at the end; it may lag");
        }
    }
}

struct Failure {
    doing: &'static str,
    source: io::Error,
}

fn during(doing: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure { doing, source }
}

/// The bytes of `count` frames in order, then `padding` zeros. Frames that lie in the buffer side by side are one
/// slice.
fn slices_of(batch: &Batch, from: usize, count: usize, padding: usize) -> Vec<IoSlice<'_>> {
    let mut slices = Vec::new();
    let mut open: Option<std::ops::Range<usize>> = None;
    for FrameSlot { copied, kept, .. } in batch.frames.iter().skip(from).take(count) {
        let range = open.take().map_or(copied.clone(), |before| before.start..copied.end);
        if kept.is_empty() {
            open = Some(range);
        } else {
            slices.push(IoSlice::new(batch.buffer.get(range).unwrap_or_default()));
            slices.extend(batch.kept.get(kept.clone()).unwrap_or_default().iter().map(|part| IoSlice::new(part)));
        }
    }
    slices.extend(open.map(|range| IoSlice::new(batch.buffer.get(range).unwrap_or_default())));
    slices.push(IoSlice::new(ZEROS.get(..padding).unwrap_or_default()));
    slices
}
