//! What is known of a request by its sender and size alone: whether it comes too early, and where it is worked on.

use lakegate_access::{OverQuota, Principal};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::api::{Submission, SubmissionOutcome, SubmitError};
use crate::gate::Gate;
use crate::sequence::Turn;

/// A request of so many bytes takes long: its work may be done elsewhere.
const ASIDE_BYTES: usize = 32 * 1024;

impl Gate {
    /// Has requests that take long worked on by the threads of `aside`.
    pub fn work_aside(&self, aside: Handle) {
        let _ = self.inner.aside.set(aside);
    }

    /// Refuses a request of so many bytes before it is looked at, where its sender was told to come back later.
    ///
    /// # Errors
    /// What it was told, as [`SubmitError::OverQuota`].
    pub fn check_early(&self, principal: Option<&Principal>, bytes: usize) -> Result<(), SubmitError> {
        match (self.inner.quotas.get(), principal) {
            (Some(quotas), Some(principal)) => quotas.check_early(principal, bytes as u64).map_err(over_quota),
            _ => Ok(()),
        }
    }

    /// Takes a request where it is to be worked on.
    pub(crate) async fn take(&self, submission: Submission, mut turn: Turn) -> Result<SubmissionOutcome, SubmitError> {
        let inner = self.inner.clone();
        if let Some(shared) = &self.inner.shared {
            if submission.in_order {
                turn.among_all = Some(shared.turns.clone().lock_owned().await);
            }
            // What is claimed is confirmed or given up, whether or not the sender still waits.
            let task = tokio::spawn(async move { inner.take(&submission, turn).await });
            return task.await.unwrap_or_else(|error| Err(SubmitError::Unavailable { message: error.to_string() }));
        }
        match self.aside(submission.body.len()).filter(|_| !submission.in_order) {
            None => self.inner.take(&submission, turn).await,
            Some(aside) => {
                // It ends with the one who waits for it.
                let task = AbortOnDropHandle::new(aside.spawn(async move { inner.take(&submission, turn).await }));
                task.await.unwrap_or_else(|error| Err(SubmitError::Unavailable { message: error.to_string() }))
            }
        }
    }

    /// Where a request of so many bytes is to be worked on, if not where it is. Its order among others is lost there.
    #[must_use]
    pub fn aside(&self, bytes: usize) -> Option<&Handle> {
        self.inner.aside.get().filter(|_| bytes >= ASIDE_BYTES)
    }
}

pub(crate) fn over_quota(over: OverQuota) -> SubmitError {
    let OverQuota { limit, setting, message, retry_after_ms } = over;
    SubmitError::OverQuota { limit, setting, message, retry_after_ms }
}
