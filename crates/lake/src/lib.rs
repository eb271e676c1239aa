//! The lake: Parquet files, Iceberg commits and catalogs. The only room that knows Iceberg.
//!
//! Rows of a stream's table are written to Parquet files ([`LakeTable::write`]), and the files, the log's absorbed
//! position and any new columns are committed at once ([`LakeTable::commit`]). What is committed is read back by
//! [`TableView::scan`].
//!
//! Promises: a file is durable before a commit names it; a commit is applied once or not at all, whatever the catalog
//! answers; a writer that was replaced cannot commit. Refuses: any location outside the warehouse.
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

mod absorbed;
mod adopt;
mod catalog;
mod commit;
mod error;
mod history;
mod lake;
mod ledger;
mod maintain;
mod manifests;
mod options;
mod rewrite;
mod scan;
mod schema;
mod service;
mod table;
#[cfg(test)]
mod test_support;
pub mod testing;
mod view;
mod warehouse;
mod write;

pub use adopt::{AdoptHow, AdoptPlan, Footer, Obstacle};
pub use catalog::{
    Catalog, CatalogError, DatabaseAddress, EmbeddedCatalog, EmbeddedOptions, LoadedTable, NamespaceChange,
    RestCatalog, RestOptions, TableChange,
};
pub use commit::{Commit, CommitOutcome, LogStep};
pub use error::{CommitError, LakeError};
pub use history::GrownFile;
pub use lake::Lake;
pub use ledger::{FileChange, FileMark, FileState};
pub use maintain::MaintainOutcome;
pub use options::{Care, Compression, CompressionError, LakeOptions, Offload, Pause, TokioPause, Writer};
pub use rewrite::{CompactOutcome, REMOVED_ROWS, RemovedOutcome, RewriteError};
pub use scan::{BatchStream, Condition, Op, Scalar, ScanRequest};
pub use service::{RestAnswer, RestService};
pub use table::LakeTable;
pub use view::{FileInfo, SnapshotInfo, TableView};
pub use warehouse::{BucketOptions, Warehouse, WarehouseError};
pub use write::WrittenFile;
