//! Where partitions are read on: by what their table says of them.

use std::time::Duration;

use lakegate_ingest::UpstreamPosition;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::context::Context;
use super::position::{Position, Verdict, Witness, judge, partition_id};
use super::reader::{End, Reader};
use super::{OnLostPosition, Start};

/// How long a broker may take for an answer.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// How long the first positions of a topic may take to be committed.
const FIRST_COMMIT: Duration = Duration::from_secs(30);

/// Where one partition begins.
struct Begin {
    from: i64,
    witness: Option<Witness>,
}

impl Reader {
    /// Makes ready for partitions: says from where on each is to be read.
    pub(super) fn assign(
        &mut self,
        consumer: &BaseConsumer<Context>,
        list: &TopicPartitionList,
    ) -> Result<TopicPartitionList, End> {
        let wanted: Vec<(String, i32)> =
            list.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect();
        let mut topics: Vec<&str> = wanted.iter().map(|(topic, _)| topic.as_str()).collect();
        topics.dedup();
        let mut new_topics = Vec::new();
        for topic in topics {
            if self.is_new(consumer, topic)? {
                new_topics.push(topic.to_owned());
            }
        }
        let ids: Vec<u128> = wanted.iter().map(|(topic, number)| self.id_of(topic, *number)).collect();
        let positions = self.runtime.block_on(self.upstream.positions(&ids)).map_err(End::of)?;
        let mut begun = TopicPartitionList::with_capacity(wanted.len());
        for ((topic, number), position) in wanted.iter().zip(positions) {
            let is_new = new_topics.contains(topic);
            let begin = self.begin_of(consumer, (topic, *number), position.as_ref(), is_new)?;
            let added = begun.add_partition_offset(topic, *number, Offset::Offset(begin.from));
            added.map_err(|error| End::Again(error.to_string()))?;
            self.begin(topic, *number, position, begin.from, begin.witness);
        }
        if !wanted.is_empty() {
            tracing::info!(source = %self.source.name, partitions = ?wanted, "partitions are read here from now on");
        }
        Ok(begun)
    }

    pub(super) fn id_of(&self, topic: &str, number: i32) -> u128 {
        partition_id(&self.source.name, topic, number)
    }

    /// Whether the table knows no partition of the topic. Then all get their first positions, where these are others
    /// than their beginnings: so that a partition that is added later is told from one of these.
    fn is_new(&mut self, consumer: &BaseConsumer<Context>, topic: &str) -> Result<bool, End> {
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER).map_err(|error| away(&error))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let numbers: Vec<i32> = found.iter().flat_map(|found| found.partitions()).map(|p| p.id()).collect();
        let ids: Vec<u128> = numbers.iter().map(|number| self.id_of(topic, *number)).collect();
        let known = self.runtime.block_on(self.upstream.positions(&ids)).map_err(End::of)?;
        if known.iter().any(Option::is_some) {
            return Ok(false);
        }
        let firsts = match self.source.start {
            Start::Earliest | Start::Table => return Ok(true),
            Start::Latest => ends_of(consumer, topic, &numbers)?,
            Start::Timestamp(time_ms) => offsets_at(consumer, topic, &numbers, time_ms)?,
        };
        for (id, next) in ids.iter().zip(firsts) {
            self.upstream.begin(*id, None);
            let first = Position { next, cluster: self.cluster, witness: None };
            self.upstream.advance(*id, 0, first.encode());
        }
        self.commit_within(consumer, FIRST_COMMIT);
        match self.take_end() {
            Some(end) => Err(end),
            None if self.upstream.has_uncommitted() || self.upstream.is_committing() => {
                Err(End::Again(format!("the first positions of {topic} could not be committed")))
            }
            None => Ok(false),
        }
    }

    fn begin_of(
        &self,
        consumer: &BaseConsumer<Context>,
        (topic, number): (&str, i32),
        position: Option<&UpstreamPosition>,
        is_new: bool,
    ) -> Result<Begin, End> {
        let (low, high) = consumer.fetch_watermarks(topic, number, ANSWER).map_err(|error| away(&error))?;
        self.figures.of_partition(topic, number, |status| status.end = high);
        let name = &self.source.name;
        let Some(position) = position else {
            if is_new && self.source.start == Start::Table {
                return Err(End::Stopped(format!(
                    "the table {} knows no position of the topic {topic}; set start of the Kafka source {name:?} to earliest, latest or a timestamp",
                    self.upstream.table()
                )));
            }
            return Ok(Begin { from: low, witness: None });
        };
        let verdict = match Position::decode(&position.state) {
            Some(_) if self.is_mistaken(self.id_of(topic, number)) => {
                Verdict::Lost("the topic was made anew: where the table's last record lay, there is another".to_owned())
            }
            Some(position) => judge(&position, self.cluster, low, high),
            None => Verdict::Lost("the table's position is not one that this version reads".to_owned()),
        };
        let why = match verdict {
            Verdict::GoOn { from, witness } => return Ok(Begin { from, witness }),
            Verdict::Lost(why) => why,
        };
        let from = match self.source.on_lost_position {
            OnLostPosition::Stop => return Err(self.lost(topic, number, &why)),
            OnLostPosition::Earliest => low,
            OnLostPosition::Latest => high,
        };
        tracing::warn!(source = %name, topic, partition = number, from, "{why}; it is read on as on_lost_position says");
        metrics::counter!("lakegate_kafka_lost_positions_total", "source" => name.clone()).increment(1);
        Ok(Begin { from, witness: None })
    }

    pub(super) fn lost(&self, topic: &str, number: i32, why: &str) -> End {
        End::Stopped(format!(
            "topic {topic}, partition {number}: {why}; nothing more is read. To go on, set on_lost_position of the Kafka source {:?} to earliest (what is there is read again, and may be in the table twice) or latest (what is there is left out)",
            self.source.name
        ))
    }
}

fn away(error: &KafkaError) -> End {
    End::Again(format!("the broker does not answer: {error}"))
}

fn ends_of(consumer: &BaseConsumer<Context>, topic: &str, numbers: &[i32]) -> Result<Vec<i64>, End> {
    let end = |number: &i32| consumer.fetch_watermarks(topic, *number, ANSWER).map(|(_, high)| high);
    numbers.iter().map(end).collect::<Result<_, _>>().map_err(|error| away(&error))
}

/// The first offset of each partition whose record is of that time or later; its end where there is none.
fn offsets_at(consumer: &BaseConsumer<Context>, topic: &str, numbers: &[i32], time_ms: i64) -> Result<Vec<i64>, End> {
    let mut times = TopicPartitionList::with_capacity(numbers.len());
    for number in numbers {
        let added = times.add_partition_offset(topic, *number, Offset::Offset(time_ms));
        added.map_err(|error| End::Again(error.to_string()))?;
    }
    let found = consumer.offsets_for_times(times, ANSWER).map_err(|error| away(&error))?;
    let ends = ends_of(consumer, topic, numbers)?;
    let offset = |(number, end): (&i32, i64)| match found.find_partition(topic, *number).map(|e| e.offset()) {
        Some(Offset::Offset(offset)) if offset >= 0 => offset,
        _ => end,
    };
    Ok(numbers.iter().zip(ends).map(offset).collect())
}
