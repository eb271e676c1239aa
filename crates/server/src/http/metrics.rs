//! `GET /metrics`: the Prometheus exposition for those who ask for it, the documented JSON for all others.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use lakegate_log::LogHealth;
use lakegate_sinks::ConsumerState;
use metrics::gauge;
use serde_json::json;

use super::App;
use super::health;
use super::identity::Caller;
use super::problem::Problem;

pub(crate) async fn get(State(app): State<Arc<App>>, caller: Caller, headers: HeaderMap) -> Result<Response, Problem> {
    caller.check_operator()?;
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if accept.contains("text/plain") || accept.contains("openmetrics") {
        refresh(&app);
        let text = ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render());
        return Ok(text.into_response());
    }
    let gate = app.gate.status(None, None);
    let totals = gate.totals;
    #[allow(clippy::cast_precision_loss, reason = "milliseconds for people")]
    let sync_ms = app.log.status().last_sync_us as f64 / 1e3;
    let (http, sockets, requests) = (app.connections(), app.sockets.figures(), app.rest.figures().requests());
    #[allow(clippy::cast_precision_loss, reason = "milliseconds for people")]
    let average_ms = requests.micros as f64 / 1e3 / requests.count.max(1) as f64;
    let figures = Json(json!({
        "ingestion": {
            "eventsReceived": totals.received,
            "eventsProcessed": totals.accepted + totals.duplicate + totals.dead_lettered,
            "eventsFailed": totals.rejected + totals.dead_lettered,
            "averageProcessingTime": average_ms,
        },
        "websocket": {
            "activeConnections": sockets.active.load(Ordering::Relaxed),
            "totalConnections": sockets.total.load(Ordering::Relaxed),
            "messagesReceived": sockets.received.load(Ordering::Relaxed),
            "messagesSent": sockets.sent.load(Ordering::Relaxed),
        },
        "http": { "activeConnections": http },
        "storage": {
            "eventsStored": totals.accepted,
            "duplicatesIgnored": totals.duplicate,
            "storageLatency": sync_ms,
        },
    }));
    Ok(figures.into_response())
}

/// Brings the figures up to date that are states rather than counts.
#[allow(clippy::cast_precision_loss, reason = "gauges are floating-point numbers")]
fn refresh(app: &App) {
    let status = app.log.status();
    gauge!("lakegate_wal_bytes").set(status.bytes as f64);
    gauge!("lakegate_wal_quota_bytes").set(status.quota_bytes as f64);
    gauge!("lakegate_wal_segments").set(status.segments as f64);
    gauge!("lakegate_wal_queued_bytes").set(status.queued_bytes as f64);
    gauge!("lakegate_wal_durable_offset").set(status.durable_offset as f64);
    gauge!("lakegate_wal_enabled").set(f64::from(u8::from(app.config.settings.storage.wal_enabled)));
    gauge!("lakegate_wal_healthy").set(f64::from(u8::from(status.health == LogHealth::Healthy)));
    gauge!("lakegate_http_connections").set(app.connections() as f64);
    let sockets = app.sockets.figures();
    gauge!("lakegate_websockets").set(sockets.active.load(Ordering::Relaxed) as f64);
    metrics::counter!("lakegate_websockets_total").absolute(sockets.total.load(Ordering::Relaxed));
    metrics::counter!("lakegate_websocket_messages_received_total").absolute(sockets.received.load(Ordering::Relaxed));
    metrics::counter!("lakegate_websocket_messages_sent_total").absolute(sockets.sent.load(Ordering::Relaxed));
    metrics::counter!("lakegate_websocket_confirmations_dropped_total").absolute(app.sockets.dropped());
    gauge!("lakegate_uptime_seconds").set(app.started.elapsed().as_secs_f64());
    gauge!("lakegate_ready").set(f64::from(u8::from(app.readiness.reason().is_none())));
    gauge!("lakegate_health").set(match health::overall(app) {
        health::Overall::Healthy => 1.0,
        health::Overall::Degraded => 0.5,
        health::Overall::Unhealthy => 0.0,
    });
    consumers(app);
    let gate = app.gate.status(None, None);
    gauge!("lakegate_memtable_bytes").set(gate.memtable_bytes as f64);
    gauge!("lakegate_memory_budget_bytes").set(gate.memory_budget as f64);
    gauge!("lakegate_inflight_bytes").set(gate.inflight_bytes as f64);
    for stream in &gate.streams {
        let labels = [
            ("tenant", stream.key.tenant.to_string()),
            ("stream", stream.key.stream.to_string()),
            ("table", stream.table.to_string()),
        ];
        let tally = &stream.tally;
        // The balance outlives the process, and so does what is shown of it: set, not counted.
        metrics::counter!("lakegate_records_received_total", &labels).absolute(tally.received);
        metrics::counter!("lakegate_records_accepted_total", &labels).absolute(tally.accepted);
        metrics::counter!("lakegate_records_duplicate_total", &labels).absolute(tally.duplicate);
        metrics::counter!("lakegate_records_rejected_total", &labels).absolute(tally.rejected);
        metrics::counter!("lakegate_records_dead_lettered_total", &labels).absolute(tally.dead_lettered);
        metrics::counter!("lakegate_payload_bytes_accepted_total", &labels).absolute(tally.bytes);
        gauge!("lakegate_accepted_per_second", &labels).set(stream.rate_1m);
        gauge!("lakegate_table_memtable_records", &labels).set(stream.memtable_records as f64);
        gauge!("lakegate_table_memtable_bytes", &labels).set(stream.memtable_bytes as f64);
        gauge!("lakegate_absorbed_lag_records", &labels).set(stream.lag_records as f64);
        gauge!("lakegate_absorbed_lag_seconds", &labels).set(stream.lag_seconds);
        if let Some(seconds) = stream.seconds_since_commit {
            gauge!("lakegate_seconds_since_commit", &labels).set(seconds);
        }
        gauge!("lakegate_flush_failing", &labels).set(f64::from(u8::from(stream.last_error.is_some())));
    }
}

/// What is shown of sinks and routes.
#[allow(clippy::cast_precision_loss, reason = "gauges are floating-point numbers")]
fn consumers(app: &App) {
    for one in app.consumers.list() {
        let labels = [("consumer", one.name.clone())];
        gauge!("lakegate_consumer_lag_records", &labels).set(one.lag_records as f64);
        gauge!("lakegate_consumer_lag_seconds", &labels).set(one.lag_seconds);
        gauge!("lakegate_consumer_offset", &labels).set(one.offset as f64);
        gauge!("lakegate_consumer_in_flight", &labels).set(one.in_flight as f64);
        gauge!("lakegate_consumer_dead_kept", &labels).set(one.dead_kept as f64);
        // The counts outlive the process: set, not counted.
        let counts = [
            ("matched", one.counts.matched),
            ("delivered", one.counts.delivered),
            ("skipped", one.counts.skipped),
            ("dead", one.counts.dead),
        ];
        for (outcome, count) in counts {
            let labels = [("consumer", one.name.clone()), ("outcome", outcome.to_owned())];
            gauge!("lakegate_consumer_records", &labels).set(count as f64);
        }
        for (state, name) in ConsumerState::ALL {
            let labels = [("consumer", one.name.clone()), ("state", name.to_owned())];
            gauge!("lakegate_consumer_state", &labels).set(f64::from(u8::from(state == one.state)));
        }
    }
}
