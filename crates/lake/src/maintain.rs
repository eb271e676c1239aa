//! Files that no snapshot names any more, removed late.
//!
//! A file that a commit made needless waits until the last snapshot that names it is gone, and then for a quarter of an
//! hour more: a reader may have planned with it. What was forgotten by a restart, or left by an attempt that came to
//! nothing, is found by a sweep of the table's own folder, once a day: data files, manifests, lists and ledgers under
//! names that this writer gives, older than three days, which no snapshot and no property names. Files that this process
//! wrote and has not committed yet are left out, and nothing is swept while a commit's outcome is not known. Another
//! process does not know of them: files that waited for their commit for two days are written anew.

use std::collections::HashSet;

use iceberg::spec::MAIN_BRANCH;
use iceberg::{TableRequirement, TableUpdate};

use crate::commit::snapshots_beyond;
use crate::error::LakeError;
use crate::lake::Lake;
use crate::ledger::LEDGER;
use crate::manifests::{load_manifest, load_manifest_list};
use crate::table::{LakeTable, Retired};
use crate::write::WrittenFile;

/// How many files one call removes, at most.
const REMOVE_AT_ONCE: usize = 2_000;
/// How long lies between two sweeps of one table.
const SWEEP_EVERY_US: u64 = 24 * 3600 * 1_000_000;
/// Younger files may belong to a commit on its way, of this process or another.
const SWEEP_AGE_SECONDS: u64 = 3 * 24 * 3600;

/// A file that waited so long for its commit is no longer committed: a sweep of another process may be about to take it.
const COMMIT_WITHIN_US: u64 = (SWEEP_AGE_SECONDS - 24 * 3600) * 1_000_000;

/// What one call of maintenance did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MaintainOutcome {
    /// Files removed.
    pub removed: usize,
    /// Files that wait for their time.
    pub waiting: usize,
}

impl LakeTable {
    /// Whether one of the files waited so long that another process may remove it.
    pub(crate) fn waited_too_long(&self, files: &[WrittenFile]) -> bool {
        let now = self.lake.options.clock.monotonic_us();
        files.iter().any(|f| !f.referenced && now.saturating_sub(f.written_us) >= COMMIT_WITHIN_US)
    }

    /// Expires the snapshots of the main branch beyond the newest `keep`; gives how many. Their files go when their time
    /// has come, by [`Lake::maintain`] and the sweep. Branches and tags keep theirs.
    ///
    /// # Errors
    /// The catalog or a file could not be read, or another commit came first.
    pub async fn expire(&self, keep: usize) -> Result<usize, LakeError> {
        let _turn = self.turn.lock().await;
        let view = self.refresh().await?;
        let metadata = view.metadata();
        let expired = snapshots_beyond(metadata, keep.max(1));
        if expired.is_empty() {
            return Ok(0);
        }
        let lists = expired.iter().filter_map(|id| metadata.snapshot_by_id(*id));
        let lists = lists.map(|s| s.manifest_list().to_owned()).collect();
        let requirements = vec![
            TableRequirement::UuidMatch { uuid: metadata.uuid() },
            TableRequirement::RefSnapshotIdMatch {
                r#ref: MAIN_BRANCH.to_owned(),
                snapshot_id: metadata.current_snapshot_id(),
            },
        ];
        let count = expired.len();
        let updates = vec![TableUpdate::RemoveSnapshots { snapshot_ids: expired }];
        let loaded = self.lake.options.catalog.commit_table(self.ident(), requirements, updates).await?;
        self.retire(Retired { now: lists, replaced: Vec::new(), last_needed_by: 0 }, &loaded.metadata);
        self.adopt(loaded, None)?;
        Ok(count)
    }
}

impl Lake {
    /// Removes files that no snapshot has named for a while. To be called now and then.
    ///
    /// # Errors
    /// A file could not be listed, read or removed; it is tried again by a later call.
    pub async fn maintain(&self, table: &LakeTable) -> Result<MaintainOutcome, LakeError> {
        let now = self.shared.options.clock.monotonic_us();
        let due: Vec<(u64, String)> = {
            let mut waiting = table.retired.lock();
            let (mut due, later): (Vec<_>, Vec<_>) = waiting.until_us.drain(..).partition(|(until, _)| *until <= now);
            waiting.until_us = later;
            waiting.until_us.extend(due.split_off(due.len().min(REMOVE_AT_ONCE)));
            due
        };
        let locations: Vec<String> = due.iter().map(|(_, path)| path.clone()).collect();
        if let Err(error) = self.shared.options.warehouse.remove(locations).await {
            table.retired.lock().until_us.extend(due);
            return Err(error.into());
        }
        let swept = if table.is_sweep_due(now, SWEEP_EVERY_US) { self.sweep(table).await? } else { 0 };
        let waiting = table.retired.lock();
        let (removed, waiting) = (due.len() + swept, waiting.until_us.len() + waiting.while_needed.len());
        Ok(MaintainOutcome { removed, waiting })
    }

    /// Files in the table's folder that the next sweep would remove.
    ///
    /// # Errors
    /// The folder or the table cannot be read.
    pub async fn orphans(&self, table: &LakeTable) -> Result<Vec<String>, LakeError> {
        let warehouse = &self.shared.options.warehouse;
        if !table.doubt().unknown.is_empty() {
            return Ok(Vec::new());
        }
        // Listed before the newest state is asked for: what is committed in between is in that state.
        let folder = table.view().metadata().location().trim_end_matches('/').to_owned();
        let mut old: HashSet<String> = warehouse
            .list(&folder)
            .await?
            .into_iter()
            .filter(|(location, age)| *age >= SWEEP_AGE_SECONDS && is_ours(location))
            .map(|(location, _)| location)
            .collect();
        table.live.lock().iter().for_each(|location| {
            old.remove(location);
        });
        let view = table.refresh().await?;
        view.properties().get(LEDGER).into_iter().for_each(|ledger| {
            old.remove(ledger);
        });
        let mut seen = HashSet::new();
        for snapshot in view.metadata().snapshots() {
            if old.is_empty() {
                break;
            }
            old.remove(snapshot.manifest_list());
            // A list or manifest that cannot be read ends the sweep: what it names is not known.
            for manifest in load_manifest_list(warehouse, view.metadata(), snapshot).await? {
                old.remove(&manifest.manifest_path);
                if seen.insert(manifest.manifest_path.clone()) {
                    for entry in load_manifest(warehouse, &manifest).await?.entries() {
                        old.remove(entry.file_path());
                    }
                }
            }
        }
        let retired = table.retired.lock();
        retired
            .while_needed
            .iter()
            .map(|(_, path)| path)
            .chain(retired.until_us.iter().map(|(_, path)| path))
            .for_each(|path| {
                old.remove(path);
            });
        drop(retired);
        let mut orphans: Vec<String> = old.into_iter().collect();
        orphans.sort_unstable();
        Ok(orphans)
    }

    async fn sweep(&self, table: &LakeTable) -> Result<usize, LakeError> {
        let mut orphans = self.orphans(table).await?;
        orphans.truncate(REMOVE_AT_ONCE);
        let count = orphans.len();
        // A commit that began meanwhile names none of them: they were old and not live.
        self.shared.options.warehouse.remove(orphans).await?;
        metrics::counter!("lakegate_lake_orphans_removed_total").increment(u64::try_from(count).unwrap_or_default());
        Ok(count)
    }
}

/// Whether we gave the file its name: `<commit>-<random>-m<spec>.avro`, `…-merged<n>.avro`, `…-files.lgl`,
/// `snap-<snapshot>-<commit>-<random>.avro`, `<random>-<number>.parquet` or `<random>-adopted.parquet`.
fn is_ours(location: &str) -> bool {
    let hex = |text: &str, length: usize| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let Some((name, kind)) = location.rsplit('/').next().and_then(|n| n.rsplit_once('.')) else { return false };
    let parts: Vec<&str> = name.split('-').collect();
    match (parts.as_slice(), kind) {
        (["snap", snapshot, commit, random], "avro") => digits(snapshot) && hex(commit, 32) && hex(random, 12),
        ([commit, random, rest], "avro") => {
            let number = rest.strip_prefix("merged").or_else(|| rest.strip_prefix('m'));
            hex(commit, 32) && hex(random, 12) && number.is_some_and(digits)
        }
        ([commit, random, "files"], "lgl") => hex(commit, 32) && hex(random, 12),
        ([stem, "adopted"], "parquet") => hex(stem, 32),
        ([stem, number], "parquet") => hex(stem, 32) && number.len() == 5 && digits(number),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use lakegate_env::SeededRandom;

    use super::is_ours;
    use crate::lake::Lake;
    use crate::test_support::{append, commit_of, contract, event_ids, ids, name, options, rows, writer};
    use crate::testing::{Fault, FaultyCatalog, MemoryCatalog};
    use crate::warehouse::Warehouse;

    #[tokio::test]
    async fn f42_a_sweep_after_a_restart_takes_what_no_snapshot_reaches_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let warehouse = Warehouse::open_folder(folder.path()).unwrap();
        let catalog = MemoryCatalog::new(warehouse.clone(), Arc::new(SeededRandom::new(3)));
        let open = |seed| Lake::open(options(&warehouse, Arc::new(catalog.clone()), writer(1, 1), seed));
        let table = open(1).open_table(&name(), &contract()).await.unwrap();
        for n in 0..125 {
            append(&table, n, n + 1).await;
        }
        let metadata = table.view().metadata().location().trim_start_matches("file://").to_owned() + "/metadata";
        let foreign = format!("{metadata}/0a1b2c3d-m0.avro");
        std::fs::write(&foreign, b"another engine's").unwrap();
        let count = || {
            std::fs::read_dir(&metadata)
                .unwrap()
                .filter(|e| is_ours(e.as_ref().unwrap().path().to_str().unwrap()))
                .count()
        };
        let before = count();
        let restarted = open(2);
        let table = restarted.open_table(&name(), &contract()).await.unwrap();
        assert_eq!(restarted.maintain(&table).await.unwrap().removed, 0, "everything is young");
        let long_ago = SystemTime::now() - Duration::from_secs(4 * 24 * 3600);
        for entry in std::fs::read_dir(&metadata).unwrap() {
            let file = File::options().write(true).open(entry.unwrap().path()).unwrap();
            file.set_times(FileTimes::new().set_modified(long_ago)).unwrap();
        }
        let restarted = open(3);
        let table = restarted.open_table(&name(), &contract()).await.unwrap();
        let removed = restarted.maintain(&table).await.unwrap().removed;
        assert!(removed > 0);
        assert_eq!(count(), before - removed);
        assert!(std::fs::exists(&foreign).unwrap());
        assert_eq!(event_ids(&table.view()).await, ids(0..125));
        append(&table, 125, 126).await;
        assert_eq!(event_ids(&table.view()).await, ids(0..126));
    }

    #[tokio::test]
    async fn f42_files_that_waited_for_their_commit_until_another_process_may_sweep_them_are_written_anew() {
        let bench = crate::test_support::Bench::new();
        let table = bench.table().await;
        append(&table, 0, 3).await;
        let waiting = table.write(vec![rows(3, 2)]).await.unwrap();
        table.lake.options.pause.pause(Duration::from_secs(2 * 24 * 3600 - 60)).await;
        table.commit(commit_of(waiting, 3, 5)).await.unwrap();
        let waiting = table.write(vec![rows(5, 2)]).await.unwrap();
        table.lake.options.pause.pause(Duration::from_secs(2 * 24 * 3600)).await;
        let error = table.commit(commit_of(waiting, 5, 7)).await.unwrap_err();
        assert!(matches!(error, crate::CommitError::StaleFiles { .. }), "{error}");
        append(&table, 5, 7).await;
        assert_eq!(event_ids(&table.view()).await, ids(0..7));
    }

    #[tokio::test]
    async fn snapshots_are_expired_when_asked_and_rows_and_position_stay() {
        let bench = crate::test_support::Bench::new();
        let table = bench.table().await;
        for n in 0..10 {
            append(&table, n, n + 1).await;
        }
        assert_eq!(table.expire(3).await.unwrap(), 7);
        assert_eq!(table.expire(3).await.unwrap(), 0);
        assert_eq!(table.view().snapshots().len(), 3);
        append(&table, 10, 12).await;
        let fresh = bench.rival(9, 9).find_table(&name()).await.unwrap().unwrap().view();
        assert_eq!((event_ids(&fresh).await, fresh.snapshots().len()), (ids(0..12), 4));
    }

    fn make_old(folder: &std::path::Path) {
        let long_ago = SystemTime::now() - Duration::from_secs(4 * 24 * 3600);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                make_old(&path);
            } else {
                File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_times(FileTimes::new().set_modified(long_ago))
                    .unwrap();
            }
        }
    }

    #[tokio::test]
    async fn f42_files_of_a_live_intent_and_of_an_unknown_commit_are_never_swept() {
        let folder = tempfile::tempdir().unwrap();
        let warehouse = Warehouse::open_folder(folder.path()).unwrap();
        let memory = MemoryCatalog::new(warehouse.clone(), Arc::new(SeededRandom::new(3)));
        let catalog = FaultyCatalog::new(Arc::new(memory));
        let open = |seed| Lake::open(options(&warehouse, Arc::new(catalog.clone()), writer(1, 1), seed));
        let lake = open(1);
        let table = lake.open_table(&name(), &contract()).await.unwrap();
        append(&table, 0, 3).await;
        let forgotten = open(2).open_table(&name(), &contract()).await.unwrap().write(vec![rows(90, 1)]).await.unwrap();
        let waiting = table.write(vec![rows(3, 2)]).await.unwrap();
        make_old(folder.path());
        assert_eq!(lake.orphans(&table).await.unwrap(), [forgotten[0].location()]);
        // Its outcome is not known: nothing at all is removed.
        catalog.script_commits([Fault::Late]);
        catalog.script_reads(std::iter::repeat_n(Fault::Away, 11));
        table.commit(commit_of(waiting.clone(), 3, 5)).await.unwrap_err();
        assert_eq!(lake.orphans(&table).await.unwrap(), [""; 0]);
        assert!(catalog.deliver_late().await[0].is_ok());
        table.commit(commit_of(waiting, 3, 5)).await.unwrap();
        make_old(folder.path());
        assert_eq!(lake.maintain(&table).await.unwrap().removed, 1);
        assert!(!warehouse.exists(forgotten[0].location()).await.unwrap());
        assert_eq!(event_ids(&table.refresh().await.unwrap()).await, ids(0..5));
    }
}
