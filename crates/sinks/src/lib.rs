//! Consumers of the log that feed other systems: ClickHouse, HTTP services, Kafka, Redis.
//!
//! A consumer reads the log at a position of its own ([`Consumers`]), or the tables for what the log has no more, and
//! keeps the position once what lies before it is delivered.
//!
//! Promises: every record that fits its filter is delivered at least once, under a key that stays the same, in order for
//! each order key, or kept among the dead; a system that is down holds up nobody else; memory is bounded. Refuses: hosts
//! that the configuration does not allow, a queue of its own.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        reason = "a failed test is a panic"
    )
)]

mod breaker;
mod channel;
mod clickhouse;
mod condition;
mod confirmations;
mod consumer;
mod consumers;
mod dead;
mod kafka;
mod kept;
mod live;
mod notices;
mod outgoing;
mod record;
mod records;
mod redis;
mod route;
mod settings;
mod sink;
mod source;
mod template;

pub use breaker::BreakerState;
pub use channel::{ChannelSettings, Deliveries, Delivery, channel};
pub use clickhouse::ClickHouseSettings;
pub use condition::{Condition, ConditionError};
pub use confirmations::{ChannelState, Confirmations};
pub use consumer::Goto;
pub use consumers::{ConsumerError, Consumers, ConsumersOptions, Revived};
pub use dead::DeadRecord;
pub use kafka::{KafkaSettings, PROPERTIES as KAFKA_PROPERTIES};
pub use kept::Counts;
pub use live::{ConsumerState, ConsumerStatus};
pub use record::Rows;
pub use redis::RedisSettings;
pub use route::{Body, RouteSettings, Signature};
pub use settings::{
    BatchSettings, BreakerSettings, ConsumerSettings, Filter, RetrySettings, SharedSettings, Start, Target, What,
};
pub use template::{Json, TemplateError, Text};
