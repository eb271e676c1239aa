//! What is shown of a consumer: for lists, health and metrics.

use std::sync::Arc;

use lakegate_env::Clock;
use parking_lot::Mutex;
use serde::Serialize;

use crate::breaker::Breaker;
use crate::kept::{Counts, Kept};

/// How a consumer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsumerState {
    /// Delivers what comes.
    Running,
    /// Reads from the tables what the log has no more.
    ReadingBack,
    /// Waits to be resumed.
    Paused,
    /// Tries again and again.
    Failing,
    /// Ended.
    Stopped,
}

impl ConsumerState {
    /// All states, with their names.
    pub const ALL: [(Self, &str); 5] = [
        (Self::Running, "running"),
        (Self::ReadingBack, "reading_back"),
        (Self::Paused, "paused"),
        (Self::Failing, "failing"),
        (Self::Stopped, "stopped"),
    ];
}

/// What is shown of a consumer.
#[derive(Debug, Clone, Serialize)]
pub struct ConsumerStatus {
    /// Its name.
    pub name: String,
    /// `http`, `clickhouse`, `kafka`, `redis` or `channel`.
    pub kind: &'static str,
    /// Where it delivers, without secrets.
    pub target: String,
    /// How it is.
    pub state: ConsumerState,
    /// The next record of the log that it looks at.
    pub offset: u64,
    /// Records of the log that it did not look at yet.
    pub lag_records: u64,
    /// The age of the oldest record that is not delivered, in seconds; 0 when there is none.
    pub lag_seconds: f64,
    /// What became of records since ever.
    #[serde(flatten)]
    pub counts: Counts,
    /// Records that were given up and are kept.
    pub dead_kept: u64,
    /// Tries that failed, since the process began.
    pub retries: u64,
    /// Records that are on their way.
    pub in_flight: u64,
    /// How the breaker of its service stands.
    pub breaker: &'static str,
    /// How long the last call took, in milliseconds.
    pub latency_ms: f64,
    /// What failed last; none while all is well.
    pub last_error: Option<String>,
    /// When, in microseconds since 1970.
    pub last_error_us: Option<i64>,
}

/// One consumer's live figures.
pub(crate) struct Live {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) target: String,
    pub(crate) breaker: Breaker,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
}

struct Inner {
    state: ConsumerState,
    offset: u64,
    received_us: i64,
    /// The oldest record that was read and is not delivered.
    oldest_us: i64,
    counts: Counts,
    retries: u64,
    in_flight: u64,
    latency_ms: f64,
    error: Option<(String, i64)>,
}

impl Live {
    pub(crate) fn new(
        (name, kind, target): (String, &'static str, String),
        breaker: Breaker,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let inner = Inner {
            state: ConsumerState::Running,
            offset: 0,
            received_us: 0,
            oldest_us: 0,
            counts: Counts::default(),
            retries: 0,
            in_flight: 0,
            latency_ms: 0.0,
            error: None,
        };
        Self { name, kind, target, breaker, clock, inner: Mutex::new(inner) }
    }

    pub(crate) fn set_state(&self, state: ConsumerState) {
        self.inner.lock().state = state;
    }

    pub(crate) fn kept(&self, kept: &Kept) {
        let mut inner = self.inner.lock();
        (inner.offset, inner.received_us, inner.counts) = (kept.offset, kept.received_us, kept.counts);
        if kept.back.is_some() && inner.state == ConsumerState::Running {
            inner.state = ConsumerState::ReadingBack;
        } else if kept.back.is_none() && inner.state == ConsumerState::ReadingBack {
            inner.state = ConsumerState::Running;
        }
    }

    pub(crate) fn under_way(&self, in_flight: usize, oldest_us: i64) {
        let mut inner = self.inner.lock();
        inner.in_flight = in_flight as u64;
        inner.oldest_us = oldest_us;
    }

    pub(crate) fn took(&self, took: std::time::Duration) {
        self.inner.lock().latency_ms = took.as_secs_f64() * 1e3;
        metrics::histogram!("lakegate_consumer_call_seconds", "consumer" => self.name.clone()).record(took);
    }

    pub(crate) fn well(&self) {
        let mut inner = self.inner.lock();
        inner.error = None;
        if inner.state == ConsumerState::Failing {
            inner.state = ConsumerState::Running;
        }
    }

    pub(crate) fn failed(&self, why: &str) {
        let mut inner = self.inner.lock();
        inner.retries += 1;
        let is_new = inner.error.as_ref().is_none_or(|(last, _)| last != why);
        inner.error = Some((why.to_owned(), self.clock.wall_us()));
        inner.state = ConsumerState::Failing;
        drop(inner);
        metrics::counter!("lakegate_consumer_failures_total", "consumer" => self.name.clone()).increment(1);
        if is_new {
            tracing::warn!(consumer = %self.name, error = %why, "a consumer could not deliver; it tries again");
        }
    }

    pub(crate) fn status(&self, durable: u64, dead_kept: u64) -> ConsumerStatus {
        let inner = self.inner.lock();
        let behind = durable.saturating_sub(inner.offset);
        let oldest_us = if inner.oldest_us > 0 { inner.oldest_us } else { inner.received_us };
        let waits = inner.in_flight > 0 || (behind > 0 && inner.state != ConsumerState::Running);
        #[allow(clippy::cast_precision_loss, reason = "seconds for people")]
        let age = (self.clock.wall_us() - oldest_us).max(0) as f64 / 1e6;
        ConsumerStatus {
            name: self.name.clone(),
            kind: self.kind,
            target: self.target.clone(),
            state: inner.state,
            offset: inner.offset,
            lag_records: behind,
            lag_seconds: if waits && oldest_us > 0 { age } else { 0.0 },
            counts: inner.counts,
            dead_kept,
            retries: inner.retries,
            in_flight: inner.in_flight,
            breaker: self.breaker.state().name(),
            latency_ms: inner.latency_ms,
            last_error: inner.error.as_ref().map(|(error, _)| error.clone()),
            last_error_us: inner.error.as_ref().map(|(_, at)| *at),
        }
    }
}
