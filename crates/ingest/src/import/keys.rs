//! The event keys of rows in columns: the same number for a row as for the record of the same values.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use lakegate_memtable::Value;

use crate::duplicates::key_of;

/// One column's values, one at a time.
enum Column<'a> {
    Text(&'a arrow::array::StringArray),
    Long(&'a arrow::array::Int64Array),
    Int(&'a arrow::array::Int32Array),
    Time(&'a arrow::array::TimestampMicrosecondArray),
    Date(&'a arrow::array::Date32Array),
    Double(&'a arrow::array::Float64Array),
    Float(&'a arrow::array::Float32Array),
    Decimal(&'a arrow::array::Decimal128Array),
    Boolean(&'a arrow::array::BooleanArray),
    Bytes(&'a arrow::array::LargeBinaryArray),
    Map(&'a arrow::array::MapArray),
    Other,
}

impl<'a> Column<'a> {
    fn of(array: &'a ArrayRef) -> Self {
        match array.data_type() {
            DataType::Utf8 => Self::Text(array.as_string()),
            DataType::Int64 => Self::Long(array.as_primitive::<Int64Type>()),
            DataType::Int32 => Self::Int(array.as_primitive::<Int32Type>()),
            DataType::Timestamp(..) => Self::Time(array.as_primitive::<TimestampMicrosecondType>()),
            DataType::Date32 => Self::Date(array.as_primitive::<Date32Type>()),
            DataType::Float64 => Self::Double(array.as_primitive::<Float64Type>()),
            DataType::Float32 => Self::Float(array.as_primitive::<Float32Type>()),
            DataType::Decimal128(..) => Self::Decimal(array.as_primitive::<Decimal128Type>()),
            DataType::Boolean => Self::Boolean(array.as_boolean()),
            DataType::LargeBinary => Self::Bytes(array.as_binary()),
            DataType::Map(..) => Self::Map(array.as_map()),
            _ => Self::Other,
        }
    }

    fn value(&self, row: usize) -> Value<'a> {
        let array: &dyn Array = match self {
            Self::Text(a) => *a,
            Self::Long(a) => *a,
            Self::Int(a) => *a,
            Self::Time(a) => *a,
            Self::Date(a) => *a,
            Self::Double(a) => *a,
            Self::Float(a) => *a,
            Self::Decimal(a) => *a,
            Self::Boolean(a) => *a,
            Self::Bytes(a) => *a,
            Self::Map(a) => *a,
            Self::Other => return Value::Null,
        };
        if array.is_null(row) {
            return Value::Null;
        }
        match self {
            Self::Text(a) => Value::Text(a.value(row)),
            Self::Long(a) => Value::Long(a.value(row)),
            Self::Int(a) => Value::Long(i64::from(a.value(row))),
            Self::Time(a) => Value::Long(a.value(row)),
            Self::Date(a) => Value::Long(i64::from(a.value(row))),
            Self::Double(a) => Value::Double(a.value(row)),
            Self::Float(a) => Value::Double(f64::from(a.value(row))),
            Self::Decimal(a) => Value::Decimal(a.value(row)),
            Self::Boolean(a) => Value::Boolean(a.value(row)),
            Self::Bytes(a) => Value::Bytes(a.value(row)),
            Self::Map(a) => Value::Map(entries(a, row)),
            Self::Other => Value::Null,
        }
    }
}

fn entries(map: &arrow::array::MapArray, row: usize) -> Vec<(&str, &str)> {
    let offsets = map.value_offsets();
    let at = |place: usize| offsets.get(place).and_then(|at| usize::try_from(*at).ok()).unwrap_or_default();
    let (keys, values) = (map.keys().as_string_opt::<i32>(), map.values().as_string_opt::<i32>());
    let (Some(keys), Some(values)) = (keys, values) else { return Vec::new() };
    (at(row)..at(row + 1)).map(|place| (keys.value(place), values.value(place))).collect()
}

/// One key for each row; none for a row that has none of the key's values.
pub(crate) fn row_keys(rows: &RecordBatch, columns: &[usize]) -> Vec<Option<u128>> {
    let key: Vec<Column<'_>> = columns.iter().filter_map(|at| rows.columns().get(*at)).map(Column::of).collect();
    let places: Vec<usize> = (0..key.len()).collect();
    let (mut values, mut scratch) = (Vec::with_capacity(key.len()), Vec::with_capacity(64));
    let mut keys = Vec::with_capacity(rows.num_rows());
    for row in 0..rows.num_rows() {
        values.clear();
        values.extend(key.iter().map(|column| column.value(row)));
        keys.push(key_of(&values, &places, &mut scratch));
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lakegate_model::{Column as ModelColumn, ColumnSource, ColumnType, Contract};

    use super::*;
    use crate::shape::Shaper;

    #[test]
    fn a_row_has_the_key_of_the_record_with_the_same_values() {
        let column = |name: &str, column_type| ModelColumn {
            name: name.to_owned(),
            column_type,
            source: ColumnSource::Path(vec![name.to_owned()]),
            required: false,
        };
        let types = [
            ("a", ColumnType::String),
            ("b", ColumnType::Long),
            ("c", ColumnType::Int),
            ("d", ColumnType::Timestamptz),
            ("e", ColumnType::Date),
            ("f", ColumnType::Double),
            ("g", ColumnType::Decimal { precision: 10, scale: 2 }),
            ("h", ColumnType::Boolean),
            ("i", ColumnType::Binary),
            ("j", ColumnType::StringMap),
        ];
        let contract = Contract {
            columns: types.iter().map(|(name, column_type)| column(name, *column_type)).collect(),
            ..Contract::undeclared_default()
        };
        let records = [
            vec![
                Value::Text("x"),
                Value::Long(-5),
                Value::Long(7),
                Value::Long(1_000_000),
                Value::Long(20_000),
                Value::Double(0.5),
                Value::Decimal(1234),
                Value::Boolean(true),
                Value::Bytes(b"\0\xff"),
                Value::Map(vec![("k", "v"), ("l", "w")]),
            ],
            vec![Value::Null; 10],
            vec![
                Value::Null,
                Value::Long(1),
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Map(vec![]),
            ],
        ];
        let mut rows = Shaper::new(Arc::new(contract)).rows(3);
        records.iter().for_each(|record| rows.push(record).unwrap());
        let rows = rows.finish().unwrap();
        for columns in [(0..10).collect::<Vec<_>>(), vec![9, 0], vec![1]] {
            let expected: Vec<_> = records.iter().map(|record| key_of(record, &columns, &mut Vec::new())).collect();
            assert_eq!(row_keys(&rows, &columns), expected, "{columns:?}");
        }
        assert_eq!(row_keys(&rows, &[0])[1], None);
    }
}
