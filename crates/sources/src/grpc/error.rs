//! Refusals as gRPC status, with `google.rpc` details; the one place that chooses codes.

use std::collections::HashMap;
use std::time::Duration;

use lakegate_access::AccessError;
use lakegate_ingest::SubmitError;
use lakegate_model::{ReasonCode, RecordError, Refusal};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Whose reasons these are, in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "lakegate";
/// Details travel in the trailers, and clients take 8 KiB of these. At most so many faults are listed there ...
const VIOLATIONS_MAX: usize = 16;
/// ... and of each text so many bytes.
const TEXT_BYTES_MAX: usize = 200;
/// Of a status's own message so many.
const MESSAGE_BYTES_MAX: usize = 1000;

/// The status of a request that breaks a rule of the protocol.
pub(crate) fn invalid(reason: &str, field: &str, message: impl Into<String>) -> Status {
    let message = message.into();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.add_bad_request_violation(field, cut(&message, TEXT_BYTES_MAX));
    Status::with_error_details(Code::InvalidArgument, cut(&message, MESSAGE_BYTES_MAX), details)
}

/// The status of a message over the size limit.
pub(crate) fn too_large(found: &str, limit: usize) -> Status {
    let message = format!("the message has {found} bytes; at most {limit} are taken (ingestion.message_bytes_max)");
    invalid("MESSAGE_TOO_LARGE", "", message)
}

/// The status of a message that is not what it should be.
pub(crate) fn malformed(message: impl Into<String>) -> Status {
    invalid("MALFORMED_MESSAGE", "", message)
}

/// The status when there is no room now.
pub(crate) fn out_of_room(what: &str, message: &str, retry_after: Duration) -> Status {
    let metadata = HashMap::from([("room".to_owned(), what.to_owned())]);
    let mut details = ErrorDetails::with_error_info("OUT_OF_ROOM", DOMAIN, metadata);
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::ResourceExhausted, cut(message, MESSAGE_BYTES_MAX), details)
}

/// The status when a client or its tenant sends more than it may.
fn over_quota(limit: &str, setting: &str, message: &str, retry_after: Duration) -> Status {
    let metadata = HashMap::from([("limit".to_owned(), limit.to_owned()), ("setting".to_owned(), setting.to_owned())]);
    let mut details = ErrorDetails::with_error_info("OVER_QUOTA", DOMAIN, metadata);
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::ResourceExhausted, cut(message, MESSAGE_BYTES_MAX), details)
}

/// The status when the server cannot answer now.
pub(crate) fn unavailable(reason: &str, message: &str, retry_after: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::Unavailable, cut(message, MESSAGE_BYTES_MAX), details)
}

/// Who is not let in, as a status.
pub(crate) fn not_let_in(error: &AccessError) -> Status {
    if let AccessError::OverQuota(over) = error {
        return over_quota(over.limit, &over.setting, &over.message, Duration::from_millis(over.retry_after_ms));
    }
    let code = match error.status().as_u16() {
        403 => Code::PermissionDenied,
        429 => Code::ResourceExhausted,
        503 => Code::Unavailable,
        _ => Code::Unauthenticated,
    };
    let mut details = ErrorDetails::with_error_info(error.code().to_ascii_uppercase(), DOMAIN, HashMap::new());
    if let Some(seconds) = error.retry_after_s() {
        details.set_retry_info(Some(Duration::from_secs(seconds)));
    }
    Status::with_error_details(code, cut(&error.to_string(), MESSAGE_BYTES_MAX), details)
}

/// What the gate refused, as a status.
pub(crate) fn status_of(error: &SubmitError) -> Status {
    match error {
        SubmitError::Invalid { code, field, message, errors } if errors.is_empty() => refused(*code, field, message),
        SubmitError::Invalid { message, errors, .. } => all_refused(message, errors),
        SubmitError::WrongTenant { field } => wrong_tenant(&error.to_string(), field),
        SubmitError::Forbidden { stream, .. } => {
            let metadata = HashMap::from([("stream".to_owned(), stream.to_string())]);
            let details = ErrorDetails::with_error_info("FORBIDDEN", DOMAIN, metadata);
            Status::with_error_details(Code::PermissionDenied, cut(&error.to_string(), MESSAGE_BYTES_MAX), details)
        }
        SubmitError::BatchTooLarge { limit, .. } => {
            let metadata = HashMap::from([("limit".to_owned(), limit.to_string())]);
            let mut details = ErrorDetails::with_error_info("BATCH_TOO_LARGE", DOMAIN, metadata);
            details.add_bad_request_violation("records", error.to_string());
            Status::with_error_details(Code::InvalidArgument, error.to_string(), details)
        }
        SubmitError::OverQuota { limit, setting, message, retry_after_ms } => {
            over_quota(limit, setting, message, Duration::from_millis(*retry_after_ms))
        }
        SubmitError::OutOfRoom { what, message, retry_after_ms } => {
            out_of_room(what, message, Duration::from_millis(*retry_after_ms))
        }
        SubmitError::Unavailable { message } => unavailable("UNAVAILABLE", message, Duration::from_secs(1)),
    }
}

/// The status of a lone record that is refused for what its request says, rather than for its stream's contract.
/// None: the contract; the answer says so.
pub(crate) fn status_of_record(refusal: &Refusal) -> Option<Status> {
    match refusal.code {
        ReasonCode::MalformedPayload
        | ReasonCode::InvalidUtf8
        | ReasonCode::TooLarge
        | ReasonCode::TooDeep
        | ReasonCode::UnknownStream
        | ReasonCode::InvalidName
        | ReasonCode::UnsupportedContentType
        | ReasonCode::AtomicBatch => {
            let field = refusal.field.as_deref().map_or_else(|| "record".to_owned(), |field| format!("record.{field}"));
            Some(refused(refusal.code, &field, &refusal.message))
        }
        ReasonCode::WrongTenant => Some(wrong_tenant(&refusal.message, "record.tenant_id")),
        ReasonCode::Conflict => Some(conflict(&refusal.message, "record")),
        ReasonCode::MissingField
        | ReasonCode::WrongType
        | ReasonCode::OutOfRange
        | ReasonCode::UndeclaredField
        | ReasonCode::NotAllowed
        | ReasonCode::PatternMismatch
        | ReasonCode::WrongLength
        | ReasonCode::ClockSkew => None,
    }
}

fn refused(code: ReasonCode, field: &str, message: &str) -> Status {
    match code {
        ReasonCode::WrongTenant => wrong_tenant(message, field),
        ReasonCode::Conflict => conflict(message, field),
        code => invalid(code.as_str(), field, message),
    }
}

fn conflict(message: &str, field: &str) -> Status {
    let metadata = HashMap::from([("field".to_owned(), field.to_owned())]);
    let details = ErrorDetails::with_error_info(ReasonCode::Conflict.as_str(), DOMAIN, metadata);
    Status::with_error_details(Code::AlreadyExists, cut(message, MESSAGE_BYTES_MAX), details)
}

fn wrong_tenant(message: &str, field: &str) -> Status {
    let metadata = HashMap::from([("field".to_owned(), field.to_owned())]);
    let details = ErrorDetails::with_error_info(ReasonCode::WrongTenant.as_str(), DOMAIN, metadata);
    Status::with_error_details(Code::PermissionDenied, cut(message, MESSAGE_BYTES_MAX), details)
}

/// All or nothing was asked for and some records are at fault.
fn all_refused(message: &str, errors: &[RecordError]) -> Status {
    let metadata = HashMap::from([("records_at_fault".to_owned(), errors.len().to_string())]);
    let mut details = ErrorDetails::with_error_info(ReasonCode::AtomicBatch.as_str(), DOMAIN, metadata);
    for error in errors.iter().take(VIOLATIONS_MAX) {
        let field = match &error.refusal.field {
            Some(field) => format!("records[{}].{field}", error.index),
            None => format!("records[{}]", error.index),
        };
        let text = format!("{}: {}", error.refusal.code.as_str(), error.refusal.message);
        details.add_bad_request_violation(cut(&field, TEXT_BYTES_MAX), cut(&text, TEXT_BYTES_MAX));
    }
    Status::with_error_details(Code::InvalidArgument, cut(message, MESSAGE_BYTES_MAX), details)
}

/// The beginning of a text, as many whole characters as fit.
fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = (0..=bytes).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_status_is_larger_than_what_clients_take() {
        let refusal =
            Refusal { code: ReasonCode::WrongType, field: Some("é".repeat(3000)), message: "ü".repeat(3000) };
        let errors: Vec<_> = (0..1000)
            .map(|index| RecordError { index, event_id: String::new(), dead_lettered: false, refusal: refusal.clone() })
            .collect();
        let error = SubmitError::Invalid {
            code: ReasonCode::WrongType,
            field: String::new(),
            message: "ä".repeat(9000),
            errors,
        };
        let headers = status_of(&error).into_http::<()>().headers().clone();
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(bytes < 16 << 10, "{bytes} bytes of trailers");
    }

    #[test]
    fn every_refusal_says_whether_to_come_back_and_when() {
        let room = status_of(&SubmitError::OutOfRoom { what: "memory", message: "full".into(), retry_after_ms: 500 });
        assert_eq!(room.code(), Code::ResourceExhausted);
        assert_eq!(room.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_millis(500)));
        let tenant = status_of(&SubmitError::WrongTenant { field: "records[1].tenant_id".into() });
        assert_eq!(tenant.code(), Code::PermissionDenied);
        assert_eq!(tenant.get_details_error_info().unwrap().reason, "WRONG_TENANT");
        let large = status_of(&SubmitError::BatchTooLarge { limit: 10, found: 11 });
        assert_eq!(large.code(), Code::InvalidArgument);
        assert_eq!(large.get_details_bad_request().unwrap().field_violations[0].field, "records");
    }
}
