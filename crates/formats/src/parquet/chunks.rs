//! The bytes that Parquet's decoder asks for: whole column chunks where they are small, windows of them where not.

use std::io::{Cursor, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

use super::{HEADER_BYTES, guard};
use crate::{Input, Limits};

/// The part of a chunk that is held when the chunk is not held whole.
const WINDOW_BYTES: u64 = 1 << 20;

/// The most values of one page: a few bytes can stand for any number of them.
const PAGE_VALUES: i64 = 64 << 20;

/// One column chunk that is being read.
struct Chunk {
    name: String,
    range: Range<u64>,
    /// Where the data of the page begins whose header was looked at last.
    data_at: Option<u64>,
    /// Held bytes, and where they begin.
    held: (u64, Bytes),
    /// The unpacked bytes of its dictionary and of its newest page.
    unpacked: [u64; 2],
}

/// The chunks of one row group.
pub(super) struct Chunks {
    input: Arc<dyn Input>,
    len: u64,
    /// Where each chunk begins, in order.
    starts: Vec<u64>,
    chunks: Vec<Mutex<Chunk>>,
    limits: Limits,
    read: Arc<AtomicU64>,
    /// All pages that are held unpacked.
    unpacked: AtomicU64,
}

impl Chunks {
    pub(super) fn new(
        input: Arc<dyn Input>,
        len: u64,
        mut columns: Vec<(String, Range<u64>)>,
        limits: &Limits,
        read: Arc<AtomicU64>,
    ) -> std::io::Result<Self> {
        columns.sort_by_key(|(_, range)| range.start);
        let total: u64 = columns.iter().map(|(_, r)| r.end - r.start).sum();
        let held = if total <= limits.fetch_bytes {
            let ranges: Vec<Range<u64>> = columns.iter().map(|(_, r)| r.clone()).collect();
            read.fetch_add(total, Ordering::Relaxed);
            input.read_ranges(&ranges)?
        } else {
            vec![Bytes::new(); columns.len()]
        };
        let starts = columns.iter().map(|(_, r)| r.start).collect();
        let chunks = columns
            .into_iter()
            .zip(held)
            .map(|((name, range), bytes)| {
                Mutex::new(Chunk { name, held: (range.start, bytes), range, data_at: None, unpacked: [0; 2] })
            })
            .collect();
        Ok(Self { input, len, starts, chunks, limits: limits.clone(), read, unpacked: AtomicU64::new(0) })
    }

    fn chunk(&self, at: u64) -> Result<&Mutex<Chunk>> {
        let after = self.starts.partition_point(|start| *start <= at);
        let found = after.checked_sub(1).and_then(|i| self.chunks.get(i)).filter(|c| c.lock().range.contains(&at));
        found.ok_or_else(|| ParquetError::General(format!("byte {at} lies in none of the column chunks")))
    }

    /// Bytes of one chunk, at most up to its end where `exact` is false.
    fn bytes(&self, chunk: &mut Chunk, at: u64, len: u64, exact: bool) -> Result<Bytes> {
        let end = at.checked_add(len).filter(|end| *end <= chunk.range.end);
        let end = match (end, exact) {
            (Some(end), _) => end,
            (None, false) => chunk.range.end,
            (None, true) => {
                return Err(ParquetError::EOF(format!(
                    "column {}: {len} bytes at {at} reach beyond its chunk, which ends at {}",
                    chunk.name, chunk.range.end
                )));
            }
        };
        let (from, held) = &chunk.held;
        if at < *from || end > *from + held.len() as u64 {
            let until = end.max(at + WINDOW_BYTES).min(chunk.range.end);
            let count = usize::try_from(until - at).map_err(|e| ParquetError::External(Box::new(e)))?;
            let bytes = self.input.read_at(at, count).map_err(|e| ParquetError::External(Box::new(e)))?;
            self.read.fetch_add(until - at, Ordering::Relaxed);
            chunk.held = (at, bytes);
        }
        let (from, held) = &chunk.held;
        let place = |p: u64| usize::try_from(p - from).unwrap_or(usize::MAX);
        if place(end) > held.len() {
            return Err(ParquetError::EOF(format!("column {}: bytes at {at} are missing", chunk.name)));
        }
        Ok(held.slice(place(at)..place(end)))
    }

    /// Refuses a page that would take more memory than the limits allow.
    fn check_page(&self, chunk: &mut Chunk, header: &[u8], at: u64) -> Result<()> {
        let wrong =
            |reason: String| ParquetError::General(format!("column {}: page at byte {at}: {reason}", chunk.name));
        let sizes = guard::page_sizes(header).map_err(|e| wrong(format!("its header is damaged: {e}")))?;
        let most = self.limits.page_bytes as u64;
        let unpacked = u64::try_from(sizes.unpacked).map_err(|_| wrong(format!("{} bytes", sizes.unpacked)))?;
        if unpacked > most || u64::try_from(sizes.packed).is_ok_and(|p| p > most) {
            return Err(wrong(format!("{unpacked} bytes; at most {most} are read (limit page_bytes)")));
        }
        if !(0..=PAGE_VALUES).contains(&sizes.values) {
            return Err(wrong(format!("{} values; at most {PAGE_VALUES} are read", sizes.values)));
        }
        chunk.data_at = Some(at + sizes.header);
        let slot = chunk.unpacked.get_mut(usize::from(sizes.kind != 2));
        let before = slot.map_or(0, |s| std::mem::replace(s, unpacked));
        let total = self.unpacked.fetch_add(unpacked, Ordering::Relaxed) + unpacked - before;
        self.unpacked.fetch_sub(before, Ordering::Relaxed);
        if total > 2 * most {
            let reason = format!(
                "the pages of all columns together hold {total} bytes; at most {} are held (twice page_bytes); read fewer columns",
                2 * most
            );
            return Err(ParquetError::General(reason));
        }
        Ok(())
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Chunks {
    type T = Box<dyn Read>;

    /// The decoder asks this way for page headers.
    fn get_read(&self, start: u64) -> Result<Self::T> {
        let mut chunk = self.chunk(start)?.lock();
        let header = self.bytes(&mut chunk, start, HEADER_BYTES, false)?;
        // Once its header was peeked at, a page is asked for from the first byte of its data: that is no header.
        if chunk.data_at != Some(start) {
            self.check_page(&mut chunk, &header, start)?;
        }
        Ok(Box::new(Cursor::new(header)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let mut chunk = self.chunk(start)?.lock();
        self.bytes(&mut chunk, start, length as u64, true)
    }
}
