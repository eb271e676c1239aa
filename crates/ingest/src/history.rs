//! Which tables have the records of streams that the log has no more, for those who read back from there.

use std::collections::BTreeMap;
use std::sync::Arc;

use lakegate_lake::Lake;
use lakegate_model::{Contract, StreamKey, TableName};

use crate::gate::Gate;
use crate::streams::{DEAD_LETTER_MARKS, DEAD_LETTERS};

/// A table with records of streams.
#[derive(Debug, Clone)]
pub struct HistoryTable {
    /// The table.
    pub table: TableName,
    /// Whose records it has, and of which streams. Where they are several, columns of the contract tell them apart.
    pub streams: Vec<StreamKey>,
    /// The contract that names its columns.
    pub contract: Arc<Contract>,
}

/// Why the tables cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The catalog did not say.
    #[error("the catalog cannot be asked for the tables: {0}")]
    Catalog(String),
    /// A stream's name or contract leads to no table.
    #[error("the table of {key} cannot be told: {reason}")]
    Stream {
        /// The stream.
        key: StreamKey,
        /// Why.
        reason: String,
    },
}

impl Gate {
    /// The tables of all streams that ever had records and are wanted, by name.
    ///
    /// # Errors
    /// See [`HistoryError`].
    pub async fn history(&self, wanted: impl Fn(&StreamKey) -> bool) -> Result<Vec<HistoryTable>, HistoryError> {
        let mut found: BTreeMap<TableName, HistoryTable> = BTreeMap::new();
        let mut all = None;
        for key in self.balance().into_keys().filter(|key| wanted(key)) {
            let contract = self.contract_of(&key)?;
            let pattern = &contract.table;
            let tables = if pattern.takes_event_type() {
                if all.is_none() {
                    let listed = self.lake().list_tables().await;
                    all = Some(listed.map_err(|error| HistoryError::Catalog(error.to_string()))?);
                }
                let text =
                    pattern.0.replace("{tenant}", key.tenant.as_str()).replace("{endpoint}", key.stream.as_str());
                let (head, tail) = text.split_once("{event_type}").unwrap_or((&text, ""));
                let fits = |table: &&TableName| {
                    let name = table.to_string();
                    name.strip_prefix(head).is_some_and(|rest| rest.len() > tail.len() && rest.ends_with(tail))
                };
                all.iter().flatten().filter(fits).cloned().collect()
            } else {
                let table = pattern.table_for(&key, "");
                vec![table.map_err(|error| HistoryError::Stream { key: key.clone(), reason: error.to_string() })?]
            };
            for table in tables {
                let entry = found.entry(table.clone());
                let contract = contract.clone();
                entry
                    .or_insert_with(|| HistoryTable { table, streams: Vec::new(), contract })
                    .streams
                    .push(key.clone());
            }
        }
        Ok(found.into_values().collect())
    }

    /// The lake that the gate writes to.
    #[must_use]
    pub fn lake(&self) -> &Lake {
        &self.inner.lake
    }

    fn contract_of(&self, key: &StreamKey) -> Result<Arc<Contract>, HistoryError> {
        let streams = &self.inner.streams;
        let stream = match key.stream.as_str() {
            DEAD_LETTERS => streams.dead_letters_of(&key.tenant),
            DEAD_LETTER_MARKS => streams.marks_of(key.tenant.as_str()),
            _ => streams.resolve(key.tenant.as_str(), key.stream.as_str()),
        };
        let stream = stream.map_err(|refusal| HistoryError::Stream { key: key.clone(), reason: refusal.message })?;
        Ok(stream.shaper.contract.clone())
    }
}
