//! Where rows lie: the table's name, its partitions, the order of rows.

use serde::{Deserialize, Serialize};

use crate::name::{NameError, StreamKey, TableName};

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

/// Stands for the event type of records that have none.
const UNTYPED: &str = "_untyped";
const EVENT_TYPE: &str = "{event_type}";
/// The most characters of an event type in a table's name.
const EVENT_TYPE_CHARS_MAX: usize = 40;

impl TablePattern {
    /// Whether the table depends on the record's event type.
    #[must_use]
    pub fn takes_event_type(&self) -> bool {
        self.0.contains(EVENT_TYPE)
    }

    /// The table of one tenant's part of the stream. `part` stands for the event type: from [`event_type_part`], empty
    /// for records without one.
    ///
    /// # Errors
    /// What results is not `namespace.table` with valid names.
    pub fn table_for(&self, key: &StreamKey, part: &str) -> Result<TableName, NameError> {
        let text = self.0.replace("{tenant}", key.tenant.as_str()).replace("{endpoint}", key.stream.as_str());
        let text = text.replace(EVENT_TYPE, if part.is_empty() { UNTYPED } else { part });
        let (namespace, name) = text.split_once('.').unwrap_or(("", text.as_str()));
        TableName::new(namespace, name)
    }
}

/// An event type as a part of a table's name: letters and digits in lower case, everything else as one `_`. `API Error`
/// is `api_error`. Where that loses more than case and blanks, eight figures of a hash tell it from others of the same
/// letters; none where nothing is left.
#[must_use]
pub fn event_type_part(event_type: &str) -> String {
    let mut part = String::with_capacity(event_type.len().min(EVENT_TYPE_CHARS_MAX));
    let mut is_exact = true;
    for found in event_type.trim().chars() {
        if part.len() >= EVENT_TYPE_CHARS_MAX {
            is_exact = false;
            break;
        }
        let blank = matches!(found, ' ' | '_' | '-');
        match found.to_ascii_lowercase() {
            plain @ ('a'..='z' | '0'..='9') => part.push(plain),
            _ if part.is_empty() || part.ends_with('_') => is_exact &= blank,
            _ => {
                is_exact &= blank;
                part.push('_');
            }
        }
    }
    let part = part.trim_end_matches('_');
    let hash = || (crate::contract::fnv(event_type.as_bytes()) >> 32) & 0xffff_ffff;
    match (is_exact, part.is_empty()) {
        (true, _) => part.to_owned(),
        (false, false) => format!("{part}_{:08x}", hash()),
        (false, true) => format!("type_{:08x}", hash()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_type_leads_to_a_name_that_is_safe_and_its_own() {
        for (event_type, part) in
            [("Login", "login"), ("API Error", "api_error"), ("GameOpened", "gameopened"), ("", "")]
        {
            assert_eq!(event_type_part(event_type), part);
        }
        let odd = ["a/b", "a.b", "../x", "\u{1F600}", "Größe", &"x".repeat(200), "x\0y", "a;DROP"];
        let parts: std::collections::BTreeSet<String> = odd.iter().map(|text| event_type_part(text)).collect();
        assert_eq!(parts.len(), odd.len(), "{parts:?}");
        for part in parts {
            assert!(TableName::new("documents", &part).is_ok(), "{part}");
        }
    }
}
