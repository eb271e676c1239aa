//! Bytes to rows: what files hold, read in pieces.
//!
//! [`open`] finds out what a file is and gives its rows piece by piece, in memory bounded by [`ReadOptions`] whatever the
//! file holds or claims. A row that cannot be read is a [`BadRow`] with its text and the reason; its neighbours are given.
//! Each piece carries the [`Mark`] from which another reader goes on. Nothing in a file is ever executed, and no name in
//! it is used as a path.

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

mod archive;
mod cells;
mod codec;
mod csv;
mod detect;
mod error;
mod feed;
mod input;
mod ipc;
mod json;
mod lines;
mod open;
mod options;
mod parquet;
mod piece;
mod sql;
mod text;
mod xz;

pub use error::ReadError;
pub use input::{BytesInput, Input};
pub use open::open;
pub use options::{CsvOptions, Encoding, Format, Limits, LinePattern, ReadOptions};
pub use parquet::{ParquetFile, read_footer};
pub use piece::{BadRow, Mark, Piece, Pieces, RAW_BYTES, Rows, SqlColumn, SqlTable};
