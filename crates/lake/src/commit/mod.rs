//! Commits: data files, the log's absorbed position and new columns, at once and exactly once.
//!
//! A commit is one `(requirements, updates)` value. What it promises rests on three things that go into the table with
//! the rows, in the same swap:
//! - the commit's id, in the snapshot's summary and in a table property: an attempt whose answer was lost is looked for
//!   before anything is tried again, and is found even when its snapshot has been expired;
//! - the writer's epoch: a writer that finds a newer one is fenced off;
//! - the absorbed position: a commit that does not follow on it is refused. Rows that did not come through the log leave
//!   it as it is; the marks of the files that they came from take its place (see [`crate::ledger`]).
//!
//! Every commit makes a snapshot, one without files too, and asserts the snapshot before it. So any two commits of one
//! table exclude each other, and what was read of the properties still holds when the swap is made.
//! The snapshot's id follows from the commit's id: no catalog takes the same commit twice.

mod attempt;
mod exchange;
mod merge;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use iceberg::TableRequirement;
use lakegate_env::hit_failpoint;
use lakegate_model::Position;
use uuid::Uuid;

use crate::catalog::{CatalogError, LoadedTable};
use crate::error::{CommitError, LakeError};
use crate::ledger::{FileChange, FileState, Ledger, MAX_PARTIAL_BYTES};
use crate::table::{Doubt, InFlight, LakeTable};
use crate::view::TableView;
use crate::write::WrittenFile;

use attempt::Attempt;
pub(crate) use exchange::{Exchange, check_exchangeable};
pub(crate) use merge::snapshots_beyond;
pub(crate) use state::{COUNTERS, LogKeys, LogState};

/// The snapshot summary's key of the commit's id.
pub(crate) const COMMIT_ID: &str = "lakegate.commit-id";

/// Files, and what the table says of their source once it has them.
#[derive(Debug, Clone)]
pub struct Commit {
    /// From [`LakeTable::write`]; may be empty.
    pub files: Vec<WrittenFile>,
    /// How far the log is absorbed with them; none where they did not come through it.
    pub log: Option<LogStep>,
    /// How far files are absorbed with them.
    pub marks: Vec<FileChange>,
    /// By how much counters of the table grow, see [`TableView::counter`]. Names are of `a-z0-9._-`.
    pub counts: BTreeMap<String, u64>,
    /// The same over all attempts of this commit, never used for another.
    pub commit_id: Uuid,
    /// Table properties to be set along with it.
    pub properties: BTreeMap<String, String>,
}

impl Commit {
    /// Rows that came through the log.
    #[must_use]
    pub fn of_log(commit_id: Uuid, files: Vec<WrittenFile>, position: Position, expected_next_offset: u64) -> Self {
        let log = Some(LogStep { position, expected_next_offset });
        Self { log, ..Self::of_marks(commit_id, files, Vec::new()) }
    }

    /// Rows that came from files.
    #[must_use]
    pub fn of_marks(commit_id: Uuid, files: Vec<WrittenFile>, marks: Vec<FileChange>) -> Self {
        Self { files, log: None, marks, counts: BTreeMap::new(), commit_id, properties: BTreeMap::new() }
    }
}

/// A step of the log's absorbed position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStep {
    /// What the table will have absorbed.
    pub position: Position,
    /// What it must have absorbed before.
    pub expected_next_offset: u64,
}

/// What a commit came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitOutcome {
    /// Its snapshot.
    pub snapshot_id: i64,
    /// Its place among the table's commits.
    pub sequence_number: i64,
    /// How many attempts this call made; 0 when the commit was found done.
    pub attempts: u32,
    /// Whether an answer was lost and the commit was found in the table.
    pub resolved_unknown: bool,
}

/// How far one call of commit has come.
struct Progress {
    attempts: u32,
    /// What each attempt requires whose outcome is not known.
    in_flight: Vec<Vec<TableRequirement>>,
    last: String,
}

impl Progress {
    fn is_unknown(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// What is left to be found out by the next call, along with what others left.
    fn doubt(&self, commit_id: Uuid, mut before: Doubt) -> Doubt {
        before.refresh = true;
        before.unknown.retain(|u| u.commit_id != commit_id);
        if self.is_unknown() {
            before.unknown.push(InFlight { commit_id, attempts: self.in_flight.clone() });
        }
        before
    }
}

enum Step {
    Done(CommitOutcome),
    Again,
}

/// What a state of the table says to a commit.
enum Look {
    Done(CommitOutcome),
    Ready(BaseState),
    Refused(CommitError),
    /// It could not be read.
    Later(String),
}

/// What of a state the commit builds on.
pub(super) struct BaseState {
    pub(super) log: LogState,
    pub(super) ledger: Ledger,
}

/// A commit that tried for so long says what it waits for, and is brought again later.
const PATIENCE_SECONDS: f64 = 15.0;

impl LakeTable {
    /// Commits. Tries again by itself after conflicts, lost answers and short absences of the catalog.
    ///
    /// # Errors
    /// See [`CommitError`]; only [`CommitError::Unavailable`] is to be tried again, with the same commit.
    pub async fn commit(&self, commit: Commit) -> Result<CommitOutcome, CommitError> {
        self.commit_exchange(&commit, None).await
    }

    /// The same, with files taken out of the table by it.
    pub(crate) async fn commit_exchange(
        &self,
        commit: &Commit,
        exchange: Option<&Exchange>,
    ) -> Result<CommitOutcome, CommitError> {
        let _turn = self.turn.lock().await;
        let started_us = self.lake.options.clock.monotonic_us();
        self.check_commit(commit)?;
        let before = self.doubt().unknown.into_iter().find(|u| u.commit_id == commit.commit_id);
        let in_flight = before.map(|u| u.attempts).unwrap_or_default();
        let mut progress = Progress { attempts: 0, in_flight, last: String::new() };
        let mut attempt = Attempt::new(self, commit, exchange.cloned());
        let limit = self.lake.options.commit_attempts.max(1);
        let mut rounds = 0;
        loop {
            let step = self.try_once(commit, &mut attempt, &mut progress).await;
            rounds += 1;
            match step {
                Ok(Step::Done(outcome)) => {
                    self.forget_live(&commit.files);
                    self.set_doubt(Doubt::default());
                    metrics::histogram!("lakegate_lake_commit_seconds").record(self.seconds_since(started_us));
                    return Ok(outcome);
                }
                Ok(Step::Again) if rounds >= limit || self.seconds_since(started_us) >= PATIENCE_SECONDS => {
                    self.set_doubt(progress.doubt(commit.commit_id, self.doubt()));
                    let (outcome_unknown, Progress { attempts, last, .. }) = (progress.is_unknown(), progress);
                    return Err(CommitError::Unavailable {
                        table: self.name().clone(),
                        attempts,
                        last,
                        outcome_unknown,
                    });
                }
                Ok(Step::Again) => self.wait_before(rounds).await,
                Err(error) => {
                    self.set_doubt(progress.doubt(commit.commit_id, self.doubt()));
                    return Err(error);
                }
            }
        }
    }

    fn check_commit(&self, commit: &Commit) -> Result<(), CommitError> {
        let invalid = |message: String| CommitError::Invalid { table: self.name().clone(), message };
        let writer = &self.lake.options.writer;
        if let Some(LogStep { position, expected_next_offset }) = &commit.log {
            if position.log != writer.log || position.partition != writer.partition {
                let Position { log, partition, .. } = position;
                return Err(invalid(format!("its position is of the log {log}, partition {partition}")));
            }
            if position.next_offset < *expected_next_offset {
                let next = position.next_offset;
                return Err(invalid(format!("it goes back from offset {expected_next_offset} to {next}")));
            }
        }
        if let Some(key) = commit.properties.keys().find(|k| k.starts_with("lakegate.")) {
            return Err(invalid(format!("the property {key} is the lake's own")));
        }
        if let Some(name) = commit.counts.keys().find(|n| !is_counter_name(n)) {
            return Err(invalid(format!("{name:?} is no counter's name; use a-z, 0-9, '.', '_' and '-'")));
        }
        let mut ids = HashSet::new();
        for FileChange { to, .. } in &commit.marks {
            let length = match &to.state {
                FileState::Partial(mark) => mark.len(),
                FileState::Complete => 0,
            };
            if length > MAX_PARTIAL_BYTES || !ids.insert(to.id) {
                let id = to.id;
                return Err(invalid(format!(
                    "the file {id:032x} is marked twice, or its mark has {length} bytes, more than {MAX_PARTIAL_BYTES}"
                )));
            }
        }
        Ok(())
    }

    async fn try_once(
        &self,
        commit: &Commit,
        attempt: &mut Attempt,
        progress: &mut Progress,
    ) -> Result<Step, CommitError> {
        let again = progress.attempts > 0 || self.doubt().refresh;
        if again && let Err(error) = self.refresh_for().await? {
            progress.last = error;
            return Ok(Step::Again);
        }
        let mut base = self.view();
        let mut look = self.look(&base, commit, progress).await;
        if matches!(look, Look::Refused(_)) && !again {
            // What is known may be old: another process may have committed.
            if let Err(error) = self.refresh_for().await? {
                progress.last = error;
                return Ok(Step::Again);
            }
            base = self.view();
            look = self.look(&base, commit, progress).await;
        }
        let state = match look {
            Look::Done(outcome) => return Ok(Step::Done(outcome)),
            Look::Ready(state) => state,
            Look::Refused(error @ CommitError::AlreadyAbsorbed { .. }) => {
                return self.give_up_files(&base, error, progress);
            }
            Look::Refused(error) => return Err(error),
            Look::Later(last) => {
                progress.last = last;
                return Ok(Step::Again);
            }
        };
        if self.waited_too_long(&commit.files) {
            let message = "they waited for days and may have been removed".to_owned();
            let error = CommitError::StaleFiles { table: self.name().clone(), message };
            return self.give_up_files(&base, error, progress);
        }
        progress.attempts += 1;
        match self.upload(commit, attempt, &base, state).await {
            Ok(()) => self.swap(commit, attempt, progress).await,
            Err(error) if error.is_retryable() => {
                progress.last = error.to_string();
                Ok(Step::Again)
            }
            Err(LakeError::Contract(message)) => {
                let error = CommitError::StaleFiles { table: self.name().clone(), message };
                self.give_up_files(&base, error, progress)
            }
            Err(error) => Err(CommitError::Invalid { table: self.name().clone(), message: error.to_string() }),
        }
    }

    /// The files cannot be committed any more. They may be given up only when no attempt that names them can still
    /// come to stand; until then the table is looked at again.
    fn give_up_files(
        &self,
        base: &TableView,
        error: CommitError,
        progress: &mut Progress,
    ) -> Result<Step, CommitError> {
        let may_stand =
            |requirements: &Vec<TableRequirement>| requirements.iter().all(|r| r.check(Some(base.metadata())).is_ok());
        if progress.in_flight.iter().any(may_stand) {
            progress.last = error.to_string();
            return Ok(Step::Again);
        }
        Err(error)
    }

    async fn upload(
        &self,
        commit: &Commit,
        attempt: &mut Attempt,
        base: &TableView,
        state: BaseState,
    ) -> Result<(), LakeError> {
        self.failpoint("lake.commit.before")?;
        attempt.prepare(self, commit, base, state).await?;
        self.failpoint("lake.commit.after_upload")
    }

    fn failpoint(&self, name: &'static str) -> Result<(), LakeError> {
        hit_failpoint(name).map_err(|e| CatalogError::Unavailable(format!("{name}: {e}")).into())
    }

    async fn swap(&self, commit: &Commit, attempt: &mut Attempt, progress: &mut Progress) -> Result<Step, CommitError> {
        let (requirements, updates) = attempt.value();
        let answer = self.lake.options.catalog.commit_table(self.ident(), requirements, updates).await;
        let answer = match (answer, hit_failpoint("lake.commit.after_swap")) {
            (Ok(_), Err(e)) => Err(CatalogError::Unknown(e.to_string())),
            (answer, _) => answer,
        };
        match answer {
            Ok(loaded) => Ok(Step::Done(self.settle(commit, attempt, loaded, progress.attempts))),
            Err(error) => self.weigh(error, attempt, progress),
        }
    }

    /// What an error says about the attempt.
    fn weigh(&self, error: CatalogError, attempt: &mut Attempt, progress: &mut Progress) -> Result<Step, CommitError> {
        progress.last = error.to_string();
        match error {
            CatalogError::Unknown(_) => {
                metrics::counter!("lakegate_lake_unknown_outcomes_total").increment(1);
                let requirements = attempt.value().0;
                if !progress.in_flight.contains(&requirements) {
                    progress.in_flight.push(requirements);
                }
                attempt.keep_files();
            }
            CatalogError::Conflict(_) => metrics::counter!("lakegate_lake_conflicts_total").increment(1),
            // Nothing was changed, or the next look at the table says why.
            CatalogError::Unavailable(_) | CatalogError::NotFound(_) => {}
            CatalogError::AlreadyExists(message)
            | CatalogError::NotEmpty(message)
            | CatalogError::Rejected(message) => {
                // An attempt before it may stand: then a look at the table must decide, not this answer.
                if !progress.is_unknown() {
                    return Err(CommitError::Invalid { table: self.name().clone(), message });
                }
            }
        }
        Ok(Step::Again)
    }

    fn settle(&self, commit: &Commit, attempt: &mut Attempt, loaded: LoadedTable, attempts: u32) -> CommitOutcome {
        let snapshot_id = snapshot_id_of(commit.commit_id);
        let sequence_number = attempt.sequence_number();
        self.retire(attempt.take_retired(), &loaded.metadata);
        attempt.take_ledger().iter().for_each(|next| self.keep_next_ledger(next));
        if let Err(error) = self.adopt(loaded, Some(attempt.take_manifests())) {
            // The commit stands. Whoever asks for the newest state is told what is wrong with it.
            tracing::error!(table = %self.name(), %error, "the committed state cannot be read");
        }
        CommitOutcome { snapshot_id, sequence_number, attempts, resolved_unknown: false }
    }

    /// Asks the catalog; the inner error is one to be tried again.
    async fn refresh_for(&self) -> Result<Result<(), String>, CommitError> {
        match self.refresh_inner().await {
            Ok(view) if view.uuid() == self.uuid => Ok(Ok(())),
            Ok(view) => Err(self.replaced(Some(view.uuid()))),
            Err(LakeError::Catalog(CatalogError::NotFound(_))) => Err(self.replaced(None)),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    fn replaced(&self, found: Option<Uuid>) -> CommitError {
        CommitError::TableReplaced { table: self.name().clone(), expected: self.uuid, found }
    }

    /// Whether this state has the commit already, and if not, whether the commit may follow it.
    async fn look(&self, base: &TableView, commit: &Commit, progress: &Progress) -> Look {
        let ledger = match self.ledger_for(base, commit).await {
            Ok(ledger) => ledger,
            Err(error) if error.is_retryable() => return Look::Later(error.to_string()),
            Err(error) => {
                return Look::Refused(CommitError::Invalid { table: self.name().clone(), message: error.to_string() });
            }
        };
        if let Some(done) = self.find_done(base, &ledger, commit, progress) {
            return Look::Done(done);
        }
        let judged = self.judge(base, commit).and_then(|log| self.judge_marks(&ledger, commit).map(|()| log));
        match judged {
            Ok(log) => Look::Ready(BaseState { log, ledger }),
            Err(error) => Look::Refused(error),
        }
    }

    async fn ledger_for(&self, base: &TableView, commit: &Commit) -> Result<Ledger, LakeError> {
        if commit.marks.is_empty() { Ok(Ledger::default()) } else { self.ledger_of(base).await }
    }

    /// The commit, if the table has it already.
    fn find_done(
        &self,
        base: &TableView,
        ledger: &Ledger,
        commit: &Commit,
        progress: &Progress,
    ) -> Option<CommitOutcome> {
        let keys = LogKeys::new(&self.lake.options.writer);
        let by_property = base.properties().get(&keys.commit).is_some_and(|id| *id == commit.commit_id.to_string());
        let is_done =
            by_property || ledger.has_done(&commit.marks, commit.commit_id) || base.has_commit(commit.commit_id);
        if !is_done {
            return None;
        }
        let snapshot_id = snapshot_id_of(commit.commit_id);
        let sequence_number = base
            .metadata()
            .snapshot_by_id(snapshot_id)
            .map_or(base.metadata().last_sequence_number(), |s| s.sequence_number());
        Some(CommitOutcome {
            snapshot_id,
            sequence_number,
            attempts: progress.attempts,
            resolved_unknown: progress.is_unknown(),
        })
    }

    /// Whether this writer may commit this, given what the table says of its log.
    fn judge(&self, base: &TableView, commit: &Commit) -> Result<LogState, CommitError> {
        let (table, writer) = (self.name().clone(), &self.lake.options.writer);
        if let Some(foreign) = commit.files.iter().find(|f| f.table_uuid != base.uuid()) {
            return Err(CommitError::TableReplaced { table, expected: foreign.table_uuid, found: Some(base.uuid()) });
        }
        let keys = LogKeys::new(writer);
        let state = LogState::read(base.properties(), &keys)
            .map_err(|message| CommitError::Invalid { table: table.clone(), message })?;
        if let Some((epoch, instance)) = &state.epoch {
            let newer = *epoch > writer.epoch || (*epoch == writer.epoch && *instance != writer.instance.to_string());
            if newer {
                let (log, found_instance) = (writer.log, instance.clone());
                let (epoch, instance, found_epoch) = (writer.epoch, writer.instance, *epoch);
                return Err(CommitError::Fenced { table, log, epoch, instance, found_epoch, found_instance });
            }
        }
        let Some(LogStep { expected_next_offset: expected, .. }) = commit.log else { return Ok(state) };
        let lost = state.absorbed.is_none() && (state.epoch.is_some() || base.has_snapshot_with(&keys.wal));
        if lost || state.absorbed.unwrap_or(0) != expected {
            let found = if lost { None } else { Some(state.absorbed.unwrap_or(0)) };
            return Err(CommitError::PositionMismatch { table, log: writer.log, expected, found });
        }
        Ok(state)
    }

    /// Whether the files that the rows came from are as far as the commit believes.
    fn judge_marks(&self, ledger: &Ledger, commit: &Commit) -> Result<(), CommitError> {
        let Some(change) = ledger.misfit(&commit.marks) else { return Ok(()) };
        let found = ledger.get(change.to.id).map(|e| Box::new(e.mark.clone()));
        Err(CommitError::AlreadyAbsorbed { table: self.name().clone(), file: change.to.id, found })
    }

    /// Waits longer each time, by a random part, so that rivals do not meet again.
    async fn wait_before(&self, round: u32) {
        let ceiling_us = 5_000_u64.saturating_mul(1 << round.min(9));
        let us = ceiling_us / 2 + self.lake.options.random.next_u64() % (ceiling_us / 2 + 1);
        self.lake.options.pause.pause(Duration::from_micros(us)).await;
    }
}

fn is_counter_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= 200 && name.bytes().all(plain)
}

/// A commit's snapshot id: both halves of its id mixed, never negative. The multiplier (2^64 divided by the golden ratio)
/// keeps ids apart that differ in both halves alike.
pub(crate) fn snapshot_id_of(commit_id: Uuid) -> i64 {
    let (high, low) = commit_id.as_u64_pair();
    let mixed = high.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ low;
    i64::try_from(mixed & 0x7fff_ffff_ffff_ffff).unwrap_or_default()
}
