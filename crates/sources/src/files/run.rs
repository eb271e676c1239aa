//! Runs a job: several of its files at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lakegate_ingest::ImportError;
use lakegate_places::{FileIdentity, Found};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::imports::Inner;
use super::job::{Counts, Job, JobProblem, JobState};
use super::journal::{Id128, Line, Upload};
use super::one::{FileSource, Imported, Ready, ReadyFile, end_file, import_file};

/// So many small files share a commit at most,
const COMMIT_FILES: usize = 64;
/// none waits longer for others,
const COMMIT_AFTER: Duration = Duration::from_millis(300);
/// and no more are read while so many commits are under way.
const COMMITS: usize = 2;

/// What a job has to do, and what earlier runs of it did.
pub(super) struct Work {
    /// The files; none: to be listed.
    pub(super) files: Option<Vec<Found>>,
    /// The file that was sent.
    pub(super) upload: Option<Upload>,
    /// Files that are done with.
    pub(super) done: HashSet<Id128>,
    /// Files that were begun.
    pub(super) begun: HashSet<Id128>,
}

pub(super) async fn run_job(inner: Arc<Inner>, job: Arc<Job>, work: Work) {
    let Work { files, upload, done, begun } = work;
    let sources = match sources(&inner, &job, files, upload.as_ref()).await {
        Ok(sources) => sources,
        Err(reason) => {
            job.tell_problem(JobProblem { file: String::new(), row: None, reason });
            end(&inner, &job, JobState::Failed, upload.as_ref());
            return;
        }
    };
    let bytes = sources.iter().map(FileSource::bytes).sum();
    job.figures.files_total.store(sources.len() as u64, Ordering::Relaxed);
    job.figures.bytes_total.store(bytes, Ordering::Relaxed);
    import_all(&inner, &job, sources, Arc::new(Earlier { done, begun })).await;
    if job.cancel.is_cancelled() {
        end(&inner, &job, JobState::Cancelled, upload.as_ref());
    } else if !inner.stop.is_cancelled() {
        let failed = job.figures.files_failed.load(Ordering::Relaxed) > 0;
        end(&inner, &job, if failed { JobState::Failed } else { JobState::Done }, upload.as_ref());
    }
}

/// What earlier runs of a job did.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    pub(super) done: HashSet<Id128>,
    pub(super) begun: HashSet<Id128>,
}

async fn sources(
    inner: &Arc<Inner>,
    job: &Arc<Job>,
    files: Option<Vec<Found>>,
    upload: Option<&Upload>,
) -> Result<Vec<FileSource>, String> {
    if let Some(upload) = upload {
        let identity = FileIdentity { uri: upload.uri.clone(), version: upload.version.clone() };
        return Ok(vec![FileSource::Spooled { name: upload.spooled.clone(), identity }]);
    }
    let files = match files {
        Some(files) => files,
        None => {
            let (inner, job) = (inner.clone(), job.clone());
            let listed = tokio::task::spawn_blocking(move || inner.list(&job.request, job.asker.tenant.as_str()));
            listed.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?
        }
    };
    Ok(files.into_iter().map(FileSource::Found).collect())
}

/// What importing one file came to.
type Outcome = (FileSource, Result<Counts, ()>);

/// Files of a job that are read, and those that wait for their commit.
struct Running {
    inner: Arc<Inner>,
    job: Arc<Job>,
    earlier: Arc<Earlier>,
    reading: JoinSet<(FileSource, Imported)>,
    ready: Vec<(FileSource, Ready)>,
    /// When the first of these was read.
    since: Instant,
    commits: JoinSet<Vec<Outcome>>,
    ended: Vec<Outcome>,
}

/// Imports files, several at once, until all are done with or the job or the process ends. Small ones share commits.
pub(super) async fn import_all(
    inner: &Arc<Inner>,
    job: &Arc<Job>,
    sources: Vec<FileSource>,
    earlier: Arc<Earlier>,
) -> Vec<Outcome> {
    let own = Arc::new(Semaphore::new(job.request.parallel_files.unwrap_or(inner.options.parallel_files)));
    let mut sources = sources.into_iter().peekable();
    let mut running = Running {
        inner: inner.clone(),
        job: job.clone(),
        earlier,
        reading: JoinSet::new(),
        ready: Vec::new(),
        since: Instant::now(),
        commits: JoinSet::new(),
        ended: Vec::new(),
    };
    loop {
        let (more, reads, commits) =
            (sources.peek().is_some(), !running.reading.is_empty(), !running.commits.is_empty());
        let is_last = !more && !reads;
        if running.ready.len() >= COMMIT_FILES || (is_last && !running.ready.is_empty()) {
            running.commit_ready();
            continue;
        }
        if is_last && !commits {
            return running.ended;
        }
        let (waits, due) = (!running.ready.is_empty(), running.since + COMMIT_AFTER);
        tokio::select! {
            biased;
            Some(read) = running.reading.join_next(), if reads => running.read(read),
            Some(done) = running.commits.join_next(), if commits => match done {
                Ok(outcomes) => running.ended.extend(outcomes),
                Err(error) => running.broke(&error),
            },
            permits = permits(inner, job, &own), if more && running.commits.len() < COMMITS => match permits {
                Some(permits) => running.begin(sources.next(), permits),
                None => sources = Vec::new().into_iter().peekable(),
            },
            () = tokio::time::sleep_until(due), if waits => running.commit_ready(),
        }
    }
}

impl Running {
    fn begin(&mut self, source: Option<FileSource>, permits: [OwnedSemaphorePermit; 2]) {
        let Some(source) = source else { return };
        let (inner, job, earlier) = (self.inner.clone(), self.job.clone(), self.earlier.clone());
        self.reading.spawn_blocking(move || {
            let imported = import_file(&inner, &job, &source, &earlier);
            drop(permits);
            (source, imported)
        });
    }

    fn read(&mut self, read: Result<(FileSource, Imported), JoinError>) {
        match read {
            Ok((source, Imported::Done(counts))) => self.ended.push((source, counts)),
            Ok((source, Imported::Ready(ready))) => {
                if self.ready.is_empty() {
                    self.since = Instant::now();
                }
                self.ready.push((source, *ready));
            }
            Err(error) => self.broke(&error),
        }
    }

    /// A reader that breaks is one file's matter.
    fn broke(&self, error: &JoinError) {
        self.job.figures.add(&Counts { files: 1, files_failed: 1, ..Counts::default() });
        let reason = format!("the reader broke: {error}");
        self.job.tell_problem(JobProblem { file: String::new(), row: None, reason });
    }

    /// Commits what waits, while further files are read.
    fn commit_ready(&mut self) {
        let (inner, job, earlier) = (self.inner.clone(), self.job.clone(), self.earlier.clone());
        let ready = std::mem::take(&mut self.ready);
        self.commits.spawn(async move {
            let (mut imports, mut files) = (Vec::with_capacity(ready.len()), Vec::with_capacity(ready.len()));
            for (source, Ready { import, rest }) in ready {
                imports.push(import);
                files.push((source, rest));
            }
            let answers = inner.options.gate.finish_together(imports).await;
            let end = move || {
                let end = |((source, rest), answer): ((FileSource, ReadyFile), Result<_, ImportError>)| {
                    let counts = end_file(&inner, &job, &source, rest, answer.map(|_| ()), &earlier);
                    (source, counts)
                };
                files.into_iter().zip(answers).map(end).collect::<Vec<_>>()
            };
            tokio::task::spawn_blocking(end).await.unwrap_or_default()
        });
    }
}

async fn permits(inner: &Inner, job: &Job, own: &Arc<Semaphore>) -> Option<[OwnedSemaphorePermit; 2]> {
    let both = async {
        let own = own.clone().acquire_owned().await.ok()?;
        Some([own, inner.workers.clone().acquire_owned().await.ok()?])
    };
    tokio::select! {
        biased;
        () = job.cancel.cancelled() => None,
        () = inner.stop.cancelled() => None,
        permits = both => permits,
    }
}

fn end(inner: &Inner, job: &Job, state: JobState, upload: Option<&Upload>) {
    job.journal.add(&Line::State(state));
    if let Some(upload) = upload {
        // Left over, it is swept at the next start.
        let _ = std::fs::remove_file(inner.options.spool_dir.join(&upload.spooled));
    }
    let view = job.view();
    tracing::info!(job = %job.id, state = ?state, files = view.files, documents = view.documents, skipped = view.skipped,
        duplicates = view.duplicates, bytes = view.bytes, "an import ended");
    job.end(state);
}
