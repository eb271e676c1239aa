//! One table's memtable: active, frozen, snapshot.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use lakegate_model::TableName;
use parking_lot::{Mutex, MutexGuard};

use crate::guests::Guests;
use crate::part::{Chunk, FrozenPart, Guest, MemPart, MemSnapshot, Run, rows_below};
use crate::rows::RowBuilder;

/// Figures of one memtable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemtableStats {
    /// Rows, durable or about to be.
    pub records: usize,
    /// About how many bytes in memory.
    pub bytes: usize,
    /// How many frozen parts.
    pub frozen: usize,
    /// When the oldest row came, in microseconds since 1970.
    pub oldest_us: Option<i64>,
}

#[derive(Debug, Default)]
struct Active {
    chunks: Vec<Chunk>,
    open: Option<RowBuilder>,
    open_runs: Vec<Run>,
    /// How many bytes of the open rows are in `bytes`.
    open_accounted: usize,
    first_offset: u64,
    next_offset: u64,
    rows: usize,
    bytes: usize,
    oldest_us: i64,
}

#[derive(Debug)]
struct State {
    schema: SchemaRef,
    active: Active,
    frozen: VecDeque<Arc<FrozenPart>>,
    guests: Guests,
    is_settled: bool,
}

/// The rows of one table that are not in the lake yet.
#[derive(Debug)]
pub struct Memtable {
    table: TableName,
    durable: Arc<AtomicU64>,
    total_bytes: Arc<AtomicUsize>,
    /// The open rows are closed into a batch at so many.
    batch_rows: usize,
    state: Mutex<State>,
}

impl Memtable {
    pub(crate) fn new(
        table: TableName,
        schema: SchemaRef,
        durable: Arc<AtomicU64>,
        total_bytes: Arc<AtomicUsize>,
        batch_rows: usize,
    ) -> Self {
        let (active, guests) = (Active::default(), Guests::default());
        let state = State { schema, active, frozen: VecDeque::new(), guests, is_settled: true };
        Self { table, durable, total_bytes, batch_rows, state: Mutex::new(state) }
    }

    /// The table that the rows will go into.
    #[must_use]
    pub fn table(&self) -> &TableName {
        &self.table
    }

    /// The columns of the newest rows.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.state.lock().schema.clone()
    }

    /// Takes the memtable for writing. Who appends to the log does it while holding this, so that rows lie in offset
    /// order; guards of several memtables are taken in the order of their tables' names.
    #[must_use]
    pub fn lock(&self) -> MemtableGuard<'_> {
        MemtableGuard { memtable: self, state: self.state.lock() }
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> MemtableStats {
        let state = self.state.lock();
        let frozen_oldest = state.frozen.front().map(|p| p.oldest_us);
        let active_oldest = (state.active.rows > 0).then_some(state.active.oldest_us);
        let in_memory = |p: &&Arc<FrozenPart>| p.in_memory();
        MemtableStats {
            records: state.active.rows + state.frozen.iter().map(|p| p.rows).sum::<usize>() + state.guests.rows(),
            bytes: state.active.bytes
                + state.frozen.iter().filter(in_memory).map(|p| p.bytes).sum::<usize>()
                + state.guests.bytes(),
            frozen: state.frozen.len(),
            oldest_us: frozen_oldest.or(active_oldest).into_iter().chain(state.guests.oldest_us()).min(),
        }
    }

    /// Rows and bytes of the active part, and when its oldest row came.
    #[must_use]
    pub fn active_stats(&self) -> MemtableStats {
        let state = self.state.lock();
        let active = &state.active;
        let oldest_us = (active.rows > 0).then_some(active.oldest_us);
        MemtableStats { records: active.rows, bytes: active.bytes, frozen: 0, oldest_us }
    }

    /// The durable rows at this instant.
    ///
    /// # Errors
    /// A required column of the open rows holds a null; the shaper lets none in.
    pub fn snapshot(&self) -> Result<MemSnapshot, ArrowError> {
        let state = self.state.lock();
        let durable = self.durable.load(Ordering::Acquire);
        let mut snapshot = MemSnapshot {
            schema: state.schema.clone(),
            parts: Vec::with_capacity(state.frozen.len() + 1),
            is_settled: state.is_settled,
        };
        for part in &state.frozen {
            snapshot.push_frozen(part, durable);
        }
        let active = &state.active;
        let mut batches: Vec<RecordBatch> = active.chunks.iter().filter_map(|c| c.durable_rows(durable)).collect();
        let open_rows = rows_below(&active.open_runs, durable);
        if let (Some(open), true) = (&active.open, open_rows > 0) {
            batches.push(open.finish_cloned()?.slice(0, open_rows));
        }
        if !batches.is_empty() {
            let (first_offset, next_offset) = (active.first_offset, active.next_offset);
            snapshot.parts.push(MemPart { first_offset, next_offset, batches, spilled: None, guest: None, part: None });
        }
        snapshot.parts.extend(state.guests.snapshot());
        Ok(snapshot)
    }

    /// The frozen parts, oldest first.
    #[must_use]
    pub fn frozen(&self) -> Vec<Arc<FrozenPart>> {
        self.state.lock().frozen.iter().cloned().collect()
    }

    /// Drops the frozen parts that a table has which absorbed everything below `next_offset`.
    pub fn drop_absorbed(&self, next_offset: u64) -> Vec<Arc<FrozenPart>> {
        let mut state = self.state.lock();
        let mut dropped = Vec::new();
        while state.frozen.front().is_some_and(|part| part.next_offset <= next_offset) {
            if let Some(part) = state.frozen.pop_front() {
                if part.in_memory() {
                    self.total_bytes.fetch_sub(part.bytes, Ordering::Relaxed);
                }
                dropped.push(part);
            }
        }
        dropped
    }

    /// Adds rows that did not come through our log. They are seen at once, and until a view has the part.
    pub fn push_guest(&self, guest: &Guest, batch: RecordBatch, now_us: i64) {
        let bytes = self.state.lock().guests.push(guest, batch, now_us);
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The rows of such a part.
    #[must_use]
    pub fn guest_batches(&self, guest: &Guest) -> Vec<RecordBatch> {
        self.state.lock().guests.batches(guest)
    }

    /// Drops a part that is in its table or that was given up.
    pub fn drop_guest(&self, guest: &Guest) {
        let bytes = self.state.lock().guests.remove(guest);
        self.total_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that the rows to come may be in the lake already: it could not be asked how far it is.
    pub fn unsettle(&self) {
        self.state.lock().is_settled = false;
    }

    /// Whether the rows begin where the lake ends.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.state.lock().is_settled
    }

    /// The lake has been asked, and has everything below `absorbed`: lets go of it, also where a part lies across.
    /// Nothing may be active: what is, is frozen before. Gives the parts that are gone.
    ///
    /// # Errors
    /// The file of the part that lies across cannot be read; then nothing was changed.
    pub fn settle<E>(
        &self,
        absorbed: u64,
        read_back: impl FnOnce(&Path) -> Result<Vec<RecordBatch>, E>,
    ) -> Result<Vec<Arc<FrozenPart>>, E> {
        let mut state = self.state.lock();
        let across = state.frozen.iter().position(|p| p.first_offset < absorbed && absorbed < p.next_offset);
        let mut gone = Vec::new();
        if let Some((at, part)) = across.and_then(|at| Some((at, state.frozen.get(at)?.clone()))) {
            let rest = Arc::new(part.cut_below(absorbed, read_back)?);
            self.total_bytes.fetch_add(rest.bytes, Ordering::Relaxed);
            if part.in_memory() {
                self.total_bytes.fetch_sub(part.bytes, Ordering::Relaxed);
            }
            if let Some(place) = state.frozen.get_mut(at) {
                *place = rest;
            }
            gone.push(part);
        }
        state.is_settled = true;
        drop(state);
        gone.extend(self.drop_absorbed(absorbed));
        Ok(gone)
    }

    /// Gives up the memory of a frozen part for a file that holds the same rows.
    pub fn move_to_file(&self, part: &FrozenPart, path: PathBuf) {
        let freed = part.move_to_file(path);
        self.total_bytes.fetch_sub(freed, Ordering::Relaxed);
    }

    /// The lowest offset whose row may not be in the lake yet; none when the memtable is empty.
    #[must_use]
    pub fn first_pending_offset(&self) -> Option<u64> {
        let state = self.state.lock();
        let frozen = state.frozen.front().map(|p| p.first_offset);
        frozen.or_else(|| (state.active.rows > 0).then_some(state.active.first_offset))
    }
}

/// A memtable taken for writing.
pub struct MemtableGuard<'a> {
    memtable: &'a Memtable,
    state: MutexGuard<'a, State>,
}

impl MemtableGuard<'_> {
    /// The open builder, for few rows at a time. Call [`Self::seal_run`] after pushing into it.
    pub fn open_rows(&mut self, make: impl FnOnce() -> RowBuilder) -> &mut RowBuilder {
        self.state.active.open.get_or_insert_with(make)
    }

    /// Says which offsets the rows pushed since the last call belong to.
    ///
    /// # Errors
    /// A required column holds a null; the shaper lets none in.
    pub fn seal_run(&mut self, first_offset: u64, next_offset: u64, now_us: i64) -> Result<(), ArrowError> {
        let active = &mut self.state.active;
        let Some(open) = &active.open else { return Ok(()) };
        let before = active.open_runs.last().map_or(0, |run| run.rows_end);
        let (rows, bytes) = (open.rows(), open.bytes());
        active.open_runs.push(Run { next_offset, rows_end: rows });
        let grown = bytes - std::mem::replace(&mut active.open_accounted, bytes);
        active.bytes += grown;
        active.note(first_offset, next_offset, rows - before, now_us);
        self.memtable.total_bytes.fetch_add(grown, Ordering::Relaxed);
        if rows >= self.memtable.batch_rows { self.close_open() } else { Ok(()) }
    }

    /// Adds the rows of one request whole.
    ///
    /// # Errors
    /// A required column of the open rows holds a null; the shaper lets none in.
    pub fn push_batch(
        &mut self,
        batch: RecordBatch,
        first_offset: u64,
        next_offset: u64,
        now_us: i64,
    ) -> Result<(), ArrowError> {
        self.close_open()?;
        let (rows, bytes) = (batch.num_rows(), batch.get_array_memory_size());
        let active = &mut self.state.active;
        active.chunks.push(Chunk { batch, runs: vec![Run { next_offset, rows_end: rows }] });
        active.bytes += bytes;
        active.note(first_offset, next_offset, rows, now_us);
        self.memtable.total_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Declares the columns of the rows to come.
    ///
    /// # Errors
    /// A required column of the open rows holds a null; the shaper lets none in.
    pub fn set_schema(&mut self, schema: SchemaRef) -> Result<(), ArrowError> {
        self.close_open()?;
        self.state.active.open = None;
        self.state.schema = schema;
        Ok(())
    }

    /// Freezes the active part. `next_offset` is the log's next offset, read while this guard is held: every record of
    /// this table below it is in this part or in one before. Nothing happens when the active part is empty.
    ///
    /// # Errors
    /// A required column of the open rows holds a null; the shaper lets none in.
    pub fn freeze(&mut self, next_offset: u64) -> Result<Option<Arc<FrozenPart>>, ArrowError> {
        self.close_open()?;
        if self.state.active.rows == 0 {
            return Ok(None);
        }
        let open = self.state.active.open.take();
        let active = std::mem::replace(&mut self.state.active, Active { open, ..Active::default() });
        let part =
            Arc::new(FrozenPart::new(active.first_offset, next_offset, active.chunks, active.bytes, active.oldest_us));
        self.state.frozen.push_back(part.clone());
        Ok(Some(part))
    }

    fn close_open(&mut self) -> Result<(), ArrowError> {
        let active = &mut self.state.active;
        let Some(open) = &mut active.open else { return Ok(()) };
        if open.rows() == 0 {
            return Ok(());
        }
        let accounted = std::mem::take(&mut active.open_accounted);
        let batch = open.finish()?;
        let bytes = batch.get_array_memory_size();
        active.bytes = active.bytes - accounted + bytes;
        active.chunks.push(Chunk { batch, runs: std::mem::take(&mut active.open_runs) });
        self.memtable.total_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.memtable.total_bytes.fetch_sub(accounted, Ordering::Relaxed);
        Ok(())
    }
}

impl Active {
    fn note(&mut self, first_offset: u64, next_offset: u64, rows: usize, now_us: i64) {
        if self.rows == 0 {
            self.first_offset = first_offset;
            self.oldest_us = now_us;
        }
        self.rows += rows;
        self.next_offset = next_offset;
    }
}
