//! Runs a job: several of its files at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lakegate_places::{FileIdentity, Found};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::imports::Inner;
use super::job::{Counts, Job, JobProblem, JobState};
use super::journal::{Id128, Line, Upload};
use super::one::{FileSource, import_file};

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

/// Imports files, several at once, until all are done with or the job or the process ends.
pub(super) async fn import_all(
    inner: &Arc<Inner>,
    job: &Arc<Job>,
    sources: Vec<FileSource>,
    earlier: Arc<Earlier>,
) -> Vec<(FileSource, Result<Counts, ()>)> {
    let own = Arc::new(Semaphore::new(job.request.parallel_files.unwrap_or(inner.options.parallel_files)));
    let mut running = JoinSet::new();
    let mut ended = Vec::new();
    for source in sources {
        let Some(permits) = permits(inner, job, &own).await else { break };
        let (inner, job, earlier) = (inner.clone(), job.clone(), earlier.clone());
        running.spawn_blocking(move || {
            let counts = import_file(&inner, &job, &source, &earlier);
            drop(permits);
            (source, counts)
        });
        while let Some(Ok(one)) = running.try_join_next() {
            ended.push(one);
        }
    }
    while let Some(joined) = running.join_next().await {
        match joined {
            Ok(one) => ended.push(one),
            Err(error) => {
                // A reader that breaks is one file's matter.
                job.figures.add(&Counts { files: 1, files_failed: 1, ..Counts::default() });
                let reason = format!("the reader broke: {error}");
                job.tell_problem(JobProblem { file: String::new(), row: None, reason });
            }
        }
    }
    ended
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
