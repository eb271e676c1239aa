//! Event keys of imported rows in the window that several instances share: claimed as the rows are read, held for their
//! commit, confirmed after it.
//!
//! Who waits for another's claim holds none that a commit could confirm: what was taken before is committed first, and of
//! the piece that waits nothing is claimed. So two imports never wait for each other, whichever instances they are in.

use std::time::Duration;

use super::{Import, ImportError};
use crate::duplicates::{ClaimError, Importer, stream_hash};
use crate::gate::Inner;
use crate::streams::Stream;

/// How often, and how long, an import waits for claims of others.
const ATTEMPTS: u32 = 1200;
const BETWEEN: Duration = Duration::from_millis(100);
/// A commit is due when so large a part of its claims' time is over.
const CLAIMS_SHARE: u64 = 3;

/// An importer of the stream's rows, where its window is shared.
pub(super) fn importer_of(inner: &Inner, stream: &Stream) -> Option<Importer> {
    let shared = inner.shared.as_ref().filter(|_| stream.window.is_some())?;
    Some(shared.importer(stream_hash(&stream.key), stream.shaper.contract.duplicate_window_ms))
}

impl Import {
    /// Claims the keys of a piece's rows that were found new here: those of `flags` that are false. Of these the flags of
    /// rows become true that another instance has stored.
    pub(super) async fn claim_elsewhere(
        &mut self,
        keys: &[Option<u128>],
        flags: &mut [bool],
        now_us: i64,
    ) -> Result<(), ImportError> {
        let Some(importer) = self.importer.clone() else { return Ok(()) };
        let new: Vec<(usize, u128)> = keys
            .iter()
            .zip(&*flags)
            .enumerate()
            .filter_map(|(at, (key, known))| Some((at, (!known).then_some((*key)?)?)))
            .collect();
        let asked: Vec<u128> = new.iter().map(|(_, key)| *key).collect();
        let stored = match self.claim_in_steps(&importer, &asked).await {
            Ok(Some(stored)) => stored,
            Ok(None) => {
                metrics::counter!("lakegate_records_unchecked_total").increment(asked.len() as u64);
                return Ok(());
            }
            Err(error) => {
                self.stream.claims.release(&asked);
                return Err(error);
            }
        };
        let mut theirs = Vec::new();
        for ((at, key), _) in new.iter().zip(stored).filter(|(_, stored)| *stored) {
            if let Some(flag) = flags.get_mut(*at) {
                *flag = true;
            }
            theirs.push(*key);
        }
        if !theirs.is_empty() {
            super::commit::note_keys(&self.stream, &theirs, now_us);
        }
        Ok(())
    }

    async fn claim_in_steps(&mut self, importer: &Importer, keys: &[u128]) -> Result<Option<Vec<bool>>, ImportError> {
        let mut attempt = 0;
        loop {
            let inner = self.gate.inner.clone();
            let Some(shared) = inner.shared.as_ref().filter(|_| !keys.is_empty()) else { return Ok(None) };
            match shared.claim_rows(importer, keys).await {
                Ok(stored) => return Ok(stored),
                Err(ClaimError::Busy) if attempt < ATTEMPTS => {}
                Err(error) => return Err(ImportError::Lake(error.to_string())),
            }
            if !self.claimed.is_empty() {
                self.commit_part().await?;
            }
            attempt += 1;
            tokio::time::sleep(BETWEEN).await;
        }
    }

    /// Right before a commit: the claims of its rows still stand, and do so for as long again.
    pub(super) async fn hold_elsewhere(&self) -> Result<(), ImportError> {
        let (Some(importer), Some(shared)) = (&self.importer, &self.gate.inner.shared) else { return Ok(()) };
        match shared.hold_rows(importer, &self.claimed).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(ImportError::Closed(
                "another instance took event keys of these rows while they were written (duplicates.redis.claim was over); \
                 the file is read again from its last commit"
                    .to_owned(),
            )),
            Err(error) => Err(ImportError::Lake(error.to_string())),
        }
    }

    /// After a commit: others are told that its rows are stored. Gives whether they were told now.
    pub(super) async fn confirm_elsewhere(&self, keys: &[u128]) -> bool {
        match (&self.importer, &self.gate.inner.shared) {
            (Some(importer), Some(shared)) => shared.confirm_rows(importer, keys).await,
            _ => true,
        }
    }

    /// What was claimed since the last commit is given back.
    pub(super) fn release_elsewhere(&self) {
        if let (Some(importer), Some(shared)) = (&self.importer, &self.gate.inner.shared) {
            shared.release_rows_later(importer, &self.claimed);
        }
    }

    /// After so long what was claimed is to be committed.
    pub(super) fn claims_end_after_us(&self) -> u64 {
        let shared = self.gate.inner.shared.as_ref().filter(|_| self.importer.is_some() && !self.claimed.is_empty());
        shared.map_or(u64::MAX, |shared| shared.claims_last_us() / CLAIMS_SHARE)
    }
}
