//! Imports one file: opened, read piece by piece, its rows given to their sinks, and finished.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::atomic::Ordering;

use lakegate_formats::{Format, Mark, Piece, ReadError, ReadOptions};
use lakegate_places::{FileIdentity, Found, Location, Opened, PlaceError, shown};

use super::imports::Inner;
use super::job::{Counts, Job, JobProblem};
use super::journal::{Ended, Id128, Line};
use super::request::{After, stream_for};
use super::run::Earlier;
use super::sink::{Begun, FileSink, ImportError, ImportTarget};

/// Where a file is to be had.
#[derive(Debug, Clone)]
pub(super) enum FileSource {
    /// At a place.
    Found(Found),
    /// In the spool.
    Spooled {
        /// Its name there.
        name: String,
        /// Whose it is.
        identity: FileIdentity,
    },
}

impl FileSource {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Found(found) => found.bytes,
            Self::Spooled { .. } => 0,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Found(found) => Location::parse(&found.uri).map_or_else(|_| shown(&found.uri), |l| l.shown()),
            Self::Spooled { identity, .. } => shown(&identity.uri),
        }
    }

    fn open(&self, inner: &Inner, tenant: &str) -> Result<Opened, PlaceError> {
        match self {
            Self::Found(found) => inner.options.places.open(&found.uri, Some(tenant)),
            Self::Spooled { name, identity } => inner.options.places.open_spooled(name, identity.clone()),
        }
    }
}

/// Why a file was not read to its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Sink(#[from] ImportError),
    #[error("ended on request")]
    Stopped,
}

impl Broken {
    fn is_temporary(&self) -> bool {
        match self {
            Self::Place(error) => error.is_temporary(),
            Self::Read(error) => matches!(error, ReadError::Io { .. }),
            Self::Sink(error) => error.temporary,
            Self::Stopped => true,
        }
    }
}

/// Imports one file and adds it to the job's figures. Blocks. `Err`: it was not read to its end, and the same may work
/// later.
pub(super) fn import_file(inner: &Inner, job: &Job, source: &FileSource, earlier: &Earlier) -> Result<Counts, ()> {
    let mut one = One { inner, job, counts: Counts::default(), file: None };
    match one.run(source, earlier) {
        Ok(()) => {
            one.ended(None);
            Ok(one.counts)
        }
        Err(Broken::Stopped) => Err(()),
        Err(broken) => {
            let problem = JobProblem { file: source.shown(), row: None, reason: broken.to_string() };
            tracing::warn!(job = %job.id, file = %problem.file, reason = %problem.reason, "a file was not imported whole");
            let more = Counts { files: 1, files_failed: 1, ..Counts::default() };
            one.count(more);
            one.ended(Some(problem));
            if broken.is_temporary() { Err(()) } else { Ok(one.counts) }
        }
    }
}

struct One<'a> {
    inner: &'a Inner,
    job: &'a Job,
    counts: Counts,
    file: Option<Id128>,
}

/// The rows of one table.
struct Open {
    sink: Box<dyn FileSink>,
    /// Pieces up to the one that ends here were taken by an earlier attempt.
    behind: Option<Mark>,
}

/// Where rows of a table go: nowhere, if they are there already.
enum Way {
    Absorbed,
    Open(Open),
}

impl One<'_> {
    fn run(&mut self, source: &FileSource, earlier: &Earlier) -> Result<(), Broken> {
        let tenant = self.job.asker.tenant.as_str();
        let opened = source.open(self.inner, tenant)?;
        let file = Id128(opened.identity.id());
        if earlier.done.contains(&file) {
            return Ok(());
        }
        self.file = Some(file);
        let was_begun = earlier.begun.contains(&file);
        self.job.journal.add(&Line::Begun(file));
        if source.bytes() == 0 {
            self.job.figures.bytes_total.fetch_add(opened.input.len().unwrap_or(0), Ordering::Relaxed);
        }
        let options = ReadOptions {
            format: self.job.request.format.as_deref().and_then(Format::parse),
            ..ReadOptions::default()
        };
        let location = match source {
            FileSource::Found(_) => opened.location.clone(),
            FileSource::Spooled { identity, .. } => Location::Local(Path::new(&identity.uri).to_owned()),
        };
        let mut ways: HashMap<Option<String>, Way> = HashMap::new();
        let mut resume = None;
        if !is_dump(&opened, &self.job.request.format) && !self.job.request.dry_run {
            // One table: where its sink left off, reading goes on.
            match self.begin(&opened, &location, None)? {
                Begun::Absorbed { rows } => return self.absorbed(rows, was_begun, &opened),
                Begun::Import(sink) => {
                    resume = sink.resume_mark();
                    ways.insert(None, Way::Open(Open { sink, behind: None }));
                }
            }
        }
        let mut pieces = lakegate_formats::open(opened.input.clone(), &options, resume)?;
        let mut bytes = 0;
        loop {
            if self.job.cancel.is_cancelled() || self.inner.stop.is_cancelled() {
                return Err(Broken::Stopped);
            }
            let next = pieces.next()?;
            let at = pieces.progress().0;
            self.count(Counts { bytes: at.saturating_sub(bytes), ..Counts::default() });
            bytes = bytes.max(at);
            let Some(piece) = next else { break };
            self.take(piece, &opened, &location, &mut ways)?;
        }
        opened.check_unchanged()?;
        for way in ways.into_values() {
            if let Way::Open(open) = way {
                let summary = open.sink.finish()?;
                self.job.tell_table(&summary.table, summary.note);
            }
        }
        self.count(Counts { files: 1, ..Counts::default() });
        self.settle(source, &opened)
    }

    fn take(
        &mut self,
        piece: Piece,
        opened: &Opened,
        location: &Location,
        ways: &mut HashMap<Option<String>, Way>,
    ) -> Result<(), Broken> {
        if self.job.request.dry_run {
            let skipped = piece.bad.len() as u64;
            self.problems(location, piece.bad.iter().map(|bad| (bad.row, bad.reason.clone())));
            self.count(Counts { documents: piece.rows.len() as u64, skipped, ..Counts::default() });
            return Ok(());
        }
        let table = piece.table.as_ref().map(|table| table.name.clone());
        let way = match ways.entry(table.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(match self.begin(opened, location, table.as_deref())? {
                Begun::Absorbed { .. } => Way::Absorbed,
                Begun::Import(sink) => Way::Open(Open { behind: sink.resume_mark(), sink }),
            }),
        };
        let Way::Open(open) = way else { return Ok(()) };
        if let Some(mark) = &open.behind {
            if *mark == piece.next {
                open.behind = None;
            }
            return Ok(());
        }
        let bad: Vec<(u64, String)> = piece.bad.iter().map(|bad| (bad.row, bad.reason.clone())).collect();
        let taken = open.sink.take(piece)?;
        self.problems(location, bad.into_iter());
        let (documents, duplicates, skipped) = (taken.accepted, taken.duplicates, taken.dead_lettered);
        self.count(Counts { documents, duplicates, skipped, ..Counts::default() });
        Ok(())
    }

    fn begin(&self, opened: &Opened, location: &Location, table: Option<&str>) -> Result<Begun, Broken> {
        let Job { request, asker, .. } = self.job;
        let event_type = request.event_type_of(location);
        let staged = self.job.staging.as_ref().map(|staging| staging.stream_of(location));
        let stream = staged.unwrap_or_else(|| stream_for(request, location, event_type.as_deref(), table));
        let target = ImportTarget {
            principal: asker.principal.clone(),
            tenant: asker.tenant.clone(),
            stream,
            event_type,
            file: opened.identity.id(),
            uri: opened.identity.uri.clone(),
            again: request.again,
            rewrite: request.rewrite,
            correlation_id: asker.correlation_id.clone(),
        };
        Ok(self.inner.options.sink.begin(target)?)
    }

    /// The file was in its table already. Where this very job had begun it, it is this job's work.
    fn absorbed(&mut self, rows: u64, was_begun: bool, opened: &Opened) -> Result<(), Broken> {
        let bytes = opened.input.len().unwrap_or(0);
        let counts = if was_begun {
            Counts { files: 1, documents: rows, bytes, ..Counts::default() }
        } else {
            Counts { files: 1, files_unchanged: 1, bytes, ..Counts::default() }
        };
        self.count(counts);
        Ok(())
    }

    /// Moves or tags the file, as asked.
    fn settle(&self, source: &FileSource, opened: &Opened) -> Result<(), Broken> {
        let FileSource::Found(_) = source else { return Ok(()) };
        let places = &self.inner.options.places;
        let tenant = Some(self.job.asker.tenant.as_str());
        let done = match self.job.request.after {
            After::Leave => Ok(()),
            _ if self.job.request.dry_run => Ok(()),
            After::Tag => places.tag_imported(&opened.location, tenant),
            After::Move => match aside(&opened.location) {
                Some(to) => places.rename(&opened.location, &to, tenant),
                None => Ok(()),
            },
        };
        // Its rows are in the table: that it could not be put aside is said, and no reason to import it again.
        if let Err(error) = done {
            let reason = format!("imported, but not put aside: {error}");
            self.job.tell_problem(JobProblem { file: source.shown(), row: None, reason });
        }
        Ok(())
    }

    fn problems(&self, location: &Location, problems: impl Iterator<Item = (u64, String)>) {
        let file = location.shown();
        for (row, reason) in problems {
            self.job.tell_problem(JobProblem { file: file.clone(), row: Some(row), reason });
        }
    }

    fn count(&mut self, more: Counts) {
        self.job.figures.add(&more);
        let sum = super::job::Figures::default();
        sum.add(&self.counts);
        sum.add(&more);
        self.counts = sum.counts();
    }

    fn ended(&self, problem: Option<JobProblem>) {
        if let Some(problem) = &problem {
            self.job.tell_problem(problem.clone());
        }
        if let Some(file) = self.file {
            self.job.journal.add(&Line::Ended(Ended { file, counts: self.counts, problem }));
        }
    }
}

/// Whether the file holds tables with names of their own.
fn is_dump(opened: &Opened, format: &Option<String>) -> bool {
    match format {
        Some(format) => format == "sql",
        None => opened.identity.uri.to_ascii_lowercase().contains(".sql"),
    }
}

/// Where a file goes that is done with: a hidden folder beside it, which no listing looks into.
fn aside(location: &Location) -> Option<Location> {
    const FOLDER: &str = ".imported";
    match location {
        Location::Local(path) => {
            let (dir, name) = (path.parent()?.join(FOLDER), path.file_name()?);
            let free = dir.join(name);
            if !free.exists() {
                return Some(Location::Local(free));
            }
            // An earlier file of this name keeps its place.
            let numbered = (1..10_000).map(|n| dir.join(format!("{n}-{}", name.to_string_lossy())));
            numbered.into_iter().find(|path| !path.exists()).map(Location::Local)
        }
        Location::S3 { bucket, key } => {
            let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
            let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
            Some(Location::S3 { bucket: bucket.clone(), key: format!("{folder}{FOLDER}/{name}") })
        }
        Location::Http(_) => None,
    }
}
