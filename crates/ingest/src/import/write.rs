//! Rows gathered into data files, under the memory budget that live requests have too.
//!
//! Rows that need neither partitions nor an order go into an open file as they come; others are gathered until they make
//! a file. Files are encoded while the next rows are read. What is gathered or being encoded is counted as bytes under
//! way, so that the gate's budget bounds both; an import takes at most its share and waits for its own files before it
//! asks for more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use lakegate_lake::{LakeError, LakeTable, WrittenFile};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;

use crate::gate::Inner;

/// So many files are encoded at a time.
const WRITES_AT_ONCE: usize = 2;
/// All imports together take at most this share of the memory budget.
const BUDGET_SHARE: usize = 2;
/// Rows of about so many bytes make a file of the usual size.
const FILE_BYTES: usize = 256 << 20;
/// From so many bytes on a file is opened that takes rows as they come, and so many batches wait for it at most.
const OPEN_BYTES: usize = 8 << 20;
const OPEN_BATCHES: usize = 4;
/// How often, and how long, an import waits for memory that others have.
const ATTEMPTS: u32 = 3000;
const BETWEEN: Duration = Duration::from_millis(100);

/// Bytes that are counted as under way until this is dropped.
struct Reserved {
    inner: Arc<Inner>,
    bytes: usize,
}

impl Reserved {
    fn of(inner: &Arc<Inner>, bytes: usize) -> Self {
        inner.inflight.fetch_add(bytes, Ordering::Relaxed);
        inner.importing.fetch_add(bytes, Ordering::Relaxed);
        Self { inner: inner.clone(), bytes }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.inner.inflight.fetch_sub(self.bytes, Ordering::Relaxed);
        self.inner.importing.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Why rows did not become files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("{0}")]
    Lake(#[from] LakeError),
    #[error("the import waited for memory, and {taken} bytes of {budget} stay taken (ingestion.memory_budget)")]
    OutOfRoom { taken: usize, budget: usize },
    #[error("writing a file ended early: {0}")]
    Ended(String),
}

/// Rows that wait, and the memory they take.
struct Held {
    rows: RecordBatch,
    reserved: Reserved,
}

/// Rows of an open file, in the order in which they come.
struct Coming {
    receiver: Receiver<Held>,
    /// The memory of what was asked for last: it is being encoded until the next is asked for.
    _encoding: Option<Reserved>,
}

impl Iterator for Coming {
    type Item = RecordBatch;

    fn next(&mut self) -> Option<RecordBatch> {
        self._encoding = None;
        let Held { rows, reserved } = self.receiver.blocking_recv()?;
        self._encoding = Some(reserved);
        Some(rows)
    }
}

/// Rows on their way into files.
pub(crate) struct Files {
    inner: Arc<Inner>,
    gathered: Vec<Held>,
    /// Bytes of what is gathered.
    waiting: usize,
    /// Bytes that were taken in since files were last handed out.
    taken: usize,
    /// A file that is being encoded as rows come, and the columns that it has. Its task is one of the writes, and ends
    /// when this is dropped.
    open: Option<(Sender<Held>, SchemaRef)>,
    writes: JoinSet<Result<Vec<WrittenFile>, LakeError>>,
    written: Vec<WrittenFile>,
}

impl Files {
    pub(crate) fn new(inner: &Arc<Inner>) -> Self {
        let (writes, written) = (JoinSet::new(), Vec::new());
        Self { inner: inner.clone(), gathered: Vec::new(), waiting: 0, taken: 0, open: None, writes, written }
    }

    /// Takes rows in; waits while there is no room for them.
    pub(crate) async fn push(&mut self, rows: RecordBatch, table: &Arc<LakeTable>) -> Result<(), WriteError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let bytes = bytes_of(&rows);
        self.wait_for_room(bytes, table).await?;
        self.taken += bytes;
        let held = Held { reserved: Reserved::of(&self.inner, bytes), rows };
        let Some(held) = self.offer(held).await? else { return Ok(()) };
        self.gathered.push(held);
        self.waiting += bytes;
        if self.waiting >= OPEN_BYTES && table.takes_rows_as_they_come() {
            return self.open_file(table).await;
        }
        let share = self.inner.settings.memory_budget / BUDGET_SHARE;
        if self.waiting >= FILE_BYTES.min(share / (WRITES_AT_ONCE + 1)) {
            self.begin_write(table).await?;
        }
        Ok(())
    }

    /// Hands rows to the file that is open; gives them back if none is that has their columns.
    async fn offer(&mut self, held: Held) -> Result<Option<Held>, WriteError> {
        let Some((sender, _)) = self.open.as_ref().filter(|(_, schema)| *schema == held.rows.schema()) else {
            self.open = None;
            return Ok(Some(held));
        };
        if sender.send(held).await.is_ok() {
            return Ok(None);
        }
        // Its task has ended before its rows did: it has failed, and says why.
        self.open = None;
        self.join_all().await?;
        Err(WriteError::Ended("its rows were not taken to the end".to_owned()))
    }

    /// Begins a file with what is gathered, for more to come.
    async fn open_file(&mut self, table: &Arc<LakeTable>) -> Result<(), WriteError> {
        self.make_way().await?;
        let Some(first) = self.gathered.first() else { return Ok(()) };
        let schema = first.rows.schema();
        let (sender, receiver) = mpsc::channel(OPEN_BATCHES);
        let (table, rows) = (table.clone(), Coming { receiver, _encoding: None });
        self.writes.spawn(async move { table.write_as_they_come(rows).await });
        self.open = Some((sender, schema));
        self.waiting = 0;
        for held in std::mem::take(&mut self.gathered) {
            if let Some(held) = self.offer(held).await? {
                // Of other columns than the first: for the next file.
                self.waiting += held.reserved.bytes;
                self.gathered.push(held);
            }
        }
        Ok(())
    }

    async fn wait_for_room(&mut self, bytes: usize, table: &Arc<LakeTable>) -> Result<(), WriteError> {
        let budget = self.inner.settings.memory_budget;
        for _ in 0..ATTEMPTS {
            let taken = self.inner.memtables.bytes() + self.inner.inflight.load(Ordering::Relaxed);
            let own = self.inner.importing.load(Ordering::Relaxed);
            if own + bytes <= budget / BUDGET_SHARE && taken + bytes <= budget / 4 * 3 {
                return Ok(());
            }
            // What this import holds goes first; then it is others that have to finish.
            self.open = None;
            if !self.writes.is_empty() {
                self.join_one().await?;
            } else if !self.gathered.is_empty() {
                self.begin_write(table).await?;
            } else if own == 0 && taken + bytes <= budget {
                return Ok(());
            } else {
                self.inner.flush_wanted.notify_one();
                tokio::time::sleep(BETWEEN).await;
            }
        }
        let taken = self.inner.memtables.bytes() + self.inner.inflight.load(Ordering::Relaxed);
        Err(WriteError::OutOfRoom { taken, budget })
    }

    async fn begin_write(&mut self, table: &Arc<LakeTable>) -> Result<(), WriteError> {
        self.open = None;
        if self.gathered.is_empty() {
            return Ok(());
        }
        self.make_way().await?;
        self.waiting = 0;
        let held = std::mem::take(&mut self.gathered);
        let (rows, reserved): (Vec<_>, Vec<_>) = held.into_iter().map(|held| (held.rows, held.reserved)).unzip();
        let table = table.clone();
        self.writes.spawn(async move {
            let files = table.write(rows).await;
            drop(reserved);
            files
        });
        Ok(())
    }

    /// Waits until one more may be written. No file is open.
    async fn make_way(&mut self) -> Result<(), WriteError> {
        while self.writes.len() >= WRITES_AT_ONCE {
            self.join_one().await?;
        }
        Ok(())
    }

    async fn join_one(&mut self) -> Result<(), WriteError> {
        if let Some(done) = self.writes.join_next().await {
            self.written.extend(done.map_err(|error| WriteError::Ended(error.to_string()))??);
        }
        Ok(())
    }

    /// Makes durable files of everything that was taken in.
    pub(crate) async fn write_all(&mut self, table: &Arc<LakeTable>) -> Result<(), WriteError> {
        self.begin_write(table).await?;
        self.join_all().await
    }

    async fn join_all(&mut self) -> Result<(), WriteError> {
        while !self.writes.is_empty() {
            self.join_one().await?;
        }
        Ok(())
    }

    /// Everything that was taken in, in durable files.
    pub(crate) async fn finish(&mut self, table: &Arc<LakeTable>) -> Result<Vec<WrittenFile>, WriteError> {
        self.write_all(table).await?;
        self.taken = 0;
        Ok(std::mem::take(&mut self.written))
    }

    /// Bytes of rows that were taken in since files were last handed out.
    pub(crate) fn bytes(&self) -> usize {
        self.taken
    }

    /// Takes a file in that is written already.
    pub(crate) fn take_written(&mut self, file: WrittenFile) {
        self.written.push(file);
    }

    /// Bytes of files that are written and not handed out yet.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written.iter().map(WrittenFile::bytes).sum()
    }

    /// Gives up what was taken in and removes its files.
    pub(crate) async fn discard(&mut self, table: &Arc<LakeTable>) {
        self.open = None;
        self.gathered.clear();
        (self.waiting, self.taken) = (0, 0);
        while let Some(done) = self.writes.join_next().await {
            if let Ok(Ok(files)) = done {
                self.written.extend(files);
            }
        }
        table.discard(&std::mem::take(&mut self.written)).await;
    }
}

/// About how many bytes of memory the rows need; of slices only what they show.
pub(crate) fn bytes_of(rows: &RecordBatch) -> usize {
    let size = |array: &arrow::array::ArrayRef| {
        array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size())
    };
    rows.columns().iter().map(size).sum()
}
