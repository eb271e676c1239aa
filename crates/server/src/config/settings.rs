//! The settings: their names, their defaults, what they mean. The reference and the JSON Schema are made from this file.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::auth::{Auth, TlsSettings};
use super::consumers::{RouteSettings, SinkSettings};
use super::imports::Imports;
use super::kafka::Kafka;
use super::kafka_log::LogKind;
use super::limits::Limits;
use super::secret::{DatabaseUrl, Secret};
use super::stream::StreamSettings;
use super::units::{Period, Size};

/// Everything that can be set. Without a file all the defaults hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// A reference to the JSON Schema, for editors. Not looked at.
    #[serde(rename = "$schema", skip_serializing_if = "String::is_empty")]
    pub(crate) schema: String,
    /// This process: its name and where it keeps its files.
    pub(crate) node: Node,
    /// The ways in: addresses, limits, and when a table is committed.
    pub(crate) ingestion: Ingestion,
    /// Where requests are written before they are acknowledged.
    pub(crate) log: LogKind,
    /// The write-ahead log and the files of the tables.
    pub(crate) storage: Storage,
    /// The Iceberg catalog that names the tables.
    pub(crate) catalog: Catalog,
    /// How tables are looked after.
    pub(crate) maintenance: Maintenance,
    /// Who may do what.
    pub(crate) auth: Auth,
    /// Secret connections, and client certificates.
    pub(crate) tls: TlsSettings,
    /// Where files may be imported from.
    pub(crate) imports: Imports,
    /// Kafka topics to read.
    pub(crate) kafka: Kafka,
    /// Declared streams, by name. A stream that is not declared here gets the default columns.
    pub(crate) streams: BTreeMap<String, StreamSettings>,
    /// What is remembered to tell duplicates.
    pub(crate) duplicates: Duplicates,
    /// Databases and queues to feed, by name.
    pub(crate) sinks: BTreeMap<String, SinkSettings>,
    /// HTTP services to feed.
    pub(crate) routes: Vec<RouteSettings>,
    /// Bounds on what clients may ask for, and on how long things may take.
    pub(crate) limits: Limits,
    /// Logs and traces.
    pub(crate) telemetry: Telemetry,
}

impl Settings {
    /// All consumers that are declared; what is wrong with one was found when the settings were read.
    pub(crate) fn consumers(&self) -> impl Iterator<Item = lakegate_sinks::ConsumerSettings> {
        let sinks = self.sinks.iter().filter_map(|(name, sink)| sink.consumer(name).ok());
        sinks.chain(self.routes.iter().filter_map(|route| route.consumer().ok()))
    }
}

/// This process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Node {
    /// The name of this gateway, as logs, metrics and commits show it.
    pub(crate) id: String,
    /// The folder of everything that this process keeps. One process at a time may use it.
    pub(crate) data_dir: String,
}

impl Default for Node {
    fn default() -> Self {
        Self { id: "gw-1".into(), data_dir: "./data".into() }
    }
}

/// The ways in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Ingestion {
    /// The address that both listeners bind to. Any other than a loopback address is refused while `auth.mode` is
    /// `none`, unless `auth.allow_anonymous_remote` is true.
    pub(crate) bind: String,
    /// The port for gRPC. 0 takes a free one.
    pub(crate) port: u16,
    /// The port for HTTP: SQL, catalog, metrics, health. 0 takes a free one.
    pub(crate) http_port: u16,
    /// The most gRPC connections at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) max_connections: u32,
    /// The most records that one internal batch gathers before it is handed on: rows of small requests share a batch in
    /// memory until it has so many.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) batch_size: u32,
    /// The most records that one request may bring.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub(crate) batch_size_max: u32,
    /// A table is committed when so much of it waits in memory, or when `flush_interval` is over.
    pub(crate) commit_bytes: Size,
    /// A table is committed when something has waited so long, or when `commit_bytes` are there.
    pub(crate) flush_interval: Period,
    /// The largest request, after decompression.
    pub(crate) message_bytes_max: Size,
    /// The largest payload of one record.
    pub(crate) payload_bytes_max: Size,
    /// The most that all memtables and requests in flight may take. Past it, new writes are told to come back later.
    pub(crate) memory_budget: Size,
    /// Whether a record may name a stream that is not declared under `streams`.
    pub(crate) undeclared_streams: bool,
}

impl Default for Ingestion {
    fn default() -> Self {
        Self {
            bind: "127.0.0.1".into(),
            port: 8081,
            http_port: 3001,
            max_connections: 100,
            batch_size: 1_000,
            batch_size_max: 100_000,
            commit_bytes: Size::mib(64),
            flush_interval: Period::from_secs(5),
            message_bytes_max: Size::mib(16),
            payload_bytes_max: Size::mib(4),
            memory_budget: Size::mib(512),
            undeclared_streams: true,
        }
    }
}

/// What is remembered to tell duplicates; how long for each stream, its `duplicate_window` and `duplicate_keys_max` say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Duplicates {
    /// The most event keys of all streams and tenants together. Past it the tenant with the most loses its oldest. A key
    /// takes up to 48 bytes of memory and 64 on disk.
    #[schemars(range(min = 1000, max = 1_000_000_000))]
    pub(crate) keys_max: u64,
    /// How long a request with an id of its own (`batch_id`, `Idempotency-Key`) is answered as the first time.
    pub(crate) requests_window: Period,
    /// The most memory that such answers take. Past it the tenant with the most loses its oldest.
    pub(crate) requests_memory: Size,
    /// A Redis in which several instances share their windows. Without `url` each instance has its own.
    pub(crate) redis: Redis,
}

/// A Redis in which several instances share their windows. It must keep what it confirmed: run it with `appendonly yes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Redis {
    /// Its address, such as `redis://:password@host:6379/0`, or `rediss://…` for TLS. Empty: none.
    pub(crate) url: Secret,
    /// A file of the certificates (PEM) that sign its own, where the system does not know them; for `rediss://`.
    pub(crate) ca: String,
    /// What all keys begin with; instances with the same prefix share.
    pub(crate) prefix: String,
    /// What is done while it is away.
    pub(crate) when_away: WhenAway,
    /// How long a request waits for it, and for claims of other instances, before it is told to come back later.
    pub(crate) wait: Period,
    /// How long the claims stand of an instance that went away and does not come back. Nobody can know before it is back
    /// what it had stored: a shorter time lets others store it again.
    pub(crate) claim: Period,
    /// How long one exchange with it may take.
    pub(crate) timeout: Period,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            ca: String::new(),
            prefix: "lakegate:".into(),
            when_away: WhenAway::Wait,
            wait: Period::from_secs(5),
            claim: Period::from_secs(3600),
            timeout: Period::from_secs(2),
        }
    }
}

/// What is done with requests while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WhenAway {
    /// They wait, and are told to come back later.
    Wait,
    /// They are taken by what this instance knows, marked in the log and counted.
    AcceptAndMark,
}

impl Default for Duplicates {
    fn default() -> Self {
        Self {
            keys_max: 10_000_000,
            requests_window: Period::from_millis(24 * 3600 * 1000),
            requests_memory: Size::mib(64),
            redis: Redis::default(),
        }
    }
}

/// The codec of Parquet files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CompressionType {
    /// Fast, larger files.
    Snappy,
    /// Small files at a good speed.
    Zstd,
    /// Fastest.
    Lz4,
    /// For readers that know nothing better.
    Gzip,
    /// As they are.
    None,
}

/// The write-ahead log and the files of the tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Storage {
    /// Whether a record is on disk before it is acknowledged. `false` is faster and loses, when the process dies,
    /// everything that is not yet committed to a table; it is said loudly at start, in `/health` and in the status.
    pub(crate) wal_enabled: bool,
    /// The codec of the Parquet files.
    pub(crate) compression_type: CompressionType,
    /// Where the tables lie: a folder, or `s3://bucket/prefix`. Follows `node.data_dir` while it is not set.
    pub(crate) warehouse: String,
    /// Parquet files aim at this size.
    pub(crate) target_file_bytes: Size,
    /// `/health` says `degraded` when the disk of `node.data_dir` has less room than this. Writes go on until the log
    /// finds no room for a segment; then they are told to come back later.
    pub(crate) min_free_disk: Size,
    /// The write-ahead log.
    pub(crate) wal: Wal,
    /// The object store, for a warehouse of `s3://…`.
    pub(crate) s3: S3,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            wal_enabled: true,
            compression_type: CompressionType::Zstd,
            warehouse: "./data/warehouse".into(),
            target_file_bytes: Size::mib(128),
            min_free_disk: Size::mib(256),
            wal: Wal::default(),
            s3: S3::default(),
        }
    }
}

/// The write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Wal {
    /// Its folder; empty: `wal` in `node.data_dir`. A disk of its own is faster.
    pub(crate) dir: String,
    /// The size of one segment file, allocated ahead.
    pub(crate) segment_bytes: Size,
    /// The most that all segments may take. Past it, new writes are told to come back later.
    pub(crate) quota: Size,
    /// Whether the log's thread asks the system for a real-time class, which keeps the time of a sync low on a busy
    /// machine. Where the system does not permit it, the log runs without.
    pub(crate) realtime: bool,
}

impl Default for Wal {
    fn default() -> Self {
        Self { dir: String::new(), segment_bytes: Size::mib(64), quota: Size::gib(8), realtime: true }
    }
}

/// The object store of a warehouse in a bucket: S3, or one that speaks its protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct S3 {
    /// The address of the store; empty: that of the provider.
    pub(crate) endpoint: String,
    /// The region.
    pub(crate) region: String,
    /// The access key. Empty: from the environment (`AWS_ACCESS_KEY_ID`, …), or from the machine's role.
    pub(crate) access_key: Secret,
    /// The secret key.
    pub(crate) secret_key: Secret,
    /// Whether buckets are named in the path, as MinIO wants it.
    pub(crate) path_style: bool,
    /// An access key that the embedded catalog hands to every engine that may read a table, so that it reads the files
    /// without a key of its own. It opens all that the store lets it open, other tenants' tables too: give it the right
    /// to read only, and leave it empty where tenants must not meet. Empty: engines bring their own.
    pub(crate) engine_access_key: Secret,
    /// The secret key of `engine_access_key`.
    pub(crate) engine_secret_key: Secret,
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            region: "us-east-1".into(),
            access_key: Secret::default(),
            secret_key: Secret::default(),
            path_style: true,
            engine_access_key: Secret::default(),
            engine_secret_key: Secret::default(),
        }
    }
}

/// The Iceberg catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Catalog {
    /// The database of the embedded catalog: `sqlite://FILE`, or `postgres://user:password@host:port/database`, which
    /// several instances may share. Follows `node.data_dir` while it is not set.
    pub(crate) database: DatabaseUrl,
    /// The address of an Iceberg REST catalog. When set, it is used in place of the embedded one.
    pub(crate) uri: String,
    /// The bearer token for that catalog.
    pub(crate) token: Secret,
    /// The warehouse to ask that catalog for.
    pub(crate) warehouse: String,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            database: DatabaseUrl::from("sqlite://./data/catalog.db"),
            uri: String::new(),
            token: Secret::default(),
            warehouse: String::new(),
        }
    }
}

/// How tables are looked after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Maintenance {
    /// Whether small files are made larger ones now and then. A table whose property `lakegate.compact.enabled` is
    /// `false` is left alone.
    pub(crate) compact: bool,
    /// How many bytes of small files one compaction takes, at most. A file larger than a quarter of it is left as it is.
    pub(crate) compact_bytes: Size,
    /// How many snapshots a new table keeps (its property `lakegate.snapshots.keep`). Every commit writes all of them
    /// anew, so that more make commits slower.
    #[schemars(range(min = 2, max = 10_000))]
    pub(crate) snapshots_keep: u32,
}

impl Default for Maintenance {
    fn default() -> Self {
        Self { compact: true, compact_bytes: Size::mib(64), snapshots_keep: 30 }
    }
}

/// The notation of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// The least important message that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogLevel {
    /// What stopped working.
    Error,
    /// What may stop working.
    Warn,
    /// What happened.
    Info,
    /// What was decided on the way.
    Debug,
    /// Everything.
    Trace,
}

/// Logs and traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Telemetry {
    /// The notation of log lines. They go to the standard error.
    pub(crate) log_format: LogFormat,
    /// The least important message that is logged.
    pub(crate) log_level: LogLevel,
    /// The address of an OpenTelemetry collector (OTLP over gRPC), such as `http://localhost:4317`; empty: no traces.
    pub(crate) otlp_endpoint: String,
    /// The name under which traces appear.
    pub(crate) service_name: String,
    /// The share of traces that is sent, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) trace_ratio: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Auto,
            log_level: LogLevel::Info,
            otlp_endpoint: String::new(),
            service_name: "lakegate".into(),
            trace_ratio: 0.1,
        }
    }
}
