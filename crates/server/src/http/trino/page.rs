//! Rows as Trino's clients read them: JSON arrays, and types by their signatures.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use lakegate_query::{QueryError, QueryResult};
use serde_json::{Map, Value, json};

use crate::statements::trino_type;

/// A page's most rows, and about its most bytes.
const PAGE_ROWS: u64 = 8192;
const PAGE_BYTES: usize = 1 << 20;

/// Some rows.
pub(super) struct Taken {
    pub(super) data: Vec<Value>,
    pub(super) rows: u64,
    pub(super) is_last: bool,
}

/// The next page of a result.
pub(super) async fn take(result: &mut QueryResult) -> Result<Taken, QueryError> {
    let mut taken = Taken { data: Vec::new(), rows: 0, is_last: false };
    let mut bytes = 0;
    while taken.rows < PAGE_ROWS && bytes < PAGE_BYTES {
        match result.stream.next().await {
            Some(Ok(batch)) => {
                bytes += batch.get_array_memory_size();
                taken.rows += batch.num_rows() as u64;
                taken.data.extend(rows(&batch).map_err(|error| QueryError::Failed(error.to_string()))?);
            }
            Some(Err(error)) => return Err(error),
            None => {
                taken.is_last = true;
                break;
            }
        }
    }
    Ok(taken)
}

/// The columns with their types.
pub(super) fn columns(schema: &Schema) -> Value {
    let column = |field: &std::sync::Arc<Field>| {
        json!({
            "name": field.name(),
            "type": trino_type(field.data_type()),
            "typeSignature": signature(field.data_type()),
        })
    };
    Value::Array(schema.fields().iter().map(column).collect())
}

fn long(value: impl Into<Value>) -> Value {
    json!({ "kind": "LONG", "value": value.into() })
}

fn signature(found: &DataType) -> Value {
    let of_type = |inner: &DataType| json!({ "kind": "TYPE", "value": signature(inner) });
    let name = trino_type(found);
    let raw = |raw: &str, arguments: Vec<Value>| json!({ "rawType": raw, "arguments": arguments });
    match found {
        DataType::UInt64 => raw("decimal", vec![long(20), long(0)]),
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s) => raw("decimal", vec![long(*p), long(*s)]),
        DataType::Timestamp(unit, zone) => {
            let digits = match unit {
                TimeUnit::Second => 0,
                TimeUnit::Millisecond => 3,
                TimeUnit::Microsecond | TimeUnit::Nanosecond => 6,
            };
            raw(if zone.is_some() { "timestamp with time zone" } else { "timestamp" }, vec![long(digits)])
        }
        DataType::Time32(_) | DataType::Time64(_) => raw("time", vec![long(6)]),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            raw("array", vec![of_type(item.data_type())])
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) => raw("map", fields.iter().map(|field| of_type(field.data_type())).collect()),
            _ => raw("varchar", vec![long(i32::MAX)]),
        },
        DataType::Struct(fields) => {
            let named = fields.iter().map(|field| {
                let value =
                    json!({ "fieldName": { "name": field.name() }, "typeSignature": signature(field.data_type()) });
                json!({ "kind": "NAMED_TYPE", "value": value })
            });
            raw("row", named.collect())
        }
        DataType::Dictionary(_, values) => signature(values),
        _ if name == "varchar" => raw("varchar", vec![long(i32::MAX)]),
        _ => raw(&name, Vec::new()),
    }
}

fn rows(batch: &RecordBatch) -> Result<Vec<Value>, ArrowError> {
    let columns = batch.columns().iter().map(values).collect::<Result<Vec<_>, _>>()?;
    let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
    let row = |_| Value::Array(columns.iter_mut().map(|column| column.next().unwrap_or(Value::Null)).collect());
    Ok((0..batch.num_rows()).map(row).collect())
}

/// The values of a column.
fn values(array: &ArrayRef) -> Result<Vec<Value>, ArrowError> {
    let all = 0..array.len();
    let each = |value: &dyn Fn(usize) -> Value| -> Vec<Value> {
        all.clone().map(|row| if array.is_null(row) { Value::Null } else { value(row) }).collect()
    };
    Ok(match array.data_type() {
        DataType::Null => vec![Value::Null; array.len()],
        DataType::Boolean => each(&|row| array.as_boolean().value(row).into()),
        DataType::Utf8 => each(&|row| array.as_string::<i32>().value(row).into()),
        kind if kind.is_integer() && *kind != DataType::UInt64 => {
            let cast = cast(array, &DataType::Int64)?;
            let numbers = cast.as_primitive::<arrow::datatypes::Int64Type>();
            each(&|row| numbers.value(row).into())
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let is_single = *array.data_type() != DataType::Float64;
            let cast = cast(array, &DataType::Float64)?;
            let numbers = cast.as_primitive::<arrow::datatypes::Float64Type>();
            each(&|row| real(numbers.value(row), is_single))
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            let cast = cast(array, &DataType::LargeBinary)?;
            let bytes = cast.as_binary::<i64>();
            each(&|row| STANDARD.encode(bytes.value(row)).into())
        }
        DataType::Dictionary(_, inner) => values(&cast(array, inner)?)?,
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => lists(array)?,
        DataType::Struct(_) => {
            let fields = array.as_struct().columns().iter().map(values).collect::<Result<Vec<_>, _>>()?;
            let at = |column: &Vec<Value>, row: usize| column.get(row).cloned().unwrap_or(Value::Null);
            each(&|row| Value::Array(fields.iter().map(|column| at(column, row)).collect()))
        }
        DataType::Map(..) => maps(array)?,
        _ => texts(array)?,
    })
}

fn real(value: f64, is_single: bool) -> Value {
    match value {
        value if value.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        #[allow(clippy::cast_possible_truncation, reason = "it was single before")]
        value if is_single => (value as f32).to_string().parse::<f64>().unwrap_or(value).into(),
        value => value.into(),
    }
}

fn lists(array: &ArrayRef) -> Result<Vec<Value>, ArrowError> {
    let one = |row: usize| -> Result<Value, ArrowError> {
        if array.is_null(row) {
            return Ok(Value::Null);
        }
        let items = match array.data_type() {
            DataType::LargeList(_) => array.as_list::<i64>().value(row),
            DataType::FixedSizeList(..) => array.as_fixed_size_list().value(row),
            _ => array.as_list::<i32>().value(row),
        };
        values(&items).map(Value::Array)
    };
    (0..array.len()).map(one).collect()
}

fn maps(array: &ArrayRef) -> Result<Vec<Value>, ArrowError> {
    let one = |row: usize| -> Result<Value, ArrowError> {
        if array.is_null(row) {
            return Ok(Value::Null);
        }
        let entries = array.as_map().value(row);
        let [keys, items] = entries.columns() else { return Ok(Value::Null) };
        let key = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let pairs = values(keys)?.into_iter().map(key).zip(values(items)?);
        Ok(Value::Object(pairs.collect::<Map<_, _>>()))
    };
    (0..array.len()).map(one).collect()
}

/// Dates, times, decimals and the rest as texts.
fn texts(array: &ArrayRef) -> Result<Vec<Value>, ArrowError> {
    let (micros, in_utc) = match array.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, None) => {
            (Some(DataType::Timestamp(TimeUnit::Microsecond, None)), false)
        }
        DataType::Timestamp(unit, Some(_)) => {
            let unit = if *unit == TimeUnit::Nanosecond { TimeUnit::Microsecond } else { *unit };
            (Some(DataType::Timestamp(unit, Some("+00:00".into()))), true)
        }
        _ => (None, false),
    };
    let array = match micros {
        Some(kind) => &cast(array, &kind)?,
        None => array,
    };
    let digits = match array.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => "%Y-%m-%d %H:%M:%S",
        DataType::Timestamp(TimeUnit::Millisecond, _) => "%Y-%m-%d %H:%M:%S%.3f",
        _ => "%Y-%m-%d %H:%M:%S%.6f",
    };
    let zoned = format!("{digits} UTC");
    let options = FormatOptions::default()
        .with_timestamp_format(Some(digits))
        .with_timestamp_tz_format(Some(if in_utc { &zoned } else { digits }))
        .with_time_format(Some("%H:%M:%S%.6f"));
    let formatter = ArrayFormatter::try_new(array, &options)?;
    let one = |row: usize| -> Result<Value, ArrowError> {
        Ok(if array.is_null(row) { Value::Null } else { formatter.value(row).try_to_string()?.into() })
    };
    (0..array.len()).map(one).collect()
}
