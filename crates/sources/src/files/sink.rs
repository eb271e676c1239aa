//! Where a file's rows go.

use std::sync::Arc;

use lakegate_access::Principal;
use lakegate_formats::{Mark, Piece};
use lakegate_model::{StreamName, TenantId};

/// Which file, for which stream.
#[derive(Debug, Clone)]
pub struct ImportTarget {
    /// The credentials; none while authentication is off, and when a job goes on after a restart.
    pub principal: Option<Arc<Principal>>,
    /// Whose tables.
    pub tenant: TenantId,
    /// Which stream.
    pub stream: StreamName,
    /// The event type of all rows.
    pub event_type: Option<String>,
    /// The file's identity.
    pub file: u128,
    /// Where it lies, for people.
    pub uri: String,
    /// Whether it is imported although it was before.
    pub again: bool,
    /// Whether it is rewritten although it could be taken as it is.
    pub rewrite: bool,
    /// What ties this to logs and traces.
    pub correlation_id: Option<String>,
}

/// The beginning of one file's import.
pub enum Begun {
    /// It is in the table already.
    Absorbed {
        /// Rows of it.
        rows: u64,
    },
    /// It goes on from where it was.
    Import(Box<dyn FileSink>),
}

/// What became of a piece's rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PieceCounts {
    /// Rows that go into the table.
    pub accepted: u64,
    /// Rows that were there already.
    pub duplicates: u64,
    /// Rows that were set aside.
    pub dead_lettered: u64,
}

/// What became of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportSummary {
    /// The table.
    pub table: String,
    /// Which way it was taken, and why, where there is something to say.
    pub note: Option<String>,
}

/// Why a file's rows could not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ImportError {
    /// What was found, and what to do.
    pub message: String,
    /// Whether the same may work later.
    pub temporary: bool,
}

/// Takes files. Blocks.
pub trait Importing: Send + Sync + 'static {
    /// Begins a file's import.
    ///
    /// # Errors
    /// The stream does not take it.
    fn begin(&self, target: ImportTarget) -> Result<Begun, ImportError>;
}

/// Takes one file's rows. What is dropped unfinished goes on later from its last mark. Blocks.
pub trait FileSink: Send {
    /// Where an earlier attempt left off.
    fn resume_mark(&self) -> Option<Mark>;

    /// Takes some rows.
    ///
    /// # Errors
    /// They could not be taken; nothing after them may be.
    fn take(&mut self, piece: Piece) -> Result<PieceCounts, ImportError>;

    /// Commits the rest, and that the file is complete.
    ///
    /// # Errors
    /// It could not be committed.
    fn finish(self: Box<Self>) -> Result<ImportSummary, ImportError>;
}
