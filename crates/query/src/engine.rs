//! The engine: what it is set up with, what it is asked, and which queries run.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use datafusion::arrow::datatypes::DataType;
use datafusion::execution::SessionStateDefaults;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use lakegate_memtable::Memtables;
use lakegate_model::{TableName, TenantId};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use crate::catalog::{CATALOG, DEFAULT_NAMESPACE};
use crate::error::QueryError;
use crate::functions::{self, BoundedOperators};
use crate::lake::{LakeTables, TablesBeside};
use crate::pace::PaceExpandingOperators;
use crate::run::QueryResult;

/// Rows of a batch: large enough for the cost of a batch not to show, small enough to stay in the caches.
const BATCH_ROWS: usize = 8192;
/// The stack of a query thread. Plans are trees, and dropping one recurses.
const STACK_BYTES: usize = 32 * 1024 * 1024;
/// The most bytes of all spilled files, for each byte of memory that queries have.
const SPILL_TIMES_MEMORY: u64 = 20;

/// How long a query waits for another one to end before its asker is told to come back.
const PLACE_WAIT: Duration = Duration::from_secs(1);

/// What a query engine is set up with.
#[derive(Debug, Clone)]
pub struct QueryOptions {
    /// The committed tables.
    pub lake: Arc<dyn LakeTables>,
    /// The rows that are not in the lake yet.
    pub memtables: Arc<Memtables>,
    /// The most bytes that all running queries may take together.
    pub memory_limit_bytes: usize,
    /// The limits of a request that names none; a request may lower them, never raise them.
    pub default_limits: QueryLimits,
    /// The most queries at once; more are told to come back.
    pub concurrent: usize,
    /// How many threads run queries, and into how many partitions a scan is divided. At least 1.
    pub target_partitions: usize,
    /// Where sorts and joins put what does not fit the memory; none makes them fail instead. Must exist.
    pub spill_dir: Option<PathBuf>,
}

/// What a query may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryLimits {
    /// The longest it may run, from its start to its last row.
    pub timeout: Duration,
    /// The most rows it may return.
    pub max_rows: u64,
    /// The most bytes it may return, as Arrow.
    pub max_result_bytes: u64,
}

/// One query.
#[derive(Debug, Clone, Default)]
pub struct QueryRequest {
    /// The statement.
    pub sql: String,
    /// Values of `$1`, `$2`, …: null, booleans, numbers and texts.
    pub parameters: Vec<Value>,
    /// Whose tables it sees; none sees all.
    pub tenant: Option<TenantId>,
    /// Which tables it sees of those; none: all of them.
    pub readable: Option<Readable>,
    /// Its limits where they are lower than the engine's.
    pub limits: Option<QueryLimits>,
    /// Only this many of its rows are wanted; the rest is not computed, and that is not an error.
    pub row_limit: Option<u64>,
    /// The namespace of names that have none; none: the tenant's own.
    pub namespace: Option<String>,
    /// Tables beside those of the lake.
    pub beside: Option<Arc<dyn TablesBeside>>,
    /// Its rows are stored, not shown: the limits on rows, bytes and text that hold for results don't hold.
    pub is_source: bool,
    /// A name to cancel it by, unlike that of every running query; made where none is given.
    pub query_id: Option<String>,
}

/// Says which tables may be read. Others are as if they were not there.
#[derive(Clone)]
pub struct Readable(Arc<dyn Fn(&TableName) -> bool + Send + Sync>);

impl Readable {
    /// The tables that `may` says yes to.
    pub fn new(may: impl Fn(&TableName) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(may))
    }

    pub(crate) fn may(&self, table: &TableName) -> bool {
        (self.0)(table)
    }
}

impl std::fmt::Debug for Readable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Readable")
    }
}

/// The types of parameters by their names; none where the statement does not tell.
pub type ParameterTypes = HashMap<String, Option<DataType>>;

/// A query that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningQuery {
    /// Its name.
    pub query_id: String,
    /// Its text.
    pub sql: String,
    /// Whose it is.
    pub tenant: Option<TenantId>,
    /// How long it has run.
    pub elapsed: Duration,
}

/// Plans and runs queries. Clones share everything.
#[derive(Clone)]
pub struct QueryEngine {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for QueryEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryEngine").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

struct Inner {
    options: QueryOptions,
    state: SessionState,
    threads: Threads,
    running: Arc<Registry>,
}

impl QueryEngine {
    /// Starts the query threads.
    ///
    /// # Errors
    /// The threads or the folder for spilled rows could not be had.
    pub fn new(options: QueryOptions) -> Result<Self, QueryError> {
        let state = base_state(&options)?;
        let threads = Threads::start(options.target_partitions.max(1))?;
        let limit = options.concurrent.max(1);
        let permits = Arc::new(Semaphore::new(limit));
        let running = Arc::new(Registry { limit, permits, next: AtomicU64::new(1), queries: Mutex::default() });
        Ok(Self { inner: Arc::new(Inner { options, state, threads, running }) })
    }

    /// Plans a query and waits for its first rows. Dropping the result cancels the query.
    ///
    /// # Errors
    /// Everything that goes wrong before the first batch of rows; later errors come in the stream.
    pub async fn sql(&self, request: QueryRequest) -> Result<QueryResult, QueryError> {
        let inner = &self.inner;
        let place = inner.running.enter(&request).await?;
        crate::run::start(inner.threads.handle(), inner.state.clone(), &inner.options, request, place).await
    }

    /// The types of a statement's parameters `$1`, `$2`, …, by their names, where it tells them. Nothing runs.
    ///
    /// # Errors
    /// The statement cannot be planned.
    pub async fn parameter_types(&self, request: QueryRequest) -> Result<ParameterTypes, QueryError> {
        let place = self.inner.running.enter(&request).await?;
        crate::run::parameter_types(self.inner.state.clone(), &self.inner.options, request, place).await
    }

    /// Cancels a query. A tenant cancels its own only; none cancels any. Says whether there was such a query.
    #[must_use]
    pub fn cancel(&self, query_id: &str, tenant: Option<&TenantId>) -> bool {
        let mut queries = self.inner.running.queries.lock();
        let found = queries.get_mut(query_id).filter(|q| is_of(q.tenant.as_ref(), tenant));
        found.and_then(|query| query.cancel.take()).is_some_and(|cancel| cancel.send(()).is_ok())
    }

    /// The queries that run, of one tenant or, for none, all.
    #[must_use]
    pub fn running(&self, tenant: Option<&TenantId>) -> Vec<RunningQuery> {
        let queries = self.inner.running.queries.lock();
        let own = queries.iter().filter(|(_, q)| is_of(q.tenant.as_ref(), tenant));
        own.map(|(id, q)| RunningQuery {
            query_id: id.clone(),
            sql: q.sql.clone(),
            tenant: q.tenant.clone(),
            elapsed: q.started.elapsed(),
        })
        .collect()
    }

    /// The limits of a request that names none.
    #[must_use]
    pub fn default_limits(&self) -> QueryLimits {
        self.inner.options.default_limits
    }
}

fn is_of(owner: Option<&TenantId>, asker: Option<&TenantId>) -> bool {
    asker.is_none() || owner == asker
}

impl QueryLimits {
    /// The lower of each.
    #[must_use]
    pub fn at_most(self, other: Self) -> Self {
        Self {
            timeout: self.timeout.min(other.timeout),
            max_rows: self.max_rows.min(other.max_rows),
            max_result_bytes: self.max_result_bytes.min(other.max_result_bytes),
        }
    }
}

/// The engine's state without a catalog: no file formats, no table factories, no object stores, no files as tables.
fn base_state(options: &QueryOptions) -> Result<SessionState, QueryError> {
    let mode = match &options.spill_dir {
        Some(dir) => DiskManagerMode::Directories(vec![dir.clone()]),
        None => DiskManagerMode::Disabled,
    };
    let spill_bytes = SPILL_TIMES_MEMORY.saturating_mul(options.memory_limit_bytes as u64);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(options.memory_limit_bytes)))
        .with_disk_manager_builder(
            DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(spill_bytes),
        )
        .build_arc()
        .map_err(|e| QueryError::internal(&e))?;
    // The engine comes with the local files registered. It is an error when it does not, and that is as good.
    let _ = runtime.deregister_object_store(ObjectStoreUrl::local_filesystem().as_ref());
    let mut config = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, DEFAULT_NAMESPACE)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true)
        .with_target_partitions(options.target_partitions.max(1))
        .with_batch_size(BATCH_ROWS);
    config.options_mut().sql_parser.map_string_types_to_utf8view = false;
    // What a time `WITH TIME ZONE` is kept in.
    config.options_mut().execution.time_zone = Some("+00:00".to_owned());
    let table_functions = SessionStateDefaults::default_table_functions();
    let functions = functions::bounded(SessionStateDefaults::default_scalar_functions());
    let mut planners = SessionStateDefaults::default_expr_planners();
    planners.insert(0, Arc::new(BoundedOperators::new(&functions)));
    Ok(SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_expr_planners(planners)
        .with_scalar_functions(functions)
        .with_aggregate_functions(SessionStateDefaults::default_aggregate_functions())
        .with_window_functions(SessionStateDefaults::default_window_functions())
        .with_physical_optimizer_rule(Arc::new(PaceExpandingOperators))
        .with_table_functions(table_functions.into_iter().map(|f| (f.name().to_owned(), f)).collect())
        .build())
}

/// The threads that run queries, apart from those that take records.
struct Threads(Option<Runtime>, Handle);

impl Threads {
    fn start(count: usize) -> Result<Self, QueryError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name("query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|e| QueryError::Internal(format!("no threads for queries: {e}")))?;
        let handle = runtime.handle().clone();
        Ok(Self(Some(runtime), handle))
    }

    fn handle(&self) -> &Handle {
        &self.1
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The last handle may be dropped on a thread of another runtime, which must not wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The queries that run.
#[derive(Debug)]
struct Registry {
    limit: usize,
    permits: Arc<Semaphore>,
    next: AtomicU64,
    queries: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Debug)]
struct Entry {
    sql: String,
    tenant: Option<TenantId>,
    started: Instant,
    cancel: Option<oneshot::Sender<()>>,
}

/// A query's place among the running ones.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its name in the list, as long as its asker waits.
    pub(crate) name: ListedName,
    /// Its share of the machine, as long as any of its work goes on.
    pub(crate) permit: Arc<OwnedSemaphorePermit>,
    pub(crate) cancelled: oneshot::Receiver<()>,
}

/// Dropping it takes the query off the list.
#[derive(Debug)]
pub(crate) struct ListedName {
    pub(crate) query_id: String,
    registry: Arc<Registry>,
}

impl Drop for ListedName {
    fn drop(&mut self) {
        self.registry.queries.lock().remove(&self.query_id);
    }
}

impl Registry {
    async fn enter(self: &Arc<Self>, request: &QueryRequest) -> Result<Place, QueryError> {
        let permit = match timeout(PLACE_WAIT, self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Arc::new(permit),
            Ok(Err(_)) | Err(_) => return Err(QueryError::Busy { limit: self.limit }),
        };
        let made = || format!("query-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let query_id = request.query_id.clone().unwrap_or_else(made);
        let mut queries = self.queries.lock();
        if queries.contains_key(&query_id) {
            return Err(QueryError::Plan(format!("a query with the id {query_id:?} runs already; choose another")));
        }
        let (cancel, cancelled) = oneshot::channel();
        let entry = Entry {
            sql: request.sql.clone(),
            tenant: request.tenant.clone(),
            started: Instant::now(),
            cancel: Some(cancel),
        };
        queries.insert(query_id.clone(), entry);
        Ok(Place { name: ListedName { query_id, registry: self.clone() }, permit, cancelled })
    }
}
