//! Parts of a memtable, and what a query is given of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parking_lot::Mutex;

/// Rows of one or more requests, in offset order.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The rows.
    pub batch: RecordBatch,
    /// For each request: the offset behind its last record, and the count of the batch's rows up to there.
    pub(crate) runs: Vec<Run>,
}

/// One request's share of a chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) next_offset: u64,
    pub(crate) rows_end: usize,
}

/// How many rows of `runs` lie wholly below `durable`.
pub(crate) fn rows_below(runs: &[Run], durable: u64) -> usize {
    let count = runs.partition_point(|run| run.next_offset <= durable);
    count.checked_sub(1).and_then(|last| runs.get(last)).map_or(0, |run| run.rows_end)
}

impl Chunk {
    /// Without the requests that lie wholly below `absorbed`; none where nothing is left.
    fn cut_below(self, absorbed: u64) -> Option<Self> {
        let gone = rows_below(&self.runs, absorbed);
        let runs = self.runs.into_iter().filter(|run| run.next_offset > absorbed);
        let runs = runs.map(|run| Run { rows_end: run.rows_end.saturating_sub(gone), ..run }).collect();
        let left = self.batch.num_rows().saturating_sub(gone);
        (left > 0).then(|| Self { batch: self.batch.slice(gone, left), runs })
    }

    /// The durable rows, if there are any.
    pub(crate) fn durable_rows(&self, durable: u64) -> Option<RecordBatch> {
        match rows_below(&self.runs, durable) {
            0 => None,
            all if all == self.batch.num_rows() => Some(self.batch.clone()),
            some => Some(self.batch.slice(0, some)),
        }
    }
}

/// Where the rows of a frozen part are.
#[derive(Debug, Clone)]
enum Rows {
    Memory(Vec<Chunk>),
    /// The file, and the runs of each of its batches.
    File(PathBuf, Vec<Vec<Run>>),
}

/// A part that takes no more rows and waits for its commit.
#[derive(Debug)]
pub struct FrozenPart {
    /// The lowest offset that the part may hold.
    pub first_offset: u64,
    /// Every record of this table below this offset is in this part or in one before it.
    pub next_offset: u64,
    /// How many rows.
    pub rows: usize,
    /// About how many bytes they take in memory.
    pub bytes: usize,
    /// When its oldest row came, in microseconds since 1970.
    pub oldest_us: i64,
    place: Mutex<Rows>,
}

impl FrozenPart {
    pub(crate) fn new(first_offset: u64, next_offset: u64, chunks: Vec<Chunk>, bytes: usize, oldest_us: i64) -> Self {
        let rows = chunks.iter().map(|c| c.batch.num_rows()).sum();
        Self { first_offset, next_offset, rows, bytes, oldest_us, place: Mutex::new(Rows::Memory(chunks)) }
    }

    /// The rows, where they are in memory.
    #[must_use]
    pub fn batches(&self) -> Option<Vec<RecordBatch>> {
        match &*self.place.lock() {
            Rows::Memory(chunks) => Some(chunks.iter().map(|c| c.batch.clone()).collect()),
            Rows::File(..) => None,
        }
    }

    /// The file that the rows were moved to, where they were.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        match &*self.place.lock() {
            Rows::Memory(_) => None,
            Rows::File(path, _) => Some(path.clone()),
        }
    }

    /// Gives up the rows in memory for a file that holds the same. Returns the bytes set free.
    pub(crate) fn move_to_file(&self, path: PathBuf) -> usize {
        let mut place = self.place.lock();
        let (runs, freed) = match &mut *place {
            Rows::Memory(chunks) => (chunks.iter_mut().map(|c| std::mem::take(&mut c.runs)).collect(), self.bytes),
            Rows::File(_, runs) => (std::mem::take(runs), 0),
        };
        *place = Rows::File(path, runs);
        freed
    }

    pub(crate) fn in_memory(&self) -> bool {
        matches!(&*self.place.lock(), Rows::Memory(_))
    }

    /// What of the part lies at `absorbed` or behind it, in memory. `read_back` gives the batches of a file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn cut_below<E>(
        &self,
        absorbed: u64,
        read_back: impl FnOnce(&Path) -> Result<Vec<RecordBatch>, E>,
    ) -> Result<Self, E> {
        let (batches, runs): (Vec<RecordBatch>, Vec<Vec<Run>>) = match &*self.place.lock() {
            Rows::Memory(chunks) => chunks.iter().map(|c| (c.batch.clone(), c.runs.clone())).unzip(),
            Rows::File(path, runs) => (read_back(path)?, runs.clone()),
        };
        let chunks: Vec<Chunk> = batches
            .into_iter()
            .zip(runs)
            .filter_map(|(batch, runs)| Chunk { batch, runs }.cut_below(absorbed))
            .collect();
        let bytes = chunks.iter().map(|c| c.batch.get_array_memory_size()).sum();
        Ok(Self::new(absorbed, self.next_offset, chunks, bytes, self.oldest_us))
    }

    fn snapshot(&self, durable: u64) -> MemPart {
        let (batches, spilled) = match &*self.place.lock() {
            Rows::Memory(chunks) => (chunks.iter().filter_map(|c| c.durable_rows(durable)).collect(), None),
            Rows::File(path, _) => (Vec::new(), Some(path.clone())),
        };
        MemPart {
            first_offset: self.first_offset,
            next_offset: self.next_offset,
            batches,
            spilled,
            guest: None,
            part: None,
        }
    }
}

/// When a part of rows from another log than ours is in its table: once the table's counter of this name has come to
/// the part's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The counter's name.
    pub counter: Arc<str>,
    /// The part's number.
    pub number: u64,
    /// Who brought it: a part that was given up may have the number of one that came after it.
    pub owner: u64,
}

/// A part as one query sees it.
#[derive(Debug, Clone)]
pub struct MemPart {
    /// The lowest offset that the part may hold.
    pub first_offset: u64,
    /// The offset behind the highest one that the part may hold.
    pub next_offset: u64,
    /// Its durable rows, in offset order. Empty where `spilled` names a file.
    pub batches: Vec<RecordBatch>,
    /// An Arrow IPC file that holds the rows instead.
    pub spilled: Option<PathBuf>,
    /// Of rows that did not come through our log: what tells whether a table has them. Offsets say nothing of these.
    pub guest: Option<Guest>,
    /// Keeps the file from being removed while the snapshot lives.
    pub(crate) part: Option<Arc<FrozenPart>>,
}

/// The durable rows of one table at one instant.
#[derive(Debug, Clone)]
pub struct MemSnapshot {
    /// The columns of the newest rows; older parts may have fewer.
    pub schema: SchemaRef,
    /// Frozen parts, oldest first, then the active one.
    pub parts: Vec<MemPart>,
    /// Whether the parts begin where the lake ends; not so after a start without the lake, see
    /// [`Memtable::settle`](crate::Memtable::settle).
    pub is_settled: bool,
}

impl MemSnapshot {
    pub(crate) fn push_frozen(&mut self, part: &Arc<FrozenPart>, durable: u64) {
        let mut seen = part.snapshot(durable);
        seen.part = Some(part.clone());
        self.parts.push(seen);
    }

    /// The parts that a table which has absorbed everything below `absorbed_next_offset` lacks. A commit covers whole
    /// parts, so that no part is ever half absorbed. Parts of guests are all among them: see [`Self::lacking`].
    pub fn after(&self, absorbed_next_offset: u64) -> impl Iterator<Item = &MemPart> {
        self.parts.iter().filter(move |part| part.next_offset > absorbed_next_offset)
    }

    /// The same, without those parts of guests that a table has whose counters `counter` tells.
    pub fn lacking<'s>(
        &'s self,
        absorbed_next_offset: u64,
        counter: impl Fn(&str) -> u64 + 's,
    ) -> impl Iterator<Item = &'s MemPart> {
        let has = move |guest: &Guest| counter(&guest.counter) >= guest.number;
        self.after(absorbed_next_offset).filter(move |part| !part.guest.as_ref().is_some_and(&has))
    }

    /// How many rows are in memory after that offset; parts in files are not counted.
    #[must_use]
    pub fn rows_after(&self, absorbed_next_offset: u64) -> usize {
        self.after(absorbed_next_offset).flat_map(|p| &p.batches).map(RecordBatch::num_rows).sum()
    }
}
