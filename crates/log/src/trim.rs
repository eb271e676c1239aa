//! Gives up the oldest segments.
//!
//! First the new beginning is made durable (`log.meta`), then the files go, oldest first: whatever a crash leaves of
//! them lies below the beginning, and the next opening removes it. Some are kept as spares and used again.

use std::io;
use std::sync::atomic::Ordering;

use lakegate_env::hit_failpoint;

use crate::error::TrimError;
use crate::format::Meta;
use crate::prepare::with_reserve;
use crate::shared::{SegmentEntry, Shared, Spare};

/// The name of the file that says where the log begins.
pub(crate) const META_NAME: &str = "log.meta";

/// So many spares are kept at least: one is in use soon, a second covers a burst.
const MIN_SPARES: usize = 2;
/// Spares take at most this share of the quota.
const SPARES_SHARE: u64 = 4;

/// What came of a trimming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrimOutcome {
    /// How many segments were given up.
    pub segments: u64,
    /// How many bytes they had.
    pub bytes: u64,
    /// The oldest offset now.
    pub first_offset: u64,
}

/// Gives up whole segments below `before_offset`.
pub(crate) fn trim_log(shared: &Shared, before_offset: u64) -> Result<TrimOutcome, TrimError> {
    let mut meta = shared.meta.lock();
    if let Some(error) = shared.stopped() {
        return Err(TrimError::Stopped(error));
    }
    let (victims, begin) = find_victims(shared, before_offset);
    let Some(begin) = begin.filter(|_| !victims.is_empty()) else {
        return Ok(TrimOutcome { segments: 0, bytes: 0, first_offset: meta.first_offset });
    };
    let new_meta = Meta { first_segment: begin.room.segment, first_offset: begin.first_offset, ..*meta };
    write_meta(shared, &new_meta)?;
    *meta = new_meta;
    shared.segments.lock().retain(|entry| entry.room.segment >= begin.room.segment);
    let after_mark = hit_failpoint("wal.trim.after_mark");
    let bytes = victims.iter().map(|victim| victim.room.bytes).sum();
    {
        let layout = &mut shared.queue.lock().layout;
        layout.total_bytes = layout.total_bytes.saturating_sub(bytes);
        layout.segment_count = layout.segment_count.saturating_sub(victims.len() as u64);
    }
    // As many as were given up at once are needed again before the next time: a busy log that made each of its segments
    // anew would write every byte twice.
    let keep = MIN_SPARES.max(victims.len());
    let removed = after_mark.and_then(|()| victims.iter().try_for_each(|victim| remove_segment(shared, victim, keep)));
    let removed = removed.and_then(|()| remove_idle_spares(shared, keep));
    shared.work_wanted.notify_all();
    removed.map_err(|source| TrimError::Disk { doing: "removing trimmed segments", source })?;
    shared
        .disk
        .sync_dir(&shared.options.dir)
        .map_err(|source| TrimError::Disk { doing: "syncing the folder", source })?;
    Ok(TrimOutcome { segments: victims.len() as u64, bytes, first_offset: begin.first_offset })
}

/// The segments that hold only durable records below `before_offset`, and the one that follows them.
fn find_victims(shared: &Shared, before_offset: u64) -> (Vec<SegmentEntry>, Option<SegmentEntry>) {
    let before = before_offset.min(shared.durable.load(Ordering::Acquire));
    let written = shared.written_segment.load(Ordering::Acquire);
    let segments = shared.segments.lock();
    // The one that follows must exist as a file, or the log would begin at nothing after a crash.
    let follows = |entry: &SegmentEntry| entry.first_offset <= before && entry.room.segment <= written;
    let count = segments.iter().skip(1).take_while(|next| follows(next)).count();
    (segments.iter().take(count).copied().collect(), segments.get(count).copied())
}

fn write_meta(shared: &Shared, meta: &Meta) -> Result<(), TrimError> {
    let (disk, dir) = (&*shared.disk, &shared.options.dir);
    match with_reserve(disk, dir, || disk.write_atomic(&dir.join(META_NAME), &meta.encode())) {
        Ok(()) => Ok(()),
        Err(source) if lakegate_env::disk::is_out_of_room(&source) => {
            Err(TrimError::Disk { doing: "writing its new beginning", source })
        }
        // Whether the old beginning or the new is durable is unknown now; only a restart can tell.
        Err(source) => Err(TrimError::Stopped(shared.poison("writing the log's new beginning", &source, None))),
    }
}

/// Removes a trimmed segment, or keeps its file as a spare.
fn remove_segment(shared: &Shared, victim: &SegmentEntry, keep: usize) -> io::Result<()> {
    let path = shared.segment_path(victim.room.segment);
    let (total, usual) = {
        let layout = &shared.queue.lock().layout;
        (layout.total_bytes, layout.max_segment_bytes)
    };
    let mut spares = shared.spares.lock();
    let spare_bytes: u64 = spares.iter().map(|spare| spare.bytes).sum();
    let quota = shared.options.quota_bytes;
    let with_this = spare_bytes + victim.room.bytes;
    let few = spares.len() < MIN_SPARES || with_this <= quota / SPARES_SHARE;
    let fits = victim.room.bytes == usual && total + with_this <= quota;
    if fits && few && spares.len() < keep {
        let spare = shared.path(&format!("spare-{:016}", victim.room.segment));
        shared.disk.rename(&path, &spare)?;
        spares.push(Spare { path: spare, bytes: victim.room.bytes });
    } else {
        shared.disk.remove(&path)?;
    }
    drop(spares);
    hit_failpoint("wal.trim.after_unlink")
}

/// A log that has become quiet gives the room of its spares back.
fn remove_idle_spares(shared: &Shared, keep: usize) -> io::Result<()> {
    let mut spares = shared.spares.lock();
    while spares.len() > keep {
        if let Some(spare) = spares.pop() {
            shared.disk.remove(&spare.path)?;
        }
    }
    Ok(())
}
