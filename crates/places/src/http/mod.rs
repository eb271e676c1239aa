//! Servers: which may be asked, which address that leads to, and where redirects lead.

mod address;
mod connect;
mod guard;

pub use guard::{Resolver, SystemResolver, check_destination};

pub(crate) use connect::{base_client, check, connect};
