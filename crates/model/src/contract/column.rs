//! Columns: what a table has of a record, and from where.

use serde::{Deserialize, Serialize};

use super::types::ColumnType;

/// A part of the record's envelope that a column may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// The tenant. String.
    TenantId,
    /// The stream. String.
    EndpointId,
    /// The event's id, assigned where the sender gave none. String.
    EventId,
    /// The event's type. String.
    EventType,
    /// The event's time: the envelope's, else the contract's time field, else the time of receipt. Timestamptz.
    EventTime,
    /// When the record was received. Timestamptz.
    ReceivedAt,
    /// The producer's version of the record. Long.
    Version,
    /// The payload as it came: text when it is JSON. String (JSON contracts) or Binary.
    Payload,
    /// The envelope's attributes. Map.
    Attributes,
    /// What `event_time` was taken from: `envelope`, `payload`, `received`, or `clamped` where it lay too far from the
    /// time of receipt. String.
    TimeSource,
    /// The payload's members that no column takes, as one JSON object; null when there are none. JSON.
    Undeclared,
    /// The values that did not fit their columns, as one JSON object by column; null when there are none. JSON.
    Rescued,
    /// By which way the record came: `grpc`, `rest`, `websocket`, `file`, `kafka`, `flight`, `sql`. String.
    Source,
    /// What the client calls itself. String.
    UserAgent,
    /// The client's address, as far as it is to be believed. String.
    ClientAddress,
    /// What ties the request to others in logs and traces. String.
    CorrelationId,
}

/// Where a column's value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ColumnSource {
    /// A path of member names into the JSON payload, outermost first: `["customer", "id"]`.
    Path(Vec<String>),
    /// A part of the envelope.
    Envelope(Field),
}

/// One column of a stream's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The column's name in the table.
    pub name: String,
    /// Its type.
    pub column_type: ColumnType,
    /// Where its value comes from.
    pub source: ColumnSource,
    /// Whether a record without it is refused.
    pub required: bool,
}

impl Column {
    /// A column that takes a path of the payload.
    #[must_use]
    pub fn at(name: &str, column_type: ColumnType, path: &[&str], required: bool) -> Self {
        let path = path.iter().map(|&member| member.to_owned()).collect();
        Self { name: name.to_owned(), column_type, source: ColumnSource::Path(path), required }
    }

    /// A column that takes a part of the envelope.
    #[must_use]
    pub fn envelope(name: &str, column_type: ColumnType, field: Field, required: bool) -> Self {
        Self { name: name.to_owned(), column_type, source: ColumnSource::Envelope(field), required }
    }
}
