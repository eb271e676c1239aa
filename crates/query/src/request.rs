//! A query as JSON in, its rows as bytes out: all that a way in over HTTP needs.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use lakegate_model::TenantId;
use serde::Deserialize;
use serde_json::Value;

use crate::engine::{QueryEngine, QueryRequest};
use crate::error::QueryError;
use crate::output::{self, OutputFormat};

/// `{"sql": "…", "parameters": [..], "limit": 100, "timeout": "5s", "query_id": "…", "namespace": "…"}`; only `sql` is needed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlRequest {
    /// The statement.
    pub sql: String,
    /// Values of `$1`, `$2`, ….
    #[serde(default)]
    pub parameters: Vec<Value>,
    /// Only this many rows are wanted.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Seconds as a number, or a text such as `"500ms"`, `"5s"`, `"2m"`.
    #[serde(default)]
    pub timeout: Option<Value>,
    /// A name to cancel the query by.
    #[serde(default)]
    pub query_id: Option<String>,
    /// The namespace of names that have none.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// The answer to a [`SqlRequest`].
pub struct SqlResponse {
    /// For the `Content-Type` header.
    pub content_type: &'static str,
    /// The query's name while it runs.
    pub query_id: String,
    /// The rows. An error ends it in the middle: the connection must then be broken off.
    pub body: BoxStream<'static, Result<Bytes, QueryError>>,
}

impl std::fmt::Debug for SqlResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlResponse").field("query_id", &self.query_id).finish_non_exhaustive()
    }
}

impl SqlRequest {
    /// Reads the JSON of a request.
    ///
    /// # Errors
    /// [`QueryError::Syntax`] with what is wrong in it.
    pub fn read(body: &[u8]) -> Result<Self, QueryError> {
        serde_json::from_slice(body).map_err(|e| {
            let form = r#"{"sql": "SELECT 1", "parameters": [], "limit": 100, "timeout": "5s"}"#;
            QueryError::Syntax(format!("the request is not of the form {form}: {e}"))
        })
    }

    /// The same for the engine, as asked by that tenant.
    ///
    /// # Errors
    /// [`QueryError::Syntax`] when the time-out is no duration.
    pub fn into_query(self, engine: &QueryEngine, tenant: Option<TenantId>) -> Result<QueryRequest, QueryError> {
        let mut limits = engine.default_limits();
        if let Some(timeout) = &self.timeout {
            limits.timeout = duration(timeout)?;
        }
        let Self { sql, parameters, limit, query_id, namespace, .. } = self;
        let (limits, row_limit) = (Some(limits), limit);
        Ok(QueryRequest { sql, parameters, tenant, limits, row_limit, query_id, namespace, ..QueryRequest::default() })
    }
}

impl QueryEngine {
    /// Answers a request's JSON in the format that `accept` likes best. Gives its answer when the first rows are there,
    /// so that what goes wrong before them has a status of its own.
    ///
    /// # Errors
    /// The request cannot be read, the format is none of ours, or the query failed before its first rows.
    pub async fn answer(
        &self,
        body: &[u8],
        accept: Option<&str>,
        tenant: Option<TenantId>,
    ) -> Result<SqlResponse, QueryError> {
        let format = OutputFormat::for_accept(accept).ok_or_else(|| {
            let kinds =
                "application/json, application/x-ndjson, text/csv, text/plain, application/vnd.apache.arrow.stream";
            QueryError::NotAcceptable(kinds.to_owned())
        })?;
        let result = self.sql(SqlRequest::read(body)?.into_query(self, tenant)?).await?;
        let query_id = result.query_id.clone();
        Ok(SqlResponse { content_type: format.content_type(), query_id, body: output::body(result, format) })
    }
}

fn duration(value: &Value) -> Result<Duration, QueryError> {
    let seconds = match value {
        Value::Number(seconds) => seconds.as_f64(),
        Value::String(text) => {
            let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
            let number = text.get(..text.len() - unit.len()).and_then(|n| n.parse::<f64>().ok());
            let factor = match unit.trim() {
                "ms" => Some(0.001),
                "s" | "" => Some(1.0),
                "m" => Some(60.0),
                "h" => Some(3600.0),
                _ => None,
            };
            number.zip(factor).map(|(number, factor)| number * factor)
        }
        _ => None,
    };
    let found = seconds.filter(|s| *s > 0.0).and_then(|s| Duration::try_from_secs_f64(s).ok());
    found.ok_or_else(|| {
        QueryError::Syntax(format!(
            "the timeout {value} is no duration; write seconds as a number, or \"500ms\", \"5s\", \"2m\""
        ))
    })
}
