//! The documented bodies of cart events.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use http_body_util::Full;
use lakegate_ingest::SubmissionOutcome;
use lakegate_model::{RecordError, Refusal as Broken, Verdict};

use super::Reply;
use super::refusal::status_of;
use crate::json::put_text;
use crate::time::{now_ms, put_time};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Said of an event that was there already.
pub(crate) const DUPLICATE: &str = "duplicate: an event with this key is stored already; nothing was stored twice";

/// An answer of JSON text.
pub(crate) fn json_reply(status: StatusCode, body: Vec<u8>) -> Reply {
    let mut reply = Reply::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, JSON);
    reply
}

/// `EventResponse` of one event.
pub(crate) fn event_response(event_id: &str, outcome: &SubmissionOutcome) -> Reply {
    match &outcome.first_verdict {
        Verdict::Accepted => event_reply(StatusCode::ACCEPTED, event_id, true, None),
        Verdict::Duplicate => event_reply(StatusCode::OK, event_id, true, Some(DUPLICATE)),
        Verdict::Rejected(broken) => {
            event_reply(status_of(broken.code), event_id, false, Some(&message_of(broken, false)))
        }
        Verdict::DeadLettered(broken) => {
            event_reply(status_of(broken.code), event_id, false, Some(&message_of(broken, true)))
        }
    }
}

/// `EventResponse`.
pub(crate) fn event_reply(status: StatusCode, event_id: &str, accepted: bool, message: Option<&str>) -> Reply {
    let mut body = Vec::with_capacity(128 + event_id.len() + message.map_or(0, str::len));
    body.extend_from_slice(b"{\"eventId\":");
    put_text(&mut body, event_id);
    body.extend_from_slice(if accepted { b",\"status\":\"accepted\"" } else { b",\"status\":\"rejected\"" });
    body.extend_from_slice(b",\"timestamp\":\"");
    put_time(&mut body, now_ms());
    body.push(b'"');
    if let Some(message) = message {
        body.extend_from_slice(b",\"message\":");
        put_text(&mut body, message);
    }
    body.push(b'}');
    json_reply(status, body)
}

/// What is wrong with a record, in one sentence that names the field.
pub(crate) fn message_of(broken: &Broken, set_aside: bool) -> String {
    let message = &broken.message;
    let mut text = match &broken.field {
        Some(field) if !message.contains(field.as_str()) => format!("{field}: {message}"),
        _ => message.clone(),
    };
    if set_aside {
        text.push_str("; set aside in the dead-letter table");
    }
    text
}

/// `BatchEventResponse`.
pub(crate) struct BatchAnswer<'a> {
    pub(crate) batch_id: &'a str,
    pub(crate) total: usize,
    pub(crate) successful: u64,
    pub(crate) errors: &'a [RecordError],
}

impl BatchAnswer<'_> {
    /// As JSON; `event_id` gives the id of the event at an index.
    pub(crate) fn reply(&self, status: StatusCode, event_id: impl Fn(u32) -> String) -> Reply {
        let failed = (self.total as u64).saturating_sub(self.successful);
        let mut body = Vec::with_capacity(192 + self.errors.len() * 96);
        body.extend_from_slice(b"{\"batchId\":");
        put_text(&mut body, self.batch_id);
        let counts = format!(",\"totalEvents\":{},\"successful\":{},\"failed\":{failed}", self.total, self.successful);
        body.extend_from_slice(counts.as_bytes());
        if !self.errors.is_empty() {
            body.extend_from_slice(b",\"errors\":[");
            for (at, error) in self.errors.iter().enumerate() {
                if at > 0 {
                    body.push(b',');
                }
                put_text(&mut body, &error_text(error, &event_id(error.index)));
            }
            body.push(b']');
        }
        body.extend_from_slice(b",\"processedAt\":\"");
        put_time(&mut body, now_ms());
        body.extend_from_slice(b"\"}");
        json_reply(status, body)
    }
}

fn error_text(error: &RecordError, event_id: &str) -> String {
    let message = message_of(&error.refusal, error.dead_lettered);
    match event_id {
        "" => format!("events[{}]: {message}", error.index),
        id => format!("events[{}] (eventId {id}): {message}", error.index),
    }
}
