//! What the client library calls back: assignment, revocation, statistics, its own log.

use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use super::reader::{End, Reader};
use super::status::Figures;

/// Shared by the client and the session, which are on one thread.
pub(super) struct Context {
    pub(super) reader: Mutex<Reader>,
    pub(super) figures: Arc<Figures>,
    pub(super) name: String,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let source = &self.name;
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::warn!(%source, facility, "Kafka client: {message}");
            }
            RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => {
                tracing::info!(%source, facility, "Kafka client: {message}");
            }
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(%source, facility, "Kafka client: {message}");
            }
        }
    }

    fn stats(&self, statistics: Statistics) {
        let is_up = |broker: &rdkafka::statistics::Broker| broker.state == "UP";
        self.figures.note_reached(statistics.brokers.values().any(is_up));
        let ends = statistics.topics.values().flat_map(|topic| {
            let known = topic.partitions.values().filter(|p| p.partition >= 0 && p.hi_offset >= 0);
            known.map(|p| (topic.topic.as_str(), p.partition, if p.ls_offset >= 0 { p.ls_offset } else { p.hi_offset }))
        });
        self.figures.note_ends(ends);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(source = %self.name, %error, "Kafka: {reason}");
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let mut reader = self.reader.lock();
        let done = if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let begun = match reader.assign(consumer, list) {
                Ok(begun) => begun,
                Err(end) => {
                    reader.end(end);
                    TopicPartitionList::new()
                }
            };
            if cooperative { consumer.incremental_assign(&begun) } else { consumer.assign(&begun) }
        } else {
            reader.revoke(consumer, list);
            if cooperative { consumer.incremental_unassign(list) } else { consumer.unassign() }
        };
        if let Err(error) = done {
            reader.end(End::Again(format!("the group's assignment could not be followed: {error}")));
        }
    }
}
