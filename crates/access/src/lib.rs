//! Who asks, for which tenant, what they may do, and how much of it.
//!
//! A [`Principal`] stands behind every request that brought credentials. Promises: the tenant comes from the credentials
//! alone; a secret is compared in constant time, kept as a digest and shown nowhere; credentials that end or are revoked
//! end within seconds, also on what is open. Refuses: protocols; a source finds the credentials, this room says whose
//! they are.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        reason = "a failed test is a panic"
    )
)]

mod access;
mod api_keys;
mod basic;
mod conn;
mod error;
mod fair;
mod guard;
mod jwt;
mod key_file;
mod peer;
mod principal;
mod quota;
mod secret;
mod shown;
#[cfg(test)]
mod tests;
mod tls;

pub use access::{
    Access, AccessOpenError, AccessOptions, RECHECK_EVERY, StillHolds, check, check_operator, check_query, check_some,
    may_read, scope,
};
pub use basic::take_basic;
pub use conn::Connection;
pub use error::AccessError;
pub use jwt::{ClaimRules, TokenAlgorithm, TokenError, TokenKeyError, TokenKeysFrom, TokenOptions};
pub use key_file::{KEY_FILE, KeyFileError, KeyRecord, NewKey, change_keys, id_of_key, read_keys};
pub use peer::{CertificateName, CertificateRule, Peer, PeerCertificate};
pub use principal::{Action, Grants, PermissionError, Principal, Proof};
pub use quota::{Admitted, Limits, Opened, OverQuota, QuotaOptions, Quotas};
pub use shown::{Said, Shown};
pub use tls::{Tls, TlsError, TlsOptions};
