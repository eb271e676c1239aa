//! Errors as `application/problem+json` (RFC 9457), each with the correlation id of its request.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use super::request::CorrelationId;

/// The media type.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// The most of a library's plain error text that is taken over.
const PLAIN_BYTES_MAX: usize = 4 << 10;

/// An error for a client.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after_s: Option<u64>,
    header: Option<Box<(HeaderName, HeaderValue)>>,
    members: Map<String, Value>,
}

impl Problem {
    /// `code` is for machines and stable; `detail` says what was found and what would be right.
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after_s: None, header: None, members: Map::new() }
    }

    /// Tells the client when to come back.
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Adds a header to the answer.
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }

    /// Adds a member, such as a limit.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    fn body(&self, correlation: Option<&str>) -> String {
        let mut members = self.members.clone();
        members.insert("type".into(), "about:blank".into());
        members.insert("title".into(), self.status.canonical_reason().unwrap_or("Error").into());
        members.insert("status".into(), self.status.as_u16().into());
        members.insert("code".into(), self.code.into());
        members.insert("detail".into(), self.detail.clone().into());
        if let Some(seconds) = self.retry_after_s {
            members.insert("retryAfter".into(), seconds.into());
        }
        if let Some(id) = correlation {
            members.insert("correlationId".into(), id.into());
        }
        Value::Object(members).to_string()
    }

    /// Written out.
    pub(crate) fn response(self, correlation: Option<&str>) -> Response {
        let mut response = (self.status, self.body(correlation)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(header) = self.header {
            headers.insert(header.0, header.1);
        }
        response
    }
}

impl IntoResponse for Problem {
    /// The correlation id is filled in by [`as_problems`], which every request passes.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Middleware: writes out problems with the request's correlation id, and makes problems of the plain errors that the
/// library answers itself (no such path, wrong method, body too large).
pub(crate) async fn as_problems(request: Request, next: Next) -> Response {
    let correlation = request.extensions().get::<CorrelationId>().cloned();
    let correlation = correlation.as_ref().map(CorrelationId::as_str);
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        return problem.response(correlation);
    }
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let plain = kind.is_empty() || kind.starts_with("text/plain");
    if !plain || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, PLAIN_BYTES_MAX).await.unwrap_or_default();
    let detail = match String::from_utf8_lossy(&text).trim() {
        "" => default_detail(status).to_owned(),
        text => text.to_owned(),
    };
    let mut response = Problem::new(status, code_of(status), detail).response(correlation);
    for (name, value) in &parts.headers {
        if name != CONTENT_TYPE && name != axum::http::header::CONTENT_LENGTH {
            response.headers_mut().insert(name.clone(), value.clone());
        }
    }
    response.map(Body::new)
}

fn default_detail(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "there is nothing at this path; GET / lists what there is",
        StatusCode::METHOD_NOT_ALLOWED => {
            "this path does not take this method; the header Allow names those that it takes"
        }
        _ => "the request was refused",
    }
}

fn code_of(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
        StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "wrong_content_type",
        s if s.is_client_error() => "bad_request",
        _ => "internal",
    }
}
