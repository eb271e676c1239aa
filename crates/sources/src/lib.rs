//! The ways in, a folder each. A source decodes, calls the gate of `lakegate-ingest`, and encodes the answer.
//!
//! Refuses: rules about records (they are the gate's), the log, tables.
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

pub mod files;
pub mod grpc;
mod intake;
mod json;
pub mod kafka;
pub mod rest;
mod time;
pub mod websocket;

pub use intake::Intake;
