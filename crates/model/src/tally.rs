//! The balance: how many records came in, and what became of them.

use serde::{Deserialize, Serialize};

/// Counts for one tenant and stream. `received = accepted + duplicate + rejected + dead_lettered`, always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Records that were brought.
    pub received: u64,
    /// Records that went, or will go, into the stream's table.
    pub accepted: u64,
    /// Records that were there already.
    pub duplicate: u64,
    /// Records given back to the sender.
    pub rejected: u64,
    /// Records set aside in the dead-letter table.
    pub dead_lettered: u64,
    /// Payload bytes of accepted records.
    pub bytes: u64,
}

impl Tally {
    /// Adds another tally to this one.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.accepted += other.accepted;
        self.duplicate += other.duplicate;
        self.rejected += other.rejected;
        self.dead_lettered += other.dead_lettered;
        self.bytes += other.bytes;
    }

    /// Whether the parts add up to the whole.
    #[must_use]
    pub fn closes(&self) -> bool {
        self.received == self.accepted + self.duplicate + self.rejected + self.dead_lettered
    }
}
