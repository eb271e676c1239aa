//! Records as messages of a Kafka topic, by an idempotent producer: the broker drops what the producer sends twice while
//! it runs; after a crash the key in the header `idempotency-key` tells.
//!
//! A message's key is the record's order key, so that records that agree in it keep their order in one partition.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};

use crate::outgoing::Message;

/// What an operator may set of the client; all else is ours, or would read files and run programs.
pub const PROPERTIES: [&str; 8] = [
    "client.id",
    "compression.type",
    "linger.ms",
    "batch.size",
    "message.max.bytes",
    "security.protocol",
    "sasl.mechanism",
    "socket.timeout.ms",
];

/// A topic.
#[derive(Clone)]
pub struct KafkaSettings {
    /// Where the cluster is found.
    pub brokers: String,
    /// The topic; `{tenant}` and `{stream}` stand for those of the record.
    pub topic: String,
    /// Empty: none.
    pub username: String,
    /// Of the user.
    pub password: String,
    /// Of [`PROPERTIES`].
    pub properties: Vec<(String, String)>,
    /// How long a message may take.
    pub timeout: Duration,
}

impl std::fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

/// Feeds one topic.
pub(crate) struct Kafka {
    settings: KafkaSettings,
    producer: FutureProducer,
}

impl Kafka {
    pub(crate) fn open(settings: KafkaSettings) -> Result<Self, String> {
        let mut config = ClientConfig::new();
        for (name, value) in settings.properties.iter().filter(|(name, _)| PROPERTIES.contains(&name.as_str())) {
            config.set(name, value);
        }
        config
            .set("bootstrap.servers", &settings.brokers)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", settings.timeout.as_millis().to_string());
        if !settings.username.is_empty() {
            config.set("sasl.username", &settings.username).set("sasl.password", &settings.password);
        }
        let producer = config.create().map_err(|error| format!("the producer cannot be made: {error}"))?;
        Ok(Self { settings, producer })
    }

    /// Sends a batch; answers when the cluster has all of it.
    pub(crate) async fn deliver(&mut self, batch: &[Message]) -> Result<(), String> {
        let mut sent = Vec::with_capacity(batch.len());
        for message in batch {
            let topic = message.place(&self.settings.topic);
            let mut headers = OwnedHeaders::new();
            for (name, value) in message.headers() {
                headers = headers.insert(Header { key: name, value: Some(value) });
            }
            let record = FutureRecord::to(&topic).key(&message.order).payload(&message.body).headers(headers);
            // A full queue waits for room, within the time that a message may take.
            sent.push(self.producer.send_result(record).map_err(|(error, _)| error.to_string())?);
        }
        for one in sent {
            match one.await {
                Ok(Ok(_)) => {}
                Ok(Err((error, _))) => return Err(error.to_string()),
                Err(_) => return Err("the producer ended".to_owned()),
            }
        }
        Ok(())
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // What was not acknowledged is sent again by whoever comes next.
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
    }
}
