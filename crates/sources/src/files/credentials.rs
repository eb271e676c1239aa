//! Whether what a job or a watch was begun with still holds.
//!
//! Credentials are looked at again when work of an earlier process is taken up, and every few seconds: work of an API key
//! that is revoked, over, or that may do something else since, and that of a token or a certificate whose time is over or
//! whose key or name is no longer known, is ended for good. Who wants a watch to outlive a token begins it with a key.

use std::sync::Arc;

use lakegate_access::{Access, RECHECK_EVERY, Shown, StillHolds};
use lakegate_model::TenantId;

use super::imports::Inner;
use super::job::{Job, JobProblem, JobState};
use super::request::Asker;

impl Asker {
    /// What it showed.
    pub(super) fn shown(&self) -> Option<Box<Shown>> {
        self.principal.as_deref().map(|principal| Box::new(Shown::by(principal)))
    }

    /// Who asked an earlier process; none if what it showed no longer holds.
    pub(super) fn again(tenant: TenantId, shown: Option<&Shown>, access: &Access) -> Option<Self> {
        let principal = match shown.map(|shown| access.holds_again(shown)) {
            None | Some(StillHolds::NotAsked) => None,
            Some(StillHolds::Yes(principal)) if principal.tenant == tenant => Some(principal),
            Some(StillHolds::Yes(_) | StillHolds::No) => return None,
        };
        Some(Self { tenant, principal, correlation_id: None })
    }

    fn holds(&self, access: &Access) -> bool {
        self.principal.as_deref().is_none_or(|principal| access.still_holds(principal))
    }
}

impl Job {
    /// What began it no longer holds.
    pub(super) fn end_without_credentials(&self) {
        let reason = "the credentials that began it are revoked or over, or may do something else since; begin it anew, \
                      with an API key where it is to go on for long";
        tracing::warn!(job = %self.id, tenant = self.asker.tenant.as_str(), "an import or a watch ends with its credentials");
        self.tell_problem(JobProblem { file: String::new(), row: None, reason: reason.to_owned() });
        self.cancel.cancel();
    }
}

/// Ends the work of credentials that no longer hold, until the process ends.
pub(super) async fn look_after(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(RECHECK_EVERY) => {}
        }
        let access = &inner.options.access;
        let jobs: Vec<_> = inner.jobs.lock().values().cloned().collect();
        for job in jobs {
            if job.state() == JobState::Running && !job.cancel.is_cancelled() && !job.asker.holds(access) {
                job.end_without_credentials();
            }
        }
        let watches: Vec<_> = inner.watches.lock().values().cloned().collect();
        for watch in watches.into_iter().filter(|watch| !watch.job().asker.holds(access)) {
            watch.job().end_without_credentials();
            inner.watches.lock().remove(&watch.job().id);
            if let Err(error) = watch.end() {
                tracing::error!(watch = %watch.job().id, %error, "a watch could not be forgotten; it is looked at again at the next start");
            }
        }
    }
}
