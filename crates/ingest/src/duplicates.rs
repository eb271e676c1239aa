//! Which events were seen before.
//!
//! A stream with an event key remembers the keys of its accepted records for a window of time, as 128-bit hashes
//! (XXH3, by Yann Collet). A key is looked up, the request appended and the key noted under one lock, that of the
//! stream's table: there is no instant between the check and the set, and a key whose append failed was never noted.
//! Keys are part of the frame; those of trimmed frames are kept in files ([`crate::keys`]): the window survives a restart.

use std::collections::VecDeque;

use hashbrown::HashSet;
use lakegate_memtable::Value;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128;

/// The window is forgotten in so many steps.
const GENERATIONS: i64 = 4;
/// The most keys that one stream remembers; beyond, the oldest step is forgotten early, and that is counted.
const KEYS_MAX: usize = 10_000_000;

#[derive(Debug)]
struct Generation {
    started_us: i64,
    keys: HashSet<u128>,
}

/// The keys of one tenant's part of one stream.
#[derive(Debug)]
pub(crate) struct Window {
    window_us: i64,
    generations: Mutex<VecDeque<Generation>>,
}

impl Window {
    pub(crate) fn new(window_ms: u64) -> Self {
        let window_us = i64::try_from(window_ms.saturating_mul(1000)).unwrap_or(i64::MAX);
        Self { window_us, generations: Mutex::default() }
    }

    /// Whether the key was noted within the window before `now_us`.
    pub(crate) fn contains(&self, key: u128, now_us: i64) -> bool {
        let mut generations = self.generations.lock();
        self.forget_old(&mut generations, now_us);
        generations.iter().any(|generation| generation.keys.contains(&key))
    }

    /// A stream that rests notes nothing, and its keys grow old all the same.
    fn forget_old(&self, generations: &mut VecDeque<Generation>, now_us: i64) {
        let kept_us = (self.window_us / GENERATIONS).max(1).saturating_add(self.window_us);
        while generations.front().is_some_and(|oldest| oldest.started_us.saturating_add(kept_us) < now_us) {
            generations.pop_front();
        }
    }

    /// Notes a key that came at `time_us`; forgets what is older than the window.
    pub(crate) fn note(&self, key: u128, time_us: i64) {
        let step = (self.window_us / GENERATIONS).max(1);
        let mut generations = self.generations.lock();
        let fresh = generations.back().is_none_or(|newest| time_us >= newest.started_us.saturating_add(step));
        if fresh {
            generations.push_back(Generation { started_us: time_us, keys: HashSet::new() });
        }
        self.forget_old(&mut generations, time_us);
        if generations.iter().map(|generation| generation.keys.len()).sum::<usize>() >= KEYS_MAX
            && let Some(dropped) = generations.pop_front()
        {
            metrics::counter!("lakegate_duplicate_keys_forgotten_early_total").increment(dropped.keys.len() as u64);
            if generations.is_empty() {
                generations.push_back(Generation { started_us: time_us, keys: HashSet::new() });
            }
        }
        if let Some(newest) = generations.back_mut() {
            newest.keys.insert(key);
        }
    }
}

/// The key of a row: a hash of the values of the key's columns, each with its length before it.
pub(crate) fn key_of(row: &[Value<'_>], columns: &[usize], scratch: &mut Vec<u8>) -> Option<u128> {
    scratch.clear();
    let mut any = false;
    for column in columns {
        let value = row.get(*column)?;
        any |= *value != Value::Null;
        put_value(value, scratch);
    }
    any.then(|| xxh3_128(scratch))
}

/// The key of a whole request.
pub(crate) fn batch_key(batch_id: &str) -> u128 {
    xxh3_128(batch_id.as_bytes()).max(1)
}

fn put_value(value: &Value<'_>, out: &mut Vec<u8>) {
    let mut put = |tag: u8, bytes: &[u8]| {
        out.push(tag);
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    match value {
        Value::Null => put(0, &[]),
        Value::Boolean(value) => put(1, &[u8::from(*value)]),
        Value::Long(value) => put(2, &value.to_le_bytes()),
        Value::Double(value) => put(3, &value.to_bits().to_le_bytes()),
        Value::Decimal(value) => put(4, &value.to_le_bytes()),
        Value::Text(text) => put(5, text.as_bytes()),
        Value::Owned(text) => put(5, text.as_bytes()),
        Value::Bytes(bytes) => put(6, bytes),
        Value::OwnedBytes(bytes) => put(6, bytes),
        Value::Map(entries) => entries.iter().for_each(|(key, value)| {
            put(7, key.as_bytes());
            put(8, value.as_bytes());
        }),
        Value::OwnedMap(entries) => entries.iter().for_each(|(key, value)| {
            put(7, key.as_bytes());
            put(8, value.as_bytes());
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_within_the_window_and_forgotten_after_it() {
        let window = Window::new(1000);
        window.note(1, 0);
        for time in (0..=1_000_000_i64).step_by(100_000) {
            window.note(1000 + u128::from(time.unsigned_abs()), time);
            assert!(window.contains(1, time), "at {time} µs");
        }
        for time in (1_000_000..=2_000_000).step_by(100_000) {
            window.note(5, time);
        }
        assert!(!window.contains(1, 2_000_000));
        assert!(window.contains(5, 2_000_000));
        assert!(!window.contains(5, 4_000_000), "a stream that rests forgets too");
    }

    #[test]
    fn keys_of_neighbouring_columns_do_not_run_into_each_other() {
        let mut scratch = Vec::new();
        let mut key = |a, b| key_of(&[Value::Text(a), Value::Text(b)], &[0, 1], &mut scratch);
        assert_ne!(key("ab", "c"), key("a", "bc"));
        assert_eq!(key("ab", "c"), key("ab", "c"));
        assert_eq!(key_of(&[Value::Null], &[0], &mut Vec::new()), None);
    }
}
