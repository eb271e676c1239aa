//! A service that gets one HTTP request for each record.
//!
//! Every request carries the record's key (`Idempotency-Key`), which stays the same however often it is sent, the
//! correlation id of the request that brought the record (`X-Request-Id`) with the trace that belongs to it
//! (`traceparent`), and, where a secret is set, a signature over time and body.
//!
//! Promises: only hosts that the configuration allows are asked, and of those only addresses that were checked when they
//! were dialled; redirects are not followed; an answer is read up to a bound. What the service refuses for good (400, 422
//! and their like) is given up at once; what it fails at, so often, while it answers others; what nobody answers, not
//! before `give_up_after`.

use std::sync::Arc;
use std::time::Duration;

use lakegate_places::{HostRule, PlaceError, check_destination};
use rand::Rng;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, StatusCode};
use ring::hmac;
use serde_json::{Map, Value};
use tokio::time::Instant;
use url::Url;

use crate::breaker::{Breaker, BreakerState, Ended};
use crate::dead::DeadRecord;
use crate::live::Live;
use crate::settings::RetrySettings;
use crate::template::{Json, Text, encode_part};

/// Of an answer, so much is read for the message.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// So much of it is shown.
const SHOWN_CHARS_MAX: usize = 300;
/// A service may ask for so long a pause.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// What a service refuses for good.
const REFUSALS: [u16; 10] = [400, 405, 406, 409, 410, 413, 414, 415, 422, 431];

/// What a request holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// The event as it came.
    Event,
    /// The columns, by name.
    Row,
    /// A template.
    Template(Json),
}

/// How requests are signed: `t=SECONDS,v1=HEX`, where HEX is the HMAC-SHA-256 of `SECONDS.BODY`.
#[derive(Clone)]
pub struct Signature {
    header: HeaderName,
    key: hmac::Key,
}

impl Signature {
    /// Signs with a secret, in a header.
    #[must_use]
    pub fn new(header: HeaderName, secret: &[u8]) -> Self {
        Self { header, key: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signature").field("header", &self.header).finish_non_exhaustive()
    }
}

/// A service.
#[derive(Debug, Clone)]
pub struct RouteSettings {
    /// The address; places may stand behind the host.
    pub url: Text,
    /// The method.
    pub method: Method,
    /// Headers of every request.
    pub headers: HeaderMap,
    /// What it holds.
    pub body: Body,
    /// How it is signed.
    pub signature: Option<Signature>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl RouteSettings {
    /// Scheme, host and port: what a breaker is for.
    #[must_use]
    pub fn service(&self) -> String {
        Url::parse(self.url.head()).map(|url| url.origin().ascii_serialization()).unwrap_or_default()
    }
}

/// A record on its way.
#[derive(Debug, Clone)]
pub(crate) struct Parcel {
    pub(crate) key: String,
    pub(crate) tenant: String,
    pub(crate) stream: String,
    pub(crate) received_us: i64,
    pub(crate) correlation_id: Arc<str>,
    pub(crate) row: Map<String, Value>,
    pub(crate) event: Value,
}

impl Parcel {
    pub(crate) fn of_dead(record: &DeadRecord) -> Self {
        Self {
            key: record.key.clone(),
            tenant: record.tenant.clone(),
            stream: record.stream.clone(),
            received_us: record.received_us,
            correlation_id: record.correlation_id.as_str().into(),
            row: record.row.clone(),
            event: record.event.clone(),
        }
    }

    pub(crate) fn into_dead(self, attempts: u32, reason: String, given_up_us: i64) -> DeadRecord {
        let Self { key, tenant, stream, received_us, correlation_id, row, event } = self;
        let correlation_id = correlation_id.to_string();
        let (cells, place, number) = (String::new(), String::new(), 0);
        DeadRecord {
            key,
            tenant,
            stream,
            received_us,
            given_up_us,
            attempts,
            reason,
            correlation_id,
            row,
            event,
            cells,
            place,
            number,
        }
    }
}

/// What became of a record.
#[derive(Debug)]
pub(crate) enum Delivered {
    Well,
    GivenUp { attempts: u32, reason: String },
}

/// What became of one try.
enum Try {
    Well,
    /// Refused for good.
    Refused(String),
    /// The service says that it failed at this record; others may do.
    Failed(String),
    /// The service is not there, too slow or too busy.
    Away(String, Option<Duration>),
}

/// Sends records to one service.
pub(crate) struct Route {
    settings: RouteSettings,
    retry: RetrySettings,
    client: Client,
}

/// Finds a host's addresses and lets through those that may be dialled.
struct Guarded {
    url: Url,
    rules: Arc<[HostRule]>,
}

impl Resolve for Guarded {
    fn resolve(&self, _: Name) -> Resolving {
        let (url, rules) = (self.url.clone(), self.rules.clone());
        Box::pin(async move {
            let addresses = check_destination(&url, &rules).await.map_err(|error| refused(&error))?;
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}

/// Why a host may not be asked, in the words of routes.
fn refused(error: &PlaceError) -> String {
    match error {
        PlaceError::Forbidden { place, reason, .. } => format!(
            "{place}: {reason}; to allow it, name it in limits.downstream.hosts, such as {{\"host\": \"predict.internal\", \"ports\": [8080], \"allow_private\": true}}"
        ),
        other => other.to_string(),
    }
}

impl Route {
    pub(crate) fn open(settings: RouteSettings, retry: RetrySettings, rules: Arc<[HostRule]>) -> Result<Self, String> {
        let url = Url::parse(settings.url.head()).map_err(|error| format!("the address cannot be read: {error}"))?;
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.timeout)
            .pool_idle_timeout(Duration::from_secs(60))
            .dns_resolver(Arc::new(Guarded { url, rules }))
            .user_agent(concat!("lakegate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { settings, retry, client })
    }

    /// Whether the host may be asked at all; addresses in the URL are dialled without being looked up.
    pub(crate) async fn check(&self, rules: &[HostRule]) -> Result<(), String> {
        let url = Url::parse(self.settings.url.head()).map_err(|error| error.to_string())?;
        match check_destination(&url, rules).await {
            // A name that has no address now may have one later.
            Ok(_) | Err(PlaceError::Unavailable { .. }) => Ok(()),
            Err(error) => Err(refused(&error)),
        }
    }

    /// Sends a record until it is taken or given up.
    pub(crate) async fn deliver(&self, parcel: &Parcel, breaker: &Breaker, live: &Live) -> Delivered {
        let begun = Instant::now();
        let (mut attempts, mut counted) = (0, 0);
        loop {
            let permit = breaker.permit().await;
            attempts += 1;
            let started = Instant::now();
            let outcome = self.send(parcel).await;
            live.took(started.elapsed());
            let well = matches!(outcome, Try::Well | Try::Refused(_));
            permit.end(if well { Ended::Well } else { Ended::Badly });
            let (reason, pause) = match outcome {
                Try::Well => {
                    live.well();
                    return Delivered::Well;
                }
                Try::Refused(reason) => return Delivered::GivenUp { attempts, reason },
                Try::Failed(reason) => {
                    // While the service fails at everything, it says nothing about this record.
                    counted += u32::from(breaker.state() == BreakerState::Closed);
                    (reason, None)
                }
                Try::Away(reason, pause) => (reason, pause),
            };
            live.failed(&reason);
            if counted >= self.retry.attempts || begun.elapsed() >= self.retry.give_up_after {
                return Delivered::GivenUp { attempts, reason };
            }
            tokio::time::sleep(pause.unwrap_or_else(|| pause_after(attempts, &self.retry))).await;
        }
    }

    /// Sends a record once, for replays.
    pub(crate) async fn deliver_once(&self, parcel: &Parcel) -> Result<(), String> {
        match self.send(parcel).await {
            Try::Well => Ok(()),
            Try::Refused(reason) | Try::Failed(reason) | Try::Away(reason, _) => Err(reason),
        }
    }

    async fn send(&self, parcel: &Parcel) -> Try {
        let settings = &self.settings;
        let url = match Url::parse(&settings.url.fill(&parcel.row, encode_part)) {
            Ok(url) => url,
            Err(error) => return Try::Refused(format!("the record makes no address: {error}")),
        };
        let body = match &settings.body {
            Body::Event => serde_json::to_vec(&parcel.event),
            Body::Row => serde_json::to_vec(&parcel.row),
            Body::Template(template) => serde_json::to_vec(&template.fill(&parcel.row)),
        };
        let body = body.unwrap_or_default();
        let request = self.client.request(settings.method.clone(), url).headers(self.headers(parcel, &body)).body(body);
        match request.send().await {
            Ok(response) => judge(response).await,
            Err(error) => Try::Away(reason_of(&error), None),
        }
    }

    fn headers(&self, parcel: &Parcel, body: &[u8]) -> HeaderMap {
        let mut headers = self.settings.headers.clone();
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        let mut put = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        put("idempotency-key", &parcel.key);
        if !parcel.correlation_id.is_empty() {
            put("x-request-id", &parcel.correlation_id);
            put("traceparent", &traceparent(&parcel.correlation_id));
        }
        if let Some(signature) = &self.settings.signature
            && let Ok(value) = HeaderValue::from_str(&sign(&signature.key, now_s(), body))
        {
            headers.insert(signature.header.clone(), value);
        }
        headers
    }
}

fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn sign(key: &hmac::Key, seconds: u64, body: &[u8]) -> String {
    let mut signed = format!("{seconds}.").into_bytes();
    signed.extend_from_slice(body);
    let tag = hmac::sign(key, &signed);
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={hex}")
}

/// The trace that the correlation id stands for (W3C Trace Context): the id itself where it is one of 32 figures, which
/// a client's own trace is and so is a UUID, else a hash of it. The span is new.
fn traceparent(correlation_id: &str) -> String {
    let figures: String = correlation_id.chars().filter(|c| *c != '-').collect();
    let is_id = figures.len() == 32
        && figures.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        && figures.bytes().any(|b| b != b'0');
    let trace =
        if is_id { figures } else { format!("{:032x}", xxhash_rust::xxh3::xxh3_128(correlation_id.as_bytes()) | 1) };
    format!("00-{trace}-{:016x}-01", rand::rng().random::<u64>() | 1)
}

/// Without the address, which may hold what is secret.
fn reason_of(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return if error.is_connect() { "no connection in time" } else { "no answer in time" }.to_owned();
    }
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    if text.is_empty() { "the request failed".to_owned() } else { text }
}

async fn judge(response: reqwest::Response) -> Try {
    let status = response.status();
    let pause = retry_after(response.headers());
    let text = read_some(response).await;
    if status.is_success() {
        return Try::Well;
    }
    let shown: String = text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect();
    let reason = if shown.is_empty() { status.to_string() } else { format!("{status}: {shown}") };
    match status {
        _ if REFUSALS.contains(&status.as_u16()) => Try::Refused(reason),
        _ if status.is_redirection() => Try::Away(format!("{reason} (redirects are not followed)"), pause),
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT
        | StatusCode::TOO_EARLY => Try::Away(reason, pause),
        // No credentials, no such path: it is not about the record.
        _ if status.is_client_error() => Try::Away(reason, pause),
        _ => Try::Failed(reason),
    }
}

/// The beginning of the answer; a short one is read whole, so that its connection is used again.
async fn read_some(mut response: reqwest::Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < ANSWER_BYTES_MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `Retry-After` in seconds, or as a time (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = u64::try_from(chrono::DateTime::parse_from_rfc2822(text).ok()?.timestamp()).ok()?;
            Duration::from_secs(at.saturating_sub(now_s()))
        }
    };
    Some(pause.min(RETRY_AFTER_MAX))
}

/// Twice as long each time, half of it by chance.
pub(crate) fn pause_after(attempts: u32, retry: &RetrySettings) -> Duration {
    let doubled = retry.pause_min.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    let whole = doubled.min(retry.pause_max);
    whole / 2 + (whole / 2).mul_f64(rand::rng().random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_rfc_4231() {
        // Test case 2 of RFC 4231 signs "what do ya want for nothing?" with "Jefe"; ours begins with the time.
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
        let tag = hmac::sign(&key, b"what do ya want for nothing?");
        let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        // printf '17.{"a":1}' | openssl dgst -sha256 -hmac secret
        let signed = sign(&hmac::Key::new(hmac::HMAC_SHA256, b"secret"), 17, br#"{"a":1}"#);
        assert_eq!(signed, "t=17,v1=79cd1542875f006ad515323686688f9e78c4c57c76e9153a0f67bf5baa454b2a");
    }

    #[test]
    fn a_correlation_id_becomes_a_trace_that_others_can_read() {
        let uuid = traceparent("0199a1f0-1111-7222-8333-444455556666");
        assert!(uuid.starts_with("00-0199a1f01111722283334444555566") && uuid.len() == 55, "{uuid}");
        let own = traceparent("order 7");
        assert_eq!((own.len(), own.split('-').count()), (55, 4));
        assert_eq!(own[..35], traceparent("order 7")[..35], "the same id, the same trace");
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_differ() {
        let retry = RetrySettings {
            attempts: 9,
            pause_min: Duration::from_millis(100),
            pause_max: Duration::from_secs(2),
            give_up_after: Duration::MAX,
        };
        for (attempts, whole) in [(1, 100), (2, 200), (4, 800), (9, 2000), (40, 2000)] {
            for _ in 0..20 {
                let pause = pause_after(attempts, &retry).as_millis();
                assert!((whole / 2..=whole).contains(&pause), "{attempts}: {pause}");
            }
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_time_and_bounded() {
        let pause =
            |text: &str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]));
        assert_eq!(pause("7"), Some(Duration::from_secs(7)));
        assert_eq!(pause("999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(pause("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(pause("soon"), None);
    }
}
