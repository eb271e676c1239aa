//! The WebSocket way in: cart events (`/events/stream`) and documents (`/api/ingest/stream`).
//!
//! The frames of RFC 6455 are read by hand: no maintained library unpacks `permessage-deflate` and keeps an idle socket
//! within a few KiB, and none gives all messages that came together, which is what a submission is made of. An idle
//! socket holds no buffers.
//!
//! Promises: an `event_ack` comes after the disk; a message that makes no sense is answered, not punished; what one
//! socket and all of them may hold is bounded. Refuses: rules about records, identity, storage.

mod bus;
mod frame;
mod group;
mod handshake;
mod inflate;
mod message;
mod reader;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use lakegate_access::{Opened, Principal};
use lakegate_ingest::Gate;
use lakegate_model::{StreamName, TenantId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::intake::Intake;
use crate::rest::{Caller, Refusal, Reply, tenant_of};
use handshake::Agreed;
use session::Session;

pub use bus::Bus;
pub(crate) use bus::Told;

/// Which messages a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `/events/stream`.
    Events,
    /// `/api/ingest/stream`.
    Documents,
}

impl Dialect {
    /// What the path leads to, if it is ours.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/events/stream" => Some(Self::Events),
            "/api/ingest/stream" => Some(Self::Documents),
            _ => None,
        }
    }
}

/// Bounds of sockets.
#[derive(Debug, Clone)]
pub struct SocketLimits {
    /// The most at once.
    pub connections: usize,
    /// The largest message, after unpacking.
    pub message_bytes_max: usize,
    /// The most bytes of messages that have come in part, over all sockets.
    pub partial_bytes_max: usize,
    /// Groups of one socket's records that are under way at once.
    pub groups_at_once: usize,
    /// A socket that is silent is sent a ping so often.
    pub ping_interval: Duration,
    /// A socket from which nothing came for so long is closed.
    pub idle_timeout: Duration,
    /// How long the gate may take for one answer.
    pub answer_timeout: Duration,
    /// The stream of cart events.
    pub events_stream: String,
    /// The stream of documents.
    pub documents_stream: String,
}

impl Default for SocketLimits {
    fn default() -> Self {
        Self {
            connections: 50_000,
            message_bytes_max: 1 << 20,
            partial_bytes_max: 64 << 20,
            groups_at_once: 4,
            ping_interval: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            answer_timeout: Duration::from_secs(60),
            events_stream: "events".to_owned(),
            documents_stream: "documents".to_owned(),
        }
    }
}

/// Figures of sockets.
#[derive(Debug, Default)]
pub struct SocketFigures {
    /// Open now.
    pub active: AtomicUsize,
    /// Opened so far.
    pub total: AtomicU64,
    /// Messages that came.
    pub received: AtomicU64,
    /// Messages that were sent.
    pub sent: AtomicU64,
    /// Bytes of messages that have come in part.
    pub(crate) partial_bytes: AtomicUsize,
}

/// Whether what a socket was opened with still holds.
pub type StillHolds = Arc<dyn Fn(&Principal) -> bool + Send + Sync>;

/// The WebSocket way in, over one gate.
pub struct Sockets<I = Gate> {
    pub(crate) shared: Arc<Shared<I>>,
}

/// What all sockets share.
pub(crate) struct Shared<I> {
    pub(crate) intake: I,
    pub(crate) limits: SocketLimits,
    pub(crate) bus: Arc<Bus>,
    pub(crate) figures: Arc<SocketFigures>,
    pub(crate) still_holds: StillHolds,
    pub(crate) drain: CancellationToken,
    pub(crate) open: TaskTracker,
    pub(crate) events: StreamName,
    pub(crate) documents: StreamName,
    pub(crate) next_id: AtomicU64,
}

impl<I: Intake> Sockets<I> {
    /// The way in to `intake`, until `drain`.
    ///
    /// # Errors
    /// A stream's name is not one.
    pub fn new(
        intake: I,
        limits: SocketLimits,
        bus: Arc<Bus>,
        still_holds: StillHolds,
        drain: CancellationToken,
    ) -> Result<Self, lakegate_model::NameError> {
        let events = StreamName::new(&limits.events_stream)?;
        let documents = StreamName::new(&limits.documents_stream)?;
        let (figures, open) = (Arc::default(), TaskTracker::new());
        let next_id = AtomicU64::new(0);
        let shared = Shared { intake, limits, bus, figures, still_holds, drain, open, events, documents, next_id };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What came and went.
    #[must_use]
    pub fn figures(&self) -> &Arc<SocketFigures> {
        &self.shared.figures
    }

    /// Confirmations dropped so far because their readers were slow.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.bus.dropped()
    }

    /// Answers a request for a socket, and serves the socket from then on. `opened`: its place among those of its
    /// principal, held until the socket ends.
    ///
    /// # Errors
    /// It is no handshake, names another tenant than its credentials, there are too many sockets, or the server is ending.
    pub fn open(
        &self,
        dialect: Dialect,
        request: Request<Incoming>,
        caller: Caller,
        opened: Option<Opened>,
    ) -> Result<Reply, Refusal> {
        let agreed = Agreed::read(request.method(), request.version(), request.headers())?;
        let tenant = socket_tenant(&request, &caller)?;
        let place = self.shared.place()?;
        let reply = agreed.reply();
        let shared = self.shared.clone();
        self.shared.open.spawn(async move {
            let places = (place, opened);
            // Whoever asked may be gone before it hears the answer.
            if let Ok(upgraded) = hyper::upgrade::on(request).await {
                let session = Session::new(shared, dialect, (caller, tenant), agreed.packing());
                session.run(TokioIo::new(upgraded)).await;
            }
            drop(places);
        });
        Ok(reply)
    }

    /// Waits until all sockets have ended; they are told to when `drain` is cancelled.
    pub async fn closed(&self) {
        self.shared.open.close();
        self.shared.open.wait().await;
    }
}

/// Whose events they are where nobody is named; the gate stores them for the same.
const NOBODY_NAMED: &str = "default";

/// The tenant under which is told of events that were sent for `tenant`.
pub(crate) fn tenant_told(tenant: Option<&TenantId>) -> &str {
    tenant.map_or(NOBODY_NAMED, TenantId::as_str)
}

/// Whose the socket's records and confirmations are: as over HTTP what the header says, and, because a page cannot set
/// headers, else `tenant` of the address. None: whoever the gate takes where nobody is named.
fn socket_tenant<B>(request: &Request<B>, caller: &Caller) -> Result<Option<TenantId>, Refusal> {
    if let Some(named) = tenant_of(request.headers(), caller)? {
        return Ok(Some(named));
    }
    let own = caller.principal.as_ref().map(|principal| principal.tenant.clone());
    let query = request.uri().query().unwrap_or_default();
    let named = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "tenant");
    let Some((_, named)) = named else { return Ok(own) };
    let wrong = |error: lakegate_model::NameError| Refusal::invalid("invalid_name", format!("tenant: {error}"));
    let named = TenantId::new(&named).map_err(wrong)?;
    match own {
        Some(own) if own != named => Err(Refusal::wrong_tenant("tenant")),
        _ => Ok(Some(named)),
    }
}

/// One socket's place among those that are allowed.
pub(crate) struct Place {
    figures: Arc<SocketFigures>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.figures.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<I> Shared<I> {
    fn place(&self) -> Result<Place, Refusal> {
        let refused = |code, detail: String| {
            Err(Refusal { retry_after_s: Some(5), ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, code, detail) })
        };
        if self.drain.is_cancelled() {
            return refused("unavailable", "the server is ending".to_owned());
        }
        let limit = self.limits.connections;
        if self.figures.active.fetch_add(1, Ordering::Relaxed) >= limit {
            self.figures.active.fetch_sub(1, Ordering::Relaxed);
            return refused("too_many_sockets", format!("{limit} sockets are open (limits.websocket.connections)"));
        }
        self.figures.total.fetch_add(1, Ordering::Relaxed);
        Ok(Place { figures: self.figures.clone() })
    }
}
