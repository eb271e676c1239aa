//! The write-ahead log: an ordered sequence of records, each durable before it is acknowledged.
//!
//! One append is one frame: a number of records and a payload that means nothing here. Offsets count records. The
//! log is a row of segment files, zeroed before use; `docs/formats/wal.md` draws the bytes.
//!
//! Promised:
//! - what a [`Ticket`] calls durable was synced, and is read back after any crash, in order, once, unchanged;
//! - a torn tail that was never acknowledged is cut off when the log is opened; damage to acknowledged records makes
//!   the opening fail and names file, place and records. Which is which, the mark "synced up to" tells, and every
//!   frame, which carries what was synced when it was written;
//! - a failed write or sync is final: nothing is acknowledged after it until the log is opened again;
//! - what waits, what is on disk and what a frame may hold is bounded, and refused with an error that says whether
//!   trying again can help.
//!
//! Refused: a folder in use by another process, files of another log, of a newer version, or not in their place.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::print_stderr,
        reason = "a failed test is a panic"
    )
)]

mod error;
mod format;
pub mod inspect;
mod log;
mod open;
mod options;
mod pace;
mod prepare;
mod queue;
mod reader;
mod recover;
mod scan;
mod set_aside;
mod shared;
mod status;
mod ticket;
mod trim;
mod writer;

pub use error::{AppendError, Damage, LogError, OpenError, ReadError, TrimError};
pub use log::Log;
pub use options::{Driver, LogMode, LogOptions};
pub use reader::{Frame, Reader};
pub use shared::Progress;
pub use status::{LogHealth, LogStatus};
pub use ticket::{Durable, Ticket};
pub use trim::TrimOutcome;

#[cfg(test)]
mod tests;
