//! A record's envelope and payload to one row.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lakegate_memtable::{RowBuilder, Value, arrow_schema};
use lakegate_model::{
    ColumnSource, ColumnType, Contract, Field, PayloadFormat, ReasonCode, Refusal, TimeFormat, Undeclared,
};
use parking_lot::Mutex;
use uuid::Uuid;

use super::leaf::{read_leaf, timestamp};
use super::payload::{Found, Node, check_depth, find_members};
use crate::wire::{WireRecord, text};

/// The most bytes of an event's id or type.
const MAX_LABEL_BYTES: usize = 1024;
/// The deepest that a payload may nest; the same as common JSON readers take.
const MAX_DEPTH: usize = 127;
/// Tells, among the attributes, that the payload column holds Base64 of bytes that are not text.
const ENCODING_ATTRIBUTE: (&str, &str) = ("payload_encoding", "base64");

/// A contract made ready for shaping.
#[derive(Debug)]
pub(crate) struct Shaper {
    pub(crate) contract: Arc<Contract>,
    pub(crate) schema: SchemaRef,
    tree: Node,
    keeps_others: bool,
    has_payload_column: bool,
    payload_is_text: bool,
    /// Bytes of text in a row of each column, as the last large request had them.
    row_bytes: Mutex<Vec<usize>>,
    /// The columns that together tell one event from another.
    pub(crate) key_columns: Vec<usize>,
}

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
}

/// A record's envelope, its texts checked.
#[derive(Debug)]
pub(crate) struct Envelope<'a> {
    pub(crate) event_id: &'a str,
    event_type: &'a str,
    content_type: &'a str,
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

    fn is_json(&self) -> bool {
        let kind = self.content_type.split(';').next().unwrap_or_default().trim();
        kind.is_empty() || kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
    }
}

impl Shaper {
    pub(crate) fn new(contract: Arc<Contract>) -> Self {
        let payload_column = contract.columns.iter().find(|c| c.source == ColumnSource::Envelope(Field::Payload));
        Self {
            schema: arrow_schema(&contract),
            tree: Node::of(&contract),
            keeps_others: contract.columns.iter().any(|c| c.source == ColumnSource::Envelope(Field::Undeclared)),
            has_payload_column: payload_column.is_some(),
            row_bytes: Mutex::default(),
            key_columns: key_columns(&contract),
            payload_is_text: payload_column.is_none_or(|c| c.column_type != ColumnType::Binary),
            contract,
        }
    }

    /// An empty builder for rows of this contract.
    pub(crate) fn rows(&self, rows: usize) -> RowBuilder {
        let row_bytes = self.row_bytes.lock().clone();
        RowBuilder::with_row_bytes(&self.contract, self.schema.clone(), rows, &row_bytes)
    }

    /// Takes the size of these rows for that of the ones to come, with a little to spare.
    pub(crate) fn learn(&self, rows: &RowBuilder) {
        let expected = rows.row_bytes().into_iter().map(|bytes| bytes + bytes.div_ceil(16)).collect();
        *self.row_bytes.lock() = expected;
    }

    /// Reads one record into `row`: as many values as the contract has columns.
    pub(crate) fn shape<'a>(
        &self,
        record: &WireRecord<'a>,
        envelope: &Envelope<'a>,
        context: &RecordContext<'a>,
        row: &mut Vec<Value<'a>>,
    ) -> Result<(), Refusal> {
        row.clear();
        if record.payload.len() > context.payload_bytes_max {
            let limit = context.payload_bytes_max;
            let message = format!(
                "the payload has {} bytes; at most {limit} are taken (ingestion.payload_bytes_max)",
                record.payload.len()
            );
            return Err(Refusal { code: ReasonCode::TooLarge, field: Some("payload".to_owned()), message });
        }
        let payload = self.payload_text(record, envelope)?;
        let mut found = Found::default();
        if let Payload::Json(json) = &payload {
            self.find(json, &mut found)?;
        } else if !self.tree.is_empty() {
            let message = format!("this stream takes application/json; found content type {:?}", envelope.content_type);
            return Err(Refusal {
                code: ReasonCode::UnsupportedContentType,
                field: Some("content_type".to_owned()),
                message,
            });
        }
        let (time_us, time_source) = self.event_time(record, &found, context.received_us)?;
        let marks_base64 = self.payload_is_text && self.has_payload_column;
        let parts =
            Parts { record, envelope, context, payload: &payload, found: &found, time_us, time_source, marks_base64 };
        for (slot, column) in self.contract.columns.iter().enumerate() {
            let value = match &column.source {
                ColumnSource::Envelope(field) => parts.envelope_value(*field, column.column_type)?,
                ColumnSource::Path(_) => match found.slots.get(slot).copied().flatten() {
                    Some(raw) => read_leaf(raw, &column.name, column.column_type, TimeFormat::Auto)?,
                    None => Value::Null,
                },
            };
            if column.required && value == Value::Null {
                let message = format!("{} is required", column.name);
                return Err(Refusal { code: ReasonCode::MissingField, field: Some(column.name.clone()), message });
            }
            row.push(value);
        }
        Ok(())
    }

    fn payload_text<'a>(&self, record: &WireRecord<'a>, envelope: &Envelope<'a>) -> Result<Payload<'a>, Refusal> {
        let json = match self.contract.payload {
            PayloadFormat::Opaque => false,
            PayloadFormat::Json => true,
            PayloadFormat::Any => envelope.is_json(),
        };
        if json && record.payload.is_empty() && self.tree.is_empty() {
            return Ok(Payload::Empty);
        }
        if json {
            let json = text("payload", record.payload)?;
            check_depth(json, MAX_DEPTH)?;
            return Ok(Payload::Json(json));
        }
        if self.has_payload_column && self.payload_is_text {
            return Ok(simdutf8::basic::from_utf8(record.payload).map_or(Payload::Bytes(record.payload), Payload::Text));
        }
        Ok(Payload::Bytes(record.payload))
    }

    fn find<'a>(&self, json: &'a str, found: &mut Found<'a>) -> Result<(), Refusal> {
        if self.tree.is_empty() && !self.keeps_others {
            // Nothing is taken out of it, yet what is stored as JSON must be JSON; any kind of value will do.
            return serde_json::from_str::<serde::de::IgnoredAny>(json).map(drop).map_err(|error| {
                let message = format!("the payload is not JSON: {error}");
                Refusal { code: ReasonCode::MalformedPayload, field: Some("payload".to_owned()), message }
            });
        }
        found.slots.resize(self.contract.columns.len() + 1, None);
        found.others = self.keeps_others.then(Vec::new);
        find_members(json, &self.tree, found)?;
        match &found.first_other {
            Some(name) if self.contract.undeclared == Undeclared::Reject => {
                let message = format!("the contract declares no field {:?}", super::leaf::shown(name));
                Err(Refusal {
                    code: ReasonCode::UndeclaredField,
                    field: Some(name.chars().take(80).collect()),
                    message,
                })
            }
            _ => Ok(()),
        }
    }

    fn event_time(
        &self,
        record: &WireRecord<'_>,
        found: &Found<'_>,
        received_us: i64,
    ) -> Result<(i64, &'static str), Refusal> {
        if let Some(us) = record.event_time_us {
            return Ok((us, "envelope"));
        }
        let raw = found.slots.get(self.contract.columns.len()).copied().flatten().filter(|raw| *raw != "null");
        match (&self.contract.time, raw) {
            (Some(time), Some(raw)) => {
                let name = time.path.join(".");
                timestamp(raw, &name, ColumnType::Timestamptz, time.format).map(|us| (us, "payload"))
            }
            _ => Ok((received_us, "received")),
        }
    }
}

fn key_columns(contract: &Contract) -> Vec<usize> {
    contract.event_key.iter().filter_map(|name| contract.columns.iter().position(|c| c.name == *name)).collect()
}

enum Payload<'a> {
    Empty,
    Json(&'a str),
    Text(&'a str),
    Bytes(&'a [u8]),
}

struct Parts<'p, 'a> {
    record: &'p WireRecord<'a>,
    envelope: &'p Envelope<'a>,
    context: &'p RecordContext<'a>,
    payload: &'p Payload<'a>,
    found: &'p Found<'a>,
    time_us: i64,
    time_source: &'static str,
    marks_base64: bool,
}

impl<'a> Parts<'_, 'a> {
    fn envelope_value(&self, field: Field, column_type: ColumnType) -> Result<Value<'a>, Refusal> {
        Ok(match field {
            Field::TenantId => self.context.tenant.clone(),
            Field::EndpointId => self.context.stream.clone(),
            Field::EventId if self.envelope.event_id.is_empty() => {
                Value::Owned(self.context.assigned_id.hyphenated().to_string().into_boxed_str())
            }
            Field::EventId => Value::Text(self.envelope.event_id),
            Field::EventType if self.envelope.event_type.is_empty() => Value::Null,
            Field::EventType => Value::Text(self.envelope.event_type),
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
        let mut json = String::with_capacity(others.iter().map(|(key, raw)| key.len() + raw.len() + 4).sum());
        for (i, (key, raw)) in others.iter().enumerate() {
            let opening = if i == 0 { '{' } else { ',' };
            let key = serde_json::Value::String(key.as_ref().to_owned());
            // Writing into a String cannot fail.
            let _ = write!(json, "{opening}{key}:{raw}");
        }
        json.push('}');
        Value::Owned(json.into_boxed_str())
    }
}

fn time_value<'a>(us: i64, column_type: ColumnType) -> Value<'a> {
    match column_type {
        ColumnType::Date => Value::Long(us.div_euclid(86_400_000_000)),
        _ => Value::Long(us),
    }
}
