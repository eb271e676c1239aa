//! Rows of the log or of a table as what is sent on: their JSON, their event as it came, their key.
//!
//! A record's key is the same however often and by whichever way it is read: it follows from tenant, stream and the
//! values of the contract's event key, else from the event's id. Rows of a contract that has neither are told apart by
//! their place (the log and offset, or the table's file and row).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{
    DataType, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine;
use lakegate_model::{ColumnSource, ColumnType, Contract, Field, StreamKey};
use serde_json::{Map, Number, Value};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

/// Rows of one stream that came together.
#[derive(Debug, Clone)]
pub struct Rows {
    /// Whose, and which.
    pub key: StreamKey,
    /// The contract that names the columns.
    pub contract: Arc<Contract>,
    /// The rows.
    pub batch: RecordBatch,
    /// Where they are from: the first part of the keys of rows that have no key of their own.
    pub place: Arc<str>,
    /// Where in `place` each row lies; empty: the first is 0, and so on.
    pub numbers: Vec<u32>,
    /// When the request came, in microseconds since 1970; for rows of a table, 0: the row itself may tell.
    pub received_us: i64,
    /// What ties the request to others in logs and traces; empty: nothing.
    pub correlation_id: Arc<str>,
}

impl Rows {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.batch.num_rows()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// About how many bytes they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.batch.get_array_memory_size()
    }

    fn number(&self, row: usize) -> u32 {
        self.numbers.get(row).copied().unwrap_or_else(|| u32::try_from(row).unwrap_or(u32::MAX))
    }

    /// Those rows for which `keep` says so.
    pub(crate) fn filtered(self, keep: &BooleanArray) -> Result<Self, arrow::error::ArrowError> {
        if keep.true_count() == self.len() {
            return Ok(self);
        }
        let numbers = (0..self.len()).filter(|row| keep.value(*row)).map(|row| self.number(row)).collect();
        Ok(Self { batch: filter_record_batch(&self.batch, keep)?, numbers, ..self })
    }

    /// One of them.
    pub(crate) fn one(&self, row: usize) -> Self {
        Self { batch: self.batch.slice(row, 1), numbers: vec![self.number(row)], ..self.clone() }
    }

    /// Their columns as an Arrow stream in Base64.
    pub(crate) fn cells(&self) -> String {
        let mut bytes = Vec::new();
        let written = StreamWriter::try_new(&mut bytes, &self.batch.schema())
            .and_then(|mut writer| writer.write(&self.batch).and_then(|()| writer.finish()));
        match written {
            Ok(()) => base64::engine::general_purpose::STANDARD.encode(bytes),
            Err(_) => String::new(),
        }
    }

    /// Rows from [`Rows::cells`].
    pub(crate) fn of_cells(cells: &str, key: StreamKey, contract: Arc<Contract>) -> Result<Self, String> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(cells).map_err(|error| error.to_string())?;
        let mut batches = StreamReader::try_new(bytes.as_slice(), None).map_err(|error| error.to_string())?;
        let batch = batches.next().ok_or("its columns were not kept")?.map_err(|error| error.to_string())?;
        let (place, correlation_id) = ("".into(), "".into());
        Ok(Self { key, contract, batch, place, numbers: Vec::new(), received_us: 0, correlation_id })
    }

    /// The column that has the event's type.
    pub(crate) fn event_types(&self) -> Option<&ArrayRef> {
        let contract = &self.contract;
        let is_type = |source: &ColumnSource| match source {
            ColumnSource::Envelope(field) => *field == Field::EventType,
            ColumnSource::Path(path) => contract.event_type_paths.contains(path),
        };
        let column = contract.columns.iter().find(|column| {
            is_type(&column.source)
                || contract.rules_of(&column.name).and_then(|r| r.or_envelope) == Some(Field::EventType)
        })?;
        self.batch.column_by_name(&column.name)
    }

    /// When each row was received, by its own column where there is one.
    pub(crate) fn received_us(&self, row: usize) -> i64 {
        if self.received_us != 0 {
            return self.received_us;
        }
        let source = ColumnSource::Envelope(Field::ReceivedAt);
        let column = self.contract.columns.iter().find(|column| column.source == source);
        let column = column.and_then(|column| self.batch.column_by_name(&column.name));
        let column = column.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        column.filter(|column| column.is_valid(row)).map_or(0, |column| column.value(row))
    }

    /// Each row's key: 32 hexadecimal figures.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let named: Vec<&ArrayRef> = self.key_columns();
        let format = FormatOptions::default();
        let columns: Vec<KeyColumn<'_>> = named.into_iter().filter_map(|c| KeyColumn::new(c, &format)).collect();
        let mut start = Xxh3::new();
        for part in [self.key.tenant.as_str(), self.key.stream.as_str()] {
            put(&mut start, part.as_bytes());
        }
        let key = |row| {
            let mut hash = start.clone();
            if columns.is_empty() {
                put(&mut hash, self.place.as_bytes());
                put(&mut hash, &self.number(row).to_le_bytes());
            }
            columns.iter().for_each(|column| column.put(&mut hash, row));
            Uuid::from_u128(hash.digest128()).simple().encode_lower(&mut Uuid::encode_buffer()).to_owned()
        };
        (0..self.len()).map(key).collect()
    }

    fn key_columns(&self) -> Vec<&ArrayRef> {
        let contract = &self.contract;
        let declared: Vec<&ArrayRef> =
            contract.event_key.iter().filter_map(|name| self.batch.column_by_name(name)).collect();
        if !declared.is_empty() && declared.len() == contract.event_key.len() {
            return declared;
        }
        let source = ColumnSource::Envelope(Field::EventId);
        let id = contract.columns.iter().find(|column| column.source == source && column.required);
        id.and_then(|column| self.batch.column_by_name(&column.name)).into_iter().collect()
    }

    /// Each row as a JSON object of its columns, by name. JSON columns are what they hold, times RFC 3339, bytes Base64.
    #[must_use]
    pub fn objects(&self) -> Vec<Map<String, Value>> {
        let mut objects: Vec<Map<String, Value>> = (0..self.len()).map(|_| Map::new()).collect();
        let schema = self.batch.schema();
        for (field, column) in schema.fields().iter().zip(self.batch.columns()) {
            let is_json = self.contract.column(field.name()).is_some_and(|c| c.column_type == ColumnType::Json);
            for (row, object) in objects.iter_mut().enumerate() {
                object.insert(field.name().clone(), value_of(column, row, is_json));
            }
        }
        objects
    }

    /// The event as its sender wrote it, as far as the contract keeps it, from [`Rows::objects`]: columns at the places
    /// that they were taken from, members that no column takes beside them. A contract that keeps the payload gives
    /// just that.
    #[must_use]
    pub fn event_of(&self, object: &Map<String, Value>) -> Value {
        let mut event = Map::new();
        for column in &self.contract.columns {
            let Some(value) = object.get(&column.name).filter(|value| !value.is_null()) else { continue };
            match &column.source {
                ColumnSource::Envelope(Field::Payload) => {
                    return match value {
                        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| value.clone()),
                        other => other.clone(),
                    };
                }
                ColumnSource::Envelope(Field::Undeclared) => merge(&mut event, value),
                ColumnSource::Envelope(_) => {}
                ColumnSource::Path(path) => put_at(&mut event, path, value),
            }
        }
        Value::Object(event)
    }
}

/// How a column's values go into a key.
enum KeyColumn<'a> {
    Text(&'a arrow::array::StringArray),
    Other(&'a ArrayRef, Box<ArrayFormatter<'a>>),
}

impl<'a> KeyColumn<'a> {
    fn new(column: &'a ArrayRef, format: &'a FormatOptions<'a>) -> Option<Self> {
        match column.as_string_opt::<i32>() {
            Some(texts) => Some(Self::Text(texts)),
            None => Some(Self::Other(column, Box::new(ArrayFormatter::try_new(column, format).ok()?))),
        }
    }

    fn put(&self, hash: &mut Xxh3, row: usize) {
        match self {
            Self::Text(texts) if texts.is_valid(row) => put(hash, texts.value(row).as_bytes()),
            Self::Other(column, formatter) if column.is_valid(row) => {
                put(hash, formatter.value(row).to_string().as_bytes());
            }
            _ => hash.update(&u64::MAX.to_le_bytes()),
        }
    }
}

/// The length before the bytes, so that two values never read as others of the same letters.
fn put(hash: &mut Xxh3, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// One cell as JSON.
fn value_of(column: &ArrayRef, row: usize, is_json: bool) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    match column.data_type() {
        DataType::Utf8 => {
            let text = column.as_string::<i32>().value(row);
            let parsed = is_json.then(|| serde_json::from_str(text).ok()).flatten();
            parsed.unwrap_or_else(|| Value::String(text.to_owned()))
        }
        DataType::Boolean => Value::Bool(column.as_boolean().value(row)),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float32 => float(column.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => float(column.as_primitive::<Float64Type>().value(row)),
        DataType::LargeBinary => {
            let bytes = column.as_binary::<i64>().value(row);
            Value::String(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
        DataType::Decimal128(_, scale) => decimal(column.as_primitive::<Decimal128Type>().value(row), *scale),
        DataType::Map(..) => {
            let entries = column.as_map().value(row);
            let (names, values) = (entries.column(0).as_string_opt::<i32>(), entries.column(1).as_string_opt::<i32>());
            let (Some(names), Some(values)) = (names, values) else { return Value::Null };
            let pairs = names.iter().zip(values.iter());
            Value::Object(pairs.filter_map(|(name, value)| Some((name?.to_owned(), value.into()))).collect())
        }
        _ => formatted(column, row),
    }
}

fn formatted(column: &ArrayRef, row: usize) -> Value {
    let format = FormatOptions::default();
    match ArrayFormatter::try_new(column, &format) {
        Ok(formatter) => Value::String(formatter.value(row).to_string()),
        Err(_) => Value::Null,
    }
}

/// A number where a double has all its figures, else a text.
fn decimal(unscaled: i128, scale: i8) -> Value {
    let scale = usize::try_from(scale).unwrap_or(0);
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, rest) = digits.split_at(digits.len() - scale);
    let sign = if unscaled < 0 { "-" } else { "" };
    let text = if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{rest}") };
    let exact = digits.trim_start_matches('0').len() <= 15;
    match text.parse::<f64>().ok().filter(|_| exact).and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => Value::String(text),
    }
}

fn put_at(object: &mut Map<String, Value>, path: &[String], value: &Value) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        match (object.get_mut(first), value) {
            (Some(Value::Object(there)), Value::Object(_)) => merge(there, value),
            (Some(_), _) => {}
            (None, _) => drop(object.insert(first.clone(), value.clone())),
        }
        return;
    }
    let inner = object.entry(first.clone()).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(inner) = inner {
        put_at(inner, rest, value);
    }
}

fn merge(object: &mut Map<String, Value>, with: &Value) {
    for (name, value) in with.as_object().into_iter().flatten() {
        match (object.get_mut(name), value) {
            (Some(Value::Object(inner)), Value::Object(_)) => merge(inner, value),
            (Some(_), _) => {}
            (None, _) => drop(object.insert(name.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use arrow::array::{Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::{Field as ArrowField, Schema};
    use lakegate_model::{StreamName, TenantId};
    use serde_json::json;

    use super::*;

    /// Rows of `events` with the columns `event_id`, `n` and `data`.
    pub(crate) fn rows(events: &[(&str, i64, &str)]) -> Rows {
        let contract: Contract = serde_json::from_value(json!({
            "columns": [
                {"name": "event_id", "column_type": "string", "source": {"path": ["eventId"]}, "required": true},
                {"name": "n", "column_type": "long", "source": {"path": ["data", "n"]}, "required": false},
                {"name": "data", "column_type": "json", "source": {"path": ["data"]}, "required": false},
                {"name": "at", "column_type": "timestamptz", "source": {"envelope": "received_at"}, "required": true},
                {"name": "_undeclared", "column_type": "json", "source": {"envelope": "undeclared"}, "required": false}
            ],
            "payload": "json", "event_key": ["event_id"], "duplicate_window_ms": 1, "time": null,
            "malformed": "reject", "undeclared": "keep", "table": "{tenant}.{endpoint}", "partitions": [], "sort": []
        }))
        .unwrap();
        let micros = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("+00:00".into()));
        let schema = Schema::new(vec![
            ArrowField::new("event_id", DataType::Utf8, false),
            ArrowField::new("n", DataType::Int64, true),
            ArrowField::new("data", DataType::Utf8, true),
            ArrowField::new("at", micros, false),
            ArrowField::new("_undeclared", DataType::Utf8, true),
        ]);
        let at = vec![1_750_000_000_123_000_i64; events.len()];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(events.iter().map(|e| e.0))),
            Arc::new(Int64Array::from_iter_values(events.iter().map(|e| e.1))),
            Arc::new(StringArray::from_iter_values(events.iter().map(|e| e.2))),
            Arc::new(TimestampMicrosecondArray::from(at).with_timezone("+00:00")),
            Arc::new(StringArray::from(vec![Some(r#"{"extra":{"deep":1}}"#); events.len()])),
        ];
        Rows {
            key: StreamKey { tenant: TenantId::new("t").unwrap(), stream: StreamName::new("events").unwrap() },
            contract: Arc::new(contract),
            batch: RecordBatch::try_new(Arc::new(schema), columns).unwrap(),
            place: "log/7".into(),
            numbers: Vec::new(),
            received_us: 5,
            correlation_id: "r".into(),
        }
    }

    #[test]
    fn a_row_becomes_the_event_that_came() {
        let rows = rows(&[("e1", 3, r#"{"total":1.5,"list":[1]}"#)]);
        let object = rows.objects().remove(0);
        assert_eq!(object["at"], "2025-06-15T15:06:40.123Z");
        assert_eq!(
            rows.event_of(&object),
            json!({"eventId": "e1", "data": {"n": 3, "total": 1.5, "list": [1]}, "extra": {"deep": 1}})
        );
    }

    #[test]
    fn a_key_follows_from_the_event_and_not_from_its_place() {
        let one = rows(&[("a", 1, "{}"), ("b", 2, "{}")]);
        let other = Rows { place: "file/x".into(), received_us: 9, ..rows(&[("b", 7, "{}")]) };
        assert_eq!(one.keys()[1], other.keys()[0]);
        assert_ne!(one.keys()[0], one.keys()[1]);
        assert!(one.keys()[0].len() == 32 && u128::from_str_radix(&one.keys()[0], 16).is_ok());
        let bare = |place: &str, numbers| {
            let rows = rows(&[("a", 1, "{}"), ("a", 1, "{}")]);
            let contract = Contract { event_key: Vec::new(), ..(*rows.contract).clone() };
            Rows { contract: contract.into(), place: place.into(), numbers, ..rows }.keys()
        };
        assert_ne!(bare("x", vec![])[0], bare("x", vec![])[1], "without a key, places tell rows apart");
        assert_eq!(bare("x", vec![4, 5]), bare("x", vec![4, 5]));
        assert_ne!(bare("x", vec![4, 5]), bare("y", vec![4, 5]));
    }

    #[test]
    fn decimals_keep_their_figures() {
        assert_eq!(decimal(1250, 2), json!(12.5));
        assert_eq!(decimal(-5, 2), json!(-0.05));
        assert_eq!(decimal(12_345_678_901_234_567_890, 4), json!("1234567890123456.7890"));
    }
}
