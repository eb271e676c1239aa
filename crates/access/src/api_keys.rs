//! The API keys that are valid now: those of the configuration, and those of the key file, which is read again when it
//! changes, so that a key that is made or revoked is noticed within seconds.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use hashbrown::HashMap;
use lakegate_env::{Clock, RealDisk};
use parking_lot::{Mutex, RwLock};

use crate::key_file::{KeyFileError, KeyRecord, read_keys};
use crate::principal::{Principal, Proof};
use crate::secret::{Digest, same, sha256};

/// What is compared with when there is no key of that id, so that such an answer takes as long as any other.
const NOBODY: Digest = [0; 32];

#[derive(Debug)]
struct Entry {
    digest: Digest,
    principal: Arc<Principal>,
}

type Entries = HashMap<Arc<str>, Entry>;

/// The valid keys.
pub(crate) struct ApiKeys {
    clock: Arc<dyn Clock>,
    configured: Vec<KeyRecord>,
    file: Option<PathBuf>,
    entries: RwLock<Entries>,
    seen: Mutex<Option<Stamp>>,
}

/// What changes when a file is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(Option<(u64, i64, i64, u64)>);

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self(Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len())))
    }
}

impl ApiKeys {
    /// Reads all keys.
    pub(crate) fn open(
        clock: Arc<dyn Clock>,
        configured: Vec<KeyRecord>,
        file: Option<PathBuf>,
    ) -> Result<Self, KeyFileError> {
        let keys = Self { clock, configured, file, entries: RwLock::default(), seen: Mutex::default() };
        keys.refresh()?;
        Ok(keys)
    }

    /// Reads the file again if it was replaced. After an error the keys are those that they were.
    pub(crate) fn refresh(&self) -> Result<(), KeyFileError> {
        let Some(path) = &self.file else { return self.replace(&[]) };
        let stamp = match std::fs::metadata(path) {
            Ok(metadata) => Stamp::of(&metadata),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Stamp(None),
            Err(source) => return Err(KeyFileError::Io { path: path.clone(), source }),
        };
        let mut seen = self.seen.lock();
        if *seen == Some(stamp) {
            return Ok(());
        }
        self.replace(&read_keys(&RealDisk, path)?)?;
        *seen = Some(stamp);
        Ok(())
    }

    fn replace(&self, of_file: &[KeyRecord]) -> Result<(), KeyFileError> {
        let mut entries = Entries::new();
        for record in of_file.iter().chain(&self.configured).filter(|record| record.revoked_us.is_none()) {
            let id: Arc<str> = Arc::from(record.id.as_str());
            let principal = Principal {
                id: Arc::from(format!("key:{id}")),
                tenant: record.tenant.clone(),
                grants: record.grants()?,
                expires_us: record.expires_us,
                proof: Proof::ApiKey(id.clone()),
            };
            entries.insert(id, Entry { digest: record.digest()?, principal: Arc::new(principal) });
        }
        *self.entries.write() = entries;
        Ok(())
    }

    /// Whose key it is, if it is one.
    pub(crate) fn find(&self, id: &str, key: &str) -> Option<Arc<Principal>> {
        let found = sha256(key.as_bytes());
        let entries = self.entries.read();
        let entry = entries.get(id);
        let right = same(&found, entry.map_or(&NOBODY, |entry| &entry.digest));
        let principal = entry.filter(|_| right).map(|entry| entry.principal.clone())?;
        self.is_in_time(&principal).then_some(principal)
    }

    /// Whose the key of that id is, while it holds.
    pub(crate) fn principal_of(&self, id: &str) -> Option<Arc<Principal>> {
        let principal = self.entries.read().get(id)?.principal.clone();
        self.is_in_time(&principal).then_some(principal)
    }

    /// Whether the key is still what it was when the principal was made.
    pub(crate) fn holds(&self, id: &str, principal: &Principal) -> bool {
        let entries = self.entries.read();
        entries.get(id).is_some_and(|entry| *entry.principal == *principal) && self.is_in_time(principal)
    }

    fn is_in_time(&self, principal: &Principal) -> bool {
        principal.expires_us.is_none_or(|end| self.clock.wall_us() < end)
    }
}

#[cfg(test)]
mod tests {
    use lakegate_env::{ManualClock, SystemRandom};
    use lakegate_model::TenantId;

    use super::*;
    use crate::key_file::{KEY_FILE, NewKey, change_keys};

    fn record(key: &NewKey) -> KeyRecord {
        KeyRecord::of_key(&key.key, TenantId::new("acme").unwrap(), vec!["write".to_owned()]).unwrap()
    }

    fn change(path: &std::path::Path, change: impl FnOnce(&mut Vec<KeyRecord>)) {
        let done = |keys: &mut Vec<KeyRecord>| {
            change(keys);
            Ok(())
        };
        change_keys(&RealDisk, path, done).unwrap();
    }

    #[test]
    fn s09_a_key_is_found_by_all_of_it_and_by_nothing_less() {
        let (key, other) = (NewKey::generate(&SystemRandom), NewKey::generate(&SystemRandom));
        let keys = ApiKeys::open(Arc::new(ManualClock::new(0)), vec![record(&key), record(&other)], None).unwrap();
        assert_eq!(keys.find(&key.id, &key.key).unwrap().id.as_ref(), format!("key:{}", key.id));
        for end in 0..key.key.len() {
            assert!(keys.find(&key.id, &key.key[..end]).is_none());
        }
        assert!(keys.find(&key.id, &other.key).is_none() && keys.find("nobody", &key.key).is_none());
    }

    #[test]
    fn s11_a_key_that_is_made_revoked_or_over_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        let clock = Arc::new(ManualClock::new(1_000));
        let keys = ApiKeys::open(clock.clone(), Vec::new(), Some(path.clone())).unwrap();
        let key = NewKey::generate(&SystemRandom);
        let made = KeyRecord { expires_us: Some(5_000), ..record(&key) };
        change(&path, |keys| keys.push(made));
        assert!(keys.find(&key.id, &key.key).is_none(), "not read yet");
        keys.refresh().unwrap();
        let principal = keys.find(&key.id, &key.key).unwrap();
        assert!(keys.holds(&key.id, &principal));
        clock.advance_us(4_000);
        assert!(keys.find(&key.id, &key.key).is_none() && !keys.holds(&key.id, &principal), "over");
        clock.jump_wall_us(-4_000);
        assert!(keys.holds(&key.id, &principal));
        change(&path, |keys| keys[0].revoked_us = Some(2));
        keys.refresh().unwrap();
        assert!(keys.find(&key.id, &key.key).is_none() && !keys.holds(&key.id, &principal), "revoked");
    }

    #[test]
    fn a_damaged_file_leaves_the_keys_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        let key = NewKey::generate(&SystemRandom);
        change(&path, |keys| keys.push(record(&key)));
        let keys = ApiKeys::open(Arc::new(ManualClock::new(0)), Vec::new(), Some(path.clone())).unwrap();
        std::fs::write(&path, "{").unwrap();
        assert!(keys.refresh().is_err() && keys.find(&key.id, &key.key).is_some());
        std::fs::remove_file(&path).unwrap();
        keys.refresh().unwrap();
        assert!(keys.find(&key.id, &key.key).is_none(), "removing the file revokes its keys");
    }
}
