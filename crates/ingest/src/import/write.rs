//! Rows gathered into data files, under the memory budget that live requests have too.
//!
//! Rows are gathered until they make a file; files are encoded while the next rows are read. What is gathered or being
//! encoded is counted as bytes under way, so that the gate's budget bounds both; an import takes at most its share and
//! waits for its own files before it asks for more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{Array, RecordBatch};
use lakegate_lake::{LakeError, LakeTable, WrittenFile};
use tokio::task::JoinSet;

use crate::gate::Inner;

/// So many files are encoded at a time.
const WRITES_AT_ONCE: usize = 2;
/// All imports together take at most this share of the memory budget.
const BUDGET_SHARE: usize = 2;
/// Rows of about so many bytes make a file of the usual size.
const FILE_BYTES: usize = 256 << 20;
/// How often, and how long, an import waits for memory that others have.
const ATTEMPTS: u32 = 3000;
const BETWEEN: Duration = Duration::from_millis(100);

/// Bytes that are counted as under way until this is dropped.
struct Reserved {
    inner: Arc<Inner>,
    bytes: usize,
}

impl Reserved {
    fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.inner.inflight.fetch_add(bytes, Ordering::Relaxed);
        self.inner.importing.fetch_add(bytes, Ordering::Relaxed);
    }

    fn none(inner: &Arc<Inner>) -> Self {
        Self { inner: inner.clone(), bytes: 0 }
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

/// Rows on their way into files.
pub(crate) struct Files {
    inner: Arc<Inner>,
    gathered: Vec<RecordBatch>,
    reserved: Reserved,
    writes: JoinSet<Result<Vec<WrittenFile>, LakeError>>,
    written: Vec<WrittenFile>,
}

impl Files {
    pub(crate) fn new(inner: &Arc<Inner>) -> Self {
        let reserved = Reserved::none(inner);
        Self { inner: inner.clone(), gathered: Vec::new(), reserved, writes: JoinSet::new(), written: Vec::new() }
    }

    /// Takes rows in; waits while there is no room for them.
    pub(crate) async fn push(&mut self, rows: RecordBatch, table: &Arc<LakeTable>) -> Result<(), WriteError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let bytes = bytes_of(&rows);
        self.wait_for_room(bytes, table).await?;
        self.reserved.grow(bytes);
        self.gathered.push(rows);
        let share = self.inner.settings.memory_budget / BUDGET_SHARE;
        if self.reserved.bytes >= FILE_BYTES.min(share / (WRITES_AT_ONCE + 1)) {
            self.begin_write(table).await?;
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
        if self.gathered.is_empty() {
            return Ok(());
        }
        while self.writes.len() >= WRITES_AT_ONCE {
            self.join_one().await?;
        }
        let rows = std::mem::take(&mut self.gathered);
        let reserved = std::mem::replace(&mut self.reserved, Reserved::none(&self.inner));
        let table = table.clone();
        self.writes.spawn(async move {
            let files = table.write(rows).await;
            drop(reserved);
            files
        });
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
        while !self.writes.is_empty() {
            self.join_one().await?;
        }
        Ok(())
    }

    /// Everything that was taken in, in durable files.
    pub(crate) async fn finish(&mut self, table: &Arc<LakeTable>) -> Result<Vec<WrittenFile>, WriteError> {
        self.write_all(table).await?;
        Ok(std::mem::take(&mut self.written))
    }

    /// Bytes in memory that are not being written yet.
    pub(crate) fn bytes(&self) -> usize {
        self.reserved.bytes
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
        self.gathered.clear();
        self.reserved = Reserved::none(&self.inner);
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
