//! What a source gives the gate, and what it is told.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lakegate_access::Principal;
use lakegate_model::{Contract, ReasonCode, RecordError, StreamKey, StreamName, TableName, Tally, TenantId, Verdict};

/// By which way a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Source {
    /// gRPC.
    Grpc = 1,
    /// Made inside the process.
    Internal = 2,
    /// HTTP requests.
    Rest = 3,
    /// WebSocket messages.
    WebSocket = 4,
    /// Files.
    File = 5,
    /// Kafka topics.
    Kafka = 6,
    /// Arrow Flight.
    Flight = 7,
    /// SQL statements.
    Sql = 8,
}

impl Source {
    /// Every way, by its number in the log.
    pub(crate) fn from_number(number: u8) -> Self {
        let all = [Self::Grpc, Self::Rest, Self::WebSocket, Self::File, Self::Kafka, Self::Flight, Self::Sql];
        all.into_iter().find(|source| *source as u8 == number).unwrap_or(Self::Internal)
    }

    /// The way's name, as dead letters keep it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Internal => "internal",
            Self::Rest => "rest",
            Self::WebSocket => "websocket",
            Self::File => "file",
            Self::Kafka => "kafka",
            Self::Flight => "flight",
            Self::Sql => "sql",
        }
    }
}

/// How a request's bytes are to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// A `storage.IngestBatchRequest`. An `IngestRecordRequest` has the same layout: a batch of one.
    ProtoBatch,
    /// Payloads of one stream, each in its own stretch of the bytes.
    Payloads(Payloads),
    /// Rows of one stream in columns: an Arrow IPC stream, its schema first.
    Arrow(ArrowRows),
}

/// Rows in columns: what the schema calls a column is a column of the stream's contract, or what one is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrowRows {
    /// The tenant that the request names, used while authentication is off; none: `default`.
    pub tenant: Option<TenantId>,
    /// The stream of all of them.
    pub stream: StreamName,
    /// Whether a row that is refused refuses all.
    pub atomic: bool,
    /// The request's own id; sending the same one again changes nothing. Empty: none.
    pub batch_id: String,
    /// The schema has the names of the contract's columns, not of what these are read from.
    pub by_name: bool,
    /// A stream that nobody declared, and that nothing was sent to, gets the columns of these rows.
    pub declares: bool,
}

/// Payloads without envelopes: what a record is about, its stream's contract finds inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payloads {
    /// The tenant that the request names, used while authentication is off; none: `default`.
    pub tenant: Option<TenantId>,
    /// The stream of all of them.
    pub stream: StreamName,
    /// Where each lies in the bytes, in order and without overlap.
    pub spans: Vec<Range<u32>>,
    /// Whether one that is refused refuses all.
    pub atomic: bool,
    /// The request's own id; sending the same one again changes nothing. Empty: none.
    pub batch_id: String,
}

/// What is known of who sent a request, besides its credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Client {
    /// Its address, as far as it is to be believed.
    pub address: Option<IpAddr>,
    /// What it calls itself.
    pub user_agent: Option<String>,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Who asks. None while authentication is off: the request names its tenant, `default` when it says nothing.
    pub principal: Option<Arc<Principal>>,
    /// By which way it came.
    pub source: Source,
    /// How to read the bytes.
    pub wire: Wire,
    /// The bytes as received.
    pub body: Bytes,
    /// What ties this request to others in logs and traces.
    pub correlation_id: Option<String>,
    /// Where it came from.
    pub client: Client,
    /// The sender has other requests under way that are to stay behind this one: it is read without a pause, so that
    /// requests reach the log in the order in which they were first polled.
    pub in_order: bool,
}

/// What became of a request. Everything that is counted as accepted is on disk and seen by queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmissionOutcome {
    /// The request's own id, as it came.
    pub batch_id: String,
    /// Records stored.
    pub accepted: u64,
    /// Records that were there already.
    pub duplicates: u64,
    /// Records given back.
    pub rejected: u64,
    /// Records set aside in the dead-letter table.
    pub dead_lettered: u64,
    /// The records given back or set aside, in the request's order.
    pub errors: Vec<RecordError>,
    /// The records that were there already, by index; at most the first thousand.
    pub duplicate_indexes: Vec<u32>,
    /// The offset of the request's last record in the log.
    pub position: u64,
    /// The id of the first record, given or assigned.
    pub first_event_id: Option<String>,
    /// What became of the first record.
    pub first_verdict: Verdict,
}

/// Why a whole request was refused. Nothing of it was stored, except after [`SubmitError::Unavailable`]: then it may
/// have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The request breaks a rule. Sending it again will not help.
    #[error("{message}")]
    Invalid {
        /// The reason, for machines.
        code: ReasonCode,
        /// The field of the request, such as `records[3].payload`.
        field: String,
        /// The reason, for people.
        message: String,
        /// The records at fault, where the request asked for all or nothing.
        errors: Vec<RecordError>,
    },
    /// The credentials do not allow writing to the stream.
    #[error("the credentials of {principal} do not allow writing to the stream {stream}")]
    Forbidden {
        /// Who asked.
        principal: String,
        /// The stream.
        stream: StreamName,
    },
    /// The request names a tenant that the credentials do not.
    #[error("the credentials are not for the tenant that {field} names")]
    WrongTenant {
        /// The field of the request.
        field: String,
    },
    /// More records than one request may bring.
    #[error("the request brings {found} records; at most {limit} are taken at once (ingestion.batch_size_max)")]
    BatchTooLarge {
        /// The most.
        limit: usize,
        /// How many there were.
        found: usize,
    },
    /// The client or its tenant sends more than it may. Sending it again later will help.
    #[error("{message}")]
    OverQuota {
        /// Which limit, such as `tenant.records_per_second`.
        limit: &'static str,
        /// The setting that moves it.
        setting: String,
        /// For people.
        message: String,
        /// When to come back, in milliseconds.
        retry_after_ms: u64,
    },
    /// No room at the moment. Sending it again later will help.
    #[error("{message}")]
    OutOfRoom {
        /// Which room: `memory`, `wal_quota`, `queue`, `disk`.
        what: &'static str,
        /// For people: the limit, how much is taken, which setting moves it.
        message: String,
        /// When to come back, in milliseconds.
        retry_after_ms: u64,
    },
    /// The log failed, or the process is ending. Whether the request was stored is not known; a retry with the same
    /// event ids makes no second row where the stream has an event key.
    #[error("{message}")]
    Unavailable {
        /// For people.
        message: String,
    },
}

/// A stream that the configuration declares.
#[derive(Debug, Clone)]
pub struct StreamDeclaration {
    /// Its name.
    pub name: StreamName,
    /// Its contract.
    pub contract: Contract,
}

/// Figures of one tenant's part of one stream, or of all together.
#[derive(Debug, Clone)]
pub struct StreamStatus {
    /// Whose, and which.
    pub key: StreamKey,
    /// Of a stream whose records go into tables by event type, the event type as in the table's name; empty for the
    /// entry that has the stream's counts.
    pub part: String,
    /// Its table.
    pub table: TableName,
    /// What came and what became of it, since ever.
    pub tally: Tally,
    /// Records accepted a second, over the last minute.
    pub rate_1m: f64,
    /// Rows of its table that are not in the lake yet.
    pub memtable_records: u64,
    /// Bytes of these in memory.
    pub memtable_bytes: u64,
    /// Everything below this offset of the log is durable.
    pub durable_offset: u64,
    /// Everything of this table below this offset of the log is in the lake.
    pub absorbed_offset: u64,
    /// Durable records of this table that the lake lacks.
    pub lag_records: u64,
    /// The age of the oldest of them, in seconds.
    pub lag_seconds: f64,
    /// The table's newest snapshot that this process knows.
    pub snapshot_id: Option<i64>,
    /// When this process last committed to the table, in microseconds since 1970.
    pub last_commit_us: Option<i64>,
    /// Seconds since then.
    pub seconds_since_commit: Option<f64>,
    /// Why the last flush failed, while it does.
    pub last_error: Option<String>,
    /// Values that were made harmless, by column, since the process began.
    pub sanitised: BTreeMap<String, u64>,
    /// Values that did not fit their columns and were kept beside the row, since then.
    pub rescued: u64,
    /// Events whose time lay too far from the time of receipt and that were taken all the same, since then.
    pub clock_skewed: u64,
}

/// Figures of the gate.
#[derive(Debug, Clone)]
pub struct GateStatus {
    /// All asked-for streams together.
    pub totals: Tally,
    /// Records accepted a second, over the last minute.
    pub rate_1m: f64,
    /// Each stream, by tenant and name.
    pub streams: Vec<StreamStatus>,
    /// Bytes of all memtables in memory.
    pub memtable_bytes: u64,
    /// The most that they may take.
    pub memory_budget: u64,
    /// Bytes of requests that are under way.
    pub inflight_bytes: u64,
    /// Everything below this offset of the log is durable.
    pub durable_offset: u64,
}

/// How a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthState {
    /// Works.
    Healthy,
    /// Works in part; records are still taken.
    Degraded,
    /// Does not work; records are refused.
    Unhealthy,
}

/// One component's health.
#[derive(Debug, Clone)]
pub struct ComponentHealth {
    /// Its name, such as `wal` or `lake`.
    pub name: &'static str,
    /// How it is.
    pub state: HealthState,
    /// Why, for people; empty while healthy.
    pub message: String,
}
