//! Answers outside the documented bodies: what the caller writes as a problem document. The one place that chooses
//! status codes for what the gate refuses.

use std::time::Duration;

use http::StatusCode;
use lakegate_ingest::SubmitError;
use lakegate_model::{ReasonCode, RecordError};
use serde_json::{Value, json};

/// The most faults of a request that are listed.
const LISTED_MAX: usize = 100;

/// A request is not answered as documented, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// For machines; stable.
    pub code: &'static str,
    /// For people: what was found and what would be right.
    pub detail: String,
    /// When to come back.
    pub retry_after_s: Option<u64>,
    /// More for machines, by name.
    pub members: Vec<(&'static str, Value)>,
}

impl Refusal {
    /// A refusal with nothing besides.
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after_s: None, members: Vec::new() }
    }

    fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    pub(crate) fn with(mut self, name: &'static str, value: Value) -> Self {
        self.members.push((name, value));
        self
    }

    pub(crate) fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// Credentials and `named` are of two tenants.
    pub(crate) fn wrong_tenant(named: &str) -> Self {
        let detail = format!("the credentials are not for the tenant that {named} names");
        Self::new(StatusCode::FORBIDDEN, "wrong_tenant", detail)
    }

    pub(crate) fn wrong_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path takes POST")
    }

    pub(crate) fn wrong_content_type(found: &str, right: &str) -> Self {
        let found: String = found.chars().take(80).collect();
        let detail = format!("the content type is {found:?}; send {right}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong_content_type", detail)
    }

    pub(crate) fn too_large(what: &str, limit: usize) -> Self {
        let detail = format!("{what} has more than {limit} bytes (limits.http.body_bytes_max)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail).with("limit", limit.into())
    }

    pub(crate) fn slow() -> Self {
        let detail = "the body did not come in time; send it at 1 KiB a second or faster";
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", detail)
    }

    pub(crate) fn no_room(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "out_of_room", detail).retry_after(1)
    }

    /// The gate gave no answer in time.
    pub(crate) fn late(limit: Duration) -> Self {
        let detail = format!(
            "no answer within {} ms (limits.http.request_timeout); whether it was stored is not known",
            limit.as_millis()
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", detail).retry_after(1)
    }

    /// The work on it ended early: the server is ending.
    pub(crate) fn broken() -> Self {
        let detail = "the server is ending; nothing of the request was stored";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).retry_after(1)
    }

    /// What the gate refused.
    pub(crate) fn of(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Invalid { code, field, errors, .. } => {
                let mut refusal = Self::new(status_of(code), name_of(code), message);
                if !field.is_empty() {
                    refusal = refusal.with("field", field.into());
                }
                if errors.is_empty() { refusal } else { refusal.with("errors", listed(&errors)) }
            }
            SubmitError::Forbidden { .. } => Self::new(StatusCode::FORBIDDEN, "forbidden", message),
            SubmitError::WrongTenant { .. } => Self::new(StatusCode::FORBIDDEN, "wrong_tenant", message),
            SubmitError::BatchTooLarge { limit, .. } => {
                Self::invalid("batch_too_large", message).with("limit", limit.into())
            }
            SubmitError::OverQuota { limit, setting, retry_after_ms, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "over_quota", message)
                    .retry_after(retry_after_ms.div_ceil(1000).max(1))
                    .with("limit", limit.into())
                    .with("setting", setting.into())
            }
            SubmitError::OutOfRoom { retry_after_ms, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "out_of_room", message)
                    .retry_after(retry_after_ms.div_ceil(1000).max(1))
            }
            SubmitError::Unavailable { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message).retry_after(1)
            }
        }
    }
}

/// The status of a request that is one record, refused for this.
pub(crate) fn status_of(code: ReasonCode) -> StatusCode {
    match code {
        ReasonCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ReasonCode::WrongTenant => StatusCode::FORBIDDEN,
        ReasonCode::Conflict => StatusCode::CONFLICT,
        _ => StatusCode::BAD_REQUEST,
    }
}

fn name_of(code: ReasonCode) -> &'static str {
    match code {
        ReasonCode::TooLarge => "body_too_large",
        ReasonCode::WrongTenant => "wrong_tenant",
        ReasonCode::Conflict => "conflict",
        ReasonCode::AtomicBatch => "batch_refused",
        _ => "invalid",
    }
}

/// Records at fault, for machines.
pub(crate) fn listed(errors: &[RecordError]) -> Value {
    let one = |error: &RecordError| {
        json!({
            "index": error.index,
            "code": error.refusal.code.as_str(),
            "field": error.refusal.field,
            "message": error.refusal.message,
            "setAside": error.dead_lettered,
        })
    };
    errors.iter().take(LISTED_MAX).map(one).collect()
}
