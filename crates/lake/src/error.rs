//! What can go wrong, one enum per operation.

use lakegate_model::{LogId, TableName};
use uuid::Uuid;

use crate::catalog::CatalogError;
use crate::ledger::{FileMark, FileState};
use crate::warehouse::WarehouseError;

/// Why a table could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// The contract and the table, or the contract itself, do not fit.
    #[error("the contract does not fit: {0}")]
    Contract(String),
    /// The rows do not fit the table.
    #[error("the rows do not fit the table {table}: {message}")]
    Rows {
        /// Which table.
        table: String,
        /// What does not fit.
        message: String,
    },
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The files.
    #[error(transparent)]
    Warehouse(#[from] WarehouseError),
    /// A table, file or request that is not as it should be.
    #[error("{0}")]
    Invalid(String),
}

impl LakeError {
    pub(crate) fn from_contract(error: iceberg::Error) -> Self {
        Self::Contract(error.to_string())
    }

    pub(crate) fn invalid(error: impl std::fmt::Display) -> Self {
        Self::Invalid(error.to_string())
    }

    /// Whether the same call may succeed later without a change of configuration or data.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Catalog(e) => {
                matches!(e, CatalogError::Conflict(_) | CatalogError::Unknown(_) | CatalogError::Unavailable(_))
            }
            Self::Warehouse(e) => !matches!(e, WarehouseError::Outside { .. }),
            Self::Contract(_) | Self::Rows { .. } | Self::Invalid(_) => false,
        }
    }
}

/// Why a commit did not come about.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A newer owner of the same log writes this table. This one must stop.
    #[error(
        "{table}: the log {log} has a newer writer (epoch {found_epoch}, instance {found_instance}; this one has epoch {epoch}, instance \
         {instance}); this process must stop writing"
    )]
    Fenced {
        /// Which table.
        table: TableName,
        /// Whose positions.
        log: LogId,
        /// Ours.
        epoch: u64,
        /// Ours.
        instance: Uuid,
        /// The newer one's.
        found_epoch: u64,
        /// The newer one's.
        found_instance: String,
    },
    /// The table has absorbed another part of the log than the caller believes. Nothing was committed.
    #[error("{table}: the commit follows offset {expected} of the log {log}, and the table {}", describe(*found))]
    PositionMismatch {
        /// Which table.
        table: TableName,
        /// Whose positions.
        log: LogId,
        /// What the table was to have absorbed.
        expected: u64,
        /// What it has; none where it has commits of this log and no position of it.
        found: Option<u64>,
    },
    /// The table has absorbed more, less or another part of a file than the caller believes: another import of it came
    /// first. Nothing was committed, and the commit's files may be discarded.
    #[error("{table}: it has {} of the file {file:032x}, not what this import goes on from: another import of it came first; nothing was committed", describe_mark(found.as_deref()))]
    AlreadyAbsorbed {
        /// Which table.
        table: TableName,
        /// The file's identity.
        file: u128,
        /// What the table has of it.
        found: Option<Box<FileMark>>,
    },
    /// The name belongs to another table now.
    #[error("{table} was dropped or replaced: it was {expected} and is {}; nothing was committed", found.map_or("gone".to_owned(), |f| f.to_string()))]
    TableReplaced {
        /// Which table.
        table: TableName,
        /// The identity of the table that the files were written for.
        expected: Uuid,
        /// What is there now.
        found: Option<Uuid>,
    },
    /// Another writer changed schema or partitioning under the files. Write them again from the rows; these may be
    /// discarded.
    #[error("{table}: the files cannot be committed any more ({message}); write them again")]
    StaleFiles {
        /// Which table.
        table: TableName,
        /// What changed.
        message: String,
    },
    /// Not now. Keep the files, and call again with the same commit.
    #[error("{table}: the commit did not succeed in {attempts} attempts; last: {last}")]
    Unavailable {
        /// Which table.
        table: TableName,
        /// How many were made.
        attempts: u32,
        /// What the last one met.
        last: String,
        /// Whether it may have been done all the same: then no file of it may be removed.
        outcome_unknown: bool,
    },
    /// It can never succeed as it is.
    #[error("{table}: the commit is not valid: {message}")]
    Invalid {
        /// Which table.
        table: TableName,
        /// Why.
        message: String,
    },
}

impl CommitError {
    /// Whether the same commit is to be tried again later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

fn describe(found: Option<u64>) -> String {
    match found {
        Some(found) => format!("has absorbed it up to offset {found}; nothing was committed"),
        None => "has commits of that log but lost the property that says how far; restore the property, or give the table a new name".to_owned(),
    }
}

fn describe_mark(mark: Option<&FileMark>) -> String {
    match mark {
        None => "nothing".to_owned(),
        Some(FileMark { rows, state: FileState::Complete, .. }) => format!("all ({rows} rows)"),
        Some(FileMark { rows, .. }) => format!("a part ({rows} rows)"),
    }
}
