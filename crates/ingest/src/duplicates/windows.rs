//! The windows of all streams, and what they may take together.
//!
//! Keys that were read from files or from the log belong to a stream's name, whatever its contract says by now; their
//! window is there before the stream is met. Where all windows together have too many keys, the tenant with the most
//! loses its oldest: nobody else's keys go for a tenant that floods.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use lakegate_model::{Contract, StreamKey};
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::window::{Window, WindowLimits};

struct Known {
    window: Arc<Window>,
    /// The hash of the tenant; of a stream that was not met yet, the stream's own.
    owner: u64,
    /// Whether a contract set the limits.
    is_set: bool,
}

/// The windows of all streams.
pub(crate) struct Windows {
    known: Mutex<HashMap<u64, Known>>,
    total: Arc<AtomicU64>,
    keys_max: u64,
    until_met: WindowLimits,
}

/// The hash that stands for a stream in files.
pub(crate) fn stream_hash(key: &StreamKey) -> u64 {
    xxh3_64(format!("{}/{}", key.tenant, key.stream).as_bytes())
}

impl Windows {
    /// No windows yet; all together may have `keys_max` keys.
    pub(crate) fn new(keys_max: u64, longest_window_us: i64) -> Self {
        let until_met = WindowLimits { window_us: longest_window_us, keys_max };
        Self { known: Mutex::default(), total: Arc::default(), keys_max, until_met }
    }

    /// The window of a stream. The contract that new records are read by says how long and how many; one that only
    /// frames of the log still name does not change what that says.
    pub(crate) fn of_stream(&self, key: &StreamKey, contract: &Contract, is_current: bool) -> Arc<Window> {
        let mut known = self.known.lock();
        let entry = known.entry(stream_hash(key)).or_insert_with(|| self.empty(0));
        entry.owner = xxh3_64(key.tenant.as_str().as_bytes());
        if is_current || !entry.is_set {
            entry.is_set |= is_current;
            let window_us = i64::try_from(contract.duplicate_window_ms.saturating_mul(1000)).unwrap_or(i64::MAX);
            entry.window.set_limits(WindowLimits { window_us, keys_max: contract.duplicate_keys_max });
        }
        entry.window.clone()
    }

    /// Notes keys of a stream whose name has that hash.
    pub(crate) fn remember(&self, stream: u64, key: u128, time_us: i64) {
        let window = {
            let mut known = self.known.lock();
            known.entry(stream).or_insert_with(|| self.empty(stream)).window.clone()
        };
        window.remember(key, time_us);
    }

    /// Whether the stream whose name has that hash knows the key.
    pub(crate) fn knows(&self, stream: u64, key: u128) -> bool {
        let window = self.known.lock().get(&stream).map(|known| known.window.clone());
        window.is_some_and(|window| window.knows(key))
    }

    fn empty(&self, owner: u64) -> Known {
        Known { window: Arc::new(Window::new(self.until_met, self.total.clone())), owner, is_set: false }
    }

    /// Forgets early, until all windows together are within their bound.
    pub(crate) fn keep_within_bound(&self) {
        while self.total.load(Ordering::Relaxed) > self.keys_max {
            let Some(window) = self.largest() else { return };
            window.forget_early();
        }
    }

    /// The largest window of the tenant that has the most keys.
    fn largest(&self) -> Option<Arc<Window>> {
        let known = self.known.lock();
        let mut tenants: HashMap<u64, u64> = HashMap::new();
        let sizes: Vec<(u64, u64, &Arc<Window>)> =
            known.values().map(|known| (known.owner, known.window.keys(), &known.window)).collect();
        for (owner, keys, _) in &sizes {
            *tenants.entry(*owner).or_default() += keys;
        }
        let (most, _) = tenants.into_iter().max_by_key(|(owner, keys)| (*keys, *owner))?;
        let of_tenant = sizes.into_iter().filter(|(owner, keys, _)| *owner == most && *keys > 0);
        of_tenant.max_by_key(|(_, keys, _)| *keys).map(|(_, _, window)| window.clone())
    }

    /// Forgets what is over, and gives the memory back.
    pub(crate) fn sweep(&self, now_us: i64) {
        let windows: Vec<_> = self.known.lock().values().map(|known| known.window.clone()).collect();
        windows.iter().for_each(|window| window.sweep(now_us));
    }

    /// Keys of all windows.
    pub(crate) fn keys(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// The most that all windows may have.
    pub(crate) fn keys_max(&self) -> u64 {
        self.keys_max
    }
}

#[cfg(test)]
mod tests {
    use lakegate_model::{StreamName, TenantId};

    use super::*;

    #[test]
    fn s47_a_tenant_that_floods_keys_forgets_its_own_and_nobody_elses() {
        let windows = Windows::new(1000, 3_600_000_000);
        let contract = Contract::undeclared_default();
        let window = |tenant: &str, stream: &str| {
            let key = StreamKey { tenant: TenantId::new(tenant).unwrap(), stream: StreamName::new(stream).unwrap() };
            windows.of_stream(&key, &contract, true)
        };
        let key = |n: u128| n << 64 | n << 33;
        let quiet = window("quiet", "s");
        quiet.claim((0..100).map(|n| Some(key(n))), 0);
        for stream in ["a", "b", "c"] {
            let flooded = window("loud", stream);
            for n in 0..2000 {
                flooded.claim([Some(key(n))].into_iter(), i64::try_from(n).unwrap() * 1_000_000);
                windows.keep_within_bound();
                assert!(windows.keys() <= 1000);
            }
        }
        assert!((0..100).all(|n| quiet.knows(key(n))), "{} of 100 are left", quiet.keys());
    }
}
