//! The file of API keys: who has one, under which hash, until when.
//!
//! ```text
//! { "version": 1,
//!   "keys": [ { "id": "k7w…", "hash": "<SHA-256 of the whole key, hexadecimal>", "tenant": "acme", "name": "shop",
//!               "permissions": ["write:cart"], "created_us": 1763…, "expires_us": null, "revoked_us": null } ] }
//! ```
//!
//! Promises: a key itself is never kept, so that who reads the file cannot use it; the file is its owner's alone and is
//! replaced as a whole, durably; two commands that change it at once wait for one another.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lakegate_env::{Disk, Random};
use lakegate_model::TenantId;
use serde::{Deserialize, Serialize};

use crate::principal::{Grants, PermissionError};
use crate::secret::{Digest, digest_of_hex, hex, random_text, sha256};

/// The file's name in the data folder.
pub const KEY_FILE: &str = "api-keys.json";
/// What every key begins with, so that a scanner for leaked secrets finds it.
const PREFIX: &str = "lgk_";
/// Letters of an id: 60 bits, enough that no two are alike.
const ID_LETTERS: usize = 12;
/// Letters of a secret: 260 bits.
const SECRET_LETTERS: usize = 52;
/// The most keys, so that the file stays one that is read in an instant.
const KEYS_MAX: usize = 100_000;
const VERSION: u32 = 1;

/// A new key. It is shown once, to who asked for it.
pub struct NewKey {
    /// The key's id, which is no secret.
    pub id: String,
    /// The whole key.
    pub key: String,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl NewKey {
    /// Makes a key.
    #[must_use]
    pub fn generate(random: &dyn Random) -> Self {
        let id = random_text(random, ID_LETTERS);
        let key = format!("{PREFIX}{id}_{}", random_text(random, SECRET_LETTERS));
        Self { id, key }
    }

    /// What is kept of it.
    #[must_use]
    pub fn hash(&self) -> String {
        hex(&sha256(self.key.as_bytes()))
    }
}

/// The id in a text that has the form of a key.
#[must_use]
pub fn id_of_key(text: &str) -> Option<&str> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
    (plain(id) && id.len() <= 64 && plain(secret) && secret.len() >= 32 && secret.len() <= 128).then_some(id)
}

/// One key as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// Its id.
    pub id: String,
    /// The SHA-256 of the whole key, in hexadecimal digits.
    pub hash: String,
    /// Whose records it may touch.
    pub tenant: TenantId,
    /// For people: what it is for.
    #[serde(default)]
    pub name: String,
    /// What it may do.
    pub permissions: Vec<String>,
    /// When it was made, in microseconds since 1970.
    #[serde(default)]
    pub created_us: i64,
    /// When it ends.
    #[serde(default)]
    pub expires_us: Option<i64>,
    /// When it was revoked.
    #[serde(default)]
    pub revoked_us: Option<i64>,
}

impl KeyRecord {
    /// The record of a key that is known by itself rather than by its hash.
    ///
    /// # Errors
    /// The text is no key; it is not repeated.
    pub fn of_key(key: &str, tenant: TenantId, permissions: Vec<String>) -> Result<Self, KeyFileError> {
        let id = id_of_key(key).ok_or(KeyFileError::NotAKey)?.to_owned();
        let hash = hex(&sha256(key.as_bytes()));
        let name = String::new();
        Ok(Self { id, hash, tenant, name, permissions, created_us: 0, expires_us: None, revoked_us: None })
    }

    /// Whether it is neither revoked nor over.
    #[must_use]
    pub fn is_usable(&self, now_us: i64) -> bool {
        self.revoked_us.is_none() && self.expires_us.is_none_or(|end| now_us < end)
    }

    pub(crate) fn digest(&self) -> Result<Digest, KeyFileError> {
        digest_of_hex(&self.hash).ok_or_else(|| KeyFileError::BadHash { id: self.id.clone() })
    }

    pub(crate) fn grants(&self) -> Result<Grants, KeyFileError> {
        let bad = |error| KeyFileError::Permission { id: self.id.clone(), error };
        Grants::parse(&self.permissions).map_err(bad)
    }
}

/// Why keys could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what it should be.
    #[error("{path} is not a file of API keys: {error}; put a copy of it back, or remove it and make new keys")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// The hash is none.
    #[error("the hash of the API key {id} is not 64 hexadecimal digits (SHA-256 of the whole key)")]
    BadHash {
        /// Which key.
        id: String,
    },
    /// A permission is none.
    #[error("the API key {id}: {error}")]
    Permission {
        /// Which key.
        id: String,
        /// Which permission.
        error: PermissionError,
    },
    /// The text is no key.
    #[error("the text is not an API key of the form lgk_<id>_<secret>; `lakegate key create` makes one")]
    NotAKey,
    /// No such key.
    #[error("there is no usable API key {0}; `lakegate key ls` lists those that there are")]
    Unknown(String),
    /// Too many.
    #[error("{KEYS_MAX} API keys are kept, which is the most; remove revoked ones with `lakegate key prune`")]
    TooMany,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    keys: Vec<KeyRecord>,
}

/// Reads the keys that are kept in `path`; none if it is not there.
///
/// # Errors
/// The file cannot be read, or is not one of keys.
pub fn read_keys(disk: &dyn Disk, path: &Path) -> Result<Vec<KeyRecord>, KeyFileError> {
    let bytes = match disk.read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(KeyFileError::Io { path: path.to_owned(), source }),
    };
    let unreadable = |error: String| KeyFileError::Unreadable { path: path.to_owned(), error };
    let content: Content = serde_json::from_slice(&bytes).map_err(|e| unreadable(e.to_string()))?;
    if content.version != VERSION {
        return Err(unreadable(format!("its version is {}, this program reads {VERSION}", content.version)));
    }
    for key in &content.keys {
        key.digest().and_then(|_| key.grants())?;
    }
    Ok(content.keys)
}

/// Changes the keys in `path` and keeps them, durably. Others that do the same wait meanwhile.
///
/// # Errors
/// The file cannot be read or written, or `change` refuses; then it is as it was.
pub fn change_keys<T>(
    disk: &dyn Disk,
    path: &Path,
    change: impl FnOnce(&mut Vec<KeyRecord>) -> Result<T, KeyFileError>,
) -> Result<T, KeyFileError> {
    let failed = |source| KeyFileError::Io { path: path.to_owned(), source };
    let _locked = lock(&path.with_extension("lock")).map_err(failed)?;
    let mut keys = read_keys(disk, path)?;
    let answer = change(&mut keys)?;
    if keys.len() > KEYS_MAX {
        return Err(KeyFileError::TooMany);
    }
    let content = serde_json::to_vec_pretty(&Content { version: VERSION, keys });
    disk.write_atomic(path, &content.map_err(io::Error::from).map_err(failed)?).map_err(failed)?;
    Ok(answer)
}

/// Held until it is dropped. The file stays: removing it would let two hold it.
fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use lakegate_env::{RealDisk, SystemRandom};

    use super::*;

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
    fn s09_the_file_holds_hashes_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        let key = NewKey::generate(&SystemRandom);
        let secret = key.key.rsplit('_').next().unwrap();
        change(&path, |keys| keys.push(record(&key)));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&key.hash()) && !text.contains(secret));
        assert!(!format!("{key:?}").contains(secret));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_keys(&RealDisk, &path).unwrap(), [record(&key)]);
    }

    #[test]
    fn a_change_that_is_refused_leaves_the_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        let refused: Result<(), _> = change_keys(&RealDisk, &path, |keys| {
            keys.push(record(&NewKey::generate(&SystemRandom)));
            Err(KeyFileError::Unknown("x".to_owned()))
        });
        assert!(refused.is_err() && read_keys(&RealDisk, &path).unwrap().is_empty());
        std::fs::write(&path, "{}").unwrap();
        assert!(matches!(read_keys(&RealDisk, &path), Err(KeyFileError::Unreadable { .. })));
    }

    #[test]
    fn only_texts_of_the_right_form_are_keys() {
        let key = NewKey::generate(&SystemRandom);
        assert_eq!(id_of_key(&key.key), Some(key.id.as_str()));
        for bad in ["", "lgk_", "lgk_a_b", "lgk__aaaa", &key.key[1..], &format!("{}/..", key.key)] {
            assert_eq!(id_of_key(bad), None, "{bad}");
        }
    }
}
