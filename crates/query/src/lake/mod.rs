//! What queries need of a lake: names, the newest committed view of a table, and its rows as streams.
//!
//! The real lake implements it (`committed`); tests put a lake in its place that commits at the instants they choose.

mod committed;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use futures::stream::BoxStream;
use lakegate_model::{LogId, TableName};

use crate::error::QueryError;

/// Rows of a view, read as they are asked for.
pub type RowStream = BoxStream<'static, Result<RecordBatch, QueryError>>;

/// The committed tables.
#[async_trait]
pub trait LakeTables: Debug + Send + Sync {
    /// The names of all tables.
    ///
    /// # Errors
    /// The catalog cannot be reached.
    async fn list(&self) -> Result<Vec<TableName>, QueryError>;

    /// The state of the table that was committed last when this was called, or none where there is no such table.
    ///
    /// # Errors
    /// The catalog cannot be reached.
    async fn newest_view(&self, name: &TableName) -> Result<Option<Arc<dyn LakeView>>, QueryError>;
}

/// A table beside the lake's, as a query names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BesideName<'a> {
    /// By a table's name.
    Table(&'a TableName),
    /// By the place where a file lies, such as `s3://bucket/a.csv`.
    Place(&'a str),
}

/// Tables of one asker beside those of the lake: files.
#[async_trait]
pub trait TablesBeside: Debug + Send + Sync {
    /// The tables that have names.
    fn names(&self) -> Vec<TableName>;

    /// The table of that name, if there is one. Asked before the lake.
    ///
    /// # Errors
    /// It cannot be read, or not by this asker.
    async fn view(&self, name: BesideName<'_>) -> Result<Option<Arc<dyn LakeView>>, QueryError>;
}

/// One committed state of one table; it does not change.
#[async_trait]
pub trait LakeView: Debug + Send + Sync {
    /// The columns.
    fn schema(&self) -> SchemaRef;

    /// Every row of that log below this offset is in this view.
    fn absorbed_next_offset(&self, log: LogId) -> u64;

    /// What a counter of the table has come to; 0 where it was never counted.
    fn counter(&self, name: &str) -> u64;

    /// How many rows the view has by its own count.
    fn total_records(&self) -> u64;

    /// Whether [`Self::total_records`] is how many rows a scan gives: no rows are deleted by files of deletes.
    fn is_count_exact(&self) -> bool;

    /// How many files of rows, at most: more streams than these are of no use.
    fn data_files(&self) -> u64;

    /// Begins to read: at most `request.streams` streams that together give each row once.
    ///
    /// # Errors
    /// The catalog or the files cannot be read.
    async fn scan(&self, request: ViewScan) -> Result<Vec<RowStream>, QueryError>;
}

/// What to read of a view.
#[derive(Debug, Clone)]
pub struct ViewScan {
    /// The columns to read; with none, the rows are only counted.
    pub columns: Vec<String>,
    /// Rows for which one of these does not hold need not be given.
    pub conditions: Vec<Condition>,
    /// The most rows of a batch.
    pub batch_rows: usize,
    /// The most streams.
    pub streams: usize,
}

/// A comparison of a column with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The column's name.
    pub column: String,
    /// How it is compared.
    pub comparison: Comparison,
    /// With what; [`Literal::None`] for the two that ask for null.
    pub literal: Literal,
}

/// How a column is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Comparison {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    IsNull,
    IsNotNull,
}

/// A value that a column is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Literal {
    /// No value.
    None,
    /// For boolean columns.
    Boolean(bool),
    /// For int and long columns.
    Long(i64),
    /// For text columns.
    Text(String),
    /// For timestamp columns: microseconds since 1970.
    Micros(i64),
    /// For date columns: days since 1970.
    Days(i32),
}
