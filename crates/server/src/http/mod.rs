//! The HTTP listener: health, figures, SQL, status, audit, feeds, and the Iceberg catalog.
//!
//! Promises: every error is a problem document with the request's correlation id; bodies, headers, connections and
//! time are bounded. Refuses: rules about records and tables; a handler decodes, calls another room, encodes.

mod audit;
mod consumers;
mod dlq;
mod feeds;
mod flush;
mod front;
mod health;
mod iceberg_catalog;
mod identity;
mod imports;
mod listener;
mod metrics;
mod openapi;
mod parts;
mod problem;
mod request;
mod sql;
mod status;
mod tables;
#[cfg(test)]
mod tests;
mod time;
mod trino;
mod upload;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{delete, get, post, put};
use axum::{Json, Router, middleware};
use lakegate_access::Access;
use lakegate_env::Clock;
use lakegate_ingest::Gate;
use lakegate_lake::{Lake, RestService};
use lakegate_log::Log;
use lakegate_sinks::{ChannelState, Consumers};
use lakegate_sources::files::Imports;
use lakegate_sources::kafka::KafkaSources;
use lakegate_sources::kafka::log::KafkaLogs;
use lakegate_sources::rest::Rest;
use lakegate_sources::websocket::Sockets;
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::cli::VERSION;
use crate::config::{Config, is_loopback};
use crate::statements::Statements;
use identity::Door;
use request::KnownHosts;

pub(crate) use front::{Front, RequestIds};
pub(crate) use listener::{ConnectionLimits, serve};
pub(crate) use parts::{Remembered, watch as watch_parts};
pub(crate) use sql::rows_of;
pub(crate) use time::rfc3339;
pub(crate) use trino::TrinoStatements;

/// Why records may not be sent here at the moment, if so.
#[derive(Debug, Default)]
pub(crate) struct Readiness(Mutex<Option<&'static str>>);

impl Readiness {
    pub(crate) fn reason(&self) -> Option<&'static str> {
        *self.0.lock()
    }

    pub(crate) fn set(&self, reason: Option<&'static str>) {
        *self.0.lock() = reason;
    }
}

/// All that the handlers call.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) access: Access,
    pub(crate) gate: Gate,
    pub(crate) consumers: Consumers,
    /// How the channel is that instances share.
    pub(crate) channel: Option<Arc<Mutex<ChannelState>>>,
    pub(crate) imports: Imports,
    pub(crate) kafka: KafkaSources,
    pub(crate) kafka_log: KafkaLogs,
    pub(crate) log: Log,
    pub(crate) lake: Lake,
    pub(crate) engine: lakegate_query::QueryEngine,
    pub(crate) statements: Statements,
    pub(crate) trino: TrinoStatements,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) started: Instant,
    pub(crate) readiness: Readiness,
    /// Of the parts that health is made of.
    pub(crate) remembered: Remembered,
    pub(crate) open_connections: Arc<AtomicUsize>,
    pub(crate) rest: Rest,
    pub(crate) sockets: Sockets,
}

impl App {
    /// How many HTTP connections are open.
    pub(crate) fn connections(&self) -> usize {
        self.open_connections.load(Ordering::Relaxed)
    }
}

/// All paths. `catalog` is the embedded catalog, where it is the one in use.
pub(crate) fn router(app: Arc<App>, catalog: Option<RestService>) -> Router {
    let limits = &app.config.settings.limits;
    let body_bytes_max = limits.http.body_bytes_max.as_usize();
    let hosts = known_hosts(&app.config);
    let time_limit = limits.http.request_timeout.get();
    let mut quick = Router::new()
        .route("/", get(index))
        .route("/openapi.json", get(openapi::get))
        .route("/health", get(health::get))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::get))
        .route("/api/status", get(status::get))
        .with_state(app.clone());
    if let Some(catalog) = catalog {
        quick = quick.merge(iceberg_catalog::router(catalog));
    }
    let quick = quick.layer(middleware::from_fn_with_state(time_limit, request::limit_time));
    // Queries have a time limit of their own, and feeds none: they end when the client leaves.
    let long = Router::new()
        .route("/api/sql", post(sql::run).get(sql::list))
        .route("/api/sql/{id}", delete(sql::cancel))
        .route("/api/audit", get(audit::get))
        .route("/api/flush", post(flush::post))
        .route("/api/dlq", get(dlq::list))
        .route("/api/dlq/{id}", get(dlq::show))
        .route("/api/dlq/replay", post(dlq::replay))
        .route("/api/dlq/purge", post(dlq::purge))
        .route("/api/feeds/{stream}", get(feeds::get))
        .merge(consumers::routes())
        .merge(import_routes())
        .merge(table_routes())
        .merge(trino::routes())
        .with_state(app.clone());
    let door = Door { access: app.access.clone(), open_metrics: app.config.settings.auth.open_metrics };
    let all = quick.merge(long).fallback(nothing_here);
    let all = all.layer(middleware::from_fn_with_state(door, identity::authenticate));
    wrap(all, hosts, body_bytes_max)
}

/// Imports answer when they end, or when their asker has waited long enough.
fn import_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/ingest/watch", post(imports::watch))
        .route("/api/ingest/watches", get(imports::watches))
        .route("/api/ingest/watches/{id}", get(imports::watch_of).delete(imports::unwatch))
        .route("/api/ingest/upload/{stream}", put(upload::put))
        .route("/api/ingest/{kind}", post(imports::import))
        .route("/api/jobs", get(imports::jobs))
        .route("/api/jobs/{id}", get(imports::job).delete(imports::cancel))
}

/// Tables, and their care.
fn table_routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/tables", get(tables::list))
        .route("/api/tables/{namespace}/{table}", get(tables::show))
        .route("/api/tables/{namespace}/{table}/snapshots", get(tables::snapshots))
        .route("/api/tables/{namespace}/{table}/compact", post(tables::compact))
        .route("/api/tables/{namespace}/{table}/expire", post(tables::expire))
}

/// Under which names, and from which pages, this server may be used.
pub(crate) fn known_hosts(config: &Config) -> KnownHosts {
    let http = &config.settings.limits.http;
    KnownHosts {
        checked: is_loopback(&config.settings.ingestion.bind) || !http.hosts.is_empty(),
        names: Arc::from(http.hosts.clone()),
        origins: Arc::from(http.origins.clone()),
    }
}

/// What every request passes, outermost last.
fn wrap(router: Router, hosts: KnownHosts, body_bytes_max: usize) -> Router {
    router
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(middleware::from_fn_with_state(hosts, request::check_host))
        .layer(middleware::from_fn(problem::as_problems))
        .layer(middleware::from_fn(request::correlate))
}

/// Paths that there are not need credentials too: who has none learns nothing of which there are.
async fn nothing_here() -> StatusCode {
    StatusCode::NOT_FOUND
}

/// `GET /`: what there is.
async fn index() -> Json<Value> {
    Json(json!({
        "name": "lakegate",
        "version": VERSION,
        "paths": {
            "GET /openapi.json": "all of this as an OpenAPI 3.1 document",
            "GET /health": "how it is, part by part",
            "GET /livez": "whether the process answers",
            "GET /readyz": "whether records may be sent here now",
            "GET /metrics": "figures; Prometheus text for those who accept text/plain",
            "GET /api/status": "what came in and how far the lake is, per stream",
            "GET /api/audit": "whether everything that came in adds up to what is there",
            "GET /api/dlq": "records that were set aside; /api/dlq/{id} shows one, POST /api/dlq/replay brings them again, POST /api/dlq/purge removes them",
            "POST /api/flush": "brings what is in memory into the tables now",
            "POST /api/sql": "{\"sql\": \"SELECT …\"}, also INSERT, CREATE TABLE, DROP TABLE, SHOW, DESCRIBE; answers JSON, NDJSON, CSV or Arrow by the header Accept",
            "POST /v1/statement": "the same for Trino's clients: its command line, Python, JDBC",
            "GET /api/sql": "the queries that run; DELETE /api/sql/{id} ends one",
            "GET /api/feeds/{stream}": "durable records as they come; ?from=latest|earliest|OFFSET, or Last-Event-ID",
            "GET /api/consumers": "sinks and routes; POST /api/consumers/{id}/pause, resume, rewind?to=, skip; …/dead and …/dead/replay",
            "POST /api/ingest/file": "{\"path\": \"/srv/drop/a.parquet\"} imports a file; also parquet, csv, jsonl, sql, bulk, watch",
            "PUT /api/ingest/upload/{stream}": "imports the body",
            "GET /api/tables": "the tables; /api/tables/{namespace}/{table} shows one, …/snapshots its past; POST …/compact, …/expire",
            "GET /api/jobs": "the imports; DELETE /api/jobs/{id} ends one",
            "GET /api/ingest/watches": "the watched places; DELETE /api/ingest/watches/{id} ends one",
            "POST /events": "one cart event",
            "POST /events/batch": "{\"events\": […], \"options\": {\"maxSize\", \"failOnError\"}}; /batch is the same",
            "WS /events/stream": "cart events, acknowledged one by one; subscribe, unsubscribe, heartbeat",
            "WS /api/ingest/stream": "documents; answers count what is durable",
            "POST /api/ingest/event": "a document, a list of them, or NDJSON",
            "POST /api/ingest/streams/{stream}": "JSON for any stream: an object, a list of them, or NDJSON",
            "/iceberg/v1/config": "the Iceberg REST catalog",
        }
    }))
}
