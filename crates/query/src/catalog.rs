//! The tables that one query may see.
//!
//! Promises: a tenant sees the namespace of its own name and nothing else, and this is decided here, not in the
//! query's text; every table is resolved once for each query, so that a table joined with itself is the same rows
//! twice. Refuses: to register or drop anything.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::{Result as EngineResult, TableReference};
use datafusion::logical_expr::TableType;
use lakegate_memtable::Memtables;
use lakegate_model::{TableName, TenantId};
use tokio::sync::Mutex;

use crate::engine::{QueryRequest, Readable};
use crate::error::QueryError;
use crate::lake::{BesideName, LakeTables, TablesBeside};
use crate::table::{SnapshotProvider, TableSnapshot};

/// The only catalog.
pub(crate) const CATALOG: &str = "lakegate";
/// What clients of Trino call it.
const CATALOG_ALIAS: &str = "iceberg";
/// Holds the files that a query names by their places.
const PLACES: &str = "_places";
/// The namespace of names without one, where nobody is named.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";
/// The engine's own schema of names.
const INFORMATION_SCHEMA: &str = "information_schema";
/// Tables of [`INFORMATION_SCHEMA`] that tell about the server and not about tables.
const HIDDEN: [&str; 1] = ["df_settings"];
/// How like a name must be to be proposed, from 0 to 1.
const NEAR: f64 = 0.55;

/// What one asker may see, and the tables that its query has resolved.
pub(crate) struct Visible {
    memtables: Arc<Memtables>,
    lake: Arc<dyn LakeTables>,
    tenant: Option<TenantId>,
    readable: Option<Readable>,
    beside: Option<Arc<dyn TablesBeside>>,
    namespace: Option<String>,
    resolved: Mutex<HashMap<TableName, Option<Arc<TableSnapshot>>>>,
}

impl fmt::Debug for Visible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visible").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl Visible {
    pub(crate) fn new(memtables: Arc<Memtables>, lake: Arc<dyn LakeTables>, request: &QueryRequest) -> Self {
        let QueryRequest { tenant, readable, beside, namespace, .. } = request.clone();
        Self { memtables, lake, tenant, readable, beside, namespace, resolved: Mutex::default() }
    }

    /// The namespace of names that have none.
    pub(crate) fn default_namespace(&self) -> &str {
        let own = || self.tenant.as_ref().map_or(DEFAULT_NAMESPACE, TenantId::as_str);
        self.namespace.as_deref().unwrap_or_else(own)
    }

    fn may_see(&self, name: &TableName) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| tenant.as_str() == name.namespace)
            && self.readable.as_ref().is_none_or(|readable| readable.may(name))
    }

    /// A table that the query names, or one that is listed.
    async fn resolved(&self, name: &TableName) -> Result<Option<Arc<TableSnapshot>>, QueryError> {
        if name.namespace == PLACES {
            return Ok(self.resolved.lock().await.get(name).cloned().flatten());
        }
        self.table(name).await
    }

    async fn table(&self, name: &TableName) -> Result<Option<Arc<TableSnapshot>>, QueryError> {
        if !self.may_see(name) {
            return Ok(None);
        }
        let mut resolved = self.resolved.lock().await;
        if let Some(known) = resolved.get(name) {
            return Ok(known.clone());
        }
        let beside = match &self.beside {
            Some(beside) => beside.view(BesideName::Table(name)).await?,
            None => None,
        };
        let taken = match beside {
            Some(view) => Some(TableSnapshot::of_view(name, view)),
            None => TableSnapshot::take(name, &self.memtables, self.lake.as_ref()).await?,
        };
        let taken = taken.map(Arc::new);
        resolved.insert(name.clone(), taken.clone());
        Ok(taken)
    }

    /// The file at a place.
    async fn place(&self, text: &str) -> Result<Option<TableName>, QueryError> {
        let Some(beside) = self.beside.as_ref().filter(|_| is_place(text)) else { return Ok(None) };
        let name = TableName { namespace: PLACES.to_owned(), name: text.to_owned() };
        let mut resolved = self.resolved.lock().await;
        if !resolved.contains_key(&name) {
            let view = beside.view(BesideName::Place(text)).await?;
            resolved.insert(name.clone(), view.map(|view| Arc::new(TableSnapshot::of_view(&name, view))));
        }
        Ok(resolved.get(&name).is_some_and(Option::is_some).then_some(name))
    }

    async fn names(&self) -> Result<BTreeSet<TableName>, QueryError> {
        let mut names: BTreeSet<TableName> = self.memtables.list().iter().map(|m| m.table().clone()).collect();
        names.extend(self.lake.list().await?);
        names.extend(self.beside.iter().flat_map(|beside| beside.names()));
        names.retain(|name| self.may_see(name));
        Ok(names)
    }

    /// Resolves all tables that a query names, and gives the catalog that holds them. A name that `is_function` knows
    /// may be a function in the place of a table, and need not be a table.
    ///
    /// # Errors
    /// A name is unknown, ambiguous or hidden, or the lake cannot be reached.
    pub(crate) async fn catalog_for(
        self: &Arc<Self>,
        references: &[TableReference],
        is_function: impl Fn(&str) -> bool,
    ) -> Result<Arc<Catalogs>, QueryError> {
        let mut schemas: BTreeMap<String, BTreeMap<String, TableName>> = BTreeMap::new();
        let listed = references.iter().any(|r| r.schema() == Some(INFORMATION_SCHEMA));
        if listed {
            for name in self.names().await? {
                schemas.entry(name.namespace.clone()).or_default().insert(name.name.clone(), name);
            }
        }
        for reference in references {
            if reference.catalog().is_some_and(|catalog| catalog != CATALOG && catalog != CATALOG_ALIAS) {
                return Err(self.unknown(reference).await);
            }
            if reference.schema() == Some(INFORMATION_SCHEMA) {
                continue;
            }
            let name = match self.resolve(reference).await {
                Ok(name) => name,
                Err(QueryError::UnknownTable { .. })
                    if reference.schema().is_none() && is_function(reference.table()) =>
                {
                    continue;
                }
                Err(e) => return Err(e),
            };
            let schema = reference.schema().unwrap_or(self.default_namespace()).to_owned();
            schemas.entry(schema).or_default().insert(reference.table().to_owned(), name);
        }
        let schema = |tables| Arc::new(Namespace { visible: self.clone(), tables });
        let schemas = schemas.into_iter().map(|(name, tables)| (name, schema(tables))).collect();
        Ok(Arc::new(Catalogs(Arc::new(Namespaces(schemas)))))
    }

    async fn resolve(&self, reference: &TableReference) -> Result<TableName, QueryError> {
        if reference.schema().is_none()
            && let Some(name) = self.place(reference.table()).await?
        {
            return Ok(name);
        }
        let namespace = reference.schema().unwrap_or(self.default_namespace());
        if let Ok(name) = TableName::new(namespace, reference.table())
            && self.table(&name).await?.is_some()
        {
            return Ok(name);
        }
        if reference.schema().is_some() || self.tenant.is_some() || self.namespace.is_some() {
            return Err(self.unknown(reference).await);
        }
        let mut named: Vec<TableName> =
            self.names().await?.into_iter().filter(|n| n.name == reference.table()).collect();
        match (named.pop(), named.is_empty()) {
            (Some(only), true) => match self.table(&only).await? {
                Some(_) => Ok(only),
                None => Err(self.unknown(reference).await),
            },
            (Some(last), false) => {
                named.push(last);
                let names: Vec<String> = named.iter().take(5).map(ToString::to_string).collect();
                let table = reference.table();
                Err(QueryError::Plan(format!("{table} is in several namespaces; write one of {}", names.join(", "))))
            }
            (None, _) => Err(self.unknown(reference).await),
        }
    }

    /// The same text whether the table does not exist or may not be seen.
    async fn unknown(&self, reference: &TableReference) -> QueryError {
        let asked = reference.to_string();
        let names = match self.names().await {
            Ok(names) => names,
            Err(e) => return e,
        };
        let likeness = |name: &TableName| {
            let whole = strsim::normalized_damerau_levenshtein(&asked, &name.to_string());
            whole.max(strsim::normalized_damerau_levenshtein(reference.table(), &name.name))
        };
        let mut near: Vec<(f64, String)> = names
            .iter()
            .map(|n| (likeness(n), n.to_string()))
            .filter(|(l, name)| *l >= NEAR && *name != asked)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        let table = asked.chars().take(200).collect();
        QueryError::UnknownTable { table, near: near.into_iter().take(3).map(|(_, name)| name).collect() }
    }
}

/// Whether a quoted name in the place of a table is where a file lies.
fn is_place(text: &str) -> bool {
    text.starts_with('/') || text.contains("://")
}

/// Refuses tables that tell about the server.
pub(crate) fn check_references(references: &[TableReference], is_show: bool) -> Result<(), QueryError> {
    let hidden = |r: &&TableReference| r.schema() == Some(INFORMATION_SCHEMA) && HIDDEN.contains(&r.table());
    match references.iter().find(hidden) {
        Some(found) if !is_show => Err(QueryError::NotAllowed(format!(
            "{found} tells about the server; information_schema has tables, columns, schemata, views, routines and parameters"
        ))),
        _ => Ok(()),
    }
}

/// The list of the one catalog, for one query.
#[derive(Debug)]
pub(crate) struct Catalogs(Arc<Namespaces>);

impl CatalogProviderList for Catalogs {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG || name == CATALOG_ALIAS).then(|| self.0.clone() as Arc<dyn CatalogProvider>)
    }
}

#[derive(Debug)]
struct Namespaces(BTreeMap<String, Arc<Namespace>>);

impl CatalogProvider for Namespaces {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema_names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        self.0.get(name).map(|schema| schema.clone() as Arc<dyn SchemaProvider>)
    }
}

/// Tables by the names that the query uses for them. Those that are only listed are resolved when they are looked at.
#[derive(Debug)]
struct Namespace {
    visible: Arc<Visible>,
    tables: BTreeMap<String, TableName>,
}

#[async_trait]
impl SchemaProvider for Namespace {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn table_names(&self) -> Vec<String> {
        self.tables.keys().cloned().collect()
    }

    async fn table(&self, name: &str) -> EngineResult<Option<Arc<dyn TableProvider>>> {
        let Some(name) = self.tables.get(name) else { return Ok(None) };
        let found = self.visible.resolved(name).await?;
        Ok(found.map(|snapshot| Arc::new(SnapshotProvider(snapshot)) as Arc<dyn TableProvider>))
    }

    async fn table_type(&self, name: &str) -> EngineResult<Option<TableType>> {
        Ok(self.tables.contains_key(name).then_some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.contains_key(name)
    }
}
