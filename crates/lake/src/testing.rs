//! Catalogs and a clock for tests and simulations: deterministic, without threads, without real time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use iceberg::{NamespaceIdent, TableCreation, TableIdent, TableRequirement, TableUpdate};
use lakegate_env::{ManualClock, Random};
use parking_lot::Mutex;

use crate::catalog::{
    Catalog, CatalogError, LoadedTable, NamespaceChange, apply_commit, create_metadata, encode_metadata,
    expired_locations, next_location, read_metadata,
};
use crate::options::Pause;
use crate::warehouse::Warehouse;

/// A pause that moves a manual clock on and comes back at once.
#[derive(Debug, Clone)]
pub struct ClockPause(Arc<ManualClock>);

impl ClockPause {
    /// A pause on that clock.
    #[must_use]
    pub fn new(clock: Arc<ManualClock>) -> Self {
        Self(clock)
    }
}

impl Pause for ClockPause {
    fn pause(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.0.advance_us(i64::try_from(time.as_micros()).unwrap_or(i64::MAX));
        Box::pin(std::future::ready(()))
    }
}

/// A catalog in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryCatalog {
    warehouse: Warehouse,
    random: Arc<dyn Random>,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Default)]
struct Inside {
    namespaces: BTreeMap<NamespaceIdent, HashMap<String, String>>,
    tables: BTreeMap<TableIdent, LoadedTable>,
}

impl std::fmt::Debug for MemoryCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryCatalog").field("warehouse", &self.warehouse.root()).finish_non_exhaustive()
    }
}

impl MemoryCatalog {
    /// An empty catalog over a warehouse.
    #[must_use]
    pub fn new(warehouse: Warehouse, random: Arc<dyn Random>) -> Self {
        Self { warehouse, random, inside: Arc::default() }
    }

    /// Every table that is there.
    #[must_use]
    pub fn all_tables(&self) -> Vec<TableIdent> {
        self.inside.lock().tables.keys().cloned().collect()
    }
}

#[async_trait]
impl Catalog for MemoryCatalog {
    async fn list_namespaces(&self, parent: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>, CatalogError> {
        let inside = self.inside.lock();
        Ok(inside.namespaces.keys().filter(|n| n.parent().as_ref() == parent).cloned().collect())
    }

    async fn create_namespace(
        &self,
        namespace: &NamespaceIdent,
        properties: HashMap<String, String>,
    ) -> Result<(), CatalogError> {
        let mut inside = self.inside.lock();
        if inside.namespaces.contains_key(namespace) {
            return Err(CatalogError::AlreadyExists(format!("namespace {namespace}")));
        }
        inside.namespaces.insert(namespace.clone(), properties);
        Ok(())
    }

    async fn load_namespace(&self, namespace: &NamespaceIdent) -> Result<HashMap<String, String>, CatalogError> {
        let missing = || CatalogError::NotFound(format!("namespace {namespace}"));
        self.inside.lock().namespaces.get(namespace).cloned().ok_or_else(missing)
    }

    async fn update_namespace(
        &self,
        namespace: &NamespaceIdent,
        removals: Vec<String>,
        updates: HashMap<String, String>,
    ) -> Result<NamespaceChange, CatalogError> {
        let mut inside = self.inside.lock();
        let properties = inside
            .namespaces
            .get_mut(namespace)
            .ok_or_else(|| CatalogError::NotFound(format!("namespace {namespace}")))?;
        let (removed, missing) = removals.into_iter().partition(|key| properties.remove(key).is_some());
        let updated = updates.keys().cloned().collect();
        properties.extend(updates);
        Ok(NamespaceChange { updated, removed, missing })
    }

    async fn drop_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        let mut inside = self.inside.lock();
        if inside.tables.keys().any(|t| t.namespace() == namespace) {
            return Err(CatalogError::NotEmpty(format!("namespace {namespace}")));
        }
        let gone = inside.namespaces.remove(namespace);
        gone.map(|_| ()).ok_or_else(|| CatalogError::NotFound(format!("namespace {namespace}")))
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<TableIdent>, CatalogError> {
        let inside = self.inside.lock();
        if !inside.namespaces.contains_key(namespace) {
            return Err(CatalogError::NotFound(format!("namespace {namespace}")));
        }
        Ok(inside.tables.keys().filter(|t| t.namespace() == namespace).cloned().collect())
    }

    async fn create_table(
        &self,
        namespace: &NamespaceIdent,
        mut creation: TableCreation,
    ) -> Result<LoadedTable, CatalogError> {
        let table = TableIdent::new(namespace.clone(), creation.name.clone());
        if !self.inside.lock().namespaces.contains_key(namespace) {
            return Err(CatalogError::NotFound(format!("namespace {namespace}")));
        }
        let id = uuid::Builder::from_random_bytes(self.random.next_u128().to_be_bytes()).into_uuid();
        let location = format!("{}/{}/{}-{}", self.warehouse.root(), namespace.join("/"), table.name(), id.simple());
        creation.location.get_or_insert(location);
        let metadata = Arc::new(create_metadata(creation, id)?);
        let metadata_location = next_location(&metadata, None, self.random.as_ref());
        self.warehouse.save(vec![(metadata_location.clone(), encode_metadata(&metadata)?)]).await?;
        let loaded = LoadedTable { metadata_location, metadata };
        let mut inside = self.inside.lock();
        if inside.tables.contains_key(&table) {
            return Err(CatalogError::AlreadyExists(format!("table {table}")));
        }
        inside.tables.insert(table, loaded.clone());
        Ok(loaded)
    }

    async fn load_table(&self, table: &TableIdent) -> Result<LoadedTable, CatalogError> {
        self.inside.lock().tables.get(table).cloned().ok_or_else(|| CatalogError::NotFound(format!("table {table}")))
    }

    async fn commit_table(
        &self,
        table: &TableIdent,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<LoadedTable, CatalogError> {
        loop {
            let base = self.load_table(table).await?;
            let (metadata, logs) =
                apply_commit(&base.metadata, &base.metadata_location, &requirements, updates.clone())?;
            let metadata_location = next_location(&metadata, Some(&base.metadata_location), self.random.as_ref());
            self.warehouse.save(vec![(metadata_location.clone(), encode_metadata(&metadata)?)]).await?;
            let expired = expired_locations(&metadata, logs);
            let next = LoadedTable { metadata_location, metadata: Arc::new(metadata) };
            let swapped = {
                let mut inside = self.inside.lock();
                match inside.tables.get_mut(table) {
                    Some(now) if now.metadata_location == base.metadata_location => {
                        *now = next.clone();
                        true
                    }
                    _ => false,
                }
            };
            if swapped {
                self.warehouse.remove(expired).await?;
                return Ok(next);
            }
        }
    }

    async fn drop_table(&self, table: &TableIdent, _purge: bool) -> Result<(), CatalogError> {
        let gone = self.inside.lock().tables.remove(table);
        gone.map(|_| ()).ok_or_else(|| CatalogError::NotFound(format!("table {table}")))
    }

    async fn rename_table(&self, from: &TableIdent, to: &TableIdent) -> Result<(), CatalogError> {
        let mut inside = self.inside.lock();
        if inside.tables.contains_key(to) {
            return Err(CatalogError::AlreadyExists(format!("table {to}")));
        }
        let moved = inside.tables.remove(from).ok_or_else(|| CatalogError::NotFound(format!("table {from}")))?;
        inside.tables.insert(to.clone(), moved);
        Ok(())
    }

    async fn register_table(
        &self,
        table: &TableIdent,
        metadata_location: &str,
        overwrite: bool,
    ) -> Result<LoadedTable, CatalogError> {
        let metadata = read_metadata(&self.warehouse, metadata_location).await?;
        let loaded = LoadedTable { metadata_location: metadata_location.to_owned(), metadata };
        let mut inside = self.inside.lock();
        if inside.tables.contains_key(table) && !overwrite {
            return Err(CatalogError::AlreadyExists(format!("table {table}")));
        }
        inside.tables.insert(table.clone(), loaded.clone());
        Ok(loaded)
    }
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Done and answered.
    Pass,
    /// Done, and the connection breaks before the answer (or a gateway answers 500, 502, 503 or 504).
    DoneThenLost,
    /// Not done, and the answer is lost all the same.
    LostBefore,
    /// Not done yet, answered as lost; done when [`FaultyCatalog::deliver_late`] is called, if it still can be.
    Late,
    /// Done, then a proxy repeats it, and the answer to the second is given: a conflict.
    DoneThenConflict,
    /// Not done: another commit came first.
    Conflict,
    /// Not done: away, over its limit, or not to be reached.
    Away,
}

/// A catalog that fails as it is told. Commits take their fate from one queue, reads from another; an empty queue passes.
#[derive(Clone)]
pub struct FaultyCatalog {
    inner: Arc<dyn Catalog>,
    script: Arc<Mutex<Script>>,
}

type LateCommit = (TableIdent, Vec<TableRequirement>, Vec<TableUpdate>);

#[derive(Default)]
struct Script {
    commits: VecDeque<Fault>,
    reads: VecDeque<Fault>,
    away: bool,
    late: Vec<LateCommit>,
    commit_calls: u64,
    read_calls: u64,
}

impl std::fmt::Debug for FaultyCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultyCatalog").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl FaultyCatalog {
    /// A catalog that passes everything on until told otherwise.
    #[must_use]
    pub fn new(inner: Arc<dyn Catalog>) -> Self {
        Self { inner, script: Arc::default() }
    }

    /// The fates of the next commits.
    pub fn script_commits(&self, faults: impl IntoIterator<Item = Fault>) {
        self.script.lock().commits.extend(faults);
    }

    /// The fates of the next loads of tables.
    pub fn script_reads(&self, faults: impl IntoIterator<Item = Fault>) {
        self.script.lock().reads.extend(faults);
    }

    /// While away, every call finds nobody.
    pub fn set_away(&self, away: bool) {
        self.script.lock().away = away;
    }

    /// How many commits were asked for.
    #[must_use]
    pub fn commit_calls(&self) -> u64 {
        self.script.lock().commit_calls
    }

    /// How many loads of tables were asked for.
    #[must_use]
    pub fn read_calls(&self) -> u64 {
        self.script.lock().read_calls
    }

    /// Carries out the commits that were held back; gives what became of each.
    pub async fn deliver_late(&self) -> Vec<Result<(), CatalogError>> {
        let late = std::mem::take(&mut self.script.lock().late);
        let mut outcomes = Vec::with_capacity(late.len());
        for (table, requirements, updates) in late {
            outcomes.push(self.inner.commit_table(&table, requirements, updates).await.map(|_| ()));
        }
        outcomes
    }

    fn here(&self) -> Result<(), CatalogError> {
        if self.script.lock().away { Err(CatalogError::Unavailable("nobody there".to_owned())) } else { Ok(()) }
    }
}

#[async_trait]
impl Catalog for FaultyCatalog {
    async fn list_namespaces(&self, parent: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>, CatalogError> {
        self.here()?;
        self.inner.list_namespaces(parent).await
    }

    async fn create_namespace(
        &self,
        namespace: &NamespaceIdent,
        properties: HashMap<String, String>,
    ) -> Result<(), CatalogError> {
        self.here()?;
        self.inner.create_namespace(namespace, properties).await
    }

    async fn load_namespace(&self, namespace: &NamespaceIdent) -> Result<HashMap<String, String>, CatalogError> {
        self.here()?;
        self.inner.load_namespace(namespace).await
    }

    async fn update_namespace(
        &self,
        namespace: &NamespaceIdent,
        removals: Vec<String>,
        updates: HashMap<String, String>,
    ) -> Result<NamespaceChange, CatalogError> {
        self.here()?;
        self.inner.update_namespace(namespace, removals, updates).await
    }

    async fn drop_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        self.here()?;
        self.inner.drop_namespace(namespace).await
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<TableIdent>, CatalogError> {
        self.here()?;
        self.inner.list_tables(namespace).await
    }

    async fn create_table(
        &self,
        namespace: &NamespaceIdent,
        creation: TableCreation,
    ) -> Result<LoadedTable, CatalogError> {
        self.here()?;
        self.inner.create_table(namespace, creation).await
    }

    async fn load_table(&self, table: &TableIdent) -> Result<LoadedTable, CatalogError> {
        let fault = {
            let mut script = self.script.lock();
            script.read_calls += 1;
            script.reads.pop_front().unwrap_or(Fault::Pass)
        };
        self.here()?;
        match fault {
            Fault::Pass => self.inner.load_table(table).await,
            _ => Err(CatalogError::Unavailable("the scripted load failed".to_owned())),
        }
    }

    async fn commit_table(
        &self,
        table: &TableIdent,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<LoadedTable, CatalogError> {
        let fault = {
            let mut script = self.script.lock();
            script.commit_calls += 1;
            script.commits.pop_front().unwrap_or(Fault::Pass)
        };
        self.here()?;
        let lost = || CatalogError::Unknown("the scripted answer was lost".to_owned());
        match fault {
            Fault::Pass => self.inner.commit_table(table, requirements, updates).await,
            Fault::DoneThenLost => {
                self.inner.commit_table(table, requirements, updates).await?;
                Err(lost())
            }
            Fault::DoneThenConflict => {
                self.inner.commit_table(table, requirements.clone(), updates.clone()).await?;
                self.inner.commit_table(table, requirements, updates).await
            }
            Fault::LostBefore => Err(lost()),
            Fault::Late => {
                self.script.lock().late.push((table.clone(), requirements, updates));
                Err(lost())
            }
            Fault::Conflict => Err(CatalogError::Conflict("the scripted rival came first".to_owned())),
            Fault::Away => Err(CatalogError::Unavailable("the scripted catalog is away".to_owned())),
        }
    }

    async fn drop_table(&self, table: &TableIdent, purge: bool) -> Result<(), CatalogError> {
        self.here()?;
        self.inner.drop_table(table, purge).await
    }

    async fn rename_table(&self, from: &TableIdent, to: &TableIdent) -> Result<(), CatalogError> {
        self.here()?;
        self.inner.rename_table(from, to).await
    }

    async fn register_table(
        &self,
        table: &TableIdent,
        metadata_location: &str,
        overwrite: bool,
    ) -> Result<LoadedTable, CatalogError> {
        self.here()?;
        self.inner.register_table(table, metadata_location, overwrite).await
    }
}
