//! The real lake.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use futures::{StreamExt, TryStreamExt};
use lakegate_lake::{Lake, LakeError, Op, Scalar, ScanRequest, TableView};
use lakegate_model::{LogId, TableName};

use super::{Comparison, Condition, LakeTables, LakeView, Literal, RowStream, ViewScan};
use crate::error::QueryError;

#[async_trait]
impl LakeTables for Lake {
    async fn list(&self) -> Result<Vec<TableName>, QueryError> {
        self.list_tables().await.map_err(|e| sorted(&e))
    }

    async fn newest_view(&self, name: &TableName) -> Result<Option<Arc<dyn LakeView>>, QueryError> {
        let table = self.find_table(name).await.map_err(|e| sorted(&e))?;
        Ok(table.map(|table| Arc::new(CommittedView::new(table.view())) as Arc<dyn LakeView>))
    }
}

/// Places and addresses stay in the log.
fn sorted(error: &LakeError) -> QueryError {
    if error.is_retryable() {
        tracing::warn!(%error, "a query could not read the lake");
        QueryError::Unavailable("the catalog or the files do not answer".to_owned())
    } else {
        QueryError::internal(error)
    }
}

struct CommittedView {
    view: Arc<TableView>,
    /// The totals of the current snapshot. Writers of other engines may leave some out.
    totals: HashMap<String, u64>,
}

impl fmt::Debug for CommittedView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, snapshot) = (self.view.name().to_string(), self.view.snapshot_id());
        f.debug_struct("CommittedView").field("table", &table).field("snapshot", &snapshot).finish_non_exhaustive()
    }
}

impl CommittedView {
    fn new(view: Arc<TableView>) -> Self {
        let current = view.snapshots().into_iter().find(|s| Some(s.snapshot_id) == view.snapshot_id());
        let totals =
            current.iter().flat_map(|s| &s.summary).filter_map(|(key, value)| Some((key.clone(), value.parse().ok()?)));
        let totals = totals.filter(|(key, _)| key.starts_with("total-")).collect();
        Self { view, totals }
    }

    fn total(&self, key: &str) -> Option<u64> {
        if self.view.snapshot_id().is_none() { Some(0) } else { self.totals.get(key).copied() }
    }
}

#[async_trait]
impl LakeView for CommittedView {
    fn schema(&self) -> SchemaRef {
        self.view.schema()
    }

    fn absorbed_next_offset(&self, log: LogId) -> u64 {
        self.view.absorbed_next_offset(log)
    }

    fn counter(&self, name: &str) -> u64 {
        self.view.counter(name)
    }

    fn total_records(&self) -> u64 {
        self.total("total-records").unwrap_or(0)
    }

    fn is_count_exact(&self) -> bool {
        self.total("total-records").is_some() && self.total("total-delete-files") == Some(0)
    }

    fn data_files(&self) -> u64 {
        self.total("total-data-files").unwrap_or(u64::MAX)
    }

    async fn scan(&self, request: ViewScan) -> Result<Vec<RowStream>, QueryError> {
        let request = ScanRequest {
            projection: Some(request.columns),
            filter: request.conditions.into_iter().map(condition).collect(),
            batch_size: request.batch_rows,
            concurrency: request.streams,
        };
        let streams = self.view.scan(request).await.map_err(|e| sorted(&e))?;
        Ok(streams.into_iter().map(|rows| rows.map_err(|e| sorted(&e)).boxed()).collect())
    }
}

fn condition(condition: Condition) -> lakegate_lake::Condition {
    let op = match condition.comparison {
        Comparison::Equal => Op::Eq,
        Comparison::Less => Op::Less,
        Comparison::LessOrEqual => Op::LessEq,
        Comparison::Greater => Op::Greater,
        Comparison::GreaterOrEqual => Op::GreaterEq,
        Comparison::IsNull => Op::IsNull,
        Comparison::IsNotNull => Op::NotNull,
    };
    let value = match condition.literal {
        Literal::None => Scalar::Null,
        Literal::Boolean(value) => Scalar::Boolean(value),
        Literal::Long(value) => Scalar::Long(value),
        Literal::Text(value) => Scalar::Text(value),
        Literal::Micros(value) => Scalar::Micros(value),
        Literal::Days(value) => Scalar::Days(value),
    };
    lakegate_lake::Condition { column: condition.column, op, value }
}
