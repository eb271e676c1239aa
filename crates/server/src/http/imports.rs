//! Imports over HTTP: `POST /api/ingest/{parquet,csv,jsonl,sql,file,bulk,watch}`, watches, and jobs.
//!
//! Each import is a job: answered with 200 when it ended within `?wait=30s`, else with 202 and where to ask on.
#![allow(clippy::result_large_err, reason = "a problem is made at most once a request, and then answered")]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, FromRequestParts, Path, Query, State};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use lakegate_access::{Action, Principal};
use lakegate_model::{StreamName, TenantId};
use lakegate_places::PlaceError;
use lakegate_sources::files::{Asker, ImportRequest, Imports, JobState, JobView, StartError};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::App;
use super::identity::Caller;
use super::problem::Problem;
use super::request::CorrelationId;
use crate::config::Period;

/// How long an answer waits for the end where the request does not say.
const WAIT: Duration = Duration::from_secs(30);
/// The longest that it waits.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// The credentials that came with the request; none while authentication is off.
pub(super) struct Credentials(Option<Arc<Principal>>);

impl<S: Sync> FromRequestParts<S> for Credentials {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get::<Caller>().and_then(Caller::principal).cloned()))
    }
}

impl Credentials {
    /// Who asks, for the tenant that the request may name while authentication is off.
    pub(super) fn asker(&self, named: Option<&str>, id: &CorrelationId) -> Result<Asker, Problem> {
        let named = named.map(TenantId::new).transpose().map_err(|e| bad_request("tenant", &e.to_string()))?;
        let tenant = match (&self.0, named) {
            (Some(principal), Some(named)) if named != principal.tenant => {
                let detail = "the credentials are not for the tenant that `tenant` names";
                return Err(Problem::new(StatusCode::FORBIDDEN, "wrong_tenant", detail));
            }
            (Some(principal), _) => principal.tenant.clone(),
            (None, Some(named)) => named,
            (None, None) => TenantId::new("default").map_err(|e| bad_request("tenant", &e.to_string()))?,
        };
        Ok(Asker { tenant, principal: self.0.clone(), correlation_id: Some(id.as_str().to_owned()) })
    }

    /// Whether they allow writing to the stream.
    pub(super) fn check_write(&self, stream: &StreamName) -> Result<(), Problem> {
        match &self.0 {
            Some(principal) if !principal.may(Action::Write, stream) => {
                let detail = format!("the credentials do not allow writing to the stream {stream}");
                Err(Problem::new(StatusCode::FORBIDDEN, "not_allowed", detail))
            }
            _ => Ok(()),
        }
    }

    /// Whether they allow writing wherever the import may lead. Looked at before the job begins: after a restart it goes on
    /// for its tenant, without them.
    fn check_streams(&self, request: &ImportRequest) -> Result<(), Problem> {
        if let Some(stream) = &request.stream {
            let stream = StreamName::new(stream).map_err(|e| bad_request("stream", &e.to_string()))?;
            return self.check_write(&stream);
        }
        match &self.0 {
            Some(principal) if !principal.may_name(Action::Write, "*") => {
                let detail =
                    "an import that names no `stream` may lead to any; the credentials do not allow writing to all";
                Err(Problem::new(StatusCode::FORBIDDEN, "not_allowed", detail))
            }
            _ => Ok(()),
        }
    }

    /// Whether they allow changing what runs: it takes what it takes to begin it.
    fn check_change(&self) -> Result<(), Problem> {
        Ok(lakegate_access::check_some(self.0.as_deref(), Action::Write)?)
    }

    /// Whether they may see what belongs to the tenant.
    fn sees(&self, job: &JobView) -> bool {
        self.0.as_ref().is_none_or(|principal| principal.tenant.as_str() == job.tenant)
    }
}

/// How long to wait.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Waiting {
    wait: Option<String>,
}

impl Waiting {
    fn get(&self) -> Result<Duration, Problem> {
        wait_of(self.wait.as_deref())
    }
}

pub(super) fn wait_of(text: Option<&str>) -> Result<Duration, Problem> {
    match text {
        None => Ok(WAIT),
        Some("0") => Ok(Duration::ZERO),
        Some(text) => {
            let period = Period::parse(text).map_err(|e| bad_request("wait", &e.to_string()))?;
            Ok(period.get().min(WAIT_MAX))
        }
    }
}

/// Imports files of the kind that the path names.
pub(super) async fn import(
    State(app): State<Arc<App>>,
    Extension(id): Extension<CorrelationId>,
    Path(kind): Path<String>,
    Query(waiting): Query<Waiting>,
    credentials: Credentials,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let format = match kind.as_str() {
        "parquet" | "csv" | "jsonl" | "sql" => Some(kind),
        "file" | "bulk" | "watch" => None,
        _ => return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", KINDS)),
    };
    let watched = waiting.get()?;
    let mut request = read_request(&headers, &body)?;
    if let Some(format) = format.as_ref() {
        if request.format.as_ref().is_some_and(|given| given != format) {
            return Err(bad_request(
                "format",
                &format!("is another than that of /api/ingest/{format}; leave it out, or use /api/ingest/file"),
            ));
        }
        request.format = Some(format.clone());
    }
    credentials.check_streams(&request)?;
    let asker = credentials.asker(request.tenant.as_deref(), &id)?;
    let job = app.imports.start(asker, request).await.map_err(|e| problem_of(&e))?;
    answer(&app.imports, job, watched).await
}

const KINDS: &str = "imports are /api/ingest/parquet, csv, jsonl, sql, file, bulk and watch";

/// A job's figures now or soon.
pub(super) async fn answer(imports: &Imports, id: Uuid, wait: Duration) -> Result<Response, Problem> {
    let Some(job) = imports.wait(id, wait).await else { return Err(unknown_job()) };
    if job.state == JobState::Running {
        let location = [(LOCATION, format!("/api/jobs/{id}"))];
        return Ok((StatusCode::ACCEPTED, location, Json(job)).into_response());
    }
    Ok(Json(job).into_response())
}

/// Watches a place from now on.
pub(super) async fn watch(
    State(app): State<Arc<App>>,
    Extension(id): Extension<CorrelationId>,
    credentials: Credentials,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let request = read_request(&headers, &body)?;
    credentials.check_streams(&request)?;
    let asker = credentials.asker(request.tenant.as_deref(), &id)?;
    let id = app.imports.watch(asker, request).await.map_err(|e| problem_of(&e))?;
    let view = app.imports.watches().into_iter().find(|watch| watch.job.id == id);
    Ok((StatusCode::CREATED, [(LOCATION, format!("/api/ingest/watches/{id}"))], Json(view)).into_response())
}

/// The watches.
pub(super) async fn watches(State(app): State<Arc<App>>, credentials: Credentials) -> Json<Value> {
    let watches: Vec<_> = app.imports.watches().into_iter().filter(|watch| credentials.sees(&watch.job)).collect();
    Json(json!({ "watches": watches }))
}

/// One watch.
pub(super) async fn watch_of(
    State(app): State<Arc<App>>,
    credentials: Credentials,
    Path(id): Path<Uuid>,
) -> Result<Response, Problem> {
    let found = app.imports.watches().into_iter().find(|watch| watch.job.id == id && credentials.sees(&watch.job));
    found.map(|watch| Json(watch).into_response()).ok_or_else(unknown_watch)
}

/// Ends a watch for good.
pub(super) async fn unwatch(
    State(app): State<Arc<App>>,
    credentials: Credentials,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    credentials.check_change()?;
    let known = app.imports.watches().into_iter().any(|watch| watch.job.id == id && credentials.sees(&watch.job));
    match known.then(|| app.imports.unwatch(id)).flatten() {
        Some(Ok(())) => Ok(StatusCode::NO_CONTENT),
        Some(Err(e)) => Err(problem_of(&StartError::Disk(e))),
        None => Err(unknown_watch()),
    }
}

/// The jobs, newest first.
pub(super) async fn jobs(State(app): State<Arc<App>>, credentials: Credentials) -> Json<Value> {
    let jobs: Vec<_> = app.imports.jobs().into_iter().filter(|job| credentials.sees(job)).collect();
    Json(json!({ "jobs": jobs }))
}

/// One job, with `?wait=` at its end.
pub(super) async fn job(
    State(app): State<Arc<App>>,
    credentials: Credentials,
    Path(id): Path<Uuid>,
    Query(waiting): Query<Waiting>,
) -> Result<Response, Problem> {
    let wait = waiting.wait.as_deref().map_or(Ok(Duration::ZERO), |text| wait_of(Some(text)))?;
    if !app.imports.job(id).is_some_and(|job| credentials.sees(&job)) {
        return Err(unknown_job());
    }
    let found = app.imports.wait(id, wait).await;
    found.map(|job| Json(job).into_response()).ok_or_else(unknown_job)
}

/// Ends a job. What it committed stays.
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    credentials: Credentials,
    Path(id): Path<Uuid>,
) -> Result<Response, Problem> {
    credentials.check_change()?;
    if !app.imports.job(id).is_some_and(|job| credentials.sees(&job)) {
        return Err(unknown_job());
    }
    // It ends after the piece that it is at, which is soon.
    app.imports.cancel(id).ok_or_else(unknown_job)?;
    answer(&app.imports, id, Duration::from_secs(5)).await
}

fn read_request(headers: &HeaderMap, body: &Bytes) -> Result<ImportRequest, Problem> {
    // A page of another origin may send any other type without asking first.
    let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().is_none_or(|kind| !kind.trim().eq_ignore_ascii_case("application/json")) {
        let detail = "an import is asked for as application/json: {\"path\": \"/srv/drop/a.parquet\"}; to send the file itself, PUT it to /api/ingest/upload/{stream}";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong_content_type", detail));
    }
    serde_json::from_slice(body).map_err(|e| bad_request("body", &e.to_string()))
}

pub(super) fn bad_request(field: &str, reason: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_request", format!("{field}: {reason}")).with("field", field)
}

fn unknown_job() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "unknown_job",
        "there is no job of this id; GET /api/jobs lists those that there are",
    )
}

fn unknown_watch() -> Problem {
    let detail = "there is no watch of this id; GET /api/ingest/watches lists those that there are";
    Problem::new(StatusCode::NOT_FOUND, "unknown_watch", detail)
}

/// Why an import did not start, as an answer.
pub(super) fn problem_of(error: &StartError) -> Problem {
    let (status, code) = match error {
        StartError::Request(_) | StartError::NotWatchable(_) => (StatusCode::BAD_REQUEST, "invalid_request"),
        StartError::Empty { .. } => (StatusCode::NOT_FOUND, "no_files"),
        StartError::TooManyWatches => (StatusCode::TOO_MANY_REQUESTS, "too_many_watches"),
        StartError::Disk(_) => (StatusCode::SERVICE_UNAVAILABLE, "disk"),
        StartError::Ending => (StatusCode::SERVICE_UNAVAILABLE, "ending"),
        StartError::Place(place) => match place {
            PlaceError::Invalid { .. } | PlaceError::NotAFile { .. } => (StatusCode::BAD_REQUEST, "invalid_place"),
            PlaceError::Forbidden { .. } => (StatusCode::FORBIDDEN, "place_not_allowed"),
            PlaceError::NotFound { .. } => (StatusCode::NOT_FOUND, "place_not_found"),
            PlaceError::Denied { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "place_refuses"),
            PlaceError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "place_too_large"),
            PlaceError::Changed { .. } => (StatusCode::CONFLICT, "place_changed"),
            PlaceError::Unavailable { .. } => (StatusCode::BAD_GATEWAY, "place_unavailable"),
        },
    };
    let problem = Problem::new(status, code, error.to_string());
    match error {
        StartError::Place(PlaceError::Forbidden { setting, .. } | PlaceError::TooLarge { setting, .. }) => {
            problem.with("setting", *setting)
        }
        StartError::Request(e) => problem.with("field", e.field),
        StartError::Disk(_) | StartError::Ending | StartError::TooManyWatches => problem.retry_after(5),
        _ => problem,
    }
}
