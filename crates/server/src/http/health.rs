//! Is it alive, is it ready, is it well: `GET /livez`, `/readyz`, `/health`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lakegate_ingest::{ComponentHealth, HealthState};
use lakegate_sources::kafka::SourceState;
use serde_json::{Map, Value, json};

use super::App;
use super::dependencies;
use super::identity::Caller;
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

    fn of(state: HealthState) -> Self {
        match state {
            HealthState::Healthy => Self::Healthy,
            HealthState::Degraded => Self::Degraded,
            HealthState::Unhealthy => Self::Unhealthy,
        }
    }
}

/// The gate's components, and what only the process as a whole can know.
fn components(app: &App) -> Vec<(ComponentHealth, f64)> {
    let started = Instant::now();
    let mut found = app.gate.health();
    let gate_ms = started.elapsed().as_secs_f64() * 1e3;
    if !app.config.settings.storage.wal_enabled {
        found.push(ComponentHealth {
            name: "durability",
            state: HealthState::Degraded,
            message: "storage.wal_enabled is false: what is acknowledged and not yet committed is lost when this process dies".into(),
        });
    }
    found.extend(kafka_health(app));
    found.extend(kafka_log_health(app));
    let mut timed: Vec<_> = found.into_iter().map(|component| (component, gate_ms)).collect();
    let started = Instant::now();
    let disk = disk_health(app);
    timed.push((disk, started.elapsed().as_secs_f64() * 1e3));
    timed
}

/// How the Kafka sources are; none where there are none.
fn kafka_health(app: &App) -> Option<ComponentHealth> {
    let sources = app.kafka.status();
    let trouble = sources.iter().filter_map(|source| match &source.state {
        SourceState::Connecting | SourceState::Running => None,
        SourceState::Waiting(why) => Some(format!("{} waits: {why}", source.name)),
        SourceState::Stopped(why) => Some(format!("{} has stopped: {why}", source.name)),
    });
    let trouble: Vec<String> = trouble.collect();
    let state = if trouble.is_empty() { HealthState::Healthy } else { HealthState::Degraded };
    (!sources.is_empty()).then(|| ComponentHealth { name: "kafka", state, message: trouble.join("; ") })
}

/// How the log is that instances share; none where there is none.
fn kafka_log_health(app: &App) -> Option<ComponentHealth> {
    let sides = app.kafka_log.status()?;
    let mut component = ComponentHealth { name: "log", state: HealthState::Healthy, message: String::new() };
    for (side, state) in sides {
        let why = match state {
            SourceState::Running => continue,
            SourceState::Connecting => "looks for the topic".to_owned(),
            SourceState::Waiting(why) | SourceState::Stopped(why) => why,
        };
        // A gateway that cannot write refuses requests; tables can wait.
        let found = if side == "gateway" { HealthState::Unhealthy } else { HealthState::Degraded };
        component.state = component.state.max(found);
        component.message = [component.message, format!("{side}: {why}")].join(" ").trim().to_owned();
    }
    Some(component)
}

fn disk_health(app: &App) -> ComponentHealth {
    let least = app.config.settings.storage.min_free_disk.bytes();
    let (state, message) = match rustix::fs::statvfs(app.config.data_dir()) {
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            if free < least {
                (HealthState::Degraded, format!("{free} bytes are free, fewer than storage.min_free_disk ({least})"))
            } else {
                (HealthState::Healthy, String::new())
            }
        }
        Err(e) => (HealthState::Degraded, format!("the room on the disk cannot be told: {e}")),
    };
    ComponentHealth { name: "disk", state, message }
}

/// How the whole is.
pub(crate) fn overall(app: &App) -> Overall {
    let own = worst(components(app).iter().map(|(component, _)| component));
    dependencies::all(app).values().map(|one| one.state).max().unwrap_or(own).max(own)
}

fn worst<'a>(components: impl Iterator<Item = &'a ComponentHealth>) -> Overall {
    components.map(|c| Overall::of(c.state)).max().unwrap_or(Overall::Healthy)
}

/// `GET /health`: 200 while healthy or degraded, 503 when unhealthy.
pub(crate) async fn get(State(app): State<Arc<App>>, caller: Caller) -> Response {
    let components = components(&app);
    let overall = worst(components.iter().map(|(component, _)| component));
    let gate = app.gate.status(None, None);
    let failed = gate.totals.rejected + gate.totals.dead_lettered;
    #[allow(clippy::cast_precision_loss, reason = "a share for people")]
    let error_rate = failed as f64 / gate.totals.received.max(1) as f64;
    let dependencies = dependencies::all(&app);
    let overall = dependencies.values().map(|one| one.state).max().unwrap_or(overall).max(overall);
    let services: Map<String, Value> = components
        .iter()
        .map(|(c, ms)| {
            let hidden = c.message.is_empty() || caller.is_unknown();
            let error = if hidden { Value::Null } else { c.message.clone().into() };
            (c.name.to_owned(), json!({ "status": Overall::of(c.state).as_str(), "latencyMs": ms, "error": error }))
        })
        .chain(dependencies::services(&dependencies, caller.is_unknown()))
        .collect();
    let mut body = json!({
        "status": overall.as_str(),
        "version": VERSION,
        "node": app.config.settings.node.id,
        "uptimeSeconds": app.started.elapsed().as_secs(),
        "ready": app.readiness.reason().is_none(),
        "services": services,
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
