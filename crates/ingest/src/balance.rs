//! The balance: for each tenant and stream, what came in and what became of it, kept over restarts.
//!
//! Every frame of the log says how many records of which stream it brought and what became of them. The file
//! `balance.json` holds the sums up to an offset; what the log holds from there on is added when it is replayed. The
//! file is written before the log is trimmed, and only with sums that are durable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lakegate_env::Disk;
use lakegate_model::{LogId, StreamKey, StreamName, Tally, TenantId};
use serde::{Deserialize, Serialize};

/// The sums of all frames below an offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    pub(crate) upto_offset: u64,
    pub(crate) tallies: BTreeMap<StreamKey, Tally>,
}

#[derive(Serialize, Deserialize)]
struct File {
    log: LogId,
    upto_offset: u64,
    streams: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    tenant: TenantId,
    stream: StreamName,
    tally: Tally,
}

/// The balance could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum BalanceError {
    /// The file holds something else, or belongs to another log.
    #[error("{path} is not the balance of this log: {reason}; restore the file that belongs to it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It could not be written.
    #[error("cannot keep the balance in {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Balance {
    /// Reads the file; a log that was never trimmed has none.
    pub(crate) fn load(disk: &dyn Disk, path: &Path, log: LogId) -> Result<Self, BalanceError> {
        let bytes = match disk.read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(BalanceError::Damaged { path: path.to_owned(), reason: error.to_string() }),
        };
        let damaged = |reason: String| BalanceError::Damaged { path: path.to_owned(), reason };
        let file: File = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if file.log != log {
            return Err(damaged(format!("it is of the log {}, this is {log}", file.log)));
        }
        let tallies =
            file.streams.into_iter().map(|e| (StreamKey { tenant: e.tenant, stream: e.stream }, e.tally)).collect();
        Ok(Self { upto_offset: file.upto_offset, tallies })
    }

    /// Writes the file so that either the old or the new one is there after a crash.
    pub(crate) fn store(&self, disk: &dyn Disk, path: &Path, log: LogId) -> Result<(), BalanceError> {
        let entry = |(key, tally): (&StreamKey, &Tally)| Entry {
            tenant: key.tenant.clone(),
            stream: key.stream.clone(),
            tally: *tally,
        };
        let file = File { log, upto_offset: self.upto_offset, streams: self.tallies.iter().map(entry).collect() };
        let json = serde_json::to_vec_pretty(&file).unwrap_or_default();
        disk.write_atomic(path, &json).map_err(|source| BalanceError::Write { path: path.to_owned(), source })
    }

    pub(crate) fn add(&mut self, key: &StreamKey, tally: &Tally) {
        match self.tallies.get_mut(key) {
            Some(sum) => sum.add(tally),
            None => {
                self.tallies.insert(key.clone(), *tally);
            }
        }
    }
}
