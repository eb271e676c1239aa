//! Files that no snapshot names any more, removed late.
//!
//! A file that a commit made needless waits until the last snapshot that names it is gone, and then for a quarter of an
//! hour more: a reader may have planned with it. What was forgotten by a restart, or left by an attempt that came to
//! nothing, is found by a sweep of the table's metadata folder, once a day: only manifests and lists under names that
//! this writer gives, older than a day, which no snapshot reaches. Data files are never swept.

use std::collections::HashSet;

use crate::error::LakeError;
use crate::lake::Lake;
use crate::manifests::load_manifest_list;
use crate::table::LakeTable;

/// How many files one call removes, at most.
const REMOVE_AT_ONCE: usize = 2_000;
/// How long lies between two sweeps of one table.
const SWEEP_EVERY_US: u64 = 24 * 3600 * 1_000_000;
/// Younger files may belong to a commit on its way.
const SWEEP_AGE_SECONDS: u64 = 24 * 3600;

/// What one call of maintenance did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MaintainOutcome {
    /// Files removed.
    pub removed: usize,
    /// Files that wait for their time.
    pub waiting: usize,
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

    async fn sweep(&self, table: &LakeTable) -> Result<usize, LakeError> {
        let warehouse = &self.shared.options.warehouse;
        let view = table.refresh().await?;
        let folder = format!("{}/metadata", view.metadata().location().trim_end_matches('/'));
        let mut old: HashSet<String> = warehouse
            .list(&folder)
            .await?
            .into_iter()
            .filter(|(location, age)| *age >= SWEEP_AGE_SECONDS && is_ours(location))
            .map(|(location, _)| location)
            .collect();
        if old.is_empty() {
            return Ok(0);
        }
        for snapshot in view.metadata().snapshots() {
            // A list that cannot be read ends the sweep: what it names is not known.
            for manifest in load_manifest_list(warehouse, view.metadata(), snapshot).await? {
                old.remove(&manifest.manifest_path);
            }
            old.remove(snapshot.manifest_list());
        }
        let needless: Vec<String> = old.into_iter().take(REMOVE_AT_ONCE).collect();
        let count = needless.len();
        warehouse.remove(needless).await?;
        Ok(count)
    }
}

/// Whether a commit of ours gave the file its name: `<commit>-<random>-m<spec>.avro`, `<commit>-<random>-merged.avro` or
/// `snap-<snapshot>-<commit>-<random>.avro`.
fn is_ours(location: &str) -> bool {
    let hex = |text: &str, length: usize| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    let Some(name) = location.rsplit('/').next().and_then(|n| n.strip_suffix(".avro")) else { return false };
    let parts: Vec<&str> = name.split('-').collect();
    match parts.as_slice() {
        ["snap", snapshot, commit, random] => {
            snapshot.bytes().all(|b| b.is_ascii_digit()) && hex(commit, 32) && hex(random, 12)
        }
        [commit, random, kind] => hex(commit, 32) && hex(random, 12) && (*kind == "merged" || kind.starts_with('m')),
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
    use crate::test_support::{append, contract, event_ids, ids, name, options, writer};
    use crate::testing::MemoryCatalog;
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
        let long_ago = SystemTime::now() - Duration::from_secs(3 * 24 * 3600);
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
}
