//! The settings of a log that instances share in Kafka, and what does not go together with it.

use std::collections::BTreeMap;

use lakegate_sources::kafka::log::LOG_PROPERTIES;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kafka::KafkaSecurity;
use super::problem::Problem;
use super::secret::Secret;
use super::settings::Settings;
use super::units::Period;

/// Where requests are written before they are acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogKind {
    /// To the write-ahead log of this instance.
    #[default]
    Local,
    /// To a Kafka topic that instances share, see `kafka.log`.
    Kafka,
}

/// The topic that requests are written to with `log: kafka`. All instances that share it have the same settings here, but
/// for `writer`, and the same `streams`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KafkaLogSettings {
    /// The brokers: `host:port`, with commas between.
    pub(crate) brokers: String,
    /// The topic. It is made where it is not there.
    pub(crate) topic: String,
    /// The consumer group of the writers.
    pub(crate) group_id: String,
    /// Streams are spread over so many partitions, each stream in one. Not to be changed while the topic holds frames that
    /// are not in tables: duplicates are told within a partition.
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) partitions: u32,
    /// Where the topic is made here: how many brokers keep each frame. With 3 or more, an acknowledged frame is on two.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) replication: u16,
    /// Where the topic is made here: how long it keeps frames. Longer than writers are ever away.
    pub(crate) retention: Period,
    /// Whether this instance brings frames into tables, sharing the partitions with other writers. One that does not is a
    /// gateway alone.
    pub(crate) writer: bool,
    /// How long a request waits for the brokers before it is answered that nobody knows.
    pub(crate) timeout: Period,
    /// Duplicates on both sides of a change of writers are told as far back as this, and as the stream's window says: so much
    /// of a partition is read again by its new writer.
    pub(crate) remember: Period,
    /// What a writer does where the group's offset means nothing to the topic: it was deleted and made anew, or frames were
    /// removed before they were in tables.
    pub(crate) on_lost_position: KafkaLogLost,
    /// How the brokers are reached: TLS and credentials.
    pub(crate) security: KafkaSecurity,
    /// Further settings of the client library (librdkafka), by its names.
    pub(crate) properties: BTreeMap<String, Secret>,
}

impl Default for KafkaLogSettings {
    fn default() -> Self {
        Self {
            brokers: String::new(),
            topic: "lakegate-log".into(),
            group_id: "lakegate-writers".into(),
            partitions: 12,
            replication: 1,
            retention: Period::from_secs(7 * 86_400),
            writer: true,
            timeout: Period::from_secs(10),
            remember: Period::from_secs(3600),
            on_lost_position: KafkaLogLost::Stop,
            security: KafkaSecurity::default(),
            properties: BTreeMap::new(),
        }
    }
}

/// What a writer does where the group's offset means nothing to the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KafkaLogLost {
    /// It stops and says so.
    Stop,
    /// It goes on at the first frame that is there.
    Earliest,
}

impl KafkaLogSettings {
    /// The client library's settings that follow from these.
    pub(crate) fn client_properties(&self) -> Vec<(String, String)> {
        self.security.properties(&self.properties)
    }
}

/// Finds what is wrong with these settings, and what does not go together with them.
pub(crate) fn check(settings: &Settings, problems: &mut Vec<Problem>) {
    if settings.log == LogKind::Local {
        return;
    }
    let log = &settings.kafka.log;
    let mut say = |path: &str, message: &str| problems.push(Problem::new(path, message));
    if log.brokers.trim().is_empty() {
        say("kafka.log.brokers", "is empty, and log is kafka; write \"host:9092\", more with commas between");
    }
    if log.topic.is_empty() || log.topic.starts_with('^') {
        say("kafka.log.topic", "needs the name of one topic");
    }
    if log.group_id.is_empty() {
        say("kafka.log.group_id", "is empty; write the name of the writers' consumer group");
    }
    if log.timeout < Period::from_millis(100) {
        say("kafka.log.timeout", "is too short; write at least \"100ms\"");
    }
    if log.security.lacks_user() {
        say("kafka.log.security.user", "is empty, and the protocol asks for credentials");
    }
    if !settings.storage.wal_enabled {
        say(
            "storage.wal_enabled",
            "must stay true with log: kafka; what files and sources set aside goes to the local log",
        );
    }
    if !settings.sinks.is_empty() {
        say(
            "sinks",
            "follow the local log, which has no requests with log: kafka; feed them from an instance with log: local",
        );
    }
    if !settings.routes.is_empty() {
        say(
            "routes",
            "follow the local log, which has no requests with log: kafka; feed them from an instance with log: local",
        );
    }
    for name in log.properties.keys().filter(|name| LOG_PROPERTIES.contains(&name.as_str())) {
        let message = "is the server's own; what is acknowledged depends on it";
        problems.push(Problem::new(format!("kafka.log.properties.{name}"), message));
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Inputs};

    fn load(file: &str) -> Result<Config, String> {
        let file = Some(("lakegate.json".to_owned(), file.to_owned()));
        let environment = Vec::new();
        Config::load(Inputs { file, environment, ..Inputs::default() }).map_err(|problems| problems.to_string())
    }

    #[test]
    fn what_does_not_go_with_a_shared_log_is_named() {
        for (more, part) in [
            (r#""kafka": {}"#, "kafka.log.brokers"),
            (r#""kafka": { "log": { "brokers": "a:1", "topic": "^all" } }"#, "kafka.log.topic"),
            (r#""kafka": { "log": { "brokers": "a:1" } }, "storage": { "wal_enabled": false }"#, "storage.wal_enabled"),
            (r#""kafka": { "log": { "brokers": "a:1", "properties": { "acks": "1" } } }"#, "server's own"),
            (
                r#""kafka": { "log": { "brokers": "a:1", "security": { "protocol": "sasl_ssl" } } }"#,
                "kafka.log.security.user",
            ),
        ] {
            let found = load(&format!(r#"{{ "log": "kafka", {more} }}"#)).unwrap_err();
            assert!(found.contains(part), "{more}: {found}");
        }
        assert!(load(r#"{ "log": "kafka", "kafka": { "log": { "brokers": "a:1" } } }"#).is_ok());
        assert!(load(r#"{ "kafka": { "log": { "topic": "" } } }"#).is_ok());
    }
}
