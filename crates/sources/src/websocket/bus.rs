//! Who is told of events that became durable.
//!
//! An event's confirmation goes to every subscriber of its tenant whose filter it fits. Each subscriber has a queue that
//! is bounded in number and bytes: past the bound its oldest confirmations are dropped and counted, and it is told. Where
//! several instances share a channel, what one tells its subscribers it tells the others' too ([`Bus::relay_to`],
//! [`Bus::hear`]); what the channel has no room for is dropped and counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::task::AtomicWaker;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::json::{Walk, put_text, text_value};
use crate::time::put_time;

/// Confirmations that wait for one subscriber, and their bytes.
const WAITING_MAX: usize = 1024;
const WAITING_BYTES_MAX: usize = 256 << 10;

/// Which events a subscriber wants to hear of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) event_types: Option<Vec<String>>,
    pub(crate) store_id: Option<String>,
}

/// What is told of an event: where to look in it is the same for all subscribers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) event_id: String,
    pub(crate) event_type: String,
    pub(crate) store_id: String,
}

impl Told {
    /// Reads the event.
    pub(crate) fn of(event: &[u8]) -> Option<Self> {
        let mut walk = Walk::new(event);
        walk.enter_object().ok()?;
        let (mut told, mut first) = (Self::default(), true);
        while let Some(member) = walk.member(&mut first).ok()? {
            let place = match () {
                () if member.is("eventId") => &mut told.event_id,
                () if member.is("eventType") => &mut told.event_type,
                () if member.is("storeId") => &mut told.store_id,
                () => continue,
            };
            *place = event.get(member.value).and_then(text_value).unwrap_or_default().into_owned();
        }
        Some(told)
    }

    fn fits(&self, filter: &Filter) -> bool {
        filter.event_types.as_ref().is_none_or(|types| types.contains(&self.event_type))
            && filter.store_id.as_ref().is_none_or(|store| *store == self.store_id)
    }

    fn text(&self, now_ms: u64) -> Bytes {
        let mut out = b"{\"type\":\"event_ack\",\"eventId\":".to_vec();
        put_text(&mut out, &self.event_id);
        out.extend_from_slice(b",\"status\":\"received\",\"confirmation\":true,\"eventType\":");
        put_text(&mut out, &self.event_type);
        out.extend_from_slice(b",\"storeId\":");
        put_text(&mut out, &self.store_id);
        out.extend_from_slice(b",\"timestamp\":\"");
        put_time(&mut out, now_ms);
        out.extend_from_slice(b"\"}");
        Bytes::from(out)
    }
}

/// One subscriber's queue.
#[derive(Debug)]
pub(crate) struct Subscriber {
    /// Who it is: its own events are confirmed to it already.
    id: u64,
    /// None while authentication is off.
    tenant: Option<String>,
    filter: Filter,
    queue: Mutex<Queue>,
    pub(crate) waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Bytes>,
    bytes: usize,
    dropped: u64,
}

impl Subscriber {
    fn put(&self, text: Bytes) -> u64 {
        let mut queue = self.queue.lock();
        queue.bytes += text.len();
        queue.waiting.push_back(text);
        let before = queue.dropped;
        while queue.waiting.len() > WAITING_MAX || queue.bytes > WAITING_BYTES_MAX {
            let Some(oldest) = queue.waiting.pop_front() else { break };
            queue.bytes -= oldest.len();
            queue.dropped += 1;
        }
        let dropped = queue.dropped - before;
        drop(queue);
        self.waker.wake();
        dropped
    }

    /// What waits, up to `bytes`, and how many were dropped before it.
    pub(crate) fn take(&self, bytes: usize) -> (u64, Vec<Bytes>) {
        let mut queue = self.queue.lock();
        let (mut taken, mut sum) = (Vec::new(), 0);
        while sum < bytes {
            let Some(next) = queue.waiting.pop_front() else { break };
            queue.bytes -= next.len();
            sum += next.len();
            taken.push(next);
        }
        (std::mem::take(&mut queue.dropped), taken)
    }
}

/// What instances tell each other.
#[derive(Serialize, Deserialize)]
struct Relayed<T> {
    /// The instance that told.
    from: u64,
    tenant: Option<String>,
    told: T,
    at_ms: u64,
}

/// The way to other instances.
#[derive(Debug)]
struct Relay {
    instance: u64,
    outgoing: mpsc::Sender<Bytes>,
}

/// All subscribers of this process.
#[derive(Debug, Default)]
pub struct Bus {
    relay: OnceLock<Relay>,
    subscribers: RwLock<Vec<Arc<Subscriber>>>,
    count: AtomicUsize,
    dropped: AtomicU64,
}

impl Bus {
    /// Whether anybody would hear.
    pub(crate) fn is_heard(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0 || self.relay.get().is_some()
    }

    /// From now on tells other instances too, by messages that go to `outgoing`; `instance` is a number of our own.
    pub fn relay_to(&self, instance: u64, outgoing: mpsc::Sender<Bytes>) {
        let _ = self.relay.set(Relay { instance, outgoing });
    }

    /// Tells the subscribers what another instance told. What it did not make, and our own, is passed over.
    pub fn hear(&self, message: &[u8]) {
        let Ok(Relayed { from, tenant, told, at_ms }) = serde_json::from_slice::<Relayed<Told>>(message) else {
            return;
        };
        if self.relay.get().is_some_and(|relay| relay.instance != from) {
            self.tell_own(0, tenant.as_deref(), &told, at_ms);
        }
    }

    pub(crate) fn subscribe(&self, id: u64, tenant: Option<String>, filter: Filter) -> Arc<Subscriber> {
        let (queue, waker) = (Mutex::default(), AtomicWaker::new());
        let subscriber = Arc::new(Subscriber { id, tenant, filter, queue, waker });
        let mut subscribers = self.subscribers.write();
        subscribers.push(subscriber.clone());
        self.count.store(subscribers.len(), Ordering::Relaxed);
        subscriber
    }

    pub(crate) fn unsubscribe(&self, subscriber: &Arc<Subscriber>) {
        let mut subscribers = self.subscribers.write();
        subscribers.retain(|known| !Arc::ptr_eq(known, subscriber));
        self.count.store(subscribers.len(), Ordering::Relaxed);
    }

    /// Tells all but `from` of an event of that tenant, and other instances.
    pub(crate) fn tell(&self, from: u64, tenant: Option<&str>, told: &Told, now_ms: u64) {
        self.tell_own(from, tenant, told, now_ms);
        let Some(relay) = self.relay.get() else { return };
        let message = Relayed { from: relay.instance, tenant: tenant.map(str::to_owned), told, at_ms: now_ms };
        let sent = serde_json::to_vec(&message).ok().map(|text| relay.outgoing.try_send(text.into()));
        if !matches!(sent, Some(Ok(()))) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tell_own(&self, from: u64, tenant: Option<&str>, told: &Told, now_ms: u64) {
        let mut text = None;
        for subscriber in self.subscribers.read().iter() {
            let meant = subscriber.id != from && subscriber.tenant.as_deref() == tenant;
            if meant && told.fits(&subscriber.filter) {
                let text: &Bytes = text.get_or_insert_with(|| told.text(now_ms));
                self.dropped.fetch_add(subscriber.put(text.clone()), Ordering::Relaxed);
            }
        }
    }

    /// Confirmations dropped so far because their readers were slow.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(id: &str, kind: &str, store: &str) -> Told {
        Told { event_id: id.into(), event_type: kind.into(), store_id: store.into() }
    }

    #[test]
    fn subscribers_hear_of_what_fits_their_filter_and_tenant() {
        let bus = Bus::default();
        assert!(!bus.is_heard());
        let filter = Filter { event_types: Some(vec!["cart_created".into()]), store_id: Some("s".into()) };
        let one = bus.subscribe(1, Some("acme".into()), filter);
        let all = bus.subscribe(2, Some("acme".into()), Filter::default());
        bus.tell(0, Some("acme"), &told("a", "cart_created", "s"), 0);
        bus.tell(0, Some("acme"), &told("b", "cart_created", "other"), 0);
        bus.tell(0, Some("other"), &told("c", "cart_created", "s"), 0);
        bus.tell(2, Some("acme"), &told("d", "item_added", "s"), 0);
        assert_eq!((one.take(9999).1.len(), all.take(9999).1.len()), (1, 2));
        bus.unsubscribe(&one);
        bus.unsubscribe(&all);
        assert!(!bus.is_heard());
    }

    #[test]
    fn what_one_instance_tells_the_subscribers_of_the_others_hear_once() {
        let (one, two) = (Bus::default(), Bus::default());
        let (sender, mut outgoing) = mpsc::channel(4);
        one.relay_to(1, sender.clone());
        two.relay_to(2, sender);
        let (here, there) = (
            one.subscribe(1, Some("acme".into()), Filter::default()),
            two.subscribe(1, Some("acme".into()), Filter::default()),
        );
        let foreign = two.subscribe(2, Some("other".into()), Filter::default());
        one.tell(0, Some("acme"), &told("a", "cart_created", "s"), 0);
        let message = outgoing.try_recv().unwrap();
        one.hear(&message);
        two.hear(&message);
        two.hear(b"{}");
        let heard = [here, there, foreign].map(|subscriber| subscriber.take(9999).1);
        assert_eq!(heard.each_ref().map(Vec::len), [1, 1, 0]);
        assert_eq!(heard[0], heard[1]);
        for number in 0..9 {
            one.tell(0, None, &told(&format!("e{number}"), "item_added", "s"), 0);
        }
        assert_eq!(one.dropped(), 5, "the channel has room for four");
    }

    #[test]
    fn a_slow_reader_loses_the_oldest_and_is_told_how_many() {
        let bus = Bus::default();
        let slow = bus.subscribe(1, None, Filter::default());
        for number in 0..2000 {
            bus.tell(0, None, &told(&format!("e{number}"), "item_added", "s"), 0);
        }
        let (dropped, left) = slow.take(usize::MAX);
        assert_eq!((dropped + left.len() as u64, bus.dropped()), (2000, dropped));
        assert!(left.len() <= WAITING_MAX && left.iter().map(Bytes::len).sum::<usize>() <= WAITING_BYTES_MAX);
        assert!(String::from_utf8_lossy(left.last().unwrap()).contains("\"e1999\""));
    }
}
