//! Makes segments ready before they are needed, so that turning to the next one costs the writer nothing.
//!
//! A segment is made under another name (`wal-….tmp`, or the spare's), zeroed, given its header, synced, and only
//! then renamed; a crash on the way leaves a file that the next opening removes. Trimmed segments are used again: they
//! need no zeroing, since what they held carries another segment's number.
//!
//! Lack of room is the one failure that is waited out, and only here: nothing was written of the frames that need the
//! segment. They wait, with their offsets; appends that would need it too are refused; it is tried again every
//! [`PREPARE_RETRY`] and after each trimming. Any other failure ends the log. So that a trimming can always be
//! written down, a reserve file holds some room, given up when the disk is full and taken again when it is not.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lakegate_env::disk::is_out_of_room;
use lakegate_env::{Disk, DiskFile, hit_failpoint};

use crate::error::LogError;
use crate::format::{SegmentHeader, segment_name};
use crate::queue::Room;
use crate::shared::{Prepared, Shared};

/// How long to wait before trying again for room.
pub(crate) const PREPARE_RETRY: Duration = Duration::from_millis(200);

/// The name of the reserve file.
pub(crate) const RESERVE_NAME: &str = "reserve";

/// The room it holds: enough for every small file that trimming and a commit write.
pub(crate) const RESERVE_BYTES: u64 = 256 * 1024;

/// The preparer's thread: works until the log ends.
pub(crate) fn run_preparer(shared: &Arc<Shared>) {
    loop {
        {
            let mut queue = shared.queue.lock();
            loop {
                let poisoned = queue.stopped.as_ref().is_some_and(|error| *error != LogError::Closed);
                let closing = shared.closing.load(Ordering::SeqCst);
                // While closing, only what frames already wait for.
                let idle = queue.layout.to_prepare.iter().all(|room| room.segment > queue.layout.segment);
                if poisoned || (closing && (idle || queue.layout.out_of_room.is_some())) {
                    return;
                }
                if !closing {
                    queue.layout.promise_ahead();
                }
                let wait = queue.layout.to_prepare.is_empty();
                if wait {
                    shared.work_wanted.wait(&mut queue);
                } else {
                    break;
                }
            }
        }
        match prepare_next(shared) {
            Ok(true) => {}
            Ok(false) => {
                let mut queue = shared.queue.lock();
                if !shared.closing.load(Ordering::SeqCst) {
                    shared.work_wanted.wait_for(&mut queue, PREPARE_RETRY);
                }
            }
            Err(_) => return,
        }
    }
}

/// Prepares the next promised segment. `false` if there is no room for it, or none is promised.
pub(crate) fn prepare_next(shared: &Arc<Shared>) -> Result<bool, LogError> {
    let Some(room) = shared.queue.lock().layout.to_prepare.front().copied() else { return Ok(false) };
    match make_segment(shared, room) {
        Ok(file) => {
            shared.prepared.lock().push_back(Prepared { room, file });
            {
                let layout = &mut shared.queue.lock().layout;
                layout.to_prepare.pop_front();
                if layout.out_of_room.take().is_some() {
                    tracing::info!(log = %shared.id, "the disk has room again, the log goes on");
                }
            }
            shared.room_ready.notify_all();
            Ok(true)
        }
        Err(error) if is_out_of_room(&error) => {
            let layout = &mut shared.queue.lock().layout;
            if layout.out_of_room.is_none() {
                tracing::warn!(log = %shared.id, error = %error, "the disk has no room for another segment of the log");
            }
            layout.out_of_room = Some(error.to_string().into());
            Ok(false)
        }
        Err(error) => Err(shared.poison("preparing a segment", &error, None)),
    }
}

fn make_segment(shared: &Shared, room: Room) -> io::Result<Arc<dyn DiskFile>> {
    let header = SegmentHeader { log: shared.id, segment: room.segment, epoch: shared.epoch };
    let path = shared.segment_path(room.segment);
    let spare = {
        let mut spares = shared.spares.lock();
        spares.iter().position(|spare| spare.bytes == room.bytes).map(|at| spares.remove(at))
    };
    let file = if let Some(spare) = spare {
        let file = shared.disk.open(&spare.path)?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_data()?;
        shared.disk.rename(&spare.path, &path)?;
        file
    } else {
        drop_spares(shared);
        create_segment(&*shared.disk, &shared.options.dir, &header, room.bytes)?
    };
    shared.disk.sync_dir(&shared.options.dir)?;
    ensure_reserve(&*shared.disk, &shared.options.dir);
    Ok(file.into())
}

/// Makes a new segment; durable once its folder is synced.
pub(crate) fn create_segment(
    disk: &dyn Disk,
    dir: &std::path::Path,
    header: &SegmentHeader,
    bytes: u64,
) -> io::Result<Box<dyn DiskFile>> {
    let name = segment_name(header.segment);
    let temporary = dir.join(format!("{name}.tmp"));
    match disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let made = disk.create_new(&temporary).and_then(|file| {
        hit_failpoint("wal.rotate.after_create")?;
        file.allocate_zeroed(bytes)?;
        hit_failpoint("wal.rotate.after_preallocate")?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_data()?;
        hit_failpoint("wal.rotate.after_header")?;
        disk.rename(&temporary, &dir.join(&name))?;
        Ok(file)
    });
    if made.is_err() {
        let _ = disk.remove(&temporary);
    }
    made
}

/// Spares that do not fit what is needed now only take room.
fn drop_spares(shared: &Shared) {
    for spare in shared.spares.lock().drain(..) {
        if let Err(error) = shared.disk.remove(&spare.path) {
            tracing::warn!(file = %spare.path.display(), error = %error, "a spare segment could not be removed");
        }
    }
}

/// Takes the reserve's room, if there is enough; without it all works but a full disk.
pub(crate) fn ensure_reserve(disk: &dyn Disk, dir: &std::path::Path) {
    let path = dir.join(RESERVE_NAME);
    if disk.len(&path).is_ok_and(|length| length >= RESERVE_BYTES) {
        return;
    }
    let made =
        disk.open(&path).or_else(|_| disk.create_new(&path)).and_then(|file| file.allocate_zeroed(RESERVE_BYTES));
    if let Err(error) = made {
        let _ = disk.remove(&path);
        tracing::debug!(error = %error, "there is no room for the log's reserve file");
    }
}

/// Runs what must succeed on a full disk too: if there is no room, gives up the reserve and runs it once more.
pub(crate) fn with_reserve<T>(
    disk: &dyn Disk,
    dir: &std::path::Path,
    mut act: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    match act() {
        Err(error) if is_out_of_room(&error) && disk.remove(&dir.join(RESERVE_NAME)).is_ok() => act(),
        other => other,
    }
}
