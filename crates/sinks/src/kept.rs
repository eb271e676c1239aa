//! What a consumer keeps on disk: how far it is, what it was told, what it counted. One small JSON file for each,
//! `consumers/NAME.json`, written beside and renamed, the folder synced: after a crash there is the old one or the new.
//!
//! Position and counts change together, so that `matched = delivered + skipped + dead` holds in every file. What is
//! delivered and not yet in the file is delivered again after a crash, under the same keys, and counted once.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lakegate_env::Disk;
use lakegate_model::LogId;
use serde::{Deserialize, Serialize};

/// What became of records that fit the filter, below the position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Records that fit the filter.
    pub matched: u64,
    /// Of those, delivered.
    pub delivered: u64,
    /// Passed over, because it was asked for.
    pub skipped: u64,
    /// Given up, and kept to be sent again.
    pub dead: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, more: Self) {
        self.matched += more.matched;
        self.delivered += more.delivered;
        self.skipped += more.skipped;
        self.dead += more.dead;
    }
}

/// How far one table is read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TableBack {
    /// The files of all commits up to the one of this number are read.
    pub(crate) after: i64,
    /// Whether all of it was read.
    pub(crate) done: bool,
}

/// Reading back from the tables what the log has no more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Back {
    /// Rows from this offset of the log on are wanted; none: all rows.
    pub(crate) from: Option<u64>,
    /// The log is read on from here.
    pub(crate) then: u64,
    /// Each table, as `namespace.name`.
    pub(crate) tables: BTreeMap<String, TableBack>,
}

/// A consumer's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) version: u32,
    /// The log that the position is of.
    pub(crate) log: LogId,
    /// The next record of the log to look at.
    pub(crate) offset: u64,
    /// When the last record before it came, in microseconds since 1970.
    #[serde(default)]
    pub(crate) received_us: i64,
    #[serde(default)]
    pub(crate) paused: bool,
    /// Records below are passed over.
    #[serde(default)]
    pub(crate) skip_to: u64,
    /// The batch that was begun ends here: it is formed again as it was.
    #[serde(default)]
    pub(crate) batch_end: Option<u64>,
    #[serde(default)]
    pub(crate) back: Option<Back>,
    /// What was read from tables, as `namespace.name`: their records below the offset are not taken from the log again.
    #[serde(default)]
    pub(crate) taken: BTreeMap<String, u64>,
    #[serde(default)]
    pub(crate) counts: Counts,
    /// Of notices: the newest commit of each table that was told.
    #[serde(default)]
    pub(crate) told: BTreeMap<String, i64>,
}

/// The format of the file.
const VERSION: u32 = 1;

impl Kept {
    pub(crate) fn new(log: LogId, offset: u64) -> Self {
        Self {
            version: VERSION,
            log,
            offset,
            received_us: 0,
            paused: false,
            skip_to: 0,
            batch_end: None,
            back: None,
            taken: BTreeMap::new(),
            counts: Counts::default(),
            told: BTreeMap::new(),
        }
    }
}

/// Keeps one consumer's file.
#[derive(Clone)]
pub(crate) struct Keeper {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl Keeper {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path, name: &str) -> Self {
        Self { disk, path: dir.join(format!("{name}.json")) }
    }

    /// What is kept; none where there is no file.
    pub(crate) fn load(&self) -> io::Result<Option<Kept>> {
        if !self.disk.exists(&self.path)? {
            return Ok(None);
        }
        let wrong = |why: String| {
            let place = self.path.display();
            io::Error::other(format!("{place} cannot be read: {why}; mend it, or move it away to begin anew"))
        };
        let kept: Kept =
            serde_json::from_slice(&self.disk.read(&self.path)?).map_err(|error| wrong(error.to_string()))?;
        if kept.version != VERSION {
            return Err(wrong(format!("it has version {}, this binary knows {VERSION}", kept.version)));
        }
        Ok(Some(kept))
    }

    /// Keeps it, off the threads that others wait for.
    pub(crate) async fn store(&self, kept: &Kept) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(kept).map_err(io::Error::other)?;
        let (disk, path) = (self.disk.clone(), self.path.clone());
        let stored = tokio::task::spawn_blocking(move || disk.write_atomic(&path, &bytes)).await;
        let named = |error: io::Error| io::Error::other(format!("{}: {error}", self.path.display()));
        stored.map_err(io::Error::other)?.map_err(named)
    }
}

#[cfg(test)]
mod tests {
    use lakegate_env::MemDisk;
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn what_is_kept_is_read_back_and_what_cannot_be_read_is_no_beginning() {
        let disk = MemDisk::new();
        disk.create_dir_all(Path::new("/c")).unwrap();
        let keeper = Keeper::new(Arc::new(disk.clone()), Path::new("/c"), "a");
        assert_eq!(keeper.load().unwrap(), None);
        let mut kept = Kept::new(LogId(Uuid::from_u128(7)), 12);
        kept.counts.add(Counts { matched: 3, delivered: 2, skipped: 1, dead: 0 });
        kept.back = Some(Back { from: Some(3), then: 9, tables: BTreeMap::new() });
        keeper.store(&kept).await.unwrap();
        assert_eq!(keeper.load().unwrap(), Some(kept));
        for text in ["{", r#"{"version":9,"log":"00000000-0000-0000-0000-000000000007","offset":0}"#] {
            disk.write_atomic(Path::new("/c/a.json"), text.as_bytes()).unwrap();
            let error = keeper.load().unwrap_err().to_string();
            assert!(error.contains("/c/a.json") && error.contains("begin anew"), "{error}");
        }
    }
}
