//! The settings of bounds: queries, the HTTP listener, WebSockets, rates.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::auth::Rates;
use super::consumers::DownstreamLimits;
use super::units::{Period, Size};

/// Bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Queries.
    pub(crate) sql: SqlLimits,
    /// The HTTP listener.
    pub(crate) http: HttpLimits,
    /// How much each client and tenant may send.
    pub(crate) rates: Rates,
    /// WebSockets.
    pub(crate) websocket: WebSocketLimits,
    /// Services that routes bring records to.
    pub(crate) downstream: DownstreamLimits,
    /// How long a server that ends says that it is not ready (`/readyz`) before it takes no more. Longer than a balancer
    /// takes to notice: its interval times the failures that it wants to see.
    pub(crate) drain_notice: Period,
    /// How long a stop may take after that: requests in flight have the first half to end, then memory is committed. What is left
    /// then stays in the log.
    pub(crate) drain_timeout: Period,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sql: SqlLimits::default(),
            http: HttpLimits::default(),
            rates: Rates::default(),
            websocket: WebSocketLimits::default(),
            downstream: DownstreamLimits::default(),
            drain_notice: Period::from_millis(250),
            drain_timeout: Period::from_secs(30),
        }
    }
}

/// Bounds of queries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SqlLimits {
    /// The longest that a query may run.
    pub(crate) timeout: Period,
    /// The most rows that a query may return.
    #[schemars(range(min = 1))]
    pub(crate) rows: u64,
    /// The most bytes that a query may return.
    pub(crate) result_bytes_max: Size,
    /// The most memory that all running queries may take together.
    pub(crate) memory: Size,
    /// The most queries at once.
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) concurrent: u32,
}

impl Default for SqlLimits {
    fn default() -> Self {
        Self {
            timeout: Period::from_secs(60),
            rows: 1_000_000,
            result_bytes_max: Size::mib(512),
            memory: Size::mib(512),
            concurrent: 16,
        }
    }
}

/// Bounds of the HTTP listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HttpLimits {
    /// The most connections at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) connections: u32,
    /// The largest request body.
    pub(crate) body_bytes_max: Size,
    /// How long a client may take to send its headers.
    pub(crate) header_timeout: Period,
    /// How long a request may take to be answered. Queries have `limits.sql.timeout` of their own.
    pub(crate) request_timeout: Period,
    /// Names under which browsers may reach this server, besides `localhost` and the bound address: a request with
    /// another `Host` is refused, so that a web page cannot reach it by a name of its own.
    pub(crate) hosts: Vec<String>,
    /// Origins whose pages may use this server from a browser, such as `https://shop.example`. None by default.
    pub(crate) origins: Vec<String>,
    /// Addresses or networks (`10.0.0.0/8`) of proxies whose `X-Forwarded-For` is believed.
    pub(crate) trusted_proxies: Vec<String>,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 1_024,
            body_bytes_max: Size::mib(16),
            header_timeout: Period::from_secs(10),
            request_timeout: Period::from_secs(60),
            hosts: Vec::new(),
            origins: Vec::new(),
            trusted_proxies: Vec::new(),
        }
    }
}

/// Bounds of WebSockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WebSocketLimits {
    /// The most at once. They do not count among `limits.http.connections`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) connections: u32,
    /// The largest message, after unpacking.
    pub(crate) message_bytes_max: Size,
    /// A socket that is silent is sent a ping so often.
    pub(crate) ping_interval: Period,
    /// A socket from which nothing came for so long, not even an answer to a ping, is closed.
    pub(crate) idle_timeout: Period,
}

impl Default for WebSocketLimits {
    fn default() -> Self {
        Self {
            connections: 50_000,
            message_bytes_max: Size::mib(1),
            ping_interval: Period::from_secs(30),
            idle_timeout: Period::from_secs(75),
        }
    }
}
