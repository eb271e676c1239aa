//! Tables that grow by what records bring: new columns, wider ones.
//!
//! What a table has grown by is kept beside the contracts, one JSON file for each table, durable before the first frame
//! whose rows need it. A stream's contract is what the configuration declares, with that: so it is the same after a
//! restart, and after a change of the configuration. The table in the lake gets the columns in the commit that brings
//! the first rows of the new version.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use lakegate_env::{Clock, Disk};
use lakegate_lake::{Lake, LakeTable};
use lakegate_model::{Column, ColumnSource, ColumnType, Contract, ContractVersion, Growth, StreamKey, TableName};
use parking_lot::Mutex;

use crate::contracts::ContractStoreError;
use crate::shape::{Wanted, column_name, unite, wider_of};
use crate::streams::{Stream, Streams};

/// The most versions that are kept of a table; the first and the newest ones.
const VERSIONS_MAX: usize = 1000;
/// The most wishes of one table that are remembered as not to be granted; past it, nothing more is looked at.
const DENIED_MAX: usize = 10_000;
/// How long a record waits to hear whether the lake's table takes a column.
const LAKE_WAIT: Duration = Duration::from_secs(2);

/// What every table has grown by.
pub(crate) struct GrowthStore {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    dir: PathBuf,
    known: Mutex<HashMap<TableName, Growth>>,
    /// Wishes that were not granted: they are not looked at again.
    denied: Mutex<HashMap<TableName, HashSet<Wish>>>,
    /// One file is written at a time.
    writing: Mutex<()>,
    /// One table grows at a time.
    turn: tokio::sync::Mutex<()>,
}

/// A wish without its details.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Wish {
    Column(Arc<[String]>),
    Wider(String, ColumnType),
}

impl GrowthStore {
    pub(crate) fn open(disk: Arc<dyn Disk>, clock: Arc<dyn Clock>, dir: PathBuf) -> Result<Self, ContractStoreError> {
        disk.create_dir_all(&dir).map_err(|source| ContractStoreError::Write { path: dir.clone(), source })?;
        let (known, denied, writing) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self { disk, clock, dir, known, denied, writing, turn: tokio::sync::Mutex::new(()) })
    }

    fn path(&self, table: &TableName) -> PathBuf {
        self.dir.join(format!("{table}.json"))
    }

    /// What the table has grown by.
    pub(crate) fn of(&self, table: &TableName) -> Result<Growth, ContractStoreError> {
        let mut known = self.known.lock();
        if let Some(growth) = known.get(table) {
            return Ok(growth.clone());
        }
        let path = self.path(table);
        let growth = match self.disk.read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|error| ContractStoreError::Growth { path, reason: error.to_string() })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Growth::default(),
            Err(source) => return Err(ContractStoreError::Growth { path, reason: source.to_string() }),
        };
        known.insert(table.clone(), growth.clone());
        Ok(growth)
    }

    /// Keeps what the table has grown by; durable when this returns.
    fn keep(&self, table: &TableName, growth: Growth) -> Result<(), ContractStoreError> {
        let path = self.path(table);
        let json = serde_json::to_vec_pretty(&growth).unwrap_or_default();
        self.disk.write_atomic(&path, &json).map_err(|source| ContractStoreError::Write { path, source })?;
        self.known.lock().insert(table.clone(), growth);
        Ok(())
    }

    /// Notes a version that the configuration made, for people. It is only told when it cannot be kept.
    pub(crate) fn note_version(&self, table: &TableName, stream: &StreamKey, fingerprint: u64, changes: Vec<String>) {
        let _writing = self.writing.lock();
        let Ok(mut growth) = self.of(table) else { return };
        if !self.add_version(&mut growth, stream, fingerprint, changes) {
            return;
        }
        if let Err(error) = self.keep(table, growth) {
            tracing::warn!(%table, %error, "the history of a table's contract lacks a version");
        }
    }

    fn add_version(&self, growth: &mut Growth, stream: &StreamKey, fingerprint: u64, changes: Vec<String>) -> bool {
        let (fingerprint, stream) = (format!("{fingerprint:016x}"), stream.to_string());
        let newest = growth.versions.iter().rev().find(|version| version.stream == stream);
        if newest.is_some_and(|newest| newest.fingerprint == fingerprint) {
            return false;
        }
        if growth.versions.len() >= VERSIONS_MAX {
            growth.versions.remove(1);
        }
        let since_us = self.clock.wall_us();
        growth.versions.push(ContractVersion { fingerprint, stream, since_us, changes });
        true
    }

    fn deny(&self, table: &TableName, wish: Wish) {
        let mut denied = self.denied.lock();
        let denied = denied.entry(table.clone()).or_default();
        if denied.len() < DENIED_MAX {
            denied.insert(wish);
        }
    }

    /// Whether a wish is worth asking for.
    fn is_open(&self, stream: &Stream, wanted: &Wanted) -> bool {
        let denied = self.denied.lock();
        let Some(denied) = denied.get(&stream.unit.table) else { return true };
        denied.len() < DENIED_MAX
            && wish_of(&stream.shaper.contract, wanted).is_some_and(|wish| !denied.contains(&wish))
    }
}

fn wish_of(contract: &Contract, wanted: &Wanted) -> Option<Wish> {
    match wanted {
        Wanted::Column { path, .. } => Some(Wish::Column(path.clone())),
        Wanted::Wider { column, column_type } => {
            contract.columns.get(*column).map(|column| Wish::Wider(column.name.clone(), *column_type))
        }
    }
}

/// What the records of one request want of one stream.
#[derive(Debug, Default)]
pub(crate) struct Wishes(Vec<Wanted>);

impl Wishes {
    /// Adds what one record wants, unless it was denied before. Values of one member that differ want one column.
    pub(crate) fn add(&mut self, wanted: Vec<Wanted>, stream: &Stream, growth: &GrowthStore) {
        for wanted in wanted {
            let known = self.0.iter_mut().find_map(|own| match (own, &wanted) {
                (Wanted::Column { path, column_type }, Wanted::Column { path: other, column_type: with })
                    if path == other =>
                {
                    *column_type = unite(*column_type, *with);
                    Some(())
                }
                (Wanted::Wider { column, column_type }, Wanted::Wider { column: other, column_type: with })
                    if column == other =>
                {
                    *column_type = wider_of(*column_type, *with).unwrap_or(*column_type);
                    Some(())
                }
                _ => None,
            });
            if known.is_none() && self.0.len() < DENIED_MAX && growth.is_open(stream, &wanted) {
                self.0.push(wanted);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Streams {
    /// Lets the stream's table grow by what can be granted. When this returns, the stream that is found by its name has
    /// the new version, if there is one, and that is durable.
    ///
    /// # Errors
    /// The new version could not be kept; nothing has changed.
    pub(crate) async fn grow(&self, stream: &Stream, wishes: Wishes, lake: &Lake) -> Result<(), ContractStoreError> {
        let _turn = self.growth.turn.lock().await;
        let table = &stream.unit.table;
        let mut growth = self.growth.of(table)?;
        // Others may have let it grow meanwhile.
        let current = stream.shaper.contract.grown(&growth);
        let lake_table = find_in_lake(lake, table).await;
        let mut changes = Vec::new();
        for wanted in wishes.0 {
            let before = growth.clone();
            let mut change = match &wanted {
                Wanted::Column { path, column_type } => add_column(&current, &mut growth, path, *column_type),
                Wanted::Wider { column, column_type } => widen(&current, &mut growth, *column, *column_type),
            };
            let contract = stream.shaper.contract.grown(&growth);
            if let Some(Err(error)) = lake_table.as_ref().map(|lake_table| lake_table.takes(&contract)) {
                tracing::warn!(%table, %error, "the table does not take what a record brings as a column");
                (growth, change) = (before, Change::Denied);
            }
            match (change, wish_of(&current, &wanted)) {
                (Change::Made(text), _) => changes.push(text),
                (Change::Denied, Some(wish)) => self.growth.deny(table, wish),
                _ => {}
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        let versions = self.versions_of(stream, &mut growth, &changes)?;
        self.growth.keep(table, growth)?;
        self.adopt(stream, versions)?;
        tracing::info!(%table, changes = changes.join(", "), "the table grows by what its records bring");
        metrics::counter!("lakegate_columns_added_total").increment(changes.len() as u64);
        Ok(())
    }

    /// The new version of each stream of the table that grows.
    fn versions_of(
        &self,
        stream: &Stream,
        growth: &mut Growth,
        changes: &[String],
    ) -> Result<Vec<Arc<Stream>>, ContractStoreError> {
        let of_table: Vec<_> = self.all().into_iter().filter(|other| Arc::ptr_eq(&other.unit, &stream.unit)).collect();
        let mut versions = Vec::with_capacity(of_table.len());
        for other in of_table {
            let version = other.at_version(self.keep(&other.shaper.contract.grown(growth))?);
            self.growth.add_version(growth, &version.key, version.fingerprint, changes.to_vec());
            versions.push(Arc::new(version));
        }
        Ok(versions)
    }

    /// Puts new versions in the place of the old ones: the table first, so that no row comes before its column.
    fn adopt(&self, stream: &Stream, versions: Vec<Arc<Stream>>) -> Result<(), ContractStoreError> {
        let first = versions.iter().find(|version| version.key == stream.key).or(versions.first());
        let Some(first) = first else { return Ok(()) };
        stream.unit.set_contract(first.fingerprint, &first.shaper)?;
        let mut known = self.known.write();
        for version in versions {
            let place =
                known.iter_mut().find(|(key, _)| key.0 == version.key && *key.1 == *version.shaper.contract.part);
            if let Some((_, place)) = place {
                *place = version;
            }
        }
        Ok(())
    }
}

enum Change {
    Made(String),
    /// It is so already.
    None,
    Denied,
}

fn add_column(current: &Contract, growth: &mut Growth, path: &[String], column_type: ColumnType) -> Change {
    let source = ColumnSource::Path(path.to_vec());
    if current.columns.iter().chain(&growth.columns).any(|column| column.source == source) {
        return Change::None;
    }
    let lifted = current.objects.iter().find(|rule| rule.lifted && path.starts_with(&rule.path));
    let shown = lifted.map_or(path, |rule| path.get(rule.path.len()..).unwrap_or_default());
    let columns = current.grown(growth).columns;
    let most = usize::try_from(current.evolution.columns_max).unwrap_or(usize::MAX);
    let name = column_name(shown).filter(|name| !columns.iter().any(|c| c.name.eq_ignore_ascii_case(name)));
    let Some(name) = name.filter(|_| columns.len() < most) else { return Change::Denied };
    let text = format!("+{name} {}", column_type.name());
    growth.columns.push(Column { name, column_type, source, required: false });
    Change::Made(text)
}

fn widen(current: &Contract, growth: &mut Growth, column: usize, column_type: ColumnType) -> Change {
    let Some(column) = current.columns.get(column) else { return Change::Denied };
    let now = growth.types.get(&column.name).copied().unwrap_or(column.column_type);
    let Some(wider) = wider_of(now, column_type) else { return Change::Denied };
    if wider == now {
        return Change::None;
    }
    growth.types.insert(column.name.clone(), wider);
    Change::Made(format!("~{} {}", column.name, wider.name()))
}

/// The table in the lake. One that is not found in time refuses nothing: the commit will say.
async fn find_in_lake(lake: &Lake, table: &TableName) -> Option<Arc<LakeTable>> {
    tokio::time::timeout(LAKE_WAIT, lake.find_table(table)).await.ok()?.ok()?
}

/// What the tables of a data folder have grown by, and the versions of their contracts.
///
/// # Errors
/// A file cannot be read.
pub fn read_growth(
    disk: &dyn Disk,
    data_dir: &std::path::Path,
) -> Result<BTreeMap<String, Growth>, ContractStoreError> {
    let dir = data_dir.join(GROWTH_DIR);
    let names = match disk.list(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other.map_err(|error| ContractStoreError::Growth { path: dir.clone(), reason: error.to_string() })?,
    };
    let mut found = BTreeMap::new();
    for name in names {
        let Some(table) = name.strip_suffix(".json") else { continue };
        let path = dir.join(&name);
        let wrong = |reason: String| ContractStoreError::Growth { path: path.clone(), reason };
        let json = disk.read(&path).map_err(|error| wrong(error.to_string()))?;
        found.insert(table.to_owned(), serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?);
    }
    Ok(found)
}

/// Where growth is kept, within the data folder.
pub(crate) const GROWTH_DIR: &str = "contracts/tables";
