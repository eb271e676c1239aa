//! The words that every room shares: names, positions, contracts, outcomes and tallies.
//!
//! Nothing here does I/O, is asynchronous, or knows another room.

mod contract;
mod name;
mod outcome;
mod position;
mod tally;

pub use contract::{
    Breach, CheckError, Checks, Clean, ClockPolicy, ClockSkew, Column, ColumnCheck, ColumnRules, ColumnSource,
    ColumnType, Conflicts, Contract, ContractError, ContractVersion, Evolution, Field, Growth, JsonKind, Malformed,
    Nested, ObjectRule, OnConflict, PATTERN_BYTES_MAX, PartitionField, PayloadFormat, Sanitise, Scalar, SchemaParts,
    SchemaProblem, Shipped, SortField, TablePattern, TimeField, TimeFormat, TimeFormatError, TimeNotation, Transform,
    TypeError, Undeclared, VALUES_MAX, Zone, ZoneError, ZoneRule, event_type_part, read_json_schema,
};
pub use name::{NameError, StreamKey, StreamName, TableName, TenantId};
pub use outcome::{ReasonCode, RecordError, Refusal, Verdict};
pub use position::{LogId, Position};
pub use tally::Tally;
