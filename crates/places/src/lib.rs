//! Places that files are read from: folders, HTTP servers, buckets.
//!
//! A text such as `/srv/drop/a.csv`, `https://data.example.com/a.parquet` or `s3://bucket/a.csv` is resolved strictly
//! inside what the configuration allows ([`PlacesSettings`]) and opened as a [`lakegate_formats::Input`], with an
//! identity that tells the file from every other one and from its own earlier contents.
//!
//! Promises: what was checked is what is read (paths are opened beneath their root without following links, names are
//! resolved once and the checked address is the one that is dialled, each redirect is checked like the first address);
//! a remote file is pinned to its version and given up when it changes; memory for read-ahead is bounded; names in
//! messages are escaped and secrets of URLs are not shown. Refuses: devices, pipes and files of the kernel, the server's
//! own files, addresses of the inside that were not allowed by name.
//!
//! Everything here blocks: it is called on threads that may wait, never on one that runs tasks.
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

mod error;
mod http;
mod identity;
mod listing;
mod local;
mod location;
mod places;
mod remote;
mod s3;
mod settings;
mod text;

pub use error::PlaceError;
pub use http::{Resolver, SystemResolver, check_destination};
pub use identity::FileIdentity;
pub use listing::{Found, ListOptions, Listing};
pub use location::Location;
pub use places::{Opened, Places};
pub use settings::{BucketRule, HostRule, PlaceLimits, PlacesSettings, RuleError, S3Settings};
pub use text::shown;
