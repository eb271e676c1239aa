//! Reads a table snapshot: some partitions from memory, some from the lake, all lazily.
//!
//! Promises: nothing is read before a partition is polled; memory is bounded by one batch for each partition beside
//! what the memtable holds anyway (its batches are shared, not copied). Rows moved to a file are streamed from it.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::ipc::reader::FileReader;
use datafusion::common::stats::Precision;
use datafusion::common::{DataFusionError, Result as EngineResult, Statistics};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::{RecordBatchReceiverStreamBuilder, RecordBatchStreamAdapter};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use lakegate_memtable::MemPart;
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use crate::columns;
use crate::error::QueryError;
use crate::lake::{Condition, LakeView, RowStream, ViewScan};
use crate::table::TableSnapshot;

/// A run of rows in memory, or a part whose rows were moved to a file; holding the part keeps its file.
#[derive(Debug, Clone)]
enum HotPiece {
    Rows(RecordBatch),
    File(PathBuf, MemPart),
}

/// The physical plan of a scan.
#[derive(Debug)]
pub(crate) struct ScanExec {
    table: String,
    schema: SchemaRef,
    hot: Vec<Vec<HotPiece>>,
    cold: Option<Arc<ColdScan>>,
    limit: Option<usize>,
    statistics: Statistics,
    properties: Arc<PlanProperties>,
}

impl ScanExec {
    pub(crate) fn new(
        table: &TableSnapshot,
        schema: SchemaRef,
        conditions: Vec<Condition>,
        limit: Option<usize>,
        streams: usize,
        batch_rows: usize,
    ) -> Self {
        let statistics = statistics(table, &schema, conditions.is_empty() && limit.is_none());
        let hot = divide(pieces(&table.hot, batch_rows), streams);
        let view = table.cold.clone().filter(|view| view.data_files() > 0);
        let cold = view.map(|view| Arc::new(ColdScan::new(view, &schema, conditions, streams, batch_rows)));
        let partitions = hot.len() + cold.as_ref().map_or(0, |c| c.request.streams);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(partitions.max(1)),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { table: table.name.to_string(), schema, hot, cold, limit, statistics, properties: Arc::new(properties) }
    }
}

/// The exact count of rows where every row is counted: then `count(*)` reads nothing.
fn statistics(table: &TableSnapshot, schema: &Schema, is_whole: bool) -> Statistics {
    let in_memory: usize = table.hot.iter().flat_map(|p| &p.batches).map(RecordBatch::num_rows).sum();
    let cold = table.cold.as_ref().map_or(0, |view| usize::try_from(view.total_records()).unwrap_or(usize::MAX));
    let is_counted =
        table.hot.iter().all(|p| p.spilled.is_none()) && table.cold.as_ref().is_none_or(|v| v.is_count_exact());
    let rows = in_memory.saturating_add(cold);
    let num_rows = if is_whole && is_counted { Precision::Exact(rows) } else { Precision::Inexact(rows) };
    Statistics { num_rows, ..Statistics::new_unknown(schema) }
}

fn pieces(parts: &[MemPart], batch_rows: usize) -> Vec<HotPiece> {
    let mut pieces = Vec::new();
    for part in parts {
        if let Some(path) = &part.spilled {
            pieces.push(HotPiece::File(path.clone(), part.clone()));
        }
        for batch in &part.batches {
            let slices = (0..batch.num_rows()).step_by(batch_rows);
            pieces.extend(slices.map(|at| HotPiece::Rows(batch.slice(at, batch_rows.min(batch.num_rows() - at)))));
        }
    }
    pieces
}

/// At most `groups` groups of about as many pieces, in order.
fn divide(pieces: Vec<HotPiece>, groups: usize) -> Vec<Vec<HotPiece>> {
    let size = pieces.len().div_ceil(groups).max(1);
    pieces.chunks(size).map(<[HotPiece]>::to_vec).collect()
}

impl HotPiece {
    fn open(self, schema: SchemaRef) -> BoxStream<'static, EngineResult<RecordBatch>> {
        match self {
            Self::Rows(batch) => stream::once(async move { Ok(columns::adapt(&batch, &schema)?) }).boxed(),
            Self::File(path, part) => read_file(path, part, schema).boxed(),
        }
    }
}

/// Streams the rows of an Arrow IPC file, one batch ahead.
fn read_file(path: PathBuf, part: MemPart, schema: SchemaRef) -> SendableRecordBatchStream {
    let mut builder = RecordBatchReceiverStreamBuilder::new(schema.clone(), 1);
    let sender = builder.tx();
    builder.spawn_blocking(move || {
        let reader = FileReader::try_new_buffered(File::open(path)?, None)?;
        for batch in reader {
            if sender.blocking_send(Ok(columns::adapt(&batch?, &schema)?)).is_err() {
                break;
            }
        }
        drop(part);
        Ok(())
    });
    builder.build()
}

/// The lake's share of a scan.
struct ColdScan {
    view: Arc<dyn LakeView>,
    request: ViewScan,
    /// How often each partition was executed. A partition that runs again (in a recursive query) reads the streams of
    /// a new scan, as those of one scan divide the rows among them.
    executed: Mutex<Vec<usize>>,
    scans: AsyncMutex<Vec<Vec<Option<RowStream>>>>,
}

impl fmt::Debug for ColdScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ColdScan").field("request", &self.request).finish_non_exhaustive()
    }
}

impl ColdScan {
    fn new(
        view: Arc<dyn LakeView>,
        schema: &Schema,
        conditions: Vec<Condition>,
        streams: usize,
        batch_rows: usize,
    ) -> Self {
        let lake = view.schema();
        let has = |name: &String| lake.field_with_name(name).is_ok();
        let columns = schema.fields().iter().map(|f| f.name().clone()).filter(has).collect();
        let streams = usize::try_from(view.data_files()).unwrap_or(usize::MAX).clamp(1, streams);
        let executed = Mutex::new(vec![0; streams]);
        Self {
            view,
            request: ViewScan { columns, conditions, batch_rows, streams },
            executed,
            scans: AsyncMutex::default(),
        }
    }

    /// The rows of one partition.
    fn open(self: Arc<Self>, index: usize, schema: SchemaRef) -> BoxStream<'static, EngineResult<RecordBatch>> {
        let run = self.executed.lock().get_mut(index).map_or(0, |count| std::mem::replace(count, *count + 1));
        let opened = async move { self.take_stream(run, index).await };
        let adapt = move |batch: RecordBatch| Ok(columns::adapt(&batch, &schema)?);
        stream::once(opened)
            .try_flatten()
            .map_err(DataFusionError::from)
            .and_then(move |b| std::future::ready(adapt(b)))
            .boxed()
    }

    async fn take_stream(&self, run: usize, index: usize) -> Result<RowStream, QueryError> {
        let mut scans = self.scans.lock().await;
        while scans.len() <= run {
            let streams = self.view.scan(self.request.clone()).await?;
            scans.push(fit(streams, self.request.streams));
        }
        let stream = scans.get_mut(run).and_then(|scan| scan.get_mut(index)).and_then(Option::take);
        Ok(stream.unwrap_or_else(|| stream::empty().boxed()))
    }
}

/// Exactly `count` streams: the last one goes through what is too many.
fn fit(mut streams: Vec<RowStream>, count: usize) -> Vec<Option<RowStream>> {
    if streams.len() > count {
        let rest = streams.split_off(count.saturating_sub(1));
        streams.push(stream::iter(rest).flatten().boxed());
    }
    streams.into_iter().map(Some).collect()
}

impl DisplayAs for ScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "LakegateScan: table={}, columns=[{}]", self.table, names.join(", "))?;
        write!(f, ", memory_partitions={}", self.hot.len())?;
        if let Some(cold) = &self.cold {
            let conditions =
                cold.request.conditions.iter().map(|c| format!("{} {:?} {:?}", c.column, c.comparison, c.literal));
            let conditions = conditions.collect::<Vec<_>>().join(" AND ");
            write!(f, ", lake_partitions={}, lake_conditions=[{conditions}]", cold.request.streams)?;
        }
        self.limit.map_or(Ok(()), |limit| write!(f, ", limit={limit}"))
    }
}

impl ExecutionPlan for ScanExec {
    fn name(&self) -> &'static str {
        "LakegateScan"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> EngineResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> EngineResult<SendableRecordBatchStream> {
        let schema = self.schema.clone();
        let rows = match (self.hot.get(partition), &self.cold) {
            (Some(pieces), _) => {
                let each = schema.clone();
                stream::iter(pieces.clone()).flat_map(move |piece| piece.open(each.clone())).boxed()
            }
            (None, Some(cold)) => cold.clone().open(partition - self.hot.len(), schema.clone()),
            (None, None) => stream::empty().boxed(),
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, first_rows(rows, self.limit))))
    }

    fn partition_statistics(&self, partition: Option<usize>) -> EngineResult<Statistics> {
        Ok(if partition.is_none() { self.statistics.clone() } else { Statistics::new_unknown(&self.schema) })
    }
}

/// Ends a stream after so many rows.
fn first_rows(
    rows: BoxStream<'static, EngineResult<RecordBatch>>,
    limit: Option<usize>,
) -> BoxStream<'static, EngineResult<RecordBatch>> {
    let Some(limit) = limit else { return rows };
    let take = |(mut rows, left): (BoxStream<'static, EngineResult<RecordBatch>>, usize)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(batch) = rows.try_next().await? else { return Ok(None) };
        let batch = if batch.num_rows() > left { batch.slice(0, left) } else { batch };
        let left = left - batch.num_rows();
        Ok(Some((batch, (rows, left))))
    };
    stream::try_unfold((rows, limit), take).boxed()
}
