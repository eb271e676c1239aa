//! What a session has read and not handed on, and how far it is.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lakegate_ingest::{
    Upstream, UpstreamCommit, UpstreamError, UpstreamPayload, UpstreamPosition, UpstreamRecord, UpstreamRecords,
};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::KafkaSource;
use super::context::Context;
use super::payload::{Decoder, Undecoded};
use super::position::{Position, Witness, hash_of};
use super::status::Figures;

/// At a revocation, how long the commit of what was read may take before it is given up, to be read again.
const REVOKED_COMMIT: Duration = Duration::from_secs(20);
/// So much is handed on at once at most.
pub(super) const GATHERED_BYTES: usize = 4 << 20;

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The next one may do better.
    Again(String),
    /// Somebody has to change something.
    Stopped(String),
}

impl End {
    pub(super) fn of(error: UpstreamError) -> Self {
        match error {
            UpstreamError::Stream(why) | UpstreamError::Halted(why) => Self::Stopped(why),
            other => Self::Again(other.to_string()),
        }
    }
}

/// Partitions whose last record before the position is another than the one that was read, shared by sessions.
pub(super) type Mistaken = Arc<Mutex<HashSet<u128>>>;

/// One partition.
struct Partition {
    topic: Arc<str>,
    number: i32,
    id: u128,
    number_text: String,
    label_name: String,
    place: String,
    next: i64,
    /// The record that is to lie at an offset below, if the topic is the one that was read.
    expected: Option<Witness>,
    body: Vec<u8>,
    records: Vec<UpstreamRecord>,
    /// The last record that was read: offset, time, and where its value lies.
    last: Option<(i64, Option<i64>, Option<Range<u32>>)>,
    tombstones: u64,
}

/// What a session has read.
pub(super) struct Reader {
    pub(super) source: Arc<KafkaSource>,
    pub(super) runtime: Handle,
    pub(super) upstream: Upstream,
    pub(super) cluster: u64,
    pub(super) figures: Arc<Figures>,
    decoder: Decoder,
    partitions: Vec<Partition>,
    names: HashMap<u128, (Arc<str>, i32)>,
    /// Records and bytes that were not handed on, and when the first of them came.
    gathered: usize,
    gathered_bytes: usize,
    since: Option<Instant>,
    ended: Option<End>,
    mistaken: Mistaken,
}

impl Reader {
    pub(super) fn new(
        source: Arc<KafkaSource>,
        runtime: Handle,
        upstream: Upstream,
        cluster: u64,
        figures: Arc<Figures>,
    ) -> Self {
        let decoder = Decoder::new(source.format, source.registry.as_ref(), &runtime);
        Self {
            source,
            runtime,
            upstream,
            cluster,
            figures,
            decoder,
            partitions: Vec::new(),
            names: HashMap::new(),
            gathered: 0,
            gathered_bytes: 0,
            since: None,
            ended: None,
            mistaken: Mistaken::default(),
        }
    }

    /// What earlier sessions found out.
    pub(super) fn with_mistaken(self, mistaken: Mistaken) -> Self {
        Self { mistaken, ..self }
    }

    pub(super) fn is_mistaken(&self, id: u128) -> bool {
        self.mistaken.lock().contains(&id)
    }

    /// The first reason holds.
    pub(super) fn end(&mut self, end: End) {
        self.ended.get_or_insert(end);
    }

    pub(super) fn take_end(&mut self) -> Option<End> {
        self.ended.take()
    }

    pub(super) fn begin(
        &mut self,
        topic: &str,
        number: i32,
        position: Option<UpstreamPosition>,
        from: i64,
        expected: Option<Witness>,
    ) {
        let id = self.id_of(topic, number);
        let next = expected.map_or(from, |witness| witness.offset + 1);
        self.figures.of_partition(topic, number, |status| {
            status.next = next;
            status.committed = if position.is_some() { next } else { -1 };
        });
        self.upstream.begin(id, position);
        let topic: Arc<str> = topic.into();
        self.names.insert(id, (topic.clone(), number));
        self.partitions.retain(|partition| partition.id != id);
        self.partitions.push(Partition {
            number,
            id,
            number_text: number.to_string(),
            label_name: format!("kafka.{}.{topic}.{number}", self.source.name),
            place: format!("Kafka topic {topic}, partition {number}"),
            next: from,
            expected,
            body: Vec::new(),
            records: Vec::new(),
            last: None,
            tombstones: 0,
            topic,
        });
    }

    /// Takes one record in.
    pub(super) fn add(&mut self, message: &BorrowedMessage<'_>) {
        let (topic, number, offset) = (message.topic(), message.partition(), message.offset());
        let Some(partition) = self.partitions.iter_mut().find(|p| p.number == number && *p.topic == *topic) else {
            // Fetched before the partition was taken away.
            return;
        };
        if offset < partition.next {
            return;
        }
        let (time_ms, value) = (message.timestamp().to_millis(), message.payload());
        partition.next = offset + 1;
        if let Some(expected) = partition.expected.take()
            && offset == expected.offset
        {
            if hash_of(time_ms, value) != expected.hash {
                let why = format!(
                    "the record at offset {offset} is another than the one that the table has read there: the topic was made anew"
                );
                self.mistaken.lock().insert(partition.id);
                // The next session judges anew.
                self.end(End::Again(format!("topic {topic}, partition {number}: {why}")));
            }
            return;
        }
        let start = partition.body.len();
        if let Some(value) = value {
            partition.body.extend_from_slice(value);
        }
        let raw = span(start, partition.body.len());
        partition.last = Some((offset, time_ms, value.map(|_| raw.clone())));
        self.gathered += 1;
        self.gathered_bytes += raw.len() + size_of::<UpstreamRecord>();
        self.since.get_or_insert_with(Instant::now);
        if value.is_none() {
            partition.tombstones += 1;
            return;
        }
        let offset = offset.cast_unsigned();
        let time_us = time_ms.map(|ms| ms.saturating_mul(1000));
        partition.records.push(UpstreamRecord { offset, raw, time_us, payload: UpstreamPayload::Raw });
    }

    /// Whether so much was gathered that it has to be handed on before more is read.
    pub(super) fn has_plenty(&self, records: usize) -> bool {
        self.gathered >= records || self.gathered_bytes >= GATHERED_BYTES
    }

    /// Whether the gathered records make a batch: by their number, or by the time that the first has waited.
    pub(super) fn is_due(&self) -> bool {
        let waited = self.since.is_some_and(|since| since.elapsed() >= self.source.flush_interval);
        self.gathered >= self.source.batch_size || waited
    }

    /// How long the gathered records may wait yet.
    pub(super) fn patience(&self) -> Duration {
        self.since
            .map_or(self.source.flush_interval, |since| self.source.flush_interval.saturating_sub(since.elapsed()))
    }

    /// Hands everything on. Returns whether it could be: where not, there is no room, or the registry is away.
    pub(super) fn hand_on(&mut self) -> bool {
        let waited = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        for partition in &mut self.partitions {
            let Some((offset, time_ms, value)) = partition.last.clone() else { continue };
            match self.decoder.decode(&mut partition.body, &mut partition.records) {
                Ok(()) => {}
                Err(Undecoded::Away(why)) => {
                    tracing::warn!(source = %self.source.name, "the schema registry does not answer: {why}");
                    return false;
                }
            }
            let value = value.and_then(|span| slice(&partition.body, &span));
            let witness = Some(Witness { offset, hash: hash_of(time_ms, value) });
            let next = Position { next: partition.next, cluster: self.cluster, witness }.encode();
            if partition.records.is_empty() {
                self.upstream.advance(partition.id, 0, next);
            } else {
                let attributes = [("topic", partition.topic.as_ref()), ("partition", partition.number_text.as_str())];
                let records = UpstreamRecords {
                    partition: partition.id,
                    label_name: &partition.label_name,
                    label: format!("next offset {}", partition.next),
                    place: &partition.place,
                    attributes: &attributes,
                    body: &partition.body,
                    records: &partition.records,
                    next,
                };
                match self.upstream.take(&records) {
                    Ok(taken) => self.figures.count(taken.accepted, taken.dead_lettered),
                    Err(UpstreamError::OutOfRoom(_)) => return false,
                    Err(error) => {
                        self.ended.get_or_insert(End::of(error));
                        return false;
                    }
                }
            }
            if partition.tombstones > 0 {
                self.figures.count_tombstones(std::mem::take(&mut partition.tombstones));
            }
            self.gathered = self.gathered.saturating_sub(partition.records.len());
            partition.records.clear();
            partition.body.clear();
            partition.last = None;
            let next = partition.next;
            self.figures.of_partition(&partition.topic, partition.number, |status| status.next = next);
        }
        self.upstream.note_waited(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
        (self.gathered, self.gathered_bytes, self.since) = (0, 0, None);
        true
    }

    /// Looks after commits: what became of the one under way, and whether the next is due.
    pub(super) fn turn(&mut self, consumer: &BaseConsumer<Context>) {
        match self.upstream.poll_commit(&self.runtime) {
            Ok(None) => {}
            Ok(Some(commit)) => self.committed(consumer, &commit),
            Err(error) => self.end(End::of(error)),
        }
        if self.upstream.is_commit_due() {
            self.upstream.begin_commit(&self.runtime);
        }
    }

    /// The table has it: the group's own offsets follow, for those who watch the group.
    fn committed(&self, consumer: &BaseConsumer<Context>, commit: &UpstreamCommit) {
        let mut offsets = TopicPartitionList::with_capacity(commit.positions.len());
        for (id, state) in &commit.positions {
            let (Some((topic, number)), Some(position)) = (self.names.get(id), Position::decode(state)) else {
                continue;
            };
            self.mistaken.lock().remove(id);
            if self.partitions.iter().any(|partition| partition.id == *id) {
                self.figures.of_partition(topic, *number, |status| status.committed = position.next);
                let _ = offsets.add_partition_offset(topic, *number, Offset::Offset(position.next));
            }
        }
        if offsets.count() > 0
            && let Err(error) = consumer.commit(&offsets, CommitMode::Async)
        {
            tracing::debug!(source = %self.source.name, %error, "the group's offsets will follow later");
        }
        if commit.rows > 0 {
            let (table, rows) = (self.upstream.table(), commit.rows);
            tracing::info!(source = %self.source.name, %table, rows, "Inserted {rows} events into {table}");
        }
    }

    /// Commits everything that was handed on, if that can be done in the time.
    pub(super) fn commit_within(&mut self, consumer: &BaseConsumer<Context>, within: Duration) {
        let deadline = Instant::now() + within;
        while self.ended.is_none() && (self.upstream.has_uncommitted() || self.upstream.is_committing()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.upstream.begin_commit(&self.runtime);
            self.upstream.wait_commit(&self.runtime, left);
            match self.upstream.poll_commit(&self.runtime) {
                Ok(None) => {}
                Ok(Some(commit)) => self.committed(consumer, &commit),
                Err(error) => self.end(End::of(error)),
            }
        }
    }

    /// Partitions go to another: what was read of them is committed first, or forgotten.
    pub(super) fn revoke(&mut self, consumer: &BaseConsumer<Context>, list: &TopicPartitionList) {
        let gone: Vec<(String, i32)> =
            list.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect();
        if gone.is_empty() {
            return;
        }
        if self.ended.is_none() {
            tracing::info!(source = %self.source.name, partitions = ?gone, "partitions are read elsewhere from now on");
            let is_handed_on = self.hand_on();
            self.commit_within(consumer, REVOKED_COMMIT);
            let is_left = !is_handed_on || self.upstream.has_uncommitted() || self.upstream.is_committing();
            if is_left {
                self.end(End::Again("partitions were taken away before their rows could be committed".to_owned()));
            }
        }
        for (topic, number) in gone {
            self.partitions.retain(|partition| *partition.topic != *topic || partition.number != number);
            self.figures.forget(&topic, number);
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_some()
    }
}

fn span(start: usize, end: usize) -> Range<u32> {
    u32::try_from(start).unwrap_or(u32::MAX)..u32::try_from(end).unwrap_or(u32::MAX)
}

fn slice<'b>(body: &'b [u8], span: &Range<u32>) -> Option<&'b [u8]> {
    body.get(usize::try_from(span.start).ok()?..usize::try_from(span.end).ok()?)
}
