//! What a table's properties say about one log.
//!
//! | property | value |
//! |---|---|
//! | `lakegate.wal.<log>` | the offset below which every record of the table is in it |
//! | `lakegate.epoch.<log>` | `<epoch>:<instance>` of the last writer |
//! | `lakegate.rows.<log>` | rows committed so far |
//! | `lakegate.commit.<log>` | the id of the last commit |
//! | `lakegate.count.<name>` | a counter; of no log |
//!
//! `<log>` is the log's id; for a partition other than 0, `.<partition>` follows. The keys stay the same for ever.

use std::collections::HashMap;

use lakegate_model::LogId;

use crate::options::Writer;

/// What counters' properties begin with.
pub(crate) const COUNTERS: &str = "lakegate.count.";

/// The properties' names for one log and partition.
pub(crate) struct LogKeys {
    pub(crate) wal: String,
    pub(crate) epoch: String,
    pub(crate) rows: String,
    pub(crate) commit: String,
}

impl LogKeys {
    pub(crate) fn new(writer: &Writer) -> Self {
        Self::of(writer.log, writer.partition)
    }

    pub(crate) fn of(log: LogId, partition: u32) -> Self {
        let log = if partition == 0 { log.to_string() } else { format!("{log}.{partition}") };
        Self {
            wal: format!("lakegate.wal.{log}"),
            epoch: format!("lakegate.epoch.{log}"),
            rows: format!("lakegate.rows.{log}"),
            commit: format!("lakegate.commit.{log}"),
        }
    }
}

/// What the properties say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogState {
    pub(crate) absorbed: Option<u64>,
    pub(crate) epoch: Option<(u64, String)>,
    pub(crate) rows: u64,
}

impl LogState {
    /// Reads them.
    ///
    /// # Errors
    /// One of them is not what we write: never guessed at.
    pub(crate) fn read(properties: &HashMap<String, String>, keys: &LogKeys) -> Result<Self, String> {
        let number = |key: &str| -> Result<Option<u64>, String> {
            let parse = |text: &String| {
                text.parse().map_err(|_| format!("the table's property {key} is {text:?}, not a number; restore it"))
            };
            properties.get(key).map(parse).transpose()
        };
        let epoch = match properties.get(&keys.epoch) {
            None => None,
            Some(text) => {
                let wrong =
                    || format!("the table's property {} is {text:?}, not <epoch>:<instance>; restore it", keys.epoch);
                let (epoch, instance) = text.split_once(':').ok_or_else(wrong)?;
                Some((epoch.parse().map_err(|_| wrong())?, instance.to_owned()))
            }
        };
        Ok(Self { absorbed: number(&keys.wal)?, epoch, rows: number(&keys.rows)?.unwrap_or(0) })
    }
}
