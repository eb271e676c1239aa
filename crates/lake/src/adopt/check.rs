//! Whether a Parquet file's footer proves that its rows fit a table.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use iceberg::spec::{
    DataContentType, DataFileBuilder, DataFileFormat, Datum, Literal, NestedFieldRef, PartitionField, PrimitiveType,
    Struct, TableMetadata, Transform,
};
use iceberg::transform::create_transform_function;
use parquet::arrow::parquet_to_arrow_schema;
use parquet::basic::{Compression, Type as Physical};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::statistics::Statistics;

use super::{NAME_MAPPING, Obstacle, extend_mapping};
use crate::scan::{Scalar, datum_of};
use crate::write::{ColumnFacts, WritePlan, bound};

/// Longer bounds are left out: they would lie in the manifests as they are.
const MAX_BOUND_BYTES: usize = 128;

/// What is known of a file that is to be adopted.
#[derive(Debug)]
pub struct Footer<'a> {
    /// Its footer.
    pub metadata: &'a ParquetMetaData,
    /// How many bytes the file has.
    pub bytes: u64,
    /// Values that all its rows have of columns that it lacks; only for columns that the table is partitioned by as they
    /// are.
    pub constants: HashMap<String, Scalar>,
}

pub(super) struct Checked {
    pub(super) builder: DataFileBuilder,
    pub(super) partition: Struct,
    pub(super) mapped: bool,
}

/// A column of the file, and the table's.
struct Column {
    field: NestedFieldRef,
    /// Its place among the file's.
    leaf: usize,
    primitive: PrimitiveType,
}

pub(super) fn check(plan: &WritePlan, table: &TableMetadata, footer: &Footer<'_>) -> Result<Checked, Obstacle> {
    check_extent(footer)?;
    let mapped = !has_ids(footer)?;
    if mapped {
        extend_mapping(table.properties().get(NAME_MAPPING), &plan.schema).map_err(|e| Obstacle(e.to_string()))?;
    }
    let columns = columns_of(plan, footer, mapped)?;
    check_missing(plan, footer, &columns)?;
    let partition = partition_of(plan, footer, &columns)?;
    let builder = describe(plan, footer, &columns, &partition);
    Ok(Checked { builder, partition, mapped })
}

/// A footer that does not agree with itself or with the file is not believed.
fn check_extent(footer: &Footer<'_>) -> Result<(), Obstacle> {
    let metadata = footer.metadata;
    let groups = metadata.row_groups();
    let rows = groups.iter().try_fold(0_i64, |sum, g| sum.checked_add(g.num_rows()).filter(|_| g.num_rows() >= 0));
    if rows != Some(metadata.file_metadata().num_rows()) {
        return Err(Obstacle("its footer's row counts do not add up".to_owned()));
    }
    for chunk in groups.iter().flat_map(|g| g.columns()) {
        let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        let end = start.checked_add(chunk.compressed_size()).and_then(|end| u64::try_from(end).ok());
        if start < 4 || chunk.compressed_size() < 0 || end.is_none_or(|end| end > footer.bytes) {
            return Err(Obstacle(format!("its footer places the column {} outside the file", chunk.column_path())));
        }
        if matches!(chunk.compression(), Compression::LZO | Compression::LZ4) {
            return Err(Obstacle(format!("its codec {} is not one that all engines read", chunk.compression())));
        }
    }
    Ok(())
}

/// Whether the columns have field ids: all, or none.
fn has_ids(footer: &Footer<'_>) -> Result<bool, Obstacle> {
    let fields = footer.metadata.file_metadata().schema_descr().root_schema().get_fields();
    let with = fields.iter().filter(|f| f.get_basic_info().has_id()).count();
    match with {
        0 => Ok(false),
        all if all == fields.len() => Ok(true),
        _ => Err(Obstacle("some of its columns have field ids and some have none".to_owned())),
    }
}

fn columns_of(plan: &WritePlan, footer: &Footer<'_>, mapped: bool) -> Result<Vec<Column>, Obstacle> {
    let descriptor = footer.metadata.file_metadata().schema_descr();
    let arrow = parquet_to_arrow_schema(descriptor, None).map_err(|e| Obstacle(format!("its schema: {e}")))?;
    let mut columns: Vec<Column> = Vec::with_capacity(arrow.fields().len());
    for (leaf, (found, node)) in arrow.fields().iter().zip(descriptor.root_schema().get_fields()).enumerate() {
        let name = found.name();
        let Some(field) = plan.schema.as_struct().fields().iter().find(|f| f.name == *name) else {
            return Err(Obstacle(format!("it has the column {name:?}, which the table does not have")));
        };
        if !mapped && node.get_basic_info().id() != field.id {
            let id = node.get_basic_info().id();
            return Err(Obstacle(format!(
                "its column {name:?} has the field id {id}, and the table's has {}",
                field.id
            )));
        }
        let wanted = plan.arrow.field_with_name(name).map(|f| f.data_type().clone());
        let wanted = wanted.map_err(|e| Obstacle(e.to_string()))?;
        let (true, Some(primitive)) = (node.is_primitive(), field.field_type.as_primitive_type()) else {
            return Err(Obstacle(format!("the column {name:?} is nested")));
        };
        let odd_decimal =
            matches!(found.data_type(), DataType::Decimal128(..)) && node.get_physical_type() == Physical::BYTE_ARRAY;
        if !widens(found.data_type(), &wanted) || odd_decimal || node.get_physical_type() == Physical::INT96 {
            return Err(Obstacle(format!(
                "its column {name:?} is of the type {} ({}), and the table's is {}",
                found.data_type(),
                node.get_physical_type(),
                field.field_type
            )));
        }
        if columns.iter().any(|c| c.field.id == field.id) {
            return Err(Obstacle(format!("it has the column {name:?} twice")));
        }
        columns.push(Column { field: Arc::clone(field), leaf, primitive: primitive.clone() });
    }
    Ok(columns)
}

/// Whether engines read the first type as the second by Iceberg's own rules.
fn widens(found: &DataType, wanted: &DataType) -> bool {
    match (found, wanted) {
        (DataType::Int8 | DataType::Int16 | DataType::Int32, DataType::Int32 | DataType::Int64)
        | (DataType::Float32, DataType::Float64)
        | (DataType::Utf8, DataType::LargeUtf8)
        | (DataType::Binary, DataType::LargeBinary) => true,
        (DataType::Timestamp(TimeUnit::Microsecond, found), DataType::Timestamp(TimeUnit::Microsecond, wanted)) => {
            found.is_some() == wanted.is_some()
        }
        (DataType::Decimal128(p, s), DataType::Decimal128(wider, scale)) => s == scale && p <= wider,
        (found, wanted) => found == wanted,
    }
}

/// Columns that the file lacks, and nulls where there may be none.
fn check_missing(plan: &WritePlan, footer: &Footer<'_>, columns: &[Column]) -> Result<(), Obstacle> {
    for field in plan.schema.as_struct().fields() {
        let name = &field.name;
        let column = columns.iter().find(|c| c.field.id == field.id);
        if footer.constants.contains_key(name) {
            let by_itself =
                plan.spec.fields().iter().any(|f| f.source_id == field.id && f.transform == Transform::Identity);
            if column.is_some() || !by_itself {
                return Err(Obstacle(format!(
                    "the column {name:?} is given one value for all rows, and {}",
                    if column.is_some() { "the file has it" } else { "the table is not partitioned by it as it is" }
                )));
            }
        } else if field.required {
            let Some(column) = column else {
                return Err(Obstacle(format!("it lacks the column {name:?}, which every row must have")));
            };
            if !chunks(footer, column).all(is_full) {
                return Err(Obstacle(format!("its footer does not show that every row has the column {name:?}")));
            }
        }
    }
    if let Some(unknown) = footer.constants.keys().find(|n| plan.schema.field_by_name(n).is_none()) {
        return Err(Obstacle(format!("the table has no column {unknown:?}")));
    }
    Ok(())
}

fn chunks<'a>(footer: &'a Footer<'_>, column: &Column) -> impl Iterator<Item = &'a ColumnChunkMetaData> {
    let leaf = column.leaf;
    footer.metadata.row_groups().iter().filter_map(move |g| g.columns().get(leaf))
}

fn is_full(chunk: &ColumnChunkMetaData) -> bool {
    let required = chunk.column_descr().max_def_level() == 0;
    required || chunk.statistics().and_then(Statistics::null_count_opt) == Some(0)
}

/// The one partition of all rows.
fn partition_of(plan: &WritePlan, footer: &Footer<'_>, columns: &[Column]) -> Result<Struct, Obstacle> {
    let mut values: Vec<Option<Literal>> = Vec::new();
    for part in plan.spec.fields() {
        let name = plan.schema.name_by_field_id(part.source_id).unwrap_or(&part.name);
        let value = match (footer.constants.get(name), columns.iter().find(|c| c.field.id == part.source_id)) {
            (Some(constant), _) => Some(constant_of(plan, part, name, constant)?),
            // A column that the file lacks is null in every row.
            (None, None) => None,
            (None, Some(column)) => one_value(footer, column, part)?,
        };
        values.push(value.map(|datum| Literal::Primitive(datum.literal().clone())));
    }
    Ok(Struct::from_iter(values))
}

fn constant_of(plan: &WritePlan, part: &PartitionField, name: &str, constant: &Scalar) -> Result<Datum, Obstacle> {
    let field = plan.schema.field_by_id(part.source_id);
    let datum = field.and_then(|f| f.field_type.as_primitive_type()).and_then(|p| datum_of(p, constant));
    datum.ok_or_else(|| Obstacle(format!("the value {constant:?} does not fit the column {name:?}")))
}

/// The partition value that the least and the greatest value agree on. Bounds may be wider than the values; transforms
/// that keep order give all values between them the same.
fn one_value(footer: &Footer<'_>, column: &Column, part: &PartitionField) -> Result<Option<Datum>, Obstacle> {
    let name = &column.field.name;
    let many = |why: &str| Obstacle(format!("its rows are not shown to be of one partition by {name:?}: {why}"));
    let rows = u64::try_from(footer.metadata.file_metadata().num_rows()).unwrap_or_default();
    let nulls: Option<u64> =
        chunks(footer, column).map(|c| if is_full(c) { Some(0) } else { c.statistics()?.null_count_opt() }).sum();
    match nulls {
        Some(nulls) if nulls == rows => return Ok(None),
        Some(0) => {}
        Some(_) => return Err(many("some have no value")),
        None => return Err(many("the footer does not count nulls")),
    }
    let transform = create_transform_function(&part.transform).map_err(|e| Obstacle(e.to_string()))?;
    let keeps_order = matches!(
        part.transform,
        Transform::Identity
            | Transform::Truncate(_)
            | Transform::Year
            | Transform::Month
            | Transform::Day
            | Transform::Hour
    );
    let mut found: Option<Datum> = None;
    for chunk in chunks(footer, column) {
        let (low, high) = ends(column, chunk).ok_or_else(|| many("the footer has no bounds of it"))?;
        if !keeps_order && low != high {
            return Err(many("it has more than one value"));
        }
        for end in [low, high] {
            let value = transform.transform_literal(&end).map_err(|e| Obstacle(e.to_string()))?;
            let value = value.ok_or_else(|| many("a value has no partition"))?;
            match &found {
                Some(known) if *known != value => return Err(many(&format!("it has {known} and {value}"))),
                _ => found = Some(value),
            }
        }
    }
    Ok(found)
}

fn ends(column: &Column, chunk: &ColumnChunkMetaData) -> Option<(Datum, Datum)> {
    let statistics = chunk.statistics().filter(|s| is_trusted(s))?;
    let low = bound(&column.primitive, statistics, statistics.min_bytes_opt())?;
    let high = bound(&column.primitive, statistics, statistics.max_bytes_opt())?;
    Some((low, high))
}

/// The old bounds of bytes were compared as if they were signed.
fn is_trusted(statistics: &Statistics) -> bool {
    let bytes = matches!(statistics, Statistics::ByteArray(_) | Statistics::FixedLenByteArray(_));
    !(bytes && statistics.is_min_max_deprecated())
}

fn describe(plan: &WritePlan, footer: &Footer<'_>, columns: &[Column], partition: &Struct) -> DataFileBuilder {
    let mut facts = ColumnFacts::default();
    for column in columns {
        let id = column.field.id;
        for chunk in chunks(footer, column) {
            let statistics = chunk.statistics();
            let usable = statistics.filter(|s| {
                let short = |b: Option<&[u8]>| b.is_none_or(|b| b.len() <= MAX_BOUND_BYTES);
                is_trusted(s) && short(s.min_bytes_opt()) && short(s.max_bytes_opt())
            });
            facts.add(id, Some(column.primitive.clone()), chunk.compressed_size(), chunk.num_values(), usable);
            if usable.is_none() {
                facts.leave_unbounded(id);
            }
            if usable.and_then(Statistics::null_count_opt).is_none() {
                facts.leave_uncounted(id);
            }
        }
    }
    let groups = footer.metadata.row_groups();
    let offsets = groups.iter().filter_map(|g| g.columns().first()).map(|c| c.byte_range().0);
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_format(DataFileFormat::Parquet)
        .partition(partition.clone())
        .partition_spec_id(plan.spec.spec_id())
        .record_count(u64::try_from(footer.metadata.file_metadata().num_rows()).unwrap_or_default())
        .file_size_in_bytes(footer.bytes)
        .split_offsets(Some(offsets.filter_map(|o| i64::try_from(o).ok()).collect()));
    facts.describe(&mut builder);
    builder
}
