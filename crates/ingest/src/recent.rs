//! The rows of the newest requests, for those who follow the log: what was shaped a moment ago is not shaped again.
//!
//! Kept only while somebody follows, and only of requests whose rows are batches already, which memtables share; what is
//! not here is shaped from the log again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::follow::StreamRows;
use crate::rows::ReadyRows;

/// The newest rows of so many bytes are kept.
const BYTES_MAX: usize = 32 << 20;

/// Rows of the newest requests, by the offset of their frame.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    followers: AtomicUsize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// In the order of the log.
    frames: VecDeque<Frame>,
    bytes: usize,
}

#[derive(Debug)]
struct Frame {
    first_offset: u64,
    bytes: usize,
    streams: Arc<[StreamRows]>,
}

impl Recent {
    /// One more follows.
    pub(crate) fn begin(&self) {
        self.followers.fetch_add(1, Ordering::Relaxed);
    }

    /// One less follows; with the last one all is let go.
    pub(crate) fn end(&self) {
        if self.followers.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.kept.lock() = Kept::default();
        }
    }

    /// Keeps the rows of a frame, if anybody follows and they are worth it.
    pub(crate) fn note(&self, first_offset: u64, rows: &[ReadyRows<'_>]) {
        let worth_it = || rows.iter().any(ReadyRows::are_batch) && !rows.iter().any(ReadyRows::are_mixed);
        if self.followers.load(Ordering::Relaxed) == 0 || !worth_it() {
            return;
        }
        let some = rows.iter().filter(|group| !group.is_empty());
        if let Ok(streams) = some.map(ReadyRows::shared).collect::<Result<Vec<_>, _>>() {
            self.kept.lock().add(first_offset, streams);
        }
    }

    /// All rows of a frame, if they are here.
    pub(crate) fn find(&self, first_offset: u64) -> Option<Arc<[StreamRows]>> {
        let kept = self.kept.lock();
        let place = kept.frames.binary_search_by_key(&first_offset, |frame| frame.first_offset).ok()?;
        kept.frames.get(place).map(|frame| frame.streams.clone())
    }
}

impl Kept {
    fn add(&mut self, first_offset: u64, streams: Vec<StreamRows>) {
        let bytes: usize = streams.iter().map(|rows| rows.batch.get_array_memory_size()).sum();
        if bytes > BYTES_MAX {
            return;
        }
        // Requests of different tables may come here in another order than into the log.
        let place = self.frames.partition_point(|frame| frame.first_offset < first_offset);
        self.bytes += bytes;
        self.frames.insert(place, Frame { first_offset, bytes, streams: streams.into() });
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.frames.pop_front()
        {
            self.bytes -= oldest.bytes;
        }
    }
}
