//! Turns between tenants: while several send, none has more than its share under way.
//!
//! What is under way is counted in bytes, from the reading of a request until it is durable: that bounds what lies
//! before another tenant's request, in memory, on the processors and on its way to the disk. A lone tenant is never
//! held up; one with nothing under way never is either, so that every tenant goes on.
//!
//! Invariants: requests of a tenant take their turns in the order in which they came, and the next one is given only
//! when the one before was taken up; a tenant that waits has something under way, whose end gives the next turn.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use lakegate_env::Clock;
use lakegate_model::TenantId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::quota::OverQuota;

/// What a request costs besides its bytes: a small one takes time too.
const REQUEST_COST: usize = 4 << 10;
/// A tenant that sent nothing for so long wants nothing.
const ACTIVE_US: u64 = 500_000;
/// How often that is looked at.
const SWEEP_EVERY_US: u64 = 50_000;
/// A tenant that sent nothing for so long is forgotten.
const FORGET_US: u64 = 60_000_000;
/// When to come back where too much of a tenant waits.
const QUEUE_WAIT_MS: u64 = 200;

/// Gives turns.
pub(crate) struct Fair(Arc<Inner>);

struct Inner {
    window: usize,
    queue_max: usize,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tenants: HashMap<TenantId, Share>,
    /// How many send, and their weights together.
    active: usize,
    weights: usize,
    swept_us: u64,
}

#[derive(Default)]
struct Share {
    weight: usize,
    is_active: bool,
    last_us: u64,
    under_way: usize,
    queue: VecDeque<Waiter>,
    queued: usize,
    /// A turn was given that was not taken up yet.
    is_offered: bool,
}

struct Waiter {
    cost: usize,
    turn: oneshot::Sender<Turn>,
}

/// A turn; over when it is dropped.
pub(crate) struct Turn {
    inner: Option<Arc<Inner>>,
    tenant: TenantId,
    cost: usize,
    is_offer: bool,
}

impl Fair {
    pub(crate) fn new(window: usize, queue_max: usize, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { window, queue_max, clock, state: Mutex::default() }))
    }

    /// Waits for the tenant's turn with a request of so many bytes.
    pub(crate) async fn enter(&self, tenant: TenantId, weight: u32, bytes: usize) -> Result<Turn, OverQuota> {
        let waiting = {
            let inner = &self.0;
            let now = inner.clock.monotonic_us();
            let cost = bytes.saturating_add(REQUEST_COST);
            let mut state = inner.state.lock();
            state.sweep(now);
            state.note(&tenant, weight, now);
            let (active, weights) = (state.active, state.weights);
            let Some(share) = state.tenants.get_mut(&tenant) else { return Ok(Turn::free(&tenant)) };
            if share.queue.is_empty() && !share.is_offered && share.has_room(cost, active, weights, inner.window) {
                share.under_way += cost;
                return Ok(Turn { inner: Some(inner.clone()), tenant: tenant.clone(), cost, is_offer: false });
            }
            if share.queued + cost > inner.queue_max {
                return Err(OverQuota {
                    limit: "tenant.share",
                    setting: "limits.rates.tenants".to_owned(),
                    message: format!(
                        "{} bytes of the tenant {tenant} wait for their turn beside other tenants' requests; its share \
                         grows with its weight (limits.rates.tenants)",
                        share.queued
                    ),
                    retry_after_ms: QUEUE_WAIT_MS,
                });
            }
            let (turn, waiting) = oneshot::channel();
            share.queued += cost;
            share.queue.push_back(Waiter { cost, turn });
            waiting
        };
        // The other end goes with the state alone, which outlives this.
        let mut turn = waiting.await.unwrap_or_else(|_| Turn::free(&tenant));
        turn.take_up();
        Ok(turn)
    }
}

impl State {
    fn note(&mut self, tenant: &TenantId, weight: u32, now: u64) {
        let share = match self.tenants.get_mut(tenant) {
            Some(share) => share,
            None => self.tenants.entry(tenant.clone()).or_default(),
        };
        share.last_us = now;
        if !share.is_active {
            share.is_active = true;
            share.weight = usize::try_from(weight.max(1)).unwrap_or(1);
            self.active += 1;
            self.weights += share.weight;
        }
    }

    /// Those that want nothing any more leave their share to the others.
    fn sweep(&mut self, now: u64) {
        if now < self.swept_us + SWEEP_EVERY_US {
            return;
        }
        self.swept_us = now;
        let (mut active, mut weights) = (0, 0);
        self.tenants.retain(|_, share| {
            let idle = share.under_way == 0 && share.queue.is_empty();
            let silent_us = now.saturating_sub(share.last_us);
            share.is_active = !idle || silent_us < ACTIVE_US;
            if share.is_active {
                active += 1;
                weights += share.weight;
            }
            !idle || silent_us < FORGET_US
        });
        (self.active, self.weights) = (active, weights);
    }
}

impl Share {
    fn has_room(&self, cost: usize, active: usize, weights: usize, window: usize) -> bool {
        let most = window.saturating_mul(self.weight) / weights.max(1);
        active <= 1 || self.under_way == 0 || self.under_way.saturating_add(cost) <= most
    }
}

impl Inner {
    /// Gives the tenant's next turn, if there is room for it.
    fn offer(self: &Arc<Self>, state: &mut State, tenant: &TenantId) {
        let (active, weights) = (state.active, state.weights);
        let Some(share) = state.tenants.get_mut(tenant) else { return };
        while !share.is_offered {
            let Some(next) = share.queue.front().map(|waiter| waiter.cost) else { return };
            if !share.has_room(next, active, weights, self.window) {
                return;
            }
            let Some(Waiter { cost, turn }) = share.queue.pop_front() else { return };
            share.queued -= cost;
            let offer = Turn { inner: Some(self.clone()), tenant: tenant.clone(), cost, is_offer: true };
            match turn.send(offer) {
                Ok(()) => {
                    share.under_way += cost;
                    share.is_offered = true;
                }
                // Who waited has left; the offer counts for nothing.
                Err(mut offer) => offer.inner = None,
            }
        }
    }
}

impl Turn {
    /// A turn that nobody counts.
    fn free(tenant: &TenantId) -> Self {
        Self { inner: None, tenant: tenant.clone(), cost: 0, is_offer: false }
    }

    fn take_up(&mut self) {
        let Some(inner) = self.inner.clone().filter(|_| self.is_offer) else { return };
        self.is_offer = false;
        let mut state = inner.state.lock();
        if let Some(share) = state.tenants.get_mut(&self.tenant) {
            share.is_offered = false;
        }
        inner.offer(&mut state, &self.tenant);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        let mut state = inner.state.lock();
        let Some(share) = state.tenants.get_mut(&self.tenant) else { return };
        share.under_way = share.under_way.saturating_sub(self.cost);
        if self.is_offer {
            share.is_offered = false;
        }
        inner.offer(&mut state, &self.tenant);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use lakegate_env::ManualClock;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    fn fair(window: usize) -> (Fair, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(0));
        clock.advance_us(1_000_000);
        (Fair::new(window, 1 << 20, clock.clone()), clock)
    }

    const BIG: usize = 100_000;

    #[test]
    fn a_lone_tenant_is_never_held_up() {
        let (fair, _) = fair(BIG);
        let turns: Vec<_> = (0..50).map(|_| fair.enter(tenant("a"), 1, BIG).now_or_never().unwrap().unwrap()).collect();
        assert_eq!(turns.len(), 50);
    }

    #[tokio::test]
    async fn f63_one_that_floods_waits_and_its_neighbour_does_not() {
        let (fair, _) = fair(4 * BIG);
        let small = || fair.enter(tenant("small"), 1, 100);
        drop(small().await.unwrap());
        let mut flood: VecDeque<_> = VecDeque::new();
        for _ in 0..9 {
            flood.push_back(Box::pin(fair.enter(tenant("flood"), 1, BIG)));
        }
        let mut running: Vec<_> = flood.iter_mut().filter_map(|one| one.now_or_never()).map(Result::unwrap).collect();
        assert_eq!(running.len(), 1, "its half of the window has room for one with its cost");
        assert!(small().now_or_never().unwrap().is_ok() && small().now_or_never().unwrap().is_ok());
        flood.pop_front();
        while let Some(next) = flood.pop_front() {
            running.pop();
            running.push(next.await.unwrap());
        }
    }

    #[tokio::test]
    async fn turns_are_taken_in_the_order_of_coming_and_given_back_by_those_who_leave() {
        let (fair, _) = fair(BIG);
        let flood = || Box::pin(fair.enter(tenant("flood"), 1, BIG));
        drop(fair.enter(tenant("small"), 1, 1).await.unwrap());
        let first = flood().await.unwrap();
        let (mut second, mut third, mut fourth) = (flood(), flood(), flood());
        for one in [&mut second, &mut third, &mut fourth] {
            assert!(one.now_or_never().is_none());
        }
        drop(second);
        drop(first);
        assert!(fourth.as_mut().now_or_never().is_none(), "it is the third one's turn");
        let mut late = flood();
        assert!(late.as_mut().now_or_never().is_none(), "nobody overtakes one whose turn was offered");
        drop(third);
        let fourth = fourth.now_or_never().unwrap().unwrap();
        assert!(late.as_mut().now_or_never().is_none());
        drop(fourth);
        assert!(late.now_or_never().unwrap().is_ok());
        assert!(fair.0.state.lock().tenants.values().all(|share| share.under_way == 0 && share.queued == 0));
    }

    #[tokio::test]
    async fn a_neighbour_that_has_left_leaves_its_share() {
        let (fair, clock) = fair(BIG);
        drop(fair.enter(tenant("small"), 1, 1).await.unwrap());
        let _first = fair.enter(tenant("flood"), 1, BIG).await.unwrap();
        assert!(fair.enter(tenant("flood"), 1, BIG).now_or_never().is_none());
        clock.advance_us(1_000_000);
        let _again = fair.enter(tenant("flood"), 1, 1);
        clock.advance_us(100_000_000);
        drop(fair.enter(tenant("other"), 1, 1).await.unwrap());
        assert!(!fair.0.state.lock().tenants.contains_key(&tenant("small")), "forgotten");
    }

    #[tokio::test]
    async fn weights_divide_and_queues_are_bounded() {
        let (fair, _) = fair(8 * (BIG + REQUEST_COST));
        drop(fair.enter(tenant("light"), 1, 1).await.unwrap());
        let count = |name: &'static str, weight| {
            let turns: Vec<_> =
                (0..8).filter_map(|_| fair.enter(tenant(name), weight, BIG).now_or_never()?.ok()).collect();
            (turns.len(), turns)
        };
        let (heavy, _turns) = count("heavy", 3);
        assert_eq!(heavy, 6, "three quarters of eight");
        let full: Vec<_> = (0..20).map(|_| Box::pin(fair.enter(tenant("light"), 1, BIG))).collect();
        let mut refused = 0;
        let mut kept = Vec::new();
        for mut one in full {
            match one.as_mut().now_or_never() {
                Some(Err(over)) => {
                    assert_eq!(over.limit, "tenant.share");
                    refused += 1;
                }
                other => kept.push((other, one)),
            }
        }
        assert!((6..=9).contains(&refused), "{refused}: a MiB waits, the rest is told to come back");
    }
}
