//! The settings of consumers: systems that records are brought on to. `sinks` has databases and queues by name, `routes`
//! has HTTP services.

use std::collections::BTreeMap;

use lakegate_model::{StreamName, TenantId};
use lakegate_places::HostRule;
use lakegate_sinks::{
    BatchSettings, Body, BreakerSettings, ClickHouseSettings, Condition, ConsumerSettings, Filter, Json,
    KAFKA_PROPERTIES, KafkaSettings, RedisSettings, RetrySettings, Signature, Start, Target, Text, What,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::imports::ImportHost;
use super::problem::Problem;
use super::secret::Secret;
use super::stream_column::{PathText, paths};
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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

type Wrong = (&'static str, String);

impl Picked {
    fn filter(&self) -> Result<Filter, Wrong> {
        let streams = self.streams.iter().map(|name| StreamName::new(name));
        let tenants = self.tenants.iter().map(|name| TenantId::new(name));
        let condition = match self.condition.as_str() {
            "" => None,
            text => Some(Condition::parse(text).map_err(|error| ("from.where", error.to_string()))?),
        };
        Ok(Filter {
            streams: streams.collect::<Result<_, _>>().map_err(|error| ("from.streams", error.to_string()))?,
            tenants: tenants.collect::<Result<_, _>>().map_err(|error| ("from.tenants", error.to_string()))?,
            event_types: self.event_types.clone(),
            condition,
        })
    }
}

impl Retry {
    fn settings(&self) -> RetrySettings {
        RetrySettings {
            attempts: self.attempts,
            pause_min: self.pause_min.get(),
            pause_max: self.pause_max.get(),
            give_up_after: self.give_up_after.get(),
        }
    }
}

impl Breaker {
    fn settings(&self) -> BreakerSettings {
        BreakerSettings {
            window: self.window.get(),
            calls_min: usize::try_from(self.calls_min).unwrap_or(usize::MAX),
            failure_share: self.failure_share,
            slow_after: self.slow_after.get(),
            slow_share: self.slow_share,
            failures_in_a_row: self.failures_in_a_row,
            open_for: self.open_for.get(),
            trials: self.trials,
        }
    }
}

fn start_of(start: StartAt) -> Start {
    match start {
        StartAt::Tail => Start::Tail,
        StartAt::Head => Start::Head,
        StartAt::Lake => Start::Lake,
    }
}

fn what_of(brings: Brings) -> What {
    match brings {
        Brings::Records => What::Records,
        Brings::Notices => What::Notices,
    }
}

/// An address of a service; never repeated in messages, it may hold what is secret.
fn address(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text).map_err(|_| "is not an address; write \"http://host:port\"".to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("is not an address of HTTP; write \"http://host:port\" or \"https://host\"".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "has a user or password in the address, where it would be logged; use the settings for them".to_owned()
        );
    }
    Ok(url)
}

impl SinkSettings {
    /// The consumer of that name.
    ///
    /// # Errors
    /// The setting that is wrong, and why.
    pub(crate) fn consumer(&self, name: &str) -> Result<ConsumerSettings, Wrong> {
        let target = match (&self.clickhouse, &self.kafka, &self.redis) {
            (Some(table), None, None) => Target::ClickHouse(table.settings()?),
            (None, Some(topic), None) => Target::Kafka(topic.settings()?),
            (None, None, Some(stream)) => Target::Redis(stream.settings()?),
            _ => return Err(("", "needs exactly one of `clickhouse`, `kafka` and `redis`".to_owned())),
        };
        if self.brings == Brings::Notices && self.clickhouse.is_some() {
            return Err(("brings", "ClickHouse takes records; notices go to kafka, redis or a route".to_owned()));
        }
        Ok(ConsumerSettings {
            name: name.to_owned(),
            filter: self.from.filter()?,
            what: what_of(self.brings),
            start: start_of(self.start),
            batch: BatchSettings {
                records: usize::try_from(self.batch.records).unwrap_or(usize::MAX),
                bytes: self.batch.bytes.as_usize(),
                wait: self.batch.wait.get(),
            },
            order_key: paths(&self.order_key),
            concurrency: 1,
            retry: self.retry.settings(),
            breaker: self.breaker.settings(),
            dead_bytes_max: 0,
            target,
        })
    }
}

impl ClickHouse {
    fn settings(&self) -> Result<ClickHouseSettings, Wrong> {
        let named =
            |path, text: &str| if text.is_empty() { Err((path, "is empty".to_owned())) } else { Ok(text.to_owned()) };
        Ok(ClickHouseSettings {
            url: address(&self.url).map_err(|why| ("clickhouse.url", why))?,
            database: named("clickhouse.database", &self.database)?,
            table: named("clickhouse.table", &self.table)?,
            user: self.user.clone(),
            password: self.password.reveal().to_owned(),
            engine: named("clickhouse.engine", &self.engine)?,
            order_by: self.order_by.clone(),
            connect_timeout: self.connect_timeout.get(),
            timeout: self.timeout.get(),
        })
    }
}

impl KafkaTopic {
    fn settings(&self) -> Result<KafkaSettings, Wrong> {
        if self.brokers.is_empty() || self.topic.is_empty() {
            return Err(("kafka", "needs `brokers` and `topic`".to_owned()));
        }
        if let Some(name) = self.properties.keys().find(|name| !KAFKA_PROPERTIES.contains(&name.as_str())) {
            return Err((
                "kafka.properties",
                format!("{name:?} may not be set; may be: {}", KAFKA_PROPERTIES.join(", ")),
            ));
        }
        Ok(KafkaSettings {
            brokers: self.brokers.clone(),
            topic: self.topic.clone(),
            username: self.username.clone(),
            password: self.password.reveal().to_owned(),
            properties: self.properties.clone().into_iter().collect(),
            timeout: self.timeout.get(),
        })
    }
}

impl RedisStream {
    fn settings(&self) -> Result<RedisSettings, Wrong> {
        if !self.url.reveal().starts_with("redis://") || self.key.is_empty() {
            return Err(("redis", "needs `url`, such as \"redis://host:6379/0\", and `key`".to_owned()));
        }
        Ok(RedisSettings {
            url: self.url.reveal().to_owned(),
            key: self.key.clone(),
            entries_max: self.entries_max,
            timeout: self.timeout.get(),
        })
    }
}

impl RouteSettings {
    /// The consumer.
    ///
    /// # Errors
    /// The setting that is wrong, and why.
    pub(crate) fn consumer(&self) -> Result<ConsumerSettings, Wrong> {
        Ok(ConsumerSettings {
            name: self.name.clone(),
            filter: self.from.filter()?,
            what: what_of(self.brings),
            start: start_of(self.start),
            batch: BatchSettings {
                records: usize::try_from(self.window).unwrap_or(usize::MAX),
                bytes: 64 << 20,
                wait: std::time::Duration::ZERO,
            },
            order_key: paths(&self.order_key),
            concurrency: usize::try_from(self.concurrency).unwrap_or(1),
            retry: self.retry.settings(),
            breaker: self.breaker.settings(),
            dead_bytes_max: self.dead_letters_max.bytes(),
            target: Target::Http(Box::new(self.request()?)),
        })
    }

    fn request(&self) -> Result<lakegate_sinks::RouteSettings, Wrong> {
        let url = Text::parse(&self.url).map_err(|error| ("url", error.to_string()))?;
        address(url.head()).map_err(|why| ("url", why))?;
        let rest = url.head().split_once("://").map_or("", |(_, rest)| rest);
        if !url.is_plain() && !rest.contains('/') {
            return Err(("url", "has a place in the host; places may stand behind \"http://host:port/\"".to_owned()));
        }
        let body = match &self.body {
            Value::String(text) if text == "event" => Body::Event,
            Value::String(text) if text == "row" => Body::Row,
            Value::String(_) => {
                return Err(("body", "is neither \"event\" nor \"row\" nor an object with places".to_owned()));
            }
            template => Body::Template(Json::parse(template).map_err(|error| ("body", error.to_string()))?),
        };
        let mut headers = http::HeaderMap::new();
        for (name, value) in &self.headers {
            let name = http::HeaderName::try_from(name.as_str());
            let value = http::HeaderValue::try_from(value.reveal());
            let (Ok(name), Ok(mut value)) = (name, value) else {
                return Err(("headers", "a name or value is not one of a header".to_owned()));
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let header = http::HeaderName::try_from(self.signature_header.as_str());
        let header = header.map_err(|_| ("signature_header", "is not the name of a header".to_owned()))?;
        let secret = self.signature_secret.reveal();
        let method = http::Method::try_from(self.method.as_str());
        Ok(lakegate_sinks::RouteSettings {
            url,
            method: method.map_err(|_| ("method", "is not a method; write \"POST\"".to_owned()))?,
            headers,
            body,
            signature: (!secret.is_empty()).then(|| Signature::new(header, secret.as_bytes())),
            connect_timeout: self.connect_timeout.get(),
            timeout: self.timeout.get(),
        })
    }
}

/// A name becomes that of a file, and a part of addresses.
fn is_name(name: &str) -> bool {
    let right = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    !name.is_empty() && name.len() <= 63 && !name.starts_with('-') && name.bytes().all(right)
}

/// Finds what is wrong with sinks and routes.
pub(crate) fn check(sinks: &BTreeMap<String, SinkSettings>, routes: &[RouteSettings], problems: &mut Vec<Problem>) {
    let mut names: Vec<&str> = Vec::new();
    let all = sinks.iter().map(|(name, sink)| (format!("sinks.{name}"), name.as_str(), sink.consumer(name)));
    let routes =
        routes.iter().enumerate().map(|(i, route)| (format!("routes[{i}]"), route.name.as_str(), route.consumer()));
    for (path, name, consumer) in all.chain(routes) {
        if !is_name(name) {
            let message = format!("{name:?} is not a name: it needs 1 to 63 lower-case letters, digits, '_' or '-'");
            problems.push(Problem::new(path.clone(), message));
        }
        if names.contains(&name) {
            problems.push(Problem::new(path.clone(), format!("{name:?} is the name of two consumers")));
        }
        names.push(name);
        if let Err((setting, why)) = consumer {
            let path = if setting.is_empty() { path } else { format!("{path}.{setting}") };
            problems.push(Problem::new(path, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load, problems};

    #[test]
    fn s27_secrets_of_sinks_and_routes_are_not_shown() {
        let config = load(
            r#"{ "limits": { "downstream": { "hosts": ["a:80"] } },
            "sinks": { "raw": { "clickhouse": { "url": "http://ch:8123", "password": "hunter2" } },
                       "r": { "redis": { "url": "redis://:hunter2@h:6379/0" } } },
            "routes": [{ "name": "p", "url": "http://a/x/{{event_id}}", "headers": { "authorization": "hunter2" },
                         "signature_secret": "hunter2", "body": { "id": "{{event_id}}" } }] }"#,
        )
        .unwrap();
        let shown = crate::config::show(&config, crate::config::ShowWhat { effective: true, origin: false });
        assert!(!shown.contains("hunter2") && shown.contains("********"), "{shown}");
        let consumers: Vec<_> = config.settings.consumers().collect();
        assert_eq!(consumers.len(), 3);
        assert!(!format!("{consumers:?}").contains("hunter2"), "{consumers:?}");
    }

    #[test]
    fn what_is_wrong_with_a_sink_or_route_is_said_at_its_place() {
        let found = problems(
            r#"{ "sinks": { "raw": {}, "Big": { "kafka": { "brokers": "b", "topic": "t", "properties": { "sasl.jaas.config": "x" } } },
                 "c": { "from": { "where": "n >" }, "clickhouse": { "url": "http://u:p@h" } } },
               "routes": [{ "name": "raw", "url": "http://{{event_id}}/x" }, { "name": "b", "url": "http://h/x", "body": "all" }] }"#,
        )
        .join("\n");
        for part in [
            "sinks.raw: needs exactly one of",
            "sinks.Big: \"Big\" is not a name",
            "sinks.Big.kafka.properties: \"sasl.jaas.config\" may not be set",
            "sinks.c.clickhouse.url: has a user or password",
            "routes[0]: \"raw\" is the name of two consumers",
            "routes[0].url: ",
            "routes[1].body: is neither",
        ] {
            assert!(found.contains(part), "{part:?} is not in\n{found}");
        }
    }
}
