//! A writer's part: frames of the partitions that it reads, into the tables.
//!
//! Reading begins before the frames that tables lack, as far back as duplicates are to be told: those frames are not
//! shaped, their keys are remembered. So whoever reads a partition decides as the one before did.
//!
//! Of one frame the tables may have some and lack others; each is asked. [`LogWriter::lacks_from`] says up to where all have
//! all: what lies before need not be read again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lakegate_model::{ReasonCode, Refusal, StreamKey, StreamName, TableName, Tally, TenantId};
use tokio::runtime::Handle;

use super::lane::{JudgePosition, Lane};
use super::shape::shape_frame;
use crate::api::{Source, SubmitError};
use crate::batch::Shaped;
use crate::duplicates::{Met, Window, Windows};
use crate::frame::{FrameHeader, FrameStream};
use crate::gate::Gate;
use crate::import::letters::{Letter, Sender};
use crate::replay::{Frame, rules_of};
use crate::rows::ReadyRows;
use crate::streams::{DEAD_LETTERS, DEFAULT_TENANT, Stream, UNROUTABLE};
use crate::upstream::UpstreamError;
use crate::wire::BatchRequest;

/// So many commits are under way at once.
const COMMITS_AT_ONCE: usize = 4;
/// The most requests' own ids that are remembered.
const REQUESTS_MAX: usize = 1_000_000;
/// How often a commit under way is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// One frame of a partition.
#[derive(Debug)]
pub struct LogFrame<'a> {
    /// The partition's identity, the same for ever and in all processes.
    pub partition: u128,
    /// Where it comes from, for people.
    pub place: &'a str,
    /// Its offset.
    pub offset: u64,
    /// What tells it from another at the same offset.
    pub hash: u64,
    /// The position behind it; at most 64 bytes.
    pub position: &'a [u8],
    /// The frame.
    pub payload: Bytes,
}

/// Brings frames that gateways wrote into the tables. It lives as long as one session of reading: what goes wrong ends it,
/// and the next begins from the tables' positions.
pub struct LogWriter {
    gate: Gate,
    name: String,
    judge: JudgePosition,
    lanes: BTreeMap<TableName, Lane>,
    /// Each partition that is read, the offset that is read next, and what it is called.
    partitions: HashMap<u128, (u64, String)>,
    /// Where frames lie that tables' positions are held against.
    awaited: BTreeMap<(u128, u64), Vec<TableName>>,
    windows: Windows,
    requests: Requests,
}

/// Own ids of requests that came, each with a hash of what it said.
#[derive(Default)]
struct Requests {
    known: HashMap<(u128, u128), (u64, u64)>,
    order: VecDeque<(u128, u128)>,
}

impl Requests {
    /// Whether the request came before, in an earlier frame of the partition.
    fn came_before(&mut self, frame: &LogFrame<'_>, header: &FrameHeader) -> bool {
        if header.batch_key == 0 {
            return false;
        }
        let (key, content) = ((frame.partition, header.batch_key), header.answered.content);
        if let Some((offset, said)) = self.known.get(&key) {
            return *offset < frame.offset && *said == content;
        }
        self.known.insert(key, (frame.offset, content));
        self.order.push_back(key);
        if self.order.len() > REQUESTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        false
    }
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").field("name", &self.name).field("tables", &self.lanes.len()).finish_non_exhaustive()
    }
}

impl Gate {
    /// Begins to bring frames of the log of that name into the tables. There is one at a time in a process.
    #[must_use]
    pub fn write_from(&self, name: &str, judge: JudgePosition) -> LogWriter {
        let settings = &self.inner.settings;
        LogWriter {
            gate: self.clone(),
            name: name.to_owned(),
            judge,
            lanes: BTreeMap::new(),
            partitions: HashMap::new(),
            awaited: BTreeMap::new(),
            windows: Windows::new(settings.duplicates.keys_max, settings.longest_window_us),
            requests: Requests::default(),
        }
    }
}

impl LogWriter {
    /// Begins with partitions: the identity of each, the offset that it is read from, and what it is called.
    ///
    /// # Errors
    /// See [`UpstreamError`]: a table's position cannot be had, or means nothing to its partition.
    pub async fn begin(&mut self, partitions: Vec<(u128, u64, String)>) -> Result<(), UpstreamError> {
        let from: Vec<(u128, u64)> = partitions.iter().map(|(id, from, _)| (*id, *from)).collect();
        for (table, lane) in &mut self.lanes {
            for place in lane.begin(&from, &self.judge).await? {
                self.awaited.entry(place).or_default().push(table.clone());
            }
        }
        self.partitions.extend(partitions.into_iter().map(|(id, from, name)| (id, (from, name))));
        Ok(())
    }

    /// The partition is read by another process from now on.
    pub fn forget(&mut self, partition: u128) {
        self.partitions.remove(&partition);
    }

    /// Takes one frame. Its rows are seen by queries after [`Self::turn`], and in the tables after their commits.
    ///
    /// # Errors
    /// See [`UpstreamError`]: the session is over.
    pub async fn take(&mut self, frame: &LogFrame<'_>) -> Result<(), UpstreamError> {
        if let Some(reason) = self.gate.inner.closed_reason() {
            return Err(UpstreamError::Closed(reason));
        }
        if let Some((next, _)) = self.partitions.get_mut(&frame.partition) {
            *next = frame.offset;
        }
        for table in self.awaited.remove(&(frame.partition, frame.offset)).unwrap_or_default() {
            if let Some(lane) = self.lanes.get_mut(&table) {
                lane.see(frame)?;
            }
        }
        let (header, body) = match FrameHeader::decode(&frame.payload) {
            Ok(read) => read,
            Err(error) => return self.set_aside_foreign(frame, &error.to_string()).await,
        };
        let again = self.requests.came_before(frame, &header);
        if self.have_all(frame, &header).await? {
            header.streams.iter().for_each(|stream| self.remember(stream, header.received_us));
        } else if again {
            self.count_again(frame, &header).await?;
        } else {
            let (first_offset, next_offset) = (frame.offset, frame.offset + 1);
            self.take_read(frame, &Frame { first_offset, next_offset, header, body }).await?;
        }
        Ok(())
    }

    /// Whether all tables have what the frame brings, as far as that can be said without shaping it.
    async fn have_all(&mut self, frame: &LogFrame<'_>, header: &FrameHeader) -> Result<bool, UpstreamError> {
        for touched in &header.streams {
            let gate = self.gate.clone();
            let key = &touched.key;
            let found = gate.inner.streams.resolve(key.tenant.as_str(), key.stream.as_str());
            let Ok(stream) = found else { return Ok(false) };
            // What is set aside is there before the stream's table has the frame.
            if stream.shaper.splits_by_event_type() {
                return Ok(false);
            }
            if !self.lane(&stream).await?.has(frame)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn take_read(&mut self, frame: &LogFrame<'_>, read: &Frame) -> Result<(), UpstreamError> {
        let gate = self.gate.clone();
        let failed = |error: &dyn std::fmt::Display| UpstreamError::Stream(error.to_string());
        let request = read.request().or_else(|error| match read.header.body {
            crate::frame::FrameBody::Arrow { .. } => Ok(BatchRequest::default()),
            _ => Err(error),
        });
        let request = request.map_err(|error| failed(&error))?;
        let mut shaped = shape_frame(&gate.inner, read, &request).await?;
        let rules = rules_of(&gate.inner, &read.header);
        let (mut ready, mut letters) = (Vec::<(ReadyRows<'_>, Tally)>::new(), Vec::<(ReadyRows<'_>, Tally)>::new());
        let mut at = 0;
        // Groups of dead letters may come to be while others are looked through for duplicates: they are taken last.
        while let Some(group) = shaped.groups.get_mut(at) {
            at += 1;
            if group.stream.key.stream.as_str() == DEAD_LETTERS {
                continue;
            }
            let tally = group.tally;
            let mut rows = group.take_rows().map_err(|error| failed(&error))?;
            let met = self.claim(&rows, read.header.received_us);
            let tally = take_out(&mut rows, tally, &met, &mut shaped, &request, &rules).map_err(|e| failed(&e))?;
            ready.push((rows, tally));
        }
        let unroutable: Vec<(StreamKey, Tally)> = std::mem::take(&mut shaped.unroutable);
        for group in shaped.groups.iter_mut().filter(|group| group.stream.key.stream.as_str() == DEAD_LETTERS) {
            let rows = group.take_rows().map_err(|error| failed(&error))?;
            let mut tally = Tally::default();
            unroutable
                .iter()
                .filter(|(key, _)| key.tenant == group.stream.key.tenant)
                .for_each(|(_, one)| tally.add(one));
            letters.push((rows, tally));
        }
        let mut first = Vec::new();
        for (rows, tally) in letters.into_iter().chain(ready) {
            let stream = rows.stream.clone();
            let lane = self.lane(&stream).await?;
            if lane.has(frame)? {
                continue;
            }
            let rows = if rows.is_empty() { None } else { Some(rows.into_batch().map_err(|e| failed(&e))?) };
            lane.take(frame, &stream, rows, &tally);
            if lane.is_letters {
                first.push((lane.upstream.table(), lane.next_commit()));
            } else {
                first.iter().cloned().for_each(|(table, after)| lane.upstream.commit_after(table, after));
            }
        }
        Ok(())
    }

    /// What the window says to the rows' keys; nothing where the stream has no event key.
    fn claim(&self, rows: &ReadyRows<'_>, now_us: i64) -> Vec<Met> {
        let window = self.window(&rows.stream);
        window.map_or_else(Vec::new, |window| window.claim(rows.keys.iter().map(|row| row.key), now_us))
    }

    fn window(&self, stream: &Stream) -> Option<Arc<Window>> {
        let contract = &stream.shaper.contract;
        (!contract.event_key.is_empty()).then(|| self.windows.of_stream(&stream.key, contract, true))
    }

    /// The keys of a frame that the tables have.
    fn remember(&self, touched: &FrameStream, received_us: i64) {
        let key = &touched.key;
        if touched.keys.is_empty() {
            return;
        }
        if let Ok(stream) = self.gate.inner.streams.resolve(key.tenant.as_str(), key.stream.as_str())
            && let Some(window) = self.window(&stream)
        {
            window.claim(touched.keys.iter().copied().map(Some), received_us);
        }
    }

    /// The same request came before: all of it is a duplicate.
    async fn count_again(&mut self, frame: &LogFrame<'_>, header: &FrameHeader) -> Result<(), UpstreamError> {
        for touched in &header.streams {
            let (gate, key) = (self.gate.clone(), &touched.key);
            let stream = gate.inner.streams.resolve(key.tenant.as_str(), key.stream.as_str());
            let Ok(stream) = stream else { continue };
            let lane = self.lane(&stream).await?;
            if !lane.has(frame)? {
                let received = touched.tally.received;
                lane.take(frame, &stream, None, &Tally { received, duplicate: received, ..Tally::default() });
            }
        }
        Ok(())
    }

    async fn lane(&mut self, stream: &Arc<Stream>) -> Result<&mut Lane, UpstreamError> {
        let table = stream.unit.table.clone();
        let lane = match self.lanes.entry(table) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                let mut lane = Lane::open(&self.gate, &self.name, stream).await?;
                let from: Vec<(u128, u64)> = self.partitions.iter().map(|(id, (from, _))| (*id, *from)).collect();
                for awaited in lane.begin(&from, &self.judge).await? {
                    self.awaited.entry(awaited).or_default().push(place.key().clone());
                }
                place.insert(lane)
            }
        };
        Ok(lane)
    }

    /// What is no frame of ours: among the dead letters of the default tenant, as it came.
    async fn set_aside_foreign(&self, frame: &LogFrame<'_>, why: &str) -> Result<(), UpstreamError> {
        let invalid = |error: lakegate_model::NameError| UpstreamError::Stream(error.to_string());
        let tenant = TenantId::new(DEFAULT_TENANT).map_err(invalid)?;
        let sender = Sender {
            key: StreamKey { tenant, stream: StreamName::new(UNROUTABLE).map_err(invalid)? },
            source: Source::Kafka,
            place: frame.place.to_owned(),
            unit: "offset",
            first: 0,
            file: frame.partition,
            correlation_id: None,
        };
        tracing::warn!(
            place = frame.place,
            offset = frame.offset,
            "what lies here was not written by a gateway: {why}"
        );
        let message = format!("not a frame of a gateway: {why}");
        let refusal = Refusal { code: ReasonCode::MalformedPayload, field: None, message };
        let letter = Letter { row: frame.offset, raw: frame.payload.clone(), refusal };
        let id = format!("log-{:032x}-{}", frame.partition, frame.offset);
        let ticket = self.gate.inner.append_letters(&sender, &[letter], &id).map_err(|error| match error {
            SubmitError::OutOfRoom { message, .. } => UpstreamError::OutOfRoom(message),
            other => UpstreamError::Closed(other.to_string()),
        })?;
        ticket.durable().await.map_err(|error| UpstreamError::Closed(error.to_string()))
    }
}

/// Takes out what is not new. The same key with another content is set aside: its sender was told that it is stored.
fn take_out<'a>(
    rows: &mut ReadyRows<'a>,
    mut tally: Tally,
    met: &[Met],
    shaped: &mut Shaped<'a>,
    request: &BatchRequest<'a>,
    rules: &crate::batch::Rules<'_>,
) -> Result<Tally, arrow::error::ArrowError> {
    if met.iter().all(|met| *met == Met::New) {
        return Ok(tally);
    }
    let message = "the same event key was stored with another payload; a corrected event needs a key of its own";
    let refusal = Refusal { code: ReasonCode::Conflict, field: None, message: message.to_owned() };
    for (row, met) in rows.keys.iter().zip(met).filter(|(_, met)| **met != Met::New) {
        tally.accepted = tally.accepted.saturating_sub(1);
        tally.bytes = tally.bytes.saturating_sub(row.payload_bytes);
        // Rows that came in columns have no record of their own: they count as duplicates.
        match request.records.get(row.index as usize).filter(|_| *met == Met::Otherwise) {
            Some(bytes) => {
                tally.dead_lettered += 1;
                shaped.set_aside(row.index as usize, bytes, &rows.stream.key, rules, &refusal);
            }
            None => tally.duplicate += 1,
        }
    }
    let flags: Vec<bool> = met.iter().map(|met| *met != Met::New).collect();
    rows.take_out(&flags)?;
    Ok(tally)
}

impl LogWriter {
    /// Shows queries what was taken, looks after commits, and begins those that are due. Returns how many rows came into
    /// tables since the last time.
    ///
    /// # Errors
    /// See [`UpstreamError`]: the session is over.
    pub fn turn(&mut self, runtime: &Handle) -> Result<u64, UpstreamError> {
        self.windows.keep_within_bound();
        let (mut rows, mut under_way) = (0, 0);
        for lane in self.lanes.values_mut() {
            lane.show(|id| self.partitions.get(&id).map(|(_, name)| name.clone()))?;
            rows += lane.poll_commit(runtime)?.map_or(0, |commit| commit.rows);
            under_way += usize::from(!lane.is_letters && lane.upstream.is_committing());
        }
        if under_way > 0 || self.lanes.values().any(|lane| lane.upstream.is_commit_due()) {
            // Others may wait for these.
            self.lanes.values_mut().filter(|lane| lane.is_letters).for_each(|lane| lane.begin_commit(runtime));
        }
        for lane in self.lanes.values_mut().filter(|lane| !lane.is_letters && lane.upstream.is_commit_due()) {
            if under_way < COMMITS_AT_ONCE && !lane.upstream.is_committing() {
                lane.begin_commit(runtime);
                under_way += 1;
            }
        }
        Ok(rows)
    }

    /// Commits everything that was taken, if that can be done in the time. Returns whether it was.
    ///
    /// # Errors
    /// See [`UpstreamError`]: the session is over.
    pub fn commit_within(&mut self, runtime: &Handle, within: Duration) -> Result<bool, UpstreamError> {
        let deadline = std::time::Instant::now() + within;
        loop {
            self.turn(runtime)?;
            self.lanes.values_mut().for_each(|lane| lane.begin_commit(runtime));
            let waits = |lane: &Lane| lane.upstream.has_uncommitted() || lane.upstream.is_committing();
            if !self.lanes.values().any(waits) {
                return Ok(true);
            }
            if std::time::Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether there is so much in memory that the next frames have to wait for commits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lanes.values().any(|lane| lane.upstream.is_full())
    }

    /// The first frame of a partition that a table lacks; none: all have what was taken.
    #[must_use]
    pub fn lacks_from(&self, partition: u128) -> Option<u64> {
        self.lanes.values().filter_map(|lane| lane.lacks_from(partition)).min()
    }

    /// Gives up what is not committed. Commits under way make no further tries; waits for their end, at most so long.
    pub fn give_up(&mut self, runtime: &Handle, within: Duration) {
        let deadline = std::time::Instant::now() + within;
        for lane in self.lanes.values_mut() {
            lane.upstream.give_up(runtime, deadline.saturating_duration_since(std::time::Instant::now()));
        }
        self.lanes.clear();
    }
}
