//! Requests of one connection that are under way together, and stay in order whatever becomes of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::OwnedMutexGuard;

use crate::api::SubmitError;

/// When to come back who came behind one that was told to come back later.
const BEHIND_MS: u64 = 100;

/// The requests of one connection, in the order in which they are first polled. Once one of them is refused for now, so
/// are all that are behind it: stored, they would come before its second try.
#[derive(Debug, Clone, Default)]
pub struct Sequence {
    turns: Arc<tokio::sync::Mutex<()>>,
    refused: Arc<AtomicBool>,
}

impl Sequence {
    /// Whether one was refused for now. What comes after its sender was answered belongs to a sequence of its own.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    /// Waits until those before are in the log.
    pub(crate) async fn enter(&self) -> Result<Place, SubmitError> {
        let guard = self.turns.clone().lock_owned().await;
        if self.is_refused() {
            let message =
                "what came before it on this connection was told to come back later, and it is not to overtake that";
            let (what, message) = ("order", message.to_owned());
            return Err(SubmitError::OutOfRoom { what, message, retry_after_ms: BEHIND_MS });
        }
        Ok(Place { _guard: guard, refused: self.refused.clone(), has_passed: false })
    }
}

/// One's place among them; who leaves it without having passed lets none pass.
#[derive(Debug)]
pub(crate) struct Place {
    _guard: OwnedMutexGuard<()>,
    refused: Arc<AtomicBool>,
    has_passed: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.has_passed {
            self.refused.store(true, Ordering::Release);
        }
    }
}

/// A request's turn among those that are to stay in order.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Among all of this process, where others are asked in between.
    pub(crate) among_all: Option<OwnedMutexGuard<()>>,
    pub(crate) place: Option<Place>,
}

impl Turn {
    /// It is in the log, or never will be: the next may go.
    pub(crate) fn pass(&mut self) {
        if let Some(place) = &mut self.place {
            place.has_passed = true;
        }
        *self = Self::default();
    }
}

impl SubmitError {
    /// Whether the same request may be taken later.
    pub(crate) fn is_for_now(&self) -> bool {
        matches!(self, Self::OutOfRoom { .. } | Self::OverQuota { .. } | Self::Unavailable { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn behind_one_that_was_refused_for_now_none_passes_and_behind_one_that_passed_each_does() {
        let sequence = Sequence::default();
        let mut turn = Turn { place: Some(sequence.enter().await.unwrap()), ..Turn::default() };
        let waits = sequence.enter();
        tokio::pin!(waits);
        assert!(futures::poll!(&mut waits).is_pending(), "one after the other");
        turn.pass();
        let place = waits.await.unwrap();
        let (second, third) = (sequence.clone(), sequence.clone());
        drop(place);
        for behind in [second, third] {
            let refused = behind.enter().await.unwrap_err();
            assert!(matches!(refused, SubmitError::OutOfRoom { what: "order", .. }), "{refused}");
        }
        assert!(sequence.is_refused());
        assert!(Sequence::default().enter().await.is_ok());
    }
}
