//! Places that are watched: what is put there is imported once, from now on and after restarts.
//!
//! What is there is found by listing, again and again; a folder that tells of changes (inotify) makes the next listing
//! come at once. So no change is missed, whatever events are lost, and nothing breaks where there are none. A file is
//! taken when nothing wrote to it for a while; an object of a bucket is whole when it is there.

mod events;
mod staging;
mod taken;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lakegate_model::TenantId;
use lakegate_places::{Found, ListOptions, Location, PlaceError};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::imports::{Inner, StartError};
use super::job::{Counts, Job, JobKind, JobProblem, JobState, JobView};
use super::journal::{self, Asked, Journal, Line};
use super::one::FileSource;
use super::request::{Asker, ImportRequest, RequestError};
use super::run::{Earlier, import_all};
use events::Events;
use taken::TakenFiles;

pub(super) use staging::Staging;
pub use staging::StagingOptions;

/// Listings take at most this share of the time, however large the place is: 1 in so many.
const LISTING_SHARE: u32 = 5;
/// A failure that may pass is tried again after so long.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// A watch, as its asker sees it.
#[derive(Debug, Clone, Serialize)]
pub struct WatchView {
    /// How changes are noticed: `events` or `polling`.
    pub mode: &'static str,
    /// Why the place cannot be looked at at the moment, if so.
    pub problem: Option<String>,
    /// What it took so far.
    #[serde(flatten)]
    pub job: JobView,
}

/// A watched place.
pub(super) struct Watch {
    job: Arc<Job>,
    stop: CancellationToken,
    taken: Mutex<TakenFiles>,
    mode: Mutex<&'static str>,
    problem: Mutex<Option<String>>,
}

/// A file that was seen and is not taken yet.
struct Waiting {
    version: String,
    since: Instant,
}

impl Watch {
    /// Begins a watch that a client asked for.
    pub(super) fn begin(inner: &Arc<Inner>, asker: Asker, request: ImportRequest) -> Result<Uuid, StartError> {
        let tenant = asker.tenant.as_str().to_owned();
        for place in request.places() {
            let location = Location::parse(place)?;
            if matches!(location, Location::Http(_)) {
                let reason = "a web server does not tell what it has; watch a folder or a bucket".to_owned();
                return Err(RequestError { field: "path", reason }.into());
            }
            // What may not be read is refused now; what is not there yet may come.
            let options = ListOptions { recursive: request.recursive, pattern: request.pattern.clone() };
            match inner.options.places.list(place, Some(&tenant), &options) {
                Ok(_) | Err(PlaceError::NotFound { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let created_us = inner.options.clock.wall_us();
        let shown = asker.shown();
        let asked = Asked { kind: JobKind::Watch, tenant, shown, request: request.clone(), created_us, upload: None };
        let id = inner.new_id();
        let journal = Journal::create(&inner.options.dir.join("watches"), id, &asked)?;
        let job = Job::new(id, JobKind::Watch, asker, request, created_us, Counts::default(), journal);
        Self::run(inner, job, TakenFiles::default());
        Ok(id)
    }

    /// Goes on with all watches of earlier processes, and with staging.
    pub(super) fn take_up_all(inner: &Arc<Inner>) -> std::io::Result<()> {
        let dir = inner.options.dir.join("watches");
        let mut staging = inner.options.staging.clone();
        for (id, path) in journal::list(&dir)? {
            let mut lines = journal::read(&path)?.into_iter();
            let Some(Line::Asked(asked)) = lines.next() else {
                std::fs::remove_file(&path)?;
                continue;
            };
            let Ok(tenant) = TenantId::new(&asked.tenant) else { continue };
            let (mut taken, figures) = (TakenFiles::default(), super::job::Figures::default());
            for line in lines {
                match line {
                    Line::Taken(file) => taken.insert(file),
                    Line::Ended(ended) => figures.add(&ended.counts),
                    Line::Asked(_) | Line::Begun(_) | Line::State(_) => {}
                }
            }
            let journal = Journal::reopen(&path)?;
            let Some(asker) = Asker::again(tenant, asked.shown.as_deref(), &inner.options.access) else {
                tracing::warn!(watch = %id, tenant = asked.tenant, "a watch has ended: the credentials that began it no longer hold");
                journal.remove()?;
                continue;
            };
            if id == staging::ID {
                // Where staging is and what becomes of its files is the configuration's, not the journal's.
                let Some(staging) = staging.take() else { continue };
                let job = staging.job(journal, figures.counts(), asked.created_us);
                Self::run(inner, job, taken);
            } else {
                let job =
                    Job::new(id, JobKind::Watch, asker, asked.request, asked.created_us, figures.counts(), journal);
                Self::run(inner, job, taken);
            }
        }
        if let Some(staging) = staging {
            let created_us = inner.options.clock.wall_us();
            let journal = Journal::create(&dir, staging::ID, &staging.asked(created_us))?;
            Self::run(inner, staging.job(journal, Counts::default(), created_us), TakenFiles::default());
        }
        Ok(())
    }

    fn run(inner: &Arc<Inner>, job: Job, taken: TakenFiles) {
        let watch = Arc::new(Self {
            stop: job.cancel.clone(),
            job: Arc::new(job),
            taken: Mutex::new(taken),
            mode: Mutex::new("polling"),
            problem: Mutex::new(None),
        });
        inner.watches.lock().insert(watch.job.id, watch.clone());
        let owner = inner.clone();
        inner.tasks.spawn(async move { watch.watch(owner).await });
    }

    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    pub(super) fn view(&self) -> WatchView {
        WatchView { mode: *self.mode.lock(), problem: self.problem.lock().clone(), job: self.job.view() }
    }

    /// Ends the watch for good.
    pub(super) fn end(&self) -> std::io::Result<()> {
        self.stop.cancel();
        self.job.end(JobState::Cancelled);
        self.job.journal.remove()
    }

    async fn watch(self: Arc<Self>, inner: Arc<Inner>) {
        let changed = Arc::new(Notify::new());
        let mut events: Option<Events> = None;
        let mut waiting: HashMap<String, Waiting> = HashMap::new();
        let mut later: HashMap<String, Instant> = HashMap::new();
        loop {
            if events.is_none() {
                events = self.open_events(&inner, &changed).await;
                *self.mode.lock() = if events.is_some() { "events" } else { "polling" };
            }
            let began = Instant::now();
            let listed = self.list(&inner).await;
            if listed.is_none() {
                // The folder may have been replaced by another of its name: events of the old one tell nothing.
                events = None;
            }
            let ripe = self.ripe(&inner, listed.unwrap_or_default(), &mut waiting, &later);
            self.import(&inner, ripe, &mut later).await;
            let settle = inner.options.settle;
            let rest = (began.elapsed() * (LISTING_SHARE - 1)).max(Duration::from_millis(50));
            let poll = if events.is_some() { inner.options.poll * 15 } else { inner.options.poll };
            let next = if waiting.is_empty() { poll } else { settle.min(poll) };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = inner.stop.cancelled() => return,
                () = async { changed.notified().await; tokio::time::sleep(rest).await } => {}
                () = tokio::time::sleep(next.max(rest)) => {}
            }
        }
    }

    async fn open_events(&self, inner: &Arc<Inner>, changed: &Arc<Notify>) -> Option<Events> {
        let (inner, job, changed) = (inner.clone(), self.job.clone(), changed.clone());
        tokio::task::spawn_blocking(move || Events::open(&inner.options.places, &job, &changed)).await.ok()?
    }

    /// All files of the place. None: it could not be looked at.
    async fn list(&self, inner: &Arc<Inner>) -> Option<Vec<Found>> {
        let (inner, job) = (inner.clone(), self.job.clone());
        let listed = tokio::task::spawn_blocking(move || {
            let options = ListOptions { recursive: job.request.recursive, pattern: job.request.pattern.clone() };
            let mut files = Vec::new();
            for place in job.request.places() {
                files.extend(inner.options.places.list(place, Some(job.asker.tenant.as_str()), &options)?.files);
            }
            Ok::<_, PlaceError>(files)
        });
        let (files, problem) = match listed.await {
            Ok(Ok(files)) => (Some(files), None),
            // Not there (yet): nothing to take.
            Ok(Err(PlaceError::NotFound { .. })) => (None, None),
            Ok(Err(e)) => (None, Some(e.to_string())),
            Err(e) => (None, Some(e.to_string())),
        };
        let mut known = self.problem.lock();
        if problem.is_some() && *known != problem {
            tracing::warn!(watch = %self.job.id, problem = problem.as_deref().unwrap_or_default(), "a watched place cannot be looked at");
        }
        *known = problem;
        files
    }

    /// Those that are new and that nobody writes any more.
    fn ripe(
        &self,
        inner: &Inner,
        files: Vec<Found>,
        waiting: &mut HashMap<String, Waiting>,
        later: &HashMap<String, Instant>,
    ) -> Vec<Found> {
        let taken = self.taken.lock();
        let now = Instant::now();
        let mut still: HashMap<String, Waiting> = HashMap::new();
        let mut ripe = Vec::new();
        for file in files {
            if taken.has(&file.uri, &file.version) || later.get(&file.uri).is_some_and(|at| *at > now) {
                continue;
            }
            if !self.is_settled(inner, &file, waiting, now) {
                let since = match waiting.remove(&file.uri) {
                    Some(known) if known.version == file.version => known.since,
                    _ => now,
                };
                still.insert(file.uri, Waiting { version: file.version, since });
                continue;
            }
            ripe.push(file);
        }
        *waiting = still;
        ripe
    }

    /// Whether a file is complete: an object always is; a local one when it stayed the same while we watched it, or was
    /// changed last long before it came here (moved in, or there from the start).
    fn is_settled(&self, inner: &Inner, file: &Found, waiting: &HashMap<String, Waiting>, now: Instant) -> bool {
        if !file.uri.starts_with("file:") {
            return true;
        }
        let settle = inner.options.settle;
        let age_us = inner.options.clock.wall_us().saturating_sub(file.modified_us);
        let long_ago = age_us > i64::try_from(settle.as_micros()).unwrap_or(i64::MAX);
        let stayed = waiting
            .get(&file.uri)
            .is_some_and(|known| known.version == file.version && now.duration_since(known.since) >= settle);
        stayed || long_ago
    }

    async fn import(&self, inner: &Arc<Inner>, ripe: Vec<Found>, later: &mut HashMap<String, Instant>) {
        if ripe.is_empty() {
            return;
        }
        let figures = &self.job.figures;
        figures.files_total.fetch_add(ripe.len() as u64, std::sync::atomic::Ordering::Relaxed);
        figures.bytes_total.fetch_add(ripe.iter().map(|f| f.bytes).sum(), std::sync::atomic::Ordering::Relaxed);
        let (known, fresh) = self.tell_known_contents(inner, ripe).await;
        for taken in known {
            self.job.figures.add(&Counts { files: 1, files_unchanged: 1, ..Counts::default() });
            self.take(taken);
        }
        let contents: HashMap<String, journal::Taken> =
            fresh.iter().map(|(_, taken)| (taken.uri.clone(), taken.clone())).collect();
        let sources = fresh.into_iter().map(|(file, _)| FileSource::Found(file)).collect();
        for (source, counts) in import_all(inner, &self.job, sources, Arc::new(Earlier::default())).await {
            let FileSource::Found(file) = source else { continue };
            match (counts, contents.get(&file.uri)) {
                (Ok(_), Some(taken)) => self.take(taken.clone()),
                _ => {
                    later.insert(file.uri, Instant::now() + RETRY_AFTER);
                }
            }
        }
    }

    fn take(&self, taken: journal::Taken) {
        self.job.journal.add(&Line::Taken(taken.clone()));
        self.taken.lock().insert(taken);
    }

    /// Tells files whose contents were taken already, under another name or before they were touched, from new ones.
    async fn tell_known_contents(
        &self,
        inner: &Arc<Inner>,
        ripe: Vec<Found>,
    ) -> (Vec<journal::Taken>, Vec<(Found, journal::Taken)>) {
        let (owner, job) = (inner.clone(), self.job.clone());
        let looked_at = tokio::task::spawn_blocking(move || {
            let look = |file: Found| {
                let content = taken::content_of(&owner.options.places, &job, &file);
                let taken = journal::Taken {
                    uri: file.uri.clone(),
                    version: file.version.clone(),
                    content: content.map(journal::Id128),
                };
                (file, taken)
            };
            ripe.into_iter().map(look).collect::<Vec<_>>()
        });
        let looked_at = match looked_at.await {
            Ok(looked_at) => looked_at,
            Err(error) => {
                let reason = format!("files could not be looked at: {error}");
                self.job.tell_problem(JobProblem { file: String::new(), row: None, reason });
                Vec::new()
            }
        };
        let taken = self.taken.lock();
        let (mut known, mut fresh, mut here) = (Vec::new(), Vec::new(), std::collections::HashSet::new());
        for (file, one) in looked_at {
            match one.content {
                Some(content) if taken.has_content(content) || !here.insert(content) => known.push(one),
                _ => fresh.push((file, one)),
            }
        }
        (known, fresh)
    }
}
