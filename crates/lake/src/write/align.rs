//! A batch's columns, fitted to the table's by name.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, MapArray, RecordBatch, RecordBatchOptions, StructArray, new_null_array};
use arrow::compute::{CastOptions, cast_with_options, concat_batches};
use arrow::datatypes::{DataType, Field, SchemaRef as ArrowSchemaRef};
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::spec::Schema;

use crate::error::LakeError;

/// The Arrow schema of a table's rows, with the columns' Iceberg ids.
pub(crate) fn arrow_schema_of(schema: &Schema) -> Result<ArrowSchemaRef, LakeError> {
    schema_to_arrow_schema(schema).map(Arc::new).map_err(LakeError::invalid)
}

/// The batch with exactly the columns of `target`: missing ones are null, unknown ones an error.
pub(crate) fn align(batch: &RecordBatch, target: &ArrowSchemaRef) -> Result<RecordBatch, String> {
    if let Some(unknown) = batch.schema_ref().fields().iter().find(|f| target.column_with_name(f.name()).is_none()) {
        return Err(format!("the column {:?} is not in the table", unknown.name()));
    }
    let mut columns = Vec::with_capacity(target.fields().len());
    for field in target.fields() {
        let column = match batch.column_by_name(field.name()) {
            Some(column) => {
                retype(column, field.data_type()).map_err(|e| format!("the column {:?}: {e}", field.name()))?
            }
            None => new_null_array(field.data_type(), batch.num_rows()),
        };
        if !field.is_nullable() && column.null_count() > 0 {
            return Err(format!(
                "the column {:?} is required, and {} of {} rows have no value",
                field.name(),
                column.null_count(),
                column.len()
            ));
        }
        columns.push(column);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(target), columns, &options).map_err(|e| e.to_string())
}

/// The same values under the wanted type. Only a change of the type itself copies.
fn retype(array: &ArrayRef, wanted: &DataType) -> Result<ArrayRef, String> {
    if array.data_type() == wanted {
        return Ok(Arc::clone(array));
    }
    match (array.as_any().downcast_ref::<MapArray>(), wanted) {
        (Some(map), DataType::Map(entries, ordered)) => retype_map(map, entries, *ordered),
        _ => {
            let options = CastOptions { safe: false, ..CastOptions::default() };
            cast_with_options(array, wanted, &options).map_err(|e| e.to_string())
        }
    }
}

fn retype_map(map: &MapArray, entries: &Arc<Field>, ordered: bool) -> Result<ArrayRef, String> {
    let DataType::Struct(fields) = entries.data_type() else {
        return Err("a map's entries must be a struct".to_owned());
    };
    let [key, value] = fields.as_ref() else { return Err("a map's entries must have a key and a value".to_owned()) };
    let columns = vec![retype(map.keys(), key.data_type())?, retype(map.values(), value.data_type())?];
    let entries_array = StructArray::try_new(fields.clone(), columns, None).map_err(|e| e.to_string())?;
    MapArray::try_new(Arc::clone(entries), map.offsets().clone(), entries_array, map.nulls().cloned(), ordered)
        .map(|m| Arc::new(m) as ArrayRef)
        .map_err(|e| e.to_string())
}

/// Small batches that follow one another as fewer larger ones: each batch costs the encoder something per column.
pub(crate) fn joined(
    batches: Vec<RecordBatch>,
    schema: &ArrowSchemaRef,
) -> impl Iterator<Item = Result<RecordBatch, LakeError>> {
    const SMALL_ROWS: usize = 2048;
    const GROUP_ROWS: usize = 8192;
    const GROUP_BYTES: usize = 64 << 20;
    let is_small = |batch: &RecordBatch| batch.num_rows() < SMALL_ROWS;
    let mut left = batches.into_iter().peekable();
    std::iter::from_fn(move || {
        let first = left.next()?;
        if !is_small(&first) {
            return Some(Ok(first));
        }
        // A slice's memory is its parent's; counted by rows it would be small again, so that this bounds from above.
        let (mut rows, mut bytes) = (first.num_rows(), first.get_array_memory_size());
        let mut group = vec![first];
        while rows < GROUP_ROWS
            && bytes < GROUP_BYTES
            && let Some(next) = left.next_if(is_small)
        {
            rows += next.num_rows();
            bytes += next.get_array_memory_size();
            group.push(next);
        }
        match group.as_slice() {
            [one] => Some(Ok(one.clone())),
            many => Some(concat_batches(schema, many).map_err(LakeError::invalid)),
        }
    })
}

/// A batch that was read, under exactly the wanted schema, columns by name.
pub(crate) fn conform(batch: &RecordBatch, wanted: &ArrowSchemaRef) -> Result<RecordBatch, String> {
    let mut columns = Vec::with_capacity(wanted.fields().len());
    for field in wanted.fields() {
        let Some(column) = batch.column_by_name(field.name()) else {
            // Nested columns that a file is too old for are not asked of the reader.
            if field.is_nullable() && field.data_type().is_nested() {
                columns.push(new_null_array(field.data_type(), batch.num_rows()));
                continue;
            }
            return Err(format!("the reader gave no column {:?}", field.name()));
        };
        columns.push(retype(column, field.data_type())?);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(wanted), columns, &options).map_err(|e| e.to_string())
}
