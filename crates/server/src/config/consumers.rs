//! The settings of consumers: systems that records are brought on to. `sinks` has databases and queues by name, `routes`
//! has HTTP services.

use std::collections::BTreeMap;

use lakegate_places::HostRule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::imports::ImportHost;
use super::problem::Problem;
use super::secret::Secret;
use super::stream_column::PathText;
use super::units::{Period, Size};

/// Which records are meant. What is empty lets all through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Picked {
    /// Of these streams. Dead letters only where they are named.
    pub(crate) streams: Vec<String>,
    /// Of these tenants.
    pub(crate) tenants: Vec<String>,
    /// Of these event types.
    pub(crate) event_types: Vec<String>,
    /// For which this holds, such as `data.total >= 100 and store_id in ('a', 'b')`: columns and members of JSON columns.
    #[serde(rename = "where")]
    pub(crate) condition: String,
}

/// Where a consumer begins that has no position yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StartAt {
    /// With what becomes durable from now on.
    #[default]
    Tail,
    /// With the oldest that the log has.
    Head,
    /// With the oldest rows of the tables.
    Lake,
}

/// What goes out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Brings {
    /// The records.
    #[default]
    Records,
    /// A notice of each commit to a table: table, snapshot, position and rows.
    Notices,
}

/// How failures are tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Retry {
    /// How often a record is tried that the service fails at while it takes others.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) attempts: u32,
    /// The first pause; each is twice as long as the one before, half of it by chance.
    pub(crate) pause_min: Period,
    /// The longest pause.
    pub(crate) pause_max: Period,
    /// After so long a record is given up also where the service takes no others.
    pub(crate) give_up_after: Period,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 8,
            pause_min: Period::from_millis(100),
            pause_max: Period::from_secs(30),
            give_up_after: Period::from_millis(30 * 24 * 3600 * 1000),
        }
    }
}

/// When a service is left alone for a while. Consumers of one server share a breaker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Breaker {
    /// The calls of the last so long are looked at.
    pub(crate) window: Period,
    /// With so many calls at least.
    #[schemars(range(min = 1, max = 4096))]
    pub(crate) calls_min: u32,
    /// It opens at this share of failures.
    #[schemars(range(min = 0.01, max = 1.0))]
    pub(crate) failure_share: f64,
    /// A call that takes longer is slow.
    pub(crate) slow_after: Period,
    /// It opens at this share of slow calls.
    #[schemars(range(min = 0.01, max = 1.0))]
    pub(crate) slow_share: f64,
    /// It opens at so many failures in a row.
    #[schemars(range(min = 1, max = 4096))]
    pub(crate) failures_in_a_row: u32,
    /// It stays open for so long, and twice as long each time that a trial fails, up to sixteen times.
    pub(crate) open_for: Period,
    /// So many calls are let through for trial.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) trials: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            window: Period::from_secs(10),
            calls_min: 20,
            failure_share: 0.5,
            slow_after: Period::from_secs(5),
            slow_share: 0.8,
            failures_in_a_row: 5,
            open_for: Period::from_secs(1),
            trials: 3,
        }
    }
}

/// A database or queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SinkSettings {
    /// Which records it gets.
    pub(crate) from: Picked,
    /// What of them goes out.
    pub(crate) brings: Brings,
    /// Where it begins that has no position yet.
    pub(crate) start: StartAt,
    /// Messages whose records agree in these columns, or members of JSON columns, have one key and keep their order.
    pub(crate) order_key: Vec<PathText>,
    /// How much goes out at once.
    pub(crate) batch: Batch,
    /// How failures are tried again.
    pub(crate) retry: Retry,
    /// When it is left alone.
    pub(crate) breaker: Breaker,
    /// The most bytes of records that were refused for what they are and are kept. When they are full, the sink waits.
    pub(crate) dead_letters_max: Size,
    /// A table of a ClickHouse server.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ClickHouse")]
    pub(crate) clickhouse: Option<ClickHouse>,
    /// A topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "KafkaTopic")]
    pub(crate) kafka: Option<KafkaTopic>,
    /// A Redis stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RedisStream")]
    pub(crate) redis: Option<RedisStream>,
}

impl Default for SinkSettings {
    fn default() -> Self {
        Self {
            from: Picked::default(),
            brings: Brings::default(),
            start: StartAt::default(),
            order_key: Vec::new(),
            batch: Batch::default(),
            retry: Retry::default(),
            breaker: Breaker::default(),
            dead_letters_max: dead_default(),
            clickhouse: None,
            kafka: None,
            redis: None,
        }
    }
}

/// How much goes out at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Batch {
    /// So many records, unless one request brought more.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) records: u32,
    /// So many bytes in memory, unless one request brought more.
    pub(crate) bytes: Size,
    /// The first record of a batch waits so long for others.
    pub(crate) wait: Period,
}

impl Default for Batch {
    fn default() -> Self {
        Self { records: 50_000, bytes: Size::mib(32), wait: Period::from_millis(200) }
    }
}

/// A table of a ClickHouse server, over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClickHouse {
    /// Its address, such as `http://clickhouse:8123`.
    pub(crate) url: String,
    /// The database; made where it is not there.
    pub(crate) database: String,
    /// The table; made and extended where it lacks. `{tenant}` and `{stream}` stand for those of the records.
    pub(crate) table: String,
    /// The user; empty: none.
    pub(crate) user: String,
    /// The password.
    pub(crate) password: Secret,
    /// The engine of a table that is made.
    pub(crate) engine: String,
    /// The columns that the rows of a table that is made are ordered by; `_key` follows.
    pub(crate) order_by: Vec<String>,
    /// How long a connection may take.
    pub(crate) connect_timeout: Period,
    /// How long an insert may take.
    pub(crate) timeout: Period,
}

impl Default for ClickHouse {
    fn default() -> Self {
        Self {
            url: String::new(),
            database: "default".into(),
            table: "raw_events".into(),
            user: String::new(),
            password: Secret::default(),
            engine: "ReplacingMergeTree()".into(),
            order_by: Vec::new(),
            connect_timeout: Period::from_secs(5),
            timeout: Period::from_secs(60),
        }
    }
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KafkaTopic {
    /// Where the cluster is found, such as `kafka-1:9092,kafka-2:9092`.
    pub(crate) brokers: String,
    /// The topic; `{tenant}` and `{stream}` stand for those of the record.
    pub(crate) topic: String,
    /// The user; empty: none.
    pub(crate) username: String,
    /// Its password.
    pub(crate) password: Secret,
    /// Further settings of the client, of these: `client.id`, `compression.type`, `linger.ms`, `batch.size`,
    /// `message.max.bytes`, `security.protocol`, `sasl.mechanism`, `socket.timeout.ms`.
    pub(crate) properties: BTreeMap<String, String>,
    /// How long a message may take.
    pub(crate) timeout: Period,
}

impl Default for KafkaTopic {
    fn default() -> Self {
        Self {
            brokers: String::new(),
            topic: String::new(),
            username: String::new(),
            password: Secret::default(),
            properties: BTreeMap::new(),
            timeout: Period::from_secs(30),
        }
    }
}

/// A Redis stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RedisStream {
    /// Its address, such as `redis://:password@host:6379/0`.
    pub(crate) url: Secret,
    /// The stream's key; `{tenant}` and `{stream}` stand for those of the record.
    pub(crate) key: String,
    /// About so many entries are kept.
    #[schemars(range(min = 1))]
    pub(crate) entries_max: u64,
    /// How long one exchange may take.
    pub(crate) timeout: Period,
}

impl Default for RedisStream {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            key: "lakegate:{tenant}:{stream}".into(),
            entries_max: 1_000_000,
            timeout: Period::from_secs(5),
        }
    }
}

/// An HTTP service that gets a request for each record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouteSettings {
    /// Its name.
    pub(crate) name: String,
    /// Where requests go, such as `http://predict:8080/api/predict/analyze`. Behind the host, places such as
    /// `{{session_id}}` stand for columns. The host must be one of `limits.downstream.hosts`.
    pub(crate) url: String,
    /// Which records it gets.
    #[serde(default)]
    pub(crate) from: Picked,
    /// What of them goes out.
    #[serde(default)]
    pub(crate) brings: Brings,
    /// Where it begins that has no position yet.
    #[serde(default)]
    pub(crate) start: StartAt,
    /// Records that agree in these columns, or members of JSON columns, are sent one after the other, in their order.
    /// Empty: in any order.
    #[serde(default)]
    pub(crate) order_key: Vec<PathText>,
    /// How many requests are under way at once.
    #[serde(default = "concurrency_default")]
    #[schemars(range(min = 1, max = 1024))]
    pub(crate) concurrency: u32,
    /// The method.
    #[serde(default = "method_default")]
    pub(crate) method: String,
    /// Headers of every request.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, Secret>,
    /// What a request holds: `"event"` (the event as it came), `"row"` (the columns), or a JSON value in which texts such
    /// as `"{{event_id}}"` stand for columns.
    #[serde(default = "body_default")]
    pub(crate) body: Value,
    /// The secret that requests are signed with; empty: they are not.
    #[serde(default)]
    pub(crate) signature_secret: Secret,
    /// The header of the signature, `t=SECONDS,v1=HEX`: the HMAC-SHA-256 of `SECONDS.BODY`.
    #[serde(default = "signature_header_default")]
    pub(crate) signature_header: String,
    /// How long a connection may take.
    #[serde(default = "connect_timeout_default")]
    pub(crate) connect_timeout: Period,
    /// How long an answer may take.
    #[serde(default = "timeout_default")]
    pub(crate) timeout: Period,
    /// How failures are tried again.
    #[serde(default)]
    pub(crate) retry: Retry,
    /// When the service is left alone.
    #[serde(default)]
    pub(crate) breaker: Breaker,
    /// The most records that are read and not delivered.
    #[serde(default = "window_default")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) window: u32,
    /// The most bytes of records that were given up and are kept. When they are full, the route waits.
    #[serde(default = "dead_default")]
    pub(crate) dead_letters_max: Size,
}

fn concurrency_default() -> u32 {
    16
}
fn method_default() -> String {
    "POST".into()
}
fn body_default() -> Value {
    "event".into()
}
fn signature_header_default() -> String {
    "x-lakegate-signature".into()
}
fn connect_timeout_default() -> Period {
    Period::from_secs(3)
}
fn timeout_default() -> Period {
    Period::from_secs(10)
}
fn window_default() -> u32 {
    2000
}
fn dead_default() -> Size {
    Size::mib(256)
}

/// Bounds on which servers routes may ask.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DownstreamLimits {
    /// Servers that routes may ask: `"predict.example.com"`, `"*.example.com"`, `"predict:8080"`, or
    /// `{"host": "predict", "ports": [8080], "allow_private": true}` where its address is a private one.
    pub(crate) hosts: Vec<ImportHost>,
}

impl DownstreamLimits {
    /// The rules.
    pub(crate) fn host_rules(&self) -> Vec<HostRule> {
        self.hosts.iter().filter_map(|host| host.rule().ok()).collect()
    }

    pub(crate) fn check(&self, problems: &mut Vec<Problem>) {
        for (i, host) in self.hosts.iter().enumerate() {
            if let Err(error) = host.rule() {
                problems.push(Problem::new(format!("limits.downstream.hosts[{i}]"), error.to_string()));
            }
        }
    }
}
