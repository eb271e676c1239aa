//! The catalog in the binary: pointers to metadata files, in SQLite or PostgreSQL.
//!
//! The database has the two tables of Iceberg's own SQL catalogs (`iceberg_tables`, `iceberg_namespace_properties`), so
//! that other tools can open it. A commit writes the next metadata file, syncs it and its folder, and then moves the
//! pointer by a compare-and-swap `UPDATE`; SQLite runs in WAL mode with `synchronous = FULL`. Two commits at once, of
//! one process or of several: one moves the pointer, the other looks again and either still holds or gets a conflict.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use iceberg::spec::TableMetadata;
use iceberg::{NamespaceIdent, TableCreation, TableIdent, TableRequirement, TableUpdate};
use lakegate_env::Random;
use parking_lot::Mutex;

use super::{Catalog, CatalogError, LoadedTable, NamespaceChange};
use crate::warehouse::Warehouse;

mod create;
mod database;
mod namespaces;
mod purge;
mod tables;
#[cfg(test)]
mod tests;

use database::Database;
pub use database::DatabaseAddress;

/// The catalog's name in the database's rows.
const CATALOG: &str = "lakegate";
/// How many tables' metadata are kept in memory.
const CACHED_TABLES: usize = 512;
/// How often a commit whose pointer moved under it looks again, before it is a conflict.
const SWAP_ATTEMPTS: u32 = 16;

/// What an embedded catalog is opened with.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// Where its database is.
    pub database: DatabaseAddress,
    /// Where tables' files lie.
    pub warehouse: Warehouse,
    /// Where names come from.
    pub random: Arc<dyn Random>,
}

/// The catalog in the binary. Clones share it.
#[derive(Clone)]
pub struct EmbeddedCatalog {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    warehouse: Warehouse,
    random: Arc<dyn Random>,
    newest: Mutex<HashMap<TableIdent, (String, Arc<TableMetadata>)>>,
    turns: Mutex<HashMap<TableIdent, Arc<tokio::sync::Mutex<()>>>>,
}

impl std::fmt::Debug for EmbeddedCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedCatalog").field("warehouse", &self.shared.warehouse.root()).finish_non_exhaustive()
    }
}

impl EmbeddedCatalog {
    /// Opens the database, and makes its tables where they are missing.
    ///
    /// # Errors
    /// SQLite's file cannot be opened or is no SQLite database; PostgreSQL refuses. PostgreSQL that is away is waited for
    /// by what needs it.
    pub async fn open(options: EmbeddedOptions) -> Result<Self, CatalogError> {
        let EmbeddedOptions { database, warehouse, random } = options;
        let database = Database::open(database).await?;
        let shared = Shared { database, warehouse, random, newest: Mutex::default(), turns: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Where tables' files lie.
    #[must_use]
    pub fn warehouse(&self) -> &Warehouse {
        &self.shared.warehouse
    }

    /// Closes the database; what is open after it errs.
    pub async fn close(&self) {
        self.shared.database.close().await;
    }

    /// Builds a new table's metadata without making the table: the first half of a create that commits later.
    ///
    /// # Errors
    /// The namespace is missing, the name is taken, or the creation does not hold together.
    pub async fn stage_table(
        &self,
        namespace: &NamespaceIdent,
        creation: TableCreation,
    ) -> Result<LoadedTable, CatalogError> {
        self.stage(namespace, creation).await
    }

    /// Applies several tables' commits, all or none.
    ///
    /// # Errors
    /// As for one commit; nothing was changed unless the outcome is unknown.
    pub async fn commit_tables(&self, changes: Vec<TableChange>) -> Result<(), CatalogError> {
        self.commit_all(changes).await.map(|_| ())
    }

    /// The pointer as the database has it.
    async fn pointer(&self, table: &TableIdent) -> Result<Option<String>, CatalogError> {
        let key = key_of(table.namespace())?;
        let found = self.shared.database.rows(
            "SELECT metadata_location FROM iceberg_tables WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3",
            &[CATALOG, &key, table.name()],
        ).await;
        Ok(found?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    async fn load_if_there(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        let Some(metadata_location) = self.pointer(table).await? else {
            self.shared.newest.lock().remove(table);
            return Ok(None);
        };
        let known =
            self.shared.newest.lock().get(table).filter(|(l, _)| *l == metadata_location).map(|(_, m)| Arc::clone(m));
        let metadata = match known {
            Some(metadata) => metadata,
            None => read_or_reload(self, &metadata_location).await?,
        };
        self.remember(table, &metadata_location, &metadata);
        Ok(Some(LoadedTable { metadata_location, metadata }))
    }

    fn remember(&self, table: &TableIdent, location: &str, metadata: &Arc<TableMetadata>) {
        let mut newest = self.shared.newest.lock();
        if newest.len() >= CACHED_TABLES && !newest.contains_key(table) {
            newest.clear();
        }
        newest.insert(table.clone(), (location.to_owned(), Arc::clone(metadata)));
    }

    /// Commits of one table take turns: who waits would lose the race otherwise.
    fn turn(&self, table: &TableIdent) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.shared.turns.lock();
        if turns.len() > CACHED_TABLES {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        Arc::clone(turns.entry(table.clone()).or_default())
    }
}

/// One table's part of a commit of several.
#[derive(Debug, Clone)]
pub struct TableChange {
    /// Which table.
    pub table: TableIdent,
    /// What must hold.
    pub requirements: Vec<TableRequirement>,
    /// What is changed.
    pub updates: Vec<TableUpdate>,
}

async fn read_or_reload(catalog: &EmbeddedCatalog, location: &str) -> Result<Arc<TableMetadata>, CatalogError> {
    super::read_metadata(&catalog.shared.warehouse, location).await
}

/// A namespace as the database's rows name it: its levels with points between them.
fn key_of(namespace: &NamespaceIdent) -> Result<String, CatalogError> {
    if namespace.is_empty() || namespace.iter().any(|level| !is_plain_name(level)) {
        return Err(CatalogError::Rejected(format!(
            "{namespace} is not a namespace's name: each level needs 1 to 255 characters other than '.', '/' and control characters"
        )));
    }
    Ok(namespace.join("."))
}

/// Whether a name may become part of a path.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.chars().any(|c| c.is_control() || matches!(c, '.' | '/' | '\\' | '?' | '#' | '%'))
}

#[async_trait]
impl Catalog for EmbeddedCatalog {
    async fn list_namespaces(&self, parent: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>, CatalogError> {
        self.children(parent).await
    }

    async fn create_namespace(
        &self,
        namespace: &NamespaceIdent,
        properties: HashMap<String, String>,
    ) -> Result<(), CatalogError> {
        self.insert_namespace(namespace, properties).await
    }

    async fn load_namespace(&self, namespace: &NamespaceIdent) -> Result<HashMap<String, String>, CatalogError> {
        let mut properties = self.namespace_properties(namespace).await?;
        // Engines such as Trino choose a table's place by themselves only where the namespace tells its own.
        let location = || format!("{}/{}", self.warehouse().root(), namespace.join("/"));
        properties.entry("location".to_owned()).or_insert_with(location);
        Ok(properties)
    }

    async fn update_namespace(
        &self,
        namespace: &NamespaceIdent,
        removals: Vec<String>,
        updates: HashMap<String, String>,
    ) -> Result<NamespaceChange, CatalogError> {
        self.change_namespace(namespace, removals, updates).await
    }

    async fn drop_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        self.delete_namespace(namespace).await
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<TableIdent>, CatalogError> {
        self.tables_in(namespace).await
    }

    async fn create_table(
        &self,
        namespace: &NamespaceIdent,
        creation: TableCreation,
    ) -> Result<LoadedTable, CatalogError> {
        let table = TableIdent::new(namespace.clone(), creation.name.clone());
        let staged = self.stage(namespace, creation).await?;
        self.insert_table(&table, staged).await
    }

    async fn load_table(&self, table: &TableIdent) -> Result<LoadedTable, CatalogError> {
        self.load_if_there(table).await?.ok_or_else(|| CatalogError::NotFound(format!("table {table}")))
    }

    async fn commit_table(
        &self,
        table: &TableIdent,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<LoadedTable, CatalogError> {
        let change = TableChange { table: table.clone(), requirements, updates };
        let done = self.commit_all(vec![change]).await?;
        done.into_iter().next().ok_or_else(|| CatalogError::Unknown("the commit gave no table back".to_owned()))
    }

    async fn drop_table(&self, table: &TableIdent, purge: bool) -> Result<(), CatalogError> {
        self.delete_table(table, purge).await
    }

    async fn rename_table(&self, from: &TableIdent, to: &TableIdent) -> Result<(), CatalogError> {
        self.move_table(from, to).await
    }

    async fn register_table(
        &self,
        table: &TableIdent,
        metadata_location: &str,
        overwrite: bool,
    ) -> Result<LoadedTable, CatalogError> {
        self.take_in(table, metadata_location, overwrite).await
    }
}
