//! Imports one file: opened, read piece by piece, its rows given to their sinks, and finished.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::datatypes::{Field, Schema, SchemaRef};
use lakegate_formats::{Format, Mark, ParquetFile, Piece, ReadError, ReadOptions, Rows};
use lakegate_ingest::{Begun, Import, ImportError, ImportTarget, OwnColumns};
use lakegate_places::{FileIdentity, Found, Location, Opened, PlaceError, shown};

use super::aside::aside;
use super::imports::Inner;
use super::job::{Counts, FileChoice, Job, JobProblem};
use super::journal::{Ended, Id128, Line};
use super::request::{After, stream_for};
use super::run::Earlier;

/// How often a file is tried whose rows the gate could not take at the moment.
const ATTEMPTS: u32 = 5;
/// The pause before the second try; it grows with each one.
const PAUSE: Duration = Duration::from_millis(300);

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
    Gate(#[from] ImportError),
    #[error("ended on request")]
    Stopped,
}

impl Broken {
    fn is_temporary(&self) -> bool {
        match self {
            Self::Place(error) => error.is_temporary(),
            Self::Read(error) => matches!(error, ReadError::Io { .. }),
            Self::Gate(error) => error.is_retryable(),
            Self::Stopped => true,
        }
    }
}

/// What importing a file came to. `Err`: it was not read to its end, and the same may work later.
pub(super) enum Imported {
    /// It is done with.
    Done(Result<Counts, ()>),
    /// It was read to its end, and is to be committed together with others.
    Ready(Box<Ready>),
}

/// A file that was read to its end, its rows in durable files that no commit names yet.
pub(super) struct Ready {
    pub(super) import: Box<Import>,
    pub(super) rest: ReadyFile,
}

/// The rest of what is known of it.
pub(super) struct ReadyFile {
    opened: Opened,
    counts: Counts,
    file: Option<Id128>,
}

/// Imports one file and adds it to the job's figures; one that is small is left for a commit with others. Blocks.
pub(super) fn import_file(inner: &Inner, job: &Job, source: &FileSource, earlier: &Earlier) -> Imported {
    One { inner, job, counts: Counts::default(), file: None, attempt: 1, is_alone: false, lost: Counts::default() }
        .import(source, earlier)
}

/// After the commit of a file that was left for it: it is done with, or imported anew by itself. Blocks.
pub(super) fn end_file(
    inner: &Inner,
    job: &Job,
    source: &FileSource,
    ready: ReadyFile,
    committed: Result<(), ImportError>,
    earlier: &Earlier,
) -> Result<Counts, ()> {
    let ReadyFile { opened, counts, file } = ready;
    let mut one = One { inner, job, counts, file, attempt: 1, is_alone: true, lost: Counts::default() };
    let Err(error) = committed else {
        one.count(Counts { files: 1, ..Counts::default() });
        one.settle(source, &opened);
        one.ended(None);
        return Ok(one.counts);
    };
    tracing::info!(job = %job.id, reason = %error, "a file is taken up again");
    job.figures.take_back(&one.counts);
    one.counts = Counts::default();
    one.attempt = if matches!(error, ImportError::AbsorbedElsewhere(_)) { 1 } else { 2 };
    match one.import(source, earlier) {
        Imported::Done(counts) => counts,
        Imported::Ready(_) => Err(()),
    }
}

struct One<'a> {
    inner: &'a Inner,
    job: &'a Job,
    counts: Counts,
    file: Option<Id128>,
    attempt: u32,
    /// Whether it is committed by itself in any case.
    is_alone: bool,
    /// Of what was counted in this attempt: what was taken and not committed when it broke.
    lost: Counts,
}

/// The rows of one table.
struct Open {
    import: Box<Import>,
    /// Pieces up to the one that ends here were taken by an earlier attempt.
    behind: Option<Mark>,
}

/// Where rows of a table go: nowhere, if they are there already.
enum Way {
    Absorbed,
    Open(Open),
}

/// The ways of a file's rows, by the dump's table.
type Ways = HashMap<Option<String>, Way>;

/// What a file is, and how it was found.
struct Subject {
    opened: Opened,
    /// Where it is for people and for names made of it.
    location: Location,
    was_begun: bool,
}

impl One<'_> {
    fn import(mut self, source: &FileSource, earlier: &Earlier) -> Imported {
        loop {
            let broken = match self.run(source, earlier) {
                Ok(None) => {
                    self.ended(None);
                    return Imported::Done(Ok(self.counts));
                }
                Ok(Some((import, opened))) => {
                    let rest = ReadyFile { opened, counts: self.counts, file: self.file };
                    return Imported::Ready(Box::new(Ready { import, rest }));
                }
                Err(Broken::Stopped) => return Imported::Done(Err(())),
                Err(broken) => broken,
            };
            if matches!(&broken, Broken::Gate(error) if error.is_retryable()) && self.attempt < ATTEMPTS {
                // What was not committed is read again, from the last mark on.
                tracing::info!(job = %self.job.id, reason = %broken, "a file is taken up again");
                self.attempt += 1;
                self.job.figures.take_back(&self.counts);
                (self.counts, self.lost) = (Counts::default(), Counts::default());
                std::thread::sleep(PAUSE * self.attempt);
                continue;
            }
            let problem = JobProblem { file: source.shown(), row: None, reason: broken.to_string() };
            tracing::warn!(job = %self.job.id, file = %problem.file, reason = %problem.reason, "a file was not imported whole");
            // What no commit took is not in the table.
            self.job.figures.take_back(&self.lost);
            self.counts.documents = self.counts.documents.saturating_sub(self.lost.documents);
            self.counts.duplicates = self.counts.duplicates.saturating_sub(self.lost.duplicates);
            self.count(Counts { files: 1, files_failed: 1, ..Counts::default() });
            self.ended(Some(problem));
            return Imported::Done(if broken.is_temporary() { Err(()) } else { Ok(self.counts) });
        }
    }

    /// Reads the file, and commits it. Some: it is to be committed with others.
    fn run(&mut self, source: &FileSource, earlier: &Earlier) -> Result<Option<(Box<Import>, Opened)>, Broken> {
        let opened = source.open(self.inner, self.job.asker.tenant.as_str())?;
        let file = Id128(opened.identity.id());
        if earlier.done.contains(&file) {
            return Ok(None);
        }
        self.file = Some(file);
        if self.attempt == 1 {
            self.job.journal.add(&Line::Begun(file));
            if source.bytes() == 0 {
                self.job.figures.bytes_total.fetch_add(opened.input.len().unwrap_or(0), Ordering::Relaxed);
            }
        }
        let location = match source {
            FileSource::Found(_) => opened.location.clone(),
            FileSource::Spooled { identity, .. } => Location::Local(Path::new(&identity.uri).to_owned()),
        };
        let was_begun = earlier.begun.contains(&file) || self.attempt > 1;
        let subject = Subject { opened, location, was_begun };
        let mut ways = Ways::new();
        match self.read(&subject, &mut ways) {
            Ok(()) => {}
            Err(broken) => {
                self.give_up(ways, &broken);
                return Err(broken);
            }
        }
        self.lost = lost_of(&ways);
        let may_wait = !self.is_alone && ways.len() == 1;
        if let Some(Way::Open(Open { import, .. })) = ways.get_mut(&None).filter(|_| may_wait)
            && import.is_small()
        {
            self.inner.options.handle.block_on(import.write_now())?;
            let Some(Way::Open(open)) = ways.remove(&None) else { return Ok(None) };
            return Ok(Some((open.import, subject.opened)));
        }
        let all_absorbed = !ways.is_empty() && ways.values().all(|way| matches!(way, Way::Absorbed));
        for way in ways.into_values() {
            if let Way::Open(open) = way {
                let uncommitted = open.import.uncommitted();
                self.inner.options.handle.block_on(open.import.finish())?;
                self.lost.documents -= uncommitted.0;
                self.lost.duplicates -= uncommitted.1;
            }
        }
        let files_unchanged = u64::from(all_absorbed && !subject.was_begun);
        self.count(Counts { files: 1, files_unchanged, ..Counts::default() });
        self.settle(source, &subject.opened);
        Ok(None)
    }

    /// Reads the file to its end.
    fn read(&mut self, subject: &Subject, ways: &mut Ways) -> Result<(), Broken> {
        let input = &subject.opened.input;
        let mut options = ReadOptions {
            format: self.job.request.format.as_deref().and_then(Format::parse),
            ..ReadOptions::default()
        };
        let mut pieces = lakegate_formats::open(input.clone(), &options, None)?;
        // A Parquet file tells its columns beforehand: none of its rows are read while it may be taken as it is.
        let parquet = pieces.parquet();
        let mut first = if parquet.is_some() { None } else { pieces.next()? };
        let has_tables = first.as_ref().is_some_and(|piece| piece.table.is_some());
        if !has_tables && !self.job.request.dry_run {
            // One table: where its import left off, reading goes on.
            let columns = match (pieces.schema(), first.as_ref().map(|piece| &piece.rows)) {
                (None, Some(Rows::Columns(batch))) => Some(batch.schema()),
                (schema, _) => schema,
            };
            let way = ways.entry(None).insert_entry(self.begin(subject, None, columns.map(OwnColumns::Schema))?);
            let Way::Open(open) = way.into_mut() else { return Ok(()) };
            let mark = open.import.resume_mark();
            let types = open.import.text_types();
            let is_read_otherwise = parquet.is_none() && differ(&types, pieces.schema().as_ref());
            options.csv.types = Some(types);
            if mark.is_some() || is_read_otherwise {
                pieces = lakegate_formats::open(input.clone(), &options, mark)?;
                first = pieces.next()?;
            } else if let Some(file) = &parquet
                && self.adopt(file, subject, &mut open.import)?
            {
                return Ok(subject.opened.check_unchanged()?);
            }
        }
        if parquet.is_some() && first.is_none() {
            first = pieces.next()?;
        }
        let mut bytes = 0;
        while let Some(piece) = first.take() {
            let at = pieces.progress().0;
            self.count(Counts { bytes: at.saturating_sub(bytes), ..Counts::default() });
            bytes = bytes.max(at);
            self.take(piece, subject, ways)?;
            if self.job.cancel.is_cancelled() || self.inner.stop.is_cancelled() {
                return Err(Broken::Stopped);
            }
            first = pieces.next()?;
        }
        self.count(Counts { bytes: pieces.progress().0.saturating_sub(bytes), ..Counts::default() });
        subject.opened.check_unchanged()?;
        for (what, count) in pieces.passed_over() {
            self.job.tell_passed_over(format!("{}: {count} × {}", subject.location.shown(), shown(&what)));
        }
        Ok(())
    }

    /// Takes a Parquet file into the table as it is, where that can be, and says why or why not.
    fn adopt(&mut self, file: &ParquetFile, subject: &Subject, import: &mut Import) -> Result<bool, Broken> {
        let adopted = self.inner.options.handle.block_on(import.adopt(file))?;
        let reason = match &adopted {
            Ok(_) => "its footer shows that its rows fit the table".to_owned(),
            Err(obstacle) => obstacle.0.clone(),
        };
        let name = subject.location.shown();
        tracing::info!(job = %self.job.id, file = %name, adopted = adopted.is_ok(), reason = %shown(&reason), "a Parquet file");
        self.job.tell_choice(FileChoice { file: name, adopted: adopted.is_ok(), reason });
        let Ok(counts) = adopted else { return Ok(false) };
        let (documents, bytes) = (counts.accepted, file.bytes);
        self.count(Counts { files_adopted: 1, documents, bytes, ..Counts::default() });
        Ok(true)
    }

    fn take(&mut self, piece: Piece, subject: &Subject, ways: &mut Ways) -> Result<(), Broken> {
        if self.job.request.dry_run {
            self.problems(&subject.location, piece.bad.iter().map(|bad| (bad.row, bad.reason.clone())));
            let (documents, skipped) = (piece.rows.len() as u64, piece.bad.len() as u64);
            self.count(Counts { documents, skipped, ..Counts::default() });
            return Ok(());
        }
        let table = piece.table.as_ref().map(|table| table.name.clone());
        let way = match ways.entry(table.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let columns = piece.table.clone().map(|table| OwnColumns::Table { table, keyed: false });
                let mut way = self.begin(subject, table.as_deref(), columns)?;
                if let Way::Open(open) = &mut way {
                    open.behind = open.import.resume_mark();
                }
                new.insert(way)
            }
        };
        let Way::Open(open) = way else { return Ok(()) };
        if let Some(mark) = &open.behind {
            if *mark == piece.next {
                open.behind = None;
            }
            return Ok(());
        }
        let taken = self.inner.options.handle.block_on(open.import.take(piece))?;
        self.problems(&subject.location, open.import.refusals().into_iter());
        let (documents, duplicates, skipped) = (taken.accepted, taken.duplicates, taken.dead_lettered);
        self.count(Counts { documents, duplicates, skipped, ..Counts::default() });
        Ok(())
    }

    fn begin(&mut self, subject: &Subject, table: Option<&str>, columns: Option<OwnColumns>) -> Result<Way, Broken> {
        let Job { request, asker, .. } = self.job;
        let Subject { opened, location, .. } = subject;
        let event_type = request.event_type_of(location);
        let staged = self.job.staging.as_ref().map(|staging| staging.stream_of(location));
        let stream = staged.unwrap_or_else(|| stream_for(request, location, event_type.as_deref(), table));
        self.job.tell_stream(stream.as_str());
        let target = ImportTarget {
            principal: asker.principal.clone(),
            tenant: asker.tenant.clone(),
            stream,
            event_type,
            columns,
            file: opened.identity.id(),
            uri: opened.identity.uri.clone(),
            again: request.again,
            rewrite: request.rewrite,
            correlation_id: asker.correlation_id.clone(),
        };
        let gate = &self.inner.options.gate;
        match self.inner.options.handle.block_on(gate.begin_import(target))? {
            Begun::Absorbed { rows } => {
                // Where this very job had begun the file, its rows are this job's work.
                let documents = if subject.was_begun { rows } else { 0 };
                self.count(Counts { documents, ..Counts::default() });
                if table.is_none() {
                    let bytes = opened.input.len().unwrap_or(0);
                    self.count(Counts { bytes, ..Counts::default() });
                }
                Ok(Way::Absorbed)
            }
            Begun::Import(import) => {
                let documents = if subject.was_begun { import.rows_before() } else { 0 };
                self.count(Counts { documents, ..Counts::default() });
                Ok(Way::Open(Open { import, behind: None }))
            }
        }
    }

    /// What was taken since the last commit is given up; where the process ends, it is kept, and reading goes on there.
    fn give_up(&mut self, ways: Ways, broken: &Broken) {
        self.lost = lost_of(&ways);
        let keeps = matches!(broken, Broken::Stopped) && self.inner.stop.is_cancelled();
        for way in ways.into_values() {
            let Way::Open(Open { mut import, .. }) = way else { continue };
            self.inner.options.handle.block_on(async {
                if keeps && import.commit_now().await.is_ok() {
                    return;
                }
                import.abandon().await;
            });
        }
    }

    /// Moves or tags the file, as asked.
    fn settle(&self, source: &FileSource, opened: &Opened) {
        let FileSource::Found(_) = source else { return };
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
    }

    fn problems(&self, location: &Location, problems: impl Iterator<Item = (u64, String)>) {
        let file = location.shown();
        for (row, reason) in problems {
            // People and dead letters count from one.
            self.job.tell_problem(JobProblem { file: file.clone(), row: Some(row + 1), reason });
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

/// Whether a column is to be read as another type than the one that was found for it.
fn differ(wanted: &Schema, found: Option<&SchemaRef>) -> bool {
    let found_as = |field: &Field| found.and_then(|schema| schema.field_with_name(field.name()).ok());
    wanted.fields().iter().any(|field| found_as(field).is_some_and(|found| found.data_type() != field.data_type()))
}

/// What was taken of these and is in no commit.
fn lost_of(ways: &Ways) -> Counts {
    let open = ways.values().filter_map(|way| match way {
        Way::Open(open) => Some(open.import.uncommitted()),
        Way::Absorbed => None,
    });
    let (documents, duplicates) = open.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    Counts { documents, duplicates, ..Counts::default() }
}
