//! Values of a file's columns as JSON text, as a sender of the same rows would have written them: nulls are left out of
//! objects, bytes are Base64, times follow RFC 3339.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, BinaryArray, FixedSizeBinaryArray, LargeBinaryArray, RecordBatch,
    RecordBatchOptions, make_array,
};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::error::ArrowError;
use arrow::json::writer::{Encoder, EncoderFactory, EncoderOptions, NullableEncoder, make_encoder};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The one zone of times in texts.
const UTC: &str = "+00:00";

/// Bytes as the contract's binary columns read them.
#[derive(Debug)]
struct Base64Bytes;

struct Base64Encoder<F>(F);

impl<'a, F: Fn(usize) -> &'a [u8]> Encoder for Base64Encoder<F> {
    fn encode(&mut self, at: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(STANDARD.encode((self.0)(at)).as_bytes());
        out.push(b'"');
    }
}

impl EncoderFactory for Base64Bytes {
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Binary => {
                let array: &BinaryArray = array.as_binary();
                Box::new(Base64Encoder(|at| array.value(at)))
            }
            DataType::LargeBinary => {
                let array: &LargeBinaryArray = array.as_binary();
                Box::new(Base64Encoder(|at| array.value(at)))
            }
            DataType::BinaryView => {
                let array = array.as_binary_view();
                Box::new(Base64Encoder(|at| array.value(at)))
            }
            DataType::FixedSizeBinary(_) => {
                let array: &FixedSizeBinaryArray = array.as_fixed_size_binary();
                Box::new(Base64Encoder(|at| array.value(at)))
            }
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

/// How all texts of this module are written.
#[derive(Debug, Clone)]
pub(crate) struct JsonOptions(EncoderOptions);

impl Default for JsonOptions {
    fn default() -> Self {
        Self(EncoderOptions::default().with_encoder_factory(Arc::new(Base64Bytes)))
    }
}

/// The texts of one column's values.
pub(crate) struct ColumnTexts<'a> {
    encoder: NullableEncoder<'a>,
    text: Vec<u8>,
}

impl<'a> ColumnTexts<'a> {
    pub(crate) fn new(field: &'a FieldRef, array: &'a dyn Array, options: &'a JsonOptions) -> Result<Self, ArrowError> {
        Ok(Self { encoder: make_encoder(field, array, &options.0)?, text: Vec::new() })
    }

    /// The text of one value; none where it is null.
    pub(crate) fn text(&mut self, row: usize) -> Option<&str> {
        if self.encoder.is_null(row) {
            return None;
        }
        self.text.clear();
        self.encoder.encode(row, &mut self.text);
        std::str::from_utf8(&self.text).ok()
    }
}

/// Rows as JSON objects of some of their columns.
pub(crate) struct RowTexts<'a> {
    columns: Vec<(Box<[u8]>, NullableEncoder<'a>)>,
}

impl<'a> RowTexts<'a> {
    /// Objects of the columns at `places` of `fields` and `arrays`.
    pub(crate) fn new(
        fields: &'a [FieldRef],
        arrays: &'a [ArrayRef],
        places: impl IntoIterator<Item = usize>,
        options: &'a JsonOptions,
    ) -> Result<Self, ArrowError> {
        let mut columns = Vec::new();
        for place in places {
            let (Some(field), Some(array)) = (fields.get(place), arrays.get(place)) else { continue };
            let name = serde_json::Value::from(field.name().as_str()).to_string() + ":";
            columns.push((name.into_bytes().into_boxed_slice(), make_encoder(field, array, &options.0)?));
        }
        Ok(Self { columns })
    }

    /// Appends the row's object to `out`. Returns whether it has a member.
    pub(crate) fn write(&mut self, row: usize, out: &mut Vec<u8>) -> bool {
        let mut opening = b'{';
        for (name, encoder) in &mut self.columns {
            if encoder.is_null(row) {
                continue;
            }
            out.push(opening);
            opening = b',';
            out.extend_from_slice(name);
            encoder.encode(row, out);
        }
        let any = opening == b',';
        if !any {
            out.push(b'{');
        }
        out.push(b'}');
        any
    }
}

/// One whole row as JSON, cut to `limit` bytes: for people, and for dead letters.
pub(crate) fn row_text(rows: &RecordBatch, row: usize, limit: usize, options: &JsonOptions) -> Vec<u8> {
    let Ok(rows) = in_utc(&rows.slice(row, 1)) else { return Vec::new() };
    let schema = rows.schema_ref();
    let fields: Vec<FieldRef> = schema.fields().iter().cloned().collect();
    let mut text = Vec::new();
    if let Ok(mut texts) = RowTexts::new(&fields, rows.columns(), 0..rows.num_columns(), options) {
        texts.write(0, &mut text);
    }
    let cut =
        (0..=limit.min(text.len())).rev().find(|at| std::str::from_utf8(text.get(..*at).unwrap_or_default()).is_ok());
    text.truncate(cut.unwrap_or(0));
    text
}

/// The rows with times of named zones as times of UTC, which they are: the writer of JSON knows no names of zones.
pub(crate) fn in_utc(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = rows.schema_ref();
    if schema.fields().iter().all(|field| utc_type(field.data_type()).is_none()) {
        return Ok(rows.clone());
    }
    let fields: Vec<FieldRef> = schema.fields().iter().map(utc_field).collect();
    let array = |array: &ArrayRef| utc_data(array.to_data()).map(make_array);
    let columns = rows.columns().iter().map(array).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

/// The type with times of named zones as times of UTC; none where it has no such.
fn utc_type(found: &DataType) -> Option<DataType> {
    let changed = |field: &FieldRef| utc_type(field.data_type()).map(|_| utc_field(field));
    Some(match found {
        DataType::Timestamp(unit, Some(zone)) if &**zone != UTC => DataType::Timestamp(*unit, Some(UTC.into())),
        DataType::List(field) => DataType::List(changed(field)?),
        DataType::LargeList(field) => DataType::LargeList(changed(field)?),
        DataType::FixedSizeList(field, length) => DataType::FixedSizeList(changed(field)?, *length),
        DataType::Map(field, sorted) => DataType::Map(changed(field)?, *sorted),
        DataType::Dictionary(key, value) => DataType::Dictionary(key.clone(), Box::new(utc_type(value)?)),
        DataType::Struct(fields) if fields.iter().any(|field| utc_type(field.data_type()).is_some()) => {
            DataType::Struct(fields.iter().map(utc_field).collect())
        }
        _ => return None,
    })
}

fn utc_field(field: &FieldRef) -> FieldRef {
    match utc_type(field.data_type()) {
        Some(changed) => Arc::new(field.as_ref().clone().with_data_type(changed)),
        None => Arc::clone(field),
    }
}

fn utc_data(data: ArrayData) -> Result<ArrayData, ArrowError> {
    let Some(changed) = utc_type(data.data_type()) else { return Ok(data) };
    let children = data.child_data().iter().cloned().map(utc_data).collect::<Result<Vec<_>, _>>()?;
    data.into_builder().data_type(changed).child_data(children).build()
}

/// A field for an array that stands alone.
pub(crate) fn field_of(array: &ArrayRef) -> FieldRef {
    Arc::new(Field::new("value", array.data_type().clone(), true))
}
