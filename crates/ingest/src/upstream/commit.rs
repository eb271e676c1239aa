//! One commit of rows of another log: files, positions and counts, all or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lakegate_env::hit_failpoint;
use lakegate_lake::{Commit, CommitError, FileState, LakeTable, WrittenFile};
use lakegate_memtable::Guest;
use uuid::Uuid;

use super::api::{UpstreamCommit, UpstreamError, UpstreamTarget};
use super::{Part, subtract};
use crate::gate::Gate;
use crate::import::{counts_of, counts_of_letters};
use crate::streams::Stream;

/// Time between two tries of what the lake does not take: first, and at most.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A part on its way into the table.
pub(super) struct Work {
    pub(super) gate: Gate,
    pub(super) target: UpstreamTarget,
    pub(super) stream: Arc<Stream>,
    pub(super) table: Arc<LakeTable>,
    pub(super) own: u64,
    pub(super) guest: Guest,
    pub(super) part: Part,
    pub(super) given_up: Arc<AtomicBool>,
}

impl Work {
    /// Writes, commits, and lets go of the rows in memory, whatever comes of it.
    pub(super) async fn run(self) -> Result<UpstreamCommit, UpstreamError> {
        let done = self.bring().await;
        let inner = &self.gate.inner;
        if let Ok(done) = &done {
            inner.note_imported(&self.table.view());
            self.stream.unit.last_commit_us.store(inner.clock.wall_us(), Ordering::Relaxed);
            metrics::counter!("lakegate_commits_total").increment(1);
            metrics::counter!("lakegate_upstream_rows_total", "name" => self.target.name.clone()).increment(done.rows);
        }
        if let Some((_, tally)) = inner.upstream.lock().get_mut(&self.own) {
            subtract(tally, &self.part.tally);
        }
        self.stream.unit.memtable.drop_guest(&self.guest);
        done
    }

    async fn bring(&self) -> Result<UpstreamCommit, UpstreamError> {
        let inner = &self.gate.inner;
        if self.part.letters_upto > 0 {
            let durable = inner.log.wait_durable(self.part.letters_upto).await;
            durable.map_err(|error| UpstreamError::Closed(error.to_string()))?;
        }
        for (table, after) in &self.part.after {
            let stands = after.done.clone().wait_for(|number| *number >= after.number).await.map(|_| ());
            stands
                .map_err(|_| UpstreamError::Lake(format!("the commit of {table}, which comes first, was given up")))?;
        }
        let mut wait = RETRY;
        loop {
            armed("upstream.before_write")?;
            let files = match self.table.write(self.stream.unit.memtable.guest_batches(&self.guest)).await {
                Ok(files) => files,
                Err(error) if self.is_over() => return Err(UpstreamError::Lake(error.to_string())),
                Err(error) => {
                    self.pause(&mut wait, &error).await;
                    continue;
                }
            };
            armed("upstream.before_commit")?;
            if let Some(snapshot_id) = self.commit(files, &mut wait).await? {
                armed("upstream.after_commit")?;
                return Ok(UpstreamCommit { rows: self.part.tally.accepted, positions: self.positions(), snapshot_id });
            }
        }
    }

    fn positions(&self) -> Vec<(u128, Vec<u8>)> {
        let state = |state: &FileState| match state {
            FileState::Partial(state) => state.clone(),
            FileState::Complete => Vec::new(),
        };
        self.part.changes.iter().map(|(id, change)| (*id, state(&change.to.state))).collect()
    }

    /// Gives the snapshot, or nothing where the files have to be written anew.
    async fn commit(&self, files: Vec<WrittenFile>, wait: &mut Duration) -> Result<Option<i64>, UpstreamError> {
        let inner = &self.gate.inner;
        let commit_id = Uuid::from_u128(inner.random.next_u128());
        let mut counts = counts_of(inner.log.id(), &self.stream.key, &self.part.tally);
        counts.extend(counts_of_letters(inner.log.id(), &self.stream.key, self.part.letters));
        counts.insert(self.guest.counter.to_string(), 1);
        let changes = self.part.changes.values().cloned().collect();
        let commit = Commit {
            counts,
            properties: self.part.labels.clone(),
            ..Commit::of_marks(commit_id, files.clone(), changes)
        };
        loop {
            let error = match self.table.commit(commit.clone()).await {
                Ok(outcome) => return Ok(Some(outcome.snapshot_id)),
                Err(error) => error,
            };
            let message = error.to_string();
            let (error, again) = match error {
                CommitError::Unavailable { .. } if !self.is_over() => {
                    self.pause(wait, &message).await;
                    continue;
                }
                // It may stand, or come to: its files stay. The table's positions say what became of it.
                CommitError::Unavailable { outcome_unknown: true, .. } => return Err(UpstreamError::Lake(message)),
                CommitError::StaleFiles { .. } => (UpstreamError::Lake(message), !self.is_over()),
                CommitError::AlreadyAbsorbed { .. } => (UpstreamError::TakenOver(message), false),
                CommitError::Unavailable { .. } => (UpstreamError::Lake(message), false),
                _ => (UpstreamError::Halted(message), false),
            };
            self.table.discard(&files).await;
            return if again { Ok(None) } else { Err(error) };
        }
    }

    /// Whether nobody waits for the commit any more.
    fn is_over(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    async fn pause(&self, wait: &mut Duration, why: &(dyn std::fmt::Display + Sync)) {
        let table = &self.stream.unit.table;
        tracing::warn!(%table, source = %self.target.name, error = %why, "rows wait in memory for their commit");
        // In small steps, so that an end is seen.
        let mut left = *wait;
        while !left.is_zero() && !self.is_over() {
            let step = left.min(RETRY);
            tokio::time::sleep(step).await;
            left -= step;
        }
        *wait = (*wait * 2).min(RETRY_MAX);
    }
}

fn armed(name: &'static str) -> Result<(), UpstreamError> {
    hit_failpoint(name).map_err(|error| UpstreamError::Closed(format!("{name}: {error}")))
}
