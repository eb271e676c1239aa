//! Opens the consumers that the configuration declares.

use std::sync::Arc;

use lakegate_env::{Clock, Random, RealDisk, SystemRandom};
use lakegate_ingest::Gate;
use lakegate_sinks::{ChannelState, Confirmations, Consumers, ConsumersOptions, SharedSettings};
use lakegate_sources::websocket::Bus;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ServeError;
use crate::config::Config;

/// Confirmations that wait for Redis.
const CONFIRMATIONS: usize = 16 << 10;

/// Shares confirmations with the other instances, where they share a Redis. Returns how the channel is.
pub(super) fn share_confirmations(
    config: &Config,
    bus: &Arc<Bus>,
    stop: &CancellationToken,
) -> Result<Option<Arc<Mutex<ChannelState>>>, ServeError> {
    let redis = &config.settings.duplicates.redis;
    if redis.url.is_empty() {
        return Ok(None);
    }
    let confirmations = Confirmations::open(redis.url.reveal(), format!("{}confirmations", redis.prefix));
    let confirmations = confirmations.map_err(ServeError::Consumers)?;
    let state = confirmations.state();
    let (outgoing, incoming) = mpsc::channel(CONFIRMATIONS);
    bus.relay_to(SystemRandom.next_u64(), outgoing);
    let (bus, stop) = (bus.clone(), stop.clone());
    tokio::spawn(confirmations.run(incoming, move |message| bus.hear(message), stop));
    Ok(Some(state))
}

pub(super) fn open(config: &Config, gate: &Gate, clock: Arc<dyn Clock>) -> Result<Consumers, ServeError> {
    let dir = config.data_dir().join("consumers");
    let consumers: Vec<_> = config.settings.consumers().collect();
    if !consumers.is_empty() && !config.settings.storage.wal_enabled {
        return Err(ServeError::Consumers(
            "sinks and routes follow the log, and storage.wal_enabled is false; set it to true".to_owned(),
        ));
    }
    let shared = SharedSettings { hosts: config.settings.limits.downstream.host_rules() };
    let options =
        ConsumersOptions { gate: gate.clone(), disk: Arc::new(RealDisk), clock, dir: dir.clone(), consumers, shared };
    Consumers::open(options).map_err(|error| ServeError::Consumers(format!("{}: {error}", dir.display())))
}
