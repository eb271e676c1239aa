//! Reads the log as rows, from any offset on, as they become durable: for feeds and for whoever brings records on to
//! another system.
//!
//! A follower has a position of its own and holds nobody up. It reads the same bytes as replay does, under the same
//! contracts and with the same decisions: what it gives is what the tables get, in the order of the log. The log is kept
//! for those who say what they still need ([`Gate::hold`]), as long as it has room for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use lakegate_log::{Progress, ReadError, Reader};
use lakegate_model::{Contract, LogId, StreamKey, TableName};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::batch::Wanted;
use crate::frame::{FrameBody, FrameHeader};
use crate::gate::{Gate, Inner};
use crate::replay::Frame;

/// So many frames are passed over before others get a turn on the thread.
const FRAMES_A_TURN: usize = 256;

/// How much [`Follower::next_some`] gives at once, unless one frame is larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Rows.
    pub rows: usize,
    /// Bytes of rows in memory.
    pub bytes: usize,
}

impl Room {
    const ONE_FRAME: Self = Self { rows: 1, bytes: 0 };
}

/// Where a follower begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowFrom {
    /// With what becomes durable from now on.
    Latest,
    /// With the oldest that the log has.
    Earliest,
    /// With the frame that holds this offset.
    Offset(u64),
}

/// The accepted records of one frame of the log that a follower wants.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The offset of the frame's first record.
    pub first_offset: u64,
    /// The offset after its last.
    pub next_offset: u64,
    /// When the request came, in microseconds since 1970.
    pub received_us: i64,
    /// What ties the request to others in logs and traces; empty: nothing.
    pub correlation_id: String,
    /// The rows of each stream that is wanted, in the order of names. None is empty.
    pub streams: Vec<StreamRows>,
}

/// Rows of one stream, in the order of the request.
#[derive(Debug, Clone)]
pub struct StreamRows {
    /// Whose, and which.
    pub key: StreamKey,
    /// Their table.
    pub table: TableName,
    /// The contract that shaped them; the batch has its columns.
    pub contract: Arc<Contract>,
    /// The rows.
    pub batch: RecordBatch,
}

/// Why a follower cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// What it asks for was brought into the lake and removed from the log.
    #[error("offset {asked} is no longer in the log, which begins at {first_offset}; older records are in the tables")]
    Trimmed {
        /// The offset that was asked for.
        asked: u64,
        /// The oldest that there is.
        first_offset: u64,
    },
    /// There is no log to read.
    #[error(
        "records are not kept in a log of this instance (log is kafka, or storage.wal_enabled is off), so they cannot be followed"
    )]
    NoLog,
    /// The log cannot be read.
    #[error("the log cannot be read at offset {offset}: {reason}")]
    Broken {
        /// Where.
        offset: u64,
        /// Why.
        reason: String,
    },
    /// The log takes no more records, and all of it was given.
    #[error("the log has ended")]
    Ended,
}

/// Reads on from its position.
pub struct Follower {
    inner: Arc<Inner>,
    next_offset: u64,
    reader: Option<Reader>,
    /// What is being read: a caller that gives up in the middle finds it here the next time.
    turn: Option<JoinHandle<Turn>>,
    progress: watch::Receiver<Progress>,
}

impl Gate {
    /// A follower of the log.
    ///
    /// # Errors
    /// [`FollowError::Trimmed`] and [`FollowError::NoLog`].
    pub fn follow(&self, from: FollowFrom) -> Result<Follower, FollowError> {
        let inner = self.inner.clone();
        if inner.log.is_volatile() || inner.remote.get().is_some() {
            return Err(FollowError::NoLog);
        }
        let progress = inner.log.subscribe();
        let next_offset = match from {
            FollowFrom::Latest => inner.log.durable_offset(),
            FollowFrom::Earliest => inner.log.first_offset(),
            FollowFrom::Offset(offset) => offset,
        };
        let reader = Some(inner.log.read(next_offset).map_err(|error| follow_error(next_offset, error))?);
        inner.recent.begin();
        Ok(Follower { inner, next_offset, reader, turn: None, progress })
    }

    /// Says that records from `offset` on are still needed by `consumer`. The log keeps them while they take less than
    /// half of its quota; beyond, the consumer finds them in the tables.
    pub fn hold(&self, consumer: &str, offset: u64) {
        self.inner.holds.set(consumer, offset);
    }

    /// The log's identity.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.inner.log.id()
    }

    /// The offset after the last durable record.
    #[must_use]
    pub fn durable_offset(&self) -> u64 {
        self.inner.log.durable_offset()
    }

    /// The oldest offset that the log has.
    #[must_use]
    pub fn first_offset(&self) -> u64 {
        self.inner.log.first_offset()
    }

    /// The consumer needs nothing more.
    pub fn release(&self, consumer: &str) {
        self.inner.holds.remove(consumer);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.inner.recent.end();
    }
}

impl Follower {
    /// The offset after what was given.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next_offset
    }

    /// The next frame with records of a stream that is wanted; waits for one. Ending early loses nothing.
    ///
    /// # Errors
    /// See [`FollowError`].
    pub async fn next(
        &mut self,
        wanted: impl Fn(&StreamKey) -> bool + Send + Clone + 'static,
    ) -> Result<Delivery, FollowError> {
        loop {
            if let Some(delivery) = self.next_some(Room::ONE_FRAME, wanted.clone()).await?.into_iter().next() {
                return Ok(delivery);
            }
        }
    }

    /// The next frames with records of a stream that is wanted, as many as there are already and have room; waits for
    /// one. Ending early loses nothing.
    ///
    /// # Errors
    /// See [`FollowError`].
    pub async fn next_some(
        &mut self,
        room: Room,
        wanted: impl Fn(&StreamKey) -> bool + Send + Clone + 'static,
    ) -> Result<Vec<Delivery>, FollowError> {
        loop {
            let _ = self.progress.borrow_and_update();
            let some = self.read(room, wanted.clone()).await?;
            if !some.is_empty() {
                return Ok(some);
            }
            let stopped = self.progress.borrow().stopped.is_some();
            if stopped || self.progress.changed().await.is_err() {
                return Err(FollowError::Ended);
            }
        }
    }

    /// The next frames that are there already, if any.
    async fn read(
        &mut self,
        room: Room,
        wanted: impl Fn(&StreamKey) -> bool + Send + Clone + 'static,
    ) -> Result<Vec<Delivery>, FollowError> {
        while self.next_offset < self.inner.log.durable_offset() {
            let from = self.next_offset;
            if self.turn.is_none() {
                self.turn = Some(self.begin(room, wanted.clone())?);
            }
            let Some(turn) = self.turn.as_mut() else { return Ok(Vec::new()) };
            let ended = turn.await;
            self.turn = None;
            let broken =
                |error: tokio::task::JoinError| FollowError::Broken { offset: from, reason: error.to_string() };
            let turn = ended.map_err(broken)?;
            if let Some(error) = turn.error {
                if turn.deliveries.is_empty() {
                    return Err(error);
                }
                // What came before it is given first; it is met again.
            } else {
                self.reader = Some(turn.reader);
            }
            self.next_offset = turn.next_offset;
            if !turn.deliveries.is_empty() || turn.next_offset == from {
                return Ok(turn.deliveries);
            }
        }
        Ok(Vec::new())
    }
}

impl Follower {
    /// Reads on from its position, on a thread that may wait.
    fn begin(
        &mut self,
        room: Room,
        wanted: impl Fn(&StreamKey) -> bool + Send + 'static,
    ) -> Result<JoinHandle<Turn>, FollowError> {
        let from = self.next_offset;
        // After damage the reader is gone; it is met again.
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.inner.log.read(from).map_err(|error| follow_error(from, error))?,
        };
        let inner = self.inner.clone();
        Ok(tokio::task::spawn_blocking(move || read_turn(&inner, reader, from, room, &wanted)))
    }
}

struct Turn {
    reader: Reader,
    next_offset: u64,
    deliveries: Vec<Delivery>,
    error: Option<FollowError>,
}

fn read_turn(inner: &Inner, reader: Reader, from: u64, room: Room, wanted: &dyn Fn(&StreamKey) -> bool) -> Turn {
    let mut turn = Turn { reader, next_offset: from, deliveries: Vec::new(), error: None };
    let (mut rows, mut bytes) = (0, 0);
    for _ in 0..FRAMES_A_TURN {
        let frame = match turn.reader.next() {
            None => break,
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                turn.error = Some(follow_error(turn.next_offset, error));
                break;
            }
        };
        match deliver(inner, &frame, wanted) {
            Ok(None) => {}
            Ok(Some(delivery)) => {
                rows += delivery.streams.iter().map(|stream| stream.batch.num_rows()).sum::<usize>();
                bytes += delivery.streams.iter().map(|stream| stream.batch.get_array_memory_size()).sum::<usize>();
                turn.deliveries.push(delivery);
            }
            Err(reason) => {
                turn.error = Some(FollowError::Broken { offset: frame.first_offset, reason });
                break;
            }
        }
        turn.next_offset = frame.next_offset();
        if !turn.deliveries.is_empty() && (rows >= room.rows || bytes >= room.bytes) {
            break;
        }
    }
    turn
}

fn follow_error(offset: u64, error: ReadError) -> FollowError {
    match error {
        ReadError::Trimmed { asked, first_offset } => FollowError::Trimmed { asked, first_offset },
        other => FollowError::Broken { offset, reason: other.to_string() },
    }
}

/// The rows of a frame, as its tables get them.
fn deliver(
    inner: &Inner,
    frame: &lakegate_log::Frame,
    wanted: &dyn Fn(&StreamKey) -> bool,
) -> Result<Option<Delivery>, String> {
    let (header, body) = FrameHeader::decode(&frame.payload).map_err(|error| error.to_string())?;
    if header.body == FrameBody::None {
        return Ok(None);
    }
    if let Some(recent) = inner.recent.find(frame.first_offset) {
        let is_wanted = |rows: &&StreamRows| {
            wanted(&rows.key) && !inner.dropped.has(&rows.key, &rows.contract, frame.next_offset())
        };
        return Ok(delivery(frame, header, recent.iter().filter(is_wanted).cloned().collect()));
    }
    let mut streams = Wanted::new();
    for touched in header.streams.iter().filter(|touched| touched.fingerprint != 0 && wanted(&touched.key)) {
        let shaper = inner.contracts.find(touched.fingerprint).map_err(|error| error.to_string())?;
        if inner.dropped.has(&touched.key, &shaper.contract, frame.next_offset()) {
            continue;
        }
        let stream = inner.streams.resolve_as(&touched.key, touched.fingerprint, shaper);
        streams.entry(touched.key.clone()).or_default().push(stream.map_err(|refusal| refusal.message)?);
    }
    if streams.is_empty() {
        return Ok(None);
    }
    let request = Frame { first_offset: frame.first_offset, next_offset: frame.next_offset(), header, body };
    let mut shaped = request.shape_again(inner, &streams)?;
    let mut found = Vec::with_capacity(shaped.groups.len());
    for group in &mut shaped.groups {
        let rows = group.take_rows().map_err(|error| error.to_string())?;
        if !rows.is_empty() {
            found.push(rows.into_stream_rows().map_err(|error| error.to_string())?);
        }
    }
    drop(shaped);
    Ok(delivery(frame, request.header, found))
}

fn delivery(frame: &lakegate_log::Frame, header: FrameHeader, mut streams: Vec<StreamRows>) -> Option<Delivery> {
    // The same each time: rows that have no key are told apart by the place of their stream.
    streams.sort_by(|a, b| (&a.key, &a.table).cmp(&(&b.key, &b.table)));
    let (first_offset, next_offset) = (frame.first_offset, frame.next_offset());
    let FrameHeader { received_us, correlation_id, .. } = header;
    (!streams.is_empty()).then_some(Delivery { first_offset, next_offset, received_us, correlation_id, streams })
}

/// What consumers still need of the log, by their names.
#[derive(Debug, Default)]
pub(crate) struct Holds(Mutex<BTreeMap<String, u64>>);

impl Holds {
    fn set(&self, consumer: &str, offset: u64) {
        let mut holds = self.0.lock();
        match holds.get_mut(consumer) {
            Some(held) => *held = offset,
            None => drop(holds.insert(consumer.to_owned(), offset)),
        }
    }

    fn remove(&self, consumer: &str) {
        self.0.lock().remove(consumer);
    }

    /// The oldest offset that anyone needs.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.0.lock().values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;

    use super::*;
    use crate::test_gate::Ground;

    fn contract() -> Contract {
        let text = r#"{"columns":[{"name":"n","column_type":"long","source":{"path":["n"]},"required":true}],
            "payload":"json","event_key":["n"],"duplicate_window_ms":3600000,"time":null,"malformed":"skip",
            "undeclared":"ignore","table":"{tenant}.{endpoint}","partitions":[],"sort":[]}"#;
        serde_json::from_str(text).unwrap()
    }

    fn numbers(delivery: &Delivery) -> Vec<i64> {
        let batches = delivery.streams.iter().map(|rows| rows.batch.column(0).clone());
        batches.flat_map(|c| c.as_primitive::<arrow::datatypes::Int64Type>().values().to_vec()).collect()
    }

    fn of_stream(name: &'static str) -> impl Fn(&StreamKey) -> bool + Send + Clone + 'static {
        move |key| key.stream.as_str() == name
    }

    #[tokio::test]
    async fn a_follower_gives_accepted_rows_in_the_order_of_the_log_before_and_after_a_restart() {
        let ground = Ground::new(&[("a", contract()), ("b", contract())]);
        let opened = ground.open().await;
        opened.send("a", &[r#"{"n":1}"#, r#"{"n":"x"}"#, r#"{"n":2}"#]).await.unwrap();
        opened.send("b", &[r#"{"n":9}"#]).await.unwrap();
        let second = opened.send("a", &[r#"{"n":2}"#, r#"{"n":3}"#]).await.unwrap();
        assert_eq!((second.accepted, second.duplicate_indexes), (1, vec![0]));
        let mut follower = opened.gate.follow(FollowFrom::Earliest).unwrap();
        let first = follower.next(of_stream("a")).await.unwrap();
        assert_eq!((first.first_offset, first.next_offset, numbers(&first)), (0, 3, vec![1, 2]));
        assert_eq!(first.correlation_id, "r-1");
        assert_eq!(numbers(&follower.next(of_stream("a")).await.unwrap()), [3]);
        let position = follower.position();
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(20), follower.next(of_stream("a"))).await.is_err()
        );
        opened.send("a", &[r#"{"n":4}"#]).await.unwrap();
        assert_eq!(numbers(&follower.next(of_stream("a")).await.unwrap()), [4]);
        opened.close();

        let opened = ground.open().await;
        let mut follower = opened.gate.follow(FollowFrom::Offset(position)).unwrap();
        assert_eq!(numbers(&follower.next(of_stream("a")).await.unwrap()), [4]);
        let mut follower = opened.gate.follow(FollowFrom::Offset(0)).unwrap();
        let first = follower.next(|_| true).await.unwrap();
        assert_eq!(
            first.streams.iter().map(|rows| rows.key.stream.as_str()).collect::<Vec<_>>(),
            ["a", "dead_letters"]
        );
        assert_eq!(numbers(&follower.next(|_| true).await.unwrap()), [9]);
        opened.close();
    }

    #[tokio::test]
    async fn what_a_consumer_holds_stays_in_the_log_until_it_lets_go() {
        let ground = Ground::new(&[("a", contract())]);
        let opened = ground.open().await;
        opened.gate.hold("sink", 0);
        let pad = "x".repeat(2000);
        for n in 0..200 {
            opened.send("a", &[&format!(r#"{{"n":{n},"pad":"{pad}"}}"#)]).await.unwrap();
        }
        opened.gate.flush_all().await;
        assert_eq!(opened.log.first_offset(), 0);
        let mut follower = opened.gate.follow(FollowFrom::Offset(0)).unwrap();
        assert_eq!(numbers(&follower.next(|_| true).await.unwrap()), [0]);
        opened.gate.release("sink");
        opened.send("a", &[r#"{"n":1000}"#]).await.unwrap();
        opened.gate.flush_all().await;
        assert!(opened.log.first_offset() > 0);
        let trimmed = opened.gate.follow(FollowFrom::Offset(0)).err().unwrap();
        assert!(matches!(trimmed, FollowError::Trimmed { asked: 0, .. }), "{trimmed}");
        opened.close();
    }

    #[tokio::test]
    async fn rows_that_are_handed_on_are_those_that_the_log_gives() {
        let ground = Ground::new(&[("a", contract()), ("b", contract())]);
        let opened = ground.open().await;
        let mut follower = opened.gate.follow(FollowFrom::Earliest).unwrap();
        for (stream, from) in [("a", 0), ("b", 0), ("a", 90)] {
            let mut payloads: Vec<String> = (from..from + 120).map(|n| format!(r#"{{"n":{n}}}"#)).collect();
            payloads.insert(7, r#"{"n":"x"}"#.to_owned());
            opened.send(stream, &payloads.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
        }
        assert!(opened.gate.inner.recent.find(0).is_some());
        let mut handed_on = Vec::new();
        for _ in 0..3 {
            handed_on.push(follower.next(|_| true).await.unwrap());
        }
        drop(follower);
        assert!(opened.gate.inner.recent.find(0).is_none(), "nobody follows");
        let mut follower = opened.gate.follow(FollowFrom::Earliest).unwrap();
        for delivery in &handed_on {
            let again = follower.next(|_| true).await.unwrap();
            assert_eq!((delivery.first_offset, delivery.next_offset), (again.first_offset, again.next_offset));
            let rows = |delivery: &Delivery| -> Vec<(StreamKey, TableName, RecordBatch)> {
                let rows = delivery.streams.iter();
                rows.map(|rows| (rows.key.clone(), rows.table.clone(), rows.batch.clone())).collect()
            };
            assert_eq!(rows(delivery), rows(&again));
        }
        let rows = &handed_on[2].streams[0];
        let found = rows.batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec();
        assert_eq!((rows.key.stream.as_str(), found), ("a", (120..210).collect::<Vec<_>>()));
        opened.close();
    }
}
