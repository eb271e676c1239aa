//! Queries against a memtable and a lake whose commits happen at the instants that a test chooses.

mod access;
mod hostile;
mod output;
mod real;
mod union;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::arrow::util::pretty::pretty_format_batches;
use futures::{StreamExt, stream};
use lakegate_memtable::{Memtable, Memtables};
use lakegate_model::{LogId, TableName, TenantId};
use parking_lot::Mutex;

use crate::lake::{LakeTables, LakeView, RowStream, ViewScan};
use crate::{QueryEngine, QueryError, QueryLimits, QueryOptions, QueryRequest};

#[derive(Debug, Clone)]
pub(super) struct Committed {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    absorbed: u64,
    exact: bool,
    scans: Arc<Mutex<Vec<ViewScan>>>,
}

/// A lake of batches; a commit is one store.
#[derive(Default)]
pub(super) struct TestLake {
    /// Runs just before and just after a view is taken.
    around_view: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    tables: Mutex<BTreeMap<TableName, Committed>>,
    away: Mutex<bool>,
}

impl std::fmt::Debug for TestLake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestLake")
    }
}

impl TestLake {
    fn interrupt(&self) {
        let interruption = self.around_view.lock().clone();
        if let Some(interruption) = interruption {
            interruption();
        }
    }

    pub(super) fn commit(&self, name: &TableName, batches: Vec<RecordBatch>, absorbed: u64) {
        let schema = batches[0].schema();
        let mut tables = self.tables.lock();
        let new = || Committed { schema, batches: Vec::new(), absorbed: 0, exact: true, scans: Arc::default() };
        let table = tables.entry(name.clone()).or_insert_with(new);
        table.batches.extend(batches);
        table.absorbed = absorbed;
    }

    /// What was asked of the table's scans.
    pub(super) fn scans(&self, name: &TableName) -> Vec<ViewScan> {
        self.tables.lock()[name].scans.lock().clone()
    }
}

#[async_trait]
impl LakeTables for TestLake {
    async fn list(&self) -> Result<Vec<TableName>, QueryError> {
        Ok(self.tables.lock().keys().cloned().collect())
    }

    async fn newest_view(&self, name: &TableName) -> Result<Option<Arc<dyn LakeView>>, QueryError> {
        tokio::task::yield_now().await;
        if *self.away.lock() {
            return Err(QueryError::Unavailable("the catalog does not answer".to_owned()));
        }
        self.interrupt();
        let view = self.tables.lock().get(name).map(|t| Arc::new(t.clone()) as Arc<dyn LakeView>);
        self.interrupt();
        Ok(view)
    }
}

#[async_trait]
impl LakeView for Committed {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn absorbed_next_offset(&self, _: LogId) -> u64 {
        self.absorbed
    }

    fn counter(&self, _: &str) -> u64 {
        0
    }

    fn total_records(&self) -> u64 {
        self.batches.iter().map(|b| b.num_rows() as u64).sum()
    }

    fn is_count_exact(&self) -> bool {
        self.exact
    }

    fn data_files(&self) -> u64 {
        self.batches.len() as u64
    }

    async fn scan(&self, request: ViewScan) -> Result<Vec<RowStream>, QueryError> {
        self.scans.lock().push(request.clone());
        let columns: Vec<usize> = request.columns.iter().map(|c| self.schema.index_of(c).unwrap()).collect();
        let mut streams = vec![Vec::new(); request.streams];
        for (at, batch) in self.batches.iter().enumerate() {
            streams[at % request.streams].push(Ok(batch.project(&columns).unwrap()));
        }
        Ok(streams.into_iter().map(|batches| stream::iter(batches).boxed()).collect())
    }
}

/// An engine, its lake, and its memtables.
pub(super) struct House {
    pub(super) engine: QueryEngine,
    pub(super) lake: Arc<TestLake>,
    pub(super) memtables: Arc<Memtables>,
    pub(super) durable: Arc<AtomicU64>,
}

pub(super) const LIMITS: QueryLimits =
    QueryLimits { timeout: Duration::from_secs(60), max_rows: 1_000_000, max_result_bytes: 256 * 1024 * 1024 };

impl House {
    pub(super) fn new() -> Self {
        Self::with(LIMITS, 256 * 1024 * 1024)
    }

    pub(super) fn with(default_limits: QueryLimits, memory_limit_bytes: usize) -> Self {
        let durable = Arc::new(AtomicU64::new(0));
        let memtables = Arc::new(Memtables::new(LogId(uuid::Uuid::from_u128(7)), durable.clone()));
        let lake = Arc::new(TestLake::default());
        let options = QueryOptions {
            lake: lake.clone(),
            memtables: memtables.clone(),
            memory_limit_bytes,
            default_limits,
            concurrent: 4,
            target_partitions: 2,
            spill_dir: None,
        };
        Self { engine: QueryEngine::new(options).unwrap(), lake, memtables, durable }
    }

    /// Puts rows that are durable at once into a memtable.
    pub(super) fn push(&self, table: &TableName, batch: RecordBatch) -> Arc<Memtable> {
        let memtable = self.memtables.get_or_create(table, batch.schema());
        let first = self.durable.load(Ordering::Acquire);
        let next = first + batch.num_rows() as u64;
        memtable.lock().push_batch(batch, first, next, 1).unwrap();
        self.durable.store(next, Ordering::Release);
        memtable
    }

    pub(super) async fn ask(&self, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
        self.ask_as(None, sql).await
    }

    pub(super) async fn ask_as(&self, tenant: Option<&str>, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
        let tenant = tenant.map(|t| TenantId::new(t).unwrap());
        self.request(QueryRequest { sql: sql.to_owned(), tenant, ..QueryRequest::default() }).await
    }

    pub(super) async fn request(&self, request: QueryRequest) -> Result<Vec<RecordBatch>, QueryError> {
        self.engine.sql(request).await?.collect().await
    }

    /// The only value of the only row.
    pub(super) async fn number(&self, sql: &str) -> i64 {
        let batches = self.ask(sql).await.unwrap();
        batches[0].column(0).as_primitive::<Int64Type>().value(0)
    }

    /// All rows as lines without borders.
    pub(super) async fn lines_as(&self, tenant: Option<&str>, sql: &str) -> Vec<String> {
        lines(&self.ask_as(tenant, sql).await.unwrap())
    }
}

/// The count of the rows `0..count`, or less than nothing when one of them is missing or there twice.
pub(super) const EXACT_COUNT: &str = "SELECT CASE WHEN count(*) = count(DISTINCT n) AND count(*) = max(n) + 1 \
                                      THEN count(*) ELSE -count(*) END FROM orders";

pub(super) fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let text = pretty_format_batches(batches).unwrap().to_string();
    let cells = |line: &str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join(" ");
    text.lines().filter(|l| l.starts_with('|')).skip(1).map(cells).collect()
}

pub(super) fn name(namespace: &str, table: &str) -> TableName {
    TableName::new(namespace, table).unwrap()
}

pub(super) fn numbers(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("n", DataType::Int64, false)]);
    let values = datafusion::arrow::array::Int64Array::from_iter_values(values);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(values)]).unwrap()
}
