//! What a table tells of commits that brought rows of files.

use uuid::Uuid;

use crate::commit::COUNTERS;
use crate::error::LakeError;
use crate::table::LakeTable;
use crate::view::TableView;

impl LakeTable {
    /// Whether that commit, which marked the file, is one of the table's. Asks the catalog for the newest state.
    ///
    /// # Errors
    /// The catalog or its files could not be read.
    pub async fn has_absorbed_by(&self, file: u128, commit_id: Uuid) -> Result<bool, LakeError> {
        let view = self.refresh().await?;
        // Several files may share a commit: it says nothing of one that it did not mark. One that has been marked since
        // by a later commit was by this one too, if it is there.
        let marked = self.ledger_of(&view).await?.get(file).map(|entry| entry.commit);
        Ok(marked.is_some_and(|by| by == commit_id || view.has_commit(commit_id)))
    }
}

impl TableView {
    /// All counters, by name, see [`Commit::counts`](crate::Commit::counts).
    pub fn counters(&self) -> impl Iterator<Item = (&str, u64)> {
        let counters = self.properties().iter().filter_map(|(key, value)| Some((key.strip_prefix(COUNTERS)?, value)));
        counters.filter_map(|(name, value)| Some((name, value.parse().ok()?)))
    }
}
