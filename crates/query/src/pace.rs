//! Makes operators pause that give many rows for few, or look at many pairs of rows and give none.
//!
//! The engine pauses where rows come in. A join of two small tables works for hours without taking any more in, and a
//! task that never pauses can neither be cancelled nor share its thread. So what such operators give is handed on with
//! pauses, and what a join is given for looking up comes in slices that take it some milliseconds each.
//!
//! Such operators copy a row as often as it matches, a whole batch at once and uncounted by the memory limit: rows that
//! are too wide for that are refused where they go in.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::kernels::length::length;
use datafusion::arrow::compute::{cast, max};
use datafusion::arrow::datatypes::{DataType, Int64Type, SchemaRef};
use datafusion::common::Result as EngineResult;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::execution::{RecordBatchStream, TaskContext};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream, Statistics,
};
use futures::{Stream, StreamExt};

use crate::columns;
use crate::error::QueryError;

/// Operators that give each row of their inputs many times.
const MULTIPLYING: [&str; 2] = ["CrossJoinExec", "RecursiveQueryExec"];
/// Joins that look up each row of their second input among all rows of their first.
const LOOKING_UP: [&str; 4] = ["NestedLoopJoinExec", "HashJoinExec", "SortMergeJoinExec", "PiecewiseMergeJoinExec"];

/// The widest row that goes into a join. Together with [`JOIN_BATCH_ROWS`] it bounds a batch of what comes out.
const MAX_JOIN_ROW_BYTES: u64 = 256 * 1024;
/// The most rows of a batch in a query with joins or unnested arrays.
pub(crate) const JOIN_BATCH_ROWS: usize = 2048;
/// The most bytes that unnesting one row may copy.
const MAX_UNNESTED_BYTES: u64 = 256 * 1024 * 1024;

/// The longest that a task goes on without a pause, where it can be helped.
const PAUSE_AFTER: Duration = Duration::from_millis(20);
/// A slice that took longer than this is followed by one half as long; one that took a quarter, by one twice as long.
const SLICE_TIME: Duration = Duration::from_millis(20);
const FIRST_SLICE_ROWS: usize = 512;
const LEAST_SLICE_ROWS: usize = 8;
const MOST_SLICE_ROWS: usize = 8192;

/// The last rule of the physical optimizer.
#[derive(Debug)]
pub(crate) struct PaceExpandingOperators;

impl PhysicalOptimizerRule for PaceExpandingOperators {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let paced = plan.transform_up(|node| {
            let guards: Vec<Guard> = if let Some(unnest) = node.as_any().downcast_ref::<UnnestExec>() {
                let columns = unnest.list_column_indices().iter().map(|l| l.index_in_input_schema).collect();
                vec![Guard::Unnested(columns)]
            } else if MULTIPLYING.contains(&node.name()) {
                vec![Guard::Narrow; node.children().len()]
            } else if LOOKING_UP.contains(&node.name()) {
                vec![Guard::Narrow, Guard::Sliced]
            } else {
                return Ok(Transformed::no(node));
            };
            let inputs =
                node.children().into_iter().cloned().zip(guards).map(|(input, guard)| paced(input, guard)).collect();
            Ok(Transformed::yes(paced(node.with_new_children(inputs)?, Guard::None)))
        })?;
        Ok(paced.data)
    }

    fn name(&self) -> &'static str {
        "pace_expanding_operators"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// What is looked at before rows are handed on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Guard {
    None,
    /// No row is too wide to be copied for each of a batch.
    Narrow,
    /// The same, and long batches are cut.
    Sliced,
    /// The rows are not too wide to be copied for each value of their arrays, which these columns are.
    Unnested(Vec<usize>),
}

fn paced(input: Arc<dyn ExecutionPlan>, guard: Guard) -> Arc<dyn ExecutionPlan> {
    Arc::new(PacedExec { input, guard })
}

/// Hands on what its input gives, with pauses.
#[derive(Debug)]
struct PacedExec {
    input: Arc<dyn ExecutionPlan>,
    guard: Guard,
}

impl DisplayAs for PacedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacedExec")
    }
}

impl ExecutionPlan for PacedExec {
    fn name(&self) -> &'static str {
        "PacedExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let input = children.pop().unwrap_or_else(|| self.input.clone());
        Ok(paced(input, self.guard.clone()))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> EngineResult<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let guard = self.guard.clone();
        let slice_rows = if guard == Guard::Sliced { FIRST_SLICE_ROWS } else { usize::MAX };
        Ok(Box::pin(PacedStream {
            input,
            guard,
            rest: None,
            slice_rows,
            given: Instant::now(),
            paused: Instant::now(),
        }))
    }

    fn partition_statistics(&self, partition: Option<usize>) -> EngineResult<Statistics> {
        self.input.partition_statistics(partition)
    }
}

struct PacedStream {
    input: SendableRecordBatchStream,
    guard: Guard,
    /// What is left of a batch that is handed on in slices.
    rest: Option<RecordBatch>,
    slice_rows: usize,
    /// When the last slice was handed on.
    given: Instant,
    /// When the task paused last, as far as is seen here.
    paused: Instant,
}

impl PacedStream {
    /// Chooses the length of the next slice by how long the reader took for the last.
    fn adapt(&mut self) {
        let took = self.given.elapsed();
        if self.guard != Guard::Sliced {
            return;
        }
        if took > SLICE_TIME {
            self.slice_rows = (self.slice_rows / 2).max(LEAST_SLICE_ROWS);
        } else if took < SLICE_TIME / 4 {
            self.slice_rows = (self.slice_rows * 2).min(MOST_SLICE_ROWS);
        }
    }

    /// The rows to hand on now; the rest is kept.
    fn cut(&mut self, batch: RecordBatch) -> EngineResult<RecordBatch> {
        self.given = Instant::now();
        let rows = match &self.guard {
            Guard::Unnested(columns) => unnestable_rows(&batch, columns)?,
            _ => self.slice_rows.min(batch.num_rows()),
        };
        if rows >= batch.num_rows() {
            return Ok(batch);
        }
        self.rest = Some(batch.slice(rows, batch.num_rows() - rows));
        Ok(batch.slice(0, rows))
    }
}

/// Halves the rows until none of their parts is too wide, or a single one is.
fn check_width(batch: &RecordBatch) -> EngineResult<()> {
    if columns::bytes_of(batch) <= MAX_JOIN_ROW_BYTES {
        return Ok(());
    }
    let half = batch.num_rows() / 2;
    if half == 0 {
        let why =
            format!("a row of more than {MAX_JOIN_ROW_BYTES} bytes goes into a join; join without its long columns");
        return Err(QueryError::TooComplex(why).into());
    }
    check_width(&batch.slice(0, half))?;
    check_width(&batch.slice(half, batch.num_rows() - half))
}

/// How many rows can be unnested at once: the rest of a row is copied for each value of its arrays.
fn unnestable_rows(batch: &RecordBatch, arrays: &[usize]) -> EngineResult<usize> {
    let others: Vec<usize> = (0..batch.num_columns()).filter(|column| !arrays.contains(column)).collect();
    let others = batch.project(&others)?;
    let mut rows = batch.num_rows();
    loop {
        let longest = |column: &usize| Some(longest_array(&batch.columns().get(*column)?.slice(0, rows)));
        let longest = arrays.iter().filter_map(longest).max().unwrap_or(0);
        let bytes = columns::bytes_of(&others.slice(0, rows)).saturating_mul(longest);
        if rows == 0 || bytes <= MAX_UNNESTED_BYTES {
            return Ok(rows);
        }
        if rows == 1 {
            let why = format!(
                "unnesting one row would copy its other columns to {bytes} bytes, the most is {MAX_UNNESTED_BYTES}"
            );
            return Err(QueryError::TooComplex(why).into());
        }
        rows /= 2;
    }
}

fn longest_array(array: &ArrayRef) -> u64 {
    let lengths = length(array).and_then(|lengths| cast(&lengths, &DataType::Int64)).ok();
    let longest = lengths.as_ref().and_then(|l| max(l.as_primitive_opt::<Int64Type>()?));
    longest.unwrap_or(0).max(0).unsigned_abs()
}

impl Stream for PacedStream {
    type Item = EngineResult<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.paused.elapsed() > PAUSE_AFTER {
            self.adapt();
            self.paused = Instant::now();
            self.given = self.paused;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(rest) = self.rest.take() {
            self.adapt();
            return Poll::Ready(Some(self.cut(rest)));
        }
        match self.input.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(batch))) => {
                let checked = match &self.guard {
                    Guard::Narrow | Guard::Sliced => check_width(&batch),
                    Guard::None | Guard::Unnested(_) => Ok(()),
                };
                Poll::Ready(Some(checked.and_then(|()| self.cut(batch))))
            }
            Poll::Pending => {
                self.paused = Instant::now();
                Poll::Pending
            }
            other => other,
        }
    }
}

impl RecordBatchStream for PacedStream {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}
