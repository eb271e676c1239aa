//! Bounds on how often credentials may be wrong: for each address, and for each key id.
//!
//! Past the bound an address is answered "later" without its credentials being looked at. A key whose secret is wrong
//! too often, from whichever addresses, is closed to the addresses that were wrong with it, never to its owner at
//! another one.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use lakegate_env::Clock;
use parking_lot::Mutex;

/// How long a failure counts.
const WINDOW_US: u64 = 60_000_000;
/// So many addresses and keys are kept in mind; past that counting begins anew.
const KNOWN_MAX: usize = 65_536;
/// A key may be wrong so many times more often than an address: many addresses may share it.
const KEY_FACTOR: u32 = 10;

/// Whom a count is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whom {
    /// An IPv4 address, or the first 64 bits of one of IPv6: who has one of these has all.
    Address(u64, bool),
    Key(Box<str>),
}

impl Whom {
    fn address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::Address(u64::from(v4.to_bits()), false),
            IpAddr::V6(v6) => Self::Address(u64::try_from(v6.to_bits() >> 64).unwrap_or_default(), true),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    began_us: u64,
    count: u32,
}

/// Counts failures.
pub(crate) struct Guard {
    clock: Arc<dyn Clock>,
    attempts: u32,
    failures: Mutex<HashMap<Whom, Failures>>,
}

impl Guard {
    /// `attempts`: how often an address may be wrong in a minute.
    pub(crate) fn new(clock: Arc<dyn Clock>, attempts: u32) -> Self {
        Self { clock, attempts: attempts.max(1), failures: Mutex::default() }
    }

    /// How many seconds the address must wait, if it must; `key` is the id that it brings.
    pub(crate) fn must_wait(&self, address: Option<IpAddr>, key: Option<&str>) -> Option<u64> {
        let failures = self.failures.lock();
        if failures.is_empty() {
            return None;
        }
        let own = failures.get(&Whom::address(address?)).and_then(|own| self.in_window(own));
        let (own_wait, own_count) = own?;
        if own_count >= self.attempts {
            return Some(own_wait);
        }
        let of_key = failures.get(&Whom::Key(key?.into())).and_then(|of_key| self.in_window(of_key));
        of_key.filter(|(_, count)| *count >= self.attempts.saturating_mul(KEY_FACTOR)).map(|_| own_wait)
    }

    /// Counts a failure.
    pub(crate) fn note_failure(&self, address: Option<IpAddr>, key: Option<&str>) {
        let now = self.clock.monotonic_us();
        let mut failures = self.failures.lock();
        if failures.len() >= KNOWN_MAX {
            failures.retain(|_, one| now < one.began_us + WINDOW_US);
        }
        if failures.len() >= KNOWN_MAX {
            failures.clear();
        }
        let whom = address.map(Whom::address).into_iter().chain(key.map(|key| Whom::Key(key.into())));
        for whom in whom {
            let one = failures.entry(whom).or_insert(Failures { began_us: now, count: 0 });
            if now >= one.began_us + WINDOW_US {
                *one = Failures { began_us: now, count: 0 };
            }
            one.count = one.count.saturating_add(1);
        }
    }

    /// Seconds until the window ends, and the count in it, while it lasts.
    fn in_window(&self, failures: &Failures) -> Option<(u64, u32)> {
        let left = (failures.began_us + WINDOW_US).checked_sub(self.clock.monotonic_us()).filter(|left| *left > 0)?;
        Some((left.div_ceil(1_000_000), failures.count))
    }
}

#[cfg(test)]
mod tests {
    use lakegate_env::ManualClock;

    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn s12_an_address_that_is_wrong_too_often_waits_and_others_do_not() {
        let clock = Arc::new(ManualClock::new(0));
        let guard = Guard::new(clock.clone(), 5);
        for _ in 0..5 {
            assert_eq!(guard.must_wait(address("192.0.2.1"), None), None);
            guard.note_failure(address("192.0.2.1"), None);
            clock.advance_us(1_000_000);
        }
        assert_eq!(guard.must_wait(address("192.0.2.1"), None), Some(55));
        assert_eq!(guard.must_wait(address("::ffff:192.0.2.1"), None), Some(55), "the same address, mapped");
        assert_eq!(guard.must_wait(address("192.0.2.2"), None), None);
        clock.advance_us(55_000_000);
        assert_eq!(guard.must_wait(address("192.0.2.1"), None), None);
    }

    #[test]
    fn s12_a_key_that_is_guessed_at_is_closed_to_guessers_and_open_to_its_owner() {
        let guard = Guard::new(Arc::new(ManualClock::new(0)), 5);
        for n in 0..60 {
            guard.note_failure(address(&format!("198.51.100.{n}")), Some("k1"));
        }
        assert!(guard.must_wait(address("198.51.100.7"), Some("k1")).is_some());
        assert_eq!(guard.must_wait(address("198.51.100.7"), Some("k2")), None);
        assert_eq!(guard.must_wait(address("192.0.2.1"), Some("k1")), None);
    }

    #[test]
    fn one_who_has_a_network_of_ipv6_is_one_and_memory_is_bounded() {
        let guard = Guard::new(Arc::new(ManualClock::new(0)), 5);
        for n in 0..5 {
            guard.note_failure(address(&format!("2001:db8::{n}")), None);
        }
        assert!(guard.must_wait(address("2001:db8::ffff"), None).is_some());
        for n in 0..200_000_u32 {
            guard.note_failure(Some(IpAddr::from(n.to_be_bytes())), None);
        }
        assert!(guard.failures.lock().len() <= KNOWN_MAX);
    }
}
