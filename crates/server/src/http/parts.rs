//! The parts that health is made of: what the gate stands on, and whatever else it leans on. Each says how it is, how
//! fast it answers, what is wrong now and what was wrong last; whoever adds a part adds it in [`all`].
//!
//! A part that is away makes the whole `degraded`, and `unhealthy` only where events are not taken for it. Parts of one
//! kind are shown together, as their worst.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lakegate_ingest::HealthState;
use lakegate_sinks::{ChannelState, ConsumerState, ConsumerStatus};
use lakegate_sources::kafka::SourceState;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::App;
use super::health::Overall;
use super::time::rfc3339;
use crate::config::WhenAway;

/// The three that the document of the cart service names are always shown.
const DOCUMENTED: [&str; 3] = ["redis", "clickhouse", "downstream"];
/// Catalog and store are asked so often.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// An answer that takes longer is none.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// One part.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    kind: &'static str,
    /// Which of its kind; empty where there is but one.
    name: String,
    pub(crate) state: Overall,
    latency_ms: f64,
    /// None while it is well.
    error: Option<String>,
}

impl Part {
    fn new(kind: &'static str, name: String, latency_ms: f64, error: Option<String>) -> Self {
        let state = if error.is_some() { Overall::Degraded } else { Overall::Healthy };
        Self { kind, name, state, latency_ms, error }
    }

    fn of_consumer(consumer: ConsumerStatus) -> Self {
        let away = consumer.state == ConsumerState::Failing || consumer.breaker != "closed";
        let error = away.then(|| {
            let last = consumer.last_error.as_deref().unwrap_or("it fails or is slow");
            format!("{last} (breaker {}, {} records behind)", consumer.breaker, consumer.lag_records)
        });
        let kind = if consumer.kind == "http" { "downstream" } else { consumer.kind };
        Self::new(kind, consumer.name, consumer.latency_ms, error)
    }
}

/// What was wrong, and when, in microseconds since 1970.
type Trouble = (String, i64);

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// Catalog and store, as they answered last: milliseconds, and what was wrong.
    asked: Mutex<BTreeMap<&'static str, (f64, Option<String>)>>,
    /// What was wrong last with each part, and when.
    last: Mutex<BTreeMap<(&'static str, String), Trouble>>,
}

/// All of them.
pub(crate) fn all(app: &App) -> Vec<Part> {
    let mut found = own(app);
    for source in app.kafka.status() {
        let error = match &source.state {
            SourceState::Connecting | SourceState::Running => None,
            SourceState::Waiting(why) => Some(format!("waits: {why}")),
            SourceState::Stopped(why) => Some(format!("has stopped: {why}")),
        };
        found.push(Part::new("kafka", source.name, 0.0, error));
    }
    found.extend(shared_log(app));
    found.extend(app.consumers.list().into_iter().map(Part::of_consumer));
    if let Some(channel) = &app.channel {
        let ChannelState { latency_ms, error } = channel.lock().clone();
        let mut redis = Part::new("redis", "duplicates".to_owned(), latency_ms, error);
        if redis.error.is_some() && app.config.settings.duplicates.redis.when_away == WhenAway::Wait {
            redis.state = Overall::Unhealthy;
        }
        found.push(redis);
    }
    for (kind, (latency_ms, error)) in app.remembered.asked.lock().iter() {
        found.push(Part::new(kind, String::new(), *latency_ms, error.clone()));
    }
    let now_us = app.clock.wall_us();
    let mut last = app.remembered.last.lock();
    for part in &found {
        if let Some(error) = &part.error {
            last.insert((part.kind, part.name.clone()), (error.clone(), now_us));
        }
    }
    drop(last);
    found
}

/// The log that instances share, as far as there is one.
fn shared_log(app: &App) -> Vec<Part> {
    let sides = app.kafka_log.status().into_iter().flatten();
    let part = |(side, state): (&'static str, SourceState)| {
        let error = match state {
            SourceState::Running => None,
            SourceState::Connecting => Some("looks for the topic".to_owned()),
            SourceState::Waiting(why) | SourceState::Stopped(why) => Some(why),
        };
        let mut part = Part::new("log", side.to_owned(), 0.0, error);
        // A gateway that cannot write refuses requests; tables can wait.
        if part.error.is_some() && side == "gateway" {
            part.state = Overall::Unhealthy;
        }
        part
    };
    sides.map(part).collect()
}

/// What the gate stands on.
fn own(app: &App) -> Vec<Part> {
    let started = Instant::now();
    let components = app.gate.health();
    let gate_ms = started.elapsed().as_secs_f64() * 1e3;
    let mut found: Vec<Part> = components
        .into_iter()
        .map(|component| Part {
            kind: component.name,
            name: String::new(),
            state: Overall::of(component.state),
            latency_ms: gate_ms,
            error: Some(component.message).filter(|_| component.state != HealthState::Healthy),
        })
        .collect();
    if !app.config.settings.storage.wal_enabled {
        let text =
            "storage.wal_enabled is false: what is acknowledged and not yet committed is lost when this process dies";
        found.push(Part::new("durability", String::new(), 0.0, Some(text.to_owned())));
    }
    let started = Instant::now();
    let error = disk_error(app);
    found.push(Part::new("disk", String::new(), started.elapsed().as_secs_f64() * 1e3, error));
    found
}

fn disk_error(app: &App) -> Option<String> {
    let least = app.config.settings.storage.min_free_disk.bytes();
    match rustix::fs::statvfs(app.config.data_dir()) {
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            (free < least).then(|| format!("{free} bytes are free, fewer than storage.min_free_disk ({least})"))
        }
        Err(error) => Some(format!("the room on the disk cannot be told: {error}")),
    }
}

/// As the documented body's `services`: by kind, with each part where there are names.
pub(crate) fn services(app: &App, parts: &[Part], hidden: bool) -> Map<String, Value> {
    let last = app.remembered.last.lock();
    let mut kinds: BTreeMap<&'static str, Vec<&Part>> = BTreeMap::new();
    for part in parts {
        kinds.entry(part.kind).or_default().push(part);
    }
    let mut found = Map::new();
    for kind in DOCUMENTED.iter().filter(|kind| !kinds.contains_key(**kind)) {
        found.insert((*kind).to_owned(), json!({ "status": "notConfigured", "latencyMs": 0, "error": null }));
    }
    for (kind, parts) in kinds {
        let state = parts.iter().map(|part| part.state).max().unwrap_or(Overall::Healthy);
        let latency_ms = parts.iter().map(|part| part.latency_ms).fold(0.0, f64::max);
        let text = |part: &Part| {
            let error = part.error.as_ref()?;
            Some(if part.name.is_empty() { error.clone() } else { format!("{}: {error}", part.name) })
        };
        let errors: Vec<String> = parts.iter().filter_map(|part| text(part)).collect();
        let error = (!hidden && !errors.is_empty()).then(|| errors.join("; "));
        let mut shown = json!({ "status": state.as_str(), "latencyMs": latency_ms, "error": error });
        if let Some(members) = shown.as_object_mut().filter(|_| !hidden) {
            let latest = parts.iter().filter_map(|part| last.get(&(part.kind, part.name.clone())));
            let latest = latest.max_by_key(|(_, at_us)| *at_us);
            let latest = latest.map(|(error, at_us)| json!({ "error": error, "at": rfc3339(*at_us) }));
            members.insert("lastError".to_owned(), latest.unwrap_or_default());
            let named = parts.iter().filter(|part| !part.name.is_empty()).map(|part| {
                let shown = json!({ "status": part.state.as_str(), "latencyMs": part.latency_ms, "error": part.error });
                (part.name.clone(), shown)
            });
            let named: Map<String, Value> = named.collect();
            if !named.is_empty() {
                members.insert("parts".to_owned(), named.into());
            }
        }
        found.insert(kind.to_owned(), shown);
    }
    found
}

/// Asks catalog and store now and then, and looks at all parts, so that what was wrong meanwhile is remembered.
pub(crate) async fn watch(app: Arc<App>, stop: CancellationToken) {
    let mut every = tokio::time::interval(ASK_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        tokio::join!(ask(&app, "catalog", app.lake.ask_catalog()), ask(&app, "store", app.lake.ask_store()));
        all(&app);
    }
}

async fn ask<E: std::fmt::Display>(app: &App, kind: &'static str, question: impl Future<Output = Result<(), E>>) {
    let started = Instant::now();
    let error = match tokio::time::timeout(ANSWER_WITHIN, question).await {
        Ok(answer) => answer.err().map(|error| error.to_string()),
        Err(_) => Some(format!("no answer in {} s", ANSWER_WITHIN.as_secs())),
    };
    app.remembered.asked.lock().insert(kind, (started.elapsed().as_secs_f64() * 1e3, error));
}
