//! What is known of a request by its sender and size alone: whether it comes too early, and where it is worked on.

use lakegate_access::{OverQuota, Principal};
use tokio::runtime::Handle;

use crate::api::SubmitError;
use crate::gate::Gate;

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
