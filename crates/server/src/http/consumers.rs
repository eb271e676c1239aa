//! `/api/consumers`: how sinks and routes are, and telling them what to do. For operators alone.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use lakegate_sinks::{ConsumerError, ConsumerStatus, Goto};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::identity::Caller;
use super::problem::Problem;
use super::time::rfc3339;

/// The most dead records of one answer.
const DEAD_MAX: usize = 10_000;

pub(super) fn routes() -> axum::Router<Arc<App>> {
    axum::Router::new()
        .route("/api/consumers", get(list))
        .route("/api/consumers/{id}", get(show))
        .route("/api/consumers/{id}/pause", post(pause))
        .route("/api/consumers/{id}/resume", post(resume))
        .route("/api/consumers/{id}/rewind", post(rewind))
        .route("/api/consumers/{id}/skip", post(skip))
        .route("/api/consumers/{id}/dead", get(dead).delete(purge))
        .route("/api/consumers/{id}/dead/replay", post(replay))
}

fn problem_of(error: &ConsumerError) -> Problem {
    let (status, code) = match error {
        ConsumerError::Unknown(_) => (StatusCode::NOT_FOUND, "unknown_consumer"),
        ConsumerError::Failed(_) => (StatusCode::CONFLICT, "not_done"),
        ConsumerError::Ended(_) => (StatusCode::SERVICE_UNAVAILABLE, "ending"),
    };
    Problem::new(status, code, error.to_string())
}

fn shown(status: &ConsumerStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let Some(members) = value.as_object_mut() {
        let at = members.remove("last_error_us").and_then(|us| us.as_i64());
        members.insert("last_error_at".to_owned(), at.map(rfc3339).into());
    }
    value
}

type Answer = Result<Json<Value>, Problem>;

fn answer(done: Result<ConsumerStatus, ConsumerError>) -> Answer {
    done.map(|status| Json(shown(&status))).map_err(|error| problem_of(&error))
}

async fn list(State(app): State<Arc<App>>, caller: Caller) -> Answer {
    caller.check_operator()?;
    let consumers: Vec<Value> = app.consumers.list().iter().map(shown).collect();
    Ok(Json(json!({ "consumers": consumers })))
}

async fn show(State(app): State<Arc<App>>, caller: Caller, Path(name): Path<String>) -> Answer {
    caller.check_operator()?;
    answer(app.consumers.show(&name))
}

async fn pause(State(app): State<Arc<App>>, caller: Caller, Path(name): Path<String>) -> Answer {
    caller.check_operator()?;
    answer(app.consumers.pause(&name).await)
}

async fn resume(State(app): State<Arc<App>>, caller: Caller, Path(name): Path<String>) -> Answer {
    caller.check_operator()?;
    answer(app.consumers.resume(&name).await)
}

/// Where to.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Where {
    /// `tail`, `head`, `lake` or an offset.
    to: Option<String>,
    /// A dead record's key.
    key: Option<String>,
}

async fn rewind(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(place): Query<Where>,
) -> Answer {
    caller.check_operator()?;
    let to = match place.to.as_deref() {
        Some("tail") => Some(Goto::Tail),
        Some("head") => Some(Goto::Head),
        Some("lake") => Some(Goto::Lake),
        Some(offset) => offset.parse().ok().map(Goto::Offset),
        None => None,
    };
    let wrong = || Problem::new(StatusCode::BAD_REQUEST, "invalid_request", "to is tail, head, lake or an offset");
    answer(app.consumers.rewind(&name, to.ok_or_else(wrong)?).await)
}

async fn skip(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(place): Query<Where>,
) -> Answer {
    caller.check_operator()?;
    let to = match place.to.as_deref() {
        None | Some("tail") => None,
        Some(offset) => Some(offset.parse().map_err(|_| {
            Problem::new(StatusCode::BAD_REQUEST, "invalid_request", "to is tail or an offset of the log")
        })?),
    };
    answer(app.consumers.skip(&name, to).await)
}

async fn dead(State(app): State<Arc<App>>, caller: Caller, Path(name): Path<String>) -> Answer {
    caller.check_operator()?;
    let mut records = app.consumers.dead(&name).map_err(|error| problem_of(&error))?;
    let total = records.len();
    records.truncate(DEAD_MAX);
    Ok(Json(json!({ "total": total, "dead": records })))
}

async fn purge(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(place): Query<Where>,
) -> Answer {
    caller.check_operator()?;
    let removed = app.consumers.purge(&name, place.key.as_deref()).map_err(|error| problem_of(&error))?;
    Ok(Json(json!({ "removed": removed })))
}

async fn replay(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(place): Query<Where>,
) -> Answer {
    caller.check_operator()?;
    let done = app.consumers.replay(&name, place.key.as_deref()).await.map_err(|error| problem_of(&error))?;
    Ok(Json(json!(done)))
}
