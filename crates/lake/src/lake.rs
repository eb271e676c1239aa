//! The lake: its tables, found, opened and kept.

use std::collections::HashMap;
use std::sync::Arc;

use iceberg::{NamespaceIdent, TableIdent};
use lakegate_model::{Contract, TableName};
use parking_lot::Mutex;

use crate::catalog::CatalogError;
use crate::error::LakeError;
use crate::options::{Care, LakeOptions};
use crate::schema::creation_of;
use crate::table::LakeTable;
use crate::warehouse::WarehouseError;

/// All tables of one warehouse and catalog, as one writer sees them. Clones share it.
#[derive(Clone)]
pub struct Lake {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) options: LakeOptions,
    pub(crate) care: Care,
    tables: Mutex<HashMap<TableName, Arc<LakeTable>>>,
}

impl std::fmt::Debug for Lake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lake").field("warehouse", &self.shared.options.warehouse.root()).finish_non_exhaustive()
    }
}

impl Lake {
    /// A lake over a warehouse and its catalog. Nothing is read yet.
    #[must_use]
    pub fn open(options: LakeOptions) -> Self {
        Self::open_with(options, Care::default())
    }

    /// The same, with tables looked after as `care` says.
    #[must_use]
    pub fn open_with(options: LakeOptions, care: Care) -> Self {
        Self { shared: Arc::new(Shared { options, care, tables: Mutex::default() }) }
    }

    /// How tables are looked after.
    #[must_use]
    pub fn care(&self) -> Care {
        self.shared.care
    }

    /// Asks the catalog for something small.
    ///
    /// # Errors
    /// It did not answer as it should.
    pub async fn ask_catalog(&self) -> Result<(), CatalogError> {
        self.shared.options.catalog.list_namespaces(None).await.map(drop)
    }

    /// Asks the store of the tables' files for one that need not be there.
    ///
    /// # Errors
    /// It did not answer as it should.
    pub async fn ask_store(&self) -> Result<(), WarehouseError> {
        let warehouse = &self.shared.options.warehouse;
        warehouse.exists(&format!("{}/.well", warehouse.root())).await.map(drop)
    }

    /// Loads the contract's table, or makes it and its namespace. Columns of the contract that it lacks are added by the
    /// next commit.
    ///
    /// # Errors
    /// The contract does not fit the table, or the catalog could not be asked.
    pub async fn open_table(&self, name: &TableName, contract: &Contract) -> Result<Arc<LakeTable>, LakeError> {
        let table = match self.find_table(name).await? {
            Some(table) => table,
            None => self.create_table(name, contract).await?,
        };
        table.set_contract(contract)?;
        Ok(table)
    }

    /// The table in its newest committed state; none if there is none.
    ///
    /// # Errors
    /// The catalog or its file could not be read.
    pub async fn find_table(&self, name: &TableName) -> Result<Option<Arc<LakeTable>>, LakeError> {
        let known = self.shared.tables.lock().get(name).cloned();
        if let Some(table) = known {
            match table.refresh_inner().await {
                Ok(view) if view.uuid() == table.uuid => return Ok(Some(table)),
                Ok(_) => {}
                Err(LakeError::Catalog(CatalogError::NotFound(_))) => {
                    self.forget(name, &table);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
            self.forget(name, &table);
        }
        let ident = ident_of(name);
        match self.shared.options.catalog.load_table(&ident).await {
            Ok(loaded) => {
                let table = LakeTable::new(Arc::clone(&self.shared), name.clone(), ident, loaded)?;
                Ok(Some(self.keep(name, table)))
            }
            Err(CatalogError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The handle of a table that was found or opened before; asks nobody.
    #[must_use]
    pub fn known_table(&self, name: &TableName) -> Option<Arc<LakeTable>> {
        self.shared.tables.lock().get(name).cloned()
    }

    /// All tables in namespaces of one level. Names that are not ours to give (of other engines) are left out.
    ///
    /// # Errors
    /// The catalog could not be asked.
    pub async fn list_tables(&self) -> Result<Vec<TableName>, LakeError> {
        let catalog = &self.shared.options.catalog;
        let mut found = Vec::new();
        for namespace in catalog.list_namespaces(None).await? {
            let tables = match catalog.list_tables(&namespace).await {
                Err(CatalogError::NotFound(_)) => continue,
                other => other?,
            };
            let level = namespace.first().map(String::as_str).unwrap_or_default();
            found.extend(tables.iter().filter_map(|t| TableName::new(level, t.name()).ok()));
        }
        found.sort();
        Ok(found)
    }

    /// Removes a table and its files. Says whether there was one.
    ///
    /// # Errors
    /// The catalog could not be asked, or does not do it.
    pub async fn drop_table(&self, name: &TableName) -> Result<bool, LakeError> {
        match self.shared.options.catalog.drop_table(&ident_of(name), true).await {
            Ok(()) => {
                self.shared.tables.lock().remove(name);
                Ok(true)
            }
            Err(CatalogError::NotFound(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn create_table(&self, name: &TableName, contract: &Contract) -> Result<Arc<LakeTable>, LakeError> {
        let options = &self.shared.options;
        let ident = ident_of(name);
        match options.catalog.create_namespace(ident.namespace(), HashMap::new()).await {
            Ok(()) | Err(CatalogError::AlreadyExists(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let creation = creation_of(
            &name.name,
            contract,
            options.compression,
            options.target_file_bytes,
            self.shared.care.snapshots_keep,
        )?;
        let loaded = match options.catalog.create_table(ident.namespace(), creation).await {
            // Another opener came first, or our own answer was lost: either way the table is there to be looked at.
            Err(CatalogError::AlreadyExists(_) | CatalogError::Unknown(_)) => {
                options.catalog.load_table(&ident).await?
            }
            other => other?,
        };
        let table = LakeTable::new(Arc::clone(&self.shared), name.clone(), ident, loaded)?;
        Ok(self.keep(name, table))
    }

    /// Keeps the handle, or gives the one that came first.
    fn keep(&self, name: &TableName, table: LakeTable) -> Arc<LakeTable> {
        let mut tables = self.shared.tables.lock();
        match tables.get(name) {
            Some(first) if first.uuid == table.uuid => Arc::clone(first),
            _ => {
                let table = Arc::new(table);
                tables.insert(name.clone(), Arc::clone(&table));
                table
            }
        }
    }

    fn forget(&self, name: &TableName, table: &Arc<LakeTable>) {
        let mut tables = self.shared.tables.lock();
        if tables.get(name).is_some_and(|known| Arc::ptr_eq(known, table)) {
            tables.remove(name);
        }
    }
}

fn ident_of(name: &TableName) -> TableIdent {
    TableIdent::new(NamespaceIdent::new(name.namespace.clone()), name.name.clone())
}
