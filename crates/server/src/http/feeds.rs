//! `GET /api/feeds/{stream}`: a stream's durable rows as they come, as NDJSON, server-sent events, or over a WebSocket.
//!
//! A feed follows the log, in its order, from `from=latest` (what comes from now on), `earliest` (the oldest that the log
//! has) or an offset; older rows are in the tables, and SQL reads them. A feed never holds ingestion up: a client that reads
//! slowly gets its rows later, and once the log has given up what it still lacks, a line `{"dropped":N}` says how many
//! offsets were passed over. A server-sent event's id is `OFFSET:ROW`; a client that comes back with it in `Last-Event-ID`
//! goes on behind that row. A WebSocket gets the same, a message `{"id":"OFFSET:ROW","row":{…}}` for each row, and goes on
//! behind the row that `?after=OFFSET:ROW` names.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use lakegate_access::{Opened, Principal};
use lakegate_ingest::{Delivery, FollowError, FollowFrom, Follower, StreamRows};
use lakegate_model::{StreamKey, StreamName, TenantId};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::App;
use super::identity::Caller;
use super::problem::Problem;

/// Pieces that wait for a slow client; the log waits for the rest.
const QUEUE_PIECES: usize = 16;

/// A client of a feed has nothing to say.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// Rows in one piece.
const PIECE_ROWS: usize = 512;

/// How often a feed that has nothing to say looks whether the server ends.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// So often a silent feed of server-sent events gives a sign of life, in looks.
const LOOKS_A_SIGN: u32 = 15;

/// Where to begin, and whose.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    #[serde(default)]
    from: Option<String>,
    tenant: Option<String>,
    limit: Option<u64>,
    /// For clients that cannot set `Last-Event-ID`.
    after: Option<String>,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Lines,
    Events,
    Messages,
}

pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(stream): Path<String>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let wrong = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "invalid_request", detail);
    let stream = StreamName::new(&stream).map_err(|e| wrong(e.to_string()))?;
    let tenant = asked.tenant.as_deref().map(TenantId::new).transpose().map_err(|e| wrong(e.to_string()))?;
    caller.check_read(&stream)?;
    let tenant = caller.scope(tenant)?;
    let principal = caller.principal().cloned();
    let place = app.access.open_place(principal.as_deref())?;
    let last = headers.get("last-event-id").map(|value| value.to_str().unwrap_or_default()).or(asked.after.as_deref());
    let start = Start::read(asked.from.as_deref(), last).map_err(wrong)?;
    let follower = app.gate.follow(start.from).map_err(|e| problem_of(&e))?;
    let events = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|a| a.contains("text/event-stream"));
    let form = match (&upgrade, events) {
        (Ok(_), _) => Form::Messages,
        (_, true) => Form::Events,
        (_, false) => Form::Lines,
    };
    let (pieces, body) = mpsc::channel(QUEUE_PIECES);
    let feed = Feed {
        app,
        principal,
        _place: place,
        stream,
        tenant,
        follower,
        seen: start.seen,
        form,
        left: asked.limit,
        pieces,
    };
    tokio::spawn(feed.run());
    if let Ok(upgrade) = upgrade {
        return Ok(upgrade.max_message_size(MESSAGE_BYTES_MAX).on_upgrade(move |socket| give_messages(socket, body)));
    }
    let kind = if events { "text/event-stream" } else { "application/x-ndjson" };
    let body = Body::from_stream(ReceiverStream::new(body));
    Ok(([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store")], body).into_response())
}

/// Hands a feed's pieces on, a message for each line, until one of the two has enough.
async fn give_messages(mut socket: WebSocket, mut pieces: mpsc::Receiver<Result<Bytes, Infallible>>) {
    let mut ping = tokio::time::interval(LOOK_EVERY * LOOKS_A_SIGN);
    loop {
        tokio::select! {
            piece = pieces.recv() => {
                let Some(Ok(piece)) = piece else { break };
                let text = String::from_utf8_lossy(&piece);
                for line in text.lines() {
                    if socket.send(Message::Text(line.into())).await.is_err() {
                        return;
                    }
                }
            }
            message = socket.recv() => match message {
                None | Some(Err(_) | Ok(Message::Close(_))) => return,
                Some(Ok(_)) => {}
            },
            _ = ping.tick() => if socket.send(Message::Ping(Bytes::new())).await.is_err() {
                return;
            },
        }
    }
    let _ = socket.send(Message::Close(None)).await;
}

fn problem_of(error: &FollowError) -> Problem {
    let (status, code) = match error {
        FollowError::Trimmed { .. } => (StatusCode::GONE, "offset_gone"),
        FollowError::NoLog => (StatusCode::CONFLICT, "no_log"),
        FollowError::Broken { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        FollowError::Ended => (StatusCode::SERVICE_UNAVAILABLE, "ending"),
    };
    Problem::new(status, code, error.to_string())
}

/// Where a feed begins.
#[derive(Debug, PartialEq, Eq)]
struct Start {
    from: FollowFrom,
    /// The row of the log that the client has last.
    seen: Option<Place>,
}

/// A row: its frame's first offset, and how many of the stream's rows lie before it in that frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    offset: u64,
    row: usize,
}

impl Start {
    fn read(from: Option<&str>, last: Option<&str>) -> Result<Self, String> {
        if let Some(last) = last {
            let place = last
                .split_once(':')
                .and_then(|(offset, row)| Some(Place { offset: offset.parse().ok()?, row: row.parse().ok()? }));
            let seen = place.ok_or("Last-Event-ID, or after=, is the id of an event, OFFSET:ROW")?;
            return Ok(Self { from: FollowFrom::Offset(seen.offset), seen: Some(seen) });
        }
        let from = match from {
            None | Some("latest") => FollowFrom::Latest,
            Some("earliest") => FollowFrom::Earliest,
            Some(text) => FollowFrom::Offset(
                text.parse().map_err(|_| format!("from={text:?} is not an offset, earliest or latest"))?,
            ),
        };
        Ok(Self { from, seen: None })
    }
}

struct Feed {
    app: Arc<App>,
    /// Whose feed it is: it ends with their credentials.
    principal: Option<Arc<Principal>>,
    _place: Option<Opened>,
    stream: StreamName,
    tenant: Option<TenantId>,
    follower: Follower,
    seen: Option<Place>,
    form: Form,
    left: Option<u64>,
    pieces: mpsc::Sender<Result<Bytes, Infallible>>,
}

impl Feed {
    async fn run(mut self) {
        let mut silent = 0;
        let (access, principal) = (self.app.access.clone(), self.principal.clone());
        let mut ended = std::pin::pin!(access.ended(principal.as_deref()));
        while self.left != Some(0) {
            let (stream, tenant) = (self.stream.clone(), self.tenant.clone());
            let wanted =
                move |key: &StreamKey| key.stream == stream && tenant.as_ref().is_none_or(|t| *t == key.tenant);
            let next = tokio::time::timeout(LOOK_EVERY, self.follower.next(wanted));
            let next = tokio::select! {
                () = self.pieces.closed() => return,
                () = ended.as_mut() => return,
                next = next => next,
            };
            let going_on = match next {
                Ok(Ok(delivery)) => {
                    silent = 0;
                    self.give(&delivery).await
                }
                Ok(Err(FollowError::Trimmed { asked, first_offset })) => self.pass_over(asked, first_offset).await,
                Ok(Err(FollowError::Ended)) => false,
                Ok(Err(error)) => {
                    tracing::warn!(%error, stream = %self.stream, "a feed ended early");
                    false
                }
                Err(_) => {
                    silent += 1;
                    self.app.readiness.reason().is_none() && self.give_sign_of_life(silent).await
                }
            };
            if !going_on {
                return;
            }
        }
    }

    /// The log has given up what the client lacks: it is told, and goes on with what there is.
    async fn pass_over(&mut self, asked: u64, first_offset: u64) -> bool {
        match self.app.gate.follow(FollowFrom::Earliest) {
            Ok(follower) => self.follower = follower,
            Err(_) => return false,
        }
        let line = format!("{{\"dropped\":{}}}\n", first_offset.saturating_sub(asked));
        self.send(if self.form == Form::Events { format!("event: dropped\ndata: {line}\n") } else { line }.into()).await
    }

    async fn give_sign_of_life(&self, silent: u32) -> bool {
        self.form != Form::Events
            || !silent.is_multiple_of(LOOKS_A_SIGN)
            || self.send(Bytes::from_static(b":\n\n")).await
    }

    async fn give(&mut self, delivery: &Delivery) -> bool {
        let offset = delivery.first_offset;
        let mut row = 0;
        for rows in &delivery.streams {
            for at in (0..rows.batch.num_rows()).step_by(PIECE_ROWS) {
                let first = row + at;
                if !self.give_piece(rows, at, Place { offset, row: first }).await {
                    return false;
                }
            }
            row += rows.batch.num_rows();
        }
        true
    }

    /// Gives rows from `at` on, of which the first is at `place`. Says whether there is still somebody to give them to.
    async fn give_piece(&mut self, rows: &StreamRows, at: usize, place: Place) -> bool {
        let count = PIECE_ROWS.min(rows.batch.num_rows() - at);
        let skip = match self.seen {
            Some(seen) if seen.offset == place.offset => (seen.row + 1).saturating_sub(place.row).min(count),
            _ => 0,
        };
        let left = self.left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let count = (count - skip).min(left);
        if count == 0 {
            return true;
        }
        let mut lines = Vec::new();
        let mut writer = arrow::json::WriterBuilder::new().build::<_, arrow::json::writer::LineDelimited>(&mut lines);
        if let Err(error) = writer.write(&rows.batch.slice(at + skip, count)).and_then(|()| writer.finish()) {
            tracing::warn!(%error, stream = %self.stream, "rows of a feed could not be written as JSON");
            return false;
        }
        drop(writer);
        self.left = self.left.map(|left| left.saturating_sub(count as u64));
        let place = Place { row: place.row + skip, ..place };
        let piece = match self.form {
            Form::Lines => lines,
            Form::Events => with_ids(&lines, place, ["id: ", "\ndata: ", "\n\n"]),
            Form::Messages => with_ids(&lines, place, ["{\"id\":\"", "\",\"row\":", "}\n"]),
        };
        self.send(piece.into()).await
    }

    async fn send(&self, piece: Bytes) -> bool {
        self.pieces.send(Ok(piece)).await.is_ok()
    }
}

/// Each line with its id before it; `place` is that of the first.
fn with_ids(lines: &[u8], place: Place, [before, between, after]: [&str; 3]) -> Vec<u8> {
    let mut events = Vec::with_capacity(lines.len() * 2);
    for (at, line) in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()).enumerate() {
        events.extend_from_slice(format!("{before}{}:{}{between}", place.offset, place.row + at).as_bytes());
        events.extend_from_slice(line);
        events.extend_from_slice(after.as_bytes());
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_an_event_whose_id_leads_behind_it() {
        let place = Place { offset: 7, row: 3 };
        let events = with_ids(b"{\"a\":1}\n{\"a\":2}\n", place, ["id: ", "\ndata: ", "\n\n"]);
        assert_eq!(events, b"id: 7:3\ndata: {\"a\":1}\n\nid: 7:4\ndata: {\"a\":2}\n\n");
        let start = Start::read(Some("earliest"), Some("7:4")).unwrap();
        assert_eq!(start, Start { from: FollowFrom::Offset(7), seen: Some(Place { offset: 7, row: 4 }) });
    }

    #[test]
    fn a_start_that_is_none_is_refused() {
        assert!(Start::read(None, Some("x")).is_err());
        assert!(Start::read(Some("yesterday"), None).is_err());
    }
}
