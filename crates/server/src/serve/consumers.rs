//! Opens the consumers that the configuration declares.

use std::sync::Arc;

use lakegate_env::{Clock, RealDisk};
use lakegate_ingest::Gate;
use lakegate_sinks::{Consumers, ConsumersOptions, SharedSettings};

use super::ServeError;
use crate::config::Config;

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
