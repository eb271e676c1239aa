//! The tokens that were checked, by their digests.

use std::mem;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::RwLock;

use crate::principal::Principal;
use crate::secret::Digest;

/// So many are remembered in each half: about 8 MiB.
const HALF: usize = 16_384;

/// Two halves: a full young one becomes the old one, and what is still used comes back from there.
#[derive(Default)]
pub(super) struct Cache(RwLock<Halves>);

#[derive(Default)]
struct Halves {
    /// Of which state of the keys they are.
    generation: u64,
    young: HashMap<Digest, Arc<Principal>>,
    old: HashMap<Digest, Arc<Principal>>,
}

impl Cache {
    pub(super) fn get(&self, digest: &Digest, generation: u64) -> Option<Arc<Principal>> {
        let halves = self.0.read();
        if halves.generation != generation {
            return None;
        }
        if let Some(found) = halves.young.get(digest) {
            return Some(found.clone());
        }
        let found = halves.old.get(digest)?.clone();
        drop(halves);
        self.put(*digest, found.clone(), generation);
        Some(found)
    }

    pub(super) fn put(&self, digest: Digest, principal: Arc<Principal>, generation: u64) {
        let mut halves = self.0.write();
        if halves.generation != generation {
            if halves.generation > generation {
                return;
            }
            *halves = Halves { generation, ..Halves::default() };
        }
        if halves.young.len() >= HALF {
            halves.old = mem::take(&mut halves.young);
        }
        halves.young.insert(digest, principal);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let halves = self.0.read();
        halves.young.len() + halves.old.len()
    }
}

#[cfg(test)]
mod tests {
    use lakegate_model::TenantId;

    use super::*;
    use crate::principal::{Grants, Proof};

    fn principal() -> Arc<Principal> {
        Arc::new(Principal {
            id: "token:a".into(),
            tenant: TenantId::new("acme").unwrap(),
            grants: Grants::default(),
            expires_us: None,
            proof: Proof::Token([0; 32]),
        })
    }

    fn digest(n: u64) -> Digest {
        crate::secret::sha256(&n.to_le_bytes())
    }

    #[test]
    fn a_flood_of_tokens_takes_bounded_room_and_what_is_used_stays() {
        let cache = Cache::default();
        cache.put(digest(0), principal(), 1);
        for n in 1..5 * HALF as u64 {
            cache.put(digest(n), principal(), 1);
            if n % 1000 == 0 {
                assert!(cache.get(&digest(0), 1).is_some(), "{n}");
            }
        }
        assert!(cache.len() <= 2 * HALF);
        assert!(cache.get(&digest(1), 1).is_none());
    }

    #[test]
    fn s08_tokens_of_former_keys_are_forgotten() {
        let cache = Cache::default();
        cache.put(digest(0), principal(), 1);
        assert!(cache.get(&digest(0), 2).is_none());
        cache.put(digest(1), principal(), 2);
        cache.put(digest(0), principal(), 1);
        assert!(cache.get(&digest(0), 2).is_none() && cache.get(&digest(1), 2).is_some());
    }
}
