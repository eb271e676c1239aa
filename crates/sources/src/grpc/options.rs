//! What the listener is told.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lakegate_access::{Access, Principal, Tls};
use lakegate_ingest::Gate;
use tokio::net::TcpListener;

use super::shared::TonicService;

/// All that the listener stands on.
pub struct GrpcOptions {
    /// The port, bound by the caller.
    pub listener: TcpListener,
    /// Where records go.
    pub gate: Gate,
    /// Who is let in.
    pub access: Access,
    /// The certificates, where connections are to be secret.
    pub tls: Option<Tls>,
    /// Arrow Flight, served beside the rest.
    pub flight: Option<TonicService>,
    /// The server's version, as `HealthCheck` tells it.
    pub version: String,
    /// How much is taken, and how long is waited.
    pub limits: GrpcLimits,
}

/// Who asks, as services that are served beside the rest find it among a request's extensions.
#[derive(Debug, Clone, Default)]
pub struct Asking {
    /// None while authentication is off.
    pub principal: Option<Arc<Principal>>,
    /// The peer's address.
    pub address: Option<IpAddr>,
    /// What it calls itself.
    pub user_agent: Option<String>,
}

/// Bounds. The defaults are what a server with the default settings uses.
#[derive(Debug, Clone)]
pub struct GrpcLimits {
    /// The most connections at once. One more is told UNAVAILABLE and closed.
    pub max_connections: usize,
    /// The most bytes of one message, after decompression.
    pub max_message_bytes: usize,
    /// The most bytes of messages that are being received or worked on, over all connections.
    pub receive_budget_bytes: usize,
    /// The most calls at once on one connection.
    pub max_concurrent_calls: u32,
    /// The most bytes of one request's headers.
    pub max_header_bytes: u32,
    /// The most batches of one `IngestStream` that are read and not yet answered.
    pub stream_window_batches: usize,
    /// Past so many bytes of such batches no more is read.
    pub stream_window_bytes: usize,
    /// How long a batch of an `IngestStream` waits for room before the stream ends with RESOURCE_EXHAUSTED.
    pub stream_patience: Duration,
    /// How long a new connection may take to say which protocol it speaks, and an HTTP/1 request for its headers.
    pub header_timeout: Duration,
    /// How long a message may take ...
    pub message_grace: Duration,
    /// ... plus the time that it takes at this rate, in bytes a second. What is slower is ended.
    pub message_bytes_per_second: u64,
    /// After so long without a frame the peer is asked whether it is there ...
    pub keepalive_interval: Duration,
    /// ... and the connection closed when it does not answer for so long.
    pub keepalive_timeout: Duration,
    /// How long calls under way may take once the server is ending.
    pub drain_timeout: Duration,
}

impl Default for GrpcLimits {
    fn default() -> Self {
        Self {
            max_connections: 100,
            max_message_bytes: 16 << 20,
            receive_budget_bytes: 256 << 20,
            max_concurrent_calls: 1000,
            max_header_bytes: 16 << 10,
            stream_window_batches: 64,
            stream_window_bytes: 32 << 20,
            stream_patience: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            message_grace: Duration::from_secs(20),
            message_bytes_per_second: 16 << 10,
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(20),
            drain_timeout: Duration::from_secs(20),
        }
    }
}
