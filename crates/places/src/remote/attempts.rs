//! When to try again, and when to give up.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::error::PlaceError;

/// The longest pause between two attempts that we choose ourselves.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The longest pause that a server may ask for. Who wants more is given up.
const ASKED_PAUSE_MAX: Duration = Duration::from_secs(120);

/// Why one attempt failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Another attempt may do better.
    Again {
        /// What went wrong.
        reason: String,
        /// When the server wants to see us again.
        after: Option<Duration>,
    },
    /// No attempt will.
    Final(PlaceError),
}

impl Failure {
    pub(crate) fn again(reason: impl Into<String>) -> Self {
        Self::Again { reason: reason.into(), after: None }
    }
}

impl From<PlaceError> for Failure {
    fn from(error: PlaceError) -> Self {
        Self::Final(error)
    }
}

/// The attempts of one request.
pub(crate) struct Attempts {
    shared: Arc<Shared>,
    place: String,
    failed: u32,
}

impl Attempts {
    pub(crate) fn new(shared: Arc<Shared>, place: &str) -> Self {
        Self { shared, place: place.to_owned(), failed: 0 }
    }

    /// The last attempt brought something: the count begins anew.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt: exponentially longer, each time between half and the whole of it by chance, so
    /// that many who failed together don't come back together.
    ///
    /// # Errors
    /// There will be none.
    pub(crate) async fn failed(&mut self, failure: Failure) -> Result<(), PlaceError> {
        let (reason, asked) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Again { reason, after } => (reason, after),
        };
        self.failed += 1;
        let give_up =
            |reason: String| PlaceError::Unavailable { place: self.place.clone(), reason, attempts: self.failed };
        if let Some(asked) = asked.filter(|asked| *asked > ASKED_PAUSE_MAX) {
            return Err(give_up(format!("{reason}, and asks to come back in {} s", asked.as_secs())));
        }
        if self.failed >= self.shared.limits.attempts {
            return Err(give_up(reason));
        }
        let longest = self.shared.limits.first_pause.saturating_mul(1 << (self.failed - 1).min(16)).min(PAUSE_MAX);
        let longest_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        let chosen = Duration::from_micros(longest_us / 2 + self.shared.random.next_u64() % (longest_us / 2 + 1));
        let pause = asked.map_or(chosen, |asked| asked.max(chosen));
        tracing::debug!(place = %self.place, %reason, attempt = self.failed, pause_ms = pause.as_millis(), "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
