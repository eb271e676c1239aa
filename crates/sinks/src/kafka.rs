//! Records as messages of a Kafka topic, by an idempotent producer: the broker drops what the producer sends twice while
//! it runs; after a crash the key in the header `idempotency-key` tells.
//!
//! A message's key is the record's order key, so that records that agree in it keep their order in one partition.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;

use crate::outgoing::Message;
use crate::sink::{Refused, check_some_taken};

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

/// Messages that are with the client library at once, which takes 100,000 (`queue.buffering.max.messages`).
const QUEUE: usize = 50_000;

/// Errors that lie in the message.
const MESSAGES_FAULT: [RDKafkaErrorCode; 2] = [RDKafkaErrorCode::MessageSizeTooLarge, RDKafkaErrorCode::InvalidRecord];

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

    /// Sends a batch; answers when the cluster has all of it but the messages that it refused.
    pub(crate) async fn deliver(&mut self, batch: &[Message]) -> Result<Vec<Refused>, String> {
        let all: Vec<usize> = (0..batch.len()).collect();
        // A broker refuses messages that went together for the sake of one: each is tried alone.
        let suspects = self.send(batch, &all).await?;
        if suspects.len() <= 1 {
            return Ok(suspects);
        }
        let (mut refused, mut taken) = (Vec::new(), batch.len() - suspects.len());
        for suspect in suspects {
            match self.send(batch, &[suspect.at]).await?.pop() {
                Some(one) => refused.push(one),
                None => taken += 1,
            }
            check_some_taken(&refused, taken)?;
        }
        Ok(refused)
    }

    async fn send(&self, batch: &[Message], which: &[usize]) -> Result<Vec<Refused>, String> {
        let mut refused = Vec::new();
        let mut judge = |at: usize, error: &KafkaError| {
            let reason = error.to_string();
            let of_message = error.rdkafka_error_code().is_some_and(|code| MESSAGES_FAULT.contains(&code));
            if !of_message {
                return Err(reason);
            }
            refused.push(Refused { at, reason });
            Ok(())
        };
        for some in which.chunks(QUEUE) {
            let mut sent = Vec::with_capacity(some.len());
            for (at, message) in some.iter().filter_map(|at| Some((*at, batch.get(*at)?))) {
                let topic = message.place(&self.settings.topic);
                let mut headers = OwnedHeaders::new();
                for (name, value) in message.headers() {
                    headers = headers.insert(Header { key: name, value: Some(value) });
                }
                let record = FutureRecord::to(&topic).key(&message.order).payload(&message.body).headers(headers);
                match self.producer.send_result(record) {
                    Ok(one) => sent.push((at, one)),
                    Err((error, _)) => judge(at, &error)?,
                }
            }
            for (at, one) in sent {
                match one.await {
                    Ok(Ok(_)) => {}
                    Ok(Err((error, _))) => judge(at, &error)?,
                    Err(_) => return Err("the producer ended".to_owned()),
                }
            }
        }
        Ok(refused)
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // What was not acknowledged is sent again by whoever comes next.
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
    }
}
