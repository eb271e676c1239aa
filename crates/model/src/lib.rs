//! The words that every room shares: names, positions, contracts, outcomes and tallies.
//!
//! Nothing here does I/O, is asynchronous, or knows another room.

mod contract;
mod name;
mod outcome;
mod position;
mod tally;

pub use contract::{
    Column, ColumnSource, ColumnType, Contract, ContractError, Field, Malformed, OnConflict, PartitionField,
    PayloadFormat, SortField, TablePattern, TimeField, TimeFormat, Transform, TypeError, Undeclared,
};
pub use name::{NameError, StreamKey, StreamName, TableName, TenantId};
pub use outcome::{ReasonCode, RecordError, Refusal, Verdict};
pub use position::{LogId, Position};
pub use tally::Tally;
