//! Whether what a job or a watch was begun with still holds.
//!
//! An API key is looked up again when work of an earlier process is taken up, and every few seconds: work of a key that
//! is revoked, over, or that may do something else since is ended for good. A token and a certificate say who asked at
//! the time; what they began is ended by whoever may write for the tenant.

use std::sync::Arc;

use lakegate_access::{KeyNow, Principal, Proof, RECHECK_EVERY};
use lakegate_model::TenantId;

use super::imports::Inner;
use super::job::{Job, JobProblem, JobState};
use super::request::Asker;

/// Tells what became of an API key, by its id.
pub type KeyLookup = Arc<dyn Fn(&str) -> KeyNow + Send + Sync>;

impl Asker {
    /// The id of the API key that it showed.
    pub(super) fn key(&self) -> Option<Box<str>> {
        match &self.principal.as_deref()?.proof {
            Proof::ApiKey(id) => Some(Box::from(&**id)),
            Proof::Token(_) | Proof::Certificate => None,
        }
    }

    /// Who asked an earlier process; none if the key that it showed no longer holds.
    pub(super) fn again(tenant: TenantId, key: Option<&str>, keys: &KeyLookup) -> Option<Self> {
        let principal = match key.map(|key| keys(key)) {
            None | Some(KeyNow::NotAsked) => None,
            Some(KeyNow::Holds(principal)) if principal.tenant == tenant => Some(principal),
            Some(KeyNow::Holds(_) | KeyNow::Gone) => return None,
        };
        Some(Self { tenant, principal, correlation_id: None })
    }

    fn holds(&self, keys: &KeyLookup) -> bool {
        let (Some(principal), Some(key)) = (&self.principal, self.key()) else { return true };
        match keys(&key) {
            KeyNow::NotAsked => true,
            KeyNow::Gone => false,
            KeyNow::Holds(now) => is_same(principal, &now),
        }
    }
}

fn is_same(before: &Principal, now: &Principal) -> bool {
    before.tenant == now.tenant && before.grants == now.grants
}

impl Job {
    /// The key that began it no longer holds.
    pub(super) fn end_without_key(&self) {
        let reason =
            "the API key that began it is revoked or over, or may do something else since; begin it anew".to_owned();
        tracing::warn!(job = %self.id, tenant = self.asker.tenant.as_str(), "an import or a watch ends with its API key");
        self.tell_problem(JobProblem { file: String::new(), row: None, reason });
        self.cancel.cancel();
    }
}

/// Ends the work of keys that no longer hold, until the process ends.
pub(super) async fn look_after(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(RECHECK_EVERY) => {}
        }
        let keys = &inner.options.keys;
        let jobs: Vec<_> = inner.jobs.lock().values().cloned().collect();
        for job in jobs {
            if job.state() == JobState::Running && !job.cancel.is_cancelled() && !job.asker.holds(keys) {
                job.end_without_key();
            }
        }
        let watches: Vec<_> = inner.watches.lock().values().cloned().collect();
        for watch in watches.into_iter().filter(|watch| !watch.job().asker.holds(keys)) {
            watch.job().end_without_key();
            inner.watches.lock().remove(&watch.job().id);
            if let Err(error) = watch.end() {
                tracing::error!(watch = %watch.job().id, %error, "a watch could not be forgotten; it is looked at again at the next start");
            }
        }
    }
}
