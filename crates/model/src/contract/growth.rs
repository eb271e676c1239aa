//! How far a table has grown beyond what its contract declares.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Column, ColumnType, Contract};

/// What a table has got beside its declared columns, and the versions of its contract so far.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Growth {
    /// Columns that records brought.
    pub columns: Vec<Column>,
    /// Columns that became wider, with their types now.
    pub types: BTreeMap<String, ColumnType>,
    /// The versions, oldest first.
    pub versions: Vec<ContractVersion>,
}

/// One version of the contract that shapes a table's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContractVersion {
    /// The contract's fingerprint, in hexadecimal; its file has that name.
    pub fingerprint: String,
    /// Whose stream it is of.
    pub stream: String,
    /// Since when, in microseconds since 1970.
    pub since_us: i64,
    /// What is new: `+name type` for a column, `~name type` for a wider one; empty for what the configuration declares.
    pub changes: Vec<String>,
}

impl Contract {
    /// The contract with what its table has grown by. A column that the contract itself has by now stays as it says.
    #[must_use]
    pub fn grown(&self, growth: &Growth) -> Self {
        let mut grown = self.clone();
        for column in &growth.columns {
            if !grown.columns.iter().any(|own| own.name.eq_ignore_ascii_case(&column.name)) {
                grown.columns.push(column.clone());
            }
        }
        for column in &mut grown.columns {
            if let Some(wider) = growth.types.get(&column.name)
                && column.column_type.is_wider(*wider)
            {
                column.column_type = *wider;
            }
        }
        grown
    }
}
