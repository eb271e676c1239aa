//! Rows that are in the log and not yet in the lake, kept where queries see them.
//!
//! One [`Memtable`] for each table: an *active* part that takes rows, then *frozen* parts that wait for their commit,
//! oldest first. A row is put in before its frame is durable and becomes visible when the log's durable offset passes
//! it, so that publishing a whole group of requests is one atomic store.
//!
//! Promises: rows lie in offset order; a part is committed and dropped as a whole; a snapshot holds durable rows only.
//! Refuses: I/O and runtimes. A part whose rows were moved to a file is known here by its path alone.
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

mod guests;
mod nested;
mod part;
mod registry;
mod rows;
mod table;

pub use nested::{NestedBuilder, check_nested};
pub use part::{Chunk, FrozenPart, Guest, MemPart, MemSnapshot};
pub use registry::Memtables;
pub use rows::{ColumnBuilder, RowBuilder, Value, arrow_schema, arrow_type};
pub use table::{Memtable, MemtableGuard, MemtableStats};

#[cfg(test)]
mod tests;
