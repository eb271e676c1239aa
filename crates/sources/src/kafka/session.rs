//! The thread of a source: one session after another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lakegate_ingest::{Gate, Source, UpstreamTarget};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Handle;

use super::context::Context;
use super::payload::content_type;
use super::position::cluster_hash;
use super::probe;
use super::reader::{End, Mistaken, Reader};
use super::status::{Figures, SourceState};
use super::{KafkaSource, OWN_PROPERTIES};

/// Time between two sessions: first, and at most.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A session of this length was a good one.
const GOOD: Duration = Duration::from_secs(60);
/// How long one look for records may take: commits are looked after in between.
const POLL: Duration = Duration::from_millis(50);
/// So many records are read before they are handed on, while there is a backlog.
const BACKLOG_RECORDS: usize = 8192;
/// Where there is no room for so long, the client is told to fetch no more, so that the group is still answered.
const PAUSE_AFTER: Duration = Duration::from_secs(5);
/// At the end, how long the last commit may take.
const LAST_COMMIT: Duration = Duration::from_secs(10);

/// Settings of the client that a source has where the configuration says nothing else.
const DEFAULTS: [(&str, &str); 10] = [
    ("client.id", "lakegate"),
    ("isolation.level", "read_committed"),
    ("allow.auto.create.topics", "false"),
    // Partitions that are added, and topics of a pattern, are found within this.
    ("topic.metadata.refresh.interval.ms", "10000"),
    // What a dead process had is given to others after this.
    ("session.timeout.ms", "10000"),
    ("heartbeat.interval.ms", "2000"),
    // What is fetched ahead, at most.
    ("queued.max.messages.kbytes", "16384"),
    ("fetch.max.bytes", "8388608"),
    ("fetch.queue.backoff.ms", "10"),
    ("fetch.wait.max.ms", "100"),
];

/// One source's thread.
pub(super) struct Life {
    pub(super) source: Arc<KafkaSource>,
    pub(super) gate: Gate,
    pub(super) runtime: Handle,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) figures: Arc<Figures>,
    /// Partitions whose position was found to be of another topic, although it lies inside this one.
    pub(super) mistaken: Mistaken,
}

impl Life {
    pub(super) fn run(self) {
        let name = &self.source.name;
        let mut wait = RETRY;
        while !self.is_over() {
            let began = Instant::now();
            let end = self.session();
            self.figures.forget_all();
            match end {
                Ok(()) => break,
                Err(End::Stopped(why)) => {
                    tracing::error!(source = %name, "the Kafka source has stopped: {why}");
                    self.figures.set_state(SourceState::Stopped(why));
                    return;
                }
                Err(End::Again(why)) => {
                    tracing::warn!(source = %name, "the Kafka source begins anew: {why}");
                    self.figures.set_state(SourceState::Waiting(why));
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

    fn client(&self) -> ClientConfig {
        let source = &self.source;
        let mut config = ClientConfig::new();
        DEFAULTS.iter().for_each(|(key, value)| {
            config.set(*key, *value);
        });
        if !source.instance.is_empty() {
            // A process that comes back takes its partitions up at once, without a rebalance.
            config.set("group.instance.id", &source.instance);
        }
        for (key, value) in source.properties.iter().filter(|(key, _)| !OWN_PROPERTIES.contains(&key.as_str())) {
            match value.as_str() {
                "" => config.remove(key),
                value => config.set(key, value),
            };
        }
        config
            .set("bootstrap.servers", &source.brokers)
            .set("group.id", &source.group_id)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // Never to be jumped in silence: it ends the session, and the next one judges the position.
            .set("auto.offset.reset", "error")
            .set("statistics.interval.ms", "1000");
        config
    }

    /// From joining the group to leaving it.
    fn session(&self) -> Result<(), End> {
        let source = &self.source;
        self.figures.set_state(SourceState::Connecting);
        let again = |what: &str, error: &dyn std::fmt::Display| End::Again(format!("{what}: {error}"));
        let cluster = probe::cluster_of(source, &self.client())?;
        tracing::info!(source = %source.name, brokers = %source.brokers, %cluster, "Connected to Kafka");
        let target = UpstreamTarget {
            tenant: source.tenant.clone(),
            stream: source.stream.clone(),
            source: Source::Kafka,
            name: format!("kafka/{}", source.name),
            content_type: content_type(source.format).to_owned(),
        };
        let upstream = self.runtime.block_on(self.gate.open_upstream(target)).map_err(End::of)?;
        let (figures, name) = (self.figures.clone(), source.name.clone());
        let reader =
            Reader::new(source.clone(), self.runtime.clone(), upstream, cluster_hash(&cluster), figures.clone());
        let reader = reader.with_mistaken(self.mistaken.clone());
        let context = Context { reader: Mutex::new(reader), figures, name };
        let consumer: BaseConsumer<Context> =
            self.client().create_with_context(context).map_err(|error| again("the client cannot be made", &error))?;
        consumer.subscribe(&[&source.topic]).map_err(|error| again("the topic cannot be subscribed", &error))?;
        let interval = source.flush_interval.as_secs_f64();
        tracing::info!(
            source = %source.name, topic = %source.topic, group = %source.group_id,
            "Starting consumer loop (batch_size={}, flush_interval={interval}s)...", source.batch_size
        );
        self.figures.set_state(SourceState::Running);
        let done = self.read(&consumer);
        // What is left in memory is forgotten before the group hands the partitions to others, and a commit under way
        // comes to its end before the next session asks the table.
        let mut reader = consumer.context().reader.lock();
        reader.end(End::Again("the session is over".to_owned()));
        reader.upstream.give_up(&self.runtime, LAST_COMMIT);
        done
    }

    fn read(&self, consumer: &BaseConsumer<Context>) -> Result<(), End> {
        let mut full_since: Option<Instant> = None;
        let mut is_paused = false;
        loop {
            if self.is_over() {
                return self.finish(consumer);
            }
            // Paused, the client still answers the group, and gives what it had fetched.
            if full_since.is_none() || is_paused {
                self.gather(consumer)?;
            }
            let mut reader = consumer.context().reader.lock();
            let handed_on = !reader.is_due() && !reader.has_plenty(BACKLOG_RECORDS) || reader.hand_on();
            reader.turn(consumer);
            if let Some(end) = reader.take_end() {
                return Err(end);
            }
            if handed_on && !reader.upstream.is_full() {
                full_since = None;
            } else {
                full_since.get_or_insert_with(Instant::now);
                let (upstream, runtime) = (&mut reader.upstream, &self.runtime);
                upstream.begin_commit(runtime);
                upstream.wait_commit(runtime, POLL);
                if !upstream.is_committing() {
                    drop(reader);
                    std::thread::sleep(POLL);
                }
            }
            let wants_pause = full_since.is_some_and(|since| since.elapsed() >= PAUSE_AFTER);
            if wants_pause || is_paused {
                is_paused = set_paused(consumer, wants_pause)?;
            }
        }
    }

    /// Reads until there is nothing to be read at the moment, or plenty was.
    fn gather(&self, consumer: &BaseConsumer<Context>) -> Result<(), End> {
        let patience = consumer.context().reader.lock().patience().min(POLL);
        let mut wait = patience;
        for _ in 0..BACKLOG_RECORDS {
            match consumer.poll(wait) {
                None => return Ok(()),
                Some(Ok(message)) => {
                    let mut reader = consumer.context().reader.lock();
                    reader.add(&message);
                    if reader.is_ended() || reader.has_plenty(BACKLOG_RECORDS) {
                        return Ok(());
                    }
                }
                Some(Err(error)) => self.weigh(error)?,
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    /// What an error of the client means for the session.
    fn weigh(&self, error: KafkaError) -> Result<(), End> {
        let code = error.rdkafka_error_code();
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        match code {
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
                tracing::debug!(source = %self.source.name, %error, "the client met an error and goes on");
                Ok(())
            }
        }
    }

    /// Hands on and commits what was read; the rest is read again after the next start.
    fn finish(&self, consumer: &BaseConsumer<Context>) -> Result<(), End> {
        let mut reader = consumer.context().reader.lock();
        reader.hand_on();
        reader.commit_within(consumer, LAST_COMMIT);
        reader.take_end().map_or(Ok(()), Err)
    }
}

/// Tells the client whether to fetch.
fn set_paused(consumer: &BaseConsumer<Context>, wanted: bool) -> Result<bool, End> {
    let failed = |error: KafkaError| End::Again(format!("fetching cannot be paused: {error}"));
    let all = consumer.assignment().map_err(failed)?;
    if wanted { consumer.pause(&all) } else { consumer.resume(&all) }.map_err(failed)?;
    Ok(wanted)
}
