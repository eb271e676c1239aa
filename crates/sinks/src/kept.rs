//! What a consumer keeps on disk: how far it is, what it was told, what it counted. One small JSON file for each,
//! `consumers/NAME.json`, with two slots that are written in turns, in place: one write and one sync of blocks that the
//! file has already. Each slot tells its number and a sum (XXH3) of what it holds: after a crash the newest that is whole
//! counts. What outgrows the slots is written beside and renamed, with larger ones.
//!
//! Position and counts change together, so that `matched = delivered + skipped + dead` holds in every file. What is
//! delivered and not yet in the file is delivered again after a crash, under the same keys, and counted once.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lakegate_env::{Disk, DiskFile};
use lakegate_model::LogId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

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

/// The least size of a slot.
const SLOT_BYTES: usize = 4096;

/// Keeps one consumer's file.
#[derive(Clone)]
pub(crate) struct Keeper {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    open: Arc<Mutex<Open>>,
}

/// The file as it was left.
#[derive(Default)]
struct Open {
    file: Option<Box<dyn DiskFile>>,
    slot_bytes: usize,
    /// Of what was written last: an even one lies in the first slot.
    sequence: u64,
}

#[derive(Deserialize)]
struct Slot {
    sequence: u64,
    kept: Kept,
}

impl Keeper {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path, name: &str) -> Self {
        Self { disk, path: dir.join(format!("{name}.json")), open: Arc::default() }
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
        let bytes = self.disk.read(&self.path)?;
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let newest = [first, second].into_iter().filter_map(read_slot).max_by_key(|slot| slot.sequence);
        let kept = match newest {
            Some(Slot { sequence, kept }) => {
                self.open.lock().sequence = sequence;
                kept
            }
            // Written by hand, it is what a slot holds, alone.
            None => serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?,
        };
        if kept.version != VERSION {
            return Err(wrong(format!("it has version {}, this binary knows {VERSION}", kept.version)));
        }
        Ok(Some(kept))
    }

    /// Keeps it, off the threads that others wait for.
    pub(crate) async fn store(&self, kept: &Kept) -> io::Result<()> {
        let kept = serde_json::to_string(kept).map_err(io::Error::other)?;
        let keeper = self.clone();
        let stored = tokio::task::spawn_blocking(move || keeper.write(&kept)).await;
        let named = |error: io::Error| io::Error::other(format!("{}: {error}", self.path.display()));
        stored.map_err(io::Error::other)?.map_err(named)
    }

    fn write(&self, kept: &str) -> io::Result<()> {
        let mut open = self.open.lock();
        let sequence = open.sequence + 1;
        let text = slot_text(sequence, kept);
        let slot_bytes = open.slot_bytes;
        // After a failed write the file is made anew.
        if let Some(file) = open.file.take_if(|_| text.len() + FRAME_BYTES <= slot_bytes) {
            let at = if sequence.is_multiple_of(2) { 0 } else { slot_bytes };
            file.write_all_at(&slot(sequence, &text, slot_bytes), u64::try_from(at).map_err(io::Error::other)?)?;
            file.sync_data()?;
            open.file = Some(file);
        } else {
            let slot_bytes = (2 * (text.len() + FRAME_BYTES)).next_power_of_two().max(SLOT_BYTES);
            let mut slots = [slot(sequence, &text, slot_bytes), slot(sequence + 1, "null", slot_bytes)];
            slots.sort_by_key(|slot| slot.first() != Some(&b'['));
            self.disk.write_atomic(&self.path, &slots.concat())?;
            open.file = Some(self.disk.open(&self.path)?);
            open.slot_bytes = slot_bytes;
        }
        open.sequence = sequence;
        Ok(())
    }
}

/// What makes an array of two slots: a bracket or a space before each, a comma or a bracket and the end of the line after.
const FRAME_BYTES: usize = 3;

fn slot(sequence: u64, text: &str, bytes: usize) -> Vec<u8> {
    let (before, after) = if sequence.is_multiple_of(2) { ('[', ",\n") } else { (' ', "]\n") };
    format!("{before}{text:<width$}{after}", width = bytes.saturating_sub(FRAME_BYTES)).into_bytes()
}

fn slot_text(sequence: u64, kept: &str) -> String {
    let summed = format!("\"sequence\":{sequence},\"kept\":{kept}}}");
    format!("{{\"sum\":\"{:016x}\",{summed}", xxh3_64(summed.as_bytes()))
}

/// What a slot holds; none where it is torn or empty.
fn read_slot(bytes: &[u8]) -> Option<Slot> {
    let framed = bytes.get(1..bytes.len().checked_sub(2)?)?;
    let text = std::str::from_utf8(framed).ok()?.trim();
    let (sum, summed) = text.strip_prefix("{\"sum\":\"")?.split_once("\",")?;
    let is_whole = u64::from_str_radix(sum, 16).ok()? == xxh3_64(summed.as_bytes());
    is_whole.then(|| serde_json::from_str(&format!("{{{summed}")).ok()).flatten()
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
        assert_eq!(keeper.load().unwrap(), Some(kept.clone()));
        disk.write_atomic(Path::new("/c/a.json"), &serde_json::to_vec_pretty(&kept).unwrap()).unwrap();
        assert_eq!(keeper.load().unwrap(), Some(kept), "by hand");
        for text in ["{", r#"{"version":9,"log":"00000000-0000-0000-0000-000000000007","offset":0}"#] {
            disk.write_atomic(Path::new("/c/a.json"), text.as_bytes()).unwrap();
            let error = keeper.load().unwrap_err().to_string();
            assert!(error.contains("/c/a.json") && error.contains("begin anew"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_torn_write_leaves_what_was_kept_before_it() {
        let disk = MemDisk::new();
        let path = Path::new("/c/a.json");
        disk.create_dir_all(Path::new("/c")).unwrap();
        let keeper = Keeper::new(Arc::new(disk.clone()), Path::new("/c"), "a");
        for offset in 0..9 {
            keeper.store(&Kept::new(LogId(Uuid::from_u128(7)), offset)).await.unwrap();
            let whole: serde_json::Value = serde_json::from_slice(&disk.read(path).unwrap()).unwrap();
            assert_eq!(whole.as_array().unwrap().len(), 2, "the file is JSON");
        }
        let bytes = disk.read(path).unwrap();
        let newest = bytes.windows(10).position(|at| at == b"\"offset\":8").unwrap();
        for torn in [newest / 4096 * 4096, newest] {
            let mut bytes = bytes.clone();
            bytes[torn..torn + 200].fill(0);
            disk.write_atomic(path, &bytes).unwrap();
            let again = Keeper::new(Arc::new(disk.clone()), Path::new("/c"), "a");
            assert_eq!(again.load().unwrap().unwrap().offset, 7);
            again.store(&Kept::new(LogId(Uuid::from_u128(7)), 11)).await.unwrap();
            again.store(&Kept::new(LogId(Uuid::from_u128(7)), 12)).await.unwrap();
            assert_eq!(again.load().unwrap().unwrap().offset, 12);
        }
    }

    #[tokio::test]
    async fn what_outgrows_its_slot_gets_a_larger_one() {
        let disk = MemDisk::new();
        disk.create_dir_all(Path::new("/c")).unwrap();
        let keeper = Keeper::new(Arc::new(disk.clone()), Path::new("/c"), "a");
        let mut kept = Kept::new(LogId(Uuid::from_u128(7)), 1);
        for tables in 0..300 {
            kept.offset += 1;
            kept.told.insert(format!("a.table_with_a_long_name_{tables}"), tables);
            keeper.store(&kept).await.unwrap();
            let again = Keeper::new(Arc::new(disk.clone()), Path::new("/c"), "a");
            assert_eq!(again.load().unwrap().as_ref(), Some(&kept));
        }
    }
}
