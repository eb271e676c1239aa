//! The gate: admit → shape → validate → append → acknowledge → apply. Owns all ordering, recovery and flushing.
//!
//! A source gives the request's bytes as they came ([`Gate::submit`]); the gate reads them once, straight into the
//! columns of the stream's table, writes the same bytes with its decisions to the log, and answers when they are on
//! disk and seen by queries.
//!
//! Promises: everything that can refuse comes before the log; a record that is refused never harms its neighbours;
//! what was answered is in its table exactly once, whatever dies when. Refuses: protocols, SQL, Iceberg's inside.
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

mod api;
mod apply;
mod aside;
mod balance;
mod batch;
mod bytes;
mod columns;
#[cfg(test)]
mod contract_tests;
mod contracts;
mod dead_letters;
mod duplicates;
mod flush;
mod follow;
mod frame;
mod gate;
mod growth;
mod history;
mod import;
mod keys;
mod letters;
mod noticed;
mod once;
mod rate;
mod recent;
mod remember;
mod remote;
mod replay;
mod requests;
mod rows;
mod sequence;
mod shape;
mod shaped;
mod spill;
mod status;
mod streams;
mod submit;
mod tables;
#[cfg(test)]
mod test_gate;
mod time;
mod trim;
mod upstream;
mod wire;

pub use api::{
    ArrowRows, Client, ComponentHealth, GateStatus, HealthState, Payloads, Source, StreamDeclaration, StreamStatus,
    Submission, SubmissionOutcome, SubmitError, Wire,
};
pub use apply::ApplyError;
pub use balance::BalanceError;
pub use columns::read_columns;
pub use contracts::ContractStoreError;
pub use duplicates::{SharedSettings, SharedUrlError, WhenAway};
pub use follow::{Delivery, FollowError, FollowFrom, Follower, Room, StreamRows};
pub use frame::FrameError;
pub use gate::{Gate, GateOpenError, GateOptions, GateSettings};
pub use growth::read_growth;
pub use history::{HistoryError, HistoryTable};
pub use import::{Begun, Import, ImportError, ImportSummary, ImportTarget, OwnColumns, PieceCounts};
pub use letters::{DeadLetter, LetterFilter, LetterOutcome, PurgeError};
pub use remember::DuplicateSettings;
pub use remote::{Absorbed, JudgePosition, LogFrame, LogWriter, RemoteError, RemoteLog, RemoteTicket};
pub use replay::Replayed;
pub use sequence::Sequence;
pub use tables::TableError;
pub use upstream::{
    Upstream, UpstreamCommit, UpstreamError, UpstreamPayload, UpstreamPosition, UpstreamRecord, UpstreamRecords,
    UpstreamTaken, UpstreamTarget,
};
