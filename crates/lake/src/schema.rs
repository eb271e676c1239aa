//! From a stream's contract to an Iceberg table: schema, partitioning, sort order and properties; and what a table lacks
//! of a contract.
//!
//! Columns of a contract that a table lacks are added as optional columns under new ids; a column that the contract no
//! longer requires becomes optional; one that is wider in the contract becomes wider, where Iceberg allows it ("Schema
//! Evolution"); nothing is ever removed, renamed or made narrower.

use std::collections::HashMap;
use std::sync::Arc;

use iceberg::TableCreation;
use iceberg::spec::{
    FormatVersion, ListType, MapType, NestedField, NestedFieldRef, NullOrder, PrimitiveType, Schema, SortDirection,
    SortField as IcebergSortField, SortOrder, StructType, TableMetadata, Transform as IcebergTransform, Type,
    UnboundPartitionSpec,
};
use lakegate_model::{Column, ColumnType, Contract, Nested, Transform};

use crate::error::LakeError;
use crate::options::Compression;

/// How many snapshots a table keeps; older ones are expired by the commits that go past it.
pub(crate) const SNAPSHOTS_KEEP: &str = "lakegate.snapshots.keep";
/// What [`SNAPSHOTS_KEEP`] is where neither the table nor the configuration says: every commit writes all of them anew.
pub(crate) const DEFAULT_SNAPSHOTS_KEEP: usize = 30;

/// The creation of a contract's table.
pub(crate) fn creation_of(
    name: &str,
    contract: &Contract,
    compression: Compression,
    target_file_bytes: u64,
    snapshots_keep: usize,
) -> Result<TableCreation, LakeError> {
    let schema = schema_of(contract)?;
    let spec = spec_of(contract, &schema)?;
    let order = order_of(contract, &schema)?;
    let creation = TableCreation::builder()
        .name(name.to_owned())
        .schema(schema)
        .partition_spec(spec)
        .sort_order_opt(order)
        .properties(properties_of(compression, target_file_bytes, snapshots_keep))
        .format_version(FormatVersion::V2);
    Ok(creation.build())
}

fn schema_of(contract: &Contract) -> Result<Schema, LakeError> {
    let mut next_id = i32::try_from(contract.columns.len()).unwrap_or(i32::MAX);
    let mut fields: Vec<NestedFieldRef> = Vec::with_capacity(contract.columns.len());
    for (id, column) in (1..).zip(&contract.columns) {
        let field_type = type_of(column.column_type, &mut next_id);
        fields.push(Arc::new(NestedField::new(id, &column.name, field_type, column.required)));
    }
    Schema::builder().with_fields(fields).build().map_err(LakeError::from_contract)
}

/// The Iceberg type; a nested type takes its ids from `last_id`.
fn type_of(column_type: ColumnType, last_id: &mut i32) -> Type {
    let mut take = || {
        *last_id = last_id.saturating_add(1);
        *last_id
    };
    Type::Primitive(match column_type {
        ColumnType::Boolean => PrimitiveType::Boolean,
        ColumnType::Int => PrimitiveType::Int,
        ColumnType::Long => PrimitiveType::Long,
        ColumnType::Float => PrimitiveType::Float,
        ColumnType::Double => PrimitiveType::Double,
        ColumnType::Decimal { precision, scale } => {
            PrimitiveType::Decimal { precision: u32::from(precision), scale: u32::from(scale) }
        }
        ColumnType::Date => PrimitiveType::Date,
        ColumnType::Timestamp => PrimitiveType::Timestamp,
        ColumnType::Timestamptz => PrimitiveType::Timestamptz,
        ColumnType::String | ColumnType::Json => PrimitiveType::String,
        ColumnType::Binary => PrimitiveType::Binary,
        ColumnType::StringMap => {
            let text = || Type::Primitive(PrimitiveType::String);
            return Type::Map(MapType::optional(take(), text(), take(), text()));
        }
        ColumnType::Nested(nested) => return nested_type(nested, last_id),
    })
}

/// A struct's, list's or map's ids come before those of the types inside it.
fn nested_type(nested: &Nested, last_id: &mut i32) -> Type {
    let mut take = || {
        *last_id = last_id.saturating_add(1);
        *last_id
    };
    match nested {
        Nested::Struct(fields) => {
            let ids: Vec<i32> = fields.iter().map(|_| take()).collect();
            let field = |(id, (name, inner)): (i32, &(String, ColumnType))| {
                Arc::new(NestedField::optional(id, name, type_of(*inner, last_id)))
            };
            Type::Struct(StructType::new(ids.into_iter().zip(fields).map(field).collect()))
        }
        Nested::List(element) => {
            let id = take();
            Type::List(ListType::new(NestedField::list_element(id, type_of(*element, last_id), false).into()))
        }
        Nested::Map(key, value) => {
            let (key_id, value_id) = (take(), take());
            let key = NestedField::map_key_element(key_id, type_of(*key, last_id));
            let value = NestedField::map_value_element(value_id, type_of(*value, last_id), false);
            Type::Map(MapType::new(key.into(), value.into()))
        }
    }
}

fn transform_of(transform: Transform) -> IcebergTransform {
    match transform {
        Transform::Identity => IcebergTransform::Identity,
        Transform::Year => IcebergTransform::Year,
        Transform::Month => IcebergTransform::Month,
        Transform::Day => IcebergTransform::Day,
        Transform::Hour => IcebergTransform::Hour,
        Transform::Bucket(n) => IcebergTransform::Bucket(n),
        Transform::Truncate(width) => IcebergTransform::Truncate(width),
    }
}

/// A partition field's name, as other engines name them: `event_time_day`, `tenant_id`. Manifests are Avro, which takes
/// letters, digits and `_` alone: `_timestamp_day` of `@timestamp`.
fn partition_name(column: &str, transform: Transform) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let mut column: String = column.chars().map(plain).collect();
    if column.starts_with(|c: char| c.is_ascii_digit()) {
        column.insert(0, '_');
    }
    match transform {
        Transform::Identity => column,
        Transform::Year => format!("{column}_year"),
        Transform::Month => format!("{column}_month"),
        Transform::Day => format!("{column}_day"),
        Transform::Hour => format!("{column}_hour"),
        Transform::Bucket(_) => format!("{column}_bucket"),
        Transform::Truncate(_) => format!("{column}_trunc"),
    }
}

fn spec_of(contract: &Contract, schema: &Schema) -> Result<UnboundPartitionSpec, LakeError> {
    let mut builder = UnboundPartitionSpec::builder();
    for field in &contract.partitions {
        let id = field_id(schema, &field.column)?;
        let name = partition_name(&field.column, field.transform);
        builder =
            builder.add_partition_field(id, name, transform_of(field.transform)).map_err(LakeError::from_contract)?;
    }
    Ok(builder.build())
}

fn order_of(contract: &Contract, schema: &Schema) -> Result<Option<SortOrder>, LakeError> {
    if contract.sort.is_empty() {
        return Ok(None);
    }
    let mut builder = SortOrder::builder();
    for field in &contract.sort {
        let (direction, null_order) = match field.descending {
            false => (SortDirection::Ascending, NullOrder::First),
            true => (SortDirection::Descending, NullOrder::Last),
        };
        let source_id = field_id(schema, &field.column)?;
        builder.with_sort_field(
            IcebergSortField::builder()
                .source_id(source_id)
                .transform(IcebergTransform::Identity)
                .direction(direction)
                .null_order(null_order)
                .build(),
        );
    }
    builder.build(schema).map(Some).map_err(LakeError::from_contract)
}

fn field_id(schema: &Schema, column: &str) -> Result<i32, LakeError> {
    let missing =
        || LakeError::Contract(format!("the column {column:?} is used for partitions or sorting and is not declared"));
    schema.field_id_by_name(column).ok_or_else(missing)
}

fn properties_of(compression: Compression, target_file_bytes: u64, snapshots_keep: usize) -> HashMap<String, String> {
    [
        ("write.format.default", "parquet".to_owned()),
        ("write.parquet.compression-codec", compression.table_property().to_owned()),
        ("write.target-file-size-bytes", target_file_bytes.to_string()),
        ("write.metadata.delete-after-commit.enabled", "true".to_owned()),
        ("write.metadata.previous-versions-max", "30".to_owned()),
        (SNAPSHOTS_KEEP, snapshots_keep.to_string()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v))
    .collect()
}

/// The schema that the table needs so that the contract's rows fit; none if it has it.
pub(crate) fn missing_schema(metadata: &TableMetadata, contract: &Contract) -> Result<Option<Schema>, LakeError> {
    let current = metadata.current_schema();
    let mut last_id = metadata.last_column_id();
    let mut fields: Vec<NestedFieldRef> = current.as_struct().fields().to_vec();
    let mut changed = false;
    for column in &contract.columns {
        let place = fields.iter_mut().find(|f| f.name == column.name);
        match place {
            Some(field) => changed |= relax(field, column)?,
            None => {
                last_id = last_id.saturating_add(1);
                let id = last_id;
                let field_type = type_of(column.column_type, &mut last_id);
                fields.push(Arc::new(NestedField::optional(id, &column.name, field_type)));
                changed = true;
            }
        }
    }
    if !changed {
        return Ok(None);
    }
    let schema = Schema::builder()
        .with_fields(fields)
        .with_identifier_field_ids(current.identifier_field_ids())
        .build()
        .map_err(LakeError::from_contract)?;
    Ok(Some(schema))
}

/// Checks that the column's values fit the table's field; makes the field optional where the contract is, and wider
/// where the contract is and may be.
fn relax(field: &mut NestedFieldRef, column: &Column) -> Result<bool, LakeError> {
    let wider = match fits(&field.field_type, column.column_type) {
        true => None,
        false => Some(promoted(&field.field_type, column.column_type).ok_or_else(|| misfit(field, column))?),
    };
    let relaxes = field.required && !column.required;
    if wider.is_none() && !relaxes {
        return Ok(false);
    }
    let mut relaxed = field.as_ref().clone();
    relaxed.required &= column.required;
    if let Some(wider) = wider {
        relaxed.field_type = Box::new(wider);
    }
    *field = Arc::new(relaxed);
    Ok(true)
}

fn misfit(field: &NestedFieldRef, column: &Column) -> LakeError {
    LakeError::Contract(format!(
        "the column {:?} is {} in the table and {} in the contract; declare it as the table has it, or under another name",
        column.name,
        field.field_type,
        column.column_type.name(),
    ))
}

/// The contract's type, if the table's may become it.
fn promoted(table: &Type, column: ColumnType) -> Option<Type> {
    let Type::Primitive(table) = table else { return None };
    let may = match (table, column) {
        (PrimitiveType::Int, ColumnType::Long) | (PrimitiveType::Float, ColumnType::Double) => true,
        (PrimitiveType::Decimal { precision, scale }, ColumnType::Decimal { precision: p, scale: s }) => {
            *scale == u32::from(s) && *precision < u32::from(p)
        }
        _ => false,
    };
    may.then(|| type_of(column, &mut 0))
}

/// Whether every value of the contract's type has a place in the table's type.
fn fits(table: &Type, column: ColumnType) -> bool {
    let table = match (table, column) {
        (Type::Primitive(table), _) => table,
        (Type::Map(_), ColumnType::StringMap) => return true,
        (Type::Map(map), ColumnType::Nested(Nested::Map(key, value))) => {
            return fits(&map.key_field.field_type, *key) && fits(&map.value_field.field_type, *value);
        }
        (Type::List(list), ColumnType::Nested(Nested::List(element))) => {
            return fits(&list.element_field.field_type, *element);
        }
        (Type::Struct(table), ColumnType::Nested(Nested::Struct(fields))) => {
            let pairs = || table.fields().iter().zip(fields);
            return table.fields().len() == fields.len()
                && pairs().all(|(field, (name, inner))| field.name == *name && fits(&field.field_type, *inner));
        }
        _ => return false,
    };
    match (table, column) {
        (PrimitiveType::Long, ColumnType::Int) | (PrimitiveType::Double, ColumnType::Float) => true,
        (PrimitiveType::Decimal { precision, scale }, ColumnType::Decimal { precision: p, scale: s }) => {
            *scale == u32::from(s) && *precision >= u32::from(p)
        }
        _ => matches!(type_of(column, &mut 0), Type::Primitive(same) if same == *table),
    }
}
