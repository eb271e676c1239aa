//! `POST /api/sql`, `GET /api/sql`, `DELETE /api/sql/{id}`: statements, and the queries that run.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::error::ArrowError;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use lakegate_access::{Action, Peer};
use lakegate_ingest::Client;
use lakegate_query::output::{self, OutputFormat};
use lakegate_query::statement::{self, Statement};
use lakegate_query::{QueryError, QueryResult, SqlRequest};
use serde_json::{Value, json};

use super::App;
use super::identity::Caller;
use super::problem::Problem;
use super::request::CorrelationId;
use crate::statements::{Asker, Changed, Done, Kind, Run, StatementError};

/// The header that names the query in the answer.
const QUERY_ID: HeaderName = HeaderName::from_static("x-query-id");

/// The formats that an answer may have, for the error that names them.
const FORMATS: &str = "application/json, application/x-ndjson, text/csv, application/vnd.apache.arrow.stream";

/// Runs a query. Its id is the request's id unless it brings one of its own.
pub(crate) async fn run(
    State(app): State<Arc<App>>,
    Extension(id): Extension<CorrelationId>,
    peer: Option<Extension<Peer>>,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    // A page of another origin may send any other type without asking first.
    let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().is_none_or(|kind| !kind.trim().eq_ignore_ascii_case("application/json")) {
        let detail = "a query is sent as application/json: {\"sql\": \"SELECT 1\"}";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong_content_type", detail));
    }
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok());
    let format = OutputFormat::for_accept(accept).ok_or_else(|| {
        Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", format!("an answer is one of {FORMATS}"))
    })?;
    let request = SqlRequest::read(&body).map_err(|e| problem_of(&e))?;
    let query_id = request.query_id.clone().unwrap_or_else(|| id.as_str().to_owned());
    let run = run_of(request, query_id.clone(), &app)?;
    if !matches!(
        statement::read(&run.sql),
        Ok(Statement::Insert(_) | Statement::CreateTable(_) | Statement::DropTable { .. })
    ) {
        caller.check_some(Action::Read)?;
    }
    let address = peer.and_then(|Extension(peer)| peer.address);
    let user_agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let asker = Asker {
        principal: caller.principal().cloned(),
        scope: caller.scope(None)?,
        client: Client { address, user_agent },
        correlation_id: Some(id.as_str().to_owned()),
    };
    let done = app.statements.run(&asker, run).await.map_err(|e| failed(&e))?;
    let result = rows_of(done, &query_id).map_err(|e| failed(&StatementError::internal(&e)))?;
    let query_id = result.query_id.clone();
    let rows = output::body(result, format).inspect_err(|e| tracing::info!(error = %e, "a query ended early"));
    let mut response =
        (StatusCode::OK, [(CONTENT_TYPE, format.content_type())], Body::from_stream(rows)).into_response();
    if let Ok(value) = query_id.parse() {
        response.headers_mut().insert(QUERY_ID, value);
    }
    Ok(response)
}

fn run_of(request: SqlRequest, query_id: String, app: &App) -> Result<Run, Problem> {
    let namespace = request.namespace.clone();
    let query = request.into_query(&app.engine, None).map_err(|e| problem_of(&e))?;
    Ok(Run {
        sql: query.sql,
        parameters: query.parameters,
        namespace,
        row_limit: query.row_limit,
        timeout: query.limits.map(|limits| limits.timeout),
        query_id: Some(query_id),
        ..Run::default()
    })
}

/// What a statement came to as rows: what gives none tells what was done in one row.
pub(crate) fn rows_of(done: Done, query_id: &str) -> Result<QueryResult, ArrowError> {
    let number = |value: u64| Arc::new(Int64Array::from(vec![i64::try_from(value).unwrap_or(i64::MAX)])) as ArrayRef;
    let text = |value: String| Arc::new(StringArray::from(vec![value])) as ArrayRef;
    let columns = match done {
        Done::Rows(result) => return Ok(result),
        Done::Inserted(stored) | Done::Changed(Changed::Made(stored)) => vec![
            ("rows", number(stored.rows)),
            ("duplicates", number(stored.duplicates)),
            ("position", number(stored.position)),
        ],
        Done::Changed(Changed::Done(what)) => vec![("done", text(what.to_owned()))],
        Done::Changed(Changed::Use { namespace, .. }) => vec![("done", text(format!("USE {namespace}")))],
        Done::Changed(Changed::Prepared { name, .. }) => vec![("done", text(format!("PREPARE {name}")))],
        Done::Changed(Changed::Forgotten { name }) => vec![("done", text(format!("DEALLOCATE {name}")))],
    };
    let batch = RecordBatch::try_from_iter(columns)?;
    Ok(QueryResult::of(batch.schema(), vec![batch], query_id.to_owned()))
}

/// A statement's error as an answer.
fn failed(error: &StatementError) -> Problem {
    if let Some(query) = &error.query {
        return problem_of(query);
    }
    let status = match error.kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Exists | Kind::Cancelled => StatusCode::CONFLICT,
        Kind::Denied => StatusCode::FORBIDDEN,
        Kind::TooLarge => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Kind::Later => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let problem = Problem::new(status, error.code, error.message.clone());
    match error.retry_after_ms {
        Some(pause) => problem.retry_after(pause.div_ceil(1000)),
        None => problem,
    }
}

/// The queries that run.
pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Value>, Problem> {
    caller.check_some(Action::Read)?;
    let tenant = caller.scope(None)?;
    let running = app.engine.running(tenant.as_ref());
    let queries: Vec<Value> = running
        .into_iter()
        .map(|q| json!({ "id": q.query_id, "sql": q.sql, "elapsedMs": u64::try_from(q.elapsed.as_millis()).unwrap_or(u64::MAX) }))
        .collect();
    Ok(Json(json!({ "queries": queries })))
}

/// Ends a query.
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    caller.check_some(Action::Read)?;
    let tenant = caller.scope(None)?;
    if app.engine.cancel(&id, tenant.as_ref()) {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::new(
        StatusCode::NOT_FOUND,
        "unknown_query",
        "no query of this id runs; GET /api/sql lists those that do",
    ))
}

/// A query's error as an answer.
pub(crate) fn problem_of(error: &QueryError) -> Problem {
    let status = match error {
        QueryError::Syntax(_) | QueryError::Plan(_) | QueryError::TooComplex(_) | QueryError::Failed(_) => {
            StatusCode::BAD_REQUEST
        }
        QueryError::UnknownTable { .. } => StatusCode::NOT_FOUND,
        QueryError::NotAllowed(_) => StatusCode::FORBIDDEN,
        QueryError::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
        QueryError::TooManyRows { .. } | QueryError::ResultTooLarge { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        QueryError::Cancelled => StatusCode::CONFLICT,
        QueryError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        QueryError::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
        QueryError::OutOfMemory { .. } | QueryError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        QueryError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let problem = Problem::new(status, error.code(), error.to_string());
    match error {
        QueryError::TooManyRows { limit } | QueryError::ResultTooLarge { limit } => problem.with("limit", *limit),
        QueryError::Busy { .. } | QueryError::OutOfMemory { .. } | QueryError::Unavailable(_) => problem.retry_after(1),
        _ => problem,
    }
}
