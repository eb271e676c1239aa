//! Is it alive, is it ready, is it well: `GET /livez`, `/readyz`, `/health`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lakegate_ingest::HealthState;
use serde_json::{Value, json};

use super::App;
use super::identity::Caller;
use super::parts::{self, Part};
use super::time::rfc3339;
use crate::cli::VERSION;

/// What everybody is told; the rest is for those who are known.
const DOCUMENTED: [&str; 4] = ["status", "services", "metrics", "timestamp"];

/// How the whole is: as its worst part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Overall {
    Healthy,
    Degraded,
    Unhealthy,
}

impl Overall {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }

    pub(super) fn of(state: HealthState) -> Self {
        match state {
            HealthState::Healthy => Self::Healthy,
            HealthState::Degraded => Self::Degraded,
            HealthState::Unhealthy => Self::Unhealthy,
        }
    }
}

/// How the whole is.
pub(crate) fn overall(app: &App) -> Overall {
    worst(&parts::all(app))
}

fn worst(parts: &[Part]) -> Overall {
    parts.iter().map(|part| part.state).max().unwrap_or(Overall::Healthy)
}

/// `GET /health`: 200 while healthy or degraded, 503 when unhealthy.
pub(crate) async fn get(State(app): State<Arc<App>>, caller: Caller) -> Response {
    let parts = parts::all(&app);
    let overall = worst(&parts);
    let gate = app.gate.status(None, None);
    let failed = gate.totals.rejected + gate.totals.dead_lettered;
    #[allow(clippy::cast_precision_loss, reason = "a share for people")]
    let error_rate = failed as f64 / gate.totals.received.max(1) as f64;
    let mut body = json!({
        "status": overall.as_str(),
        "version": VERSION,
        "node": app.config.settings.node.id,
        "uptimeSeconds": app.started.elapsed().as_secs(),
        "ready": app.readiness.reason().is_none(),
        "services": parts::services(&app, &parts, caller.is_unknown()),
        "metrics": {
            "eventsPerSecond": gate.rate_1m.max(0.0),
            "activeConnections": app.connections() + app.sockets.figures().active.load(Ordering::Relaxed),
            "errorRate": error_rate,
        },
        "timestamp": rfc3339(app.clock.wall_us()),
    });
    if caller.is_unknown()
        && let Some(members) = body.as_object_mut()
    {
        members.retain(|name, _| DOCUMENTED.contains(&name.as_str()));
    }
    let status = if overall == Overall::Unhealthy { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(body)).into_response()
}

/// `GET /livez`: the process answers.
pub(crate) async fn live() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// `GET /readyz`: records may be sent here now; else why not.
pub(crate) async fn ready(State(app): State<Arc<App>>, caller: Caller) -> Response {
    let mut reasons: Vec<String> = app.readiness.reason().into_iter().map(str::to_owned).collect();
    let failing = app.gate.health().into_iter().filter(|c| c.state == HealthState::Unhealthy);
    reasons.extend(
        failing.map(|c| if caller.is_unknown() { c.name.to_owned() } else { format!("{}: {}", c.name, c.message) }),
    );
    if reasons.is_empty() {
        return Json(json!({ "ready": true })).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "reasons": reasons }))).into_response()
}
