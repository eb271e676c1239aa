//! Tables by their names: which stream one belongs to, made and dropped on request.
//!
//! A table that is made here is a stream like any other: its contract is kept durably before the table is there, and what
//! is sent to it, however it comes, goes through the log. A table that another engine made gets a stream with the table's
//! own columns when it is first written to. Refuses: to drop what the configuration declares.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use lakegate_env::Disk;
use lakegate_model::{Contract, StreamKey, StreamName, TableName, TablePattern, TenantId};
use parking_lot::RwLock;

use crate::contracts::ContractStoreError;
use crate::gate::{Gate, Inner};
use crate::import::OwnColumns;
use crate::streams::{DEAD_LETTER_MARKS, DEAD_LETTERS, UNROUTABLE};

/// Why a table was not made, found or dropped.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// There is one of that name.
    #[error("the table {0} exists already")]
    Exists(TableName),
    /// There is none.
    #[error("there is no table {0}")]
    Unknown(TableName),
    /// It cannot be such a table.
    #[error("the table {table} cannot be made: {reason}")]
    Invalid {
        /// Its name.
        table: TableName,
        /// Why, and what to do.
        reason: String,
    },
    /// Rows cannot be written to it here.
    #[error("rows cannot be written to {table} here: {reason}")]
    NotWritable {
        /// Its name.
        table: TableName,
        /// Why.
        reason: String,
    },
    /// It is not for statements to drop.
    #[error("{table} is the table of the stream {stream}, which the configuration declares; remove it there first")]
    Declared {
        /// Its name.
        table: TableName,
        /// The stream.
        stream: StreamName,
    },
    /// The lake could not be reached or refused.
    #[error("{0}")]
    Lake(String),
    /// It could not be kept on disk.
    #[error(transparent)]
    Disk(#[from] ContractStoreError),
}

/// Tables that were dropped, each with the log's next offset of then: what the log holds below is for nobody.
pub(crate) struct Dropped {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    tables: RwLock<BTreeMap<String, u64>>,
}

impl Dropped {
    pub(crate) fn open(disk: Arc<dyn Disk>, path: PathBuf) -> Result<Self, ContractStoreError> {
        let tables = match disk.read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|_| ContractStoreError::Damaged { fingerprint: 0, path: path.clone() })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(ContractStoreError::Write { path, source }),
        };
        Ok(Self { disk, path, tables: RwLock::new(tables) })
    }

    /// Whether rows of a frame that ends before `next_offset` were dropped with their table.
    pub(crate) fn has(&self, key: &StreamKey, contract: &Contract, next_offset: u64) -> bool {
        let tables = self.tables.read();
        if tables.is_empty() {
            return false;
        }
        let table = contract.table.table_for(key, &contract.part);
        table.is_ok_and(|table| tables.get(&table.to_string()).is_some_and(|upto| next_offset <= *upto))
    }

    fn note(&self, table: &TableName, upto: u64) -> Result<(), ContractStoreError> {
        let mut tables = self.tables.write();
        let mut changed = tables.clone();
        changed.insert(table.to_string(), upto);
        let json = serde_json::to_vec_pretty(&changed).unwrap_or_default();
        let path = &self.path;
        let written = self.disk.write_atomic(path, &json);
        written.map_err(|source| ContractStoreError::Write { path: path.clone(), source })?;
        *tables = changed;
        Ok(())
    }
}

impl Gate {
    /// The stream whose rows go into that table, for a sender of `tenant`, and its contract. A table that another engine
    /// made gets one with its columns.
    ///
    /// # Errors
    /// There is no such table, or rows cannot be written to it.
    pub async fn stream_of_table(
        &self,
        tenant: &TenantId,
        table: &TableName,
    ) -> Result<(StreamKey, Arc<Contract>), TableError> {
        let inner = &self.inner;
        if let Some(key) = inner.known_stream(tenant, table) {
            return inner.with_contract(key, table);
        }
        let found = inner.lake.find_table(table).await.map_err(|error| TableError::Lake(error.to_string()))?;
        let undeclared = inner.undeclared_stream(tenant, table);
        let Some(found) = found else {
            let known = undeclared.filter(|key| inner.streams.is_known(key));
            return known
                .map_or_else(|| Err(TableError::Unknown(table.clone())), |key| inner.with_contract(key, table));
        };
        let schema = found.view().schema();
        if let Some(key) = undeclared {
            let has = |contract: &Contract| contract.columns.iter().all(|c| schema.field_with_name(&c.name).is_ok());
            if inner.streams.contract_of(&key).is_some_and(|contract| has(&contract)) {
                return inner.with_contract(key, table);
            }
        }
        let not_writable = |reason: String| TableError::NotWritable { table: table.clone(), reason };
        let mut contract = OwnColumns::Schema(schema.clone()).contract().map_err(not_writable)?;
        for (column, field) in contract.columns.iter_mut().zip(schema.fields()) {
            column.required = !field.is_nullable();
        }
        contract.table = TablePattern(table.to_string());
        found.takes(&contract).map_err(|error| not_writable(error.to_string()))?;
        let key = inner.free_key(tenant, table)?;
        inner.streams.own.keep(&key, &contract, &inner.contracts)?;
        inner.with_contract(key, table)
    }

    /// Whether a stream of `tenant` was declared, or made, for that table.
    #[must_use]
    pub fn leads_to(&self, tenant: &TenantId, table: &TableName) -> bool {
        self.inner.known_stream(tenant, table).is_some()
    }

    /// Makes a table with these columns, and a stream for it. The contract's own table pattern is not looked at.
    ///
    /// # Errors
    /// See [`TableError`].
    pub async fn create_table(
        &self,
        tenant: &TenantId,
        table: &TableName,
        contract: Contract,
    ) -> Result<StreamKey, TableError> {
        let inner = &self.inner;
        let found = inner.lake.find_table(table).await.map_err(|error| TableError::Lake(error.to_string()))?;
        if found.is_some() || inner.known_stream(tenant, table).is_some() {
            return Err(TableError::Exists(table.clone()));
        }
        let contract = Contract { table: TablePattern(table.to_string()), ..contract };
        let invalid = |reason: String| TableError::Invalid { table: table.clone(), reason };
        contract.check().map_err(|error| invalid(error.to_string()))?;
        let key = inner.free_key(tenant, table)?;
        inner.streams.own.keep(&key, &contract, &inner.contracts)?;
        let stream = inner.streams.resolve(key.tenant.as_str(), key.stream.as_str());
        let stream = stream.map_err(|refusal| invalid(refusal.message))?;
        if let Err(error) = stream.unit.open(&inner.lake).await {
            inner.forget_stream(&key, table)?;
            return Err(TableError::Lake(error.to_string()));
        }
        Ok(key)
    }

    /// Drops a table, with what the log and the memory hold for it. Its files go too.
    ///
    /// # Errors
    /// See [`TableError`].
    pub async fn drop_table(&self, tenant: &TenantId, table: &TableName) -> Result<(), TableError> {
        let inner = &self.inner;
        let reserved = [DEAD_LETTERS, DEAD_LETTER_MARKS].contains(&table.name.as_str());
        let key = inner.known_stream(tenant, table).or_else(|| inner.undeclared_stream(tenant, table));
        if let Some(key) = key.as_ref().filter(|key| reserved || inner.streams.is_declared(&key.stream)) {
            return Err(TableError::Declared { table: table.clone(), stream: key.stream.clone() });
        }
        let was_known = key.as_ref().is_some_and(|key| inner.streams.own.get(key).is_some());
        inner.dropped.note(table, inner.log.next_offset())?;
        if let Some(key) = &key {
            inner.forget_stream(key, table)?;
        }
        let dropped = inner.lake.drop_table(table).await.map_err(|error| TableError::Lake(error.to_string()))?;
        if dropped || was_known {
            return Ok(());
        }
        Err(TableError::Unknown(table.clone()))
    }
}

impl Inner {
    fn with_contract(&self, key: StreamKey, table: &TableName) -> Result<(StreamKey, Arc<Contract>), TableError> {
        let stream = self.streams.resolve(key.tenant.as_str(), key.stream.as_str());
        let not_writable = |reason: String| TableError::NotWritable { table: table.clone(), reason };
        let stream = stream.map_err(|refusal| not_writable(refusal.message))?;
        Ok((key, stream.shaper.contract.clone()))
    }

    /// The stream that was declared, or kept, for that table.
    fn known_stream(&self, tenant: &TenantId, table: &TableName) -> Option<StreamKey> {
        let leads = |key: &StreamKey, contract: &Contract| {
            contract.table.table_for(key, "").is_ok_and(|found| found == *table) && !contract.table.takes_event_type()
        };
        self.streams.find(tenant, leads)
    }

    /// The stream that nobody declared and whose table this would be.
    fn undeclared_stream(&self, tenant: &TenantId, table: &TableName) -> Option<StreamKey> {
        let stream = StreamName::new(&table.name).ok().filter(|_| table.namespace == tenant.as_str())?;
        let reserved = [DEAD_LETTERS, DEAD_LETTER_MARKS, UNROUTABLE].contains(&stream.as_str());
        let key = StreamKey { tenant: tenant.clone(), stream };
        (!reserved && self.streams.takes_undeclared()).then_some(key)
    }

    /// A stream's name for a table that has none: the table's own in the tenant's namespace, else with its namespace.
    fn free_key(&self, tenant: &TenantId, table: &TableName) -> Result<StreamKey, TableError> {
        let name = if table.namespace == tenant.as_str() {
            table.name.clone()
        } else {
            format!("{}__{}", table.namespace, table.name)
        };
        let invalid = |reason: String| TableError::Invalid { table: table.clone(), reason };
        let stream = StreamName::new(&name).map_err(|error| invalid(error.to_string()))?;
        let key = StreamKey { tenant: tenant.clone(), stream };
        if self.streams.may_be_made(&key) {
            return Ok(key);
        }
        Err(invalid(format!("the stream {name} is there already, and its rows go into another table")))
    }

    fn forget_stream(&self, key: &StreamKey, table: &TableName) -> Result<(), TableError> {
        self.streams.own.remove(key)?;
        if let Some(unit) = self.streams.remove(key, table) {
            let next_offset = self.log.next_offset();
            let frozen = unit.memtable.lock().freeze(next_offset).map(drop);
            frozen.map_err(|error| TableError::Lake(error.to_string()))?;
            unit.memtable.drop_absorbed(u64::MAX);
        }
        self.memtables.remove(table);
        Ok(())
    }
}
