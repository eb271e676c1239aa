//! Records of another log as rows of their table: read by the reader of payloads, as if each had been sent alone.

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use lakegate_memtable::Value;
use lakegate_model::{ColumnSource, Field, ReasonCode, Refusal};
use uuid::Uuid;

use super::api::{UpstreamPayload, UpstreamRecord, UpstreamRecords, UpstreamTarget};
use crate::import::row_id;
use crate::shape::{ClientOf, Envelope, Found, Marks, RecordContext, Shaper};
use crate::streams::Stream;
use crate::wire::{WireRecord, write_entry};

/// Rows, and the records that are none.
pub(super) struct Shaped {
    pub(super) rows: RecordBatch,
    /// By place.
    pub(super) bad: Vec<(usize, Refusal)>,
    /// Payload bytes of the rows.
    pub(super) bytes: u64,
}

pub(super) fn shape(
    stream: &Stream,
    target: &UpstreamTarget,
    records: &UpstreamRecords<'_>,
    received_us: i64,
    payload_bytes_max: usize,
) -> Result<Shaped, ArrowError> {
    let shaper = &stream.shaper;
    let mut rows = shaper.rows(records.records.len());
    let (mut bad, mut bytes) = (Vec::new(), 0);
    let mut context = RecordContext {
        tenant: Value::Text(stream.key.tenant.as_str()),
        stream: Value::Text(stream.key.stream.as_str()),
        received_us,
        assigned_id: Uuid::nil(),
        payload_bytes_max,
        source: target.source.name(),
        origin: ClientOf { client_address: Value::Null, user_agent: Value::Null, correlation_id: Value::Null },
        may_grow: false,
        marks: Marks::default(),
        found: Found::default(),
    };
    let attributes = attributes(shaper, records);
    let has_time = shaper.contract.time.is_some();
    let takes_ids = shaper.contract.columns.iter().any(|c| c.source == ColumnSource::Envelope(Field::EventId));
    let mut row = Vec::with_capacity(shaper.contract.columns.len());
    for (place, record) in records.records.iter().enumerate() {
        if takes_ids {
            context.assigned_id = row_id(records.partition, record.offset);
        }
        let own = attributes.as_ref().and_then(|attributes| attributes.get(place));
        let shaped = payload_of(record, records).and_then(|payload| {
            let record = WireRecord {
                payload,
                content_type: target.content_type.as_bytes(),
                event_time_us: record.time_us.filter(|_| !has_time),
                attributes: own.map(|own| own.iter().map(Vec::as_slice).collect()).unwrap_or_default(),
                ..WireRecord::default()
            };
            let envelope = Envelope::read(&record)?;
            shaper.shape(&record, &envelope, &mut context, &mut row).map(|()| payload.len())
        });
        match shaped {
            Ok(length) => {
                bytes += length as u64;
                rows.push(&row)?;
            }
            Err(refusal) => bad.push((place, refusal)),
        }
    }
    if rows.rows() > 0 {
        shaper.learn(&rows);
    }
    Ok(Shaped { rows: rows.finish()?, bad, bytes })
}

/// The bytes of a record as it came.
pub(super) fn raw<'b>(body: &'b [u8], record: &UpstreamRecord) -> &'b [u8] {
    slice(body, &record.raw).unwrap_or_default()
}

fn slice<'b>(body: &'b [u8], span: &std::ops::Range<u32>) -> Option<&'b [u8]> {
    body.get(usize::try_from(span.start).ok()?..usize::try_from(span.end).ok()?)
}

fn payload_of<'a>(record: &UpstreamRecord, records: &UpstreamRecords<'a>) -> Result<&'a [u8], Refusal> {
    let refusal = |message: String| Refusal { code: ReasonCode::MalformedPayload, field: None, message };
    let span = match &record.payload {
        UpstreamPayload::Raw => &record.raw,
        UpstreamPayload::Decoded(span) => span,
        UpstreamPayload::Refused(why) => return Err(refusal(why.clone())),
    };
    slice(records.body, span).ok_or_else(|| refusal("the record lies outside its bytes".to_owned()))
}

/// The entries of each record's attributes, where a column takes them.
fn attributes(shaper: &Shaper, records: &UpstreamRecords<'_>) -> Option<Vec<Vec<Vec<u8>>>> {
    let takes = |field| shaper.contract.columns.iter().any(|c| c.source == ColumnSource::Envelope(field));
    if !takes(Field::Attributes) {
        return None;
    }
    let common: Vec<Vec<u8>> = records.attributes.iter().map(|(key, value)| write_entry(key, value)).collect();
    let of = |record: &UpstreamRecord| {
        let own = write_entry("offset", &record.offset.to_string());
        common.iter().cloned().chain([own]).collect()
    };
    Some(records.records.iter().map(of).collect())
}
