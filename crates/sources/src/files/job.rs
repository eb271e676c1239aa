//! One job: what it is to do, how far it is, how it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::journal::Journal;
use super::request::{Asker, ImportRequest};
use super::watch::Staging;

/// The most problems that a job tells.
const PROBLEMS_MAX: usize = 100;

/// What a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Files of a place.
    Import,
    /// A file that was sent.
    Upload,
    /// Files of a watched place, from now on.
    Watch,
}

/// How a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It runs.
    Running,
    /// All files are in their tables.
    Done,
    /// At least one file could not be read to its end.
    Failed,
    /// It was told to end.
    Cancelled,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobProblem {
    /// The file, escaped.
    pub file: String,
    /// The row or line, where it is one row's problem.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub row: Option<u64>,
    /// What was found, and what to do.
    pub reason: String,
}

/// How a Parquet file was brought into its table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileChoice {
    /// The file, escaped.
    pub file: String,
    /// Whether it was taken as it is; else its rows were written anew.
    pub adopted: bool,
    /// Why.
    pub reason: String,
}

/// Figures of a job, or of one file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Counts {
    pub(super) files: u64,
    pub(super) files_unchanged: u64,
    pub(super) files_adopted: u64,
    pub(super) files_failed: u64,
    pub(super) documents: u64,
    pub(super) skipped: u64,
    pub(super) duplicates: u64,
    pub(super) bytes: u64,
}

/// The figures, as several files add to them.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) files: AtomicU64,
    pub(super) files_unchanged: AtomicU64,
    pub(super) files_adopted: AtomicU64,
    pub(super) files_failed: AtomicU64,
    pub(super) files_total: AtomicU64,
    pub(super) documents: AtomicU64,
    pub(super) skipped: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) bytes_total: AtomicU64,
}

impl Figures {
    pub(super) fn add(&self, counts: &Counts) {
        let pairs = [
            (&self.files, counts.files),
            (&self.files_unchanged, counts.files_unchanged),
            (&self.files_adopted, counts.files_adopted),
            (&self.files_failed, counts.files_failed),
            (&self.documents, counts.documents),
            (&self.skipped, counts.skipped),
            (&self.duplicates, counts.duplicates),
            (&self.bytes, counts.bytes),
        ];
        for (figure, more) in pairs {
            figure.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// Takes back what one file added.
    pub(super) fn take_back(&self, counts: &Counts) {
        let pairs = [
            (&self.files_adopted, counts.files_adopted),
            (&self.documents, counts.documents),
            (&self.skipped, counts.skipped),
            (&self.duplicates, counts.duplicates),
            (&self.bytes, counts.bytes),
        ];
        for (figure, less) in pairs {
            figure.fetch_sub(less, Ordering::Relaxed);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let get = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Counts {
            files: get(&self.files),
            files_unchanged: get(&self.files_unchanged),
            files_adopted: get(&self.files_adopted),
            files_failed: get(&self.files_failed),
            documents: get(&self.documents),
            skipped: get(&self.skipped),
            duplicates: get(&self.duplicates),
            bytes: get(&self.bytes),
        }
    }
}

/// A job, as its asker sees it.
#[derive(Debug, Clone, Serialize)]
pub struct JobView {
    /// Its id.
    pub id: Uuid,
    /// What it is.
    pub kind: JobKind,
    /// How it is.
    pub state: JobState,
    /// The tenant whose tables take the rows.
    pub tenant: String,
    /// What it was asked.
    pub request: ImportRequest,
    /// Files that are done with.
    pub files: u64,
    /// Files in all, as far as they are found.
    pub files_total: u64,
    /// Files among them that were in their table already.
    pub files_unchanged: u64,
    /// Parquet files among them that were taken into their table as they are.
    pub files_adopted: u64,
    /// Files among them that could not be read to their end.
    pub files_failed: u64,
    /// Rows that are in their table now.
    pub documents: u64,
    /// Rows that were set aside.
    pub skipped: u64,
    /// Rows that were there already.
    pub duplicates: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Bytes in all, as far as they are known.
    pub bytes_total: u64,
    /// Documents a second, since the job began or went on.
    pub rate: f64,
    /// Seconds that are left, where they can be told.
    pub eta: Option<f64>,
    /// Seconds that it ran.
    pub elapsed: f64,
    /// The streams whose tables took rows.
    pub streams: Vec<String>,
    /// How the first Parquet files were brought into their tables, and why so.
    pub choices: Vec<FileChoice>,
    /// The first problems.
    pub errors: Vec<JobProblem>,
    /// What files hold besides rows, such as statements that are no data.
    pub passed_over: Vec<String>,
    /// When it began, in microseconds since 1970.
    pub created_us: i64,
}

/// A job.
pub(super) struct Job {
    pub(super) id: Uuid,
    pub(super) kind: JobKind,
    pub(super) asker: Asker,
    pub(super) request: ImportRequest,
    pub(super) created_us: i64,
    pub(super) figures: Figures,
    /// What other runs of this job counted before this one.
    pub(super) before: Counts,
    pub(super) cancel: CancellationToken,
    pub(super) journal: Journal,
    /// Where the rows of staged files go; none: no staged files.
    pub(super) staging: Option<Arc<Staging>>,
    told: Mutex<Told>,
    state: watch::Sender<JobState>,
    started: Instant,
    ended: Mutex<Option<Duration>>,
}

#[derive(Default)]
struct Told {
    choices: Vec<FileChoice>,
    problems: Vec<JobProblem>,
    streams: Vec<String>,
    passed_over: Vec<String>,
}

impl Job {
    pub(super) fn new(
        id: Uuid,
        kind: JobKind,
        asker: Asker,
        request: ImportRequest,
        created_us: i64,
        before: Counts,
        journal: Journal,
    ) -> Self {
        let figures = Figures::default();
        figures.add(&before);
        Self {
            id,
            kind,
            asker,
            request,
            created_us,
            figures,
            before,
            cancel: CancellationToken::new(),
            journal,
            staging: None,
            told: Mutex::default(),
            state: watch::Sender::new(JobState::Running),
            started: Instant::now(),
            ended: Mutex::new(None),
        }
    }

    pub(super) fn staged(mut self, staging: Option<Arc<Staging>>) -> Self {
        self.staging = staging;
        self
    }

    pub(super) fn state(&self) -> JobState {
        *self.state.borrow()
    }

    pub(super) fn end(&self, state: JobState) {
        *self.ended.lock() = Some(self.started.elapsed());
        self.state.send_replace(state);
    }

    /// Waits for the end, at most so long. Returns whether it came.
    pub(super) async fn wait(&self, within: Duration) -> bool {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| *state != JobState::Running);
        tokio::time::timeout(within, ended).await.is_ok()
    }

    pub(super) fn tell_problem(&self, problem: JobProblem) {
        let mut told = self.told.lock();
        if told.problems.len() < PROBLEMS_MAX {
            told.problems.push(problem);
        }
    }

    pub(super) fn tell_choice(&self, choice: FileChoice) {
        let mut told = self.told.lock();
        if told.choices.len() < PROBLEMS_MAX {
            told.choices.push(choice);
        }
    }

    pub(super) fn tell_stream(&self, stream: &str) {
        let mut told = self.told.lock();
        if !told.streams.iter().any(|known| known == stream) && told.streams.len() < PROBLEMS_MAX {
            told.streams.push(stream.to_owned());
        }
    }

    pub(super) fn tell_passed_over(&self, what: String) {
        let mut told = self.told.lock();
        if told.passed_over.len() < PROBLEMS_MAX {
            told.passed_over.push(what);
        }
    }

    pub(super) fn view(&self) -> JobView {
        let get = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let figures = &self.figures;
        let ended = *self.ended.lock();
        let elapsed = ended.unwrap_or_else(|| self.started.elapsed()).as_secs_f64();
        let (documents, bytes, bytes_total) = (get(&figures.documents), get(&figures.bytes), get(&figures.bytes_total));
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / elapsed.max(1e-3);
        let byte_rate = per_second(bytes, self.before.bytes);
        let running = self.state() == JobState::Running;
        let eta = (running && self.kind != JobKind::Watch && byte_rate > 0.0 && bytes_total > 0)
            .then(|| bytes_total.saturating_sub(bytes) as f64 / byte_rate);
        let told = self.told.lock();
        JobView {
            id: self.id,
            kind: self.kind,
            state: self.state(),
            tenant: self.asker.tenant.as_str().to_owned(),
            request: self.request.clone(),
            files: get(&figures.files),
            files_total: get(&figures.files_total),
            files_unchanged: get(&figures.files_unchanged),
            files_adopted: get(&figures.files_adopted),
            files_failed: get(&figures.files_failed),
            documents,
            skipped: get(&figures.skipped),
            duplicates: get(&figures.duplicates),
            bytes,
            bytes_total,
            rate: per_second(documents, self.before.documents),
            eta,
            elapsed,
            streams: told.streams.clone(),
            choices: told.choices.clone(),
            errors: told.problems.clone(),
            passed_over: told.passed_over.clone(),
            created_us: self.created_us,
        }
    }
}
