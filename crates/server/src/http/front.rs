//! What every connection's requests meet first.
//!
//! Requests that bring records go straight to their sources: at tens of thousands a second, what the other paths pass
//! would take more time than the records. All others go through the router. Both get the same treatment: a correlation
//! id, a look at host and origin, and permission for pages of configured origins.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{ALLOW, ORIGIN, USER_AGENT};
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use lakegate_access::{self as access, Access, Action, Peer, Principal};
use lakegate_ingest::Client;
use lakegate_sources::rest::{Caller, Refusal, Reply, Route};
use lakegate_sources::websocket::Dialect;
use tower::ServiceExt;
use tracing::Instrument;

use super::App;
use super::problem::Problem;
use super::request::{CorrelationId, KnownHosts, REQUEST_ID};
use crate::config::Network;

/// The most bytes of a user agent that are kept.
const USER_AGENT_BYTES_MAX: usize = 512;
/// How long a browser may remember what it was permitted, in seconds.
const PREFLIGHT_AGE: &str = "600";
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE";
const HEADERS: &str =
    "authorization, content-type, content-encoding, x-api-key, x-tenant-id, x-request-id, traceparent, idempotency-key";
const EXPOSED: &str = "x-request-id, retry-after, location";

/// What all connections share.
pub(crate) struct Front {
    pub(crate) router: Router,
    pub(crate) app: Arc<App>,
    pub(crate) access: Access,
    pub(crate) hosts: KnownHosts,
    pub(crate) proxies: Vec<Network>,
    /// Whether spans go anywhere.
    pub(crate) traced: bool,
    pub(crate) ids: RequestIds,
}

/// Makes ids for requests that bring none: the process's own random part and a count.
pub(crate) struct RequestIds {
    process: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub(crate) fn new(process: u64) -> Self {
        Self { process, next: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        let mut id = String::with_capacity(32);
        for number in [self.process, self.next.fetch_add(1, Ordering::Relaxed)] {
            for place in (0..16).rev() {
                let digit = u32::try_from(number >> (place * 4) & 15).unwrap_or(0);
                id.push(char::from_digit(digit, 16).unwrap_or('0'));
            }
        }
        id
    }
}

/// The requests of one connection.
#[derive(Clone)]
pub(crate) struct Connected {
    pub(crate) front: Arc<Front>,
    pub(crate) peer: Peer,
}

impl hyper::service::Service<Request<Incoming>> for Connected {
    type Response = Response<FrontBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (front, peer) = (self.front.clone(), self.peer.clone());
        Box::pin(async move { Ok(front.answer(request, peer).await) })
    }
}

/// What brings records.
enum Source {
    Rest(Route),
    Socket(Dialect),
}

impl Front {
    /// Waits until the sockets have ended, which connections leave behind.
    pub(crate) async fn closed(&self) {
        self.app.sockets.closed().await;
    }

    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<FrontBody> {
        let Some(origin) = request.headers().get(ORIGIN) else { return self.answer_any(request, peer).await };
        let permitted = self.hosts.permits(origin).then(|| origin.clone());
        let asks_first = request.method() == Method::OPTIONS
            && request.headers().contains_key("access-control-request-method")
            && permitted.is_some();
        let mut response = if asks_first { preflight() } else { self.answer_any(request, peer).await };
        if let Some(origin) = permitted {
            let headers = response.headers_mut();
            headers.insert("access-control-allow-origin", origin);
            headers.insert("access-control-expose-headers", HeaderValue::from_static(EXPOSED));
        }
        response.headers_mut().append("vary", HeaderValue::from_static("origin"));
        response
    }

    async fn answer_any(&self, mut request: Request<Incoming>, peer: Peer) -> Response<FrontBody> {
        let peer = Peer { address: self.client_address(peer.address, request.headers()), ..peer };
        let path = request.uri().path();
        let source = Route::of(path).map(Source::Rest).or_else(|| Dialect::of(path).map(Source::Socket));
        match source {
            Some(source) => self.answer_source(&source, request, peer).await,
            None => {
                request.extensions_mut().insert(peer);
                match self.router.clone().oneshot(request).await {
                    Ok(response) => response.map(FrontBody::Routed),
                    Err(never) => match never {},
                }
            }
        }
    }

    async fn answer_source(&self, source: &Source, request: Request<Incoming>, peer: Peer) -> Response<FrontBody> {
        let headers = request.headers();
        let id = CorrelationId::given(headers).unwrap_or_else(|| CorrelationId::made(self.ids.next()));
        let let_in = match self.hosts.refusal(&request, true) {
            Some(problem) => Err(problem),
            None => self.who_writes(request.uri().query(), headers, &peer).await,
        };
        let answered = match let_in {
            Err(problem) => Err(problem),
            Ok(principal) => {
                let caller = Caller {
                    principal,
                    correlation_id: Some(id.as_str().to_owned()),
                    client: Client { address: peer.address, user_agent: user_agent(headers) },
                };
                let answered = match source {
                    Source::Socket(dialect) => match self.access.open_place(caller.principal.as_deref()) {
                        Ok(place) => self.app.sockets.open(*dialect, request, caller, place),
                        Err(error) => return self.finish(source, Err(error.into()), &id),
                    },
                    Source::Rest(route) if self.traced => {
                        let span = tracing::info_span!("http", correlation_id = id.as_str(), route = route.pattern());
                        self.app.rest.answer(route, request, caller).instrument(span).await
                    }
                    Source::Rest(route) => self.app.rest.answer(route, request, caller).await,
                };
                answered.map_err(|refusal| problem_of(refusal, &id))
            }
        };
        self.finish(source, answered, &id)
    }

    /// The response, with what every answer of a source carries.
    fn finish(&self, source: &Source, answered: Result<Reply, Problem>, id: &CorrelationId) -> Response<FrontBody> {
        let mut response = match answered {
            Ok(reply) => reply.map(FrontBody::Whole),
            Err(problem) => problem.response(Some(id.as_str())).map(FrontBody::Routed),
        };
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            let takes = if matches!(source, Source::Rest(_)) { "POST" } else { "GET" };
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(takes));
        }
        if let Ok(value) = HeaderValue::from_str(id.as_str()) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        response
    }

    /// Who sends records; refused before anything of the body is read where there may be none of theirs.
    async fn who_writes(
        &self,
        query: Option<&str>,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<Option<Arc<Principal>>, Problem> {
        if self.access.is_required() {
            access::check_query(query)?;
        }
        let principal = self.access.authenticate(headers, peer).await?;
        access::check_some(principal.as_deref(), Action::Write)?;
        Ok(principal)
    }

    /// The address of whoever sent the request: the peer's own, or, as far as trusted proxies say so, the last one that
    /// is not theirs.
    fn client_address(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let mut address = peer?.to_canonical();
        if self.proxies.is_empty() {
            return Some(address);
        }
        let trusted = |address: IpAddr| self.proxies.iter().any(|network| network.holds(address));
        let told = headers.get_all("x-forwarded-for").into_iter().rev();
        let told = told.flat_map(|value| value.to_str().unwrap_or("?").rsplit(','));
        for text in told {
            if !trusted(address) {
                break;
            }
            let Some(told) = read_address(text.trim()) else { break };
            address = told.to_canonical();
        }
        Some(address)
    }
}

/// An address, with or without a port.
fn read_address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(with_port).or_else(bare)
}

fn user_agent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(USER_AGENT)?.to_str().ok()?;
    Some(text.get(..USER_AGENT_BYTES_MAX).unwrap_or(text).to_owned())
}

fn problem_of(refusal: Refusal, id: &CorrelationId) -> Problem {
    let Refusal { status, code, detail, retry_after_s, members } = refusal;
    if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        tracing::warn!(correlation_id = id.as_str(), %status, detail, "a request failed");
    }
    let problem = Problem::new(status, code, detail);
    let problem = match retry_after_s {
        Some(seconds) => problem.retry_after(seconds),
        None => problem,
    };
    members.into_iter().fold(problem, |problem, (name, value)| problem.with(name, value))
}

/// What a browser asks before it sends a page's request.
fn preflight() -> Response<FrontBody> {
    let mut response = Response::new(FrontBody::Whole(Full::default()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert("access-control-allow-methods", HeaderValue::from_static(METHODS));
    headers.insert("access-control-allow-headers", HeaderValue::from_static(HEADERS));
    headers.insert("access-control-max-age", HeaderValue::from_static(PREFLIGHT_AGE));
    response
}

/// An answer's body: a source's, or the router's.
pub(crate) enum FrontBody {
    Whole(Full<Bytes>),
    Routed(Body),
}

impl HttpBody for FrontBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Routed(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Routed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Routed(body) => body.size_hint(),
        }
    }
}
