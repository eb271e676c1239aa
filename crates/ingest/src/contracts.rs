//! The contracts that shaped what is in the log, kept beside it: replay shapes the same bytes the same way, whatever
//! the configuration says by then. One JSON file each, named by the contract's fingerprint, durable before the first
//! frame that names it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use lakegate_env::Disk;
use lakegate_model::Contract;
use parking_lot::Mutex;

use crate::shape::Shaper;

/// A contract that a frame names could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ContractStoreError {
    /// The file is missing or cannot be read.
    #[error("the log has records shaped by the contract {fingerprint:016x}, but {path} cannot be read: {source}")]
    Read {
        /// Which contract.
        fingerprint: u64,
        /// Its file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{path} is not the contract {fingerprint:016x} that its name says; put the file back as it was")]
    Damaged {
        /// Which contract.
        fingerprint: u64,
        /// Its file.
        path: PathBuf,
    },
    /// What a table has grown by cannot be read.
    #[error("what a table has grown by cannot be read from {path}: {reason}; put the file back as it was")]
    Growth {
        /// Its file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The table in the lake does not take the contract.
    #[error(transparent)]
    Lake(#[from] lakegate_lake::LakeError),
    /// The rows in memory could not be closed under their old columns.
    #[error("rows in memory could not be closed: {0}")]
    Rows(#[from] arrow::error::ArrowError),
    /// The file could not be written.
    #[error("cannot keep a contract in {path}: {source}")]
    Write {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

pub(crate) struct ContractStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    ready: Mutex<HashMap<u64, Arc<Shaper>>>,
    /// Files of a folder may need one contract at once: it is written once.
    writing: Mutex<()>,
}

impl ContractStore {
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Self, ContractStoreError> {
        disk.create_dir_all(&dir).map_err(|source| ContractStoreError::Write { path: dir.clone(), source })?;
        Ok(Self { disk, dir, ready: Mutex::default(), writing: Mutex::default() })
    }

    fn path(&self, fingerprint: u64) -> PathBuf {
        self.dir.join(format!("{fingerprint:016x}.json"))
    }

    /// The shaper of a contract; the contract is durable when this returns.
    pub(crate) fn keep(&self, contract: &Contract) -> Result<(u64, Arc<Shaper>), ContractStoreError> {
        let fingerprint = contract.fingerprint();
        if let Some(shaper) = self.ready.lock().get(&fingerprint) {
            return Ok((fingerprint, shaper.clone()));
        }
        let _writing = self.writing.lock();
        let path = self.path(fingerprint);
        if self.disk.read(&path).is_err() {
            let json = serde_json::to_vec_pretty(contract).unwrap_or_default();
            self.disk.write_atomic(&path, &json).map_err(|source| ContractStoreError::Write { path, source })?;
        }
        let shaper = Arc::new(Shaper::new(Arc::new(contract.clone())));
        self.ready.lock().insert(fingerprint, shaper.clone());
        Ok((fingerprint, shaper))
    }

    /// The shaper of the contract that a frame names.
    pub(crate) fn find(&self, fingerprint: u64) -> Result<Arc<Shaper>, ContractStoreError> {
        if let Some(shaper) = self.ready.lock().get(&fingerprint) {
            return Ok(shaper.clone());
        }
        let path = self.path(fingerprint);
        let json = self.disk.read(&path).map_err(|source| ContractStoreError::Read {
            fingerprint,
            path: path.clone(),
            source,
        })?;
        let contract: Contract = serde_json::from_slice(&json)
            .ok()
            .filter(|contract: &Contract| contract.fingerprint() == fingerprint)
            .ok_or(ContractStoreError::Damaged { fingerprint, path })?;
        let shaper = Arc::new(Shaper::new(Arc::new(contract)));
        self.ready.lock().insert(fingerprint, shaper.clone());
        Ok(shaper)
    }
}
