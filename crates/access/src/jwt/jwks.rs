//! Where the keys for tokens come from: a file, or an address of a JWKS, asked for rarely and by one at a time.
//!
//! Promises: what tokens say never leads to another address; an answer is bounded in time and bytes and followed to no
//! other place; tokens that name unknown keys make at most one request in [`ASK_EVERY`]; a key that the address no
//! longer has is used for the grace time, and while the address is away the keys stay for [`STALE_MAX`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lakegate_env::Clock;
use parking_lot::RwLock;
use tokio::sync::Mutex;

use super::TokenKeysFrom;
use super::keys::{TokenAlgorithm, TokenKey, TokenKeyError, read_keys};
use crate::secret::{Digest, sha256};

/// The number of the keys that were there at the start.
const FIRST_GENERATION: u64 = 1;

/// The most that keys may take, in a file or behind an address.
const BYTES_MAX: usize = 1 << 20;
/// How long an answer may take, from the connection to its last byte.
const TIMEOUT: Duration = Duration::from_secs(5);
/// So often at most the address is asked because of a key that is not known, or after a failure.
pub(super) const ASK_EVERY: Duration = Duration::from_secs(10);
/// So long keys are used while the address cannot be reached.
pub(super) const STALE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Of the keys that may be meant so many are tried.
const CANDIDATES_MAX: usize = 8;

/// One source of keys.
pub(super) enum KeySource {
    Fixed(Vec<u8>),
    File(PathBuf),
    Url { url: String, refresh: Duration, grace: Duration, client: reqwest::Client },
}

impl KeySource {
    pub(super) fn of(from: TokenKeysFrom) -> Result<Self, TokenKeyError> {
        Ok(match from {
            TokenKeysFrom::Given(bytes) => Self::Fixed(bytes),
            TokenKeysFrom::File(path) => Self::File(path),
            TokenKeysFrom::Url { url, refresh, grace } => {
                let client = reqwest::Client::builder()
                    .no_proxy()
                    .redirect(reqwest::redirect::Policy::none())
                    .connect_timeout(TIMEOUT)
                    .timeout(TIMEOUT)
                    .build();
                let client = client.map_err(|e| TokenKeyError::of(format!("no client for {url}: {e}")))?;
                Self::Url { url, refresh, grace, client }
            }
        })
    }
}

struct Held {
    key: TokenKey,
    /// Since when the source no longer has it.
    gone_us: Option<u64>,
}

#[derive(Default)]
struct Asked {
    /// When the address was last asked ...
    at_us: Option<u64>,
    /// ... and when it last answered.
    answered_us: Option<u64>,
    /// The digest of a file's content.
    content: Option<Digest>,
}

/// The keys of all sources.
pub(super) struct KeySources {
    algorithm: TokenAlgorithm,
    source: KeySource,
    clock: Arc<dyn Clock>,
    keys: RwLock<Vec<Held>>,
    generation: AtomicU64,
    /// Held while the source is asked: others that want the same wait for the one answer.
    asked: Mutex<Asked>,
}

impl KeySources {
    pub(super) fn open(
        algorithm: TokenAlgorithm,
        source: KeySource,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TokenKeyError> {
        let (keys, content) = match &source {
            KeySource::Fixed(bytes) => (read_keys(algorithm, bytes)?, None),
            KeySource::File(path) => {
                let bytes = read_file(path)?;
                let keys = read_keys(algorithm, &bytes);
                (keys.map_err(|e| TokenKeyError::of(format!("{} {e}", path.display())))?, Some(sha256(&bytes)))
            }
            KeySource::Url { .. } => (Vec::new(), None),
        };
        let keys = keys.into_iter().map(|key| Held { key, gone_us: None }).collect();
        let asked = Mutex::new(Asked { content, ..Asked::default() });
        Ok(Self {
            algorithm,
            source,
            clock,
            keys: RwLock::new(keys),
            generation: AtomicU64::new(FIRST_GENERATION),
            asked,
        })
    }

    /// Grows when keys come or go.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether no key was ever read: the address was not reached since the start.
    pub(super) fn had_none_yet(&self) -> bool {
        self.generation() == FIRST_GENERATION && self.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.read().is_empty()
    }

    /// Whether a key of that id, or one without id, is there.
    pub(super) fn has(&self, kid: Option<&str>) -> bool {
        self.keys.read().iter().any(|held| held.key.may_be(kid))
    }

    pub(super) fn has_fingerprint(&self, fingerprint: &Digest) -> bool {
        self.keys.read().iter().any(|held| held.key.fingerprint == *fingerprint)
    }

    /// The keys that a token may be signed with.
    pub(super) fn candidates(&self, kid: Option<&str>) -> Vec<TokenKey> {
        let keys = self.keys.read();
        keys.iter().map(|held| &held.key).filter(|key| key.may_be(kid)).take(CANDIDATES_MAX).cloned().collect()
    }

    /// Asks the address because a token names a key that is not known, unless it was asked a moment ago.
    pub(super) async fn ask_for(&self, kid: Option<&str>) {
        if !matches!(self.source, KeySource::Url { .. }) {
            return;
        }
        let mut asked = self.asked.lock().await;
        if !self.has(kid) && asked.at_us.is_none_or(|at| self.since(at) >= ASK_EVERY) {
            self.ask(&mut asked).await;
        }
    }

    /// Asks again if it is time, and lets keys go whose time is over.
    pub(super) async fn refresh(&self) {
        let mut asked = self.asked.lock().await;
        match &self.source {
            KeySource::Fixed(_) => {}
            KeySource::File(path) => self.read_again(path, &mut asked),
            KeySource::Url { refresh, grace, .. } => {
                let is_due = |at: u64| match asked.answered_us {
                    Some(answered) if answered >= at => self.since(answered) >= *refresh,
                    _ => self.since(at) >= ASK_EVERY,
                };
                if asked.at_us.is_none_or(is_due) {
                    self.ask(&mut asked).await;
                }
                let stale = asked.answered_us.is_some_and(|at| self.since(at) >= STALE_MAX);
                self.keep(|held| !stale && held.gone_us.is_none_or(|gone| self.since(gone) < *grace));
            }
        }
    }

    fn since(&self, at_us: u64) -> Duration {
        Duration::from_micros(self.clock.monotonic_us().saturating_sub(at_us))
    }

    fn read_again(&self, path: &Path, asked: &mut Asked) {
        let read = read_file(path).and_then(|bytes| {
            let content = sha256(&bytes);
            if asked.content == Some(content) {
                return Ok(());
            }
            let keys = read_keys(self.algorithm, &bytes)?;
            asked.content = Some(content);
            self.replace(keys, false);
            tracing::info!(path = %path.display(), "the keys for tokens were read again");
            Ok(())
        });
        if let Err(error) = read {
            tracing::warn!(path = %path.display(), %error, "the keys for tokens stay as they were");
        }
    }

    async fn ask(&self, asked: &mut Asked) {
        let KeySource::Url { url, client, .. } = &self.source else { return };
        asked.at_us = Some(self.clock.monotonic_us());
        let answer = tokio::time::timeout(TIMEOUT, fetch(client, url)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())));
        match answer.and_then(|bytes| read_keys(self.algorithm, &bytes).map_err(|e| e.to_string())) {
            Ok(keys) => {
                asked.answered_us = Some(self.clock.monotonic_us());
                self.replace(keys, true);
            }
            Err(error) => tracing::warn!(url = %url, error, "the keys for tokens could not be had; those known stay"),
        }
    }

    /// Puts the source's keys in the place of those known; `with_grace` keeps the others for a while.
    fn replace(&self, fresh: Vec<TokenKey>, with_grace: bool) {
        let now = self.clock.monotonic_us();
        let mut keys = self.keys.write();
        let known: Vec<Digest> = keys.iter().map(|held| held.key.fingerprint).collect();
        let gone = keys.drain(..).filter(|held| !fresh.iter().any(|key| key.fingerprint == held.key.fingerprint));
        let gone = gone.map(|held| Held { gone_us: held.gone_us.or(Some(now)), ..held }).filter(|_| with_grace);
        let mut next: Vec<Held> = gone.collect();
        let changed =
            fresh.iter().any(|key| !known.contains(&key.fingerprint)) || next.len() + fresh.len() != known.len();
        next.splice(0..0, fresh.into_iter().map(|key| Held { key, gone_us: None }));
        *keys = next;
        if changed {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn keep(&self, stays: impl Fn(&Held) -> bool) {
        let mut keys = self.keys.write();
        let before = keys.len();
        keys.retain(|held| stays(held));
        if keys.len() != before {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, TokenKeyError> {
    let failed = |why: String| TokenKeyError::of(format!("{}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > BYTES_MAX as u64 {
        return Err(failed(format!("has {size} bytes; at most {BYTES_MAX} are taken")));
    }
    std::fs::read(path).map_err(|e| failed(e.to_string()))
}

async fn fetch(client: &reqwest::Client, url: &str) -> Result<Vec<u8>, String> {
    let short = |e: reqwest::Error| e.without_url().to_string();
    let mut response = client.get(url).header("accept", "application/json").send().await.map_err(short)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(format!("it answered {}", response.status()));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(short)? {
        if bytes.len() + chunk.len() > BYTES_MAX {
            return Err(format!("it answers more than {BYTES_MAX} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
