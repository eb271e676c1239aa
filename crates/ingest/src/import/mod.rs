//! Rows of files into tables, without the log: what a file holds durably is not written a second time.
//!
//! A reader gives pieces ([`Import::take`]); their rows are brought to the stream's columns, looked up in the stream's
//! window of event keys, and gathered into data files. One commit adds the files, says how far the file was read, and
//! counts what came of its rows. So a file is absorbed once: an import that dies anywhere goes on from the mark of its
//! last commit, of two imports of one file the second to commit finds that it is late, and a file that was absorbed is
//! not looked at again.
//!
//! Promises: everything that is counted as accepted when [`Import::finish`] returns is in the table once; a row that
//! breaks the contract is set aside with its file, number and text; memory is the gate's, and bounded. Refuses: a file of
//! which no row could fit; a stream that the credentials do not reach.

mod adopt;
mod api;
mod claim_files;
pub(crate) mod claims;
mod commit;
pub(crate) mod conform;
mod documents;
mod elsewhere;
mod growing;
pub(crate) mod keys;
pub(crate) mod letters;
mod own_columns;
mod together;
pub(crate) mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use lakegate_access::Action;
use lakegate_formats::{BadRow, Mark, Piece, RAW_BYTES, Rows};
use lakegate_lake::{FileMark, FileState, LakeTable};
use lakegate_model::{Column, ColumnSource, ColumnType, ReasonCode, Refusal, StreamKey, Tally};

pub use api::{Begun, ImportError, ImportSummary, ImportTarget, PieceCounts};
pub(crate) use claim_files::settle_claims;

use self::claims::Claimed;
pub(crate) use self::commit::{Unsettled, counts_of, counts_of_letters};
use self::conform::json::{JsonOptions, row_text};
pub(crate) use self::conform::row_id;
use self::conform::{Conformed, Conformer, Names, RowContext, RowOrigin};
use self::letters::{Letter, Sender};
pub use self::own_columns::OwnColumns;
pub(crate) use self::own_columns::OwnContracts;
use self::write::{Files, bytes_of};
use crate::duplicates::Importer;
use crate::gate::{Gate, Inner};
use crate::growth::Wishes;
use crate::streams::Stream;

/// So many rows that were set aside are told of at once.
const REFUSALS_TOLD: usize = 100;

/// Numbers imports, so that each knows its own claims.
static NEXT_OWNER: AtomicU64 = AtomicU64::new(1);

/// One file on its way into one stream.
pub struct Import {
    gate: Gate,
    target: ImportTarget,
    stream: Arc<Stream>,
    table: Arc<LakeTable>,
    conformer: Option<Arc<Conformer>>,
    files: Files,
    owner: u64,
    /// By what other instances know its claims, where they share the window.
    importer: Option<Importer>,
    /// What the table says of the file.
    mark: Option<FileMark>,
    /// Where reading goes on after what was taken.
    next: Option<Mark>,
    /// Rows of the file up to there.
    rows: u64,
    /// Claimed since the last commit.
    claimed: Vec<u128>,
    /// Since the last commit.
    tally: Tally,
    /// Of rows that were set aside.
    refusals: Vec<(u64, String)>,
    last_commit_us: u64,
    summary: ImportSummary,
}

impl std::fmt::Debug for Import {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Import").field("target", &self.target).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Gate {
    /// Begins to import a file, or goes on with it.
    ///
    /// # Errors
    /// See [`ImportError`]; nothing was changed.
    pub async fn begin_import(&self, target: ImportTarget) -> Result<Begun, ImportError> {
        let inner = &self.inner;
        if let Some(reason) = inner.closed_reason() {
            return Err(ImportError::Closed(reason));
        }
        if let Some(principal) = &target.principal {
            if !principal.may(Action::Write, &target.stream) {
                let (principal, stream) = (principal.id.to_string(), target.stream.clone());
                return Err(ImportError::Forbidden { principal, stream });
            }
            if principal.tenant != target.tenant {
                return Err(ImportError::WrongTenant);
            }
        }
        self.take_own_columns(&target).await?;
        let stream = inner.streams.resolve(target.tenant.as_str(), target.stream.as_str());
        let stream = stream.map_err(|refusal| ImportError::Stream(refusal.message))?;
        let stream = self.grown_for(part_for(inner, stream, &target)?, &target).await?;
        let table = stream.unit.open(&inner.lake).await.map_err(|error| ImportError::Lake(error.to_string()))?;
        commit::settle_left(inner, &stream, &table, target.file).await?;
        let mark = table.absorbed_file(target.file).await.map_err(|error| ImportError::Lake(error.to_string()))?;
        if let Some(FileMark { rows, state: FileState::Complete, .. }) = &mark
            && !target.again
        {
            return Ok(Begun::Absorbed { rows: *rows });
        }
        Ok(Begun::Import(Box::new(self.import(target, stream, table, mark))))
    }

    /// The first file of a stream that nobody declared gives it its columns.
    async fn take_own_columns(&self, target: &ImportTarget) -> Result<(), ImportError> {
        let key = StreamKey { tenant: target.tenant.clone(), stream: target.stream.clone() };
        match &target.columns {
            Some(columns) => self.inner.give_columns(&key, columns).await,
            None => Ok(()),
        }
    }

    fn import(
        &self,
        target: ImportTarget,
        stream: Arc<Stream>,
        table: Arc<LakeTable>,
        mark: Option<FileMark>,
    ) -> Import {
        let (next, rows) = match &mark {
            Some(FileMark { rows, state: FileState::Partial(place), .. }) => (Mark::from_bytes(place), *rows),
            _ => (None, 0),
        };
        Import {
            gate: self.clone(),
            files: Files::new(&self.inner),
            conformer: None,
            owner: NEXT_OWNER.fetch_add(1, Ordering::Relaxed),
            importer: elsewhere::importer_of(&self.inner, &stream),
            summary: ImportSummary { rows_before: rows, ..ImportSummary::default() },
            last_commit_us: self.inner.clock.monotonic_us(),
            target,
            stream,
            table,
            mark,
            next,
            rows,
            claimed: Vec::new(),
            tally: Tally::default(),
            refusals: Vec::new(),
        }
    }
}

impl Inner {
    /// Gives a stream that nobody declared, and that nothing was sent to, these columns.
    pub(crate) async fn give_columns(&self, key: &StreamKey, columns: &OwnColumns) -> Result<(), ImportError> {
        if !self.streams.may_take_columns(key) {
            return Ok(());
        }
        let contract = columns.contract().map_err(ImportError::Mismatch)?;
        let table = contract.table.table_for(key, "").map_err(|error| ImportError::Stream(error.to_string()))?;
        let found = self.lake.find_table(&table).await.map_err(|error| ImportError::Lake(error.to_string()))?;
        if found.is_some() {
            // Its columns are there already: those of a stream that nobody declared, or it is for somebody to declare it.
            return Ok(());
        }
        let kept = self.streams.own.keep(key, &contract, &self.contracts);
        kept.map_err(|error| ImportError::Closed(error.to_string()))
    }
}

/// Of a stream that goes into tables by event type, the part that the whole file is for.
fn part_for(inner: &Inner, stream: Arc<Stream>, target: &ImportTarget) -> Result<Arc<Stream>, ImportError> {
    if !stream.shaper.splits_by_event_type() {
        return Ok(stream);
    }
    let event_type = target.event_type.as_deref().filter(|event_type| !event_type.is_empty());
    let event_type = event_type.ok_or_else(|| {
        let name = &stream.key.stream;
        ImportError::Stream(format!(
            "the stream {name} has a table for each event type; say which one the file is of (event_type)"
        ))
    })?;
    inner.streams.part_of(&stream, Some(event_type)).map_err(|refusal| ImportError::Stream(refusal.message))
}

impl Import {
    /// Where reading is to go on; none: from the beginning.
    #[must_use]
    pub fn resume_mark(&self) -> Option<Mark> {
        self.next
    }

    /// Rows that are in the table from before.
    #[must_use]
    pub fn rows_before(&self) -> u64 {
        self.summary.rows_before
    }

    /// The types as which a text file's columns are to be read, by the names that the file has them under, where what a
    /// sample shows is not enough: text that looks like something else, and numbers of which a reader would lose a part.
    #[must_use]
    pub fn text_types(&self) -> SchemaRef {
        let has_notation = |column: &Column| {
            let slot = self.stream.shaper.contract.columns.iter().position(|other| other.name == column.name);
            slot.and_then(|slot| self.stream.shaper.slot_rules(slot)).is_some_and(|rules| rules.times.is_some())
        };
        let read_as = |column: &Column| match column.column_type {
            ColumnType::String | ColumnType::Decimal { .. } => Some(DataType::Utf8),
            ColumnType::Float | ColumnType::Double => Some(DataType::Float64),
            _ => has_notation(column).then_some(DataType::Utf8),
        };
        let field = |column: &Column| match &column.source {
            ColumnSource::Path(path) => Some(Field::new(path.join("."), read_as(column)?, true)),
            ColumnSource::Envelope(_) => None,
        };
        Arc::new(Schema::new(self.stream.shaper.contract.columns.iter().filter_map(field).collect::<Vec<_>>()))
    }

    /// Rows and duplicates that were taken since the last commit.
    #[must_use]
    pub fn uncommitted(&self) -> (u64, u64) {
        (self.tally.accepted, self.tally.duplicate)
    }

    /// Rows that were set aside since this was last asked, each with its number in the file, from 0, and the reason; the
    /// first [`REFUSALS_TOLD`] of them.
    pub fn refusals(&mut self) -> Vec<(u64, String)> {
        std::mem::take(&mut self.refusals)
    }

    /// Takes the next piece of the file. Its rows are in the table after the next commit, at the latest that of
    /// [`Self::finish`].
    ///
    /// # Errors
    /// See [`ImportError`]. What was committed stays, the rest is taken again by the next import of the file.
    pub async fn take(&mut self, piece: Piece) -> Result<PieceCounts, ImportError> {
        let received_us = self.gate.inner.clock.wall_us();
        let file = part_id(self.target.file, &piece);
        let Piece { first_row, next, rows, mut bad, .. } = piece;
        bad.sort_by_key(|bad| bad.row);
        let numbers = Numbers::of(first_row, &bad);
        let (conformed, source) = self.shape(rows, file, first_row, received_us).await?;
        let Conformed { rows, bad: refused } = conformed;
        let mut letters: Vec<Letter> = bad.into_iter().map(letter_of).collect();
        letters.extend(refused.into_iter().map(|(place, refusal)| Letter {
            row: numbers.of_place(place),
            raw: source.raw(place),
            refusal,
        }));
        letters.sort_by_key(|letter| letter.row);
        let dead_lettered = letters.len() as u64;
        let room = REFUSALS_TOLD.saturating_sub(self.refusals.len());
        self.refusals.extend(letters.iter().take(room).map(|letter| (letter.row, letter.refusal.message.clone())));
        let came = rows.num_rows() as u64;
        let rows = self.without_duplicates(rows, received_us).await?;
        let (accepted, bytes) = (rows.num_rows() as u64, bytes_of(&rows) as u64);
        if !letters.is_empty() {
            self.gate
                .set_aside(&self.sender(file), &letters)
                .await
                .map_err(|error| ImportError::Closed(error.to_string()))?;
        }
        self.files.push(rows, &self.table).await?;
        let counts =
            PieceCounts { rows: came + dead_lettered, accepted, duplicates: came - accepted, dead_lettered, bytes };
        self.tally.add(&Tally { received: came, accepted, duplicate: came - accepted, bytes, ..Tally::default() });
        self.rows += counts.rows;
        self.next = Some(next);
        self.summary.add(&counts);
        if self.is_commit_due() {
            self.commit_part().await?;
        }
        Ok(counts)
    }

    /// Commits what was taken so far, whether or not it is due.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub async fn commit_now(&mut self) -> Result<(), ImportError> {
        self.commit_part().await
    }

    /// Commits what is left and marks the file as absorbed.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub async fn finish(mut self) -> Result<ImportSummary, ImportError> {
        self.commit(FileState::Complete).await?;
        Ok(self.summary.clone())
    }

    /// Gives up what was taken since the last commit; the next import of the file begins there.
    pub async fn abandon(mut self) {
        self.files.discard(&self.table).await;
    }

    fn sender(&self, file: u128) -> Sender {
        Sender {
            key: self.stream.key.clone(),
            file,
            source: crate::api::Source::File,
            place: self.target.uri.clone(),
            unit: "row",
            first: 1,
            correlation_id: self.target.correlation_id.clone(),
        }
    }

    /// The piece's rows as rows of the table, on a thread that may be busy for long.
    async fn shape(
        &mut self,
        rows: Rows,
        file: u128,
        first_row: u64,
        received_us: i64,
    ) -> Result<(Conformed, Source), ImportError> {
        let may_grow = matches!(rows, Rows::Documents { .. }) && growing::may_grow(&self.stream);
        let (done, source, wishes) = self.shape_once(rows, file, first_row, received_us, may_grow).await?;
        if wishes.is_empty() || !self.grow(wishes).await? {
            return Ok((done, source));
        }
        let (done, source, _) = self.shape_once(source.0, file, first_row, received_us, false).await?;
        Ok((done, source))
    }

    async fn shape_once(
        &mut self,
        rows: Rows,
        file: u128,
        first_row: u64,
        received_us: i64,
        may_grow: bool,
    ) -> Result<(Conformed, Source, Wishes), ImportError> {
        let conformer = match &rows {
            Rows::Columns(batch) => Some(self.conformer_for(batch)?),
            Rows::Documents { .. } => None,
        };
        let (stream, inner, event_type) =
            (self.stream.clone(), self.gate.inner.clone(), self.target.event_type.clone());
        let work = move || {
            let context = RowContext {
                tenant: stream.key.tenant.as_str(),
                stream: stream.key.stream.as_str(),
                event_type: event_type.as_deref(),
                received_us,
                file,
                first_row,
                payload_bytes_max: inner.settings.payload_bytes_max,
                origin: RowOrigin::File,
            };
            let mut wishes = Wishes::default();
            let mut note = |wanted| wishes.add(wanted, &stream, &inner.streams.growth);
            let done = match (&rows, &conformer) {
                (Rows::Columns(batch), Some(conformer)) => conformer.conform(batch, &context),
                (Rows::Documents { body, spans }, _) => {
                    let note: Option<&mut dyn FnMut(_)> = if may_grow { Some(&mut note) } else { None };
                    documents::shape_documents(&stream.shaper, body, spans, &context, note)
                }
                (Rows::Columns(_), None) => Err(arrow::error::ArrowError::SchemaError("no columns".to_owned())),
            };
            done.map(|done| (done, Source(rows), wishes))
        };
        let done = tokio::task::spawn_blocking(work).await.map_err(|error| ImportError::Rows(error.to_string()))?;
        done.map_err(|error| ImportError::Rows(error.to_string()))
    }

    fn conformer_for(&mut self, batch: &RecordBatch) -> Result<Arc<Conformer>, ImportError> {
        if let Some(known) = self.conformer.as_ref().filter(|known| known.schema() == batch.schema_ref()) {
            return Ok(known.clone());
        }
        let made = Conformer::new(&self.stream.shaper, batch.schema_ref(), Names::Payload);
        let made = Arc::new(made.map_err(|mismatch| ImportError::Mismatch(mismatch.0))?);
        self.conformer = Some(made.clone());
        Ok(made)
    }

    /// The rows that the stream has not seen; their keys are claimed until they are committed.
    async fn without_duplicates(&mut self, rows: RecordBatch, now_us: i64) -> Result<RecordBatch, ImportError> {
        let stream = self.stream.clone();
        let Some(window) = &stream.window else { return Ok(rows) };
        let columns = stream.shaper.key_columns.clone();
        let keyed = rows.clone();
        let keys = tokio::task::spawn_blocking(move || keys::row_keys(&keyed, &columns)).await;
        let keys = keys.map_err(|error| ImportError::Rows(error.to_string()))?;
        let mut flags = loop {
            let released = stream.claims.released();
            let claimed = {
                let _consistent = stream.unit.memtable.lock();
                // Forgets what is over.
                window.claim(std::iter::empty(), now_us);
                stream.claims.claim(&keys, self.owner, |key| window.knows(key))
            };
            match claimed {
                Claimed::Rows(flags) => break flags,
                Claimed::Held => {
                    // The other may wait for a key of ours: what we hold is committed first.
                    if !self.claimed.is_empty() {
                        self.commit_part().await?;
                    }
                    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), released).await;
                }
            }
        };
        self.claim_elsewhere(&keys, &mut flags, now_us).await?;
        self.claimed.extend(keys.iter().zip(&flags).filter(|(_, known)| !**known).filter_map(|(key, _)| *key));
        if !flags.contains(&true) {
            return Ok(rows);
        }
        let keep: BooleanArray = flags.iter().map(|known| Some(!known)).collect();
        filter_record_batch(&rows, &keep).map_err(|error| ImportError::Rows(error.to_string()))
    }
}

impl Drop for Import {
    /// What is not committed is as if it had not been read.
    fn drop(&mut self) {
        self.stream.claims.release(&self.claimed);
        self.release_elsewhere();
    }
}

/// The rows as they were read.
struct Source(Rows);

impl Source {
    fn raw(&self, place: usize) -> Bytes {
        match &self.0 {
            Rows::Columns(batch) => row_text(batch, place, RAW_BYTES, &JsonOptions::default()).into(),
            Rows::Documents { body, spans } => {
                let document = spans.get(place).and_then(|span| documents::document(body, span));
                document.map_or_else(Bytes::new, |document| body.slice_ref(document))
            }
        }
    }
}

/// What stands for the part of a file that numbers its own rows: an archive's member, a dump's table, else the file.
fn part_id(file: u128, piece: &Piece) -> u128 {
    let table = piece.table.as_ref().map(|table| table.name.as_str());
    match (piece.member.as_deref(), table) {
        (None, None) => file,
        (member, table) => {
            let name = format!("{file:032x}\0{}\0{}", member.unwrap_or_default(), table.unwrap_or_default());
            xxhash_rust::xxh3::xxh3_128(name.as_bytes())
        }
    }
}

/// The numbers of a piece's good rows: the bad ones are counted between them.
struct Numbers {
    first: u64,
    bad: Vec<u64>,
}

impl Numbers {
    /// `bad` in order.
    fn of(first: u64, bad: &[BadRow]) -> Self {
        Self { first, bad: bad.iter().map(|bad| bad.row).collect() }
    }

    fn of_place(&self, place: usize) -> u64 {
        let mut number = self.first + place as u64;
        for bad in &self.bad {
            if *bad > number {
                break;
            }
            number += 1;
        }
        number
    }
}

fn letter_of(bad: BadRow) -> Letter {
    let refusal = Refusal { code: ReasonCode::MalformedPayload, field: bad.field, message: bad.reason };
    Letter { row: bad.row, raw: bad.raw, refusal }
}
