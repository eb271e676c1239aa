//! The gateway's side: frames to the topic, by an idempotent producer that waits for all in-sync replicas.
//!
//! While brokers do not answer, requests are refused at once; somebody asks the brokers meanwhile. A producer that met an
//! error which it cannot get over is made anew: what it had under way was told to its senders as not known.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lakegate_ingest::{RemoteError, RemoteLog, RemoteTicket};
use parking_lot::RwLock;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::super::assign::ANSWER;
use super::super::status::SourceState;
use super::{FRAME_BYTES_MAX, KafkaLog, LOG_PROPERTIES, State};

/// How often brokers that are away are asked.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// What waits to be sent takes at most so many KiB, and so many frames.
const QUEUE: [(&str, &str); 2] = [("queue.buffering.max.kbytes", "131072"), ("queue.buffering.max.messages", "100000")];

/// Writes frames.
pub(super) struct Producer {
    log: Arc<KafkaLog>,
    client: RwLock<FutureProducer>,
    state: State,
    /// Rings when brokers have to be asked.
    away: Notify,
}

/// The settings of a client, but for what only a producer or a consumer has.
pub(super) fn client_of(log: &KafkaLog) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "lakegate").set("allow.auto.create.topics", "false");
    for (key, value) in log.properties.iter().filter(|(key, _)| !LOG_PROPERTIES.contains(&key.as_str())) {
        config.set(key, value);
    }
    config.set("bootstrap.servers", &log.brokers);
    config
}

fn make(log: &KafkaLog) -> Result<FutureProducer, KafkaError> {
    let mut config = client_of(log);
    QUEUE.iter().for_each(|(key, value)| {
        config.set(*key, *value);
    });
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .set("message.max.bytes", FRAME_BYTES_MAX)
        .set("message.timeout.ms", log.timeout.as_millis().to_string())
        .create()
}

impl Producer {
    /// Makes the client, and begins to look for the topic.
    pub(super) fn start(log: Arc<KafkaLog>, state: State, runtime: &Handle) -> Result<Arc<Self>, String> {
        let client = make(&log).map_err(|error| error.to_string())?;
        let producer = Arc::new(Self { log, client: RwLock::new(client), state, away: Notify::new() });
        producer.away.notify_one();
        let asking = Arc::downgrade(&producer);
        runtime.spawn(async move {
            while let Some(producer) = asking.upgrade() {
                let _ = tokio::time::timeout(Duration::from_secs(1), producer.away.notified()).await;
                let is_away = !matches!(*producer.state.lock(), SourceState::Running);
                if is_away && !producer.look().await {
                    drop(producer);
                    tokio::time::sleep(ASK_EVERY).await;
                }
            }
        });
        Ok(producer)
    }

    fn say(&self, state: SourceState) {
        let mut known = self.state.lock();
        if *known != state {
            match &state {
                SourceState::Running => tracing::info!(topic = %self.log.topic, "requests are written to Kafka"),
                SourceState::Waiting(why) | SourceState::Stopped(why) => {
                    tracing::warn!(topic = %self.log.topic, "requests cannot be written to Kafka: {why}");
                }
                SourceState::Connecting => {}
            }
            *known = state;
        }
    }

    /// Asks the brokers for the topic, and makes it where it is not there. Returns whether it can be written to.
    async fn look(&self) -> bool {
        let log = self.log.clone();
        let found = tokio::task::spawn_blocking(move || partitions_of(&log)).await;
        let state = match found.unwrap_or_else(|error| Err(error.to_string())) {
            Err(why) => SourceState::Waiting(format!("no broker of {} answers: {why}", self.log.brokers)),
            Ok(0) => match self.create().await {
                // Requests may come already: they wait for it.
                Ok(()) => SourceState::Connecting,
                Err(why) => SourceState::Waiting(format!("the topic {} cannot be made: {why}", self.log.topic)),
            },
            Ok(found) if found < self.log.partitions => SourceState::Stopped(format!(
                "the topic {} has {found} partitions, kafka.log.partitions is {}; they have to be as many, in all instances",
                self.log.topic, self.log.partitions
            )),
            Ok(_) => SourceState::Running,
        };
        let is_there = state == SourceState::Running;
        self.say(state);
        is_there
    }

    async fn create(&self) -> Result<(), String> {
        let config = client_of(&self.log);
        let admin: AdminClient<DefaultClientContext> =
            AdminClient::from_config(&config).map_err(|error| error.to_string())?;
        let log = &self.log;
        let (partitions, copies) = (i32::try_from(log.partitions).unwrap_or(1), i32::from(log.replication));
        let (retention, in_sync) = (log.retention.as_millis().to_string(), if copies > 2 { "2" } else { "1" });
        let topic = NewTopic::new(&log.topic, partitions, TopicReplication::Fixed(copies))
            .set("cleanup.policy", "delete")
            .set("max.message.bytes", FRAME_BYTES_MAX)
            .set("min.insync.replicas", in_sync)
            .set("retention.ms", &retention);
        let options = AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER));
        let made = admin.create_topics(&[topic], &options).await.map_err(|error| error.to_string())?;
        match made.into_iter().next() {
            // Another instance was faster.
            Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | None => Ok(()),
            Some(Err((_, code))) => Err(code.to_string()),
        }
    }

    /// What an error means for the next requests.
    fn weigh(&self, error: &KafkaError) -> RemoteError {
        let code = error.rdkafka_error_code();
        match code {
            Some(RDKafkaErrorCode::QueueFull) => {
                return RemoteError::Full("too many frames wait for Kafka's brokers".to_owned());
            }
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                return RemoteError::TooLarge(format!(
                    "the request is larger than the topic {} takes (max.message.bytes of the topic, message.max.bytes of the brokers); send smaller ones",
                    self.log.topic
                ));
            }
            _ => {}
        }
        let mut why = error.to_string();
        let fatal = self.client.read().client().fatal_error();
        if let Some((_, fatal)) = fatal {
            why = format!("{why}: {fatal}");
            match make(&self.log) {
                Ok(client) => *self.client.write() = client,
                Err(error) => why = format!("{why}; the client cannot be made anew: {error}"),
            }
        }
        self.say(SourceState::Waiting(why.clone()));
        self.away.notify_one();
        RemoteError::Away(format!("Kafka did not take the request: {why}"))
    }
}

/// How many partitions the topic has; 0: it is not there.
fn partitions_of(log: &KafkaLog) -> Result<u32, String> {
    let probe: BaseConsumer = client_of(log).create().map_err(|error| error.to_string())?;
    let metadata = probe.fetch_metadata(Some(&log.topic), ANSWER).map_err(|error| error.to_string())?;
    let topic = metadata.topics().iter().find(|topic| topic.name() == log.topic);
    let partitions = topic.filter(|topic| topic.error().is_none()).map_or(0, |topic| topic.partitions().len());
    Ok(u32::try_from(partitions).unwrap_or(u32::MAX))
}

impl RemoteLog for Producer {
    fn partitions(&self) -> u32 {
        self.log.partitions
    }

    fn append(self: Arc<Self>, partition: u32, key: &str, frame: &[Bytes]) -> Result<RemoteTicket, RemoteError> {
        if let SourceState::Waiting(why) | SourceState::Stopped(why) = &*self.state.lock() {
            return Err(RemoteError::Away(format!("Kafka cannot be written to: {why}")));
        }
        let payload = frame.concat();
        let record = FutureRecord::to(&self.log.topic)
            .partition(i32::try_from(partition).unwrap_or(i32::MAX))
            .key(key)
            .payload(&payload);
        let sent = self.client.read().send_result(record).map_err(|(error, _)| error);
        let delivery = sent.map_err(|error| self.weigh(&error))?;
        Ok(Box::pin(async move {
            match delivery.await {
                Ok(Ok(delivered)) => Ok(delivered.offset.max(0).cast_unsigned()),
                Ok(Err((error, _))) => Err(self.weigh(&error)),
                Err(_) => Err(RemoteError::Away("the Kafka client was ended".to_owned())),
            }
        }))
    }
}
