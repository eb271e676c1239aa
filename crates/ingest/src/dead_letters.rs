//! Records that were set aside: raw bytes, reason, and all that is needed to bring them again.
//!
//! The column `record` is a `storage.DataRecord` whatever way the record came by: what was a payload and nothing around it
//! is one with stream and payload alone, and bringing it again gives the same row.

use lakegate_memtable::Value;
use lakegate_model::{
    Column, ColumnSource, ColumnType, Contract, Field, PartitionField, PayloadFormat, Refusal, SortField, TablePattern,
    Transform,
};

use uuid::Uuid;

use crate::bytes::put_var;
use crate::wire::{RecordKind, WireRecord};

/// The columns, in the order that [`row`] fills.
const COLUMNS: [(&str, ColumnType, bool); 13] = [
    ("tenant_id", ColumnType::String, true),
    ("endpoint_id", ColumnType::String, true),
    ("event_id", ColumnType::String, false),
    ("received_at", ColumnType::Timestamptz, true),
    ("source", ColumnType::String, true),
    ("reason", ColumnType::String, true),
    ("field", ColumnType::String, false),
    ("message", ColumnType::String, true),
    ("content_type", ColumnType::String, false),
    ("payload", ColumnType::Binary, false),
    ("record", ColumnType::Binary, true),
    ("attempts", ColumnType::Int, true),
    ("letter_id", ColumnType::String, false),
];

/// The columns of marks: what became of letters that were brought again.
const MARKS: [(&str, ColumnType, bool); 4] = [
    ("letter_id", ColumnType::String, true),
    ("outcome", ColumnType::String, true),
    ("message", ColumnType::String, false),
    ("marked_at", ColumnType::Timestamptz, true),
];

/// The contract of the dead-letter table.
pub(crate) fn contract() -> Contract {
    let column = |(name, column_type, required): (&str, ColumnType, bool)| Column {
        name: name.to_owned(),
        column_type,
        source: ColumnSource::Path(vec![name.to_owned()]),
        required,
    };
    Contract {
        columns: COLUMNS.into_iter().map(column).collect(),
        table: TablePattern("{tenant}.{endpoint}".to_owned()),
        partitions: vec![PartitionField { column: "received_at".to_owned(), transform: Transform::Day }],
        sort: vec![SortField { column: "received_at".to_owned(), descending: false }],
        ..Contract::undeclared_default()
    }
}

/// The contract of the table of marks.
pub(crate) fn marks_contract() -> Contract {
    let column = |(name, column_type, required): (&str, ColumnType, bool)| Column {
        name: name.to_owned(),
        column_type,
        source: match column_type {
            ColumnType::Timestamptz => ColumnSource::Envelope(Field::ReceivedAt),
            _ => ColumnSource::Path(vec![name.to_owned()]),
        },
        required,
    };
    Contract {
        columns: MARKS.into_iter().map(column).collect(),
        payload: PayloadFormat::Json,
        table: TablePattern("{tenant}.{endpoint}".to_owned()),
        partitions: Vec::new(),
        sort: Vec::new(),
        ..Contract::undeclared_default()
    }
}

/// Who and when, of a record that is set aside.
pub(crate) struct Origin<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) stream: &'a str,
    pub(crate) source: &'static str,
    pub(crate) received_us: i64,
    /// The letter's own.
    pub(crate) letter_id: Uuid,
}

/// The row of one record, of which `bytes` are the wire bytes.
pub(crate) fn row<'a>(kind: RecordKind, bytes: &'a [u8], origin: &Origin<'_>, refusal: &Refusal) -> Vec<Value<'a>> {
    let record = WireRecord::read(kind, bytes).unwrap_or_default();
    let own = |text: &str| Value::Owned(text.into());
    let lossy = |bytes: &[u8]| match bytes {
        [] => Value::Null,
        bytes => Value::Owned(String::from_utf8_lossy(bytes).chars().take(1024).collect::<String>().into_boxed_str()),
    };
    vec![
        own(origin.tenant),
        own(origin.stream),
        lossy(record.event_id),
        Value::Long(origin.received_us),
        own(origin.source),
        own(refusal.code.as_str()),
        refusal.field.as_deref().map_or(Value::Null, own),
        own(&refusal.message),
        lossy(record.content_type),
        Value::Bytes(record.payload),
        match kind {
            RecordKind::Proto => Value::Bytes(bytes),
            RecordKind::Payload => Value::OwnedBytes(as_record(origin.stream, bytes).into_boxed_slice()),
        },
        Value::Long(1),
        own(&origin.letter_id.hyphenated().to_string()),
    ]
}

/// A `storage.DataRecord` of a stream and a payload.
fn as_record(stream: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + stream.len() + 16);
    for (field, bytes) in [(2_u8, stream.as_bytes()), (4, payload)] {
        out.push(field << 3 | 2);
        put_var(&mut out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_payload_is_set_aside_as_a_record_that_reads_back() {
        let payload = "x".repeat(300);
        let bytes = as_record("orders", payload.as_bytes());
        let record = WireRecord::read(RecordKind::Proto, &bytes).unwrap();
        assert_eq!((record.endpoint_id, record.payload), (&b"orders"[..], payload.as_bytes()));
    }

    #[test]
    fn the_contract_is_whole() {
        contract().check().unwrap();
        marks_contract().check().unwrap();
    }
}
