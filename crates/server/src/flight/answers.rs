//! What Flight SQL's calls are answered with.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::SqlInfo;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::{IpcMessage, SchemaAsIpc};
use futures::TryStreamExt;
use lakegate_query::QueryResult;
use serde::{Deserialize, Serialize};
use tonic::{Response, Status};

use super::{Flight, status_of};
use crate::statements::{Changed, Done, Inserted};

pub(super) type DoGet = <Flight as FlightService>::DoGetStream;

/// What a ticket fetches: rows, or what a statement came to that was done already.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Fetch {
    Sql(String),
    Stored { rows: u64, duplicates: u64, position: u64 },
    Done,
}

impl Fetch {
    pub(super) fn of(done: &Done) -> Self {
        match done {
            Done::Inserted(stored) | Done::Changed(Changed::Made(stored)) => {
                let Inserted { rows, duplicates, position } = *stored;
                Self::Stored { rows, duplicates, position }
            }
            Done::Changed(_) | Done::Rows(_) => Self::Done,
        }
    }

    pub(super) fn into_done(self) -> Done {
        match self {
            Self::Stored { rows, duplicates, position } => Done::Inserted(Inserted { rows, duplicates, position }),
            Self::Sql(_) | Self::Done => Done::Changed(Changed::Done("done")),
        }
    }
}

pub(super) fn get(result: QueryResult) -> Response<DoGet> {
    let QueryResult { schema, stream, .. } = result;
    let rows = stream.map_err(|error| FlightError::Tonic(Box::new(status_of(&error.into()))));
    let data = FlightDataEncoderBuilder::new().with_schema(schema).build(rows).map_err(Status::from);
    Response::new(Box::pin(data))
}

pub(super) fn get_one(batch: RecordBatch) -> Response<DoGet> {
    get(QueryResult::of(batch.schema(), vec![batch], String::new()))
}

pub(super) fn count_of(done: &Done) -> i64 {
    match done {
        Done::Inserted(stored) | Done::Changed(Changed::Made(stored)) => i64::try_from(stored.rows).unwrap_or(i64::MAX),
        Done::Changed(_) => 0,
        Done::Rows(_) => -1,
    }
}

pub(super) fn sql_info() -> Result<SqlInfoData, Status> {
    let mut builder = SqlInfoDataBuilder::new();
    builder.append(SqlInfo::FlightSqlServerName, "Lakegate");
    builder.append(SqlInfo::FlightSqlServerVersion, crate::cli::VERSION);
    builder.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    builder.append(SqlInfo::FlightSqlServerReadOnly, false);
    builder.append(SqlInfo::FlightSqlServerSql, true);
    builder.append(SqlInfo::FlightSqlServerSubstrait, false);
    builder.append(SqlInfo::FlightSqlServerTransaction, 0_i32);
    builder.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    builder.build().map_err(|error| Status::internal(error.to_string()))
}

/// A schema as messages carry it.
pub(super) fn schema_bytes(schema: &Schema) -> Result<bytes::Bytes, Status> {
    let message: Result<IpcMessage, _> = SchemaAsIpc::new(schema, &Default::default()).try_into();
    Ok(message.map_err(|error: arrow::error::ArrowError| Status::internal(error.to_string()))?.0)
}

/// What tells a client of a prepared statement which values it takes.
pub(super) fn parameters_of(types: Vec<DataType>) -> Schema {
    let field = |(at, kind): (usize, DataType)| Field::new(format!("${}", at + 1), kind, true);
    Schema::new(types.into_iter().enumerate().map(field).collect::<Vec<_>>())
}

pub(super) fn table_types_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("table_type", DataType::Utf8, false)]))
}
