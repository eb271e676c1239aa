//! `POST /api/sql`, `GET /api/sql`, `DELETE /api/sql/{id}`: queries over memory and lake.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use lakegate_access::Action;
use lakegate_query::output::{self, OutputFormat};
use lakegate_query::{QueryError, Readable, SqlRequest};
use serde_json::{Value, json};

use super::App;
use super::identity::Caller;
use super::problem::Problem;
use super::request::CorrelationId;

/// The header that names the query in the answer.
const QUERY_ID: HeaderName = HeaderName::from_static("x-query-id");

/// The formats that an answer may have, for the error that names them.
const FORMATS: &str = "application/json, application/x-ndjson, text/csv, application/vnd.apache.arrow.stream";

/// Runs a query. Its id is the request's id unless it brings one of its own.
pub(crate) async fn run(
    State(app): State<Arc<App>>,
    Extension(id): Extension<CorrelationId>,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    caller.check_some(Action::Read)?;
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
    let mut request = SqlRequest::read(&body).map_err(|e| problem_of(&e))?;
    request.query_id.get_or_insert_with(|| id.as_str().to_owned());
    let tenant = caller.scope(None)?;
    let mut query = request.into_query(&app.engine, tenant).map_err(|e| problem_of(&e))?;
    query.readable = readable(&caller);
    let result = app.engine.sql(query).await.map_err(|e| problem_of(&e))?;
    let query_id = result.query_id.clone();
    let rows = output::body(result, format).inspect_err(|e| tracing::info!(error = %e, "a query ended early"));
    let mut response =
        (StatusCode::OK, [(CONTENT_TYPE, format.content_type())], Body::from_stream(rows)).into_response();
    if let Ok(value) = query_id.parse() {
        response.headers_mut().insert(QUERY_ID, value);
    }
    Ok(response)
}

/// Which of its tenant's tables the caller may read, where these are not all.
fn readable(caller: &Caller) -> Option<Readable> {
    let principal = caller.principal()?.clone();
    let all = principal.is_operator() || principal.may_all(Action::Read);
    (!all).then(|| Readable::new(move |table| principal.may_name(Action::Read, &table.name)))
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
