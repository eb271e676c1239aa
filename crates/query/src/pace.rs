//! Makes operators pause that give many rows for few, or look at many pairs of rows and give none.
//!
//! The engine pauses where rows come in. A join of two small tables works for hours without taking any more in, and a
//! task that never pauses can neither be cancelled nor share its thread. So what such operators give is handed on with
//! pauses, and what a join is given for looking up comes in slices that take it some milliseconds each.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result as EngineResult;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::execution::{RecordBatchStream, TaskContext};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream, Statistics,
};
use futures::{Stream, StreamExt};

/// Operators whose output is not bounded by their input.
const EXPANDING: [&str; 3] = ["CrossJoinExec", "UnnestExec", "RecursiveQueryExec"];
/// Joins that look up each row of their second input among all rows of their first.
const LOOKING_UP: [&str; 4] = ["NestedLoopJoinExec", "HashJoinExec", "SortMergeJoinExec", "PiecewiseMergeJoinExec"];

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
            if EXPANDING.contains(&node.name()) {
                return Ok(Transformed::yes(
                    Arc::new(PacedExec { input: node, slices: false }) as Arc<dyn ExecutionPlan>
                ));
            }
            if !LOOKING_UP.contains(&node.name()) {
                return Ok(Transformed::no(node));
            }
            let mut inputs: Vec<Arc<dyn ExecutionPlan>> = node.children().into_iter().cloned().collect();
            if let Some(looked_up) = inputs.pop() {
                inputs.push(Arc::new(PacedExec { input: looked_up, slices: true }));
            }
            let join = node.with_new_children(inputs)?;
            Ok(Transformed::yes(Arc::new(PacedExec { input: join, slices: false }) as Arc<dyn ExecutionPlan>))
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

/// Hands on what its input gives, with pauses.
#[derive(Debug)]
struct PacedExec {
    input: Arc<dyn ExecutionPlan>,
    /// Whether long batches are cut.
    slices: bool,
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
        Ok(Arc::new(Self { input, slices: self.slices }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> EngineResult<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let slice_rows = if self.slices { FIRST_SLICE_ROWS } else { usize::MAX };
        Ok(Box::pin(PacedStream {
            input,
            rest: None,
            slice_rows,
            slices: self.slices,
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
    /// What is left of a batch that is handed on in slices.
    rest: Option<RecordBatch>,
    slice_rows: usize,
    slices: bool,
    /// When the last slice was handed on.
    given: Instant,
    /// When the task paused last, as far as is seen here.
    paused: Instant,
}

impl PacedStream {
    /// Chooses the length of the next slice by how long the reader took for the last.
    fn adapt(&mut self, took: Duration) {
        if took > SLICE_TIME {
            self.slice_rows = (self.slice_rows / 2).max(LEAST_SLICE_ROWS);
        } else if took < SLICE_TIME / 4 {
            self.slice_rows = (self.slice_rows * 2).min(MOST_SLICE_ROWS);
        }
    }

    fn cut(&mut self, batch: RecordBatch) -> RecordBatch {
        self.given = Instant::now();
        if !self.slices || batch.num_rows() <= self.slice_rows {
            return batch;
        }
        self.rest = Some(batch.slice(self.slice_rows, batch.num_rows() - self.slice_rows));
        batch.slice(0, self.slice_rows)
    }
}

impl Stream for PacedStream {
    type Item = EngineResult<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.paused.elapsed() > PAUSE_AFTER {
            if self.slices {
                let took = self.given.elapsed();
                self.adapt(took);
            }
            self.paused = Instant::now();
            self.given = self.paused;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(rest) = self.rest.take() {
            if self.slices {
                let took = self.given.elapsed();
                self.adapt(took);
            }
            return Poll::Ready(Some(Ok(self.cut(rest))));
        }
        match self.input.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(batch))) => Poll::Ready(Some(Ok(self.cut(batch)))),
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
