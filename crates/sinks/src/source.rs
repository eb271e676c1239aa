//! Where a consumer reads: the log, and the tables for what the log has no more.
//!
//! A consumer that was away longer than the log could wait finds its offset trimmed. Then it reads the tables in the
//! order of their commits, from the first commit that may have what it lacks, and goes on in the log behind what they
//! had. It gets some records twice there, under the same keys, and misses none.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, BooleanArray};
use futures::StreamExt;
use lakegate_ingest::{Delivery, FollowError, FollowFrom, Follower, Gate, HistoryTable, Room};
use lakegate_lake::{BatchStream, GrownFile, TableView};
use lakegate_model::{ColumnSource, Field, LogId, StreamKey};
use tokio::sync::mpsc;

use crate::kept::{Back, Kept, TableBack};
use crate::record::Rows;
use crate::settings::Filter;

/// A consumer that has nothing to read looks so often how far the log is.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Pieces that wait to be taken.
const QUEUE: usize = 2;

/// Records that came together, and how far the source is with them.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) rows: Vec<Rows>,
    pub(crate) end: End,
    /// When they came; 0: not known.
    pub(crate) received_us: i64,
}

impl Chunk {
    fn of(end: End) -> Self {
        Self { rows: Vec::new(), end, received_us: 0 }
    }

    pub(crate) fn records(&self) -> usize {
        self.rows.iter().map(Rows::len).sum()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.rows.iter().map(Rows::bytes).sum()
    }
}

/// How far the source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Everything of the log below.
    Log(u64),
    /// In the middle of a file.
    Within,
    /// The tables are to be read.
    Begun(Back),
    /// Everything of a table up to a commit.
    Commit(String, i64),
    /// All of a table, which has the log below the offset.
    Table(String, u64),
}

impl Kept {
    /// Moves on to the end of a chunk.
    pub(crate) fn advance(&mut self, chunk_end: &End, received_us: i64) {
        match chunk_end {
            End::Within => {}
            End::Begun(back) => self.back = Some(back.clone()),
            End::Commit(table, sequence) => self.table_back(table).after = *sequence,
            End::Table(table, absorbed) => {
                self.table_back(table).done = true;
                self.taken.insert(table.clone(), *absorbed);
            }
            End::Log(offset) => {
                self.back = None;
                self.offset = *offset;
                self.taken.retain(|_, absorbed| *absorbed > *offset);
            }
        }
        if received_us > 0 {
            self.received_us = received_us;
        }
    }

    fn table_back(&mut self, table: &str) -> &mut TableBack {
        self.back.get_or_insert_default().tables.entry(table.to_owned()).or_default()
    }
}

/// Why reading cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error(transparent)]
    Follow(#[from] FollowError),
    #[error(transparent)]
    History(#[from] lakegate_ingest::HistoryError),
    #[error("the table {table} cannot be read back: {reason}")]
    Table { table: String, reason: String },
    #[error("records cannot be filtered: {0}")]
    Filter(String),
    #[error(
        "the position is of the log {kept}, and this is {found}; choose where to go on: lakegate consumers rewind NAME --to tail|head|lake"
    )]
    OtherLog { kept: LogId, found: LogId },
}

/// Reads on, on a task of its own; dropping it ends the task.
pub(crate) struct Source {
    chunks: mpsc::Receiver<Result<Vec<Chunk>, SourceError>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Source {
    pub(crate) fn start(gate: Gate, filter: Arc<Filter>, kept: &Kept, room: Room) -> Result<Self, SourceError> {
        if kept.log != gate.log_id() {
            return Err(SourceError::OtherLog { kept: kept.log, found: gate.log_id() });
        }
        let (sender, chunks) = mpsc::channel(QUEUE);
        let reader = Reader {
            log: gate.log_id(),
            gate,
            filter,
            room,
            at: kept.offset,
            follower: None,
            back: kept.back.clone(),
            taken: kept.taken.clone(),
        };
        let task = tokio::spawn(reader.run(sender));
        Ok(Self { chunks, task })
    }

    /// The next chunks. Ending early loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Vec<Chunk>, SourceError> {
        self.chunks.recv().await.unwrap_or(Err(SourceError::Follow(FollowError::Ended)))
    }
}

struct Reader {
    gate: Gate,
    log: LogId,
    filter: Arc<Filter>,
    room: Room,
    /// The next offset of the log.
    at: u64,
    follower: Option<Follower>,
    back: Option<Back>,
    taken: BTreeMap<String, u64>,
}

type Sender = mpsc::Sender<Result<Vec<Chunk>, SourceError>>;

/// The one that reads on has gone.
struct Gone;

impl Reader {
    async fn run(mut self, sender: Sender) {
        loop {
            let step = match self.back.take() {
                Some(back) => match self.read_back(back, &sender).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => Err(error),
                    Err(Gone) => return,
                },
                None => self.read_log().await,
            };
            let failed = step.is_err();
            if step.as_ref().is_ok_and(Vec::is_empty) {
                continue;
            }
            if sender.send(step).await.is_err() || failed {
                return;
            }
        }
    }

    async fn read_log(&mut self) -> Result<Vec<Chunk>, SourceError> {
        let mut follower = match self.follower.take() {
            Some(follower) => follower,
            None => match self.gate.follow(FollowFrom::Offset(self.at)) {
                Ok(follower) => follower,
                Err(FollowError::Trimmed { asked, .. }) => return Ok(self.turn_back(Some(asked))),
                Err(error) => return Err(error.into()),
            },
        };
        let filter = self.filter.clone();
        let next = follower.next_some(self.room, move |key: &StreamKey| filter.wants(key));
        let some = match tokio::time::timeout(LOOK_EVERY, next).await {
            Ok(Ok(some)) => some,
            Ok(Err(FollowError::Trimmed { asked, .. })) => return Ok(self.turn_back(Some(asked))),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => Vec::new(),
        };
        let position = follower.position();
        self.follower = Some(follower);
        let mut chunks = Vec::with_capacity(some.len() + 1);
        for delivery in some {
            chunks.push(self.chunk_of(delivery)?);
        }
        let told = chunks.last().map_or(self.at, |chunk| match chunk.end {
            End::Log(offset) => offset,
            _ => self.at,
        });
        if position > told {
            chunks.push(Chunk::of(End::Log(position)));
        }
        self.at = position.max(told);
        Ok(chunks)
    }

    fn chunk_of(&self, delivery: Delivery) -> Result<Chunk, SourceError> {
        let Delivery { first_offset, next_offset, received_us, correlation_id, streams } = delivery;
        let correlation_id: Arc<str> = correlation_id.into();
        let mut rows = Vec::with_capacity(streams.len());
        for (at, stream) in streams.into_iter().enumerate() {
            let absorbed = (!self.taken.is_empty()).then(|| self.taken.get(&stream.table.to_string())).flatten();
            if absorbed.is_some_and(|absorbed| next_offset <= *absorbed) {
                continue;
            }
            let some = Rows {
                key: stream.key,
                contract: stream.contract,
                batch: stream.batch,
                place: format!("{}/{first_offset}/{at}", self.log).into(),
                numbers: Vec::new(),
                received_us,
                correlation_id: correlation_id.clone(),
            };
            rows.extend(keep(&self.filter, some)?);
        }
        Ok(Chunk { rows, end: End::Log(next_offset), received_us })
    }

    /// The log has no more what is asked for: the tables have.
    fn turn_back(&mut self, from: Option<u64>) -> Vec<Chunk> {
        let back = Back { from, then: self.gate.first_offset(), tables: BTreeMap::new() };
        self.back = Some(back.clone());
        vec![Chunk::of(End::Begun(back))]
    }

    /// Reads the tables; then the log is read on.
    async fn read_back(&mut self, back: Back, sender: &Sender) -> Result<Result<(), SourceError>, Gone> {
        let filter = self.filter.clone();
        let tables = match self.gate.history(|key| filter.wants(key)).await {
            Ok(tables) => tables,
            Err(error) => return Ok(Err(error.into())),
        };
        for table in tables {
            let name = table.table.to_string();
            let so_far = back.tables.get(&name).cloned().unwrap_or_default();
            if so_far.done {
                continue;
            }
            match self.read_table(&back, &table, &so_far, sender).await? {
                Ok(None) => {}
                Ok(Some(absorbed)) => {
                    self.taken.insert(name.clone(), absorbed);
                    sender.send(Ok(vec![Chunk::of(End::Table(name, absorbed))])).await.map_err(|_| Gone)?;
                }
                Err(reason) => return Ok(Err(reason)),
            }
        }
        self.at = back.then;
        self.follower = None;
        sender.send(Ok(vec![Chunk::of(End::Log(back.then))])).await.map_err(|_| Gone)?;
        Ok(Ok(()))
    }

    /// Reads one table; the offset below which it has the log, none if there is no such table.
    async fn read_table(
        &self,
        back: &Back,
        table: &HistoryTable,
        so_far: &TableBack,
        sender: &Sender,
    ) -> Result<Result<Option<u64>, SourceError>, Gone> {
        let name = table.table.to_string();
        let wrong = |reason: String| SourceError::Table { table: name.clone(), reason };
        let found = match self.gate.lake().find_table(&table.table).await {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Ok(None)),
            Err(error) => return Ok(Err(wrong(error.to_string()))),
        };
        let view = found.view();
        let absorbed = view.absorbed_next_offset(self.log);
        let after = so_far.after.max(back.from.map_or(0, |from| view.commit_before(self.log, from)));
        let mut files: VecDeque<GrownFile> = match view.files_after(after).await {
            Ok(files) => files.into(),
            Err(error) => return Ok(Err(wrong(error.to_string()))),
        };
        while let Some(file) = files.pop_front() {
            match self.read_file(&view, table, &file, sender).await? {
                Ok(()) => {}
                Err(error) => return Ok(Err(error)),
            }
            if files.front().is_none_or(|next| next.sequence_number > file.sequence_number) {
                let end = End::Commit(name.clone(), file.sequence_number);
                sender.send(Ok(vec![Chunk::of(end)])).await.map_err(|_| Gone)?;
            }
        }
        Ok(Ok(Some(absorbed)))
    }

    async fn read_file(
        &self,
        view: &TableView,
        table: &HistoryTable,
        file: &GrownFile,
        sender: &Sender,
    ) -> Result<Result<(), SourceError>, Gone> {
        let wrong = |reason: String| SourceError::Table { table: table.table.to_string(), reason };
        let mut stream: BatchStream = match view.read_grown(file) {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(wrong(error.to_string()))),
        };
        let mut first = 0_u32;
        while let Some(batch) = stream.next().await {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => return Ok(Err(wrong(error.to_string()))),
            };
            let count = u32::try_from(batch.num_rows()).unwrap_or(u32::MAX);
            let whole = Rows {
                key: match table.streams.first() {
                    Some(key) => key.clone(),
                    None => continue,
                },
                contract: table.contract.clone(),
                batch,
                place: file.location.as_str().into(),
                numbers: (first..first.saturating_add(count)).collect(),
                received_us: 0,
                correlation_id: "".into(),
            };
            first = first.saturating_add(count);
            let rows = match shares(whole, &table.streams).and_then(|shares| {
                shares.into_iter().map(|rows| keep(&self.filter, rows)).filter_map(Result::transpose).collect()
            }) {
                Ok(rows) => rows,
                Err(error) => return Ok(Err(error)),
            };
            let chunk = Chunk { rows, end: End::Within, received_us: 0 };
            sender.send(Ok(vec![chunk])).await.map_err(|_| Gone)?;
        }
        Ok(Ok(()))
    }
}

/// The rows of each stream, where one table has those of several: told apart by the columns of tenant and stream.
fn shares(rows: Rows, streams: &[StreamKey]) -> Result<Vec<Rows>, SourceError> {
    if streams.len() <= 1 {
        return Ok(vec![rows]);
    }
    let column = |field: Field| {
        let source = ColumnSource::Envelope(field);
        let column = rows.contract.columns.iter().find(|column| column.source == source);
        column.and_then(|column| rows.batch.column_by_name(&column.name)).and_then(|c| c.as_string_opt::<i32>())
    };
    let (tenants, endpoints) = (column(Field::TenantId), column(Field::EndpointId));
    let mut shares = Vec::with_capacity(streams.len());
    for key in streams {
        let by_tenant = streams.iter().any(|other| other.tenant != key.tenant);
        let by_stream = streams.iter().any(|other| other.stream != key.stream);
        if (by_tenant && tenants.is_none()) || (by_stream && endpoints.is_none()) {
            let reason = "it has records of several tenants or streams and no column that tells them apart".to_owned();
            return Err(SourceError::Table { table: key.to_string(), reason });
        }
        let is = |column: Option<&arrow::array::StringArray>, row: usize, name: &str| {
            column.is_none_or(|column| column.is_valid(row) && column.value(row) == name)
        };
        let fits = |row: usize| {
            (!by_tenant || is(tenants, row, key.tenant.as_str()))
                && (!by_stream || is(endpoints, row, key.stream.as_str()))
        };
        let mask: BooleanArray = (0..rows.len()).map(|row| Some(fits(row))).collect();
        let share = Rows { key: key.clone(), ..rows.clone() };
        shares.push(share.filtered(&mask).map_err(|error| SourceError::Filter(error.to_string()))?);
    }
    Ok(shares)
}

/// The rows that the filter lets through, if any.
fn keep(filter: &Filter, mut rows: Rows) -> Result<Option<Rows>, SourceError> {
    let wrong = |error: arrow::error::ArrowError| SourceError::Filter(error.to_string());
    if !filter.event_types.is_empty() {
        let Some(types) = rows.event_types() else { return Ok(None) };
        let Some(types) = types.as_string_opt::<i32>() else { return Ok(None) };
        let fits = |kind: Option<&str>| kind.is_some_and(|kind| filter.event_types.iter().any(|one| one == kind));
        let mask: BooleanArray = types.iter().map(|kind| Some(fits(kind))).collect();
        rows = rows.filtered(&mask).map_err(wrong)?;
    }
    if let Some(condition) = filter.condition.as_ref().filter(|_| !rows.is_empty()) {
        let mask: BooleanArray = rows.objects().iter().map(|row| Some(condition.holds(row))).collect();
        rows = rows.filtered(&mask).map_err(wrong)?;
    }
    Ok((!rows.is_empty()).then_some(rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::Condition;
    use crate::record::tests::rows;

    #[test]
    fn records_that_do_not_fit_are_left_out_and_the_others_keep_their_places() {
        let some = rows(&[("a", 1, r#"{"n":1}"#), ("b", 5, r#"{"n":5}"#), ("c", 9, r#"{"n":9}"#)]);
        let filter = Filter { condition: Condition::parse("data.n >= 5").ok(), ..Filter::default() };
        let kept = keep(&filter, some.clone()).unwrap().unwrap();
        assert_eq!((kept.len(), &kept.numbers), (2, &vec![1, 2]));
        let filter = Filter { condition: Condition::parse("n > 99").ok(), ..Filter::default() };
        assert!(keep(&filter, some.clone()).unwrap().is_none());
        let filter = Filter { event_types: vec!["x".into()], ..Filter::default() };
        assert!(keep(&filter, some).unwrap().is_none(), "a contract without event types");
    }
}
