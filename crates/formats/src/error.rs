//! Why a file cannot be read any further.

use std::io;

/// Why a file cannot be read, or no further.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its bytes could not be had. Another try may help.
    #[error("{name}: {place}: {source}")]
    Io {
        /// The file.
        name: String,
        /// Where in it.
        place: String,
        /// What went wrong.
        source: io::Error,
    },
    /// Its bytes don't mean what they should. Another try gives the same.
    #[error("{name}: {place}: {reason}")]
    Damaged {
        /// The file.
        name: String,
        /// Where in it.
        place: String,
        /// What was found, what would be right.
        reason: String,
    },
    /// It asks for more than a limit allows.
    #[error("{name}: {place}: {reason}")]
    Limit {
        /// The file.
        name: String,
        /// Where in it.
        place: String,
        /// The limit, and what was found.
        reason: String,
    },
    /// It is sound, but of a kind that is not read.
    #[error("{name}: {reason}")]
    Unsupported {
        /// The file.
        name: String,
        /// What it is, and what would be right.
        reason: String,
    },
    /// The mark is not of this file, or not of this version.
    #[error("{name}: the place to go on from does not fit this file: {reason}; import it from its beginning")]
    Mark {
        /// The file.
        name: String,
        /// What does not fit.
        reason: String,
    },
}
