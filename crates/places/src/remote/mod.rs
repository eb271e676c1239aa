//! Files that are read over the network: by ranges where the server serves them, pinned to one version, with several
//! requests under way, taken up again where they broke off.

mod attempts;
mod endpoint;
mod input;
mod reader;
mod sequential;

pub(crate) use attempts::{Attempts, Failure};
pub(crate) use endpoint::{Endpoint, Pace, Tag, first_bytes};
pub(crate) use input::{RemoteInput, open};

use std::path::PathBuf;
use std::sync::Arc;

use lakegate_env::{Clock, Random};

use crate::settings::PlaceLimits;

/// What all remote files share.
pub(crate) struct Shared {
    pub(crate) limits: PlaceLimits,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) handle: tokio::runtime::Handle,
    pub(crate) spool_dir: PathBuf,
}

#[cfg(test)]
mod tests;
