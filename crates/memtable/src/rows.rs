//! Rows on their way into Arrow arrays: one builder for each column of a contract.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder, Float64Builder, Int32Builder,
    Int64Builder, LargeBinaryBuilder, MapBuilder, MapFieldNames, RecordBatch, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use lakegate_model::{ColumnType, Contract};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use crate::nested::{NestedBuilder, nested_type};

/// One value, borrowed from the bytes it was read from, already of its column's type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Absent.
    Null,
    /// For boolean columns.
    Boolean(bool),
    /// For int, long, date (days) and timestamp (microseconds) columns.
    Long(i64),
    /// For float and double columns.
    Double(f64),
    /// For decimal columns: the unscaled value at the column's scale.
    Decimal(i128),
    /// For string and JSON columns; for structs and lists their JSON.
    Text(&'a str),
    /// The same, where the bytes had to be unescaped or the text was made.
    Owned(Box<str>),
    /// For string columns: an id, which becomes its text where it lies.
    Id(Uuid),
    /// For binary columns.
    Bytes(&'a [u8]),
    /// The same, where the bytes had to be decoded.
    OwnedBytes(Box<[u8]>),
    /// For map columns.
    Map(Vec<(&'a str, &'a str)>),
    /// The same, where the texts had to be unescaped.
    OwnedMap(Vec<(String, String)>),
}

impl Value<'_> {
    /// How many bytes of variable length the value has.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Owned(text) => text.len(),
            Self::Id(_) => Hyphenated::LENGTH,
            Self::Bytes(bytes) => bytes.len(),
            Self::OwnedBytes(bytes) => bytes.len(),
            Self::Map(entries) => entries.iter().map(|(k, v)| k.len() + v.len()).sum(),
            Self::OwnedMap(entries) => entries.iter().map(|(k, v)| k.len() + v.len()).sum(),
            _ => 0,
        }
    }
}

/// The Arrow type of a column. The names inside a map are the ones that Iceberg's Arrow mapping uses.
#[must_use]
pub fn arrow_type(column_type: ColumnType) -> DataType {
    match column_type {
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Int => DataType::Int32,
        ColumnType::Long => DataType::Int64,
        ColumnType::Float => DataType::Float32,
        ColumnType::Double => DataType::Float64,
        ColumnType::Decimal { precision, scale } => DataType::Decimal128(precision, scale.cast_signed()),
        ColumnType::Date => DataType::Date32,
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        ColumnType::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
        ColumnType::String | ColumnType::Json => DataType::Utf8,
        ColumnType::Binary => DataType::LargeBinary,
        ColumnType::StringMap => {
            let entries =
                Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)]);
            DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(entries), false)), false)
        }
        ColumnType::Nested(nested) => nested_type(nested),
    }
}

/// The Arrow schema of a contract's columns, in their order.
#[must_use]
pub fn arrow_schema(contract: &Contract) -> SchemaRef {
    let field = |c: &lakegate_model::Column| Field::new(&c.name, arrow_type(c.column_type), !c.required);
    Arc::new(Schema::new(contract.columns.iter().map(field).collect::<Vec<_>>()))
}

/// Bytes of text in a row of which nothing is known.
const DEFAULT_ROW_BYTES: usize = 16;

const UTC: &str = "+00:00";

/// The builder of one column.
#[derive(Debug)]
pub enum ColumnBuilder {
    /// Boolean.
    Boolean(BooleanBuilder),
    /// Int.
    Int(Int32Builder),
    /// Long.
    Long(Int64Builder),
    /// Float.
    Float(Float32Builder),
    /// Double.
    Double(Float64Builder),
    /// Decimal.
    Decimal(Decimal128Builder),
    /// Date.
    Date(Date32Builder),
    /// Timestamp, with or without a zone.
    Timestamp(TimestampMicrosecondBuilder),
    /// String and JSON.
    Text(StringBuilder),
    /// Binary.
    Binary(LargeBinaryBuilder),
    /// Struct, list, or map of other than texts.
    Nested(NestedBuilder),
    /// Map.
    Map(Box<MapBuilder<StringBuilder, StringBuilder>>),
}

impl ColumnBuilder {
    /// An empty builder with room for `rows` rows; `row_bytes`: how many bytes of text a row is expected to have.
    #[must_use]
    pub fn new(column_type: ColumnType, rows: usize, row_bytes: usize) -> Self {
        match column_type {
            ColumnType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(rows)),
            ColumnType::Int => Self::Int(Int32Builder::with_capacity(rows)),
            ColumnType::Long => Self::Long(Int64Builder::with_capacity(rows)),
            ColumnType::Float => Self::Float(Float32Builder::with_capacity(rows)),
            ColumnType::Double => Self::Double(Float64Builder::with_capacity(rows)),
            ColumnType::Decimal { .. } => {
                Self::Decimal(Decimal128Builder::with_capacity(rows).with_data_type(arrow_type(column_type)))
            }
            ColumnType::Date => Self::Date(Date32Builder::with_capacity(rows)),
            ColumnType::Timestamp | ColumnType::Timestamptz => Self::Timestamp(
                TimestampMicrosecondBuilder::with_capacity(rows).with_data_type(arrow_type(column_type)),
            ),
            ColumnType::String | ColumnType::Json => Self::Text(StringBuilder::with_capacity(rows, rows * row_bytes)),
            ColumnType::Binary => Self::Binary(LargeBinaryBuilder::with_capacity(rows, rows * row_bytes)),
            ColumnType::StringMap => {
                let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
                let (keys, values) = (StringBuilder::with_capacity(0, 0), StringBuilder::with_capacity(0, 0));
                Self::Map(Box::new(MapBuilder::with_capacity(Some(names), keys, values, rows)))
            }
            ColumnType::Nested(_) => Self::Nested(NestedBuilder::new(arrow_type(column_type))),
        }
    }

    /// Appends one value; a value of another type than the column's becomes null (the shaper has checked the type).
    ///
    /// # Errors
    /// A map was given keys and values of different number.
    #[inline]
    pub fn push(&mut self, value: &Value<'_>) -> Result<(), ArrowError> {
        match (self, value) {
            (Self::Text(b), Value::Text(v)) => b.append_value(v),
            (Self::Text(b), Value::Owned(v)) => b.append_value(v),
            (Self::Text(b), Value::Id(v)) => b.append_value(v.hyphenated().encode_lower(&mut Uuid::encode_buffer())),
            (Self::Text(b), _) => b.append_null(),
            (Self::Long(b), Value::Long(v)) => b.append_value(*v),
            (Self::Long(b), _) => b.append_null(),
            (Self::Timestamp(b), Value::Long(v)) => b.append_value(*v),
            (Self::Timestamp(b), _) => b.append_null(),
            (Self::Double(b), Value::Double(v)) => b.append_value(*v),
            (Self::Double(b), _) => b.append_null(),
            (Self::Boolean(b), Value::Boolean(v)) => b.append_value(*v),
            (Self::Boolean(b), _) => b.append_null(),
            (Self::Int(b), Value::Long(v)) => b.append_option(i32::try_from(*v).ok()),
            (Self::Int(b), _) => b.append_null(),
            #[allow(
                clippy::cast_possible_truncation,
                reason = "a float column holds the nearest float, by declaration"
            )]
            (Self::Float(b), Value::Double(v)) => b.append_value(*v as f32),
            (Self::Float(b), _) => b.append_null(),
            (Self::Decimal(b), Value::Decimal(v)) => b.append_value(*v),
            (Self::Decimal(b), _) => b.append_null(),
            (Self::Date(b), Value::Long(v)) => b.append_option(i32::try_from(*v).ok()),
            (Self::Date(b), _) => b.append_null(),
            (Self::Binary(b), Value::Bytes(v)) => b.append_value(v),
            (Self::Binary(b), Value::OwnedBytes(v)) => b.append_value(v),
            (Self::Binary(b), Value::Text(v)) => b.append_value(v.as_bytes()),
            (Self::Binary(b), _) => b.append_null(),
            (Self::Map(b), Value::Map(entries)) => push_entries(b, entries)?,
            (Self::Map(b), Value::OwnedMap(entries)) => push_entries(b, entries)?,
            (Self::Map(b), _) => b.append(false)?,
            (Self::Nested(b), Value::Text(v)) => b.push(Some(v)),
            (Self::Nested(b), Value::Owned(v)) => b.push(Some(v)),
            (Self::Nested(b), _) => b.push(None),
        }
        Ok(())
    }

    fn text_bytes(&self) -> usize {
        match self {
            Self::Text(builder) => builder.values_slice().len(),
            Self::Binary(builder) => builder.values_slice().len(),
            Self::Nested(builder) => builder.text_bytes(),
            _ => 0,
        }
    }

    /// The values as an array; the builder is empty afterwards.
    pub fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Boolean(b) => Arc::new(b.finish()),
            Self::Int(b) => Arc::new(b.finish()),
            Self::Long(b) => Arc::new(b.finish()),
            Self::Float(b) => Arc::new(b.finish()),
            Self::Double(b) => Arc::new(b.finish()),
            Self::Decimal(b) => Arc::new(b.finish()),
            Self::Date(b) => Arc::new(b.finish()),
            Self::Timestamp(b) => Arc::new(b.finish()),
            Self::Text(b) => Arc::new(b.finish()),
            Self::Binary(b) => Arc::new(b.finish()),
            Self::Map(b) => Arc::new(b.finish()),
            Self::Nested(b) => b.finish(),
        }
    }

    fn finish_cloned(&self) -> ArrayRef {
        match self {
            Self::Boolean(b) => Arc::new(b.finish_cloned()),
            Self::Int(b) => Arc::new(b.finish_cloned()),
            Self::Long(b) => Arc::new(b.finish_cloned()),
            Self::Float(b) => Arc::new(b.finish_cloned()),
            Self::Double(b) => Arc::new(b.finish_cloned()),
            Self::Decimal(b) => Arc::new(b.finish_cloned()),
            Self::Date(b) => Arc::new(b.finish_cloned()),
            Self::Timestamp(b) => Arc::new(b.finish_cloned()),
            Self::Text(b) => Arc::new(b.finish_cloned()),
            Self::Binary(b) => Arc::new(b.finish_cloned()),
            Self::Map(b) => Arc::new(b.finish_cloned()),
            Self::Nested(b) => b.finish_cloned(),
        }
    }
}

fn push_entries<T: AsRef<str>>(
    builder: &mut MapBuilder<StringBuilder, StringBuilder>,
    entries: &[(T, T)],
) -> Result<(), ArrowError> {
    for (key, value) in entries {
        builder.keys().append_value(key);
        builder.values().append_value(value);
    }
    builder.append(true)
}

/// Builders for all columns of a contract; a row goes in whole or not at all.
#[derive(Debug)]
pub struct RowBuilder {
    schema: SchemaRef,
    columns: Vec<ColumnBuilder>,
    rows: usize,
    bytes: usize,
}

impl RowBuilder {
    /// Builders for the contract's columns with room for `rows` rows. `schema` is [`arrow_schema`] of the contract.
    #[must_use]
    pub fn new(contract: &Contract, schema: SchemaRef, rows: usize) -> Self {
        Self::with_row_bytes(contract, schema, rows, &[])
    }

    /// The same, with room for `row_bytes` bytes of text in each row of each column, as [`Self::row_bytes`] told them of
    /// rows like these: a builder that grows copies what it has, and touches memory that it then gives back.
    #[must_use]
    pub fn with_row_bytes(contract: &Contract, schema: SchemaRef, rows: usize, row_bytes: &[usize]) -> Self {
        let expected = row_bytes.iter().copied().chain(std::iter::repeat(DEFAULT_ROW_BYTES));
        let columns = contract.columns.iter().zip(expected);
        let columns = columns.map(|(c, bytes)| ColumnBuilder::new(c.column_type, rows, bytes)).collect();
        Self { schema, columns, rows: 0, bytes: 0 }
    }

    /// How many bytes of text a row has in each column, on average and rounded up.
    #[must_use]
    pub fn row_bytes(&self) -> Vec<usize> {
        self.columns.iter().map(|column| column.text_bytes().div_ceil(self.rows.max(1))).collect()
    }

    /// Appends one row of as many values as there are columns, each of its column's type.
    ///
    /// # Errors
    /// A map column was given keys and values of different number.
    #[inline]
    pub fn push(&mut self, row: &[Value<'_>]) -> Result<(), ArrowError> {
        for (builder, value) in self.columns.iter_mut().zip(row) {
            builder.push(value)?;
            self.bytes += 9 + value.text_bytes();
        }
        self.rows += 1;
        Ok(())
    }

    /// The builders of the columns, to each of which the caller appends `rows` values: rows that are made column by column.
    /// Their texts are not counted in [`Self::bytes`].
    pub fn columns_mut(&mut self, rows: usize) -> &mut [ColumnBuilder] {
        self.rows += rows;
        self.bytes += 9 * rows * self.columns.len();
        &mut self.columns
    }

    /// How many rows are in.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// About how many bytes the rows take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows as a batch; the builders are empty afterwards.
    ///
    /// # Errors
    /// A required column holds a null.
    pub fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let arrays = self.columns.iter_mut().map(ColumnBuilder::finish).collect();
        self.rows = 0;
        self.bytes = 0;
        RecordBatch::try_new(self.schema.clone(), arrays)
    }

    /// A copy of the rows as a batch; the builders go on.
    ///
    /// # Errors
    /// A required column holds a null.
    pub fn finish_cloned(&self) -> Result<RecordBatch, ArrowError> {
        let arrays = self.columns.iter().map(ColumnBuilder::finish_cloned).collect();
        RecordBatch::try_new(self.schema.clone(), arrays)
    }
}
