//! One query's run: planned and executed by a task on the query threads, read by who asked.
//!
//! Promises: the reader is told of time-out and cancelling at once, even while the task is deep in a computation; the
//! task ends at its next pause, and what it held is free then. A panic below ends this query alone.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::TaskContext;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::catalog::{self, Visible};
use crate::engine::{ListedName, ParameterTypes, Place, QueryLimits, QueryOptions, QueryRequest};
use crate::error::QueryError;
use crate::{columns, guard, parameters};

/// Batches that may wait for the reader. A slow reader stops the query.
const WAITING_BATCHES: usize = 2;

/// A query that has begun to give rows.
#[derive(Debug)]
pub struct QueryResult {
    /// Its columns.
    pub schema: SchemaRef,
    /// Its name among the running queries.
    pub query_id: String,
    /// Its rows.
    pub stream: ResultStream,
}

impl QueryResult {
    /// Rows that are there already.
    #[must_use]
    pub fn of(schema: SchemaRef, batches: Vec<RecordBatch>, query_id: String) -> Self {
        Self { schema, query_id, stream: ResultStream(stream::iter(batches.into_iter().map(Ok)).boxed()) }
    }

    /// All rows at once; the limits bound them.
    ///
    /// # Errors
    /// What ended the query.
    pub async fn collect(self) -> Result<Vec<RecordBatch>, QueryError> {
        self.stream.try_collect().await
    }
}

/// The rows of a query. After an error comes nothing more; dropping it cancels the query.
pub struct ResultStream(BoxStream<'static, Result<RecordBatch, QueryError>>);

impl std::fmt::Debug for ResultStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResultStream")
    }
}

impl Stream for ResultStream {
    type Item = Result<RecordBatch, QueryError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

/// What the task tells the reader.
enum News {
    Planned(SchemaRef),
    Rows(RecordBatch),
    Ended,
    Failed(QueryError),
}

/// Starts the task and waits for its first rows.
pub(crate) async fn start(
    threads: &Handle,
    state: SessionState,
    options: &QueryOptions,
    request: QueryRequest,
    place: Place,
) -> Result<QueryResult, QueryError> {
    let limits = request.limits.map_or(options.default_limits, |l| l.at_most(options.default_limits));
    let limits = match request.is_source {
        true => QueryLimits { max_rows: u64::MAX, max_result_bytes: u64::MAX, ..limits },
        false => limits,
    };
    let Place { name, permit, cancelled } = place;
    let query_id = name.query_id.clone();
    let visible = Arc::new(Visible::new(options.memtables.clone(), options.lake.clone(), &request));
    let (sender, receiver) = mpsc::channel(WAITING_BATCHES);
    let job = Job { state, visible, request, memory_limit: options.memory_limit_bytes as u64, permit };
    let task = threads.spawn(async move {
        let run = AssertUnwindSafe(job.run(&sender)).catch_unwind();
        let last = match run.await {
            Ok(Ok(())) => News::Ended,
            Ok(Err(e)) => News::Failed(e),
            Err(panic) => News::Failed(QueryError::internal(&panic_text(panic.as_ref()))),
        };
        // A reader that went away does not want to know.
        let _ = sender.send(last).await;
    });
    let deadline = Instant::now() + limits.timeout;
    let mut reader =
        Reader { receiver, cancelled, deadline, limits, rows: 0, bytes: 0, task: task.abort_handle(), _name: name };
    let Some(News::Planned(schema)) = reader.news().await? else {
        return Err(QueryError::Internal("the query ended before it was planned".to_owned()));
    };
    let first = reader.next_rows().await?;
    let rest =
        stream::try_unfold(
            reader,
            |mut reader| async move { Ok(reader.next_rows().await?.map(|rows| (rows, reader))) },
        );
    let stream = match first {
        Some(first) => stream::once(async move { Ok(first) }).chain(rest).boxed(),
        None => stream::empty().boxed(),
    };
    Ok(QueryResult { schema, query_id, stream: ResultStream(stream) })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_owned())
}

/// A query on the query threads.
struct Job {
    state: SessionState,
    visible: Arc<Visible>,
    request: QueryRequest,
    memory_limit: u64,
    permit: Arc<OwnedSemaphorePermit>,
}

impl Job {
    async fn run(self, sender: &mpsc::Sender<News>) -> Result<(), QueryError> {
        let (memory_limit, _permit) = (self.memory_limit, self.permit.clone());
        // Planning never pauses: it has a thread for itself, so that others run beside it.
        let planned = tokio::task::spawn_blocking(move || Handle::current().block_on(self.plan())).await;
        let (plan, context) = planned.map_err(|e| QueryError::internal(&e))??;
        let failed = |e| QueryError::from_engine(&e, memory_limit);
        // A reader that went away aborts this task, so that a failed send needs no answer.
        let _ = sender.send(News::Planned(plan.schema())).await;
        let mut rows = execute_stream(plan, context).map_err(failed)?;
        while let Some(batch) = rows.try_next().await.map_err(failed)? {
            if batch.num_rows() > 0 && sender.send(News::Rows(batch)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn plan(self) -> Result<(Arc<dyn ExecutionPlan>, Arc<TaskContext>), QueryError> {
        let Self { mut state, visible, request, memory_limit, permit: _permit } = self;
        let failed = |e| QueryError::from_engine(&e, memory_limit);
        let (logical, is_query) = understood(&mut state, &visible, &request, memory_limit).await?;
        let logical = logical.with_param_values(parameters::bind(&request.parameters)?).map_err(failed)?;
        guard::check_plan(&logical)?;
        let logical = match request.row_limit {
            Some(limit) if is_query => first_rows(logical, limit).map_err(failed)?,
            _ => logical,
        };
        let optimized = state.optimize(&logical).map_err(failed)?;
        let batch_rows = guard::batch_rows(&optimized, state.config().batch_size())?;
        state.config_mut().options_mut().execution.batch_size = batch_rows;
        let plan = state.query_planner().create_physical_plan(&optimized, &state).await.map_err(failed)?;
        Ok((plan, state.task_ctx()))
    }
}

/// The statement over the tables that its asker sees, its parameters without values yet; and whether it is a query.
async fn understood(
    state: &mut SessionState,
    visible: &Arc<Visible>,
    request: &QueryRequest,
    memory_limit: u64,
) -> Result<(LogicalPlan, bool), QueryError> {
    let failed = |e| QueryError::from_engine(&e, memory_limit);
    let statement = guard::parse(&request.sql, request.is_source)?;
    let is_query = guard::is_query(&statement);
    let references = state.resolve_table_references(&statement).map_err(failed)?;
    catalog::check_references(&references, guard::is_show(&statement))?;
    let catalogs = visible.catalog_for(&references, |name| state.table_functions().contains_key(name)).await?;
    state.register_catalog_list(catalogs);
    state.config_mut().options_mut().catalog.default_schema = visible.default_namespace().to_owned();
    // Then a number with a point is what it says, not the nearest of base two.
    state.config_mut().options_mut().sql_parser.parse_float_as_decimal = request.is_source;
    state.mark_start_execution();
    Ok((state.statement_to_plan(statement).await.map_err(failed)?, is_query))
}

/// The types of the parameters `$1`, `$2`, …, by their names, where the statement tells them.
pub(crate) async fn parameter_types(
    mut state: SessionState,
    options: &QueryOptions,
    request: QueryRequest,
    place: Place,
) -> Result<ParameterTypes, QueryError> {
    let memory_limit = options.memory_limit_bytes as u64;
    let visible = Arc::new(Visible::new(options.memtables.clone(), options.lake.clone(), &request));
    let planned = tokio::task::spawn_blocking(move || {
        // The place is held until it is done.
        let _place = place;
        Handle::current().block_on(async {
            let (plan, _) = understood(&mut state, &visible, &request, memory_limit).await?;
            plan.get_parameter_types().map_err(|e| QueryError::from_engine(&e, memory_limit))
        })
    });
    let after = options.default_limits.timeout;
    let planned = tokio::time::timeout(after, planned).await.map_err(|_| QueryError::Timeout { after })?;
    planned.map_err(|e| QueryError::internal(&e))?
}

fn first_rows(plan: LogicalPlan, limit: u64) -> datafusion::common::Result<LogicalPlan> {
    LogicalPlanBuilder::from(plan).limit(0, Some(usize::try_from(limit).unwrap_or(usize::MAX)))?.build()
}

/// The asker's side of a run.
struct Reader {
    receiver: mpsc::Receiver<News>,
    cancelled: oneshot::Receiver<()>,
    deadline: Instant,
    limits: QueryLimits,
    rows: u64,
    bytes: u64,
    task: AbortHandle,
    _name: ListedName,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reader {
    async fn news(&mut self) -> Result<Option<News>, QueryError> {
        let news = tokio::select! {
            biased;
            Ok(()) = &mut self.cancelled => return Err(QueryError::Cancelled),
            () = sleep_until(self.deadline) => return Err(QueryError::Timeout { after: self.limits.timeout }),
            news = self.receiver.recv() => news,
        };
        match news {
            Some(News::Failed(e)) => Err(e),
            Some(News::Ended) => Ok(None),
            None => Err(QueryError::Internal("the query's task ended without a word".to_owned())),
            rows => Ok(rows),
        }
    }

    async fn next_rows(&mut self) -> Result<Option<RecordBatch>, QueryError> {
        let Some(News::Rows(batch)) = self.news().await? else { return Ok(None) };
        self.rows = self.rows.saturating_add(batch.num_rows() as u64);
        self.bytes = self.bytes.saturating_add(columns::bytes_of(&batch));
        if self.rows > self.limits.max_rows {
            return Err(QueryError::TooManyRows { limit: self.limits.max_rows });
        }
        if self.bytes > self.limits.max_result_bytes {
            return Err(QueryError::ResultTooLarge { limit: self.limits.max_result_bytes });
        }
        Ok(Some(batch))
    }
}
