//! A log that several instances share, in place of our own: gateways write frames to it, writers bring them into tables.
//!
//! A gateway admits and shapes a request as ever, writes the frame that our own log would hold (`docs/formats/frame.md`),
//! and answers when the other log has it. It keeps no row. What belongs to one stream goes into one partition, so that
//! its order holds and one reader sees all of its event keys; of a request of several streams each partition gets a copy
//! that names the streams which are meant there.
//!
//! A writer ([`LogWriter`]) reads partitions, shapes the frames again and commits their rows with the position behind
//! them, as everything that comes from other logs ([`crate::upstream`]). Each table has its own position; a frame that a
//! table has is passed over for that table.
//!
//! Promises: nothing is answered as taken before the other log has it; what it has is in its table once, set aside, or
//! counted as a duplicate, whoever reads when. Refuses: to answer for what it cannot know; a duplicate that another
//! gateway took is counted by the writer, not in the answer.

mod lane;
mod send;
mod shape;
#[cfg(test)]
mod tests;
mod writer;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::gate::Gate;

pub use lane::{Absorbed, JudgePosition};
pub use writer::{LogFrame, LogWriter};

/// Resolves to the frame's offset once it is durable.
pub type RemoteTicket = Pin<Box<dyn Future<Output = Result<u64, RemoteError>> + Send>>;

/// The log that gateways write to.
pub trait RemoteLog: Send + Sync {
    /// How many partitions there are; the same for ever, and in all instances.
    fn partitions(&self) -> u32;

    /// Begins to write a frame, behind those that were begun before it in its partition. Does not wait.
    ///
    /// # Errors
    /// See [`RemoteError`]; nothing was written then.
    fn append(self: Arc<Self>, partition: u32, key: &str, frame: &[Bytes]) -> Result<RemoteTicket, RemoteError>;
}

/// Why a frame could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// The log cannot be reached, or did not answer in time: the frame may be there, or come to be.
    #[error("{0}")]
    Away(String),
    /// Too much waits to be written.
    #[error("{0}")]
    Full(String),
    /// The frame is larger than the log takes.
    #[error("{0}")]
    TooLarge(String),
}

impl Gate {
    /// From now on requests are written to that log. Called once, before the first of them.
    pub fn write_to(&self, remote: Arc<dyn RemoteLog>) {
        let _ = self.inner.remote.set(remote);
    }
}
