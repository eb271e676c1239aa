//! All imports of a process: started, asked after, ended, and taken up again after a restart.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lakegate_access::Access;
use lakegate_env::{Clock, Random};
use lakegate_ingest::Gate;
use lakegate_model::TenantId;
use lakegate_places::{FileIdentity, Found, ListOptions, Location, PlaceError, Places};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::credentials::look_after;
use super::job::{Counts, Job, JobKind, JobState, JobView};
use super::journal::{self, Asked, Id128, Journal, Line, Upload};
use super::request::{Asker, ImportRequest, PARALLEL_MAX, RequestError};
use super::run::{Work, run_job};
use super::watch::{StagingOptions, Watch, WatchView};

/// The most jobs that are remembered after their end.
const ENDED_JOBS_MAX: usize = 1000;
/// The most watches.
const WATCHES_MAX: usize = 1000;

/// What imports stand on.
pub struct ImportsOptions {
    /// The way to files.
    pub places: Arc<Places>,
    /// The way into tables.
    pub gate: Gate,
    /// Where the gate's work runs.
    pub handle: Handle,
    /// Where jobs and watches are kept.
    pub dir: PathBuf,
    /// Where files that were sent wait.
    pub spool_dir: PathBuf,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// How many files a job reads at once where it does not say.
    pub parallel_files: usize,
    /// A file of a watched folder is taken when nothing wrote to it for so long.
    pub settle: Duration,
    /// How often a watched place is looked at where it does not tell what changes.
    pub poll: Duration,
    /// Staging, if it is on.
    pub staging: Option<StagingOptions>,
    /// Tells what became of the credentials that jobs and watches were begun with.
    pub access: Access,
}

/// Why an import did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The request itself is wrong.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A place of it cannot be read.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// There is no file that fits.
    #[error("{place} has no file to import{passed_over}")]
    Empty {
        /// The place.
        place: String,
        /// How many entries were passed over, beginning with `; `; or nothing.
        passed_over: String,
    },
    /// The place cannot be watched.
    #[error("{0}")]
    NotWatchable(String),
    /// Too many watches.
    #[error("there are {WATCHES_MAX} watches; end one first")]
    TooManyWatches,
    /// The job could not be kept.
    #[error("the import could not be written down: {0}")]
    Disk(#[from] std::io::Error),
    /// The process is ending.
    #[error("the server is ending")]
    Ending,
}

/// All imports of a process. Clones share them.
#[derive(Clone)]
pub struct Imports {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) options: ImportsOptions,
    pub(super) jobs: Mutex<BTreeMap<Uuid, Arc<Job>>>,
    pub(super) watches: Mutex<BTreeMap<Uuid, Arc<Watch>>>,
    /// How many files are read at once, over all jobs.
    pub(super) workers: Arc<Semaphore>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Imports {
    /// Opens what earlier processes left, and takes it up again.
    ///
    /// # Errors
    /// The folders of jobs, watches or sent files cannot be used.
    pub fn open(options: ImportsOptions) -> std::io::Result<Self> {
        for dir in [options.dir.join("jobs"), options.dir.join("watches"), options.spool_dir.clone()] {
            std::fs::create_dir_all(dir)?;
        }
        let inner = Inner {
            workers: Arc::new(Semaphore::new(PARALLEL_MAX)),
            options,
            jobs: Mutex::default(),
            watches: Mutex::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let imports = Self { inner: Arc::new(inner) };
        let spooled = imports.take_up_jobs()?;
        imports.inner.sweep_spool(&spooled)?;
        Watch::take_up_all(&imports.inner)?;
        imports.inner.tasks.spawn_on(look_after(imports.inner.clone()), &imports.inner.options.handle);
        Ok(imports)
    }

    /// Takes up jobs that had not ended. Returns the files of the spool that they need.
    fn take_up_jobs(&self) -> std::io::Result<HashSet<String>> {
        let mut spooled = HashSet::new();
        let all = journal::list(&self.inner.jobs_dir())?;
        let old = all.len().saturating_sub(ENDED_JOBS_MAX);
        for (n, (id, path)) in all.into_iter().enumerate() {
            let lines = journal::read(&path)?;
            let Some(kept) = Kept::read(lines) else {
                // Not even the first line was written: nobody was told of this job.
                std::fs::remove_file(&path)?;
                continue;
            };
            if kept.state.is_some() && n < old {
                std::fs::remove_file(&path)?;
                continue;
            }
            let Ok(tenant) = TenantId::new(&kept.asked.tenant) else { continue };
            let again = Asker::again(tenant.clone(), kept.asked.shown.as_deref(), &self.inner.options.access);
            let (asker, holds) = (again.clone().unwrap_or(Asker::nobody(tenant)), again.is_some());
            let Asked { kind, request, created_us, upload, .. } = kept.asked;
            let ended = kept.state;
            let journal = if ended.is_some() { Journal::none() } else { Journal::reopen(&path)? };
            let job = Arc::new(Job::new(id, kind, asker, request, created_us, kept.counts, journal));
            for problem in kept.problems {
                job.tell_problem(problem);
            }
            self.inner.jobs.lock().insert(id, job.clone());
            match ended {
                Some(state) => job.end(state),
                None => {
                    spooled.extend(upload.iter().map(|upload| upload.spooled.clone()));
                    if !holds {
                        job.end_without_credentials();
                    }
                    let work = Work { files: None, upload, done: kept.done, begun: kept.begun };
                    self.inner.spawn(job, work);
                }
            }
        }
        Ok(spooled)
    }

    /// Starts an import of places. All of them are looked at before; what may not be read is refused here.
    ///
    /// # Errors
    /// See [`StartError`]; then nothing was begun.
    pub async fn start(&self, asker: Asker, request: ImportRequest) -> Result<Uuid, StartError> {
        request.check()?;
        let inner = self.inner.clone();
        let (request, files, tenant) = {
            let tenant = asker.tenant.clone();
            let task = tokio::task::spawn_blocking(move || {
                let files = inner.list(&request, tenant.as_str())?;
                Ok::<_, StartError>((request, files, tenant))
            });
            task.await.map_err(|_| StartError::Ending)??
        };
        let asked = Asked {
            kind: JobKind::Import,
            tenant: tenant.as_str().to_owned(),
            shown: asker.shown(),
            request: request.clone(),
            created_us: self.inner.options.clock.wall_us(),
            upload: None,
        };
        self.inner.begin(asker, asked, Some(files))
    }

    /// Starts the import of a file that lies whole in the spool, under the name `spooled`.
    ///
    /// # Errors
    /// See [`StartError`]; then the file is gone from the spool.
    pub fn start_upload(
        &self,
        asker: Asker,
        request: ImportRequest,
        spooled: &str,
        identity: FileIdentity,
    ) -> Result<Uuid, StartError> {
        let upload = Upload { spooled: spooled.to_owned(), uri: identity.uri, version: identity.version };
        let asked = Asked {
            kind: JobKind::Upload,
            tenant: asker.tenant.as_str().to_owned(),
            shown: asker.shown(),
            request,
            created_us: self.inner.options.clock.wall_us(),
            upload: Some(upload),
        };
        let begun = self.inner.begin(asker, asked, None);
        if begun.is_err() {
            // Left over, it is swept at the next start.
            let _ = std::fs::remove_file(self.inner.options.spool_dir.join(spooled));
        }
        begun
    }

    /// Where files that are sent are gathered.
    #[must_use]
    pub fn spool_dir(&self) -> &std::path::Path {
        &self.inner.options.spool_dir
    }

    /// A job.
    #[must_use]
    pub fn job(&self, id: Uuid) -> Option<JobView> {
        self.inner.job(id).map(|job| job.view())
    }

    /// All jobs, newest first.
    #[must_use]
    pub fn jobs(&self) -> Vec<JobView> {
        self.inner.jobs.lock().values().rev().map(|job| job.view()).collect()
    }

    /// Waits for a job's end, at most so long.
    pub async fn wait(&self, id: Uuid, within: Duration) -> Option<JobView> {
        let job = self.inner.job(id)?;
        job.wait(within).await;
        Some(job.view())
    }

    /// Ends a job after the piece that it is at. What was committed stays.
    #[must_use]
    pub fn cancel(&self, id: Uuid) -> Option<JobView> {
        let job = self.inner.job(id)?;
        job.cancel.cancel();
        Some(job.view())
    }

    /// Watches a place from now on, also after a restart.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn watch(&self, asker: Asker, request: ImportRequest) -> Result<Uuid, StartError> {
        request.check()?;
        if self.inner.watches.lock().len() >= WATCHES_MAX {
            return Err(StartError::TooManyWatches);
        }
        let inner = self.inner.clone();
        let task = tokio::task::spawn_blocking(move || Watch::begin(&inner, asker, request));
        task.await.map_err(|_| StartError::Ending)?
    }

    /// All watches.
    #[must_use]
    pub fn watches(&self) -> Vec<WatchView> {
        self.inner.watches.lock().values().map(|watch| watch.view()).collect()
    }

    /// Ends a watch for good. None: there is none of this id. What it began is ended after the piece it is at.
    ///
    /// # Errors
    /// It could not be forgotten; it goes on after the next start.
    pub fn unwatch(&self, id: Uuid) -> Option<std::io::Result<()>> {
        let watch = self.inner.watches.lock().remove(&id)?;
        Some(watch.end())
    }

    /// Ends all work after the pieces it is at, and waits for it. It goes on after the next start.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    fn jobs_dir(&self) -> PathBuf {
        self.options.dir.join("jobs")
    }

    pub(super) fn job(&self, id: Uuid) -> Option<Arc<Job>> {
        self.jobs.lock().get(&id).cloned()
    }

    /// A new id; later ones are greater.
    pub(super) fn new_id(&self) -> Uuid {
        let millis = u64::try_from(self.options.clock.wall_us() / 1000).unwrap_or(0);
        let random = self.options.random.next_u128().to_be_bytes();
        let mut tail = [0; 10];
        tail.copy_from_slice(random.first_chunk::<10>().unwrap_or(&[0; 10]));
        uuid::Builder::from_unix_timestamp_millis(millis, &tail).into_uuid()
    }

    fn begin(self: &Arc<Self>, asker: Asker, asked: Asked, files: Option<Vec<Found>>) -> Result<Uuid, StartError> {
        if self.stop.is_cancelled() {
            return Err(StartError::Ending);
        }
        let id = self.new_id();
        let journal = Journal::create(&self.jobs_dir(), id, &asked)?;
        let Asked { kind, request, created_us, upload, .. } = asked;
        let job = Arc::new(Job::new(id, kind, asker, request, created_us, Counts::default(), journal));
        self.forget_old_jobs();
        self.jobs.lock().insert(id, job.clone());
        self.spawn(job, Work { files, upload, done: HashSet::new(), begun: HashSet::new() });
        Ok(id)
    }

    fn spawn(self: &Arc<Self>, job: Arc<Job>, work: Work) {
        let inner = self.clone();
        self.tasks.spawn(async move { run_job(inner, job, work).await });
    }

    fn forget_old_jobs(&self) {
        let mut jobs = self.jobs.lock();
        let ended: Vec<Uuid> =
            jobs.iter().filter(|(_, job)| job.state() != JobState::Running).map(|(id, _)| *id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_JOBS_MAX)) {
            jobs.remove(id);
            // Left over, it is looked at again at the next start.
            let _ = std::fs::remove_file(self.jobs_dir().join(format!("{id}.jsonl")));
        }
    }

    /// Finds all files of a request. Blocks.
    pub(super) fn list(&self, request: &ImportRequest, tenant: &str) -> Result<Vec<Found>, StartError> {
        let options = ListOptions { recursive: request.recursive, pattern: request.pattern.clone() };
        let mut files = Vec::new();
        for place in request.places() {
            let location = Location::parse(place)?;
            if let Location::Http(_) = &location {
                self.options.places.check(place)?;
                let relative = location.file_name().unwrap_or_default();
                files.push(Found { uri: location.uri(), relative, bytes: 0, version: String::new(), modified_us: 0 });
                continue;
            }
            let listing = self.options.places.list(place, Some(tenant), &options)?;
            if listing.files.is_empty() {
                let passed_over = match listing.passed_over {
                    0 => String::new(),
                    n => format!(
                        "; {n} entries were passed over: other names than the pattern, hidden, or unfinished ones"
                    ),
                };
                return Err(StartError::Empty { place: location.shown(), passed_over });
            }
            files.extend(listing.files);
        }
        Ok(files)
    }

    /// Removes what no job needs any more: files whose sending broke off.
    fn sweep_spool(&self, needed: &HashSet<String>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.options.spool_dir)?.flatten() {
            let name = entry.file_name();
            let is_upload = name.to_str().is_some_and(|name| name.starts_with(SPOOL_PREFIX) && !needed.contains(name));
            if is_upload {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// What the names of sent files begin with.
pub(super) const SPOOL_PREFIX: &str = "upload-";

/// What a journal says of a job.
struct Kept {
    asked: Asked,
    counts: Counts,
    done: HashSet<Id128>,
    begun: HashSet<Id128>,
    problems: Vec<super::JobProblem>,
    state: Option<JobState>,
}

impl Kept {
    fn read(lines: Vec<Line>) -> Option<Self> {
        let mut lines = lines.into_iter();
        let Some(Line::Asked(asked)) = lines.next() else { return None };
        let figures = super::job::Figures::default();
        let mut kept = Self {
            asked,
            counts: Counts::default(),
            done: HashSet::new(),
            begun: HashSet::new(),
            problems: Vec::new(),
            state: None,
        };
        for line in lines {
            match line {
                Line::Begun(file) => {
                    kept.begun.insert(file);
                }
                Line::Ended(ended) => {
                    figures.add(&ended.counts);
                    kept.done.insert(ended.file);
                    kept.problems.extend(ended.problem);
                }
                Line::State(state) => kept.state = Some(state),
                Line::Asked(_) | Line::Taken(_) => {}
            }
        }
        kept.counts = figures.counts();
        Some(kept)
    }
}
