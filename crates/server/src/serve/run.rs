//! Runs what is open until a signal comes, then closes it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use lakegate_access::Tls;
use lakegate_ingest::Gate;
use lakegate_log::{Log, LogHealth};
use lakegate_query::QueryEngine;
use lakegate_sources::files::Imports;
use lakegate_sources::grpc::{GrpcLimits, GrpcOptions};
use lakegate_sources::rest::{Rest, RestLimits};
use lakegate_sources::websocket::{Bus, SocketLimits, Sockets};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::open::{Opened, open};
use super::{ServeError, access, consumers, imports, kafka, queries, upkeep};
use crate::cli::VERSION;
use crate::config::{Config, Network};
use crate::flight;
use crate::http::{self, App, ConnectionLimits, Front, Readiness, Remembered, RequestIds, TrinoStatements};
use crate::statements::Statements;
use crate::telemetry;

/// The ports, bound.
struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, ServeError> {
        let ingestion = &config.settings.ingestion;
        let ip = ingestion.bind.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let bind = |port, setting, flag| async move {
            let address = SocketAddr::new(ip, port);
            TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, setting, flag, source })
        };
        Ok(Self {
            grpc: bind(ingestion.port, "ingestion.port", "--port").await?,
            http: bind(ingestion.http_port, "ingestion.http_port", "--http-port").await?,
        })
    }

    /// The addresses as they came to be, where port 0 was asked for.
    fn addresses(&self) -> Result<(SocketAddr, SocketAddr), ServeError> {
        let unknown = |e: std::io::Error| ServeError::Broken(format!("a listener has no address: {e}"));
        Ok((self.grpc.local_addr().map_err(unknown)?, self.http.local_addr().map_err(unknown)?))
    }
}

/// Two signals: the first asks for an end in order, the second for one at once.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, ServeError> {
        let listen = |kind| signal(kind).map_err(ServeError::Runtime);
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

pub(super) async fn run(config: Config, aside: tokio::runtime::Handle) -> Result<(), ServeError> {
    let started = Instant::now();
    let telemetry = telemetry::start(&config.settings.telemetry, &config.settings.node.id)
        .map_err(|e| ServeError::Telemetry(e.to_string()))?;
    let metrics = telemetry::metrics::install().map_err(|e| ServeError::Telemetry(e.to_string()))?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let tls = access::open_tls(&config)?;
    let mut signals = Signals::listen()?;
    let listeners = Listeners::bind(&config).await?;
    let (grpc_address, http_address) = listeners.addresses()?;
    let opened = tokio::select! {
        opened = open(&config) => opened?,
        _ = signals.next() => return Ok(()),
    };
    let Opened { clock, log, lake, memtables, gate, catalog, lock } = opened;
    gate.work_aside(aside);
    let access = access::open(&config, clock.clone())?;
    if let Some(quotas) = access.quotas() {
        gate.limit(quotas.clone());
    }
    let engine = queries::open(&config, &lake, memtables)?;
    let stop = CancellationToken::new();
    let bus = Arc::new(Bus::default());
    let channel = consumers::share_confirmations(&config, &bus, &stop)?;
    let (rest, sockets) = sources(&config, &gate, &access, bus, &stop)?;
    let imports = imports::open(&config, &gate, &access, clock.clone(), imports::Also::default())?;
    let kafka_log = kafka::start_log(&config, &gate, &log.id().to_string())?;
    let kafka = kafka::start(&config, &gate, &log.id().to_string())?;
    let consumers = consumers::open(&config, &gate, clock.clone())?;
    let statements = statements(&config, &engine, &gate, &imports)?;
    let app = Arc::new(App {
        statements,
        trino: TrinoStatements::default(),
        access,
        consumers,
        channel,
        imports,
        kafka,
        kafka_log,
        clock,
        gate: gate.clone(),
        log: log.clone(),
        lake,
        engine,
        metrics,
        started,
        readiness: Readiness::default(),
        remembered: Remembered::default(),
        open_connections: Arc::new(AtomicUsize::new(0)),
        rest,
        sockets,
        config: config.clone(),
    });
    let mut parts = Parts::start(&app, catalog, listeners, tls, &stop);
    banner(&config, grpc_address, http_address, started);

    let broken = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "ending");
            None
        }
        why = parts.broken(&log) => Some(why),
    };
    let ended = tokio::select! {
        () = close(&app, parts, &stop) => Ok(()),
        _ = signals.next() => Err(ServeError::Interrupted),
    };
    telemetry.close();
    drop(lock);
    match broken {
        Some(why) => Err(ServeError::Broken(why)),
        None => ended,
    }
}

/// The tasks that make up the running server.
struct Parts {
    flushing: tokio::task::JoinHandle<()>,
    grpc: tokio::task::JoinHandle<Result<(), lakegate_sources::grpc::ServeError>>,
    http: tokio::task::JoinHandle<()>,
    upkeep: tokio::task::JoinHandle<()>,
    keys: tokio::task::JoinHandle<()>,
    watching: tokio::task::JoinHandle<()>,
    progress: tokio::sync::watch::Receiver<lakegate_log::Progress>,
}

impl Parts {
    fn start(
        app: &Arc<App>,
        catalog: Option<lakegate_lake::RestService>,
        listeners: Listeners,
        tls: Option<Tls>,
        stop: &CancellationToken,
    ) -> Self {
        let settings = &app.config.settings;
        let flushing: Gate = app.gate.clone();
        let aside = flushing.aside(usize::MAX).cloned().unwrap_or_else(tokio::runtime::Handle::current);
        let grpc = GrpcOptions {
            listener: listeners.grpc,
            gate: app.gate.clone(),
            access: app.access.clone(),
            tls: tls.clone(),
            version: VERSION.to_owned(),
            flight: Some(flight::service(
                app.statements.clone(),
                app.gate.clone(),
                settings.ingestion.message_bytes_max.as_usize(),
                usize::try_from(settings.ingestion.batch_size_max).unwrap_or(usize::MAX),
            )),
            limits: GrpcLimits {
                max_connections: usize::try_from(settings.ingestion.max_connections).unwrap_or(usize::MAX),
                max_message_bytes: settings.ingestion.message_bytes_max.as_usize(),
                receive_budget_bytes: settings.ingestion.memory_budget.as_usize() / 2,
                drain_timeout: settings.limits.drain_timeout.get() / 2,
                ..GrpcLimits::default()
            },
        };
        let limits = ConnectionLimits {
            connections: usize::try_from(settings.limits.http.connections).unwrap_or(usize::MAX),
            header_timeout: settings.limits.http.header_timeout.get(),
        };
        let front = front(app, catalog);
        Self {
            flushing: aside.spawn(async move { flushing.run().await }),
            grpc: tokio::spawn(lakegate_sources::grpc::serve(grpc, stop.clone())),
            keys: tokio::spawn(access::look_after(app.access.clone(), tls.clone(), stop.clone())),
            http: tokio::spawn(http::serve(
                listeners.http,
                front,
                tls,
                limits,
                app.open_connections.clone(),
                stop.clone(),
            )),
            upkeep: tokio::spawn(upkeep::run(app.metrics.clone())),
            watching: tokio::spawn(http::watch_parts(app.clone(), stop.clone())),
            progress: app.log.subscribe(),
        }
    }

    /// Waits for a part to end that should not, and says which and why.
    async fn broken(&mut self, log: &Log) -> String {
        let ended = |what: &str, how: &dyn std::fmt::Debug| format!("{what} ended by itself: {how:?}");
        tokio::select! {
            why = poisoned(&mut self.progress, log) => why,
            how = &mut self.flushing => ended("flushing", &how),
            how = &mut self.grpc => ended("the gRPC listener", &how),
            how = &mut self.http => ended("the HTTP listener", &how),
            how = &mut self.keys => ended("looking after the keys", &how),
            how = &mut self.upkeep => ended("upkeep", &how),
            how = &mut self.watching => ended("looking at the parts", &how),
        }
    }
}

/// What runs statements.
fn statements(config: &Config, engine: &QueryEngine, gate: &Gate, imports: &Imports) -> Result<Statements, ServeError> {
    let rows = usize::try_from(config.settings.ingestion.batch_size_max).unwrap_or(usize::MAX);
    Statements::open(engine.clone(), gate.clone(), imports.clone(), &config.data_dir(), rows)
        .map_err(|e| ServeError::Query(e.to_string()))
}

/// The ways in over HTTP.
fn sources(
    config: &Config,
    gate: &Gate,
    access: &lakegate_access::Access,
    bus: Arc<Bus>,
    stop: &CancellationToken,
) -> Result<(Rest, Sockets), ServeError> {
    let settings = &config.settings;
    let (http, websocket) = (&settings.limits.http, &settings.limits.websocket);
    let wrong = |error: lakegate_model::NameError| ServeError::Broken(error.to_string());
    let limits = RestLimits {
        body_bytes_max: http.body_bytes_max.as_usize(),
        line_bytes_max: settings.ingestion.payload_bytes_max.as_usize(),
        receive_budget_bytes: settings.ingestion.memory_budget.as_usize() / 2,
        body_grace: http.header_timeout.get(),
        answer_timeout: http.request_timeout.get(),
        ..RestLimits::default()
    };
    let rest = Rest::new(gate.clone(), limits, bus.clone()).map_err(wrong)?;
    let limits = SocketLimits {
        connections: usize::try_from(websocket.connections).unwrap_or(usize::MAX),
        message_bytes_max: websocket.message_bytes_max.as_usize(),
        partial_bytes_max: settings.ingestion.memory_budget.as_usize() / 8,
        ping_interval: websocket.ping_interval.get(),
        idle_timeout: websocket.idle_timeout.get(),
        answer_timeout: http.request_timeout.get(),
        ..SocketLimits::default()
    };
    let access = access.clone();
    let still_holds = Arc::new(move |principal: &lakegate_access::Principal| access.still_holds(principal));
    let sockets = Sockets::new(gate.clone(), limits, bus, still_holds, stop.clone()).map_err(wrong)?;
    Ok((rest, sockets))
}

/// What connections' requests meet first.
fn front(app: &Arc<App>, catalog: Option<lakegate_lake::RestService>) -> Arc<Front> {
    let settings = &app.config.settings;
    Arc::new(Front {
        router: http::router(app.clone(), catalog),
        app: app.clone(),
        access: app.access.clone(),
        hosts: http::known_hosts(&app.config),
        proxies: settings.limits.http.trusted_proxies.iter().filter_map(|text| Network::parse(text)).collect(),
        traced: !settings.telemetry.otlp_endpoint.is_empty(),
        ids: RequestIds::new(lakegate_env::Random::next_u64(&lakegate_env::SystemRandom)),
    })
}

/// Waits until the log says that nothing more becomes durable: a failed sync is final (durability, promise 2).
async fn poisoned(progress: &mut tokio::sync::watch::Receiver<lakegate_log::Progress>, log: &Log) -> String {
    loop {
        if let LogHealth::Poisoned { reason } = log.status().health {
            return format!(
                "the write-ahead log failed and acknowledges nothing more: {reason}; start again to recover"
            );
        }
        if progress.wait_for(|p| p.stopped.is_some()).await.is_err() {
            return "the write-ahead log ended".to_owned();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ends in order: not ready, no more requests, memory into the lake, log closed.
async fn close(app: &App, parts: Parts, stop: &CancellationToken) {
    let limits = &app.config.settings.limits;
    app.readiness.set(Some("the server is ending"));
    tokio::time::sleep(limits.drain_notice.get()).await;
    let within = limits.drain_timeout.get();
    let deadline = tokio::time::Instant::now() + within;
    stop.cancel();
    // A client that does not let go must not take the time that memory needs to get into the lake.
    let drained = tokio::time::timeout(within / 2, async {
        // A listener that has ended has nothing left to drain, and its end was looked at already.
        if !parts.grpc.is_finished() {
            let _ = parts.grpc.await;
        }
        if !parts.http.is_finished() {
            let _ = parts.http.await;
        }
    });
    if drained.await.is_err() {
        tracing::warn!("connections were cut off at half of limits.drain_timeout");
    }
    // Files that are being read go on after the next start, from the piece that they are at.
    if tokio::time::timeout(within / 4, app.imports.stop()).await.is_err() {
        tracing::warn!("imports were cut off at a quarter of limits.drain_timeout");
    }
    if tokio::time::timeout(within / 4, app.kafka.stop()).await.is_err() {
        tracing::warn!("Kafka sources were cut off; what they did not commit is read again after the next start");
    }
    if tokio::time::timeout(within / 4, app.kafka_log.stop()).await.is_err() {
        tracing::warn!("the writer was cut off; what it did not commit is read again, here or elsewhere");
    }
    app.consumers.stop().await;
    app.gate.close("the server is ending");
    match tokio::time::timeout_at(deadline, app.gate.flush_all()).await {
        Ok(failed) if failed.is_empty() => tracing::info!("everything is in the lake"),
        Ok(failed) => {
            for (table, error) in failed {
                tracing::warn!(%table, %error, "could not be committed; it stays in the log and is committed after the next start");
            }
        }
        Err(_) => tracing::warn!("not everything was committed within limits.drain_timeout; the rest stays in the log"),
    }
    parts.flushing.abort();
    parts.upkeep.abort();
    tracing::debug!("closing the log");
    let log = app.log.clone();
    // Joins the log's thread; bounded by its queue, which is empty by now.
    let _ = tokio::time::timeout(Duration::from_secs(5), tokio::task::spawn_blocking(move || log.close())).await;
}

/// One line: where it is, and what to do next.
fn banner(config: &Config, grpc: SocketAddr, http: SocketAddr, started: Instant) {
    let log_to = if config.settings.storage.wal_enabled { "on" } else { "OFF" };
    let scheme = if config.settings.tls.certificate.is_empty() { "http" } else { "https" };
    let text = format!(
        "lakegate {VERSION} ready in {} ms: gRPC {grpc}, HTTP {scheme}://{http}, files {}, wal {log_to}; try: lakegate status --url {scheme}://{http}",
        started.elapsed().as_millis(),
        config.settings.node.data_dir
    );
    tracing::info!("{text}");
}
