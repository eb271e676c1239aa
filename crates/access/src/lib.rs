//! Who asks, for which tenant, and what they may do.
//!
//! A [`Principal`] stands behind every request that brought credentials. Promises: the tenant comes from the credentials
//! alone. Refuses: protocols; a source finds the credentials, this room says whose they are.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test is a panic"))]

mod principal;

pub use principal::{Action, Grant, Pattern, Principal};
