//! Records that a service refused for good: kept in `consumers/NAME.dead.jsonl`, one JSON object a line, until they are
//! sent again or removed.
//!
//! A line is synced before the consumer's position passes its record, so that nothing vanishes between the two. The same
//! record may stand there twice after a crash; its key tells. Bounded in bytes: where there is no room the consumer
//! waits. A torn last line of a crash is dropped: its record is before the position and comes again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lakegate_env::Disk;
use lakegate_model::{Contract, StreamKey, StreamName, TenantId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::record::Rows;

/// A record that was given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadRecord {
    /// Its key.
    pub key: String,
    /// Whose.
    pub tenant: String,
    /// Of which stream.
    pub stream: String,
    /// When it came, in microseconds since 1970.
    pub received_us: i64,
    /// When it was given up, in microseconds since 1970.
    pub given_up_us: i64,
    /// How often it was tried.
    pub attempts: u32,
    /// What the service said last.
    pub reason: String,
    /// What ties it to others in logs and traces.
    pub correlation_id: String,
    /// Its columns.
    pub row: Map<String, Value>,
    /// The event as it came.
    pub event: Value,
    /// Its columns as an Arrow stream in Base64, for systems that take columns; else empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cells: String,
    /// Where it is from: the log and offset, or the table's file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// Which row there.
    #[serde(default)]
    pub number: u32,
}

impl DeadRecord {
    /// As rows again, whose contract is `contract`.
    pub(crate) fn rows(&self, contract: Arc<Contract>) -> Result<Rows, String> {
        let name = |error: lakegate_model::NameError| error.to_string();
        let key = StreamKey {
            tenant: TenantId::new(&self.tenant).map_err(name)?,
            stream: StreamName::new(&self.stream).map_err(name)?,
        };
        Rows::of_cells(&self.cells, key, contract).map(|rows| Rows {
            place: self.place.as_str().into(),
            numbers: vec![self.number],
            received_us: self.received_us,
            correlation_id: self.correlation_id.as_str().into(),
            ..rows
        })
    }
}

/// One consumer's dead records.
#[derive(Clone)]
pub(crate) struct DeadRecords(Arc<Shared>);

struct Shared {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    bytes_max: u64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    bytes: u64,
    records: u64,
}

impl DeadRecords {
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path, name: &str, bytes_max: u64) -> io::Result<Self> {
        let path = dir.join(format!("{name}.dead.jsonl"));
        let mut inner = Inner::default();
        if disk.exists(&path)? {
            let content = disk.read(&path)?;
            let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if whole < content.len() {
                let file = disk.open(&path)?;
                file.truncate(whole as u64)?;
                file.sync_data()?;
            }
            inner.bytes = whole as u64;
            inner.records = content.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        Ok(Self(Arc::new(Shared { disk, path, bytes_max, inner: Mutex::new(inner) })))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.0.inner.lock().records
    }

    /// Adds some, durably: all of them, or `Ok(false)` where there is no room for that.
    pub(crate) fn add(&self, records: &[DeadRecord]) -> io::Result<bool> {
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record).map_err(io::Error::other)?;
            lines.push(b'\n');
        }
        let shared = &self.0;
        let mut inner = shared.inner.lock();
        if lines.is_empty() || inner.bytes + lines.len() as u64 > shared.bytes_max {
            return Ok(lines.is_empty());
        }
        let is_new = !shared.disk.exists(&shared.path)?;
        let file = if is_new { shared.disk.create_new(&shared.path)? } else { shared.disk.open(&shared.path)? };
        file.write_all_at(&lines, inner.bytes)?;
        file.sync_data()?;
        if is_new && let Some(dir) = shared.path.parent() {
            shared.disk.sync_dir(dir)?;
        }
        inner.bytes += lines.len() as u64;
        inner.records += records.len() as u64;
        Ok(true)
    }

    /// All of them, the oldest first.
    pub(crate) fn list(&self) -> io::Result<Vec<DeadRecord>> {
        let _inner = self.0.inner.lock();
        self.read()
    }

    fn read(&self) -> io::Result<Vec<DeadRecord>> {
        if !self.0.disk.exists(&self.0.path)? {
            return Ok(Vec::new());
        }
        let content = self.0.disk.read(&self.0.path)?;
        let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).map_err(io::Error::other)).collect()
    }

    /// Removes those for which `gone` says so; returns how many.
    pub(crate) fn remove(&self, gone: impl Fn(&DeadRecord) -> bool) -> io::Result<u64> {
        let mut inner = self.0.inner.lock();
        let before = self.read()?;
        let mut content = Vec::new();
        let mut left = 0;
        for record in before.iter().filter(|record| !gone(record)) {
            serde_json::to_writer(&mut content, record).map_err(io::Error::other)?;
            content.push(b'\n');
            left += 1;
        }
        let removed = before.len() as u64 - left;
        if removed > 0 {
            self.0.disk.write_atomic(&self.0.path, &content)?;
            *inner = Inner { bytes: content.len() as u64, records: left };
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use lakegate_env::MemDisk;

    use super::*;

    fn record(key: &str) -> DeadRecord {
        DeadRecord {
            key: key.to_owned(),
            tenant: "t".to_owned(),
            stream: "s".to_owned(),
            received_us: 1,
            given_up_us: 2,
            attempts: 3,
            reason: "500".to_owned(),
            correlation_id: String::new(),
            row: Map::new(),
            event: Value::Null,
            cells: String::new(),
            place: String::new(),
            number: 0,
        }
    }

    #[test]
    fn dead_records_outlive_the_process_are_bounded_and_can_be_removed() {
        let disk = Arc::new(MemDisk::new());
        disk.create_dir_all(Path::new("/c")).unwrap();
        let open = || DeadRecords::open(disk.clone(), Path::new("/c"), "a", 800).unwrap();
        let dead = open();
        let mut added = 0;
        while dead.add(&[record(&format!("k{added}"))]).unwrap() {
            added += 1;
        }
        assert!((2..10).contains(&added), "{added}");
        let again = open();
        assert_eq!((again.len(), again.list().unwrap().len()), (added, usize::try_from(added).unwrap()));
        assert_eq!(again.remove(|record| record.key == "k0").unwrap(), 1);
        assert!(again.add(&[record("kx")]).unwrap(), "room was made");
        assert_eq!(open().list().unwrap().first().unwrap().key, "k1");
    }

    #[test]
    fn a_torn_last_line_is_dropped() {
        let disk = Arc::new(MemDisk::new());
        disk.create_dir_all(Path::new("/c")).unwrap();
        let dead = DeadRecords::open(disk.clone(), Path::new("/c"), "a", 9999).unwrap();
        dead.add(&[record("k0")]).unwrap();
        let file = disk.open(Path::new("/c/a.dead.jsonl")).unwrap();
        file.write_all_at(b"{\"key\":\"to", disk.len(Path::new("/c/a.dead.jsonl")).unwrap()).unwrap();
        let dead = DeadRecords::open(disk, Path::new("/c"), "a", 9999).unwrap();
        assert!(dead.add(&[record("k1")]).unwrap());
        let keys: Vec<String> = dead.list().unwrap().into_iter().map(|record| record.key).collect();
        assert_eq!(keys, ["k0", "k1"]);
    }
}
