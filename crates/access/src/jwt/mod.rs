//! Tokens: JSON Web Tokens (RFC 7519) that are signed (RFC 7515) by the algorithm that the configuration names.
//!
//! Promises: a token says neither how nor with which foreign key it is checked: another `alg`, `crit`, a key or an
//! address of keys in the header are refused or not looked at; a token that was checked is remembered by its digest
//! until it ends or its key goes, so that it is checked once. Refuses: encrypted and nested tokens.

mod cache;
mod claims;
mod jwks;
mod keys;
mod provider;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{DecodingKey, Validation};
use lakegate_env::Clock;
use serde_json::{Map, Value};

use cache::Cache;
use jwks::{KeySource, KeySources};

use crate::principal::{Principal, Proof};
use crate::secret::sha256;

pub use claims::{ClaimRules, TokenError};
pub use keys::{TokenAlgorithm, TokenKeyError};

/// A token is a few hundred bytes; a longer one is not looked at.
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// The longest `kid`.
const KID_BYTES_MAX: usize = 256;

/// Where the keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenKeysFrom {
    /// A file of PEM blocks, a JWKS, or for HS256 the secret. It is read again when it changes.
    File(PathBuf),
    /// A JWKS behind an address.
    Url {
        /// The address.
        url: String,
        /// How long keys are used before they are asked for again.
        refresh: Duration,
        /// How long keys are used that the address no longer has, or while it cannot be reached.
        grace: Duration,
    },
    /// The keys themselves, as a file would hold them.
    Given(Vec<u8>),
}

/// How tokens are checked.
#[derive(Debug, Clone)]
pub struct TokenOptions {
    /// How they are signed.
    pub algorithm: TokenAlgorithm,
    /// Where the keys are.
    pub keys: TokenKeysFrom,
    /// What is asked of claims.
    pub claims: ClaimRules,
}

/// Checks tokens.
pub(crate) struct Tokens {
    algorithm: TokenAlgorithm,
    validation: Validation,
    claims: ClaimRules,
    keys: KeySources,
    cache: Cache,
    clock: Arc<dyn Clock>,
}

/// What a token says of itself before anything of it is believed.
struct Header {
    kid: Option<String>,
}

impl Tokens {
    /// Reads the keys of a file; those of an address are asked for when they are needed, and by [`Self::refresh`].
    pub(crate) fn open(options: TokenOptions, clock: Arc<dyn Clock>) -> Result<Self, TokenKeyError> {
        provider::install();
        let mut validation = Validation::new(options.algorithm.known());
        // Claims are checked here, by type and by our clock.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let keys = KeySources::open(options.algorithm, KeySource::of(options.keys)?, clock.clone())?;
        let (algorithm, claims) = (options.algorithm, options.claims);
        Ok(Self { algorithm, validation, claims, keys, cache: Cache::default(), clock })
    }

    /// Whose token it is. One that was checked before costs a digest and a look.
    pub(crate) fn known(&self, token: &str) -> Option<Result<Arc<Principal>, TokenError>> {
        let cached = self.cache.get(&sha256(token.as_bytes()), self.keys.generation())?;
        let over = cached.expires_us.is_some_and(|end| self.clock.wall_us() >= end);
        Some(if over { Err(TokenError::Expired) } else { Ok(cached) })
    }

    /// Checks a token. Asks for keys where the token names one that is not known.
    pub(crate) async fn check(&self, token: &str) -> Result<Arc<Principal>, TokenError> {
        let header = self.read_header(token)?;
        if !self.keys.has(header.kid.as_deref()) {
            self.keys.ask_for(header.kid.as_deref()).await;
        }
        let generation = self.keys.generation();
        let candidates = self.keys.candidates(header.kid.as_deref());
        if candidates.is_empty() && self.keys.is_empty() {
            return Err(TokenError::NoKeys);
        }
        let found = candidates.iter().find_map(|key| Some((key, self.claims_of(token, &key.key)?)));
        let (key, claims) = found.ok_or(TokenError::Invalid)?;
        let principal = Arc::new(self.claims.principal(&claims, key.fingerprint, self.clock.wall_us())?);
        self.cache.put(sha256(token.as_bytes()), principal.clone(), generation);
        Ok(principal)
    }

    /// Whether a principal's token is still in time and its key still one of ours. Where no key was had yet, which only
    /// work of an earlier process meets, nothing is said against it.
    pub(crate) fn holds(&self, principal: &Principal) -> bool {
        let Proof::Token(fingerprint) = &principal.proof else { return false };
        let is_ours = || self.keys.has_fingerprint(fingerprint) || self.keys.had_none_yet();
        principal.expires_us.is_none_or(|end| self.clock.wall_us() < end) && is_ours()
    }

    /// Reads the file again if it changed, or asks the address if it is time.
    pub(crate) async fn refresh(&self) {
        self.keys.refresh().await;
    }

    fn read_header(&self, token: &str) -> Result<Header, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Invalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
        // What must be understood (RFC 7515, section 4.1.11) is not; an encrypted token is none of ours.
        let strange = header.crit.is_some() || header.enc.is_some() || header.zip.is_some();
        let long = header.kid.as_ref().is_some_and(|kid| kid.len() > KID_BYTES_MAX);
        if strange || long || header.alg != self.algorithm.known() {
            return Err(TokenError::Invalid);
        }
        Ok(Header { kid: header.kid })
    }

    fn claims_of(&self, token: &str, key: &DecodingKey) -> Option<Map<String, Value>> {
        Some(jsonwebtoken::decode::<Map<String, Value>>(token, key, &self.validation).ok()?.claims)
    }
}
