//! The thread of the writer: one session after another. Whatever goes wrong ends a session, and the next one begins from
//! the tables' positions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lakegate_ingest::Gate;
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use tokio::runtime::Handle;

use super::super::assign::ANSWER;
use super::super::position::cluster_hash;
use super::super::reader::End;
use super::super::status::SourceState;
use super::producer::client_of;
use super::reading::{Reading, judge_of};
use super::{KafkaLog, State};

/// Time between two sessions: first, and at most.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A session of this length was a good one.
const GOOD: Duration = Duration::from_secs(60);
/// How long one look for frames may take: commits are looked after in between.
const POLL: Duration = Duration::from_millis(20);
/// So many frames, or bytes of them, are taken before queries see them, while there is a backlog.
const FRAMES_A_TURN: usize = 4096;
const BYTES_A_TURN: usize = 8 << 20;
/// Where there is no room for so long, the client is told to fetch no more, so that the group is still answered.
const PAUSE_AFTER: Duration = Duration::from_secs(5);
/// At the end, how long the last commits may take.
const LAST_COMMIT: Duration = Duration::from_secs(10);

/// Settings of the client where the configuration says nothing else; as for sources.
const DEFAULTS: [(&str, &str); 7] = [
    ("isolation.level", "read_committed"),
    ("session.timeout.ms", "10000"),
    ("heartbeat.interval.ms", "2000"),
    ("queued.max.messages.kbytes", "16384"),
    ("fetch.max.bytes", "16777216"),
    ("fetch.queue.backoff.ms", "10"),
    ("fetch.wait.max.ms", "50"),
];

/// Shared by the client and the session, which are on one thread.
pub(super) struct Context {
    reading: Mutex<Reading>,
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::info!(%error, "Kafka: {reason}");
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let mut reading = self.reading.lock();
        let done = if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let begun = reading.assign(consumer, list).unwrap_or_else(|end| {
                reading.end(end);
                TopicPartitionList::new()
            });
            if cooperative { consumer.incremental_assign(&begun) } else { consumer.assign(&begun) }
        } else {
            reading.revoke(consumer, list);
            if cooperative { consumer.incremental_unassign(list) } else { consumer.unassign() }
        };
        if let Err(error) = done {
            reading.end(End::Again(format!("the group's assignment could not be followed: {error}")));
        }
    }
}

/// The writer's thread.
pub(super) struct Life {
    pub(super) log: Arc<KafkaLog>,
    pub(super) gate: Gate,
    pub(super) runtime: Handle,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) state: State,
}

impl Life {
    pub(super) fn run(self) {
        let mut wait = RETRY;
        while !self.is_over() {
            let began = Instant::now();
            match self.session() {
                Ok(()) => break,
                Err(End::Stopped(why)) => {
                    tracing::error!(topic = %self.log.topic, "the writer has stopped: {why}");
                    *self.state.lock() = SourceState::Stopped(why);
                    return;
                }
                Err(End::Again(why)) => {
                    tracing::warn!(topic = %self.log.topic, "the writer begins anew: {why}");
                    *self.state.lock() = SourceState::Waiting(why);
                    if began.elapsed() >= GOOD {
                        wait = RETRY;
                    }
                    self.sleep(wait);
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_over() && Instant::now() < until {
            std::thread::sleep(POLL);
        }
    }

    /// From joining the group to leaving it.
    fn session(&self) -> Result<(), End> {
        let log = &self.log;
        let again = |what: &str, error: &dyn std::fmt::Display| End::Again(format!("{what}: {error}"));
        let probe: BaseConsumer =
            client_of(log).create().map_err(|error| End::Stopped(format!("the client cannot be made: {error}")))?;
        let metadata = probe.fetch_metadata(Some(&log.topic), ANSWER);
        let metadata = metadata.map_err(|error| again(&format!("no broker of {} answers", log.brokers), &error))?;
        let found = metadata.topics().iter().find(|topic| topic.name() == log.topic);
        let found = found.map_or(0, |topic| topic.partitions().len());
        if u32::try_from(found).unwrap_or(0) < log.partitions {
            return Err(End::Again(format!("the topic {} has {found} of {} partitions", log.topic, log.partitions)));
        }
        let cluster = probe.client().fetch_cluster_id(ANSWER);
        let cluster = cluster.ok_or_else(|| End::Again("the broker does not tell its cluster's id".to_owned()))?;
        drop(metadata);
        let cluster = cluster_hash(&cluster);
        let writer = self.gate.write_from(&log.topic, judge_of(log, probe, cluster));
        let reading = Reading::new(log.clone(), self.runtime.clone(), writer, cluster);
        let mut config = client_of(log);
        for (key, value) in DEFAULTS.iter().filter(|(key, _)| !log.properties.iter().any(|(set, _)| set == key)) {
            config.set(*key, *value);
        }
        config
            .set("group.id", &log.group_id)
            .set("group.instance.id", &log.instance)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // Never to be jumped in silence: it ends the session, and the next one judges the offsets.
            .set("auto.offset.reset", "error");
        let consumer: BaseConsumer<Context> = config
            .create_with_context(Context { reading: Mutex::new(reading) })
            .map_err(|error| again("the client cannot be made", &error))?;
        consumer.subscribe(&[&log.topic]).map_err(|error| again("the topic cannot be subscribed", &error))?;
        tracing::info!(topic = %log.topic, group = %log.group_id, "frames of the log are brought into tables");
        *self.state.lock() = SourceState::Running;
        let done = self.read(&consumer);
        // What is left in memory is forgotten before the group hands the partitions to others.
        let mut reading = consumer.context().reading.lock();
        reading.end(End::Again("the session is over".to_owned()));
        reading.writer.give_up(&self.runtime, LAST_COMMIT);
        done
    }

    fn read(&self, consumer: &BaseConsumer<Context>) -> Result<(), End> {
        let mut full_since: Option<Instant> = None;
        let mut is_paused = false;
        loop {
            if self.is_over() {
                let mut reading = consumer.context().reading.lock();
                reading.commit_within(consumer, LAST_COMMIT);
                return reading.take_end().map_or(Ok(()), Err);
            }
            // Paused, the client still answers the group, and gives what it had fetched.
            if full_since.is_none() || is_paused {
                self.gather(consumer)?;
            } else {
                std::thread::sleep(POLL);
            }
            let is_full = {
                let mut reading = consumer.context().reading.lock();
                reading.turn(consumer);
                if let Some(end) = reading.take_end() {
                    return Err(end);
                }
                reading.writer.is_full()
            };
            full_since = if is_full { full_since.or_else(|| Some(Instant::now())) } else { None };
            let wants_pause = full_since.is_some_and(|since| since.elapsed() >= PAUSE_AFTER);
            if wants_pause != is_paused {
                is_paused = set_paused(consumer, wants_pause)?;
            }
        }
    }

    /// Reads until there is nothing to be read at the moment, or plenty was.
    fn gather(&self, consumer: &BaseConsumer<Context>) -> Result<(), End> {
        let mut wait = POLL;
        for _ in 0..FRAMES_A_TURN {
            match consumer.poll(wait) {
                None => return Ok(()),
                Some(Ok(message)) => {
                    let mut reading = consumer.context().reading.lock();
                    reading.add(&message);
                    if reading.is_ended() || reading.taken_bytes >= BYTES_A_TURN {
                        return Ok(());
                    }
                }
                Some(Err(error)) => weigh(error)?,
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }
}

/// What an error of the client means for the session.
fn weigh(error: KafkaError) -> Result<(), End> {
    let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
    match error.rdkafka_error_code() {
        _ if fatal => Err(End::Again(format!("the client cannot go on: {error}"))),
        Some(
            RDKafkaErrorCode::AutoOffsetReset
            | RDKafkaErrorCode::OffsetOutOfRange
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::Authentication,
        ) => Err(End::Again(error.to_string())),
        _ => {
            // The client reconnects by itself.
            tracing::debug!(%error, "the client met an error and goes on");
            Ok(())
        }
    }
}

/// Tells the client whether to fetch.
fn set_paused(consumer: &BaseConsumer<Context>, wanted: bool) -> Result<bool, End> {
    let failed = |error: KafkaError| End::Again(format!("fetching cannot be paused: {error}"));
    let all = consumer.assignment().map_err(failed)?;
    if wanted { consumer.pause(&all) } else { consumer.resume(&all) }.map_err(failed)?;
    Ok(wanted)
}
