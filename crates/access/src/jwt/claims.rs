//! The claims of a token whose signature is right: checked by type and by value (RFC 7519, section 4.1), and mapped to
//! a principal.
//!
//! A claim of the wrong type is never taken for an absent one.

use std::sync::Arc;

use lakegate_model::TenantId;
use serde_json::{Map, Value};

use crate::principal::{Grants, Principal, Proof};
use crate::secret::Digest;

/// What is asked of claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRules {
    /// `iss` must be one of these; empty: any.
    pub issuers: Vec<String>,
    /// `aud` must name one of these; empty: any, and it may be absent.
    pub audiences: Vec<String>,
    /// How far clocks may differ, in seconds.
    pub leeway_s: u32,
    /// The longest time that a token may have left, in seconds.
    pub lifetime_max_s: Option<u64>,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// The claim that holds permissions, as a list or as words with spaces between.
    pub permissions_claim: String,
    /// What every token may do besides.
    pub permissions: Vec<String>,
}

/// Why a token is not taken. The texts hold nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of ours: its form, its algorithm, its key, its signature.
    #[error("the token is not valid")]
    Invalid,
    /// Signed rightly, but over.
    #[error("the token has expired")]
    Expired,
    /// Signed rightly, but not valid yet.
    #[error("the token is not valid yet")]
    NotYet,
    /// A claim is absent, of the wrong type, or of a value that is not taken.
    #[error("the token's claim {0} is missing, of the wrong type, or not one that is taken here")]
    Claim(&'static str),
    /// The keys cannot be had at the moment.
    #[error("the keys that tokens are checked with cannot be had at the moment")]
    NoKeys,
}

/// The largest number of seconds that is taken for a time: the year 9999.
const SECONDS_MAX: f64 = 253_402_300_799.0;

/// A time claim in microseconds; none where it is absent.
fn time(claims: &Map<String, Value>, name: &'static str) -> Result<Option<i64>, TokenError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    // A NumericDate may have a fraction (RFC 7519, section 2).
    let seconds = value.as_f64().filter(|s| (0.0..=SECONDS_MAX).contains(s)).ok_or(TokenError::Claim(name))?;
    #[allow(clippy::cast_possible_truncation, reason = "at most the year 9999")]
    Ok(Some((seconds * 1e6) as i64))
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, ()> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or(()),
    }
}

/// A claim that is a text or a list of texts.
fn texts<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Vec<&'a str>, ()> {
    match claims.get(name) {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one]),
        Some(Value::Array(several)) => several.iter().map(|item| item.as_str().ok_or(())).collect(),
        Some(_) => Err(()),
    }
}

impl ClaimRules {
    /// Checks the claims and makes a principal of them.
    pub(super) fn principal(
        &self,
        claims: &Map<String, Value>,
        key: Digest,
        now_us: i64,
    ) -> Result<Principal, TokenError> {
        let leeway_us = i64::from(self.leeway_s) * 1_000_000;
        let exp = time(claims, "exp")?.ok_or(TokenError::Claim("exp"))?;
        let nbf = time(claims, "nbf")?;
        time(claims, "iat")?;
        let issuer = text(claims, "iss").map_err(|()| TokenError::Claim("iss"))?;
        if !self.issuers.is_empty() && !issuer.is_some_and(|found| self.issuers.iter().any(|known| known == found)) {
            return Err(TokenError::Claim("iss"));
        }
        let audience = texts(claims, "aud").map_err(|()| TokenError::Claim("aud"))?;
        if !self.audiences.is_empty() && !audience.iter().any(|found| self.audiences.iter().any(|known| known == found))
        {
            return Err(TokenError::Claim("aud"));
        }
        let end = exp.saturating_add(leeway_us);
        if now_us >= end {
            return Err(TokenError::Expired);
        }
        if nbf.is_some_and(|nbf| now_us < nbf.saturating_sub(leeway_us)) {
            return Err(TokenError::NotYet);
        }
        let longest = self.lifetime_max_s.and_then(|s| i64::try_from(s).ok()).and_then(|s| s.checked_mul(1_000_000));
        if longest.is_some_and(|longest| exp.saturating_sub(now_us) > longest.saturating_add(leeway_us)) {
            return Err(TokenError::Claim("exp"));
        }
        let subject = text(claims, "sub").map_err(|()| TokenError::Claim("sub"))?.unwrap_or("-");
        Ok(Principal {
            id: Arc::from(format!("token:{}", printable(subject))),
            tenant: self.tenant(claims)?,
            grants: self.grants(claims)?,
            expires_us: Some(end),
            proof: Proof::Token(key),
        })
    }

    fn tenant(&self, claims: &Map<String, Value>) -> Result<TenantId, TokenError> {
        let found = text(claims, &self.tenant_claim).ok().flatten();
        found
            .and_then(|name| TenantId::new(name).ok())
            .ok_or(TokenError::Claim("of the tenant (auth.jwt.tenant_claim)"))
    }

    fn grants(&self, claims: &Map<String, Value>) -> Result<Grants, TokenError> {
        let wrong = TokenError::Claim("of permissions (auth.jwt.permissions_claim)");
        let found = texts(claims, &self.permissions_claim).map_err(|()| wrong)?;
        let words = found.iter().flat_map(|text| text.split_ascii_whitespace());
        Ok(Grants::among(words.chain(self.permissions.iter().map(String::as_str))))
    }
}

/// A subject goes into logs: one line of plain characters.
fn printable(subject: &str) -> String {
    subject.chars().filter(|c| !c.is_control() && !c.is_whitespace()).take(128).collect()
}
