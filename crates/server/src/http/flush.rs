//! `POST /api/flush`: brings what is in memory into the lake now, rather than by size or age.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::App;
use super::identity::Caller;
use super::problem::Problem;

/// Answers when everything that was durable at its beginning is in its tables.
pub(crate) async fn post(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Value>, Problem> {
    caller.check_operator()?;
    let offset = app.log.durable_offset();
    let failed = app.gate.flush_all().await;
    if failed.is_empty() {
        return Ok(Json(json!({ "committed_offset": offset })));
    }
    let list: Vec<String> = failed.iter().map(|(table, error)| format!("{table}: {error}")).collect();
    let detail =
        format!("not everything could be committed; it stays in the log and is tried again: {}", list.join("; "));
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_committed", detail).retry_after(5))
}
