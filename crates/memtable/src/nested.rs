//! Columns of structs, lists and maps: values come as JSON and become an array when the column is finished.

use std::sync::Arc;

use arrow::array::{ArrayRef, new_null_array};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use lakegate_model::Nested;

use crate::rows::arrow_type;

/// The Arrow type, with the names inside that Iceberg's Arrow mapping uses.
pub(crate) fn nested_type(nested: &Nested) -> DataType {
    match nested {
        Nested::Struct(fields) => {
            let field = |(name, column_type): &(String, _)| Field::new(name, arrow_type(*column_type), true);
            DataType::Struct(fields.iter().map(field).collect())
        }
        Nested::List(element) => DataType::List(Arc::new(Field::new("element", arrow_type(*element), true))),
        Nested::Map(key, value) => {
            let entries = Fields::from(vec![
                Field::new("key", arrow_type(*key), false),
                Field::new("value", arrow_type(*value), true),
            ]);
            DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(entries), false)), false)
        }
    }
}

/// The builder of such a column.
#[derive(Debug)]
pub struct NestedBuilder {
    data_type: DataType,
    /// One object for each row, with the value as its only member.
    lines: Vec<u8>,
    rows: usize,
}

impl NestedBuilder {
    pub(crate) fn new(data_type: DataType) -> Self {
        Self { data_type, lines: Vec::new(), rows: 0 }
    }

    /// Appends a value that [`check_nested`] has passed.
    pub(crate) fn push(&mut self, json: Option<&str>) {
        add_line(&mut self.lines, json);
        self.rows += 1;
    }

    pub(crate) fn text_bytes(&self) -> usize {
        self.lines.len()
    }

    pub(crate) fn finish(&mut self) -> ArrayRef {
        let array = self.finish_cloned();
        self.lines.clear();
        self.rows = 0;
        array
    }

    pub(crate) fn finish_cloned(&self) -> ArrayRef {
        // Every line was read alone before it came here.
        read(&self.lines, self.rows, &self.data_type).unwrap_or_else(|_| new_null_array(&self.data_type, self.rows))
    }
}

/// Whether a JSON value is one of the type: with no member that the type does not have.
///
/// # Errors
/// What does not fit.
pub fn check_nested(json: &str, data_type: &DataType) -> Result<(), ArrowError> {
    let mut line = Vec::with_capacity(json.len() + 8);
    add_line(&mut line, Some(json));
    read(&line, 1, data_type).map(drop)
}

fn add_line(lines: &mut Vec<u8>, json: Option<&str>) {
    match json {
        Some(json) => [b"{\"v\":", json.as_bytes(), b"}\n"].iter().for_each(|part| lines.extend_from_slice(part)),
        None => lines.extend_from_slice(b"{}\n"),
    }
}

fn read(mut lines: &[u8], rows: usize, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    if rows == 0 {
        return Ok(new_null_array(data_type, 0));
    }
    let schema = Arc::new(Schema::new(vec![Field::new("v", data_type.clone(), true)]));
    let mut decoder = ReaderBuilder::new(schema).with_strict_mode(true).with_batch_size(rows).build_decoder()?;
    while !lines.is_empty() {
        let taken = decoder.decode(lines)?;
        lines = lines.get(taken..).unwrap_or_default();
        if taken == 0 {
            break;
        }
    }
    let array = decoder.flush()?.and_then(|batch| batch.columns().first().cloned());
    let wrong = || ArrowError::JsonError("another number of values than rows".to_owned());
    array.filter(|array| array.len() == rows).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;
    use lakegate_model::ColumnType;

    use super::*;

    #[test]
    fn json_becomes_structs_lists_and_maps_and_what_does_not_fit_is_refused() {
        let parse = |text: &str| ColumnType::parse(text).unwrap_or(ColumnType::Json);
        let column_type = parse("struct<a: long, b: list<string>, c: map<string, double>>");
        let data_type = arrow_type(column_type);
        let fits = |json: &str| check_nested(json, &data_type).is_ok();
        assert!(fits("{\"a\": 1, \"b\": [\"x\", null],\n \"c\": {\"k\": 1.5}}"));
        for bad in ["{\"a\":\"x\"}", "{\"z\":1}", "[1]", "7", "{\"b\":[{}]}"] {
            assert!(!fits(bad), "{bad} was taken");
        }
        let mut builder = NestedBuilder::new(data_type.clone());
        for json in [Some("{\"a\":1}"), None, Some("{\"b\":[\"x\"]}")] {
            builder.push(json);
        }
        let array = builder.finish();
        assert_eq!((array.len(), array.null_count(), array.data_type()), (3, 1, &data_type));
        assert_eq!(builder.finish().len(), 0);
    }
}
