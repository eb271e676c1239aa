//! A declared stream, as the configuration writes it, and the contract that follows from it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use lakegate_model::{
    Column, ColumnType, Conflicts, Contract, ContractError, Evolution, Field, Malformed, OnConflict, PartitionField,
    PayloadFormat, Shipped, SortField, StreamKey, StreamName, TablePattern, TenantId, Transform, Undeclared,
    read_json_schema,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::notation::{self, NotationError};
use super::problem::Problem;
use super::stream_column::{ClockSettings, ColumnSettings, EvolutionSettings, PathText, TimeSettings, paths};
use super::units::Period;

/// A declared stream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StreamSettings {
    /// A contract that comes with the binary, to begin with: `cart`, `documents` or `service_events_raw`. What is set
    /// beside it takes the place of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ShippedName")]
    pub(crate) contract: Option<ShippedName>,
    /// A JSON Schema document, or the path of a file that holds one (relative to the configuration's file): a column for
    /// each of its properties, with all that it says of them. What has no counterpart is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    pub(crate) json_schema: Option<serde_json::Map<String, serde_json::Value>>,
    /// The table's columns, in order. Without any, and without `contract`, the stream has the default columns:
    /// `tenant_id`, `endpoint_id`, `event_id`, `event_type`, `event_time`, `received_at`, `version`, `payload`,
    /// `attributes`. Beside `contract`, they are added to its columns, or replace those of the same name.
    pub(crate) columns: Vec<ColumnSettings>,
    /// What the payload is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PayloadFormat")]
    pub(crate) payload: Option<PayloadFormat>,
    /// The columns that together tell one event from another. Empty: nothing is taken for a duplicate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<String>")]
    pub(crate) event_key: Option<Vec<String>>,
    /// How long a key is remembered. Unset: a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Period")]
    pub(crate) duplicate_window: Option<Period>,
    /// How many keys are remembered, of each tenant; beyond, the oldest are forgotten early. Unset: ten millions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64", range(min = 16, max = 1_000_000_000))]
    pub(crate) duplicate_keys_max: Option<u64>,
    /// What is done with a record whose key was seen with another payload: stored once like any duplicate, or given back
    /// as a conflict. Unset: `duplicate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "OnConflict")]
    pub(crate) on_conflict: Option<OnConflict>,
    /// The payload's own field for the event's time, used where the envelope has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "TimeSettings")]
    pub(crate) time: Option<TimeSettings>,
    /// How far an event's time may lie from the time of receipt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ClockSettings")]
    pub(crate) clock: Option<ClockSettings>,
    /// Where the payload names its event type, used where the envelope names none: places looked at in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<PathText>")]
    pub(crate) event_type: Option<Vec<PathText>>,
    /// The only event types that are taken. Unset: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<String>")]
    pub(crate) event_types: Option<Vec<String>>,
    /// What is done with a record that breaks the contract. Unset: `reject`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Malformed")]
    pub(crate) malformed: Option<Malformed>,
    /// What is done with fields that no column takes. Unset: `ignore`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Undeclared")]
    pub(crate) undeclared: Option<Undeclared>,
    /// What is done with a value that does not fit its column's type. Unset: `reject`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Conflicts")]
    pub(crate) conflicts: Option<Conflicts>,
    /// How far the table may grow where `undeclared` is `evolve`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "EvolutionSettings")]
    pub(crate) evolution: Option<EvolutionSettings>,
    /// Whether the payload is kept as it came in a column `_raw`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) keep_raw: bool,
    /// The table's name; `{tenant}`, `{endpoint}` and `{event_type}` stand for the record's own. Unset:
    /// `{tenant}.{endpoint}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(crate) table: Option<String>,
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

/// The name of a contract that comes with the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ShippedName {
    /// Events of shopping carts.
    Cart,
    /// Documents, a table for each event type.
    Documents,
    /// `bronze.service_events_raw`, with exactly its 15 columns.
    ServiceEventsRaw,
}

impl ShippedName {
    fn shipped(self) -> Shipped {
        match self {
            Self::Cart => Shipped::Cart,
            Self::Documents => Shipped::Documents,
            Self::ServiceEventsRaw => Shipped::ServiceEventsRaw,
        }
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
        let mut contract = match self.contract {
            Some(name) => name.shipped().contract(),
            None if self.columns.is_empty() && self.json_schema.is_none() => Contract::undeclared_default(),
            None => Contract {
                columns: Vec::new(),
                partitions: Vec::new(),
                sort: Vec::new(),
                ..Contract::undeclared_default()
            },
        };
        let parts = self.json_schema.clone().and_then(|schema| read_json_schema(&schema.into()).ok());
        if let Some(parts) = parts {
            contract.columns.extend(parts.columns);
            contract.rules.extend(parts.rules);
            contract.objects.extend(parts.objects);
            contract.payload = PayloadFormat::Json;
            if parts.closed {
                contract.undeclared = Undeclared::Reject;
            }
        }
        let given = self.contract.is_some() || self.json_schema.is_some();
        let shipped = if given { contract.columns.len() } else { 0 };
        for column in &self.columns {
            put_column(&mut contract, column, shipped);
        }
        if self.keep_raw {
            contract.columns.push(Column::envelope("_raw", ColumnType::String, Field::Payload, false));
        }
        self.put_policies(&mut contract);
        contract
    }

    fn put_policies(&self, contract: &mut Contract) {
        fn put<T: Clone>(place: &mut T, set: Option<&T>) {
            if let Some(set) = set {
                place.clone_from(set);
            }
        }
        put(&mut contract.payload, self.payload.as_ref());
        put(&mut contract.event_key, self.event_key.as_ref());
        put(&mut contract.duplicate_window_ms, self.duplicate_window.map(|window| window.as_millis()).as_ref());
        put(&mut contract.duplicate_keys_max, self.duplicate_keys_max.as_ref());
        put(&mut contract.on_conflict, self.on_conflict.as_ref());
        put(&mut contract.malformed, self.malformed.as_ref());
        put(&mut contract.undeclared, self.undeclared.as_ref());
        put(&mut contract.conflicts, self.conflicts.as_ref());
        put(&mut contract.event_types, self.event_types.as_ref());
        put(&mut contract.event_type_paths, self.event_type.as_deref().map(paths).as_ref());
        put(&mut contract.clock, self.clock.as_ref().map(ClockSettings::policy).as_ref());
        let evolution = |e: &EvolutionSettings| Evolution { columns_max: e.columns_max, times: e.times };
        put(&mut contract.evolution, self.evolution.as_ref().map(evolution).as_ref());
        put(&mut contract.table, self.table.clone().map(TablePattern).as_ref());
        let partitions = |set: &Vec<PartitionText>| set.iter().map(|p| p.0.clone()).collect();
        put(&mut contract.partitions, self.partitions.as_ref().map(partitions).as_ref());
        let sort = |set: &Vec<SortText>| set.iter().map(|s| s.0.clone()).collect();
        put(&mut contract.sort, self.sort.as_ref().map(sort).as_ref());
        if let Some(time) = &self.time {
            contract.time = Some(time.field());
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
        let schema = self.json_schema.clone().map(|schema| read_json_schema(&schema.into()));
        for problem in schema.and_then(Result::err).into_iter().flatten() {
            problems.push(Problem::new(format!("{at}.json_schema"), problem.to_string()));
        }
        if let Some(stream) = stream {
            problems.extend(self.check_table(&at, stream));
        }
        problems.extend(check_contract(&at, &self.contract()));
        problems
    }

    fn check_table(&self, at: &str, stream: StreamName) -> Option<Problem> {
        let tenant = TenantId::new("default").ok()?;
        let pattern = self.contract().table;
        let error = pattern.table_for(&StreamKey { tenant, stream }, "").err()?;
        let message = format!(
            "{:?} does not lead to a table: {error}; write \"namespace.table\", where {{tenant}}, {{endpoint}} and {{event_type}} stand for the record's own",
            pattern.0
        );
        Some(Problem::new(format!("{at}.table"), message))
    }
}

/// Adds a column, or puts it in the place of the one of its name among the first `shipped`.
fn put_column(contract: &mut Contract, settings: &ColumnSettings, shipped: usize) {
    let column = settings.column();
    match settings.rules() {
        Some(rules) => drop(contract.rules.insert(column.name.clone(), rules)),
        None => drop(contract.rules.remove(&column.name)),
    }
    match contract.columns.iter_mut().take(shipped).find(|own| own.name == column.name) {
        Some(own) => *own = column,
        None => contract.columns.push(column),
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
    let bare = Contract {
        event_key: Vec::new(),
        partitions: Vec::new(),
        sort: Vec::new(),
        rules: BTreeMap::new(),
        ..contract.clone()
    };
    for (i, column) in contract.columns.iter().enumerate() {
        let rules = contract.rules_of(&column.name).map(|rules| (column.name.clone(), rules.clone()));
        let rules = rules.into_iter().collect();
        report(format!("columns[{i}]"), Contract { columns: vec![column.clone()], rules, ..bare.clone() }.check());
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
