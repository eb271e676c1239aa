//! The keys of one tenant's part of one stream, for as long as its window says.
//!
//! A key is 96 bits of a hash, and beside it 32 bits of a hash of the record's content (0: not known), in one `u128`: the
//! content is the low part. All keys lie in one hash table of many small parts, so that no growth copies more than a
//! part. Each key has the number of the step in which it came; a step covers a share of the window, by time and by
//! number, and is forgotten as a whole: keys of forgotten steps count as absent at once, and are taken out when their
//! part needs the room.
//!
//! Promises: a key is known from its noting to the end of the window, or until [`WindowLimits::keys_max`] newer ones
//! came; a look costs one access to the table however large it is. Refuses: nothing; what does not fit is forgotten.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;
use parking_lot::Mutex;

/// Into so many parts the table is cut: a growth copies one of them.
const PARTS: usize = 64;
/// The window is forgotten in so many steps.
const STEPS: u64 = 16;

/// How long, and how many keys are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowLimits {
    /// How long, in microseconds.
    pub(crate) window_us: i64,
    /// How many; beyond, the oldest are forgotten early, and that is counted.
    pub(crate) keys_max: u64,
}

/// What a window says to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    /// It was not there; now it is.
    New,
    /// It was there.
    Before,
    /// It was there, with other content.
    Otherwise,
}

/// Twenty bytes.
#[derive(Debug, Clone, Copy)]
struct Entry {
    key: [u32; 3],
    content: u32,
    step: u32,
}

#[derive(Debug)]
struct Step {
    first_us: i64,
    last_us: i64,
    keys: u64,
}

#[derive(Debug)]
struct Table {
    limits: WindowLimits,
    parts: Vec<HashTable<Entry>>,
    steps: VecDeque<Step>,
    /// The number of the first of `steps`.
    oldest: u32,
    /// Keys of `steps`.
    live: u64,
    /// Steps below this one are out of the table.
    swept: u32,
}

/// The keys of one tenant's part of one stream.
#[derive(Debug)]
pub(crate) struct Window {
    table: Mutex<Table>,
    /// Keys of all windows.
    total: Arc<AtomicU64>,
}

impl Window {
    pub(crate) fn new(limits: WindowLimits, total: Arc<AtomicU64>) -> Self {
        let table = Table { limits, parts: Vec::new(), steps: VecDeque::new(), oldest: 0, live: 0, swept: 0 };
        Self { table: Mutex::new(table), total }
    }

    pub(crate) fn set_limits(&self, limits: WindowLimits) {
        self.table.lock().limits = limits;
    }

    /// Looks up each key and notes those that are new, in one go: a key that comes twice is new once. A record without
    /// a key is always new.
    pub(crate) fn claim(&self, keys: impl Iterator<Item = Option<u128>>, now_us: i64) -> Vec<Met> {
        let mut table = self.table.lock();
        let before = table.live;
        table.forget_old(now_us);
        let met = keys.map(|key| key.map_or(Met::New, |key| table.claim(key, now_us))).collect();
        self.settle(before, table.live);
        met
    }

    /// Takes back keys that [`Self::claim`] found new, for nothing came of it.
    pub(crate) fn give_up(&self, keys: impl Iterator<Item = u128>) {
        let mut table = self.table.lock();
        let before = table.live;
        keys.for_each(|key| table.remove(key));
        self.settle(before, table.live);
    }

    /// Notes a key that was accepted at `time_us`.
    pub(crate) fn remember(&self, key: u128, time_us: i64) {
        let mut table = self.table.lock();
        let before = table.live;
        table.claim(key, time_us);
        self.settle(before, table.live);
    }

    /// Whether the key is there.
    pub(crate) fn knows(&self, key: u128) -> bool {
        let table = self.table.lock();
        table.find(key).is_some_and(|entry| entry.step >= table.oldest)
    }

    /// How many keys there are.
    pub(crate) fn keys(&self) -> u64 {
        self.table.lock().live
    }

    /// Forgets the oldest step before its time.
    pub(crate) fn forget_early(&self) {
        let mut table = self.table.lock();
        let before = table.live;
        table.forget_oldest();
        self.settle(before, table.live);
    }

    /// Forgets what is over and gives the memory back; other requests get their turn between the parts.
    pub(crate) fn sweep(&self, now_us: i64) {
        let parts = {
            let mut table = self.table.lock();
            let before = table.live;
            table.forget_old(now_us);
            self.settle(before, table.live);
            if table.live == 0 {
                table.parts.clear();
            }
            if table.swept == table.oldest { 0 } else { table.parts.len() }
        };
        for part in 0..parts {
            self.table.lock().sweep_part(part);
        }
        let mut table = self.table.lock();
        table.swept = table.oldest;
    }

    fn settle(&self, before: u64, after: u64) {
        self.total.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.total.fetch_sub(self.table.get_mut().live, Ordering::Relaxed);
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the words of a key")]
fn words(key: u128) -> ([u32; 3], u32) {
    ([(key >> 96) as u32, (key >> 64) as u32, (key >> 32) as u32], key as u32)
}

fn hash_of(key: [u32; 3]) -> u64 {
    let [high, low, _] = key;
    u64::from(high) << 32 | u64::from(low)
}

/// Of a word that the hash inside the part has no bit of.
fn part_of([_, _, word]: [u32; 3]) -> usize {
    word as usize % PARTS
}

impl Table {
    fn find(&self, key: u128) -> Option<&Entry> {
        let (key, _) = words(key);
        self.parts.get(part_of(key))?.find(hash_of(key), |entry| entry.key == key)
    }

    fn claim(&mut self, key: u128, time_us: i64) -> Met {
        if self.parts.is_empty() {
            self.parts.resize_with(PARTS, HashTable::new);
        }
        let step = self.step_at(time_us);
        let (key, content) = words(key);
        let oldest = self.oldest;
        let Some(part) = self.parts.get_mut(part_of(key)) else { return Met::New };
        if part.len() == part.capacity() {
            make_room(part, oldest);
        }
        let fresh = Entry { key, content, step };
        match part.entry(hash_of(key), |entry| entry.key == key, |entry| hash_of(entry.key)) {
            Place::Occupied(mut found) if found.get().step < oldest => *found.get_mut() = fresh,
            Place::Occupied(found) => {
                let known = found.get().content;
                let differs = known != 0 && content != 0 && known != content;
                return if differs { Met::Otherwise } else { Met::Before };
            }
            Place::Vacant(place) => {
                place.insert(fresh);
            }
        }
        self.live += 1;
        if let Some(newest) = self.steps.back_mut() {
            newest.keys += 1;
        }
        Met::New
    }

    /// The number of the step for a key of that time; begins one where the newest is full.
    fn step_at(&mut self, time_us: i64) -> u32 {
        let width_us = (self.limits.window_us / STEPS.cast_signed()).max(1);
        let most = (self.limits.keys_max / STEPS).max(1);
        let full = |newest: &Step| time_us >= newest.first_us.saturating_add(width_us) || newest.keys >= most;
        if self.steps.back().is_none_or(full) {
            while self.live + most > self.limits.keys_max && !self.steps.is_empty() {
                self.forget_oldest();
            }
            self.steps.push_back(Step { first_us: time_us, last_us: time_us, keys: 0 });
        }
        if let Some(newest) = self.steps.back_mut() {
            newest.last_us = newest.last_us.max(time_us);
        }
        self.oldest + u32::try_from(self.steps.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    fn forget_old(&mut self, now_us: i64) {
        let over = |step: &Step, window_us: i64| step.last_us.saturating_add(window_us) < now_us;
        while self.steps.front().is_some_and(|step| over(step, self.limits.window_us)) {
            self.pop_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let forgotten = self.pop_oldest();
        metrics::counter!("lakegate_duplicate_keys_forgotten_early_total").increment(forgotten);
    }

    fn pop_oldest(&mut self) -> u64 {
        let Some(step) = self.steps.pop_front() else { return 0 };
        self.oldest += 1;
        self.live -= step.keys;
        step.keys
    }

    fn remove(&mut self, key: u128) {
        let (key, _) = words(key);
        let Some(part) = self.parts.get_mut(part_of(key)) else { return };
        let Ok(found) = part.find_entry(hash_of(key), |entry| entry.key == key) else { return };
        let (entry, _) = found.remove();
        let at = entry.step.checked_sub(self.oldest).map(|at| at as usize);
        if let Some(step) = at.and_then(|at| self.steps.get_mut(at)) {
            step.keys -= 1;
            self.live -= 1;
        }
    }

    fn sweep_part(&mut self, part: usize) {
        let oldest = self.oldest;
        let Some(part) = self.parts.get_mut(part) else { return };
        part.retain(|entry| entry.step >= oldest);
        if part.len() < part.capacity() / 4 {
            part.shrink_to(part.len() * 2, |entry| hash_of(entry.key));
        }
    }
}

/// Takes out what is forgotten. Where that leaves little room the part is made anew, so that it is not soon full again:
/// larger, or as large, and rid of the marks that taking out leaves.
fn make_room(part: &mut HashTable<Entry>, oldest: u32) {
    part.retain(|entry| entry.step >= oldest);
    if part.capacity() - part.len() > part.len() / 16 {
        return;
    }
    let mut anew = HashTable::with_capacity(part.len() + part.len() / 8 + 1);
    for entry in part.drain() {
        anew.insert_unique(hash_of(entry.key), entry, |entry| hash_of(entry.key));
    }
    *part = anew;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(window_ms: i64, keys_max: u64) -> Window {
        Window::new(WindowLimits { window_us: window_ms * 1000, keys_max }, Arc::default())
    }

    /// A key as a hash would be.
    fn key(n: u64) -> u128 {
        xxhash_rust::xxh3::xxh3_128(&n.to_le_bytes()) & !u128::from(u32::MAX)
    }

    fn claim(window: &Window, n: u64, now_us: i64) -> Met {
        window.claim([Some(key(n))].into_iter(), now_us)[0]
    }

    #[test]
    fn a_key_is_known_within_the_window_and_forgotten_after_it() {
        let window = window(1000, 1 << 20);
        assert_eq!(claim(&window, 1, 0), Met::New);
        for time in (0..=1_000_000_i64).step_by(100_000) {
            assert_eq!(claim(&window, 1000 + time.unsigned_abs(), time), Met::New);
            assert_eq!(claim(&window, 1, time), Met::Before, "at {time} µs");
        }
        assert_eq!(claim(&window, 1, 2_000_000), Met::New);
        assert_eq!(claim(&window, 1, 2_100_000), Met::Before);
        assert_eq!(claim(&window, 1, 5_000_000), Met::New, "a stream that rests forgets too");
    }

    #[test]
    fn f50_the_window_by_number_forgets_the_oldest_and_only_these() {
        let window = window(1_000_000, 1600);
        for n in 0..10_000 {
            assert_eq!(claim(&window, n, 0), Met::New);
            assert!(window.keys() <= 1600, "{} keys after {n}", window.keys());
            assert_eq!(window.total.load(Ordering::Relaxed), window.keys());
        }
        let known = (0..10_000).filter(|n| window.knows(key(*n))).collect::<Vec<_>>();
        assert!(known.len() >= 1500, "{} are known", known.len());
        assert_eq!(known, (10_000 - known.len() as u64..10_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_claim_that_is_given_up_leaves_nothing() {
        let window = window(1000, 100);
        let met = window.claim([Some(key(1)), Some(key(2)), Some(key(1)), None, None].into_iter(), 0);
        assert_eq!(met, [Met::New, Met::New, Met::Before, Met::New, Met::New]);
        window.give_up([key(1), key(2)].into_iter());
        assert_eq!((window.keys(), window.total.load(Ordering::Relaxed)), (0, 0));
        assert_eq!(claim(&window, 1, 0), Met::New);
    }

    #[test]
    fn f51_a_key_with_other_content_is_told_from_the_same_again() {
        let window = window(1000, 100);
        let with = |content: u32| window.claim([Some(key(1) | u128::from(content))].into_iter(), 0)[0];
        assert_eq!([with(7), with(7), with(8), with(0)], [Met::New, Met::Before, Met::Otherwise, Met::Before]);
    }

    #[test]
    fn what_is_forgotten_gives_its_memory_back() {
        let window = window(1000, 1 << 20);
        for n in 0..100_000 {
            claim(&window, n, 0);
        }
        window.sweep(5_000_000);
        assert_eq!((window.keys(), window.table.lock().parts.len()), (0, 0));
        for n in 0..100_000 {
            claim(&window, n, 5_000_000 + n.cast_signed() * 20);
        }
        let slots = |window: &Window| window.table.lock().parts.iter().map(HashTable::capacity).sum::<usize>();
        let before = slots(&window);
        window.sweep(7_950_000);
        assert!(window.keys() < 10_000 && window.keys() > 0, "{} keys", window.keys());
        assert!(slots(&window) * 4 < before, "{} slots of {before}", slots(&window));
        assert!(window.knows(key(99_999)) && !window.knows(key(0)));
    }
}
