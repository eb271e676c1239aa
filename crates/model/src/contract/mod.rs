//! A stream's contract: which columns a record gives, from where, and what is done with what does not fit.

mod check;
mod column;
mod growth;
mod json_schema;
mod layout;
mod nested;
mod policy;
mod rules;
mod shipped;
mod time;
mod types;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use check::{Breach, CheckError, Checks, ColumnCheck, JsonKind, PATTERN_BYTES_MAX, Scalar, VALUES_MAX};
pub use column::{Column, ColumnSource, Field};
pub use growth::{ContractVersion, Growth};
pub use json_schema::{SchemaParts, SchemaProblem, read_json_schema};
pub use layout::{PartitionField, SortField, TablePattern, Transform, event_type_part};
pub use nested::Nested;
pub use policy::{Conflicts, Evolution, Malformed, OnConflict, PayloadFormat, Undeclared};
pub use rules::{Clean, ColumnRules, ObjectRule, Sanitise};
pub use shipped::Shipped;
pub use time::{
    ClockPolicy, ClockSkew, TimeField, TimeFormat, TimeFormatError, TimeNotation, Zone, ZoneError, ZoneRule,
};
pub use types::{ColumnType, TypeError};

/// Whether a part of a contract says nothing: then it is not written, and contracts of before that part existed read,
/// write and count as they did.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The contract of a stream. A value: two contracts that are equal shape a record alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contract {
    /// Columns in table order.
    pub columns: Vec<Column>,
    /// What the payload is.
    pub payload: PayloadFormat,
    /// Names of the columns that together tell one event from another; empty: nothing is taken for a duplicate.
    pub event_key: Vec<String>,
    /// How long a key is remembered, in milliseconds.
    pub duplicate_window_ms: u64,
    /// How many keys are remembered, of each tenant.
    #[serde(default = "duplicate_keys_default", skip_serializing_if = "is_duplicate_keys_default")]
    pub duplicate_keys_max: u64,
    /// What is done with a record whose key was seen with another payload.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_conflict: OnConflict,
    /// The payload's own field for the event's time.
    pub time: Option<TimeField>,
    /// What is done with a record that breaks the contract.
    pub malformed: Malformed,
    /// What is done with fields that the contract does not declare.
    pub undeclared: Undeclared,
    /// The table's name.
    pub table: TablePattern,
    /// The table's partitioning.
    pub partitions: Vec<PartitionField>,
    /// The order of rows inside a file.
    pub sort: Vec<SortField>,
    /// What holds for single columns, by name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rules: BTreeMap<String, ColumnRules>,
    /// What holds for objects inside the payload.
    #[serde(default, skip_serializing_if = "is_default")]
    pub objects: Vec<ObjectRule>,
    /// Where the payload names its event type, for records whose envelope names none: places looked at in order.
    #[serde(default, skip_serializing_if = "is_default")]
    pub event_type_paths: Vec<Vec<String>>,
    /// The only event types; none: any.
    #[serde(default, skip_serializing_if = "is_default")]
    pub event_types: Vec<String>,
    /// How far an event's time may lie from the time of receipt.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clock: ClockPolicy,
    /// What is done with a value that does not fit its column's type.
    #[serde(default, skip_serializing_if = "is_default")]
    pub conflicts: Conflicts,
    /// How far the table may grow by itself, where `undeclared` is `evolve`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub evolution: Evolution,
    /// Of the tables that the stream's records go into by their event type, the one that this contract is for: the
    /// event type as in the table's name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub part: String,
}

/// How many keys are remembered where nothing else is said.
const DUPLICATE_KEYS_DEFAULT: u64 = 10_000_000;

fn duplicate_keys_default() -> u64 {
    DUPLICATE_KEYS_DEFAULT
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_duplicate_keys_default(keys: &u64) -> bool {
    *keys == DUPLICATE_KEYS_DEFAULT
}

/// What is wrong with a contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    /// Two columns of one name.
    #[error("column {0:?} is declared twice")]
    DuplicateColumn(String),
    /// A key, partition or sort field names no column.
    #[error("{place} names the column {column:?}, which the contract does not declare")]
    UnknownColumn {
        /// `event_key`, `partitions` or `sort`.
        place: &'static str,
        /// The name.
        column: String,
    },
    /// No columns at all.
    #[error("a contract needs at least one column")]
    Empty,
    /// A column takes an envelope field whose type it does not have.
    #[error("column {column:?} takes {field:?}, which is {right}, but is declared as {found}")]
    EnvelopeType {
        /// The column.
        column: String,
        /// The envelope's field.
        field: Field,
        /// The declared type.
        found: String,
        /// The types that would be right.
        right: &'static str,
    },
    /// A column name that is empty, too long or has control characters.
    #[error("column name {0:?} must have 1 to 128 bytes and no control characters")]
    BadColumnName(String),
    /// A column's rules do not go with the column.
    #[error("column {column:?}: {reason}")]
    Rules {
        /// The column.
        column: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A path of no members.
    #[error("column {0:?} has an empty path")]
    EmptyPath(String),
}

impl Contract {
    /// The columns of a stream that nobody declared.
    #[must_use]
    pub fn undeclared_default() -> Self {
        let column = |name: &str, column_type, field, required| Column {
            name: name.to_owned(),
            column_type,
            source: ColumnSource::Envelope(field),
            required,
        };
        Self {
            columns: vec![
                column("tenant_id", ColumnType::String, Field::TenantId, true),
                column("endpoint_id", ColumnType::String, Field::EndpointId, true),
                column("event_id", ColumnType::String, Field::EventId, true),
                column("event_type", ColumnType::String, Field::EventType, false),
                column("event_time", ColumnType::Timestamptz, Field::EventTime, true),
                column("received_at", ColumnType::Timestamptz, Field::ReceivedAt, true),
                column("version", ColumnType::Long, Field::Version, true),
                column("payload", ColumnType::String, Field::Payload, false),
                column("attributes", ColumnType::StringMap, Field::Attributes, false),
            ],
            payload: PayloadFormat::Any,
            event_key: Vec::new(),
            duplicate_window_ms: 24 * 3600 * 1000,
            duplicate_keys_max: DUPLICATE_KEYS_DEFAULT,
            on_conflict: OnConflict::Duplicate,
            time: None,
            malformed: Malformed::Reject,
            undeclared: Undeclared::Ignore,
            table: TablePattern("{tenant}.{endpoint}".to_owned()),
            partitions: vec![PartitionField { column: "event_time".to_owned(), transform: Transform::Day }],
            sort: vec![SortField { column: "event_time".to_owned(), descending: false }],
            rules: BTreeMap::new(),
            objects: Vec::new(),
            event_type_paths: Vec::new(),
            event_types: Vec::new(),
            clock: ClockPolicy::default(),
            conflicts: Conflicts::Reject,
            evolution: Evolution::default(),
            part: String::new(),
        }
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// The first thing that does not.
    pub fn check(&self) -> Result<(), ContractError> {
        if self.columns.is_empty() {
            return Err(ContractError::Empty);
        }
        for (i, column) in self.columns.iter().enumerate() {
            check_column(column)?;
            if self.columns.iter().take(i).any(|c| c.name.eq_ignore_ascii_case(&column.name)) {
                return Err(ContractError::DuplicateColumn(column.name.clone()));
            }
        }
        let named = self
            .event_key
            .iter()
            .map(|c| ("event_key", c))
            .chain(self.partitions.iter().map(|p| ("partitions", &p.column)))
            .chain(self.sort.iter().map(|s| ("sort", &s.column)))
            .chain(self.rules.keys().map(|c| ("rules", c)));
        for (place, column) in named {
            if self.column(column).is_none() {
                return Err(ContractError::UnknownColumn { place, column: column.clone() });
            }
        }
        self.columns.iter().try_for_each(|column| self.check_rules(column))
    }

    fn check_rules(&self, column: &Column) -> Result<(), ContractError> {
        let Some(rules) = self.rules.get(&column.name) else { return Ok(()) };
        let wrong = |reason: String| ContractError::Rules { column: column.name.clone(), reason };
        ColumnCheck::compile(&rules.checks, column.column_type).map_err(|error| wrong(error.to_string()))?;
        if rules.or_paths.iter().any(Vec::is_empty) {
            return Err(ContractError::EmptyPath(column.name.clone()));
        }
        if rules.times.formats.is_empty() {
            return Err(wrong("names no notation of times".to_owned()));
        }
        if let Some(field) = rules.or_envelope {
            check_column(&Column { source: ColumnSource::Envelope(field), ..column.clone() })?;
        }
        let cleanable = matches!(column.column_type, ColumnType::String | ColumnType::Json | ColumnType::StringMap);
        if !rules.sanitise.steps.is_empty() && !cleanable {
            let found = column.column_type.name();
            return Err(wrong(format!("`sanitise` is for string, json and map columns; this one is {found}")));
        }
        if !rules.sanitise.paths.is_empty() && column.column_type != ColumnType::Json {
            return Err(wrong("`sanitise` names paths, which only a json column has".to_owned()));
        }
        Ok(())
    }

    /// The rules of a column, where it has any.
    #[must_use]
    pub fn rules_of(&self, column: &str) -> Option<&ColumnRules> {
        self.rules.get(column)
    }

    /// Adds the columns in which the contract's policies keep what other columns do not take, unless there are such.
    pub fn add_policy_columns(&mut self) {
        if matches!(self.undeclared, Undeclared::Keep | Undeclared::Evolve) {
            self.add_json_column("_undeclared", Field::Undeclared);
        }
        if self.conflicts != Conflicts::Reject {
            self.add_json_column("_rescued", Field::Rescued);
        }
    }

    fn add_json_column(&mut self, name: &str, field: Field) {
        let source = ColumnSource::Envelope(field);
        let has = self.columns.iter().any(|c| c.source == source)
            || self.rules.values().any(|rules| rules.or_envelope == Some(field));
        if !has {
            self.columns.push(Column { name: name.to_owned(), column_type: ColumnType::Json, source, required: false });
        }
    }

    /// The column of that name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }

    /// A number that differs for contracts that differ (FNV-1a, 64 bits, over the contract's JSON): the log's frames
    /// name the contract that shaped them by it.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        fnv(&serde_json::to_vec(self).unwrap_or_default())
    }
}

fn check_column(column: &Column) -> Result<(), ContractError> {
    if column.name.is_empty() || column.name.len() > 128 || column.name.chars().any(char::is_control) {
        return Err(ContractError::BadColumnName(column.name.clone()));
    }
    let field = match &column.source {
        ColumnSource::Path(path) if path.is_empty() => return Err(ContractError::EmptyPath(column.name.clone())),
        ColumnSource::Path(_) => return Ok(()),
        ColumnSource::Envelope(field) => *field,
    };
    let (fits, right) = match field {
        Field::EventTime | Field::ReceivedAt => (
            matches!(column.column_type, ColumnType::Timestamptz | ColumnType::Timestamp | ColumnType::Date),
            "timestamptz, timestamp or date",
        ),
        Field::Version => (column.column_type == ColumnType::Long, "long"),
        Field::Attributes => (matches!(column.column_type, ColumnType::StringMap | ColumnType::Json), "map or json"),
        Field::Payload => (
            matches!(column.column_type, ColumnType::String | ColumnType::Json | ColumnType::Binary),
            "string, json or binary",
        ),
        Field::Undeclared | Field::Rescued => {
            (matches!(column.column_type, ColumnType::String | ColumnType::Json), "json or string")
        }
        Field::TenantId
        | Field::EndpointId
        | Field::EventId
        | Field::EventType
        | Field::TimeSource
        | Field::Source
        | Field::UserAgent
        | Field::ClientAddress
        | Field::CorrelationId => (column.column_type == ColumnType::String, "string"),
    };
    if fits {
        return Ok(());
    }
    Err(ContractError::EnvelopeType { column: column.name.clone(), field, found: column.column_type.name(), right })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::StreamKey;

    #[test]
    fn the_default_contract_is_whole_and_its_names_lead_to_a_table() -> Result<(), Box<dyn std::error::Error>> {
        let contract = Contract::undeclared_default();
        contract.check()?;
        let key = StreamKey { tenant: crate::TenantId::new("acme")?, stream: crate::StreamName::new("orders")? };
        assert_eq!(contract.table.table_for(&key, "")?.to_string(), "acme.orders");
        Ok(())
    }

    #[test]
    fn a_changed_contract_has_another_fingerprint() {
        let one = Contract::undeclared_default();
        let mut two = one.clone();
        two.event_key.push("event_id".to_owned());
        assert_ne!(one.fingerprint(), two.fingerprint());
    }

    #[test]
    fn f23_a_contract_of_before_there_were_rules_reads_and_writes_as_it_did() -> Result<(), Box<dyn std::error::Error>>
    {
        let kept = r#"{"columns":[{"name":"id","column_type":"long","source":{"path":["id"]},"required":true},{"name":"at","column_type":"timestamptz","source":{"envelope":"event_time"},"required":true}],"payload":"json","event_key":["id"],"duplicate_window_ms":86400000,"time":{"path":["t"],"format":"epoch_ms"},"malformed":"skip","undeclared":"keep","table":"{tenant}.{endpoint}","partitions":[{"column":"at","transform":"day"}],"sort":[{"column":"at","descending":false}]}"#;
        let contract: Contract = serde_json::from_str(kept)?;
        assert_eq!(serde_json::to_string(&contract)?, kept);
        assert_eq!(contract.time.map(|time| time.notation.formats), Some(vec![TimeFormat::EpochMs]));
        Ok(())
    }
}
