//! Starts the Kafka sources that the configuration names, and the log that instances share in Kafka.

use lakegate_ingest::Gate;
use lakegate_model::{StreamName, TenantId};
use lakegate_sources::kafka::log::{KafkaLog, KafkaLogs, LogOnLost};
use lakegate_sources::kafka::{Format, KafkaSource, KafkaSources, OnLostPosition, RegistrySettings, Start};
use tokio::runtime::Handle;

use super::ServeError;
use crate::config::{Config, KafkaFormat, KafkaLogLost, KafkaLost, KafkaSourceSettings, KafkaStart, LogKind};

/// `log` tells this process from others in the group, over restarts.
pub(crate) fn start(config: &Config, gate: &Gate, log: &str) -> Result<KafkaSources, ServeError> {
    let sources: Result<Vec<_>, _> = config.settings.kafka.sources.iter().map(|source| one(source, log)).collect();
    let sources = sources.map_err(|error| ServeError::Broken(error.to_string()))?;
    KafkaSources::start(sources, gate, &Handle::current()).map_err(ServeError::Runtime)
}

/// Brings requests to the topic that instances share, where the configuration says so.
pub(crate) fn start_log(config: &Config, gate: &Gate, log: &str) -> Result<KafkaLogs, ServeError> {
    if config.settings.log == LogKind::Local {
        return Ok(KafkaLogs::none());
    }
    let settings = &config.settings.kafka.log;
    let topic = KafkaLog {
        brokers: settings.brokers.clone(),
        topic: settings.topic.clone(),
        group_id: settings.group_id.clone(),
        partitions: settings.partitions,
        replication: settings.replication,
        retention: settings.retention.get(),
        writes: settings.writer,
        timeout: settings.timeout.get(),
        remember: settings.remember.get(),
        on_lost: match settings.on_lost_position {
            KafkaLogLost::Stop => LogOnLost::Stop,
            KafkaLogLost::Earliest => LogOnLost::Earliest,
        },
        properties: settings.client_properties(),
        instance: format!("lakegate-{log}-log"),
    };
    KafkaLogs::start(topic, gate, &Handle::current())
        .map_err(|why| ServeError::Broken(format!("kafka.log cannot be used: {why}")))
}

fn one(settings: &KafkaSourceSettings, log: &str) -> Result<KafkaSource, lakegate_model::NameError> {
    let registry = &settings.registry;
    let registry = (!registry.url.is_empty()).then(|| RegistrySettings {
        url: registry.url.clone(),
        user: registry.user.clone(),
        password: registry.password.reveal().to_owned(),
    });
    Ok(KafkaSource {
        name: settings.name.clone(),
        brokers: settings.brokers.clone(),
        topic: settings.topic.clone(),
        group_id: settings.group_id.clone(),
        tenant: TenantId::new(&settings.tenant)?,
        stream: StreamName::new(&settings.stream)?,
        format: match settings.format {
            KafkaFormat::Json => Format::Json,
            KafkaFormat::Avro => Format::Avro,
            KafkaFormat::Protobuf => Format::Protobuf,
            KafkaFormat::Raw => Format::Raw,
        },
        registry,
        batch_size: usize::try_from(settings.batch_size).unwrap_or(usize::MAX),
        flush_interval: settings.flush_interval.get(),
        start: match settings.start {
            KafkaStart::Earliest => Start::Earliest,
            KafkaStart::Latest => Start::Latest,
            KafkaStart::Timestamp => Start::Timestamp(i64::try_from(settings.start_timestamp_ms).unwrap_or(i64::MAX)),
            KafkaStart::Table => Start::Table,
        },
        on_lost_position: match settings.on_lost_position {
            KafkaLost::Stop => OnLostPosition::Stop,
            KafkaLost::Earliest => OnLostPosition::Earliest,
            KafkaLost::Latest => OnLostPosition::Latest,
        },
        properties: settings.client_properties(),
        instance: format!("lakegate-{log}-{}", settings.name),
    })
}
