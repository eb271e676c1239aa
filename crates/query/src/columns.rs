//! One schema for rows that were shaped at different times.
//!
//! A table's committed schema and its rows in memory may be a step apart: columns are matched by name, a missing one
//! is null, another type is cast.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;

/// The lake's columns in their order, then those that only the memtable has. Every column may be null, as rows of
/// before a column's time lack it.
pub(crate) fn merge(lake: Option<&Schema>, memtable: Option<&Schema>) -> SchemaRef {
    let mut fields: Vec<Field> = lake.into_iter().flat_map(Schema::fields).map(|f| plain(f)).collect();
    for field in memtable.into_iter().flat_map(Schema::fields) {
        match fields.iter_mut().find(|f| f.name() == field.name()) {
            None => fields.push(plain(field)),
            Some(known) if is_wider(known.data_type(), field.data_type()) => *known = plain(field),
            Some(_) => {}
        }
    }
    Arc::new(Schema::new(fields))
}

/// Whether the second is what a column of the first becomes when it is widened: its newest rows do not fit the first.
fn is_wider(lake: &DataType, memtable: &DataType) -> bool {
    match (lake, memtable) {
        (DataType::Int32, DataType::Int64) | (DataType::Float32, DataType::Float64) => true,
        (DataType::Decimal128(p, s), DataType::Decimal128(wider, same)) => wider > p && s == same,
        _ => false,
    }
}

/// The field without the numbers that table formats keep in metadata, here and within.
fn plain(field: &Field) -> Field {
    Field::new(field.name(), plain_type(field.data_type()), true)
}

fn plain_child(field: &FieldRef) -> FieldRef {
    Arc::new(Field::new(field.name(), plain_type(field.data_type()), field.is_nullable()))
}

fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::List(child) => DataType::List(plain_child(child)),
        DataType::LargeList(child) => DataType::LargeList(plain_child(child)),
        DataType::FixedSizeList(child, size) => DataType::FixedSizeList(plain_child(child), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain_child).collect()),
        DataType::Map(entries, sorted) => DataType::Map(plain_child(entries), *sorted),
        other => other.clone(),
    }
}

/// The rows with exactly the columns of `schema`.
pub(crate) fn adapt(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let column = |field: &FieldRef| -> Result<ArrayRef, ArrowError> {
        match batch.column_by_name(field.name()) {
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
            Some(found) if found.data_type() == field.data_type() => Ok(found.clone()),
            Some(found) => {
                cast_with_options(found, field.data_type(), &CastOptions { safe: false, ..CastOptions::default() })
            }
        }
    };
    let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
}

/// How many bytes these rows take, counted without what lies in the same buffers beside them.
pub(crate) fn bytes_of(batch: &RecordBatch) -> u64 {
    let bytes =
        |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size());
    batch.columns().iter().map(bytes).sum::<usize>() as u64
}
