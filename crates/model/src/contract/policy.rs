//! What is done with what does not fit.

use serde::{Deserialize, Serialize};

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
    /// They become columns of their own, within a budget; what the budget leaves is kept as by `keep`.
    Evolve,
}

/// What is done with a value that does not fit its column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Conflicts {
    /// The record breaks the contract.
    #[default]
    Reject,
    /// The value is kept in the column `_rescued`, the column itself is null. Required columns cannot be rescued.
    Rescue,
    /// The column becomes wider where Iceberg allows it (int to long, float to double, decimals to more digits); else as
    /// by `rescue`.
    Widen,
}

/// How far a table may grow by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Evolution {
    /// The most columns of the table.
    pub columns_max: u32,
    /// Text that is a time by RFC 3339 makes a column of times.
    pub times: bool,
}

impl Default for Evolution {
    fn default() -> Self {
        Self { columns_max: 200, times: false }
    }
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
