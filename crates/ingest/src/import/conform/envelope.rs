//! The columns that a record's envelope fills, for rows that have no envelope.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, LargeBinaryArray, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::is_null;
use arrow::compute::kernels::zip::zip;
use arrow::datatypes::{DataType, Fields, TimestampMicrosecondType};
use arrow::error::ArrowError;
use lakegate_memtable::arrow_type;
use lakegate_model::{Column, ColumnSource, ColumnType, Field, ReasonCode, Refusal};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::api::Source;
use crate::frame::assigned_id;

use super::cast::{Refused, Wanted, cast_column, days_of};
use super::json::RowTexts;
use super::rules::check_clock;
use super::{Conformer, Place, RowContext, RowOrigin, array_at, handles};

/// The id of a row that brought none: the same whenever the file is read. A UUID of version 8 (RFC 9562) from the file's
/// identity and the row's number.
pub(crate) fn row_id(file: u128, row: u64) -> Uuid {
    let mut seed = [0; 24];
    let (front, back) = seed.split_at_mut(16);
    front.copy_from_slice(&file.to_le_bytes());
    back.copy_from_slice(&row.to_le_bytes());
    uuid::Builder::from_custom_bytes(xxh3_128(&seed).to_be_bytes()).into_uuid()
}

/// The events' times, and where they are from.
pub(super) struct Times {
    micros: TimestampMicrosecondArray,
    source: ArrayRef,
}

impl Times {
    /// From the column of the event's time, else from the contract's time field, else the time of receipt.
    pub(super) fn read(
        conformer: &Conformer,
        rows: &RecordBatch,
        context: &RowContext<'_>,
        bad: &mut Refused,
    ) -> Result<Self, ArrowError> {
        let contract = &conformer.shaper.contract;
        let is_event_time = |c: &Column| c.source == ColumnSource::Envelope(Field::EventTime);
        let own = contract.columns.iter().zip(&conformer.places).find(|(column, _)| is_event_time(column));
        let mut parts: Vec<(ArrayRef, &str)> = Vec::new();
        if let Some((column, Place::File(path))) = own {
            let (name, column_type, times) = (column.name.as_str(), ColumnType::Timestamptz, None);
            let cast = cast_column(&array_at(rows, path)?, Wanted { name, column_type, times }, bad)?;
            parts.push((cast, "envelope"));
        }
        if let (Some(time), Some(path)) = (&contract.time, &conformer.time) {
            let name = time.path.join(".");
            let times = conformer.shaper.time.as_ref();
            let wanted = Wanted { name: &name, column_type: ColumnType::Timestamptz, times };
            parts.push((cast_column(&array_at(rows, path)?, wanted, bad)?, "payload"));
        }
        let received: TimestampMicrosecondArray =
            std::iter::repeat_n(Some(context.received_us), rows.num_rows()).collect();
        let received = received.with_data_type(arrow_type(ColumnType::Timestamptz));
        let mut micros: ArrayRef = Arc::new(received);
        let mut source: ArrayRef = same_text(Some("received"), rows.num_rows());
        for (found, name) in parts.into_iter().rev() {
            if found.null_count() == 0 {
                (micros, source) = (found, same_text(Some(name), rows.num_rows()));
                continue;
            }
            let missing = is_null(&found)?;
            source = zip(&missing, &source, &same_text(Some(name), rows.num_rows()))?;
            micros = zip(&missing, &micros, &found)?;
        }
        let micros = micros.as_primitive::<TimestampMicrosecondType>().clone();
        let (micros, source) = check_clock(&contract.clock, micros, source, context.received_us, bad)?;
        Ok(Self { micros, source })
    }

    pub(super) fn column(&self, column_type: ColumnType) -> ArrayRef {
        match column_type {
            ColumnType::Date => Arc::new(days_of(&self.micros)),
            _ => Arc::new(self.micros.clone().with_data_type(arrow_type(column_type))),
        }
    }

    pub(super) fn source(&self) -> ArrayRef {
        Arc::clone(&self.source)
    }
}

pub(super) fn same_text(text: Option<&str>, rows: usize) -> ArrayRef {
    match text {
        Some(text) => Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, rows))),
        None => new_null_array(&arrow::datatypes::DataType::Utf8, rows),
    }
}

impl Conformer {
    /// A column of the envelope that the file does not have.
    pub(super) fn envelope_column(
        &self,
        field: Field,
        column: &Column,
        rows: &RecordBatch,
        context: &RowContext<'_>,
        bad: &mut Refused,
    ) -> Result<ArrayRef, ArrowError> {
        let count = rows.num_rows();
        Ok(match field {
            Field::TenantId => same_text(Some(context.tenant), count),
            Field::EndpointId => same_text(Some(context.stream), count),
            Field::EventId => row_ids(context, count),
            Field::EventType => self.event_types(rows, context, bad)?,
            Field::ReceivedAt => {
                let received: TimestampMicrosecondArray =
                    std::iter::repeat_n(Some(context.received_us), count).collect();
                match column.column_type {
                    ColumnType::Date => Arc::new(days_of(&received)),
                    other => Arc::new(received.with_data_type(arrow_type(other))),
                }
            }
            Field::Version => Arc::new(Int64Array::from(vec![0; count])),
            Field::Payload => self.payloads(column, rows, context, bad)?,
            Field::Undeclared => self.undeclared(rows)?,
            Field::Source => {
                let source =
                    if let RowOrigin::Request { source, .. } = context.origin { source } else { Source::File.name() };
                same_text(Some(source), count)
            }
            Field::UserAgent | Field::ClientAddress | Field::CorrelationId => {
                same_text(known_of(context, field), count)
            }
            Field::Attributes | Field::EventTime | Field::TimeSource | Field::Rescued => {
                new_null_array(&arrow_type(column.column_type), count)
            }
        })
    }

    /// A column of the envelope as the file has it; where it has nothing, as if the file did not have the column.
    pub(super) fn filled(
        &self,
        found: ArrayRef,
        field: Field,
        column: &Column,
        rows: &RecordBatch,
        context: &RowContext<'_>,
    ) -> Result<ArrayRef, ArrowError> {
        if found.null_count() == 0 || field == Field::Payload {
            return Ok(found);
        }
        let own = self.envelope_column(field, column, rows, context, &mut Refused::new())?;
        zip(&is_null(&found)?, &own, &found)
    }

    /// Whole rows as JSON, without the columns that the envelope takes.
    fn payloads(
        &self,
        column: &Column,
        rows: &RecordBatch,
        context: &RowContext<'_>,
        bad: &mut Refused,
    ) -> Result<ArrayRef, ArrowError> {
        let fields = handles(rows.schema_ref());
        let is_envelope = |place: &usize| {
            let columns = self.shaper.contract.columns.iter().zip(&self.places);
            columns
                .filter(|(column, _)| matches!(column.source, ColumnSource::Envelope(_)))
                .any(|(_, found)| matches!(found, Place::File(path) if path.first() == Some(place)))
        };
        let places = (0..fields.len()).filter(|place| !is_envelope(place));
        let mut texts = RowTexts::new(&fields, rows.columns(), places, &self.json)?;
        let mut builder = StringBuilder::with_capacity(rows.num_rows(), rows.get_array_memory_size());
        let mut text = Vec::new();
        for row in 0..rows.num_rows() {
            text.clear();
            texts.write(row, &mut text);
            if text.len() > context.payload_bytes_max {
                bad.entry(row).or_insert_with(|| too_large(text.len(), context.payload_bytes_max));
                builder.append_null();
                continue;
            }
            builder.append_value(std::str::from_utf8(&text).unwrap_or_default());
        }
        let texts: ArrayRef = Arc::new(builder.finish());
        Ok(match column.column_type {
            ColumnType::Binary => {
                let texts = texts.as_string::<i32>();
                Arc::new(texts.iter().map(|text| text.map(str::as_bytes)).collect::<LargeBinaryArray>())
            }
            _ => texts,
        })
    }

    /// What no column takes, as JSON.
    fn undeclared(&self, rows: &RecordBatch) -> Result<ArrayRef, ArrowError> {
        if self.kept.is_empty() {
            return Ok(same_text(None, rows.num_rows()));
        }
        let (mut fields, mut columns) = (Vec::new(), Vec::new());
        for path in &self.kept {
            let (name, array) = (dotted_name(rows.schema_ref().fields(), path), array_at(rows, path)?);
            fields.push(Arc::new(arrow::datatypes::Field::new(name, array.data_type().clone(), true)));
            columns.push(array);
        }
        let mut texts = RowTexts::new(&fields, &columns, 0..columns.len(), &self.json)?;
        let mut builder = StringBuilder::new();
        let mut text = Vec::new();
        for row in 0..rows.num_rows() {
            text.clear();
            let any = texts.write(row, &mut text);
            builder.append_option(any.then(|| std::str::from_utf8(&text).unwrap_or_default()));
        }
        Ok(Arc::new(builder.finish()))
    }
}

/// The names that a path of places leads through, with dots between them.
fn dotted_name(fields: &Fields, path: &[usize]) -> String {
    let Some(field) = path.first().and_then(|place| fields.get(*place)) else { return String::new() };
    match (path.get(1..).unwrap_or_default(), field.data_type()) {
        (rest @ [_, ..], DataType::Struct(inner)) => format!("{}.{}", field.name(), dotted_name(inner, rest)),
        _ => field.name().clone(),
    }
}

/// What is known of the request that brought the rows.
fn known_of<'a>(context: &RowContext<'a>, field: Field) -> Option<&'a str> {
    let RowOrigin::Request { client_address, user_agent, correlation_id, .. } = context.origin else { return None };
    let text = match field {
        Field::UserAgent => user_agent,
        Field::ClientAddress => client_address,
        _ => correlation_id,
    };
    Some(text).filter(|text| !text.is_empty())
}

fn row_ids(context: &RowContext<'_>, count: usize) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(count, count * uuid::fmt::Hyphenated::LENGTH);
    let mut buffer = Uuid::encode_buffer();
    for row in (context.first_row..).take(count) {
        let id = match context.origin {
            RowOrigin::File => row_id(context.file, row),
            RowOrigin::Request { id_base, .. } => {
                assigned_id(context.received_us, id_base, u32::try_from(row).unwrap_or(u32::MAX))
            }
        };
        builder.append_value(id.hyphenated().encode_lower(&mut buffer));
    }
    Arc::new(builder.finish())
}

fn too_large(found: usize, limit: usize) -> Refusal {
    let message = format!("the payload has {found} bytes; at most {limit} are taken (ingestion.payload_bytes_max)");
    Refusal { code: ReasonCode::TooLarge, field: Some("payload".to_owned()), message }
}
