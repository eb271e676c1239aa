//! Catalogs: who says which metadata file is a table's newest.
//!
//! One seam, four sides: [`EmbeddedCatalog`] on SQLite or PostgreSQL, [`RestCatalog`] for any external server, and, for tests and the
//! simulation, a catalog in memory and one that fails on command ([`crate::testing`]). A commit is a value, the
//! `(requirements, updates)` of the Iceberg REST specification; a catalog either applies all of it or nothing.

mod embedded;
mod metadata;
mod rest;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use iceberg::spec::TableMetadata;
use iceberg::{NamespaceIdent, TableCreation, TableIdent, TableRequirement, TableUpdate};

pub use embedded::{DatabaseAddress, EmbeddedCatalog, EmbeddedOptions, TableChange};
pub(crate) use metadata::{
    apply_commit, create_metadata, encode_metadata, expired_locations, next_location, read_metadata,
};
pub use rest::{RestCatalog, RestOptions};

/// A table as a catalog knows it.
#[derive(Debug, Clone)]
pub struct LoadedTable {
    /// Where its newest metadata file lies; empty where a staged table has none yet.
    pub metadata_location: String,
    /// That file's content.
    pub metadata: Arc<TableMetadata>,
}

/// What a change of a namespace's properties did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceChange {
    /// Keys that were set.
    pub updated: Vec<String>,
    /// Keys that were removed.
    pub removed: Vec<String>,
    /// Keys that were to be removed and were not there.
    pub missing: Vec<String>,
}

/// Why a catalog did not do, or may not have done, what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// A requirement of the commit does not hold (any more): nothing was changed. Refresh and try again.
    #[error("another commit came first: {0}")]
    Conflict(String),
    /// The answer was lost or tells nothing: it may have been done, or may yet be. Look before trying again.
    #[error("the outcome is not known: {0}")]
    Unknown(String),
    /// No such table or namespace.
    #[error("not found: {0}")]
    NotFound(String),
    /// The name is taken.
    #[error("it exists already: {0}")]
    AlreadyExists(String),
    /// The namespace still has tables or namespaces in it.
    #[error("not empty: {0}")]
    NotEmpty(String),
    /// It was not done, and may be asked again later.
    #[error("the catalog cannot do it now: {0}")]
    Unavailable(String),
    /// It was not done, and asking again will not help.
    #[error("the catalog refused: {0}")]
    Rejected(String),
}

/// Who says which metadata file is a table's newest.
#[async_trait]
pub trait Catalog: std::fmt::Debug + Send + Sync + 'static {
    /// The namespaces right below `parent`, or the outermost ones.
    async fn list_namespaces(&self, parent: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>, CatalogError>;
    /// Makes a namespace.
    async fn create_namespace(
        &self,
        namespace: &NamespaceIdent,
        properties: HashMap<String, String>,
    ) -> Result<(), CatalogError>;
    /// A namespace's properties.
    async fn load_namespace(&self, namespace: &NamespaceIdent) -> Result<HashMap<String, String>, CatalogError>;
    /// Sets and removes properties of a namespace.
    async fn update_namespace(
        &self,
        namespace: &NamespaceIdent,
        removals: Vec<String>,
        updates: HashMap<String, String>,
    ) -> Result<NamespaceChange, CatalogError>;
    /// Removes a namespace that is empty.
    async fn drop_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError>;

    /// The tables of a namespace.
    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<TableIdent>, CatalogError>;
    /// Makes a table.
    async fn create_table(
        &self,
        namespace: &NamespaceIdent,
        creation: TableCreation,
    ) -> Result<LoadedTable, CatalogError>;
    /// A table's newest state.
    async fn load_table(&self, table: &TableIdent) -> Result<LoadedTable, CatalogError>;
    /// Applies `updates` if all `requirements` hold, else nothing.
    async fn commit_table(
        &self,
        table: &TableIdent,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<LoadedTable, CatalogError>;
    /// Removes a table; with `purge` its files too.
    async fn drop_table(&self, table: &TableIdent, purge: bool) -> Result<(), CatalogError>;
    /// Gives a table another name.
    async fn rename_table(&self, from: &TableIdent, to: &TableIdent) -> Result<(), CatalogError>;
    /// Takes in a table whose metadata file is there already.
    async fn register_table(
        &self,
        table: &TableIdent,
        metadata_location: &str,
        overwrite: bool,
    ) -> Result<LoadedTable, CatalogError>;
}

impl From<crate::warehouse::WarehouseError> for CatalogError {
    fn from(error: crate::warehouse::WarehouseError) -> Self {
        match error {
            crate::warehouse::WarehouseError::Outside { .. } => Self::Rejected(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}
