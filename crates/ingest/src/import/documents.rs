//! Rows of a file that are JSON documents: read by the reader of payloads, as if each had been sent alone.

use std::ops::Range;

use arrow::error::ArrowError;
use lakegate_memtable::Value;
use lakegate_model::{ReasonCode, Refusal};

use super::conform::cast::Refused;
use super::conform::{Conformed, RowContext, row_id};
use crate::api::Source;
use crate::shape::{ClientOf, Envelope, Found, Marks, RecordContext, Shaper, Wanted, shape_plain};
use crate::wire::WireRecord;

/// The documents at `spans` of `body` as rows of the table. What they want beyond its columns is told to `wanted`.
///
/// # Errors
/// A required column holds a null; the shaper lets none in.
pub(crate) fn shape_documents(
    shaper: &Shaper,
    body: &[u8],
    spans: &[Range<u32>],
    context: &RowContext<'_>,
    mut wanted: Option<&mut dyn FnMut(Vec<Wanted>)>,
) -> Result<Conformed, ArrowError> {
    let mut bad = Refused::new();
    let mut record_context = RecordContext {
        tenant: Value::Text(context.tenant),
        stream: Value::Text(context.stream),
        received_us: context.received_us,
        assigned_id: uuid::Uuid::nil(),
        payload_bytes_max: context.payload_bytes_max,
        source: Source::File.name(),
        origin: ClientOf { client_address: Value::Null, user_agent: Value::Null, correlation_id: Value::Null },
        may_grow: wanted.is_some(),
        marks: Marks::default(),
        found: Found::default(),
    };
    let event_type = context.event_type.unwrap_or_default();
    let mut numbers = context.first_row..;
    let payloads = spans.iter().map(|span| {
        let number = numbers.next().unwrap_or(u64::MAX);
        (document(body, span), row_id(context.file, number))
    });
    if let Some(rows) = shape_plain(shaper, &record_context, event_type, payloads) {
        // What is as the contract has it wants nothing beyond it.
        return Ok(Conformed { rows: rows?, bad: Refused::new() });
    }
    let (mut rows, event_type) = (shaper.rows(spans.len()), event_type.as_bytes());
    let envelope = Envelope::read(&WireRecord { event_type, ..WireRecord::default() });
    let mut row = Vec::with_capacity(shaper.contract.columns.len());
    for (place, (number, span)) in (context.first_row..).zip(spans).enumerate() {
        record_context.assigned_id = row_id(context.file, number);
        let shaped = match (&envelope, document(body, span)) {
            (Ok(envelope), Some(payload)) => {
                let record = WireRecord { payload, event_type, ..WireRecord::default() };
                shaper.shape(&record, envelope, &mut record_context, &mut row)
            }
            (Err(refusal), _) => Err(refusal.clone()),
            (_, None) => Err(outside()),
        };
        match shaped {
            Ok(()) => rows.push(&row)?,
            Err(refusal) => {
                bad.insert(place, refusal);
            }
        }
        let marks = std::mem::take(&mut record_context.marks);
        if let Some(wanted) = wanted.as_mut().filter(|_| !marks.wanted.is_empty()) {
            wanted(marks.wanted);
        }
    }
    shaper.learn(&rows);
    Ok(Conformed { rows: rows.finish()?, bad })
}

fn outside() -> Refusal {
    Refusal {
        code: ReasonCode::MalformedPayload,
        field: None,
        message: "the document lies outside the piece".to_owned(),
    }
}

/// The bytes of one document.
pub(crate) fn document<'b>(body: &'b [u8], span: &Range<u32>) -> Option<&'b [u8]> {
    body.get(usize::try_from(span.start).ok()?..usize::try_from(span.end).ok()?)
}
