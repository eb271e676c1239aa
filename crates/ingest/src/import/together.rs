//! Several files that end at the same time share a commit.
//!
//! The identity, the progress and the counts of each are in it, beside the rows of all. Where the shared commit is not done,
//! each file is committed by itself, so that what is wrong with one is told of that one.

use std::collections::BTreeMap;
use std::sync::Arc;

use lakegate_lake::{Commit, CommitError, FileState};
use uuid::Uuid;

use super::commit::{Prepared, try_commit};
use super::{Import, ImportError, ImportSummary};
use crate::gate::Gate;

/// The most files of one commit.
const FILES: usize = 64;

/// A file that is read to its end, and its place among those that were given.
type Ended = (usize, Box<Import>);

impl Gate {
    /// Finishes imports, as [`Import::finish`] does each; those into one table in few commits. The answers are in the order
    /// of the imports.
    pub async fn finish_together(&self, imports: Vec<Box<Import>>) -> Vec<Result<ImportSummary, ImportError>> {
        let mut answers: BTreeMap<usize, Result<ImportSummary, ImportError>> = BTreeMap::new();
        let mut left: Vec<Ended> = imports.into_iter().enumerate().collect();
        while let Some((_, first)) = left.first() {
            let (table, mut files) = (Arc::clone(&first.table), Vec::new());
            let mut fits = |import: &Import| {
                // The same file twice is for its own commit, which tells that it was absorbed.
                let is_new = !files.contains(&import.target.file);
                let fits = is_new && files.len() < FILES && Arc::ptr_eq(&import.table, &table);
                if fits {
                    files.push(import.target.file);
                }
                fits
            };
            let (group, others): (Vec<Ended>, Vec<Ended>) = left.into_iter().partition(|(_, import)| fits(import));
            left = others;
            self.finish_group(group, &mut answers).await;
        }
        answers.into_values().collect()
    }

    async fn finish_group(&self, group: Vec<Ended>, answers: &mut BTreeMap<usize, Result<ImportSummary, ImportError>>) {
        if group.len() == 1 {
            for (at, import) in group {
                answers.insert(at, import.finish().await);
            }
            return;
        }
        let commit_id = Uuid::from_u128(self.inner.random.next_u128());
        let mut ready = Vec::with_capacity(group.len());
        for (at, mut import) in group {
            match import.prepare(FileState::Complete, commit_id).await {
                Ok(prepared) => ready.push((at, import, prepared)),
                Err(error) => {
                    answers.insert(at, Err(error));
                }
            }
        }
        let Some((_, import, _)) = ready.first() else { return };
        let table = Arc::clone(&import.table);
        let commit = ready
            .iter()
            .fold(Commit::of_marks(commit_id, Vec::new(), Vec::new()), |sum, (_, _, prepared)| with(sum, prepared));
        let outcome = try_commit(&table, &commit).await;
        for (at, mut import, prepared) in ready {
            let answer = match &outcome {
                Ok(outcome) => import.committed(prepared, outcome.snapshot_id).await,
                Err(CommitError::Unavailable { outcome_unknown: true, .. }) => {
                    import.leave_unsettled(commit_id);
                    Err(ImportError::Unknown(outcome.as_ref().map_or_else(ToString::to_string, |_| String::new())))
                }
                Err(_) => import.commit_alone(prepared).await,
            };
            answers.insert(at, answer.map(|()| import.summary.clone()));
        }
    }
}

/// A commit with one more file's part.
fn with(mut commit: Commit, part: &Prepared) -> Commit {
    commit.files.extend(part.files.iter().cloned());
    commit.marks.push(part.mark.clone());
    for (name, count) in &part.counts {
        *commit.counts.entry(name.clone()).or_default() += count;
    }
    commit
}

impl Import {
    /// Commits what a shared commit did not.
    async fn commit_alone(&mut self, prepared: Prepared) -> Result<(), ImportError> {
        super::commit::remove_claims(&self.gate.inner, prepared.commit_id, self.target.file).await;
        let commit_id = Uuid::from_u128(self.gate.inner.random.next_u128());
        let prepared = Prepared { commit_id, ..prepared };
        self.write_claims(commit_id, prepared.received_us).await?;
        self.commit_prepared(prepared).await
    }

    /// Makes durable data files of what was taken so far. They are the table's with the next commit.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub async fn write_now(&mut self) -> Result<(), ImportError> {
        let written = self.files.write_all(&self.table).await;
        if written.is_err() {
            self.files.discard(&self.table).await;
        }
        written.map_err(ImportError::from)
    }

    /// Whether nothing of the file is committed yet, and what it has is so little that it had better share a commit.
    #[must_use]
    pub fn is_small(&self) -> bool {
        const BYTES: usize = 8 << 20;
        self.mark.is_none() && self.files.bytes() <= BYTES
    }
}
