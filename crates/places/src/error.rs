//! Why a place cannot be read.

use std::io;

/// Why a place cannot be read. Each message names the place, what was found there, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// The text names no place.
    #[error("{place:?} cannot be read: {reason}")]
    Invalid {
        /// What was written, escaped.
        place: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The configuration does not allow it.
    #[error("{place} may not be read: {reason}; {remedy}")]
    Forbidden {
        /// The place, escaped.
        place: String,
        /// Which rule it breaks.
        reason: String,
        /// What would allow it.
        remedy: String,
        /// The setting that would allow it.
        setting: &'static str,
    },
    /// There is nothing.
    #[error("{place} is not there{hint}")]
    NotFound {
        /// The place, escaped.
        place: String,
        /// What may help, beginning with `: `; or nothing.
        hint: String,
    },
    /// The place itself refuses us.
    #[error("{place} refuses to be read: {reason}")]
    Denied {
        /// The place, escaped.
        place: String,
        /// What it said, and what to do.
        reason: String,
    },
    /// It is something that cannot be read as a file.
    #[error("{place} is {what}, not a regular file")]
    NotAFile {
        /// The place, escaped.
        place: String,
        /// What it is.
        what: &'static str,
    },
    /// More than the configuration lets in.
    #[error("{place} has {found}; at most {limit} are taken ({setting})")]
    TooLarge {
        /// The place, escaped.
        place: String,
        /// How much there is.
        found: String,
        /// The most.
        limit: u64,
        /// The setting that moves it.
        setting: &'static str,
    },
    /// The file is another than when it was opened.
    #[error("{place} changed while it was read: {what}; import it again when nobody writes it")]
    Changed {
        /// The place, escaped.
        place: String,
        /// What differs.
        what: String,
    },
    /// It did not work, and may work later.
    #[error("{place} could not be read: {reason} (tried {attempts} times)")]
    Unavailable {
        /// The place, escaped.
        place: String,
        /// The last thing that went wrong.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
}

impl PlaceError {
    /// The kind of error that this is for those who read bytes.
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Invalid { .. } | Self::NotAFile { .. } => io::ErrorKind::InvalidInput,
            Self::Forbidden { .. } | Self::Denied { .. } => io::ErrorKind::PermissionDenied,
            Self::NotFound { .. } => io::ErrorKind::NotFound,
            Self::TooLarge { .. } => io::ErrorKind::FileTooLarge,
            Self::Changed { .. } => io::ErrorKind::StaleNetworkFileHandle,
            Self::Unavailable { .. } => io::ErrorKind::TimedOut,
        }
    }

    /// Whether the same may work later without anyone changing anything.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Changed { .. } | Self::Unavailable { .. })
    }
}

impl From<PlaceError> for io::Error {
    fn from(error: PlaceError) -> Self {
        Self::new(error.kind(), error)
    }
}
