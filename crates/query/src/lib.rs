//! SQL over what is in memory and what is in the lake, as one table.
//!
//! [`QueryEngine`] plans and runs one reading statement with DataFusion, on threads of its own, so that queries never
//! stand in the way of acknowledgements. A query sees each acknowledged row once (`table`), only the tables of its
//! tenant (`catalog`), and ends by a limit rather than by the machine's (`guard`, `functions`, `run`). `output` turns
//! results into bytes for people and programs.
//!
//! [`statement`] sorts what does not read for those who do it. Refuses: everything that does not read; files and
//! addresses as tables, but for those that the asker brings ([`TablesBeside`]); settings.
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

mod catalog;
mod columns;
mod engine;
mod error;
mod filter;
mod functions;
mod guard;
mod lake;
pub mod output;
mod pace;
mod parameters;
mod request;
mod run;
mod scan;
pub mod statement;
mod table;

pub use engine::{ParameterTypes, QueryEngine, QueryLimits, QueryOptions, QueryRequest, Readable, RunningQuery};
pub use error::QueryError;
pub use lake::{BesideName, Comparison, Condition, LakeTables, LakeView, Literal, RowStream, TablesBeside, ViewScan};
pub use request::{SqlRequest, SqlResponse};
pub use run::{QueryResult, ResultStream};

#[cfg(test)]
mod tests;
