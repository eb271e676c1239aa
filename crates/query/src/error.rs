//! Why a query was refused or failed, in words that say what to do.
//!
//! A message never names a table, a namespace or a value that the asker may not see: a table of another tenant and a
//! table that does not exist give the same text. Details that belong to the house (paths, addresses) go to the log.

use std::time::Duration;

use datafusion::arrow::error::ArrowError;
use datafusion::common::DataFusionError;

/// What went wrong with a query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The request or the text is not what was expected. The asker must change it.
    #[error("the query cannot be read: {0}")]
    Syntax(String),
    /// The text is SQL, but does not fit the tables, the columns or the parameters. The asker must change it.
    #[error("the query cannot be planned: {0}")]
    Plan(String),
    /// No such table among those that the asker may see.
    #[error("there is no table {table} that you may read{}", near_names(.near))]
    UnknownTable {
        /// As it was asked for.
        table: String,
        /// Names that are like it, best first.
        near: Vec<String>,
    },
    /// The statement is of a kind that this door does not do.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// The text is larger or more nested than any honest query. The asker must make it simpler.
    #[error("the query is too complex: {0}")]
    TooComplex(String),
    /// The rows do not allow what the query does with them, such as dividing by zero.
    #[error("the query failed on its rows: {0}")]
    Failed(String),
    /// The result cannot be had in any of the formats that are accepted.
    #[error("none of the accepted formats is one of {0}")]
    NotAcceptable(String),
    /// It ran longer than it may.
    #[error("the query took longer than {}; narrow it by time or columns, or raise its timeout up to the server's limits.sql.timeout", duration_text(*.after))]
    Timeout {
        /// The time it had.
        after: Duration,
    },
    /// It returns more rows than it may.
    #[error(
        "the query returns more than {limit} rows; add a LIMIT or aggregate, or raise the server's limits.sql.rows"
    )]
    TooManyRows {
        /// The most rows.
        limit: u64,
    },
    /// It returns more bytes than it may.
    #[error("the result is larger than {limit} bytes; select fewer columns or rows")]
    ResultTooLarge {
        /// The most bytes.
        limit: u64,
    },
    /// It needs more memory than all queries may take together.
    #[error(
        "the query needs more memory than queries may take together ({limit} bytes); narrow it, or raise the server's limits.sql.memory"
    )]
    OutOfMemory {
        /// The most bytes of all queries together.
        limit: u64,
    },
    /// Somebody cancelled it.
    #[error("the query was cancelled")]
    Cancelled,
    /// As many queries run as may. The same query can be asked again shortly.
    #[error("{limit} queries run already, and more may not (limits.sql.concurrent); ask again shortly")]
    Busy {
        /// The most queries at once.
        limit: usize,
    },
    /// The catalog or the files cannot be reached now. The same query can be asked again.
    #[error("the tables cannot be reached now: {0}; ask again shortly")]
    Unavailable(String),
    /// A fault of ours; the log has the details.
    #[error("the query failed by a fault of the server: {0}")]
    Internal(String),
}

impl QueryError {
    /// One stable word for each kind, for answers that programs read.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Syntax(_) => "syntax",
            Self::Plan(_) => "plan",
            Self::UnknownTable { .. } => "unknown_table",
            Self::NotAllowed(_) => "not_allowed",
            Self::TooComplex(_) => "too_complex",
            Self::Failed(_) => "failed",
            Self::NotAcceptable(_) => "not_acceptable",
            Self::Timeout { .. } => "timeout",
            Self::TooManyRows { .. } => "too_many_rows",
            Self::ResultTooLarge { .. } => "result_too_large",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::Cancelled => "cancelled",
            Self::Busy { .. } => "busy",
            Self::Unavailable(_) => "unavailable",
            Self::Internal(_) => "internal",
        }
    }

    /// Whether the same query may succeed later without a change.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Unavailable(_) | Self::OutOfMemory { .. } | Self::Timeout { .. })
    }

    /// Sorts an error of the engine; `memory_limit` is what is named when memory ran out.
    pub(crate) fn from_engine(error: &DataFusionError, memory_limit: u64) -> Self {
        if let Some(ours) = find_ours(error) {
            return ours;
        }
        match error.find_root() {
            DataFusionError::SQL(e, _) => Self::Syntax(first_line(&strip(&e.to_string()))),
            DataFusionError::Plan(text) | DataFusionError::Configuration(text) => Self::Plan(strip(text)),
            e @ DataFusionError::SchemaError(..) => Self::Plan(strip(&e.to_string())),
            DataFusionError::NotImplemented(text) => Self::Plan(format!("not supported: {}", strip(text))),
            DataFusionError::Execution(text) => Self::Failed(strip(text)),
            DataFusionError::ResourcesExhausted(text) => {
                tracing::info!(%text, "a query ran out of memory");
                Self::OutOfMemory { limit: memory_limit }
            }
            DataFusionError::ArrowError(e, _) => Self::from_arrow(e),
            // Functions give what their libraries say, such as a pattern that cannot be compiled.
            DataFusionError::External(e) => Self::Failed(strip(&e.to_string())),
            other => Self::internal(other),
        }
    }

    fn from_arrow(error: &ArrowError) -> Self {
        match error {
            ArrowError::IoError(..)
            | ArrowError::CDataInterface(_)
            | ArrowError::IpcError(_)
            | ArrowError::MemoryError(_) => Self::internal(error),
            other => Self::Failed(strip(&other.to_string())),
        }
    }

    /// Logs the details and keeps them from the asker.
    pub(crate) fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "a query failed");
        Self::Internal("see the server's log".to_owned())
    }
}

impl From<QueryError> for DataFusionError {
    fn from(error: QueryError) -> Self {
        Self::External(Box::new(error))
    }
}

/// Looks for one of our errors under the engine's wrapping.
fn find_ours(error: &DataFusionError) -> Option<QueryError> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = next {
        if let Some(ours) = current.downcast_ref::<QueryError>() {
            return Some(ours.clone());
        }
        next = match current.downcast_ref::<DataFusionError>() {
            Some(DataFusionError::External(inner)) => Some(inner.as_ref()),
            Some(DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner)) => Some(inner.as_ref()),
            Some(DataFusionError::Shared(inner)) => Some(inner.as_ref()),
            Some(DataFusionError::Collection(all)) => all.first().map(|e| e as &(dyn std::error::Error + 'static)),
            Some(DataFusionError::ArrowError(inner, _)) => Some(inner.as_ref()),
            _ => match current.downcast_ref::<ArrowError>() {
                Some(ArrowError::ExternalError(inner)) => Some(inner.as_ref()),
                _ => None,
            },
        };
    }
    None
}

/// Takes off what the engine puts around its sentences: prefixes, backtraces, and its plea to report a bug.
fn strip(text: &str) -> String {
    let text = text.split("\n\nbacktrace:").next().unwrap_or_default();
    let text = text.strip_prefix("Error during planning: ").unwrap_or(text);
    let text = text.strip_prefix("Schema error: ").unwrap_or(text);
    let text = text.strip_prefix("sql parser error: ").unwrap_or(text);
    let text = text.strip_prefix("Arrow error: ").unwrap_or(text);
    text.chars().take(MAX_MESSAGE_CHARS).collect()
}

/// A message quotes the query; a hostile query is long.
const MAX_MESSAGE_CHARS: usize = 1000;

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn near_names(near: &[String]) -> String {
    match near {
        [] => "; SHOW TABLES lists those that there are".to_owned(),
        names => format!("; did you mean {}?", names.join(" or ")),
    }
}

fn duration_text(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
