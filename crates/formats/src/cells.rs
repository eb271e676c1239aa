//! Text of cells to typed columns: one builder for a column, whatever the format.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder, Float64Builder, Int32Builder,
    Int64Builder, LargeBinaryBuilder, NullBufferBuilder, StringArray, TimestampMicrosecondBuilder,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, TimeUnit};
use lakegate_model::ColumnType;

use crate::text;

/// The Arrow type of a column.
pub(crate) fn arrow_type(column_type: ColumnType) -> DataType {
    match column_type {
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Int => DataType::Int32,
        ColumnType::Long => DataType::Int64,
        ColumnType::Float => DataType::Float32,
        ColumnType::Double => DataType::Float64,
        ColumnType::Decimal { precision, scale } => DataType::Decimal128(precision, scale.cast_signed()),
        ColumnType::Date => DataType::Date32,
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        ColumnType::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
        ColumnType::Binary => DataType::LargeBinary,
        ColumnType::String | ColumnType::Json | ColumnType::StringMap | ColumnType::Nested(_) => DataType::Utf8,
    }
}

/// The column type whose text this Arrow type is read from; other types are given as text.
pub(crate) fn column_type(arrow: &DataType) -> ColumnType {
    match arrow {
        DataType::Boolean => ColumnType::Boolean,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => ColumnType::Int,
        DataType::Int64 | DataType::UInt32 => ColumnType::Long,
        DataType::Float32 => ColumnType::Float,
        DataType::Float64 => ColumnType::Double,
        DataType::Decimal128(precision, scale) if *scale >= 0 => {
            ColumnType::Decimal { precision: *precision, scale: scale.cast_unsigned() }
        }
        DataType::Date32 => ColumnType::Date,
        DataType::Timestamp(_, None) => ColumnType::Timestamp,
        DataType::Timestamp(_, Some(_)) => ColumnType::Timestamptz,
        DataType::Binary | DataType::LargeBinary => ColumnType::Binary,
        _ => ColumnType::String,
    }
}

/// Text, held flat so that it is checked to be UTF-8 once for the column.
#[derive(Default)]
pub(crate) struct Texts {
    values: Vec<u8>,
    offsets: Vec<i32>,
}

/// One field of a row.
pub(crate) enum Field<'a> {
    /// No value.
    Null,
    /// As it stands in the text.
    Raw(&'a [u8]),
    /// Made of what stands there.
    Made(Vec<u8>),
}

impl Field<'_> {
    #[inline]
    fn raw(&self) -> &[u8] {
        match self {
            Self::Null => &[],
            Self::Raw(raw) => raw,
            Self::Made(made) => made,
        }
    }
}

/// A column being built.
pub(crate) struct Cells {
    column_type: ColumnType,
    nulls: NullBufferBuilder,
    kind: Kind,
}

enum Kind {
    Boolean(BooleanBuilder),
    Int(Int32Builder),
    Long(Int64Builder),
    Float(Float32Builder),
    Double(Float64Builder),
    Decimal(Decimal128Builder, u8, u8),
    Date(Date32Builder),
    Timestamp(TimestampMicrosecondBuilder, bool),
    Text(Texts),
    Binary(LargeBinaryBuilder),
}

impl Cells {
    pub(crate) fn new(column_type: ColumnType, rows: usize) -> Self {
        let kind = match column_type {
            ColumnType::Boolean => Kind::Boolean(BooleanBuilder::with_capacity(rows)),
            ColumnType::Int => Kind::Int(Int32Builder::with_capacity(rows)),
            ColumnType::Long => Kind::Long(Int64Builder::with_capacity(rows)),
            ColumnType::Float => Kind::Float(Float32Builder::with_capacity(rows)),
            ColumnType::Double => Kind::Double(Float64Builder::with_capacity(rows)),
            ColumnType::Decimal { precision, scale } => {
                Kind::Decimal(Decimal128Builder::with_capacity(rows), precision, scale)
            }
            ColumnType::Date => Kind::Date(Date32Builder::with_capacity(rows)),
            ColumnType::Timestamp => Kind::Timestamp(TimestampMicrosecondBuilder::with_capacity(rows), false),
            ColumnType::Timestamptz => Kind::Timestamp(TimestampMicrosecondBuilder::with_capacity(rows), true),
            ColumnType::Binary => Kind::Binary(LargeBinaryBuilder::with_capacity(rows, rows * 16)),
            ColumnType::String | ColumnType::Json | ColumnType::StringMap | ColumnType::Nested(_) => {
                Kind::Text(Texts {
                    values: Vec::with_capacity(rows * 16),
                    offsets: {
                        let mut offsets = Vec::with_capacity(rows + 1);
                        offsets.push(0);
                        offsets
                    },
                })
            }
        };
        Self { column_type, nulls: NullBufferBuilder::new(rows), kind }
    }

    /// Appends what the text says. False: it does not fit the type; a null stands in its place.
    pub(crate) fn append(&mut self, raw: &[u8]) -> bool {
        let done = match &mut self.kind {
            Kind::Text(texts) => {
                texts.values.extend_from_slice(raw);
                texts.offsets.push(i32::try_from(texts.values.len()).unwrap_or(i32::MAX));
                self.nulls.append_non_null();
                return true;
            }
            Kind::Binary(b) => {
                b.append_value(raw);
                Some(())
            }
            Kind::Boolean(b) => text::boolean(raw).map(|v| b.append_value(v)),
            Kind::Int(b) => text::long(raw).and_then(|v| i32::try_from(v).ok()).map(|v| b.append_value(v)),
            Kind::Long(b) => text::long(raw).map(|v| b.append_value(v)),
            #[expect(clippy::cast_possible_truncation, reason = "the column is declared to hold 32 bits")]
            Kind::Float(b) => text::double(raw).map(|v| b.append_value(v as f32)),
            Kind::Double(b) => text::double(raw).map(|v| b.append_value(v)),
            Kind::Decimal(b, precision, scale) => text::decimal(raw, *precision, *scale).map(|v| b.append_value(v)),
            Kind::Date(b) => text::date(raw).map(|v| b.append_value(v)),
            Kind::Timestamp(b, zoned) => text::timestamp(raw, *zoned).map(|v| b.append_value(v)),
        };
        if done.is_none() {
            self.append_null();
        }
        done.is_some()
    }

    /// Appends a whole column's fields. Gives the places of those that do not fit; a null stands there. The type is looked
    /// at once for all of them.
    pub(crate) fn extend<'a>(&mut self, fields: impl Iterator<Item = Field<'a>>) -> Vec<usize> {
        match &mut self.kind {
            Kind::Text(texts) => {
                for field in fields {
                    texts.values.extend_from_slice(field.raw());
                    texts.offsets.push(i32::try_from(texts.values.len()).unwrap_or(i32::MAX));
                    self.nulls.append(!matches!(field, Field::Null));
                }
                Vec::new()
            }
            Kind::Int(b) => each(fields, |raw| i32::try_from(text::long(raw)?).ok(), |v| b.append_option(v)),
            Kind::Long(b) => each(fields, text::long, |v| b.append_option(v)),
            Kind::Double(b) => each(fields, text::double, |v| b.append_option(v)),
            Kind::Date(b) => each(fields, text::date, |v| b.append_option(v)),
            Kind::Timestamp(b, true) => each(fields, |raw| text::timestamp(raw, true), |v| b.append_option(v)),
            Kind::Timestamp(b, false) => each(fields, |raw| text::timestamp(raw, false), |v| b.append_option(v)),
            Kind::Decimal(b, precision, scale) => {
                let (precision, scale) = (*precision, *scale);
                each(fields, |raw| text::decimal(raw, precision, scale), |v| b.append_option(v))
            }
            Kind::Boolean(_) | Kind::Float(_) | Kind::Binary(_) => {
                let mut misfits = Vec::new();
                for (place, field) in fields.enumerate() {
                    match field {
                        Field::Null => self.append_null(),
                        field if self.append(field.raw()) => {}
                        _ => misfits.push(place),
                    }
                }
                misfits
            }
        }
    }

    pub(crate) fn append_null(&mut self) {
        match &mut self.kind {
            Kind::Text(texts) => {
                texts.offsets.push(i32::try_from(texts.values.len()).unwrap_or(i32::MAX));
                self.nulls.append_null();
            }
            Kind::Boolean(b) => b.append_null(),
            Kind::Int(b) => b.append_null(),
            Kind::Long(b) => b.append_null(),
            Kind::Float(b) => b.append_null(),
            Kind::Double(b) => b.append_null(),
            Kind::Decimal(b, ..) => b.append_null(),
            Kind::Date(b) => b.append_null(),
            Kind::Timestamp(b, _) => b.append_null(),
            Kind::Binary(b) => b.append_null(),
        }
    }

    /// The column, and the rows whose text is not UTF-8; those hold nothing.
    pub(crate) fn finish(mut self) -> (ArrayRef, Vec<usize>) {
        let array: ArrayRef = match &mut self.kind {
            Kind::Boolean(b) => Arc::new(b.finish()),
            Kind::Int(b) => Arc::new(b.finish()),
            Kind::Long(b) => Arc::new(b.finish()),
            Kind::Float(b) => Arc::new(b.finish()),
            Kind::Double(b) => Arc::new(b.finish()),
            Kind::Decimal(b, ..) => Arc::new(b.finish().with_data_type(arrow_type(self.column_type))),
            Kind::Date(b) => Arc::new(b.finish()),
            Kind::Timestamp(b, zoned) => {
                let array = b.finish();
                Arc::new(if *zoned { array.with_timezone("+00:00") } else { array })
            }
            Kind::Binary(b) => Arc::new(b.finish()),
            Kind::Text(texts) => return finish_texts(std::mem::take(texts), self.nulls),
        };
        (array, Vec::new())
    }
}

/// Reads all fields as one type; gives the places of those that are none of it.
fn each<'a, T>(
    fields: impl Iterator<Item = Field<'a>>,
    read: impl Fn(&[u8]) -> Option<T>,
    mut push: impl FnMut(Option<T>),
) -> Vec<usize> {
    let mut misfits = Vec::new();
    for (place, field) in fields.enumerate() {
        let value = match &field {
            Field::Null => None,
            field => {
                let value = read(field.raw());
                if value.is_none() {
                    misfits.push(place);
                }
                value
            }
        };
        push(value);
    }
    misfits
}

fn finish_texts(texts: Texts, mut nulls: NullBufferBuilder) -> (ArrayRef, Vec<usize>) {
    let nulls = nulls.finish();
    let offsets = OffsetBuffer::new(ScalarBuffer::from(texts.offsets));
    let values = Buffer::from_vec(texts.values);
    // Whole text that is sound can still be cut inside a letter, so the array checks that too.
    if simdutf8::basic::from_utf8(&values).is_ok()
        && let Ok(array) = StringArray::try_new(offsets.clone(), values.clone(), nulls.clone())
    {
        return (Arc::new(array), Vec::new());
    }
    let mut bad = Vec::new();
    let rows = offsets.iter().zip(offsets.iter().skip(1)).enumerate();
    let array: StringArray = rows
        .map(|(row, (from, to))| {
            if nulls.as_ref().is_some_and(|n| n.is_null(row)) {
                return None;
            }
            let raw = values.get(usize::try_from(*from).ok()?..usize::try_from(*to).ok()?)?;
            let text = std::str::from_utf8(raw).ok();
            if text.is_none() {
                bad.push(row);
            }
            text
        })
        .collect();
    (Arc::new(array), bad)
}
