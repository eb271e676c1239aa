//! A circuit breaker for each service: closed while it answers, open while it does not, half-open for trials between.
//!
//! Invariants: while open nobody calls; while half-open at most `trials` calls are under way; the breaker closes when so
//! many trials have succeeded one after the other and opens again at the first that fails, for twice as long. Calls that
//! are slow count against the service as failures do, by a share of their own. What was called while closed and ends
//! after the breaker has opened changes nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::settings::BreakerSettings;

/// How many times as long as the first time the breaker stays open, at most.
const LONGEST: u32 = 16;
/// The calls that are remembered.
const CALLS_MAX: usize = 4096;

/// How the breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// None does.
    Open,
    /// A few do, for trial.
    HalfOpen,
}

impl BreakerState {
    /// Its name, as health and metrics show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With what says nothing against the service.
    Well,
    /// With what does.
    Badly,
}

/// Guards one service. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Breaker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    settings: BreakerSettings,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    state: BreakerState,
    calls: VecDeque<(Instant, Ended, bool)>,
    in_a_row: u32,
    open_until: Instant,
    times: u32,
    trials: u32,
    trials_well: u32,
    /// Of the last change: a call of an earlier time is not counted.
    turn: u64,
}

/// The right to make one call. Dropped without an end, the call never was.
#[derive(Debug)]
pub(crate) struct Permit {
    breaker: Breaker,
    turn: u64,
    started: Instant,
    done: bool,
}

impl Breaker {
    pub(crate) fn new(name: &str, settings: BreakerSettings) -> Self {
        let inner = Inner {
            state: BreakerState::Closed,
            calls: VecDeque::new(),
            in_a_row: 0,
            open_until: Instant::now(),
            times: 0,
            trials: 0,
            trials_well: 0,
            turn: 0,
        };
        let shared = Shared { name: name.to_owned(), settings, inner: Mutex::new(inner), changed: Notify::new() };
        let breaker = Self(Arc::new(shared));
        breaker.show(BreakerState::Closed);
        breaker
    }

    pub(crate) fn state(&self) -> BreakerState {
        self.0.inner.lock().state
    }

    /// Waits until a call may be made.
    pub(crate) async fn permit(&self) -> Permit {
        loop {
            let changed = self.0.changed.notified();
            let wait = {
                let mut inner = self.0.inner.lock();
                if inner.state == BreakerState::Open && Instant::now() >= inner.open_until {
                    inner.enter(BreakerState::HalfOpen);
                    self.show(BreakerState::HalfOpen);
                    self.0.changed.notify_waiters();
                }
                match inner.state {
                    BreakerState::Closed => return self.granted(&inner),
                    BreakerState::HalfOpen if inner.trials < self.0.settings.trials => {
                        inner.trials += 1;
                        return self.granted(&inner);
                    }
                    BreakerState::HalfOpen => None,
                    BreakerState::Open => Some(inner.open_until),
                }
            };
            match wait {
                Some(until) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
                // The bound is for a change between the look and the wait.
                None => drop(tokio::time::timeout(Duration::from_millis(100), changed).await),
            }
        }
    }

    fn granted(&self, inner: &Inner) -> Permit {
        Permit { breaker: self.clone(), turn: inner.turn, started: Instant::now(), done: false }
    }

    fn ended(&self, permit: &Permit, how: Ended) {
        let settings = &self.0.settings;
        let now = Instant::now();
        let slow = now.duration_since(permit.started) > settings.slow_after;
        let mut inner = self.0.inner.lock();
        if inner.turn != permit.turn {
            return;
        }
        match inner.state {
            BreakerState::Closed => {
                inner.calls.push_back((now, how, slow));
                inner.in_a_row = if how == Ended::Badly { inner.in_a_row + 1 } else { 0 };
                let from = now.checked_sub(settings.window);
                while inner.calls.len() > CALLS_MAX
                    || inner.calls.front().is_some_and(|(at, ..)| from.is_some_and(|from| *at < from))
                {
                    inner.calls.pop_front();
                }
                if inner.is_sick(settings) {
                    inner.times = 1;
                    self.open(&mut inner, now);
                }
            }
            BreakerState::HalfOpen => {
                inner.trials = inner.trials.saturating_sub(1);
                if how == Ended::Badly || slow {
                    inner.times = (inner.times * 2).clamp(1, LONGEST);
                    self.open(&mut inner, now);
                } else {
                    inner.trials_well += 1;
                    if inner.trials_well >= settings.trials {
                        inner.enter(BreakerState::Closed);
                        self.show(BreakerState::Closed);
                        tracing::info!(service = %self.0.name, "the service answers again; its breaker is closed");
                    }
                }
                self.0.changed.notify_waiters();
            }
            BreakerState::Open => {}
        }
    }

    fn open(&self, inner: &mut Inner, now: Instant) {
        let pause = self.0.settings.open_for * inner.times;
        inner.enter(BreakerState::Open);
        inner.open_until = now + pause;
        self.show(BreakerState::Open);
        tracing::warn!(
            service = %self.0.name,
            seconds = pause.as_secs_f64(),
            "the service fails or is slow; its breaker is open"
        );
        self.0.changed.notify_waiters();
    }

    fn show(&self, state: BreakerState) {
        for one in [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen] {
            let labels = [("service", self.0.name.clone()), ("state", one.name().to_owned())];
            metrics::gauge!("lakegate_breaker_state", &labels).set(f64::from(u8::from(one == state)));
        }
    }
}

impl Inner {
    fn enter(&mut self, state: BreakerState) {
        self.state = state;
        self.turn += 1;
        self.calls.clear();
        (self.in_a_row, self.trials, self.trials_well) = (0, 0, 0);
    }

    fn is_sick(&self, settings: &BreakerSettings) -> bool {
        if self.in_a_row >= settings.failures_in_a_row {
            return true;
        }
        let calls = self.calls.len();
        if calls < settings.calls_min {
            return false;
        }
        #[allow(clippy::cast_precision_loss, reason = "a share of at most some thousands")]
        let share = |count: usize| count as f64 / calls as f64;
        let failures = self.calls.iter().filter(|(_, how, _)| *how == Ended::Badly).count();
        let slow = self.calls.iter().filter(|(.., slow)| *slow).count();
        share(failures) >= settings.failure_share || share(slow) >= settings.slow_share
    }
}

impl Permit {
    /// The call has ended.
    pub(crate) fn end(mut self, how: Ended) {
        self.done = true;
        self.breaker.ended(&self, how);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut inner = self.breaker.0.inner.lock();
        if inner.turn == self.turn && inner.state == BreakerState::HalfOpen {
            inner.trials = inner.trials.saturating_sub(1);
            drop(inner);
            self.breaker.0.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn settings() -> BreakerSettings {
        BreakerSettings {
            window: Duration::from_secs(10),
            calls_min: 10,
            failure_share: 0.5,
            slow_after: Duration::from_secs(1),
            slow_share: 0.8,
            failures_in_a_row: 5,
            open_for: Duration::from_secs(2),
            trials: 2,
        }
    }

    async fn call(breaker: &Breaker, how: Ended) {
        breaker.permit().await.end(how);
    }

    #[tokio::test(start_paused = true)]
    async fn f57_failures_in_a_row_open_it_trials_close_it_and_a_failed_trial_doubles_the_pause() {
        let breaker = Breaker::new("s", settings());
        for _ in 0..5 {
            assert_eq!(breaker.state(), BreakerState::Closed);
            call(&breaker, Ended::Badly).await;
        }
        assert_eq!(breaker.state(), BreakerState::Open);
        let opened = Instant::now();
        let trial = breaker.permit().await;
        assert_eq!((breaker.state(), opened.elapsed().as_secs()), (BreakerState::HalfOpen, 2));
        trial.end(Ended::Badly);
        assert_eq!(breaker.state(), BreakerState::Open);
        let opened = Instant::now();
        let (one, two) = (breaker.permit().await, breaker.permit().await);
        assert_eq!(opened.elapsed().as_secs(), 4);
        let third = tokio::time::timeout(Duration::from_millis(500), breaker.permit()).await;
        assert!(third.is_err(), "no more than two trials at once");
        one.end(Ended::Well);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        two.end(Ended::Well);
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn f57_half_of_the_calls_failing_opens_it_and_so_do_slow_ones() {
        let breaker = Breaker::new("s", settings());
        for at in 0..10 {
            assert_eq!(breaker.state(), BreakerState::Closed, "after {at}");
            call(&breaker, if at % 2 == 0 { Ended::Badly } else { Ended::Well }).await;
        }
        assert_eq!(breaker.state(), BreakerState::Open);
        let breaker = Breaker::new("s", BreakerSettings { window: Duration::from_secs(100), ..settings() });
        for _ in 0..10 {
            let permit = breaker.permit().await;
            tokio::time::advance(Duration::from_secs(2)).await;
            permit.end(Ended::Well);
        }
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_was_given_up_leaves_its_place_to_another() {
        let breaker = Breaker::new("s", BreakerSettings { trials: 1, ..settings() });
        for _ in 0..5 {
            call(&breaker, Ended::Badly).await;
        }
        drop(breaker.permit().await);
        call(&breaker, Ended::Well).await;
        assert_eq!(breaker.state(), BreakerState::Closed);
    }
}
