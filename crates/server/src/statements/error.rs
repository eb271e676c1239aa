//! Why a statement was not done, for every protocol that carries it.

use lakegate_ingest::{SubmitError, TableError};
use lakegate_query::QueryError;

/// What an error is about; each protocol has its own word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The statement or its rows are to be changed.
    Invalid,
    /// A name is not there.
    NotFound,
    /// A name is there already.
    Exists,
    /// The credentials or the configuration do not allow it.
    Denied,
    /// It is larger than the limits.
    TooLarge,
    /// It was ended on request.
    Cancelled,
    /// It took too long.
    Timeout,
    /// The same may be done later.
    Later,
    /// A fault of ours.
    Internal,
}

/// Why a statement was not done.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct StatementError {
    pub(crate) kind: Kind,
    /// One stable word.
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// The query's own error, where it is one.
    pub(crate) query: Option<QueryError>,
    /// When to come back, in milliseconds.
    pub(crate) retry_after_ms: Option<u64>,
}

impl StatementError {
    fn new(kind: Kind, code: &'static str, message: String) -> Self {
        let retry_after_ms = (kind == Kind::Later).then_some(1000);
        Self { kind, code, message, query: None, retry_after_ms }
    }

    pub(crate) fn invalid(message: String) -> Self {
        Self::new(Kind::Invalid, "invalid", message)
    }

    pub(crate) fn not_found(message: String) -> Self {
        Self::new(Kind::NotFound, "not_found", message)
    }

    pub(crate) fn denied(message: String) -> Self {
        Self::new(Kind::Denied, "not_allowed", message)
    }

    pub(crate) fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "a statement failed");
        Self::new(Kind::Internal, "internal", "the statement failed by a fault of the server: see its log".to_owned())
    }

    /// The same, said of a part of the rows.
    pub(crate) fn after(mut self, stored: u64) -> Self {
        if stored > 0 {
            self.message = format!("{} ({stored} rows of earlier parts are stored)", self.message);
        }
        self
    }
}

impl From<QueryError> for StatementError {
    fn from(error: QueryError) -> Self {
        let kind = match &error {
            QueryError::Syntax(_)
            | QueryError::Plan(_)
            | QueryError::TooComplex(_)
            | QueryError::Failed(_)
            | QueryError::NotAcceptable(_) => Kind::Invalid,
            QueryError::UnknownTable { .. } => Kind::NotFound,
            QueryError::NotAllowed(_) => Kind::Denied,
            QueryError::TooManyRows { .. } | QueryError::ResultTooLarge { .. } => Kind::TooLarge,
            QueryError::Cancelled => Kind::Cancelled,
            QueryError::Timeout { .. } => Kind::Timeout,
            QueryError::Busy { .. } | QueryError::OutOfMemory { .. } | QueryError::Unavailable(_) => Kind::Later,
            QueryError::Internal(_) => Kind::Internal,
        };
        Self { query: Some(error.clone()), ..Self::new(kind, error.code(), error.to_string()) }
    }
}

impl From<TableError> for StatementError {
    fn from(error: TableError) -> Self {
        let message = error.to_string();
        match error {
            TableError::Exists(_) => Self::new(Kind::Exists, "exists", message),
            TableError::Unknown(_) => Self::new(Kind::NotFound, "unknown_table", message),
            TableError::Invalid { .. } => Self::new(Kind::Invalid, "invalid_table", message),
            TableError::NotWritable { .. } => Self::new(Kind::Invalid, "not_writable", message),
            TableError::Declared { .. } => Self::new(Kind::Denied, "declared", message),
            TableError::Lake(_) => Self::new(Kind::Later, "unavailable", message),
            TableError::Disk(error) => Self::internal(&error),
        }
    }
}

impl From<SubmitError> for StatementError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Invalid { code, errors, .. } => {
                // Rows are counted from 1 where people write them.
                let first = errors.first().map(|error| {
                    let (row, refusal) = (u64::from(error.index) + 1, &error.refusal);
                    let field = refusal.field.as_ref().map_or_else(String::new, |field| format!(", column {field}"));
                    format!("nothing was stored: row {row}{field}: {}", refusal.message)
                });
                Self::new(Kind::Invalid, code.as_str(), first.unwrap_or(message))
            }
            SubmitError::Forbidden { .. } | SubmitError::WrongTenant { .. } => {
                Self::new(Kind::Denied, "not_allowed", message)
            }
            SubmitError::BatchTooLarge { .. } => Self::new(Kind::TooLarge, "batch_too_large", message),
            SubmitError::OverQuota { retry_after_ms, .. } => {
                Self { retry_after_ms: Some(retry_after_ms), ..Self::new(Kind::Later, "over_quota", message) }
            }
            SubmitError::OutOfRoom { retry_after_ms, .. } => {
                Self { retry_after_ms: Some(retry_after_ms), ..Self::new(Kind::Later, "out_of_room", message) }
            }
            SubmitError::Unavailable { .. } => Self::new(Kind::Later, "unavailable", message),
        }
    }
}

impl From<std::io::Error> for StatementError {
    fn from(error: std::io::Error) -> Self {
        Self::internal(&error)
    }
}
