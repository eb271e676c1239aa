//! From the memtables to the lake: freeze by size or age, write Parquet, commit with the absorbed position, drop, trim.
//!
//! One table has one flush at a time. A commit whose outcome is not known keeps its files and its id, and is brought
//! again as it is until the lake says what became of it; only then is anything new begun for that table. Parts that
//! wait longer than memory allows are moved to files beside the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use lakegate_lake::{Commit, CommitError, Lake, LakeTable, WrittenFile};
use lakegate_memtable::{FrozenPart, Memtable};
use lakegate_model::{Contract, Position, TableName};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::contracts::ContractStoreError;
use crate::gate::Inner;
use crate::shape::Shaper;

/// One commit takes at most this share of the memory budget, so that a backlog is worked off in bounded memory.
const BUDGET_SHARE_A_COMMIT: usize = 4;
/// Rows are durable within microseconds, unless the disk is full: then others get the turn.
const DURABLE_WAIT: Duration = Duration::from_secs(1);
/// How long a failing table waits before it is tried again: first, and at most.
const RETRY_MS: std::ops::RangeInclusive<u64> = 200..=30_000;

/// One table and what is under way for it.
pub(crate) struct TableUnit {
    pub(crate) table: TableName,
    pub(crate) memtable: Arc<Memtable>,
    /// The contract of the newest rows, and its fingerprint.
    contract: Mutex<Arc<Contract>>,
    fingerprint: AtomicU64,
    /// Everything of this table below this offset is in the lake.
    pub(crate) absorbed: AtomicU64,
    pub(crate) last_commit_us: AtomicI64,
    lake: Mutex<Option<Arc<LakeTable>>>,
    busy: AtomicBool,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    pending: Option<Pending>,
    failures: u32,
    retry_at_us: u64,
    last_error: Option<String>,
    halted: bool,
}

/// Files that are written and not known to be committed.
#[derive(Clone)]
struct Pending {
    files: Vec<WrittenFile>,
    commit_id: Uuid,
    next_offset: u64,
    expected: u64,
}

/// Why a flush did not end in a commit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlushError {
    /// It will be tried again.
    #[error("{0}")]
    Later(String),
    /// Trying again cannot help; someone has to look.
    #[error("{0}")]
    Halted(String),
}

impl TableUnit {
    pub(crate) fn new(table: TableName, memtable: Arc<Memtable>, contract: Arc<Contract>) -> Self {
        Self {
            table,
            memtable,
            fingerprint: AtomicU64::new(contract.fingerprint()),
            contract: Mutex::new(contract),
            absorbed: AtomicU64::new(0),
            last_commit_us: AtomicI64::new(0),
            lake: Mutex::default(),
            busy: AtomicBool::new(false),
            progress: Mutex::default(),
        }
    }

    /// Whether open rows are of this contract. Stays so while the memtable's guard is held.
    pub(crate) fn is_of(&self, fingerprint: u64) -> bool {
        self.fingerprint.load(Ordering::Acquire) == fingerprint
    }

    /// Lets the table take rows of another contract, which has all columns of the one before.
    pub(crate) fn set_contract(&self, fingerprint: u64, shaper: &Shaper) -> Result<(), ContractStoreError> {
        let mut contract = self.contract.lock();
        if let Some(table) = self.lake_table() {
            table.set_contract(&shaper.contract)?;
        }
        *contract = shaper.contract.clone();
        drop(contract);
        let mut guard = self.memtable.lock();
        guard.set_schema(shaper.schema.clone())?;
        self.fingerprint.store(fingerprint, Ordering::Release);
        Ok(())
    }

    /// Why the last flush failed, while it does.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.progress.lock().last_error.clone()
    }

    /// Whether someone has to look before this table goes on.
    pub(crate) fn is_halted(&self) -> bool {
        self.progress.lock().halted
    }

    /// The table in the lake, where it was opened.
    pub(crate) fn lake_table(&self) -> Option<Arc<LakeTable>> {
        self.lake.lock().clone()
    }

    pub(crate) async fn open(&self, lake: &Lake) -> Result<Arc<LakeTable>, FlushError> {
        if let Some(table) = self.lake_table() {
            return Ok(table);
        }
        let contract = self.contract.lock().clone();
        let table = lake.open_table(&self.table, &contract).await;
        let table = table.map_err(|error| FlushError::Later(error.to_string()))?;
        let newest = self.contract.lock();
        if !Arc::ptr_eq(&newest, &contract) {
            table.set_contract(&newest).map_err(|error| FlushError::Later(error.to_string()))?;
        }
        *self.lake.lock() = Some(table.clone());
        Ok(table)
    }

    fn fail(&self, error: &FlushError, now_us: u64) {
        let mut progress = self.progress.lock();
        progress.failures += 1;
        let wait_ms = RETRY_MS.start().saturating_mul(1 << progress.failures.min(8)).min(*RETRY_MS.end());
        progress.retry_at_us = now_us + wait_ms * 1000;
        let first = progress.last_error.is_none();
        progress.last_error = Some(error.to_string());
        progress.halted = matches!(error, FlushError::Halted(_));
        if first || progress.halted {
            tracing::warn!(table = %self.table, %error, "rows wait in the log for their commit");
        }
    }

    fn succeed(&self) {
        let mut progress = self.progress.lock();
        if progress.last_error.take().is_some() {
            tracing::info!(table = %self.table, "commits go through again");
        }
        progress.failures = 0;
        progress.retry_at_us = 0;
    }

    /// Whether a flush is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    pub(crate) fn may_try(&self, now_us: u64) -> bool {
        let progress = self.progress.lock();
        !progress.halted && progress.retry_at_us <= now_us
    }
}

/// Gives the unit's turn back, however the flush ends.
struct Turn<'u>(&'u TableUnit);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Inner {
    /// Freezes what is large or old enough, or all.
    pub(crate) fn freeze_due(&self, all: bool) {
        let now = self.clock.wall_us();
        for unit in self.streams.units() {
            let active = unit.memtable.active_stats();
            let Some(oldest) = active.oldest_us else { continue };
            let due = now.saturating_sub(oldest) >= self.settings.flush_interval_us || oldest > now;
            if all || due || active.bytes >= self.settings.commit_bytes {
                self.freeze(&unit);
            }
        }
    }

    /// Freezes what takes more memory than `bytes`.
    pub(crate) fn freeze_larger_than(&self, bytes: usize) {
        for unit in self.streams.units() {
            if unit.memtable.active_stats().bytes > bytes {
                self.freeze(&unit);
            }
        }
    }

    pub(crate) fn freeze(&self, unit: &TableUnit) {
        let mut guard = unit.memtable.lock();
        // Read while no row can get in: every record of this table below it is in this part or in one before.
        if let Err(error) = guard.freeze(self.log.next_offset()) {
            self.break_down(&error);
        }
    }

    /// Flushes all frozen parts of a table.
    pub(crate) async fn flush_frozen(&self, unit: &TableUnit) -> Result<(), FlushError> {
        while !unit.memtable.frozen().is_empty() {
            if !self.flush_table(unit, true).await? {
                // Another flush of this table is under way; it will be done soon.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    /// Flushes one table as far as it goes. Returns whether there is more to do.
    pub(crate) async fn flush_table(&self, unit: &TableUnit, now: bool) -> Result<bool, FlushError> {
        let clock_us = self.clock.monotonic_us();
        if !(now || unit.may_try(clock_us)) || unit.busy.swap(true, Ordering::AcqRel) {
            return Ok(false);
        }
        let _turn = Turn(unit);
        let done = self.flush_step(unit).await;
        match &done {
            Ok(_) => unit.succeed(),
            Err(error) => unit.fail(error, self.clock.monotonic_us()),
        }
        done
    }

    /// After a start without the lake: asks how far the table is, and lets go of what it has.
    async fn settle(&self, unit: &TableUnit) -> Result<(), FlushError> {
        if unit.memtable.is_settled() {
            return Ok(());
        }
        let table = unit.open(&self.lake).await?;
        let absorbed = table.view().absorbed_next_offset(self.log.id());
        self.freeze(unit);
        let gone = unit.memtable.settle(absorbed, |path| self.spills.read(path));
        let gone = gone.map_err(|error| FlushError::Later(error.to_string()))?;
        unit.absorbed.store(absorbed, Ordering::Release);
        self.spills.retire(gone);
        tracing::info!(table = %unit.table, absorbed, "the lake is back");
        Ok(())
    }

    async fn flush_step(&self, unit: &TableUnit) -> Result<bool, FlushError> {
        self.settle(unit).await?;
        let pending = unit.progress.lock().pending.clone();
        let pending = match pending {
            Some(pending) => pending,
            None => match self.write_files(unit).await? {
                Some(pending) => pending,
                None => return Ok(false),
            },
        };
        let table = unit.open(&self.lake).await?;
        let position = Position { log: self.log.id(), partition: 0, next_offset: pending.next_offset };
        let commit = Commit::of_log(pending.commit_id, pending.files.clone(), position, pending.expected);
        match table.commit(commit).await {
            Ok(outcome) => {
                metrics::counter!("lakegate_commits_total").increment(1);
                if outcome.resolved_unknown {
                    tracing::info!(table = %unit.table, snapshot = outcome.snapshot_id, "a commit of unknown outcome was found in the table");
                }
                self.absorb(unit, pending.next_offset);
                Ok(!unit.memtable.frozen().is_empty())
            }
            Err(CommitError::StaleFiles { .. }) => {
                // The files do not fit the table any more; none of them was committed. Written anew from the rows.
                unit.progress.lock().pending = None;
                table.discard(&pending.files).await;
                Ok(true)
            }
            Err(error @ CommitError::Unavailable { .. }) => Err(FlushError::Later(error.to_string())),
            Err(error) => {
                // Another writer, another table, or a commit of an earlier run that came late: what is in memory does
                // not follow on what the table has. A restart replays from the table's own position.
                self.close(format!(
                    "{} cannot be committed to: {error}; restart to go on from the table's position",
                    unit.table
                ));
                Err(FlushError::Halted(error.to_string()))
            }
        }
    }

    /// Notes that the lake has everything of this table below `next_offset`, and lets go of it.
    fn absorb(&self, unit: &TableUnit, next_offset: u64) {
        unit.absorbed.fetch_max(next_offset, Ordering::AcqRel);
        unit.last_commit_us.store(self.clock.wall_us(), Ordering::Relaxed);
        unit.progress.lock().pending = None;
        self.spills.retire(unit.memtable.drop_absorbed(next_offset));
    }

    /// Writes the oldest frozen parts as data files.
    async fn write_files(&self, unit: &TableUnit) -> Result<Option<Pending>, FlushError> {
        let parts = oldest_parts(&unit.memtable, self.settings.memory_budget / BUDGET_SHARE_A_COMMIT);
        let Some(last) = parts.last() else { return Ok(None) };
        let next_offset = last.next_offset;
        let later = |error: &dyn std::fmt::Display| FlushError::Later(error.to_string());
        match tokio::time::timeout(DURABLE_WAIT, self.log.wait_durable(next_offset)).await {
            Ok(durable) => durable.map_err(|error| later(&error))?,
            Err(_) => return Err(FlushError::Later("the newest rows are not durable yet".to_owned())),
        }
        let table = unit.open(&self.lake).await?;
        let mut batches: Vec<RecordBatch> = Vec::new();
        for part in &parts {
            match (part.batches(), part.file()) {
                (Some(rows), _) => batches.extend(rows),
                (None, Some(path)) => batches.extend(self.spills.read(&path).map_err(|error| later(&error))?),
                (None, None) => {}
            }
        }
        let files = table.write(batches).await.map_err(|error| later(&error))?;
        let pending = Pending {
            files,
            commit_id: Uuid::from_u128(self.random.next_u128()),
            next_offset,
            expected: unit.absorbed.load(Ordering::Acquire),
        };
        unit.progress.lock().pending = Some(pending.clone());
        Ok(Some(pending))
    }

    /// Removes files of tables whose time has come, and makes larger ones of small ones: one group of each table.
    pub(crate) async fn maintain(&self) {
        for unit in self.streams.units() {
            let Some(table) = unit.lake_table() else { continue };
            if let Err(error) = self.lake.maintain(&table).await {
                tracing::debug!(table = %unit.table, %error, "files that nobody needs are removed later");
            }
            if !self.lake.care().compact {
                continue;
            }
            match table.compact_once().await {
                Ok(done) if done.removed > 0 => tracing::info!(
                    table = %unit.table, from = done.removed, to = done.added, rows = done.rows, "small files were compacted"
                ),
                Ok(_) => {}
                Err(error) => tracing::debug!(table = %unit.table, %error, "small files are compacted later"),
            }
        }
    }

    /// Moves frozen parts to files, oldest first, until half of the memory budget is free.
    pub(crate) fn spill_excess(&self) {
        let target = self.settings.memory_budget / 2;
        for unit in self.streams.units() {
            for part in unit.memtable.frozen() {
                if self.memtables.bytes() <= target {
                    return;
                }
                self.spill_part(&unit, &part);
            }
        }
    }

    fn spill_part(&self, unit: &TableUnit, part: &FrozenPart) {
        // Rows that are not durable yet must not outlive the log's failure in a file.
        if self.log.durable_offset() < part.next_offset {
            return;
        }
        let Some(batches) = part.batches() else { return };
        match self.spills.write(&unit.table, part, &batches) {
            Ok(path) => unit.memtable.move_to_file(part, path),
            Err(error) => tracing::warn!(table = %unit.table, %error, "rows could not be moved out of memory"),
        }
    }
}

/// As many of the oldest parts as one commit takes, at least one.
fn oldest_parts(memtable: &Memtable, bytes_max: usize) -> Vec<Arc<FrozenPart>> {
    let mut bytes = 0;
    let fits = |part: &Arc<FrozenPart>| {
        let first = bytes == 0;
        bytes += part.bytes.max(1);
        first || bytes <= bytes_max
    };
    memtable.frozen().into_iter().take_while(fits).collect()
}
