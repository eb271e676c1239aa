//! `GET /api/feeds/{stream}`: a stream's durable rows as they come, as NDJSON or server-sent events.
//!
//! A feed looks at the memtables of the stream's tables whenever the log has made something durable. It begins with
//! what comes from now on (`from=latest`), with everything in memory (`earliest`), or with what lies in memory at or
//! after an offset of the log; older rows are in the lake, and SQL reads them. A feed never holds ingestion up: a
//! client that reads too slowly loses rows, and a line `{"dropped":N}` tells it how many.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use lakegate_memtable::{MemPart, Memtable};
use lakegate_model::{StreamName, TableName, TenantId};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_stream::wrappers::ReceiverStream;

use super::App;
use super::problem::Problem;

/// Pieces that wait for a slow client.
const QUEUE_PIECES: usize = 64;

/// Rows in one piece.
const PIECE_ROWS: usize = 512;

/// Groups become durable thousands of times a second; people read slower.
const AT_MOST_EVERY: Duration = Duration::from_millis(25);

/// A stream may get a table, or another tenant's, while it is followed.
const TABLES_EVERY: Duration = Duration::from_secs(1);

/// Where to begin, and whose.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    #[serde(default)]
    from: Option<String>,
    tenant: Option<String>,
    limit: Option<u64>,
}

pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path(stream): Path<String>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wrong = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "invalid_request", detail);
    let stream = StreamName::new(&stream).map_err(|e| wrong(e.to_string()))?;
    let tenant = asked.tenant.as_deref().map(TenantId::new).transpose().map_err(|e| wrong(e.to_string()))?;
    let from = match asked.from.as_deref() {
        None | Some("latest") => From::Latest,
        Some("earliest") => From::Offset(0),
        Some(text) => From::Offset(
            text.parse().map_err(|_| wrong(format!("from={text:?} is not an offset, earliest or latest")))?,
        ),
    };
    let events = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|a| a.contains("text/event-stream"));
    let (pieces, body) = mpsc::channel(QUEUE_PIECES);
    let feed =
        Feed { app, stream, tenant, from, events, left: asked.limit, tables: BTreeMap::new(), dropped: 0, pieces };
    tokio::spawn(feed.run());
    let kind = if events { "text/event-stream" } else { "application/x-ndjson" };
    let body = Body::from_stream(ReceiverStream::new(body));
    Ok(([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store")], body).into_response())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Latest,
    Offset(u64),
}

/// How much of a table was given out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cursor {
    /// The part that was given out last, by its first offset.
    part: Option<u64>,
    /// How many of its rows.
    rows: usize,
}

impl Cursor {
    /// The rows of a snapshot's parts that were not given out yet, and moves past them. A part only grows, and parts
    /// begin at ever higher offsets.
    fn take(&mut self, parts: &[MemPart], least_offset: u64) -> Vec<RecordBatch> {
        let mut fresh = Vec::new();
        for part in parts {
            let mut skip = match self.part {
                Some(known) if part.first_offset < known => continue,
                Some(known) if part.first_offset == known => self.rows,
                _ => 0,
            };
            let rows: usize = part.batches.iter().map(RecordBatch::num_rows).sum();
            (self.part, self.rows) = (Some(part.first_offset), rows.max(skip));
            if part.next_offset <= least_offset {
                continue;
            }
            for batch in &part.batches {
                let passed = skip.min(batch.num_rows());
                skip -= passed;
                if passed < batch.num_rows() {
                    fresh.push(batch.slice(passed, batch.num_rows() - passed));
                }
            }
        }
        fresh
    }
}

struct Feed {
    app: Arc<App>,
    stream: StreamName,
    tenant: Option<TenantId>,
    from: From,
    events: bool,
    left: Option<u64>,
    tables: BTreeMap<TableName, Cursor>,
    dropped: u64,
    pieces: mpsc::Sender<Result<Bytes, std::convert::Infallible>>,
}

impl Feed {
    async fn run(mut self) {
        let mut progress = self.app.log.subscribe();
        let mut looked: Option<Instant> = None;
        loop {
            if looked.is_none_or(|at| at.elapsed() >= TABLES_EVERY) {
                self.look_for_tables(looked.is_none());
                looked = Some(Instant::now());
            }
            if !self.give_out() || self.left == Some(0) || self.app.readiness.reason().is_some() {
                return;
            }
            let changed = tokio::time::timeout(TABLES_EVERY, progress.changed());
            tokio::select! {
                () = self.pieces.closed() => return,
                changed = changed => {
                    if matches!(changed, Ok(Err(_))) {
                        return;
                    }
                }
            }
            tokio::time::sleep(AT_MOST_EVERY).await;
        }
    }

    /// Takes up tables that are new. At the first look, `latest` begins behind what is there; a table that appears
    /// later is new as a whole.
    fn look_for_tables(&mut self, first: bool) {
        let status = self.app.gate.status(self.tenant.as_ref(), Some(&self.stream));
        for table in status.streams.into_iter().map(|s| s.table) {
            if self.tables.contains_key(&table) {
                continue;
            }
            let mut cursor = Cursor::default();
            if let (true, From::Latest, Some(memtable)) = (first, self.from, self.app.memtables.get(&table)) {
                let _ = cursor.take(&parts_of(&memtable), 0);
            }
            self.tables.insert(table, cursor);
        }
    }

    /// Gives out what is new. Says whether there is still somebody to give it to.
    fn give_out(&mut self) -> bool {
        let least_offset = match self.from {
            From::Latest => 0,
            From::Offset(offset) => offset,
        };
        let mut fresh = Vec::new();
        for (table, cursor) in &mut self.tables {
            if let Some(memtable) = self.app.memtables.get(table) {
                fresh.extend(cursor.take(&parts_of(&memtable), least_offset));
            }
        }
        fresh.iter().flat_map(pieces_of).all(|piece| self.give(&piece))
    }

    fn give(&mut self, rows: &RecordBatch) -> bool {
        let wanted =
            self.left.map_or(rows.num_rows(), |left| rows.num_rows().min(usize::try_from(left).unwrap_or(usize::MAX)));
        if wanted == 0 {
            return true;
        }
        let mut lines = match self.dropped {
            0 => Vec::new(),
            n => format!("{{\"dropped\":{n}}}\n").into_bytes(),
        };
        let mut writer = arrow::json::WriterBuilder::new().build::<_, arrow::json::writer::LineDelimited>(&mut lines);
        if let Err(e) = writer.write(&rows.slice(0, wanted)).and_then(|()| writer.finish()) {
            tracing::warn!(error = %e, stream = %self.stream, "rows of a feed could not be written as JSON");
            return false;
        }
        drop(writer);
        match self.pieces.try_send(Ok(Bytes::from(if self.events { as_events(&lines) } else { lines }))) {
            Ok(()) => {
                self.dropped = 0;
                self.left = self.left.map(|left| left.saturating_sub(wanted as u64));
                true
            }
            Err(TrySendError::Full(_)) => {
                self.dropped += wanted as u64;
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

/// The durable rows of a memtable; none when they cannot be had at the moment.
fn parts_of(memtable: &Memtable) -> Vec<MemPart> {
    memtable.snapshot().map(|snapshot| snapshot.parts).unwrap_or_default()
}

fn pieces_of(batch: &RecordBatch) -> impl Iterator<Item = RecordBatch> + '_ {
    (0..batch.num_rows()).step_by(PIECE_ROWS).map(|at| batch.slice(at, PIECE_ROWS.min(batch.num_rows() - at)))
}

/// Each line as one server-sent event.
fn as_events(lines: &[u8]) -> Vec<u8> {
    let mut events = Vec::with_capacity(lines.len() * 2);
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        events.extend_from_slice(b"data: ");
        events.extend_from_slice(line);
        events.extend_from_slice(b"\n\n");
    }
    events
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};
    use lakegate_memtable::Memtables;
    use lakegate_model::LogId;

    use super::*;

    #[test]
    fn a_cursor_gives_each_row_once_while_parts_grow_freeze_and_vanish() {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let durable = Arc::new(AtomicU64::new(0));
        let memtables = Memtables::new(LogId(uuid::Uuid::nil()), durable.clone());
        let memtable = memtables.get_or_create(&TableName::new("a", "b").unwrap(), schema.clone());
        let push = |range: std::ops::Range<i64>| {
            let (first, next) = (u64::try_from(range.start).unwrap(), u64::try_from(range.end).unwrap());
            let batch =
                RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from_iter_values(range))]).unwrap();
            memtable.lock().push_batch(batch, first, next, 0).unwrap();
        };
        let mut cursor = Cursor::default();
        let mut given = || -> usize { cursor.take(&parts_of(&memtable), 0).iter().map(RecordBatch::num_rows).sum() };
        push(0..3);
        assert_eq!(given(), 0, "nothing is durable yet");
        durable.store(3, Ordering::Release);
        assert_eq!((given(), given()), (3, 0));
        push(3..5);
        memtable.lock().freeze(5).unwrap();
        push(5..6);
        durable.store(6, Ordering::Release);
        assert_eq!((given(), given()), (3, 0));
        memtable.drop_absorbed(5);
        push(6..10);
        durable.store(10, Ordering::Release);
        assert_eq!((given(), given()), (4, 0));
    }

    #[test]
    fn lines_become_events() {
        assert_eq!(as_events(b"{\"a\":1}\n{\"a\":2}\n"), b"data: {\"a\":1}\n\ndata: {\"a\":2}\n\n");
    }
}
