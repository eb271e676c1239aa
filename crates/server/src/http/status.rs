//! `GET /api/status`: what came in and what became of it, per stream; the same figures as gRPC's `GetIngestionStatus`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use lakegate_access::Action;
use lakegate_ingest::StreamStatus;
use lakegate_model::{StreamName, TenantId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::identity::Caller;
use super::problem::Problem;
use super::time::rfc3339;
use crate::cli::VERSION;

/// Which streams.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    tenant: Option<String>,
    stream: Option<String>,
}

pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(asked): Query<Asked>,
) -> Result<Json<Value>, Problem> {
    caller.check_some(Action::Read)?;
    let wrong = |e: lakegate_model::NameError| Problem::new(StatusCode::BAD_REQUEST, "invalid_name", e.to_string());
    let tenant = asked.tenant.as_deref().map(TenantId::new).transpose().map_err(wrong)?;
    let stream = asked.stream.as_deref().map(StreamName::new).transpose().map_err(wrong)?;
    let tenant = caller.scope(tenant)?;
    let mut gate = app.gate.status(tenant.as_ref(), stream.as_ref());
    if let Some(principal) = caller.principal() {
        gate.keep_readable(principal);
    }
    for stream in gate.streams.iter_mut().filter(|s| s.snapshot_id.is_none() && s.absorbed_offset > 0) {
        ask_catalog(&app, stream).await;
    }
    let log = app.log.status();
    let totals = &gate.totals;
    let mut body = json!({
        "node": app.config.settings.node.id,
        "version": VERSION,
        "uptime_seconds": app.started.elapsed().as_secs(),
        "health": super::health::overall(&app).as_str(),
        "wal": {
            "enabled": app.config.settings.storage.wal_enabled,
            "id": log.id.to_string(),
            "epoch": log.epoch,
            "bytes": log.bytes,
            "quota_bytes": log.quota_bytes,
            "segments": log.segments,
            "first_offset": log.first_offset,
            "next_offset": log.next_offset,
            "durable_offset": log.durable_offset,
            "last_sync_us": log.last_sync_us,
        },
        "memory": {
            "memtable_bytes": gate.memtable_bytes,
            "inflight_bytes": gate.inflight_bytes,
            "budget_bytes": gate.memory_budget,
        },
        "totals": {
            "received": totals.received,
            "accepted": totals.accepted,
            "duplicates": totals.duplicate,
            "rejected": totals.rejected,
            "dead_lettered": totals.dead_lettered,
            "bytes": totals.bytes,
            "rate_1m": gate.rate_1m.max(0.0),
        },
        "streams": gate.streams.iter().map(stream_json).collect::<Vec<_>>(),
    });
    if !caller.is_operator()
        && let Some(members) = body.as_object_mut()
    {
        members.retain(|name, _| !matches!(name.as_str(), "wal" | "memory"));
    }
    Ok(Json(body))
}

/// After a start, the gate knows a table's snapshot only once it commits; the catalog knows it at once. Where the catalog
/// is away, the snapshot stays unknown.
async fn ask_catalog(app: &App, stream: &mut StreamStatus) {
    let Ok(Some(table)) = app.lake.find_table(&stream.table).await else { return };
    let view = table.view();
    stream.snapshot_id = view.snapshot_id();
    stream.last_commit_us = view.committed_at_us();
    #[allow(clippy::cast_precision_loss, reason = "seconds for people")]
    let seconds_since = |us: i64| (app.clock.wall_us() - us).max(0) as f64 / 1e6;
    stream.seconds_since_commit = stream.last_commit_us.map(seconds_since);
}

fn stream_json(stream: &StreamStatus) -> Value {
    let tally = &stream.tally;
    json!({
        "tenant": stream.key.tenant,
        "stream": stream.key.stream,
        "event_type": Some(&stream.part).filter(|part| !part.is_empty()),
        "table": stream.table.to_string(),
        "received": tally.received,
        "accepted": tally.accepted,
        "duplicates": tally.duplicate,
        "rejected": tally.rejected,
        "dead_lettered": tally.dead_lettered,
        "bytes": tally.bytes,
        "rate_1m": stream.rate_1m,
        "memtable_records": stream.memtable_records,
        "memtable_bytes": stream.memtable_bytes,
        "durable_offset": stream.durable_offset,
        "absorbed_offset": stream.absorbed_offset,
        "lag_records": stream.lag_records,
        "lag_seconds": stream.lag_seconds,
        // As text: a snapshot's id has 63 bits, and many readers of JSON keep 53.
        "snapshot_id": stream.snapshot_id.map(|id| id.to_string()),
        "last_commit": stream.last_commit_us.map(rfc3339),
        "seconds_since_commit": stream.seconds_since_commit,
        "last_error": stream.last_error,
        "sanitised": stream.sanitised,
        "rescued": stream.rescued,
        "clock_skewed": stream.clock_skewed,
    })
}
