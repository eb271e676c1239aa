//! The keys that tokens are checked with: PEM or JWKS (RFC 7517), each for the one algorithm of the configuration.
//!
//! Refuses keys that are weaker than their algorithm asks for (RFC 7518): secrets under 256 bits, RSA under 2048.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::{PublicKey, RSAPublicKey};
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::secret::{Digest, sha256};

/// How tokens are signed. The configuration says which; what a token says is only compared with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenAlgorithm {
    /// HMAC with SHA-256: a secret that the issuer shares.
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl TokenAlgorithm {
    pub(super) fn known(self) -> Algorithm {
        match self {
            Self::Hs256 => Algorithm::HS256,
            Self::Rs256 => Algorithm::RS256,
            Self::Es256 => Algorithm::ES256,
            Self::EdDsa => Algorithm::EdDSA,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// Why keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TokenKeyError(String);

impl TokenKeyError {
    pub(super) fn of(message: String) -> Self {
        Self(message)
    }
}

fn refuse<T>(message: impl Into<String>) -> Result<T, TokenKeyError> {
    Err(TokenKeyError(message.into()))
}

/// The shortest secret (RFC 7518, section 3.2).
const SECRET_BYTES_MIN: usize = 32;
/// The most keys of a set.
const KEYS_MAX: usize = 100;

/// One key.
#[derive(Clone)]
pub(crate) struct TokenKey {
    kid: Option<String>,
    pub(super) key: DecodingKey,
    pub(super) fingerprint: Digest,
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl TokenKey {
    fn new(kid: Option<String>, key: DecodingKey, material: &[&[u8]]) -> Self {
        Self { kid, key, fingerprint: sha256(&material.concat()) }
    }

    /// Whether a token that names `kid` may be signed with it. A PEM block has no id and may be meant by any.
    pub(super) fn may_be(&self, kid: Option<&str>) -> bool {
        match (&self.kid, kid) {
            (Some(own), Some(named)) => own == named,
            _ => true,
        }
    }
}

/// Reads keys: a JWKS, PEM blocks, or for HS256 the secret itself.
pub(crate) fn read_keys(algorithm: TokenAlgorithm, bytes: &[u8]) -> Result<Vec<TokenKey>, TokenKeyError> {
    let keys = if bytes.trim_ascii_start().starts_with(b"{") {
        read_jwks(algorithm, bytes)?
    } else if algorithm == TokenAlgorithm::Hs256 {
        vec![secret(None, bytes.trim_ascii())?]
    } else {
        read_pem(algorithm, bytes)?
    };
    match keys.is_empty() {
        true => refuse(format!("holds no key for {}", algorithm.name())),
        false => Ok(keys),
    }
}

fn secret(kid: Option<String>, bytes: &[u8]) -> Result<TokenKey, TokenKeyError> {
    if bytes.len() < SECRET_BYTES_MIN {
        return refuse(format!(
            "the secret for HS256 has {} bytes; at least {SECRET_BYTES_MIN} are asked for",
            bytes.len()
        ));
    }
    Ok(TokenKey::new(kid, DecodingKey::from_secret(bytes), &[b"oct", bytes]))
}

fn rsa(kid: Option<String>, n: &[u8], e: &[u8]) -> Result<TokenKey, TokenKeyError> {
    let n = n.iter().position(|b| *b != 0).and_then(|at| n.get(at..)).unwrap_or_default();
    if !(256..=1024).contains(&n.len()) {
        return refuse(format!("an RSA key of {} bits; 2048 to 8192 are taken", n.len() * 8));
    }
    Ok(TokenKey::new(kid, DecodingKey::from_rsa_raw_components(n, e), &[b"rsa", n, b"/", e]))
}

fn p256(kid: Option<String>, point: &[u8]) -> Result<TokenKey, TokenKeyError> {
    if point.len() != 65 || point.first() != Some(&4) {
        return refuse("the key is not an uncompressed point of P-256");
    }
    Ok(TokenKey::new(kid, DecodingKey::from_ec_der(point), &[b"p256", point]))
}

fn ed25519(kid: Option<String>, x: &[u8]) -> Result<TokenKey, TokenKeyError> {
    if x.len() != 32 {
        return refuse("the key is not one of Ed25519: it needs 32 bytes");
    }
    Ok(TokenKey::new(kid, DecodingKey::from_ed_der(x), &[b"ed25519", x]))
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

/// The members of RFC 7517 and 7518 that are looked at.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

/// The keys of a set that are for `algorithm`; others, as a set may hold, are passed over.
fn read_jwks(algorithm: TokenAlgorithm, bytes: &[u8]) -> Result<Vec<TokenKey>, TokenKeyError> {
    let set: Jwks = serde_json::from_slice(bytes).map_err(|e| TokenKeyError(format!("not a JWKS: {e}")))?;
    if set.keys.len() > KEYS_MAX {
        return refuse(format!("a JWKS of {} keys; at most {KEYS_MAX} are taken", set.keys.len()));
    }
    let mut keys = Vec::new();
    for jwk in set.keys {
        let fits = jwk.alg.as_deref().is_none_or(|alg| alg == algorithm.name())
            && jwk.usage.as_deref().is_none_or(|usage| usage == "sig");
        if fits && let Some(key) = read_jwk(algorithm, &jwk)? {
            keys.push(key);
        }
    }
    Ok(keys)
}

fn read_jwk(algorithm: TokenAlgorithm, jwk: &Jwk) -> Result<Option<TokenKey>, TokenKeyError> {
    let part = |text: &Option<String>| -> Result<Vec<u8>, TokenKeyError> {
        let text = text.as_deref().unwrap_or_default().trim_end_matches('=');
        let bytes = URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
        if bytes.is_empty() { refuse("a key of the JWKS lacks a part, or it is not base64url") } else { Ok(bytes) }
    };
    let kid = jwk.kid.clone();
    match (algorithm, jwk.kty.as_str(), jwk.crv.as_deref()) {
        (TokenAlgorithm::Hs256, "oct", _) => secret(kid, &part(&jwk.k)?).map(Some),
        (TokenAlgorithm::Rs256, "RSA", _) => rsa(kid, &part(&jwk.n)?, &part(&jwk.e)?).map(Some),
        (TokenAlgorithm::Es256, "EC", Some("P-256")) => {
            let (x, y) = (part(&jwk.x)?, part(&jwk.y)?);
            p256(kid, &[&[4][..], &x, &y].concat()).map(Some)
        }
        (TokenAlgorithm::EdDsa, "OKP", Some("Ed25519")) => ed25519(kid, &part(&jwk.x)?).map(Some),
        _ => Ok(None),
    }
}

fn read_pem(algorithm: TokenAlgorithm, bytes: &[u8]) -> Result<Vec<TokenKey>, TokenKeyError> {
    let mut keys = Vec::new();
    for pem in Pem::iter_from_buffer(bytes) {
        let pem = pem.map_err(|e| TokenKeyError(format!("neither PEM nor JWKS: {e}")))?;
        let wrong = || TokenKeyError(format!("the PEM block {} does not hold what it says", pem.label));
        match pem.label.as_str() {
            "RSA PUBLIC KEY" if algorithm == TokenAlgorithm::Rs256 => {
                let (_, key) = RSAPublicKey::from_der(&pem.contents).map_err(|_| wrong())?;
                keys.push(rsa(None, key.modulus, key.exponent)?);
            }
            "PUBLIC KEY" => {
                let (_, info) = SubjectPublicKeyInfo::from_der(&pem.contents).map_err(|_| wrong())?;
                keys.push(of_public_key(algorithm, &info)?);
            }
            "CERTIFICATE" => {
                let certificate = pem.parse_x509().map_err(|_| wrong())?;
                keys.push(of_public_key(algorithm, certificate.public_key())?);
            }
            label if label.contains("PRIVATE") => {
                return refuse(format!("holds a {label}; tokens are checked with the public key, keep the other away"));
            }
            label => return refuse(format!("holds a PEM block {label}; expected PUBLIC KEY")),
        }
    }
    Ok(keys)
}

/// Object identifier of Ed25519 (RFC 8410).
const ED25519: &str = "1.3.101.112";

fn of_public_key(algorithm: TokenAlgorithm, info: &SubjectPublicKeyInfo<'_>) -> Result<TokenKey, TokenKeyError> {
    let bits = &info.subject_public_key.data;
    match (algorithm, info.parsed()) {
        (TokenAlgorithm::Rs256, Ok(PublicKey::RSA(key))) => rsa(None, key.modulus, key.exponent),
        (TokenAlgorithm::Es256, Ok(PublicKey::EC(point))) => p256(None, point.data()),
        (TokenAlgorithm::EdDsa, _) if info.algorithm.algorithm.to_id_string() == ED25519 => ed25519(None, bits),
        _ => refuse(format!("the public key is not one for {}", algorithm.name())),
    }
}
