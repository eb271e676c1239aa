//! Declared contracts brought to the tables that are there, ahead of the first rows that need them.
//!
//! Promises: what one table refuses is known before any table is changed; a table gets its columns in one commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use lakegate_lake::LakeTable;
use lakegate_model::TableName;

use crate::gate::Gate;
use crate::growth::read_growth;
use crate::streams::Stream;

/// Contracts could not be brought to their tables.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Nothing was changed.
    #[error("nothing was changed: {0}")]
    Refused(String),
    /// Some tables have theirs.
    #[error("{table} could not be changed: {reason}; {done} tables were, apply again for the others")]
    BrokenOff {
        /// The table.
        table: TableName,
        /// Why.
        reason: String,
        /// How many were changed before it.
        done: usize,
    },
}

impl Gate {
    /// Gives the tables of declared streams what they lack of their contracts. Returns those that are there, and whether
    /// each was changed.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn apply_contracts(&self) -> Result<BTreeMap<TableName, bool>, ApplyError> {
        let failed = self.flush_all().await;
        if let Some((table, reason)) = failed.first_key_value() {
            return Err(ApplyError::Refused(format!(
                "rows of {table} that are in memory cannot be committed: {reason}"
            )));
        }
        let mut ready = Vec::new();
        for stream in self.declared_streams().map_err(ApplyError::Refused)? {
            let refused =
                |error: &dyn std::fmt::Display| ApplyError::Refused(format!("{}: {error}", stream.unit.table));
            let found = self.inner.lake.find_table(&stream.unit.table).await.map_err(|error| refused(&error))?;
            let Some(table) = found else { continue };
            table.takes(&stream.shaper.contract).map_err(|error| refused(&error))?;
            ready.push((table, stream));
        }
        let mut done: BTreeMap<TableName, bool> = BTreeMap::new();
        for (table, stream) in ready {
            let changed = conform(&table, &stream).await.map_err(|reason| ApplyError::BrokenOff {
                table: stream.unit.table.clone(),
                reason,
                done: done.values().filter(|changed| **changed).count(),
            })?;
            *done.entry(stream.unit.table.clone()).or_default() |= changed;
        }
        Ok(done)
    }

    /// The declared streams whose tables are there, with what these have grown by.
    fn declared_streams(&self) -> Result<Vec<Arc<Stream>>, String> {
        let tables =
            read_growth(&*self.inner.disk, &self.inner.settings.data_dir).map_err(|error| error.to_string())?;
        let versions = tables.values().flat_map(|growth| &growth.versions);
        let newest: BTreeMap<_, _> =
            versions.map(|version| ((version.stream.as_str(), version.fingerprint.as_str()), version)).collect();
        let mut streams: Vec<Arc<Stream>> = Vec::new();
        for version in newest.into_values() {
            let Some(stream) = self.inner.streams.declared_now(version) else { continue };
            let stream = stream?;
            if !streams.iter().any(|known| Arc::ptr_eq(known, &stream)) {
                streams.push(stream);
            }
        }
        Ok(streams)
    }
}

async fn conform(table: &LakeTable, stream: &Stream) -> Result<bool, String> {
    table.conform(&stream.shaper.contract).await.map_err(|error| error.to_string())
}
