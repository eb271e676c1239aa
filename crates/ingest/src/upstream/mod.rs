//! Rows of logs that are kept elsewhere, such as Kafka topics: into memory, where queries see them, and from there into
//! their table, without a second log.
//!
//! The other log is what a restart reads again, so that nothing is written twice. How far its partitions are read is
//! changed in the commit that adds the rows ([`lakegate_lake::FileChange`]): a commit names for each partition the
//! position that it goes on from, and is refused if the table has another. So of two processes that read one partition
//! the second to commit finds that it is late, whatever either believes, and a row is in the table once.
//!
//! Promises: what is seen before its commit is what is committed, or, where the commit is refused, gone from memory; a
//! record that breaks the contract is among the dead letters before the position passes it. Refuses: streams with a
//! table for each event type, as one commit is of one table.

mod api;
mod commit;
mod letters;
mod shape;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrow::array::RecordBatch;
use lakegate_lake::{FileChange, FileMark, FileState, LakeTable};
use lakegate_memtable::Guest;
use lakegate_model::{StreamKey, Tally};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use api::{
    UpstreamCommit, UpstreamError, UpstreamPayload, UpstreamPosition, UpstreamRecord, UpstreamRecords, UpstreamTaken,
    UpstreamTarget,
};

use crate::gate::{Gate, Inner};
use crate::streams::Stream;

/// A commit takes at most this share of the memory budget.
const BUDGET_SHARE_A_COMMIT: usize = 8;

/// Numbers those that are open, so that each knows what it has in memory.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Rows that are in memory and counted, by who brought them.
pub(crate) type Pending = HashMap<u64, (StreamKey, Tally)>;

/// What one commit will hold.
#[derive(Debug, Default)]
struct Part {
    changes: BTreeMap<u128, FileChange>,
    labels: BTreeMap<String, String>,
    tally: Tally,
    /// Rows that are dead letters: they are counted with the streams that they were meant for.
    letters: u64,
    bytes: usize,
    /// When its first row came, on the clock that does not jump.
    since_us: Option<u64>,
    /// Our own log must be durable up to there: dead letters of these records.
    letters_upto: u64,
    /// Commits of other tables that come first, by the table.
    after: BTreeMap<String, After>,
}

/// A commit of another table: it stands once the number is reached.
#[derive(Debug, Clone)]
pub(crate) struct After {
    pub(crate) done: watch::Receiver<u64>,
    pub(crate) number: u64,
}

struct Committing {
    task: JoinHandle<Result<UpstreamCommit, UpstreamError>>,
    bytes: usize,
}

/// One way from partitions of another log into one stream.
pub struct Upstream {
    gate: Gate,
    target: UpstreamTarget,
    stream: Arc<Stream>,
    table: Arc<LakeTable>,
    own: u64,
    guest: Guest,
    active: Part,
    committing: Option<Committing>,
    /// Of each partition, what the table says once everything that was taken is in it.
    known: HashMap<u128, Option<FileMark>>,
    given_up: Arc<AtomicBool>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("target", &self.target).field("part", &self.guest).finish_non_exhaustive()
    }
}

impl Gate {
    /// Opens a way for records of another log. Of one name, tenant and stream there is one at a time in a process.
    ///
    /// # Errors
    /// See [`UpstreamError`]; nothing was changed.
    pub async fn open_upstream(&self, target: UpstreamTarget) -> Result<Upstream, UpstreamError> {
        let inner = &self.inner;
        if let Some(reason) = inner.closed_reason() {
            return Err(UpstreamError::Closed(reason));
        }
        let stream = inner.streams.resolve(target.tenant.as_str(), target.stream.as_str());
        let stream = stream.map_err(|refusal| UpstreamError::Stream(refusal.message))?;
        if stream.shaper.splits_by_event_type() {
            let name = &stream.key.stream;
            return Err(UpstreamError::Stream(format!(
                "the stream {name} has a table for each event type; records of {} go into one table: name another stream",
                target.name
            )));
        }
        self.open_upstream_of(target, stream).await
    }

    /// The same for a stream that is known already, whatever its name.
    pub(crate) async fn open_upstream_of(
        &self,
        target: UpstreamTarget,
        stream: Arc<Stream>,
    ) -> Result<Upstream, UpstreamError> {
        let inner = &self.inner;
        let table = stream.unit.open(&inner.lake).await.map_err(|error| UpstreamError::Lake(error.to_string()))?;
        let view = table.refresh().await.map_err(|error| UpstreamError::Lake(error.to_string()))?;
        inner.note_imported(&view);
        let counter = counter_name(inner, &target);
        let number = view.counter(&counter) + 1;
        let own = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Upstream {
            gate: self.clone(),
            target,
            stream,
            table,
            own,
            guest: Guest { counter: counter.into(), number, owner: own },
            active: Part::default(),
            committing: None,
            known: HashMap::new(),
            given_up: Arc::default(),
        })
    }
}

/// The table's counter of commits that this process's log stands for and that brought rows this way.
fn counter_name(inner: &Inner, target: &UpstreamTarget) -> String {
    let told_by = format!("{}\0{}\0{}", target.name, target.tenant, target.stream);
    format!("upstream.{}.{:016x}", inner.log.id(), xxhash_rust::xxh3::xxh3_64(told_by.as_bytes()))
}

impl Upstream {
    /// How far the table has absorbed each of these partitions, by its newest state.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn positions(&self, partitions: &[u128]) -> Result<Vec<Option<UpstreamPosition>>, UpstreamError> {
        let marks = self.table.absorbed_files(partitions).await;
        let marks = marks.map_err(|error| UpstreamError::Lake(error.to_string()))?;
        Ok(marks.into_iter().map(|mark| mark.map(position_of)).collect())
    }

    /// The table that the rows go into.
    #[must_use]
    pub fn table(&self) -> String {
        self.stream.unit.table.to_string()
    }

    /// Begins with a partition, from what [`Self::positions`] said of it.
    pub fn begin(&mut self, partition: u128, position: Option<UpstreamPosition>) {
        self.known.insert(partition, position.map(|position| mark_of(partition, position)));
    }

    /// Takes records of one partition. They are seen by queries now, and in the table after a commit. Not for threads
    /// that others wait for.
    ///
    /// # Errors
    /// See [`UpstreamError`]; nothing of these records was taken, and they may be brought again.
    pub fn take(&mut self, records: &UpstreamRecords<'_>) -> Result<UpstreamTaken, UpstreamError> {
        let inner = self.gate.inner.clone();
        if let Some(reason) = inner.closed_reason() {
            return Err(UpstreamError::Closed(reason));
        }
        self.follow_contract()?;
        let received_us = inner.clock.wall_us();
        let shaped = shape::shape(&self.stream, &self.target, records, received_us, inner.settings.payload_bytes_max);
        let shape::Shaped { rows, bad, bytes: payload_bytes } =
            shaped.map_err(|error| UpstreamError::Stream(error.to_string()))?;
        let letters_upto = self.set_aside(records, &bad)?;
        let accepted = rows.num_rows() as u64;
        if accepted > 0 {
            self.put(rows);
        }
        self.count(&Tally { received: accepted, accepted, bytes: payload_bytes, ..Tally::default() });
        self.active.letters_upto = self.active.letters_upto.max(letters_upto);
        self.advance(records.partition, records.records.len() as u64, records.next.clone());
        self.active.labels.insert(records.label_name.to_owned(), records.label.clone());
        Ok(UpstreamTaken { accepted, dead_lettered: bad.len() as u64 })
    }

    /// Puts rows where queries see them.
    fn put(&mut self, rows: RecordBatch) {
        self.active.bytes += rows.get_array_memory_size();
        self.stream.unit.memtable.push_guest(&self.guest, rows, self.gate.inner.clock.wall_us());
    }

    /// Counts records; with the commit they are counted for good.
    fn count(&mut self, tally: &Tally) {
        self.active.tally.add(tally);
        let mut pending = self.gate.inner.upstream.lock();
        pending.entry(self.own).or_insert_with(|| (self.stream.key.clone(), Tally::default())).1.add(tally);
        drop(pending);
        self.stream.count_accepted(tally.accepted);
    }

    /// Takes rows that are shaped already, under the stream's contract as it was then.
    pub(crate) fn put_shaped(&mut self, stream: &Arc<Stream>, rows: RecordBatch, letters: bool) {
        if stream.fingerprint != self.stream.fingerprint {
            self.stream = stream.clone();
        }
        if letters {
            self.active.letters += rows.num_rows() as u64;
        }
        self.put(rows);
    }

    /// Counts records of a partition whose rows are put, or that have none, and moves its position behind them.
    pub(crate) fn count_shaped(&mut self, partition: u128, tally: &Tally, next: Vec<u8>) {
        self.count(tally);
        self.advance(partition, tally.received, next);
    }

    /// The next commit waits until that of another table stands.
    pub(crate) fn commit_after(&mut self, table: String, after: After) {
        self.active.after.insert(table, after);
    }

    /// What a property of the table says of a partition, for people.
    pub(crate) fn label(&mut self, name: String, text: String) {
        self.active.labels.insert(name, text);
    }

    /// Moves a partition's position without rows.
    pub fn advance(&mut self, partition: u128, records: u64, next: Vec<u8>) {
        let known = self.known.entry(partition).or_default();
        let before = known.clone();
        let rows = before.as_ref().map_or(0, |mark| mark.rows) + records;
        let to = FileMark { id: partition, rows, state: FileState::Partial(next) };
        *known = Some(to.clone());
        let change = self.active.changes.entry(partition);
        change.and_modify(|change| change.to = to.clone()).or_insert(FileChange { from: before, to });
        self.active.since_us.get_or_insert_with(|| self.gate.inner.clock.monotonic_us());
    }

    /// Columns may have been added to the stream since.
    fn follow_contract(&mut self) -> Result<(), UpstreamError> {
        let key = &self.stream.key;
        let newest = self.gate.inner.streams.resolve(key.tenant.as_str(), key.stream.as_str());
        let newest = newest.map_err(|refusal| UpstreamError::Stream(refusal.message))?;
        if !Arc::ptr_eq(&newest, &self.stream) && newest.unit.table == self.stream.unit.table {
            self.stream = newest;
        }
        Ok(())
    }

    /// Whether there is so much in memory that the next records have to wait for a commit.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let inner = &self.gate.inner;
        let taken = inner.memtables.bytes() + inner.inflight.load(Ordering::Relaxed);
        let own_is_full = self.committing.is_some() && self.active.bytes >= self.commit_bytes();
        own_is_full || (self.has_rows() && taken > inner.settings.memory_budget / 4 * 3)
    }

    fn has_rows(&self) -> bool {
        self.active.bytes > 0 || self.committing.as_ref().is_some_and(|committing| committing.bytes > 0)
    }

    fn commit_bytes(&self) -> usize {
        let settings = &self.gate.inner.settings;
        settings.commit_bytes.min(settings.memory_budget / BUDGET_SHARE_A_COMMIT)
    }

    /// Says how long the first of the records that were just taken had waited for that.
    pub fn note_waited(&mut self, waited_us: u64) {
        let came_us = self.gate.inner.clock.monotonic_us().saturating_sub(waited_us);
        self.active.since_us = self.active.since_us.map(|since| since.min(came_us));
    }

    /// Whether a commit is due: by size, or by the time since the first of its records came.
    #[must_use]
    pub fn is_commit_due(&self) -> bool {
        let settings = &self.gate.inner.settings;
        let now = self.gate.inner.clock.monotonic_us();
        let interval = u64::try_from(settings.flush_interval_us).unwrap_or(u64::MAX);
        let old = self.active.since_us.is_some_and(|since| now.saturating_sub(since) >= interval);
        let taken = self.gate.inner.memtables.bytes();
        old || self.active.bytes >= self.commit_bytes()
            || (self.active.bytes > 0 && taken > settings.memory_budget / 4 * 3)
    }

    /// Whether anything waits for a commit that was not begun.
    #[must_use]
    pub fn has_uncommitted(&self) -> bool {
        !self.active.changes.is_empty()
    }

    /// Whether a commit is under way.
    #[must_use]
    pub fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// Begins to commit what was taken, unless a commit is under way.
    pub fn begin_commit(&mut self, runtime: &Handle) {
        if self.committing.is_some() || self.active.changes.is_empty() {
            return;
        }
        let part = std::mem::take(&mut self.active);
        let bytes = part.bytes;
        let guest = self.guest.clone();
        self.guest.number += 1;
        let work = commit::Work {
            gate: self.gate.clone(),
            target: self.target.clone(),
            stream: self.stream.clone(),
            table: self.table.clone(),
            own: self.own,
            guest,
            part,
            given_up: self.given_up.clone(),
        };
        self.committing = Some(Committing { task: runtime.spawn(work.run()), bytes });
    }

    /// What the commit under way came to; none while it is not done.
    ///
    /// # Errors
    /// See [`UpstreamError`]: nothing that was taken since can be committed; begin anew from the table's positions.
    pub fn poll_commit(&mut self, runtime: &Handle) -> Result<Option<UpstreamCommit>, UpstreamError> {
        if !self.committing.as_ref().is_some_and(|committing| committing.task.is_finished()) {
            return Ok(None);
        }
        let Some(committing) = self.committing.take() else { return Ok(None) };
        let done = runtime.block_on(committing.task);
        done.unwrap_or_else(|error| Err(UpstreamError::Lake(format!("a commit ended early: {error}")))).map(Some)
    }

    /// Waits until the commit under way is done, at most so long.
    pub fn wait_commit(&mut self, runtime: &Handle, within: std::time::Duration) {
        if let Some(committing) = &mut self.committing {
            let task = &mut committing.task;
            // The result stays with the task: it is taken by who polls.
            let ended = async {
                while !task.is_finished() {
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                }
            };
            let _ = runtime.block_on(async { tokio::time::timeout(within, ended).await });
        }
    }
}

impl Upstream {
    /// Gives up what is not committed. A commit under way makes no further tries; waits for its end, at most so long.
    pub fn give_up(&mut self, runtime: &Handle, within: std::time::Duration) {
        self.given_up.store(true, Ordering::Release);
        self.wait_commit(runtime, within);
    }
}

impl Drop for Upstream {
    /// What is not committed is as if it had not been read. A commit under way comes to its end by itself.
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Release);
        self.stream.unit.memtable.drop_guest(&self.guest);
        let mut pending = self.gate.inner.upstream.lock();
        if let Some((_, tally)) = pending.get_mut(&self.own) {
            subtract(tally, &self.active.tally);
        }
        if self.committing.is_none() {
            pending.remove(&self.own);
        }
    }
}

/// Takes counts away again.
fn subtract(sum: &mut Tally, part: &Tally) {
    sum.received = sum.received.saturating_sub(part.received);
    sum.accepted = sum.accepted.saturating_sub(part.accepted);
    sum.duplicate = sum.duplicate.saturating_sub(part.duplicate);
    sum.dead_lettered = sum.dead_lettered.saturating_sub(part.dead_lettered);
    sum.bytes = sum.bytes.saturating_sub(part.bytes);
}

fn position_of(mark: FileMark) -> UpstreamPosition {
    let state = match mark.state {
        FileState::Partial(state) => state,
        FileState::Complete => Vec::new(),
    };
    UpstreamPosition { records: mark.rows, state }
}

fn mark_of(id: u128, position: UpstreamPosition) -> FileMark {
    FileMark { id, rows: position.records, state: FileState::Partial(position.state) }
}
