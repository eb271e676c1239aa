//! A table as one query sees it: rows in memory that the lake lacks, and one committed view of the lake.
//!
//! Promises (F-66): each row that was acknowledged before the query began is seen once, at every instant of freezing,
//! committing and dropping. That follows from the order alone: the memtable's snapshot is taken first, the lake's
//! newest view after it, and of the snapshot only the parts stay that the view has not absorbed. A part that is
//! committed in between is in the view; a part that is not yet is in the snapshot.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result as EngineResult;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use lakegate_memtable::{MemPart, Memtables};
use lakegate_model::TableName;

use crate::columns;
use crate::error::QueryError;
use crate::filter;
use crate::lake::{LakeTables, LakeView};
use crate::scan::ScanExec;

/// One table at one instant.
#[derive(Debug)]
pub(crate) struct TableSnapshot {
    pub(crate) name: TableName,
    /// The parts in memory that the view lacks.
    pub(crate) hot: Vec<MemPart>,
    pub(crate) cold: Option<Arc<dyn LakeView>>,
    pub(crate) schema: SchemaRef,
}

impl TableSnapshot {
    /// A table that is not the lake's.
    pub(crate) fn of_view(name: &TableName, view: Arc<dyn LakeView>) -> Self {
        let schema = columns::merge(Some(view.schema().as_ref()), None);
        Self { name: name.clone(), hot: Vec::new(), cold: Some(view), schema }
    }

    /// Takes the table's rows as they are now; none where neither side has such a table.
    pub(crate) async fn take(
        name: &TableName,
        memtables: &Memtables,
        lake: &dyn LakeTables,
    ) -> Result<Option<Self>, QueryError> {
        let snapshot = match memtables.get(name) {
            Some(memtable) => Some(memtable.snapshot().map_err(|e| QueryError::internal(&e))?),
            None => None,
        };
        let cold = lake.newest_view(name).await?;
        if snapshot.as_ref().is_some_and(|s| !s.is_settled) {
            return Err(QueryError::Unavailable(format!("the lake has not said yet how far {name} is")));
        }
        if snapshot.is_none() && cold.is_none() {
            return Ok(None);
        }
        let absorbed = cold.as_ref().map_or(0, |view| view.absorbed_next_offset(memtables.log_id()));
        let counter = |name: &str| cold.as_ref().map_or(0, |view| view.counter(name));
        let hot = snapshot.iter().flat_map(|s| s.lacking(absorbed, counter)).cloned().collect();
        let lake_schema = cold.as_ref().map(|view| view.schema());
        let schema = columns::merge(lake_schema.as_deref(), snapshot.as_ref().map(|s| s.schema.as_ref()));
        Ok(Some(Self { name: name.clone(), hot, cold, schema }))
    }
}

/// The engine's handle of a [`TableSnapshot`].
#[derive(Debug)]
pub(crate) struct SnapshotProvider(pub(crate) Arc<TableSnapshot>);

#[async_trait]
impl TableProvider for SnapshotProvider {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        self.0.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(indices) => Arc::new(self.0.schema.project(indices)?),
            None => self.0.schema.clone(),
        };
        let lake_schema = self.0.cold.as_ref().map(|view| view.schema());
        let conditions =
            lake_schema.iter().flat_map(|s| filters.iter().filter_map(|f| filter::condition(f, s))).collect();
        let options = session.config_options();
        let (streams, batch_rows) = (options.execution.target_partitions, options.execution.batch_size);
        Ok(Arc::new(ScanExec::new(&self.0, schema, conditions, limit, streams.max(1), batch_rows.max(1))))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> EngineResult<Vec<TableProviderFilterPushDown>> {
        let lake_schema = self.0.cold.as_ref().map(|view| view.schema());
        let support = |expr: &&Expr| match lake_schema.as_deref().and_then(|s| filter::condition(expr, s)) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }
}
