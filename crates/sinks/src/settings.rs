//! What a consumer is told at its opening.

use std::time::Duration;

use lakegate_model::{StreamKey, StreamName, TenantId};
use lakegate_places::HostRule;

use crate::channel::ChannelSettings;
use crate::clickhouse::ClickHouseSettings;
use crate::condition::Condition;
use crate::kafka::KafkaSettings;
use crate::redis::RedisSettings;
use crate::route::RouteSettings;

/// Streams of our own making, which nobody gets unless it names them.
const OWN_STREAMS: [&str; 3] = ["dead_letters", "dead_letter_marks", "unroutable"];

/// Which records a consumer gets. What is empty lets all through.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of these streams.
    pub streams: Vec<StreamName>,
    /// Of these tenants.
    pub tenants: Vec<TenantId>,
    /// Of these event types.
    pub event_types: Vec<String>,
    /// For which this holds.
    pub condition: Option<Condition>,
}

impl Filter {
    /// Whether any record of the stream may fit.
    #[must_use]
    pub fn wants(&self, key: &StreamKey) -> bool {
        let named = self.streams.contains(&key.stream);
        let stream = named || (self.streams.is_empty() && !OWN_STREAMS.contains(&key.stream.as_str()));
        stream && (self.tenants.is_empty() || self.tenants.contains(&key.tenant))
    }
}

/// Where a consumer begins that has no position yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// With what becomes durable from now on.
    #[default]
    Tail,
    /// With the oldest that the log has.
    Head,
    /// With the oldest row of the tables.
    Lake,
}

/// How much goes out at once.
#[derive(Debug, Clone, Copy)]
pub struct BatchSettings {
    /// So many records at most, unless one request brought more.
    pub records: usize,
    /// So many bytes at most, unless one request brought more.
    pub bytes: usize,
    /// How long the first record of a batch waits for others.
    pub wait: Duration,
}

/// How what failed is tried again.
#[derive(Debug, Clone, Copy)]
pub struct RetrySettings {
    /// Tries of one record, while the service answers others.
    pub attempts: u32,
    /// The first pause.
    pub pause_min: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// A record is given up after so long, whatever the service does.
    pub give_up_after: Duration,
}

/// When a service is left alone for a while.
#[derive(Debug, Clone, Copy)]
pub struct BreakerSettings {
    /// The last so long is looked at.
    pub window: Duration,
    /// With so many calls at least.
    pub calls_min: usize,
    /// Opens at this share of failures.
    pub failure_share: f64,
    /// A call that takes longer is slow.
    pub slow_after: Duration,
    /// Opens at this share of slow calls.
    pub slow_share: f64,
    /// Opens at so many failures in a row.
    pub failures_in_a_row: u32,
    /// Stays open so long; twice as long each time that a trial fails, up to sixteen times.
    pub open_for: Duration,
    /// So many calls are let through for trial.
    pub trials: u32,
}

/// Where records go.
#[derive(Debug, Clone)]
pub enum Target {
    /// A table of a ClickHouse server.
    ClickHouse(ClickHouseSettings),
    /// A service, one request for each record.
    Http(Box<RouteSettings>),
    /// A topic.
    Kafka(KafkaSettings),
    /// A stream of a Redis.
    Redis(RedisSettings),
    /// Who takes them in this process; made by [`crate::channel`].
    Channel(ChannelSettings),
}

impl Target {
    /// Its kind, as lists show it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ClickHouse(_) => "clickhouse",
            Self::Http(_) => "http",
            Self::Kafka(_) => "kafka",
            Self::Redis(_) => "redis",
            Self::Channel(_) => "channel",
        }
    }
}

/// What goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum What {
    /// Records.
    #[default]
    Records,
    /// A notice of each commit to a table.
    Notices,
}

/// One consumer.
#[derive(Debug, Clone)]
pub struct ConsumerSettings {
    /// Its name: that of its file, and of its figures.
    pub name: String,
    /// Which records it gets.
    pub filter: Filter,
    /// What of them goes out.
    pub what: What,
    /// Where it begins.
    pub start: Start,
    /// How much goes out at once.
    pub batch: BatchSettings,
    /// Records that agree in these columns, or members of JSON columns, go out one after the other.
    pub order_key: Vec<Vec<String>>,
    /// How many calls are under way at once.
    pub concurrency: usize,
    /// How failures are tried again.
    pub retry: RetrySettings,
    /// When the service is left alone.
    pub breaker: BreakerSettings,
    /// The most bytes of records that were given up. When they are full, the consumer waits.
    pub dead_bytes_max: u64,
    /// Where they go.
    pub target: Target,
}

/// What all consumers share.
#[derive(Debug, Clone, Default)]
pub struct SharedSettings {
    /// The servers that routes may ask.
    pub hosts: Vec<HostRule>,
}
