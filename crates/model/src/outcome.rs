//! What became of a record.

use serde::{Deserialize, Serialize};

/// The machine-readable reason why a record was refused. Stable: clients and dead letters keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(u8)]
pub enum ReasonCode {
    /// The bytes are not what the content type says.
    MalformedPayload = 1,
    /// Text that is not UTF-8.
    InvalidUtf8 = 2,
    /// A required field is absent or null.
    MissingField = 3,
    /// A value does not fit its column's type.
    WrongType = 4,
    /// A number or time lies outside what its type holds.
    OutOfRange = 5,
    /// A payload or value is larger than the limit.
    TooLarge = 6,
    /// Nested deeper than the limit.
    TooDeep = 7,
    /// The stream is not known and may not be made.
    UnknownStream = 8,
    /// A tenant, stream or event id that breaks the naming rule.
    InvalidName = 9,
    /// The content type is not one that the stream takes.
    UnsupportedContentType = 10,
    /// A field that the contract does not declare, where it forbids such.
    UndeclaredField = 11,
    /// The record names a tenant that the credentials do not.
    WrongTenant = 12,
    /// A neighbour was refused and the request asked for all or nothing.
    AtomicBatch = 13,
    /// The event key, or the request's own id, was seen before with other content.
    Conflict = 40,
    /// A value that is not one of those that the contract allows.
    NotAllowed = 20,
    /// Text that the contract's pattern does not match.
    PatternMismatch = 21,
    /// Text, bytes or a list that is shorter or longer than the contract allows.
    WrongLength = 22,
    /// A time that lies too far from the time of receipt.
    ClockSkew = 23,
}

impl ReasonCode {
    /// The code of that number, as a frame of the log keeps it.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [
            Self::MalformedPayload,
            Self::InvalidUtf8,
            Self::MissingField,
            Self::WrongType,
            Self::OutOfRange,
            Self::TooLarge,
            Self::TooDeep,
            Self::UnknownStream,
            Self::InvalidName,
            Self::UnsupportedContentType,
            Self::UndeclaredField,
            Self::WrongTenant,
            Self::AtomicBatch,
            Self::Conflict,
            Self::NotAllowed,
            Self::PatternMismatch,
            Self::WrongLength,
            Self::ClockSkew,
        ]
        .into_iter()
        .find(|code| *code as u8 == number)
    }

    /// The code's name on the wire, such as `MISSING_FIELD`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedPayload => "MALFORMED_PAYLOAD",
            Self::InvalidUtf8 => "INVALID_UTF8",
            Self::MissingField => "MISSING_FIELD",
            Self::WrongType => "WRONG_TYPE",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::TooLarge => "TOO_LARGE",
            Self::TooDeep => "TOO_DEEP",
            Self::UnknownStream => "UNKNOWN_STREAM",
            Self::InvalidName => "INVALID_NAME",
            Self::UnsupportedContentType => "UNSUPPORTED_CONTENT_TYPE",
            Self::UndeclaredField => "UNDECLARED_FIELD",
            Self::WrongTenant => "WRONG_TENANT",
            Self::AtomicBatch => "ATOMIC_BATCH",
            Self::Conflict => "CONFLICT",
            Self::NotAllowed => "NOT_ALLOWED",
            Self::PatternMismatch => "PATTERN_MISMATCH",
            Self::WrongLength => "WRONG_LENGTH",
            Self::ClockSkew => "CLOCK_SKEW",
        }
    }
}

/// Why one record was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, for machines.
    pub code: ReasonCode,
    /// The field or column, where there is one.
    pub field: Option<String>,
    /// The reason, for people: what was found and what would be right.
    pub message: String,
}

/// What the gate decided about one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Durable, and seen by queries.
    Accepted,
    /// Seen before inside the stream's window; stored once.
    Duplicate,
    /// Given back to the sender.
    Rejected(Refusal),
    /// Set aside with its raw bytes in the dead-letter table.
    DeadLettered(Refusal),
}

/// One refused or dead-lettered record of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError {
    /// The record's place in the request, from 0.
    pub index: u32,
    /// Its id, where it brought one.
    pub event_id: String,
    /// Whether it was set aside rather than given back.
    pub dead_lettered: bool,
    /// Why.
    pub refusal: Refusal,
}
