//! Where a record lies in a log.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The identity of one log; made when the log is made, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogId(pub Uuid);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

/// A place in a log. Offsets count records and only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Which log.
    pub log: LogId,
    /// Which partition of it; the embedded log has only 0.
    pub partition: u32,
    /// The offset of the *next* record: everything below it is meant. 0 is "nothing yet".
    pub next_offset: u64,
}
