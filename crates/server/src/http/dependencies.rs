//! What the server leans on besides its own disk and lake: how each is, how fast it answers, what it said last.
//!
//! One that is away makes the whole `degraded`, never `unhealthy`: records are still taken.

use std::collections::BTreeMap;

use lakegate_sinks::{ChannelState, ConsumerState, ConsumerStatus};
use serde_json::{Map, Value, json};

use super::App;
use super::health::Overall;

/// The three that the document of the cart service names are always shown.
const DOCUMENTED: [&str; 3] = ["redis", "clickhouse", "downstream"];

/// One dependency.
#[derive(Debug, Clone)]
pub(crate) struct Dependency {
    pub(crate) state: Overall,
    pub(crate) latency_ms: f64,
    /// None while it is well.
    pub(crate) error: Option<String>,
}

impl Dependency {
    fn of(consumer: &ConsumerStatus) -> Self {
        let away = consumer.state == ConsumerState::Failing || consumer.breaker != "closed";
        let error = away.then(|| {
            let last = consumer.last_error.as_deref().unwrap_or("it fails or is slow");
            format!("{}: {last} (breaker {}, {} records behind)", consumer.name, consumer.breaker, consumer.lag_records)
        });
        let state = if away { Overall::Degraded } else { Overall::Healthy };
        Self { state, latency_ms: consumer.latency_ms, error }
    }

    fn join(&mut self, other: Self) {
        self.state = self.state.max(other.state);
        self.latency_ms = self.latency_ms.max(other.latency_ms);
        self.error = match (self.error.take(), other.error) {
            (Some(one), Some(two)) => Some(format!("{one}; {two}")),
            (one, two) => one.or(two),
        };
    }
}

/// All of them, by name: each kind of sink, and `downstream` for all routes together.
pub(crate) fn all(app: &App) -> BTreeMap<String, Dependency> {
    let mut found: BTreeMap<String, Dependency> = BTreeMap::new();
    let mut put = |name: &str, dependency: Dependency| match found.get_mut(name) {
        Some(known) => known.join(dependency),
        None => drop(found.insert(name.to_owned(), dependency)),
    };
    for consumer in app.consumers.list() {
        put(if consumer.kind == "http" { "downstream" } else { consumer.kind }, Dependency::of(&consumer));
    }
    if let Some(channel) = &app.channel {
        let ChannelState { latency_ms, error } = channel.lock().clone();
        let state = if error.is_some() { Overall::Degraded } else { Overall::Healthy };
        put("redis", Dependency { state, latency_ms, error });
    }
    found
}

/// As members of the documented body's `services`.
pub(crate) fn services(all: &BTreeMap<String, Dependency>, hidden: bool) -> Map<String, Value> {
    let absent = DOCUMENTED.iter().filter(|name| !all.contains_key(**name));
    let absent = absent
        .map(|name| ((*name).to_owned(), json!({ "status": "notConfigured", "latencyMs": 0, "error": Value::Null })));
    let known = all.iter().map(|(name, one)| {
        let error = one.error.clone().filter(|_| !hidden);
        (name.clone(), json!({ "status": one.state.as_str(), "latencyMs": one.latency_ms, "error": error }))
    });
    known.chain(absent).collect()
}
