//! One commit of imported rows: files, mark, counts and event keys, all or nothing.
//!
//! In this order: the rows are in durable files; the keys are in a durable file of their own, which is worth something
//! only with the commit ([`super::claim_files`]); the commit; the keys go into the window, and are kept with all others.
//! A crash between any two leaves either no row and no key, or all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lakegate_env::hit_failpoint;
use lakegate_lake::{
    Commit, CommitError, CommitOutcome, FileChange, FileMark, FileState, LakeError, LakeTable, TableView, WrittenFile,
};
use lakegate_model::{LogId, StreamKey, StreamName, Tally, TenantId};
use uuid::Uuid;

use super::claim_files::{self, ClaimHead};
use super::{Import, ImportError};
use crate::duplicates::{Importer, stream_hash};
use crate::gate::{Gate, Inner};
use crate::keys::KeyEntry;
use crate::streams::Stream;

/// A commit is made after so many rows; with event keys after fewer, for these are held in memory until then.
const ROWS: u64 = 10_000_000;
const KEYED_ROWS: usize = 1_000_000;
/// Or so many bytes of files.
const BYTES: u64 = 1 << 30;
/// Or so long.
const EVERY_US: u64 = 60_000_000;
/// How often a commit is tried that the catalog does not take, and how long to wait between.
const ATTEMPTS: u32 = 20;
const BETWEEN: Duration = Duration::from_millis(500);

impl Import {
    pub(super) fn is_commit_due(&self) -> bool {
        let since_us = self.gate.inner.clock.monotonic_us().saturating_sub(self.last_commit_us);
        self.tally.received >= ROWS
            || self.claimed.len() >= KEYED_ROWS
            || self.files.written_bytes() >= BYTES
            || (since_us >= EVERY_US.min(self.claims_end_after_us()) && self.tally.received > 0)
    }

    /// Commits everything that was taken, and goes on.
    pub(super) async fn commit_part(&mut self) -> Result<(), ImportError> {
        match &self.next {
            Some(next) => {
                let state = FileState::Partial(next.to_bytes());
                self.commit(state).await
            }
            None => Ok(()),
        }
    }

    pub(super) async fn commit(&mut self, state: FileState) -> Result<(), ImportError> {
        let commit_id = Uuid::from_u128(self.gate.inner.random.next_u128());
        let prepared = self.prepare(state, commit_id).await?;
        self.commit_prepared(prepared).await
    }

    /// Everything that comes before a commit: durable files of the rows, and of their keys.
    pub(super) async fn prepare(&mut self, state: FileState, commit_id: Uuid) -> Result<Prepared, ImportError> {
        armed("import.before_write")?;
        let files = match self.files.finish(&self.table).await {
            Ok(files) => files,
            Err(error) => {
                self.files.discard(&self.table).await;
                return Err(error.into());
            }
        };
        armed("import.after_write")?;
        if self.tally.duplicate > 0 {
            // A row was left out for a record that may not be durable yet.
            let durable = self.gate.inner.log.wait_durable(self.gate.inner.log.next_offset()).await;
            durable.map_err(|error| ImportError::Closed(error.to_string()))?;
        }
        let received_us = self.gate.inner.clock.wall_us();
        if let Err(error) = self.hold_elsewhere().await {
            self.table.discard(&files).await;
            return Err(error);
        }
        self.write_claims(commit_id, received_us).await?;
        armed("import.after_keys")?;
        let to = FileMark { id: self.target.file, rows: self.rows, state };
        let mark = FileChange { from: self.mark.clone(), to };
        let counts = counts_of(self.gate.inner.log.id(), &self.stream.key, &self.tally);
        Ok(Prepared { commit_id, received_us, files, mark, counts })
    }

    /// Tries the commit, and settles what comes of it.
    pub(super) async fn commit_prepared(&mut self, prepared: Prepared) -> Result<(), ImportError> {
        let Prepared { commit_id, files, mark, counts, .. } = &prepared;
        let commit =
            Commit { counts: counts.clone(), ..Commit::of_marks(*commit_id, files.clone(), vec![mark.clone()]) };
        let error = match try_commit(&self.table, &commit).await {
            Ok(outcome) => return self.committed(prepared, outcome.snapshot_id).await,
            Err(error) => error,
        };
        let message = error.to_string();
        let error = match error {
            // It may stand, or come to: its files and keys are left for whoever looks next.
            CommitError::Unavailable { outcome_unknown: true, .. } => {
                self.leave_unsettled(*commit_id);
                return Err(ImportError::Unknown(message));
            }
            CommitError::AlreadyAbsorbed { .. } => ImportError::AbsorbedElsewhere(message),
            CommitError::StaleFiles { .. } => ImportError::TableChanged(message),
            CommitError::Unavailable { .. } => ImportError::Lake(message),
            CommitError::Fenced { .. } => ImportError::Closed(message),
            _ => ImportError::Lake(message),
        };
        self.table.discard(files).await;
        remove_claims(&self.gate.inner, *commit_id, self.target.file).await;
        Err(error)
    }

    /// After the commit: the keys are known, the rows are counted.
    pub(super) async fn committed(&mut self, prepared: Prepared, snapshot_id: i64) -> Result<(), ImportError> {
        armed("import.after_commit")?;
        let Prepared { commit_id, received_us, files, mark, .. } = prepared;
        self.mark = Some(mark.to);
        self.summary.commits += 1;
        self.summary.snapshot_id = Some(snapshot_id);
        self.summary.files += files.len() as u64;
        self.summary.bytes += files.iter().map(WrittenFile::bytes).sum::<u64>();
        self.last_commit_us = self.gate.inner.clock.monotonic_us();
        self.settle(commit_id, received_us).await
    }

    /// The keys, durable before the commit.
    pub(super) async fn write_claims(&self, commit_id: Uuid, received_us: i64) -> Result<(), ImportError> {
        if self.claimed.is_empty() {
            return Ok(());
        }
        let (inner, keys) = (self.gate.inner.clone(), self.claimed.clone());
        let (stream, table) = (self.stream.key.clone(), self.table.name().clone());
        let head = ClaimHead { stream, table, file: self.target.file, commit_id, received_us };
        let write = move || claim_files::write(&*inner.disk, &inner.keys_dir(), &head, &keys);
        let written =
            tokio::task::spawn_blocking(write).await.map_err(|error| ImportError::Closed(error.to_string()))?;
        written.map_err(|error| ImportError::Closed(format!("the event keys of the rows cannot be kept: {error}")))
    }

    /// The commit may stand: its keys stay claimed until the next import of the file has looked.
    pub(super) fn leave_unsettled(&mut self, commit_id: Uuid) {
        let keys = std::mem::take(&mut self.claimed);
        let (key, received_us) = (self.stream.key.clone(), self.gate.inner.clock.wall_us());
        let (file, importer) = (self.target.file, self.importer.clone());
        let left = Unsettled { key, file, commit_id, keys, importer, received_us };
        self.gate.inner.unsettled.lock().push(left);
    }

    async fn settle(&mut self, commit_id: Uuid, received_us: i64) -> Result<(), ImportError> {
        let keys = std::mem::take(&mut self.claimed);
        let told = self.confirm_elsewhere(&keys).await;
        note_keys(&self.stream, &keys, received_us);
        let tally = std::mem::take(&mut self.tally);
        self.stream.count_accepted(tally.accepted);
        self.gate.inner.note_imported(&self.table.view());
        self.stream.unit.last_commit_us.store(received_us, std::sync::atomic::Ordering::Relaxed);
        let commit = told.then_some((commit_id, self.target.file));
        keep_keys(&self.gate.inner, &self.stream, keys, commit, received_us).await
    }
}

/// What goes into a commit of a file's rows.
pub(super) struct Prepared {
    pub(super) commit_id: Uuid,
    pub(super) received_us: i64,
    pub(super) files: Vec<WrittenFile>,
    pub(super) mark: FileChange,
    pub(super) counts: BTreeMap<String, u64>,
}

/// Tries a commit, again and again while the catalog is away.
pub(super) async fn try_commit(table: &Arc<LakeTable>, commit: &Commit) -> Result<CommitOutcome, CommitError> {
    let mut attempt = 1;
    loop {
        match table.commit(commit.clone()).await {
            Ok(outcome) => {
                metrics::counter!("lakegate_import_commits_total").increment(1);
                return Ok(outcome);
            }
            Err(error @ CommitError::Unavailable { .. }) if attempt < ATTEMPTS => {
                tracing::warn!(table = %table.name(), %error, attempt, "the commit of a file is tried again");
                tokio::time::sleep(BETWEEN).await;
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Event keys of rows whose commit may stand or not.
#[derive(Debug)]
pub(crate) struct Unsettled {
    key: StreamKey,
    file: u128,
    commit_id: Uuid,
    keys: Vec<u128>,
    /// Who claimed them where others share the window.
    importer: Option<Importer>,
    received_us: i64,
}

/// Looks what became of commits of earlier imports of the file.
pub(super) async fn settle_left(
    inner: &Arc<Inner>,
    stream: &Stream,
    table: &LakeTable,
    file: u128,
) -> Result<(), ImportError> {
    let of_file = |left: &Unsettled| left.file == file && left.key == stream.key;
    loop {
        let commit_id = inner.unsettled.lock().iter().find(|left| of_file(left)).map(|left| left.commit_id);
        let Some(commit_id) = commit_id else { return Ok(()) };
        let stands = match table.has_absorbed_by(file, commit_id).await {
            Ok(stands) => stands,
            Err(error) => {
                Box::pin(hold_left(inner, commit_id)).await;
                return Err(ImportError::Lake(error.to_string()));
            }
        };
        let left = {
            let mut unsettled = inner.unsettled.lock();
            let at = unsettled.iter().position(|left| left.commit_id == commit_id);
            at.map(|at| unsettled.swap_remove(at))
        };
        let Some(Unsettled { keys, importer, received_us, .. }) = left else { continue };
        if stands {
            note_keys(stream, &keys, received_us);
            let told = confirm_left(inner, stream, &keys);
            keep_keys(inner, stream, keys, told.then_some((commit_id, file)), received_us).await?;
        } else {
            stream.claims.release(&keys);
            if let (Some(importer), Some(shared)) = (importer, &inner.shared) {
                shared.release_rows_later(&importer, &keys);
            }
            remove_claims(inner, commit_id, file).await;
        }
    }
}

/// Others keep away from the rows of a commit that nobody can be asked about, for as long again.
async fn hold_left(inner: &Inner, commit_id: Uuid) {
    let Some(shared) = &inner.shared else { return };
    let left = {
        let unsettled = inner.unsettled.lock();
        let left = unsettled.iter().find(|left| left.commit_id == commit_id);
        left.and_then(|left| Some((left.importer.clone()?, left.keys.clone())))
    };
    let Some((importer, keys)) = left else { return };
    if let Err(error) = shared.hold_rows(&importer, &keys).await {
        tracing::warn!(%error, "event keys of a commit whose outcome is not known are not held for longer");
    }
}

/// Others are told of the rows of a commit that stands after all. Gives whether there is nobody to be told.
fn confirm_left(inner: &Inner, stream: &Stream, keys: &[u128]) -> bool {
    let (Some(shared), Some(_)) = (&inner.shared, &stream.window) else { return true };
    let (hash, window_ms) = (stream_hash(&stream.key), stream.shaper.contract.duplicate_window_ms);
    keys.iter().for_each(|key| shared.confirm_later(hash, *key, window_ms));
    false
}

/// From now on the keys are those of rows that are there.
pub(super) fn note_keys(stream: &Stream, keys: &[u128], received_us: i64) {
    if let Some(window) = &stream.window {
        let _consistent = stream.unit.memtable.lock();
        keys.iter().for_each(|key| window.remember(*key, received_us));
        stream.claims.release(keys);
    }
}

/// Keeps the keys with those of all other records, and removes the file of the commit's own, if it is given: where others
/// are still to be told, the next start looks there.
async fn keep_keys(
    inner: &Arc<Inner>,
    stream: &Stream,
    keys: Vec<u128>,
    commit: Option<(Uuid, u128)>,
    received_us: i64,
) -> Result<(), ImportError> {
    if keys.is_empty() {
        return Ok(());
    }
    let (inner, hash) = (inner.clone(), stream_hash(&stream.key));
    let keep = move || {
        let entry = |key: &u128| KeyEntry { stream: hash, key: *key, received_us };
        KeyEntry::keep_all(&keys.iter().map(entry).collect::<Vec<_>>(), &inner.keys)?;
        hit_failpoint("import.after_keep")?;
        commit.map_or(Ok(()), |(commit_id, file)| claim_files::remove(&*inner.disk, &inner.keys_dir(), commit_id, file))
    };
    let kept = tokio::task::spawn_blocking(keep).await.map_err(|error| ImportError::Closed(error.to_string()))?;
    // The file of claims is still there, and the next start takes the keys from it.
    kept.map_err(|error| ImportError::Closed(format!("the event keys of committed rows cannot be kept: {error}")))
}

/// Removes the keys of a commit that was not done; what fails here, the next start does.
pub(super) async fn remove_claims(inner: &Arc<Inner>, commit_id: Uuid, file: u128) {
    let inner = inner.clone();
    let remove = move || claim_files::remove(&*inner.disk, &inner.keys_dir(), commit_id, file);
    if !matches!(tokio::task::spawn_blocking(remove).await, Ok(Ok(()))) {
        tracing::warn!(%commit_id, "the keys of a commit that was not done could not be removed; the next start does");
    }
}

fn armed(name: &'static str) -> Result<(), ImportError> {
    hit_failpoint(name).map_err(|error| ImportError::Closed(format!("{name}: {error}")))
}

const RECEIVED: &str = "received";
const ACCEPTED: &str = "accepted";
const DUPLICATE: &str = "duplicate";
const DEAD_LETTERED: &str = "dead_lettered";
const LETTERS: &str = "letters";
const BYTES_NAME: &str = "bytes";

/// The table's counters of one stream's imported rows, under the log of who imported them.
fn counter_name(log: LogId, key: &StreamKey, what: &str) -> String {
    format!("imported.{log}.{}.{}.{what}", key.tenant, key.stream)
}

/// What a commit adds to the counters of one stream's rows that did not come through the log.
pub(crate) fn counts_of(log: LogId, key: &StreamKey, tally: &Tally) -> BTreeMap<String, u64> {
    let counts = [
        (RECEIVED, tally.received),
        (ACCEPTED, tally.accepted),
        (DUPLICATE, tally.duplicate),
        (DEAD_LETTERED, tally.dead_lettered),
        (BYTES_NAME, tally.bytes),
    ];
    let counted = counts.into_iter().filter(|(_, count)| *count > 0);
    counted.map(|(what, count)| (counter_name(log, key, what), count)).collect()
}

/// The same for rows of a table of dead letters: their records are counted with the streams that they were meant for.
pub(crate) fn counts_of_letters(log: LogId, key: &StreamKey, rows: u64) -> Option<(String, u64)> {
    (rows > 0).then(|| (counter_name(log, key, LETTERS), rows))
}

/// What the table's counters say of rows that this log's owner imported, by stream.
pub(crate) fn imported(view: &TableView, log: LogId) -> BTreeMap<StreamKey, Tally> {
    let mut found: BTreeMap<StreamKey, Tally> = BTreeMap::new();
    let prefix = format!("imported.{log}.");
    for (name, count) in view.counters() {
        let Some(rest) = name.strip_prefix(&prefix) else { continue };
        let mut parts = rest.split('.');
        let (Some(tenant), Some(stream), Some(what)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (Ok(tenant), Ok(stream)) = (TenantId::new(tenant), StreamName::new(stream)) else { continue };
        let tally = found.entry(StreamKey { tenant, stream }).or_default();
        match what {
            RECEIVED => tally.received = count,
            ACCEPTED => tally.accepted = count,
            DUPLICATE => tally.duplicate = count,
            DEAD_LETTERED => tally.dead_lettered = count,
            BYTES_NAME => tally.bytes = count,
            _ => {}
        }
    }
    found
}

impl Inner {
    /// Takes in what a table says of imported rows.
    pub(crate) fn note_imported(&self, view: &TableView) {
        let found = imported(view, self.log.id());
        if found.is_empty() {
            return;
        }
        for key in found.keys() {
            // So that a stream shows that has had nothing but files since the start.
            let _ = self.streams.resolve(key.tenant.as_str(), key.stream.as_str());
        }
        self.imported.lock().extend(found);
    }
}

impl Gate {
    /// Asks all tables what files brought to them, so that [`Gate::balance`] and [`Gate::status`] have it. A table that
    /// cannot be read now is left out.
    ///
    /// # Errors
    /// The catalog could not be asked.
    pub async fn load_imported(&self) -> Result<(), LakeError> {
        for name in self.inner.lake.list_tables().await? {
            if let Ok(Some(table)) = self.inner.lake.find_table(&name).await {
                self.inner.note_imported(&table.view());
            }
        }
        Ok(())
    }

    /// Rows that files brought to a table and that this process's log stands for.
    #[must_use]
    pub fn imported_rows(&self, view: &TableView) -> u64 {
        let (log, suffix) = (self.inner.log.id(), format!(".{LETTERS}"));
        let prefix = format!("imported.{log}.");
        let letters = view.counters().filter(|(name, _)| name.starts_with(&prefix) && name.ends_with(&suffix));
        imported(view, log).values().map(|tally| tally.accepted).sum::<u64>()
            + letters.map(|(_, rows)| rows).sum::<u64>()
    }
}
