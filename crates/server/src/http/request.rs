//! What every request passes: a correlation id, a trace, a look at the host it was sent to, and a time limit.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use opentelemetry::propagation::Extractor;
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::problem::Problem;

/// The header that carries the correlation id, both ways.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest correlation id that is taken over from a client.
const ID_BYTES_MAX: usize = 128;

/// What ties a request to its logs, its trace and its answer.
#[derive(Debug, Clone)]
pub(crate) struct CorrelationId(Arc<str>);

impl CorrelationId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The client's own id, else that of its trace, else a new one.
    fn of(headers: &HeaderMap) -> Self {
        Self::given(headers).unwrap_or_else(|| Self::made(Uuid::now_v7().to_string()))
    }

    /// An id of our own making.
    pub(crate) fn made(id: String) -> Self {
        Self(Arc::from(id))
    }

    /// The client's own id, else that of its trace.
    pub(crate) fn given(headers: &HeaderMap) -> Option<Self> {
        let own = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).filter(|id| is_usable(id));
        let trace = || {
            headers.get("traceparent")?.to_str().ok()?.split('-').nth(1).filter(|id| id.len() == 32 && is_usable(id))
        };
        own.or_else(trace).map(|id| Self(Arc::from(id)))
    }
}

/// Ids go into paths, logs and answers, so that only plain characters are let in.
fn is_usable(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= ID_BYTES_MAX
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|v| v.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Middleware: gives the request its id and its span, and records how long it took.
pub(crate) async fn correlate(mut request: Request, next: Next) -> Response {
    let id = CorrelationId::of(request.headers());
    let route = request.extensions().get::<MatchedPath>().map_or_else(|| "other".to_owned(), |p| p.as_str().to_owned());
    let method = request.method().clone();
    let span = tracing::info_span!("http", correlation_id = id.as_str(), method = %method, route = %route);
    let parent = opentelemetry::global::get_text_map_propagator(|p| p.extract(&Headers(request.headers())));
    // Without a collector the span is not exported and takes no parent; that is no error of the request's.
    let _ = span.set_parent(parent);
    request.extensions_mut().insert(id.clone());
    let started = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    metrics::histogram!("lakegate_http_request_seconds", "method" => known(&method), "route" => route, "status" => status.to_string())
        .record(started.elapsed().as_secs_f64());
    span.in_scope(|| {
        if status >= 500 && status != 503 {
            tracing::warn!(status, "a request failed");
        } else {
            tracing::debug!(status, "a request was answered");
        }
    });
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The method's name; one word for all that a client may have made up, so that it cannot make figures without end.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Under which names browsers may reach this server.
#[derive(Debug, Clone)]
pub(crate) struct KnownHosts {
    /// Whether names are looked at at all. A server that is open to other machines and names no hosts does not.
    pub(crate) checked: bool,
    /// The names, besides `localhost` and addresses.
    pub(crate) names: Arc<[String]>,
    /// Origins whose pages may use this server.
    pub(crate) origins: Arc<[String]>,
}

impl KnownHosts {
    /// Whether a `host` or `host:port` is ours. An address is: a page that rebinds its own name cannot send one.
    fn knows(&self, authority: &str) -> bool {
        let host = host_of(authority);
        host == "localhost" || host.parse::<IpAddr>().is_ok() || self.is_named(&host)
    }

    /// Whether a page that came from there is ours: from this machine, or from a name of this server. That it came from
    /// an address says nothing: anybody has one.
    fn knows_page(&self, authority: &str) -> bool {
        let host = host_of(authority);
        let local =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
        local || self.is_named(&host)
    }

    fn is_named(&self, host: &str) -> bool {
        self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// Whether pages of this origin were given permission.
    pub(crate) fn permits(&self, origin: &HeaderValue) -> bool {
        self.origins.iter().any(|own| own.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
    }

    /// Why a request is refused that a web page sends under a name of its own (DNS rebinding), or to us from elsewhere.
    /// Where names are not looked at, a page may still bring records only to the host that it came from. HTTP/1.0 knows no
    /// names: balancers ask so whether a server is well, and no browser does.
    pub(crate) fn refusal<B>(&self, request: &axum::http::Request<B>, brings_records: bool) -> Option<Problem> {
        let headers = request.headers();
        let host = || headers.get(HOST).and_then(|v| v.to_str().ok());
        if headers.get_all(HOST).iter().nth(1).is_some() {
            // RFC 9112, 3.2: who stands between may go by the other one.
            return Some(Problem::new(StatusCode::BAD_REQUEST, "malformed", "the request names two hosts; send one"));
        }
        if self.checked {
            let authority = request.uri().authority().map(|a| a.as_str()).or_else(host);
            let nameless = headers.get(HOST).is_none() && request.version() == Version::HTTP_10;
            if !nameless && !self.knows(authority.unwrap_or_default()) {
                let detail = "this server is not reached by this host name; use localhost or an address, or add the name to limits.http.hosts";
                return Some(Problem::new(StatusCode::MISDIRECTED_REQUEST, "unknown_host", detail));
            }
        }
        let origin = headers.get(ORIGIN).filter(|_| self.checked || brings_records)?;
        let page = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, authority)| authority);
        let known = |page: &str| host() == Some(page) || (self.checked && self.knows_page(page));
        if self.permits(origin) || page.is_some_and(known) {
            return None;
        }
        let detail = "pages of other origins may not use this server; add the page's origin to limits.http.origins if it is yours";
        Some(Problem::new(StatusCode::FORBIDDEN, "foreign_origin", detail))
    }
}

/// The host of `host` or `host:port`, in small letters.
fn host_of(authority: &str) -> String {
    let authority = authority.to_ascii_lowercase();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next(),
        None => authority.split(':').next(),
    };
    host.unwrap_or_default().to_owned()
}

/// Middleware: [`KnownHosts::refusal`].
pub(crate) async fn check_host(State(known): State<KnownHosts>, request: Request, next: Next) -> Response {
    match known.refusal(&request, false) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    }
}

/// Middleware: ends a request that takes too long.
pub(crate) async fn limit_time(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!("the request took longer than {} ms (limits.http.request_timeout)", limit.as_millis());
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", detail).retry_after(1).into_response()
        }
    }
}
