//! What surrounds a payload, and the values that columns take of it.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lakegate_memtable::Value;
use lakegate_model::{ColumnType, Field, ReasonCode, Refusal};
use uuid::Uuid;

use super::leaf::DAY_US;
use super::payload::{Found, Slots};
use super::rules::Marks;
use crate::wire::{WireRecord, text};

/// The most bytes of an event's id or type.
const MAX_LABEL_BYTES: usize = 1024;
/// Tells, among the attributes, that the payload column holds Base64 of bytes that are not text.
const ENCODING_ATTRIBUTE: (&str, &str) = ("payload_encoding", "base64");

/// What all records of a request have in common.
#[derive(Debug)]
pub(crate) struct RecordContext<'a> {
    /// The tenant's name, borrowed or owned as the row's life asks for.
    pub(crate) tenant: Value<'a>,
    /// The stream's name, likewise.
    pub(crate) stream: Value<'a>,
    pub(crate) received_us: i64,
    /// The id that the record gets if it brought none.
    pub(crate) assigned_id: Uuid,
    pub(crate) payload_bytes_max: usize,
    /// By which way the request came.
    pub(crate) source: &'static str,
    /// Of the client and the request; empty: not known.
    pub(crate) origin: ClientOf<'a>,
    /// Whether what a record wants beyond its columns is noted.
    pub(crate) may_grow: bool,
    /// What the last record brought.
    pub(crate) marks: Marks,
    /// Room for what is found in a payload, used again for the next.
    pub(crate) found: Found<'a>,
}

/// What is known of who sent a request, and what ties it to others. Owned values where rows outlive the request.
#[derive(Debug, Clone)]
pub(crate) struct ClientOf<'a> {
    pub(crate) client_address: Value<'a>,
    pub(crate) user_agent: Value<'a>,
    pub(crate) correlation_id: Value<'a>,
}

/// A record's envelope, its texts checked.
#[derive(Debug)]
pub(crate) struct Envelope<'a> {
    pub(crate) event_id: &'a str,
    pub(crate) event_type: &'a str,
    pub(crate) content_type: &'a str,
}

impl<'a> Envelope<'a> {
    pub(crate) fn read(record: &WireRecord<'a>) -> Result<Self, Refusal> {
        let label = |field: &str, bytes: &'a [u8]| {
            if bytes.len() > MAX_LABEL_BYTES {
                let message = format!("{field} has {} bytes; at most {MAX_LABEL_BYTES} are taken", bytes.len());
                return Err(Refusal { code: ReasonCode::TooLarge, field: Some(field.to_owned()), message });
            }
            text(field, bytes)
        };
        Ok(Self {
            event_id: label("event_id", record.event_id)?,
            event_type: label("event_type", record.event_type)?,
            content_type: label("content_type", record.content_type)?,
        })
    }

    pub(crate) fn is_json(&self) -> bool {
        let kind = self.content_type.split(';').next().unwrap_or_default().trim();
        kind.is_empty() || kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
    }
}

pub(super) enum Payload<'a> {
    Empty,
    Json(&'a str),
    Text(&'a str),
    Bytes(&'a [u8]),
}

pub(super) struct Parts<'p, 'a> {
    pub(super) record: &'p WireRecord<'a>,
    pub(super) envelope: &'p Envelope<'a>,
    pub(super) context: &'p RecordContext<'a>,
    pub(super) payload: &'p Payload<'a>,
    pub(super) found: &'p Found<'a>,
    pub(super) slots: &'p Slots,
    pub(super) event_type: &'p Value<'a>,
    pub(super) time_us: i64,
    pub(super) time_source: &'static str,
    pub(super) marks_base64: bool,
}

impl<'a> Parts<'_, 'a> {
    pub(super) fn envelope_value(&self, field: Field, column_type: ColumnType) -> Result<Value<'a>, Refusal> {
        Ok(match field {
            Field::TenantId => self.context.tenant.clone(),
            Field::EndpointId => self.context.stream.clone(),
            Field::EventId if self.envelope.event_id.is_empty() => {
                Value::Owned(self.context.assigned_id.hyphenated().to_string().into_boxed_str())
            }
            Field::EventId => Value::Text(self.envelope.event_id),
            Field::EventType => self.event_type.clone(),
            Field::EventTime => time_value(self.time_us, column_type),
            Field::ReceivedAt => time_value(self.context.received_us, column_type),
            Field::Version => Value::Long(self.record.version),
            Field::Payload => match self.payload {
                Payload::Empty => Value::Null,
                Payload::Json(text) | Payload::Text(text) => Value::Text(text),
                Payload::Bytes(bytes) if column_type == ColumnType::Binary => Value::Bytes(bytes),
                Payload::Bytes(bytes) => Value::Owned(STANDARD.encode(bytes).into_boxed_str()),
            },
            Field::Attributes => self.attributes(column_type)?,
            Field::TimeSource => Value::Text(self.time_source),
            Field::Undeclared => self.undeclared(),
            // Known only when all columns are: filled in last.
            Field::Rescued => Value::Null,
            Field::Source => Value::Text(self.context.source),
            Field::UserAgent => self.context.origin.user_agent.clone(),
            Field::ClientAddress => self.context.origin.client_address.clone(),
            Field::CorrelationId => self.context.origin.correlation_id.clone(),
        })
    }

    fn attributes(&self, column_type: ColumnType) -> Result<Value<'a>, Refusal> {
        let mut entries = self.record.attributes()?;
        if column_type == ColumnType::StringMap {
            if self.marks_base64 && matches!(self.payload, Payload::Bytes(_)) {
                entries.retain(|(key, _)| *key != ENCODING_ATTRIBUTE.0);
                entries.push(ENCODING_ATTRIBUTE);
            }
            return Ok(if entries.is_empty() { Value::Null } else { Value::Map(entries) });
        }
        let object: serde_json::Map<String, serde_json::Value> =
            entries.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
        Ok(Value::Owned(serde_json::Value::Object(object).to_string().into_boxed_str()))
    }

    fn undeclared(&self) -> Value<'a> {
        let Some(others) = self.found.others.as_ref().filter(|others| !others.is_empty()) else { return Value::Null };
        let members = others.iter().map(|other| {
            let object = self.slots.objects.get(other.object).filter(|(_, is_top)| !is_top);
            let name = match object {
                None => other.name.clone(),
                Some((path, _)) => format!("{}.{}", path.join("."), other.name).into(),
            };
            (name, other.raw)
        });
        Value::Owned(json_object(members).into_boxed_str())
    }
}

/// One JSON object of members with their texts.
pub(super) fn json_object<N: AsRef<str>, R: AsRef<str>>(members: impl Iterator<Item = (N, R)>) -> String {
    let mut json = String::from("{");
    for (i, (name, raw)) in members.enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let name = serde_json::Value::String(name.as_ref().to_owned());
        // Writing into a String cannot fail.
        let _ = write!(json, "{comma}{name}:{}", raw.as_ref());
    }
    json.push('}');
    json
}

pub(super) fn time_value<'a>(us: i64, column_type: ColumnType) -> Value<'a> {
    match column_type {
        ColumnType::Date => Value::Long(us.div_euclid(DAY_US)),
        _ => Value::Long(us),
    }
}
