//! What an import is told, and what it tells.

use std::sync::Arc;

use lakegate_access::Principal;
use lakegate_model::{StreamName, TenantId};

use super::Import;
use super::own_columns::OwnColumns;
use super::write::WriteError;

/// A file and where its rows are to go.
#[derive(Debug, Clone)]
pub struct ImportTarget {
    /// Who asks; none while authentication is off.
    pub principal: Option<Arc<Principal>>,
    /// Whose records they become.
    pub tenant: TenantId,
    /// Of which stream.
    pub stream: StreamName,
    /// The events' type, where the rows do not say.
    pub event_type: Option<String>,
    /// What the file says of its columns before its first row; they become the columns of a stream that nobody declared.
    pub columns: Option<OwnColumns>,
    /// The file's identity: another after it was changed.
    pub file: u128,
    /// Its name, for people.
    pub uri: String,
    /// A file that was absorbed is absorbed once more.
    pub again: bool,
    /// Its rows are written anew even where the file could be taken as it is.
    pub rewrite: bool,
    /// What ties the import to others in logs and traces.
    pub correlation_id: Option<String>,
}

/// What beginning came to.
#[derive(Debug)]
pub enum Begun {
    /// The table has the file already.
    Absorbed {
        /// How many rows of it were read.
        rows: u64,
    },
    /// Its pieces are to be given now, from [`Import::resume_mark`] on.
    Import(Box<Import>),
}

/// What became of a piece's rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PieceCounts {
    /// Rows of the piece, bad ones too.
    pub rows: u64,
    /// Rows that go into the table.
    pub accepted: u64,
    /// Rows that were there already.
    pub duplicates: u64,
    /// Rows that were set aside.
    pub dead_lettered: u64,
    /// About how many bytes the accepted rows have in memory.
    pub bytes: u64,
}

/// What became of a file's rows, in this import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportSummary {
    /// Rows that were absorbed before this import began.
    pub rows_before: u64,
    /// Rows that it read.
    pub rows: u64,
    /// Of these: stored.
    pub accepted: u64,
    /// Of these: there already.
    pub duplicates: u64,
    /// Of these: set aside.
    pub dead_lettered: u64,
    /// Data files added to the table.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether the file was taken as it is.
    pub adopted: bool,
    /// Commits.
    pub commits: u64,
    /// The table's snapshot after the last of them.
    pub snapshot_id: Option<i64>,
}

impl ImportSummary {
    pub(super) fn add(&mut self, counts: &PieceCounts) {
        self.rows += counts.rows;
        self.accepted += counts.accepted;
        self.duplicates += counts.duplicates;
        self.dead_lettered += counts.dead_lettered;
    }
}

/// Why an import ended. What it committed stays; a later import of the same file goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The credentials do not allow writing to the stream.
    #[error("the credentials of {principal} do not allow writing to the stream {stream}")]
    Forbidden {
        /// Who asked.
        principal: String,
        /// The stream.
        stream: StreamName,
    },
    /// The credentials are another tenant's.
    #[error("the credentials are not for the tenant that the import names")]
    WrongTenant,
    /// There is no such stream and none may be made.
    #[error("{0}")]
    Stream(String),
    /// No row of the file could fit the stream's contract.
    #[error("{0}")]
    Mismatch(String),
    /// Another import of the file came first. Nothing of this one was added since its last commit.
    #[error("another import of the file came first: {0}")]
    AbsorbedElsewhere(String),
    /// The table's columns or partitions were changed meanwhile: to be begun again, from the last mark.
    #[error("the table was changed during the import, begin it again: {0}")]
    TableChanged(String),
    /// There is no room in memory, and none comes.
    #[error("{0}")]
    OutOfRoom(String),
    /// The lake could not be reached or refused. Later it may succeed.
    #[error("{0}")]
    Lake(String),
    /// The commit may have been done or not; the next import of the file finds out.
    #[error("whether the last commit was done is not known: {0}")]
    Unknown(String),
    /// The gate takes nothing at the moment.
    #[error("{0}")]
    Closed(String),
    /// The reader gave rows that cannot be.
    #[error("the rows of a piece cannot be read: {0}")]
    Rows(String),
}

impl ImportError {
    /// Whether a later try may succeed without a change of file, stream or configuration.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::TableChanged(_) | Self::OutOfRoom(_) | Self::Lake(_) | Self::Unknown(_) | Self::Closed(_) => true,
            Self::Forbidden { .. }
            | Self::WrongTenant
            | Self::Stream(_)
            | Self::Mismatch(_)
            | Self::AbsorbedElsewhere(_)
            | Self::Rows(_) => false,
        }
    }
}

impl From<WriteError> for ImportError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::OutOfRoom { .. } => Self::OutOfRoom(error.to_string()),
            WriteError::Lake(_) | WriteError::Ended(_) => Self::Lake(error.to_string()),
        }
    }
}
