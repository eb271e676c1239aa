//! A declared stream, as the configuration writes it, and the contract that follows from it.

use std::borrow::Cow;

use lakegate_model::{
    Column, ColumnSource, ColumnType, Contract, ContractError, Field, Malformed, OnConflict, PartitionField,
    PayloadFormat, SortField, StreamKey, StreamName, TablePattern, TenantId, TimeField, TimeFormat, Transform,
    Undeclared,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::notation::{self, NotationError};
use super::problem::Problem;
use super::units::Period;

/// A declared stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StreamSettings {
    /// The table's columns, in order. Without any, the stream has the default columns: `tenant_id`, `endpoint_id`,
    /// `event_id`, `event_type`, `event_time`, `received_at`, `version`, `payload`, `attributes`.
    pub(crate) columns: Vec<ColumnSettings>,
    /// What the payload is.
    pub(crate) payload: PayloadFormat,
    /// The columns that together tell one event from another. Empty: nothing is taken for a duplicate.
    pub(crate) event_key: Vec<String>,
    /// How long a key is remembered.
    pub(crate) duplicate_window: Period,
    /// How many keys are remembered, of each tenant; beyond, the oldest are forgotten early.
    #[schemars(range(min = 16, max = 1_000_000_000))]
    pub(crate) duplicate_keys_max: u64,
    /// What is done with a record whose key was seen with another payload: stored once like any duplicate, or given back
    /// as a conflict.
    pub(crate) on_conflict: OnConflict,
    /// The payload's own field for the event's time, used where the envelope has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "TimeSettings")]
    pub(crate) time: Option<TimeSettings>,
    /// What is done with a record that breaks the contract.
    pub(crate) malformed: Malformed,
    /// What is done with fields that no column takes.
    pub(crate) undeclared: Undeclared,
    /// The table's name; `{tenant}` and `{endpoint}` stand for the record's own.
    pub(crate) table: String,
    /// The table's partitioning: `"day(event_time)"`, `"bucket(16, customer)"`, `"identity region"`. Unset: by day of
    /// `event_time` for the default columns, none for declared ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<PartitionText>")]
    pub(crate) partitions: Option<Vec<PartitionText>>,
    /// The order of rows in each file: `"event_time desc"`. Unset: by `event_time` for the default columns, none for
    /// declared ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<SortText>")]
    pub(crate) sort: Option<Vec<SortText>>,
}

impl Default for StreamSettings {
    fn default() -> Self {
        let contract = Contract::undeclared_default();
        Self {
            columns: Vec::new(),
            payload: contract.payload,
            event_key: contract.event_key,
            duplicate_window: Period::from_millis(contract.duplicate_window_ms),
            duplicate_keys_max: contract.duplicate_keys_max,
            on_conflict: contract.on_conflict,
            time: None,
            malformed: contract.malformed,
            undeclared: contract.undeclared,
            table: contract.table.0,
            partitions: None,
            sort: None,
        }
    }
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ColumnSettings {
    /// The column's name.
    pub(crate) name: String,
    /// Its type: `boolean`, `int`, `long`, `float`, `double`, `decimal(P,S)`, `date`, `timestamp`, `timestamptz`,
    /// `string`, `binary`, `json` or `map`.
    #[serde(rename = "type")]
    #[schemars(schema_with = "column_type_schema")]
    pub(crate) column_type: ColumnType,
    /// Where the value is in the JSON payload: `"customer.id"`, or `["customer", "id"]` for names with dots in them.
    /// Without `path` and `envelope`, it is the member of the column's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PathText")]
    pub(crate) path: Option<PathText>,
    /// The part of the record's envelope to take in place of a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Field")]
    pub(crate) envelope: Option<Field>,
    /// Whether a record without it breaks the contract.
    #[serde(default)]
    pub(crate) required: bool,
}

/// The payload's own field for the event's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TimeSettings {
    /// Where it is in the JSON payload.
    pub(crate) path: PathText,
    /// Its notation.
    #[serde(default)]
    pub(crate) format: TimeFormat,
}

fn column_type_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "pattern": "^(boolean|int|long|float|double|date|timestamp|timestamptz|string|binary|json|map|decimal\\([0-9]+, ?[0-9]+\\))$",
        "x-notation": "column type"
    })
}

/// A path into the payload, `"a.b"` or `["a", "b"]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct PathText(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for PathText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Dotted(String),
            Members(Vec<String>),
        }
        Ok(Self(match Written::deserialize(d)? {
            Written::Dotted(text) => text.split('.').map(str::to_owned).collect(),
            Written::Members(members) => members,
        }))
    }
}

impl JsonSchema for PathText {
    fn schema_name() -> Cow<'static, str> {
        "Path".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "array"], "items": { "type": "string" }, "minItems": 1, "x-notation": "path" })
    }
}

macro_rules! notation_type {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $parse:path, $print:path, $label:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let parsed: Result<$inner, NotationError> = $parse(&String::deserialize(d)?);
                parsed.map(Self).map_err(serde::de::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&$print(&self.0))
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "x-notation": $label })
            }
        }
    };
}

notation_type!(
    /// A field of a partitioning, such as `day(event_time)`.
    PartitionText,
    PartitionField,
    notation::parse_partition,
    notation::print_partition,
    "partition"
);
notation_type!(
    /// A field of a sort order, such as `event_time desc`.
    SortText,
    SortField,
    notation::parse_sort,
    notation::print_sort,
    "sort"
);

impl StreamSettings {
    /// The contract, as far as it can be made; whether it holds together says [`StreamSettings::check`].
    pub(crate) fn contract(&self) -> Contract {
        let default = Contract::undeclared_default();
        let own_columns = !self.columns.is_empty();
        let columns =
            if own_columns { self.columns.iter().map(ColumnSettings::column).collect() } else { default.columns };
        let partitions = match &self.partitions {
            Some(set) => set.iter().map(|p| p.0.clone()).collect(),
            None if own_columns => Vec::new(),
            None => default.partitions,
        };
        let sort = match &self.sort {
            Some(set) => set.iter().map(|s| s.0.clone()).collect(),
            None if own_columns => Vec::new(),
            None => default.sort,
        };
        Contract {
            columns,
            payload: self.payload,
            event_key: self.event_key.clone(),
            duplicate_window_ms: self.duplicate_window.as_millis(),
            duplicate_keys_max: self.duplicate_keys_max,
            on_conflict: self.on_conflict,
            time: self.time.as_ref().map(|t| TimeField { path: t.path.0.clone(), format: t.format }),
            malformed: self.malformed,
            undeclared: self.undeclared,
            table: TablePattern(self.table.clone()),
            partitions,
            sort,
        }
    }

    /// Everything that keeps the stream `name` from being one.
    pub(crate) fn check(&self, name: &str) -> Vec<Problem> {
        let at = format!("streams.{name}");
        let mut problems = Vec::new();
        let stream = match StreamName::new(name) {
            Ok(stream) => Some(stream),
            Err(e) => {
                problems.push(Problem::new(at.clone(), e.to_string()));
                None
            }
        };
        for (i, column) in self.columns.iter().enumerate() {
            if column.path.is_some() && column.envelope.is_some() {
                problems.push(Problem::new(
                    format!("{at}.columns[{i}]"),
                    "has both `path` and `envelope`; a column takes its value from one of them",
                ));
            }
        }
        if self.time.as_ref().is_some_and(|t| t.path.0.iter().all(String::is_empty)) {
            problems.push(Problem::new(format!("{at}.time.path"), "is empty; name the member, such as \"created_at\""));
        }
        if let Some(stream) = stream {
            problems.extend(self.check_table(&at, stream));
        }
        problems.extend(check_contract(&at, &self.contract()));
        problems
    }

    fn check_table(&self, at: &str, stream: StreamName) -> Option<Problem> {
        let tenant = TenantId::new("default").ok()?;
        let error = TablePattern(self.table.clone()).table_for(&StreamKey { tenant, stream }).err()?;
        let message = format!(
            "{:?} does not lead to a table: {error}; write \"namespace.table\", where {{tenant}} and {{endpoint}} stand for the record's own",
            self.table
        );
        Some(Problem::new(format!("{at}.table"), message))
    }
}

impl ColumnSettings {
    fn column(&self) -> Column {
        let source = match (&self.envelope, &self.path) {
            (Some(field), _) => ColumnSource::Envelope(*field),
            (None, Some(path)) => ColumnSource::Path(path.0.clone()),
            (None, None) => ColumnSource::Path(vec![self.name.clone()]),
        };
        Column { name: self.name.clone(), column_type: self.column_type, source, required: self.required }
    }
}

/// Checks the parts of a contract one by one, so that each problem is found and has its own place.
fn check_contract(at: &str, contract: &Contract) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut report = |place: String, result: Result<(), ContractError>| {
        if let Err(e) = result {
            problems.push(Problem::new(format!("{at}.{place}"), e.to_string()));
        }
    };
    let bare = Contract { event_key: Vec::new(), partitions: Vec::new(), sort: Vec::new(), ..contract.clone() };
    for (i, column) in contract.columns.iter().enumerate() {
        report(format!("columns[{i}]"), Contract { columns: vec![column.clone()], ..bare.clone() }.check());
        let twice = contract.columns.iter().take(i).any(|c| c.name.eq_ignore_ascii_case(&column.name));
        if twice {
            report(format!("columns[{i}].name"), Err(ContractError::DuplicateColumn(column.name.clone())));
        }
    }
    let known = |place, column: &String| match contract.column(column) {
        Some(_) => Ok(()),
        None => Err(ContractError::UnknownColumn { place, column: column.clone() }),
    };
    for (i, column) in contract.event_key.iter().enumerate() {
        report(format!("event_key[{i}]"), known("event_key", column));
    }
    for (i, field) in contract.partitions.iter().enumerate() {
        report(format!("partitions[{i}]"), known("partitions", &field.column));
    }
    for (i, field) in contract.sort.iter().enumerate() {
        report(format!("sort[{i}]"), known("sort", &field.column));
    }
    problems.extend(check_transforms(at, contract));
    problems
}

fn check_transforms(at: &str, contract: &Contract) -> Vec<Problem> {
    let misfit = |(i, field): (usize, &PartitionField)| {
        let column = contract.column(&field.column)?;
        let (fits, right) = transform_fits(field.transform, column.column_type);
        let message = format!(
            "{:?} cannot be applied to column {:?}, which is {}; it needs {right}",
            notation::print_partition(field),
            column.name,
            column.column_type.name()
        );
        (!fits).then(|| Problem::new(format!("{at}.partitions[{i}]"), message))
    };
    contract.partitions.iter().enumerate().filter_map(misfit).collect()
}

/// Whether a transform takes a type, by the Iceberg specification, and which it takes.
fn transform_fits(transform: Transform, found: ColumnType) -> (bool, &'static str) {
    use ColumnType as T;
    match transform {
        Transform::Identity => (found != T::StringMap, "any type but map"),
        Transform::Year | Transform::Month | Transform::Day => {
            (matches!(found, T::Date | T::Timestamp | T::Timestamptz), "date, timestamp or timestamptz")
        }
        Transform::Hour => (matches!(found, T::Timestamp | T::Timestamptz), "timestamp or timestamptz"),
        Transform::Bucket(_) => (
            !matches!(found, T::Boolean | T::Float | T::Double | T::StringMap),
            "int, long, decimal, date, timestamp, timestamptz, string, json or binary",
        ),
        Transform::Truncate(_) => (
            matches!(found, T::Int | T::Long | T::Decimal { .. } | T::String | T::Json | T::Binary),
            "int, long, decimal, string, json or binary",
        ),
    }
}
