//! All memtables of a process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arrow::datatypes::SchemaRef;
use lakegate_model::{LogId, TableName};
use parking_lot::RwLock;

use crate::table::Memtable;

/// So few that a query, which copies the open batch, copies little.
const BATCH_ROWS: usize = 4096;

/// The memtables of all tables, shared by who writes and who queries.
#[derive(Debug)]
pub struct Memtables {
    log: LogId,
    durable: Arc<AtomicU64>,
    bytes: Arc<AtomicUsize>,
    batch_rows: usize,
    tables: RwLock<BTreeMap<TableName, Arc<Memtable>>>,
}

impl Memtables {
    /// An empty registry for rows of the log `log`, whose durable offset (exclusive) `durable` shows.
    #[must_use]
    pub fn new(log: LogId, durable: Arc<AtomicU64>) -> Self {
        Self { log, durable, bytes: Arc::default(), batch_rows: BATCH_ROWS, tables: RwLock::default() }
    }

    /// Gathers rows of small requests into batches of at most so many, instead of 4096.
    #[must_use]
    pub fn with_batch_rows(mut self, batch_rows: usize) -> Self {
        self.batch_rows = batch_rows.max(1);
        self
    }

    /// The log that the rows' offsets belong to.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.log
    }

    /// The memtable of that table, where there is one.
    #[must_use]
    pub fn get(&self, table: &TableName) -> Option<Arc<Memtable>> {
        self.tables.read().get(table).cloned()
    }

    /// The memtable of that table, made with `schema` where there is none.
    pub fn get_or_create(&self, table: &TableName, schema: SchemaRef) -> Arc<Memtable> {
        if let Some(found) = self.get(table) {
            return found;
        }
        let make = || {
            Arc::new(Memtable::new(table.clone(), schema, self.durable.clone(), self.bytes.clone(), self.batch_rows))
        };
        self.tables.write().entry(table.clone()).or_insert_with(make).clone()
    }

    /// Takes the memtable of a table that was dropped out of the list.
    pub fn remove(&self, table: &TableName) -> Option<Arc<Memtable>> {
        self.tables.write().remove(table)
    }

    /// All memtables, by table name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Memtable>> {
        self.tables.read().values().cloned().collect()
    }

    /// About how many bytes all rows take in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}
