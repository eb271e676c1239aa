//! What a session reads: partitions, from where each begins, and how far the group's offset may follow.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use lakegate_ingest::{Absorbed, JudgePosition, LogFrame, LogWriter};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::super::assign::ANSWER;
use super::super::position::{Position, Witness, hash_of, partition_id};
use super::super::reader::End;
use super::session::Context;
use super::{KafkaLog, LogOnLost};

/// At a revocation, how long commits may take before what they lack is given up, to be read again.
const REVOKED_COMMIT: Duration = Duration::from_secs(20);

/// One partition.
struct Partition {
    number: i32,
    id: u128,
    place: String,
    /// The offset that is read next.
    next: i64,
    /// The group's offset.
    committed: i64,
}

/// What a session reads.
pub(super) struct Reading {
    log: Arc<KafkaLog>,
    runtime: Handle,
    pub(super) writer: LogWriter,
    cluster: u64,
    partitions: Vec<Partition>,
    ended: Option<End>,
    /// Bytes that were taken since the last turn.
    pub(super) taken_bytes: usize,
}

/// Says what tables' positions mean to the topic as it is now.
pub(super) fn judge_of(log: &Arc<KafkaLog>, probe: BaseConsumer, cluster: u64) -> JudgePosition {
    let log = log.clone();
    let ids: Vec<(u128, i32)> =
        (0..i32::try_from(log.partitions).unwrap_or(0)).map(|number| (id_of(&log, number), number)).collect();
    Box::new(move |id, state| {
        let position = Position::decode(state).ok_or("it is not one that this version reads")?;
        let number = ids.iter().find(|(known, _)| *known == id).map_or(-1, |(_, number)| *number);
        if position.cluster != cluster {
            return Err(format!("it is of another Kafka cluster, under the same topic {}", log.topic));
        }
        let (_, high) = probe.fetch_watermarks(&log.topic, number, ANSWER).map_err(|error| error.to_string())?;
        if position.next > high {
            return Err(format!(
                "it has read partition {number} of {} up to offset {}, which ends at {high}: the topic was made anew, or its brokers lost records",
                log.topic, position.next
            ));
        }
        let witness = position.witness.map_or(0, |witness| witness.hash);
        Ok(Absorbed { next: position.next.max(0).cast_unsigned(), witness })
    })
}

fn id_of(log: &KafkaLog, number: i32) -> u128 {
    partition_id("\0log", &log.topic, number)
}

impl Reading {
    pub(super) fn new(log: Arc<KafkaLog>, runtime: Handle, writer: LogWriter, cluster: u64) -> Self {
        Self { log, runtime, writer, cluster, partitions: Vec::new(), ended: None, taken_bytes: 0 }
    }

    /// The first reason holds.
    pub(super) fn end(&mut self, end: End) {
        self.ended.get_or_insert(end);
    }

    pub(super) fn take_end(&mut self) -> Option<End> {
        self.ended.take()
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Makes ready for partitions: says from where on each is to be read.
    pub(super) fn assign(
        &mut self,
        consumer: &BaseConsumer<Context>,
        list: &TopicPartitionList,
    ) -> Result<TopicPartitionList, End> {
        let away = |error: rdkafka::error::KafkaError| End::Again(format!("the broker does not answer: {error}"));
        let numbers: Vec<i32> = list.elements().iter().map(|element| element.partition()).collect();
        let mut begun = TopicPartitionList::with_capacity(numbers.len());
        if numbers.is_empty() {
            return Ok(begun);
        }
        let group = consumer.committed_offsets(list.clone(), ANSWER).map_err(away)?;
        let earlier = self.offsets_of_memory(consumer, &numbers).map_err(away)?;
        let mut partitions = Vec::with_capacity(numbers.len());
        for number in numbers {
            let (low, high) = consumer.fetch_watermarks(&self.log.topic, number, ANSWER).map_err(away)?;
            let offset_in = |list: &TopicPartitionList| match list.find_partition(&self.log.topic, number)?.offset() {
                Offset::Offset(offset) if offset >= 0 => Some(offset),
                _ => None,
            };
            let committed = self.begin_of(number, offset_in(&group), low, high)?;
            let from = offset_in(&earlier).unwrap_or(committed).clamp(low, committed.max(low));
            let added = begun.add_partition_offset(&self.log.topic, number, Offset::Offset(from));
            added.map_err(|error| End::Again(error.to_string()))?;
            partitions.push(Partition {
                number,
                id: id_of(&self.log, number),
                place: format!("Kafka topic {}, partition {number}", self.log.topic),
                next: from,
                committed,
            });
        }
        let places = partitions
            .iter()
            .map(|p| (p.id, p.next.max(0).cast_unsigned(), format!("log.{}.{}", self.log.topic, p.number)));
        self.runtime.block_on(self.writer.begin(places.collect())).map_err(End::of)?;
        let places: Vec<(i32, i64)> = partitions.iter().map(|p| (p.number, p.next)).collect();
        tracing::info!(topic = %self.log.topic, partitions = ?places, "partitions of the log are written from here on");
        self.partitions.retain(|known| !partitions.iter().any(|new| new.id == known.id));
        self.partitions.extend(partitions);
        Ok(begun)
    }

    /// From where on frames came in the last while, as far as duplicates are to be told over a change of writers.
    fn offsets_of_memory(
        &self,
        consumer: &BaseConsumer<Context>,
        numbers: &[i32],
    ) -> Result<TopicPartitionList, rdkafka::error::KafkaError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = i64::try_from(now.saturating_sub(self.log.remember).as_millis()).unwrap_or(i64::MAX);
        let mut times = TopicPartitionList::with_capacity(numbers.len());
        for number in numbers {
            times.add_partition_offset(&self.log.topic, *number, Offset::Offset(since))?;
        }
        consumer.offsets_for_times(times, ANSWER)
    }

    /// The first frame that tables may lack.
    fn begin_of(&self, number: i32, group: Option<i64>, low: i64, high: i64) -> Result<i64, End> {
        let group_id = &self.log.group_id;
        let why = match group {
            None if low == 0 => return Ok(0),
            None => format!("the group {group_id} has no offset there, and the partition begins at {low}"),
            Some(offset) if offset < low => format!(
                "the group {group_id} is at offset {offset}, and the partition begins at {low}: {} offsets were removed before they were in the tables",
                low - offset
            ),
            Some(offset) if offset > high => {
                format!(
                    "the group {group_id} is at offset {offset}, and the partition ends at {high}: the topic was made anew"
                )
            }
            Some(offset) => return Ok(offset),
        };
        let topic = &self.log.topic;
        match self.log.on_lost {
            LogOnLost::Stop => Err(End::Stopped(format!(
                "topic {topic}, partition {number}: {why}; nothing more is written. To go on with what is there, set kafka.log.on_lost_position to earliest; what the tables have is passed over"
            ))),
            LogOnLost::Earliest => {
                tracing::warn!(topic, partition = number, "{why}; it is read on from its first frame");
                Ok(low)
            }
        }
    }

    /// Takes one record in.
    pub(super) fn add(&mut self, message: &BorrowedMessage<'_>) {
        let (number, offset) = (message.partition(), message.offset());
        let Some(partition) = self.partitions.iter_mut().find(|p| p.number == number) else {
            // Fetched before the partition was taken away.
            return;
        };
        if offset < partition.next {
            return;
        }
        partition.next = offset + 1;
        let Some(payload) = message.payload() else { return };
        let hash = hash_of(message.timestamp().to_millis(), Some(payload));
        let witness = Some(Witness { offset, hash });
        let frame = LogFrame {
            partition: partition.id,
            place: &partition.place,
            offset: offset.max(0).cast_unsigned(),
            hash,
            position: &Position { next: offset + 1, cluster: self.cluster, witness }.encode(),
            payload: Bytes::copy_from_slice(payload),
        };
        self.taken_bytes += payload.len();
        if let Err(error) = self.runtime.block_on(self.writer.take(&frame)) {
            self.end(End::of(error));
        }
    }

    /// Shows queries what was taken, and looks after commits.
    pub(super) fn turn(&mut self, consumer: &BaseConsumer<Context>) {
        self.taken_bytes = 0;
        match self.writer.turn(&self.runtime) {
            Ok(0) => {}
            Ok(rows) => metrics::counter!("lakegate_log_rows_total").increment(rows),
            Err(error) => self.end(End::of(error)),
        }
        self.follow(consumer, CommitMode::Async);
    }

    /// The group's offsets behind what all tables have.
    fn follow(&mut self, consumer: &BaseConsumer<Context>, mode: CommitMode) {
        let mut offsets = TopicPartitionList::new();
        for partition in &mut self.partitions {
            let lacks = self.writer.lacks_from(partition.id).and_then(|offset| i64::try_from(offset).ok());
            let safe = lacks.unwrap_or(partition.next).min(partition.next);
            if safe > partition.committed {
                partition.committed = safe;
                let _ = offsets.add_partition_offset(&self.log.topic, partition.number, Offset::Offset(safe));
            }
        }
        if offsets.count() > 0
            && let Err(error) = consumer.commit(&offsets, mode)
        {
            tracing::debug!(%error, "the group's offsets will follow later");
        }
    }

    /// Commits everything that was taken, if that can be done in the time. Returns whether it was.
    pub(super) fn commit_within(&mut self, consumer: &BaseConsumer<Context>, within: Duration) -> bool {
        if self.ended.is_some() {
            return false;
        }
        let until = Instant::now() + within;
        match self.writer.commit_within(&self.runtime, until.saturating_duration_since(Instant::now())) {
            Ok(done) => {
                self.follow(consumer, CommitMode::Sync);
                done
            }
            Err(error) => {
                self.end(End::of(error));
                false
            }
        }
    }

    /// Partitions go to another: what was read of them is committed first, or forgotten.
    pub(super) fn revoke(&mut self, consumer: &BaseConsumer<Context>, list: &TopicPartitionList) {
        let gone: Vec<i32> = list.elements().iter().map(|element| element.partition()).collect();
        if gone.is_empty() {
            return;
        }
        if self.ended.is_none() {
            tracing::info!(topic = %self.log.topic, partitions = ?gone, "partitions of the log are written elsewhere from now on");
            if !self.commit_within(consumer, REVOKED_COMMIT) {
                self.end(End::Again("partitions were taken away before their rows could be committed".to_owned()));
            }
        }
        for partition in self.partitions.extract_if(.., |partition| gone.contains(&partition.number)) {
            self.writer.forget(partition.id);
        }
    }
}
