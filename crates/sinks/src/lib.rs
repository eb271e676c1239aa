//! Consumers of the log that feed other systems: ClickHouse, HTTP routes, Kafka, Redis.
