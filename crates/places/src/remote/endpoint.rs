//! One file on one server: how it is asked for, and what its answers mean.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, IF_MATCH, IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Response;
use url::Url;

use super::{Failure, Shared};
use crate::error::PlaceError;
use crate::location::without_secrets;
use crate::s3::{self, Signer};
use crate::text::shown;

/// How much is asked for first: enough to tell the format, and the whole of small files.
pub(crate) const HEAD_BYTES: u64 = 64 << 10;
/// The most of an error's text that is read.
const ERROR_BYTES_MAX: usize = 16 << 10;

/// What tells a file's version from its others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) etag: Option<String>,
    pub(crate) modified: Option<String>,
}

impl Tag {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        Self { etag: text(ETAG), modified: text(LAST_MODIFIED) }
    }

    /// What differs, if something does.
    fn difference(&self, now: &Self) -> Option<String> {
        let differs = |what: &str, old: &Option<String>, new: &Option<String>| {
            let (old, new) = (old.as_ref()?, new.as_ref()?);
            (old != new).then(|| format!("its {what} was {}, now it is {}", shown(old), shown(new)))
        };
        differs("etag", &self.etag, &now.etag).or_else(|| differs("time of change", &self.modified, &now.modified))
    }

    /// Whether a second request can be compared with the first at all.
    pub(crate) fn is_known(&self) -> bool {
        self.etag.is_some() || self.modified.is_some()
    }
}

/// One file on one server.
pub(crate) struct Endpoint {
    client: reqwest::Client,
    url: Url,
    pub(crate) shared: Arc<Shared>,
    signer: Option<Arc<Signer>>,
    /// For messages.
    pub(crate) place: String,
}

impl Endpoint {
    pub(crate) fn new(client: reqwest::Client, url: Url, shared: Arc<Shared>, signer: Option<Arc<Signer>>) -> Self {
        Self { client, place: shown(&without_secrets(&url)), url, shared, signer }
    }

    /// The same file, under the name that people gave it.
    pub(crate) fn named(mut self, place: String) -> Self {
        self.place = place;
        self
    }

    /// Sends one request and waits for the head of its answer.
    pub(crate) async fn send(&self, method: Method, mut headers: HeaderMap, body: Bytes) -> Result<Response, Failure> {
        // Bytes as they are stored: ranges are about these.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(signer) = &self.signer {
            signer.sign(&method, &self.url, &mut headers, &body, self.shared.clock.wall_us());
        }
        let request = self.client.request(method, self.url.clone()).headers(headers).body(body).send();
        match tokio::time::timeout(self.shared.limits.answer_timeout, request).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => Err(Failure::again(innermost(&e))),
            Err(_) => Err(Failure::again(self.silence())),
        }
    }

    fn silence(&self) -> String {
        format!("it said nothing for {} s", self.shared.limits.answer_timeout.as_secs_f64())
    }

    /// Asks for a part of the version that `tag` tells.
    pub(crate) async fn get(&self, range: Option<Range<u64>>, tag: &Tag) -> Result<Response, Failure> {
        let mut headers = HeaderMap::new();
        let header = |text: String| HeaderValue::try_from(text).ok();
        if let Some(range) = &range
            && let Some(value) = header(format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))
        {
            headers.insert(RANGE, value);
            if let Some(etag) = tag.etag.clone().filter(|etag| !etag.starts_with("W/")).and_then(header) {
                // An object store answers 412 when it is another; a web server sends the whole new file instead.
                headers.insert(if self.signer.is_some() { IF_MATCH } else { IF_RANGE }, etag);
            }
        }
        let response = self.send(Method::GET, headers, Bytes::new()).await?;
        let status = response.status();
        if status.is_success() {
            if let Some(what) = tag.difference(&Tag::of(response.headers())) {
                return Err(self.changed(what));
            }
            return Ok(response);
        }
        let redirected = status.is_redirection() && self.signer.is_none() && *tag == Tag::default();
        if redirected || (status == StatusCode::RANGE_NOT_SATISFIABLE && *tag == Tag::default()) {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    pub(crate) fn changed(&self, what: String) -> Failure {
        Failure::Final(PlaceError::Changed { place: self.place.clone(), what })
    }

    /// What an answer that brings no bytes means.
    pub(crate) async fn refusal(&self, response: Response) -> Failure {
        let status = response.status();
        let after = retry_after(response.headers());
        let said = if self.signer.is_some() { s3::error_code(&small_body(response).await) } else { None };
        let said = said.map(|code| format!(" ({})", shown(&code))).unwrap_or_default();
        let place = self.place.clone();
        match status.as_u16() {
            408 | 425 | 429 | 500 | 502..=504 => {
                Failure::Again { reason: format!("it answered {status}{said}"), after }
            }
            404 | 410 => PlaceError::NotFound {
                place,
                hint: format!(": the server answered {status}{said}; correct the name, or put it there"),
            }
            .into(),
            412 | 416 => self.changed(format!("the server answered {status}{said} to a request for the rest of it")),
            401 | 403 => {
                let remedy = if self.signer.is_some() {
                    "check storage.s3 and the rights of its key"
                } else {
                    "serve it to this machine without a password, or by a signed address"
                };
                PlaceError::Denied { place, reason: format!("it answered {status}{said}; {remedy}") }.into()
            }
            _ => PlaceError::Denied { place, reason: format!("it answered {status}{said}") }.into(),
        }
    }

    /// The next bytes of an answer. None: it is at its end.
    pub(crate) async fn next(&self, response: &mut Response, pace: &mut Pace) -> Result<Option<Bytes>, Failure> {
        let limits = &self.shared.limits;
        let started = Instant::now();
        let bytes = match tokio::time::timeout(limits.answer_timeout, response.chunk()).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(e)) => return Err(Failure::again(format!("the answer broke off: {}", innermost(&e)))),
            Err(_) => return Err(Failure::again(self.silence())),
        };
        pace.waited += started.elapsed();
        pace.bytes += bytes.as_ref().map_or(0, Bytes::len) as u64;
        // Measured only once there was time for a fair measure.
        let least = limits.bytes_per_second_min as f64 * pace.waited.as_secs_f64();
        if bytes.is_some() && pace.waited > limits.answer_timeout && (pace.bytes as f64) < least {
            let reason = format!("it sends less than {} bytes a second", limits.bytes_per_second_min);
            return Err(Failure::again(reason));
        }
        Ok(bytes)
    }
}

/// How fast an answer comes.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    waited: Duration,
    bytes: u64,
}

/// Asks for the beginning of a file: by a range, so that the answer tells whether ranges are served.
pub(crate) async fn first_bytes(endpoint: &Endpoint, tag: &Tag) -> Result<Response, Failure> {
    endpoint.get(Some(0..HEAD_BYTES), tag).await
}

/// Where a part lies in its file, as the answer says: start, end (behind the last byte), and the file's size.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (part, whole) = text.split_once('/')?;
    let whole = whole.parse().ok();
    if part == "*" {
        return Some((0..0, whole));
    }
    let (start, last) = part.split_once('-')?;
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    Some((start.parse().ok()?..end, whole))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

async fn small_body(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < ERROR_BYTES_MAX {
        match tokio::time::timeout(Duration::from_secs(5), response.chunk()).await {
            Ok(Ok(Some(bytes))) => body.extend_from_slice(&bytes),
            _ => break,
        }
    }
    body
}

/// What went wrong in the end, without the address that the library puts before it.
fn innermost(error: &reqwest::Error) -> String {
    let mut reason: &dyn std::error::Error = error;
    while let Some(deeper) = reason.source() {
        reason = deeper;
    }
    shown(&reason.to_string())
}
