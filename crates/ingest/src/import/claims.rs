//! Event keys of rows that are on their way into a table and not committed yet.
//!
//! Such a row is neither there nor not there: a record of the same key that was called a duplicate would be lost if the
//! import died, and one that was taken would be there twice if it did not. So a live record is asked to come back, and
//! another import commits what it has and waits. Invariants: a key is claimed by at most one import; it is claimed,
//! looked up and let go under the lock of the stream's table; letting go comes after the noting in the window.

use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::duplicates::CONTENT_BITS;

/// The claims of one stream.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    owners: Mutex<HashMap<u128, u64>>,
    /// How many there are: live records look here first.
    count: AtomicUsize,
    released: Notify,
}

/// What claiming some rows came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// One flag for each row: whether it is a duplicate. The others' keys are claimed now.
    Rows(Vec<bool>),
    /// Another import holds one of the keys; nothing was claimed.
    Held,
}

impl Claims {
    /// Claims the keys for `owner`. `known` tells those that the stream's window has.
    pub(crate) fn claim(&self, keys: &[Option<u128>], owner: u64, known: impl Fn(u128) -> bool) -> Claimed {
        let mut owners = self.owners.lock();
        let flags: Vec<bool> = keys.iter().map(|key| key.is_some_and(&known)).collect();
        let fresh = || keys.iter().zip(&flags).filter(|(_, known)| !**known).filter_map(|(key, _)| *key);
        if fresh().any(|key| owners.get(&key).is_some_and(|found| *found != owner)) {
            return Claimed::Held;
        }
        let mut claim = |(key, known): (&Option<u128>, &bool)| match key {
            Some(key) if !known => owners.insert(*key, owner).is_some(),
            _ => *known,
        };
        let flags = keys.iter().zip(&flags).map(&mut claim).collect();
        self.count.store(owners.len(), Ordering::Release);
        Claimed::Rows(flags)
    }

    /// Whether an import holds one of the keys.
    pub(crate) fn holds_any(&self, mut keys: impl Iterator<Item = u128>) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let owners = self.owners.lock();
        keys.any(|key| owners.contains_key(&(key & !CONTENT_BITS)))
    }

    /// Lets go of keys.
    pub(crate) fn release(&self, keys: &[u128]) {
        let mut owners = self.owners.lock();
        for key in keys {
            owners.remove(key);
        }
        if owners.is_empty() {
            owners.shrink_to_fit();
        }
        self.count.store(owners.len(), Ordering::Release);
        drop(owners);
        self.released.notify_waiters();
    }

    /// Comes back when some keys were let go.
    pub(crate) fn released(&self) -> tokio::sync::futures::Notified<'_> {
        self.released.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_claimed_once_and_another_import_waits_for_it() {
        let claims = Claims::default();
        let key = |n: u128| n << 64;
        let known = |found: u128| found == key(9);
        let rows = |flags: &[bool]| Claimed::Rows(flags.to_vec());
        assert_eq!(
            claims.claim(&[Some(key(1)), Some(key(9)), None, Some(key(1)), None], 1, known),
            rows(&[false, true, false, true, false])
        );
        assert_eq!(claims.claim(&[Some(key(2)), Some(key(1))], 2, known), Claimed::Held);
        assert!(!claims.holds_any([key(2)].into_iter()), "of a piece that waits nothing is claimed");
        assert!(claims.holds_any([key(7), key(1) | 5].into_iter()));
        claims.release(&[key(1)]);
        assert!(!claims.holds_any([key(1)].into_iter()));
        assert_eq!(claims.claim(&[Some(key(2)), Some(key(1))], 2, known), rows(&[false, false]));
    }
}
