//! Rows of logs that are kept elsewhere: in memory until a commit has them, beside the rows of our own log.
//!
//! Their log holds them, so that nothing here is durable or needs to be. A part is committed and dropped as a whole.

use arrow::array::RecordBatch;

use crate::part::{Guest, MemPart};

#[derive(Debug)]
struct GuestPart {
    guest: Guest,
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
    oldest_us: i64,
}

/// The parts of one table, in order of their coming.
#[derive(Debug, Default)]
pub(crate) struct Guests(Vec<GuestPart>);

impl Guests {
    /// Adds rows to a part, which begins with its first. Returns how many bytes they take.
    pub(crate) fn push(&mut self, guest: &Guest, batch: RecordBatch, now_us: i64) -> usize {
        let (rows, bytes) = (batch.num_rows(), batch.get_array_memory_size());
        match self.0.iter_mut().find(|part| part.guest == *guest) {
            Some(part) => {
                part.batches.push(batch);
                part.rows += rows;
                part.bytes += bytes;
            }
            None => {
                self.0.push(GuestPart { guest: guest.clone(), batches: vec![batch], rows, bytes, oldest_us: now_us });
            }
        }
        bytes
    }

    pub(crate) fn batches(&self, guest: &Guest) -> Vec<RecordBatch> {
        self.0.iter().find(|part| part.guest == *guest).map(|part| part.batches.clone()).unwrap_or_default()
    }

    /// Returns how many bytes were set free.
    pub(crate) fn remove(&mut self, guest: &Guest) -> usize {
        let at = self.0.iter().position(|part| part.guest == *guest);
        at.map_or(0, |at| self.0.remove(at).bytes)
    }

    pub(crate) fn rows(&self) -> usize {
        self.0.iter().map(|part| part.rows).sum()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(|part| part.bytes).sum()
    }

    pub(crate) fn oldest_us(&self) -> Option<i64> {
        self.0.iter().map(|part| part.oldest_us).min()
    }

    pub(crate) fn snapshot(&self) -> impl Iterator<Item = MemPart> + '_ {
        self.0.iter().map(|part| MemPart {
            first_offset: 0,
            next_offset: u64::MAX,
            batches: part.batches.clone(),
            spilled: None,
            guest: Some(part.guest.clone()),
            part: None,
        })
    }
}
