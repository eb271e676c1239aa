//! The settings of Kafka sources, and the environment variables that alone make one.

use std::collections::BTreeMap;

use lakegate_model::{StreamName, TenantId};
use lakegate_sources::kafka::OWN_PROPERTIES;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::kafka_log::KafkaLogSettings;
use super::layers::Layers;
use super::problem::{Origin, Problem};
use super::secret::Secret;
use super::units::Period;

/// Kafka topics to read. `KAFKA_BROKERS` and `KAFKA_TOPIC` in the environment, with `KAFKA_GROUP_ID`, `BATCH_SIZE` and
/// `FLUSH_INTERVAL_SEC` where wanted, make a source for the stream `service_events_raw` where none is set here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Kafka {
    /// One entry for each topic, or pattern of topics.
    pub(crate) sources: Vec<KafkaSource>,
    /// The topic that requests are written to with `log: kafka`.
    pub(crate) log: KafkaLogSettings,
}

/// A topic, or a pattern of topics, and the stream that its records go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KafkaSource {
    /// The source's name. The table keeps its positions under it: never change it. Two sources have two names.
    pub(crate) name: String,
    /// The brokers: `host:port`, with commas between.
    pub(crate) brokers: String,
    /// The topic; with `^` at its beginning a pattern, such as `^events-.*`.
    pub(crate) topic: String,
    /// The consumer group. Instances of one group share the partitions.
    pub(crate) group_id: String,
    /// The tenant whose records they become.
    pub(crate) tenant: String,
    /// The stream that takes the records.
    pub(crate) stream: String,
    /// What the values are.
    pub(crate) format: KafkaFormat,
    /// The schema registry, for `avro` and `protobuf`, and for JSON with a schema's number before it.
    pub(crate) registry: KafkaRegistry,
    /// So many records are handed on at once, or more while there is a backlog.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) batch_size: u32,
    /// Fewer are handed on when the first has waited so long. The table is committed as `ingestion.commit_bytes` and
    /// `ingestion.flush_interval` say.
    pub(crate) flush_interval: Period,
    /// Where a topic begins that the table knows nothing of. Where it knows the topic, its position decides.
    pub(crate) start: KafkaStart,
    /// With `start: timestamp`: the time, in milliseconds since 1970.
    pub(crate) start_timestamp_ms: u64,
    /// What is done where the table's position means nothing to the topic: it was deleted and made anew, or records were
    /// removed before they were read.
    pub(crate) on_lost_position: KafkaLost,
    /// How the brokers are reached: TLS and credentials.
    pub(crate) security: KafkaSecurity,
    /// Further settings of the client library (librdkafka), by its names. An empty text takes back what this server sets.
    pub(crate) properties: BTreeMap<String, Secret>,
}

impl Default for KafkaSource {
    fn default() -> Self {
        Self {
            name: "kafka".into(),
            brokers: String::new(),
            topic: String::new(),
            group_id: "bronze-ingestion".into(),
            tenant: "default".into(),
            stream: "service_events_raw".into(),
            format: KafkaFormat::Json,
            registry: KafkaRegistry::default(),
            batch_size: 100,
            flush_interval: Period::from_secs(5),
            start: KafkaStart::Earliest,
            start_timestamp_ms: 0,
            on_lost_position: KafkaLost::Stop,
            security: KafkaSecurity::default(),
            properties: BTreeMap::new(),
        }
    }
}

/// What the values of records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KafkaFormat {
    /// JSON objects.
    Json,
    /// Avro, with a schema registry.
    Avro,
    /// Protocol Buffers, with a schema registry.
    Protobuf,
    /// Bytes, for a stream that does not look into them.
    Raw,
}

/// A schema registry with the REST interface that Confluent's has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KafkaRegistry {
    /// Its address, such as `http://registry:8081`. Empty: none.
    pub(crate) url: String,
    /// The user, where it asks for one.
    pub(crate) user: String,
    /// The user's password.
    pub(crate) password: Secret,
}

/// Where a topic begins that the table knows nothing of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KafkaStart {
    /// At its first record.
    Earliest,
    /// At its end.
    Latest,
    /// At `start_timestamp_ms`.
    Timestamp,
    /// Nowhere: the source stops and says so.
    Table,
}

/// What is done where the table's position means nothing to the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KafkaLost {
    /// The source stops and says so.
    Stop,
    /// It goes on at the first record that is there.
    Earliest,
    /// It goes on at the end.
    Latest,
}

/// How the brokers are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KafkaSecurity {
    /// What is spoken.
    pub(crate) protocol: KafkaProtocol,
    /// How credentials are given: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub(crate) mechanism: String,
    /// The user.
    pub(crate) user: String,
    /// The user's password.
    pub(crate) password: Secret,
    /// The certificates of the authorities that are trusted, in a PEM file; empty: those of the system.
    pub(crate) ca_file: String,
    /// A certificate to show, in a PEM file.
    pub(crate) certificate_file: String,
    /// Its key, in a PEM file.
    pub(crate) key_file: String,
    /// The key's password.
    pub(crate) key_password: Secret,
}

impl Default for KafkaSecurity {
    fn default() -> Self {
        Self {
            protocol: KafkaProtocol::Plaintext,
            mechanism: "PLAIN".into(),
            user: String::new(),
            password: Secret::default(),
            ca_file: String::new(),
            certificate_file: String::new(),
            key_file: String::new(),
            key_password: Secret::default(),
        }
    }
}

/// What is spoken with brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KafkaProtocol {
    /// Neither TLS nor credentials.
    Plaintext,
    /// TLS.
    Ssl,
    /// Credentials without TLS.
    SaslPlaintext,
    /// Both.
    SaslSsl,
}

impl KafkaProtocol {
    fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    fn has_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    fn has_credentials(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

impl KafkaSecurity {
    /// The client library's settings that follow from these, and further ones behind them.
    pub(crate) fn properties(&self, further: &BTreeMap<String, Secret>) -> Vec<(String, String)> {
        let mut all = vec![("security.protocol", self.protocol.name())];
        if self.protocol.has_credentials() {
            all.push(("sasl.mechanism", &self.mechanism));
            all.push(("sasl.username", &self.user));
            all.push(("sasl.password", self.password.reveal()));
        }
        let ca_file = match self.ca_file.as_str() {
            // The client looks where systems keep them.
            "" if self.protocol.has_tls() => "probe",
            file => file,
        };
        for (name, value) in [
            ("ssl.ca.location", ca_file),
            ("ssl.certificate.location", &self.certificate_file),
            ("ssl.key.location", &self.key_file),
            ("ssl.key.password", self.key_password.reveal()),
        ] {
            if !value.is_empty() {
                all.push((name, value));
            }
        }
        all.extend(further.iter().map(|(name, value)| (name.as_str(), value.reveal())));
        all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Whether the protocol asks for credentials that are not there.
    pub(crate) fn lacks_user(&self) -> bool {
        self.protocol.has_credentials() && self.user.is_empty()
    }
}

impl KafkaSource {
    /// The client library's settings that follow from these.
    pub(crate) fn client_properties(&self) -> Vec<(String, String)> {
        self.security.properties(&self.properties)
    }

    fn problems(&self, path: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut say = |member: &str, message: String| problems.push(Problem::new(format!("{path}.{member}"), message));
        if self.brokers.trim().is_empty() {
            say("brokers", "is empty; write \"host:9092\", more with commas between".to_owned());
        }
        if self.topic.is_empty() {
            say("topic", "is empty; write the topic's name, or a pattern such as \"^events-.*\"".to_owned());
        }
        if self.group_id.is_empty() {
            say("group_id", "is empty; write the consumer group's name".to_owned());
        }
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(is_plain) {
            say("name", format!("{:?} is no name: 1 to 64 of a-z, 0-9, '-' and '_'", self.name));
        }
        if let Err(error) = TenantId::new(&self.tenant) {
            say("tenant", error.to_string());
        }
        if let Err(error) = StreamName::new(&self.stream) {
            say("stream", error.to_string());
        }
        let needs_registry = matches!(self.format, KafkaFormat::Avro | KafkaFormat::Protobuf);
        let url = &self.registry.url;
        if needs_registry && url.is_empty() {
            say("registry.url", "is empty; avro and protobuf need the schema registry's address".to_owned());
        }
        if !url.is_empty() && (!url.starts_with("http://") && !url.starts_with("https://") || url.contains('@')) {
            say("registry.url", "is not \"http://host:port\" or \"https://host\", without credentials".to_owned());
        }
        if self.flush_interval < Period::from_millis(10) {
            say("flush_interval", format!("found {}, expected at least 10ms", self.flush_interval));
        }
        if self.start == KafkaStart::Timestamp && self.start_timestamp_ms == 0 {
            say("start_timestamp_ms", "is missing; write the time to start at, in milliseconds since 1970".to_owned());
        }
        if self.security.lacks_user() {
            say("security.user", "is empty, and the protocol asks for credentials".to_owned());
        }
        for name in self.properties.keys().filter(|name| OWN_PROPERTIES.contains(&name.as_str())) {
            say(&format!("properties.{name}"), "is the server's own; positions depend on it".to_owned());
        }
        problems
    }
}

/// Finds what is wrong with these settings.
pub(crate) fn check(kafka: &Kafka, problems: &mut Vec<Problem>) {
    for (i, source) in kafka.sources.iter().enumerate() {
        let path = format!("kafka.sources[{i}]");
        problems.extend(source.problems(&path));
        if kafka.sources.iter().take(i).any(|other| other.name == source.name) {
            let message = format!("{:?} is the name of another source; give each its own", source.name);
            problems.push(Problem::new(format!("{path}.name"), message));
        }
    }
}

/// Makes a source of the documented variables, where no other is set. Returns what should be said.
pub(crate) fn add_environment(layers: &mut Layers, environment: &[(String, String)]) -> Option<String> {
    let variable = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let (brokers, topic) = (variable("KAFKA_BROKERS")?, variable("KAFKA_TOPIC")?);
    let set = layers.tree.pointer("/kafka/sources").and_then(Value::as_array);
    if set.is_some_and(|sources| !sources.is_empty()) {
        return Some("KAFKA_BROKERS and KAFKA_TOPIC are not looked at: kafka.sources is set".to_owned());
    }
    let size = variable("BATCH_SIZE").map(|size| size.parse::<u32>().map_or_else(|_| size.into(), Value::from));
    let interval = variable("FLUSH_INTERVAL_SEC").map(|seconds| format!("{seconds}s").into());
    let members = [
        ("brokers", Some(brokers.into())),
        ("topic", Some(topic.into())),
        ("group_id", variable("KAFKA_GROUP_ID").map(Value::from)),
        ("batch_size", size),
        ("flush_interval", interval),
    ];
    let members = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let source: serde_json::Map<String, Value> = members.collect();
    let origin = Origin::Environment("KAFKA_TOPIC".to_owned());
    layers.set(&["kafka".to_owned(), "sources".to_owned()], json!([source]), &origin);
    None
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Inputs};

    fn load(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let file = Some(("lakegate.json".to_owned(), file.to_owned()));
        Config::load(Inputs { file, environment, ..Inputs::default() }).map_err(|problems| problems.to_string())
    }

    #[test]
    fn the_documented_variables_alone_make_a_source_for_the_bronze_table() {
        let variables = [
            ("KAFKA_BROKERS", "localhost:19092"),
            ("KAFKA_TOPIC", "pgr-events"),
            ("KAFKA_GROUP_ID", "bronze"),
            ("BATCH_SIZE", "50"),
            ("FLUSH_INTERVAL_SEC", "2"),
        ];
        let config = load("{}", &variables).unwrap();
        let [source] = config.settings.kafka.sources.as_slice() else { panic!("one source") };
        assert_eq!((source.topic.as_str(), source.stream.as_str()), ("pgr-events", "service_events_raw"));
        assert_eq!((source.group_id.as_str(), source.batch_size), ("bronze", 50));
        assert_eq!(source.flush_interval.get(), std::time::Duration::from_secs(2));
        assert!(load("{}", &variables[..1]).unwrap().settings.kafka.sources.is_empty());
        assert!(load("{}", &[variables[0], variables[1], ("BATCH_SIZE", "many")]).unwrap_err().contains("batch_size"));
        let set = load(r#"{ "kafka": { "sources": [{ "brokers": "a:1", "topic": "t" }] } }"#, &variables).unwrap();
        assert_eq!(set.settings.kafka.sources[0].topic, "t");
        assert!(set.warnings[0].contains("not looked at"));
    }

    #[test]
    fn what_is_missing_in_a_source_is_named() {
        for (source, part) in [
            (r#"{ "topic": "t" }"#, "brokers"),
            (r#"{ "brokers": "a:1" }"#, "topic"),
            (r#"{ "brokers": "a:1", "topic": "t", "format": "avro" }"#, "registry.url"),
            (r#"{ "brokers": "a:1", "topic": "t", "start": "timestamp" }"#, "start_timestamp_ms"),
            (r#"{ "brokers": "a:1", "topic": "t", "security": { "protocol": "sasl_ssl" } }"#, "security.user"),
            (r#"{ "brokers": "a:1", "topic": "t", "properties": { "group.id": "x" } }"#, "server's own"),
            (r#"{ "brokers": "a:1", "topic": "t" }, { "brokers": "a:1", "topic": "u" }"#, "another source"),
        ] {
            let found = load(&format!(r#"{{ "kafka": {{ "sources": [{source}] }} }}"#), &[]).unwrap_err();
            assert!(found.contains(part), "{source}: {found}");
        }
    }

    #[test]
    fn s27_passwords_of_brokers_and_registries_are_not_shown() {
        let file = r#"{ "kafka": { "sources": [{ "brokers": "a:1", "topic": "t", "registry": { "password": "hunter2" },
            "security": { "password": "hunter2" }, "properties": { "sasl.password": "hunter2" } }] } }"#;
        let config = load(file, &[]).unwrap();
        let shown = serde_json::to_string(&config.settings).unwrap() + &format!("{:?}", config.settings);
        assert!(!shown.contains("hunter2"));
        let properties = config.settings.kafka.sources[0].client_properties();
        assert!(properties.contains(&("sasl.password".to_owned(), "hunter2".to_owned())));
    }
}
