//! A stream's contract: which columns a record gives, from where, and what is done with what does not fit.

use serde::{Deserialize, Serialize};

use crate::name::{NameError, StreamKey, TableName};

/// A column's type, in Iceberg's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// true or false.
    Boolean,
    /// 32-bit signed.
    Int,
    /// 64-bit signed.
    Long,
    /// 32-bit IEEE 754.
    Float,
    /// 64-bit IEEE 754.
    Double,
    /// Exact, with `precision` digits of which `scale` are behind the point. Arrow: `Decimal128`.
    Decimal {
        /// 1 to 38.
        precision: u8,
        /// 0 to `precision`.
        scale: u8,
    },
    /// Days since 1970-01-01. Arrow: `Date32`.
    Date,
    /// Microseconds without a zone. Arrow: `Timestamp(Microsecond, None)`.
    Timestamp,
    /// Microseconds UTC. Arrow: `Timestamp(Microsecond, "+00:00")`.
    Timestamptz,
    /// UTF-8 text. Arrow: `Utf8`.
    String,
    /// Bytes. Arrow: `LargeBinary`.
    Binary,
    /// Any JSON value, kept as its text. Arrow and Iceberg: a string.
    Json,
    /// Text to text. Arrow: `Map(key_value: Struct<key: Utf8, value: Utf8>)`.
    StringMap,
}

/// A column's type that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a column type; use boolean, int, long, float, double, decimal(P,S), date, timestamp, timestamptz, string, binary, json or map"
)]
pub struct TypeError(pub String);

impl ColumnType {
    /// Reads a type's name, such as `long` or `decimal(10,2)`.
    ///
    /// # Errors
    /// The text is not one of the types.
    pub fn parse(text: &str) -> Result<Self, TypeError> {
        let wrong = || TypeError(text.to_owned());
        Ok(match text {
            "boolean" => Self::Boolean,
            "int" => Self::Int,
            "long" => Self::Long,
            "float" => Self::Float,
            "double" => Self::Double,
            "date" => Self::Date,
            "timestamp" => Self::Timestamp,
            "timestamptz" => Self::Timestamptz,
            "string" => Self::String,
            "binary" => Self::Binary,
            "json" => Self::Json,
            "map" => Self::StringMap,
            _ => {
                let inner = text.strip_prefix("decimal(").and_then(|t| t.strip_suffix(')')).ok_or_else(wrong)?;
                let (p, s) = inner.split_once(',').ok_or_else(wrong)?;
                let precision: u8 = p.trim().parse().map_err(|_| wrong())?;
                let scale: u8 = s.trim().parse().map_err(|_| wrong())?;
                if !(1..=38).contains(&precision) || scale > precision {
                    return Err(wrong());
                }
                Self::Decimal { precision, scale }
            }
        })
    }

    /// The type's name, as [`Self::parse`] reads it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Boolean => "boolean".into(),
            Self::Int => "int".into(),
            Self::Long => "long".into(),
            Self::Float => "float".into(),
            Self::Double => "double".into(),
            Self::Decimal { precision, scale } => format!("decimal({precision},{scale})"),
            Self::Date => "date".into(),
            Self::Timestamp => "timestamp".into(),
            Self::Timestamptz => "timestamptz".into(),
            Self::String => "string".into(),
            Self::Binary => "binary".into(),
            Self::Json => "json".into(),
            Self::StringMap => "map".into(),
        }
    }
}

impl Serialize for ColumnType {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for ColumnType {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for ColumnType {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ColumnType".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^(boolean|int|long|float|double|date|timestamp|timestamptz|string|binary|json|map|decimal\\([0-9]+, ?[0-9]+\\))$"
        })
    }
}

/// A part of the record's envelope that a column may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// The tenant. String.
    TenantId,
    /// The stream. String.
    EndpointId,
    /// The event's id, assigned where the sender gave none. String.
    EventId,
    /// The event's type. String.
    EventType,
    /// The event's time: the envelope's, else the contract's time field, else the time of receipt. Timestamptz.
    EventTime,
    /// When the record was received. Timestamptz.
    ReceivedAt,
    /// The producer's version of the record. Long.
    Version,
    /// The payload as it came: text when it is JSON. String (JSON contracts) or Binary.
    Payload,
    /// The envelope's attributes. Map.
    Attributes,
    /// What `event_time` was taken from: `envelope`, `payload` or `received`. String.
    TimeSource,
    /// The payload's members that no column takes, as one JSON object; null when there are none. JSON.
    Undeclared,
}

/// Where a column's value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ColumnSource {
    /// A path of member names into the JSON payload, outermost first: `["customer", "id"]`.
    Path(Vec<String>),
    /// A part of the envelope.
    Envelope(Field),
}

/// One column of a stream's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The column's name in the table.
    pub name: String,
    /// Its type.
    pub column_type: ColumnType,
    /// Where its value comes from.
    pub source: ColumnSource,
    /// Whether a record without it is refused.
    pub required: bool,
}

/// A time's notation in the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimeFormat {
    /// Text by RFC 3339, or a number whose magnitude tells its unit (seconds, ms, µs or ns).
    #[default]
    Auto,
    /// Text by RFC 3339.
    Rfc3339,
    /// A number of seconds since 1970, fraction allowed.
    EpochS,
    /// A number of milliseconds since 1970.
    EpochMs,
    /// A number of microseconds since 1970.
    EpochUs,
    /// A number of nanoseconds since 1970.
    EpochNs,
}

/// The payload's own field for the event's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TimeField {
    /// Path of member names into the payload.
    pub path: Vec<String>,
    /// Its notation.
    #[serde(default)]
    pub format: TimeFormat,
}

/// What the payload of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PayloadFormat {
    /// JSON where the content type says so or says nothing; any other content type is kept as bytes.
    #[default]
    Any,
    /// JSON, checked.
    Json,
    /// Bytes, not looked into.
    Opaque,
}

/// What is done with a record that breaks the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Malformed {
    /// Given back to the sender.
    #[default]
    Reject,
    /// Set aside in the dead-letter table.
    Skip,
}

/// What is done with fields that the contract does not declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Undeclared {
    /// They are left out of the table.
    #[default]
    Ignore,
    /// They are kept, as one JSON object, in the column `_undeclared`.
    Keep,
    /// The record breaks the contract.
    Reject,
}

/// What is done with a record whose event key was seen with another payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// It is a duplicate: what came first is stored.
    #[default]
    Duplicate,
    /// It is given back to the sender as a conflict.
    Reject,
}

impl OnConflict {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_default(&self) -> bool {
        *self == Self::Duplicate
    }
}

/// How a partition's value follows from a column's (Iceberg specification, "Partition Transforms").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Transform {
    /// The value itself.
    Identity,
    /// The year of a date or time.
    Year,
    /// The month of a date or time.
    Month,
    /// The day of a date or time.
    Day,
    /// The hour of a time.
    Hour,
    /// A hash into so many buckets.
    Bucket(u32),
    /// Cut to so many characters, or to a multiple.
    Truncate(u32),
}

/// One field of a table's partitioning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PartitionField {
    /// The column.
    pub column: String,
    /// How the partition follows from it.
    pub transform: Transform,
}

/// One field of the order of rows inside a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SortField {
    /// The column.
    pub column: String,
    /// Largest first.
    #[serde(default)]
    pub descending: bool,
}

/// How a table's name follows from tenant and stream, such as `{tenant}.{endpoint}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct TablePattern(pub String);

impl TablePattern {
    /// The table of one tenant's part of the stream.
    ///
    /// # Errors
    /// What results is not `namespace.table` with valid names.
    pub fn table_for(&self, key: &StreamKey) -> Result<TableName, NameError> {
        let text = self.0.replace("{tenant}", key.tenant.as_str()).replace("{endpoint}", key.stream.as_str());
        let (namespace, name) = text.split_once('.').unwrap_or(("", text.as_str()));
        TableName::new(namespace, name)
    }
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
    #[serde(default, skip_serializing_if = "OnConflict::is_default")]
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
            .chain(self.sort.iter().map(|s| ("sort", &s.column)));
        for (place, column) in named {
            if self.column(column).is_none() {
                return Err(ContractError::UnknownColumn { place, column: column.clone() });
            }
        }
        Ok(())
    }

    /// Adds the column `_undeclared` where undeclared fields are to be kept and no column takes them yet.
    pub fn add_undeclared_column(&mut self) {
        let source = ColumnSource::Envelope(Field::Undeclared);
        if self.undeclared == Undeclared::Keep && !self.columns.iter().any(|c| c.source == source) {
            let (name, column_type) = ("_undeclared".to_owned(), ColumnType::Json);
            self.columns.push(Column { name, column_type, source, required: false });
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
        let json = serde_json::to_vec(self).unwrap_or_default();
        json.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
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
        Field::EventTime | Field::ReceivedAt => {
            (matches!(column.column_type, ColumnType::Timestamptz | ColumnType::Date), "timestamptz or date")
        }
        Field::Version => (column.column_type == ColumnType::Long, "long"),
        Field::Attributes => (matches!(column.column_type, ColumnType::StringMap | ColumnType::Json), "map or json"),
        Field::Payload => (
            matches!(column.column_type, ColumnType::String | ColumnType::Json | ColumnType::Binary),
            "string, json or binary",
        ),
        Field::Undeclared => (matches!(column.column_type, ColumnType::String | ColumnType::Json), "json or string"),
        Field::TenantId | Field::EndpointId | Field::EventId | Field::EventType | Field::TimeSource => {
            (column.column_type == ColumnType::String, "string")
        }
    };
    if fits {
        return Ok(());
    }
    Err(ContractError::EnvelopeType { column: column.name.clone(), field, found: column.column_type.name(), right })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_contract_is_whole_and_its_names_lead_to_a_table() -> Result<(), Box<dyn std::error::Error>> {
        let contract = Contract::undeclared_default();
        contract.check()?;
        let key = StreamKey { tenant: crate::TenantId::new("acme")?, stream: crate::StreamName::new("orders")? };
        assert_eq!(contract.table.table_for(&key)?.to_string(), "acme.orders");
        Ok(())
    }

    #[test]
    fn types_read_back_as_they_are_written() -> Result<(), TypeError> {
        for text in ["boolean", "int", "long", "float", "double", "decimal(10,2)", "date", "timestamptz", "map", "json"]
        {
            assert_eq!(ColumnType::parse(text)?.name(), text);
        }
        for bad in ["", "varchar", "decimal(0,0)", "decimal(39,2)", "decimal(5,6)", "decimal(5)"] {
            assert!(ColumnType::parse(bad).is_err(), "{bad:?} was taken");
        }
        Ok(())
    }

    #[test]
    fn a_changed_contract_has_another_fingerprint() {
        let one = Contract::undeclared_default();
        let mut two = one.clone();
        two.event_key.push("event_id".to_owned());
        assert_ne!(one.fingerprint(), two.fingerprint());
    }
}
