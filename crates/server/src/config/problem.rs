//! What is wrong with a configuration: where, and what would be right.

use std::fmt;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody set it.
    Default,
    /// It follows from another setting.
    Follows(&'static str),
    /// A line of the file, and the column in it, both from 1.
    File { file: String, line: usize, column: usize },
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Follows(setting) => write!(f, "follows {setting}"),
            Self::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

impl Origin {
    /// Orders problems as they are met on reading: the file from its top, then the rest.
    pub(crate) fn place(&self) -> (u8, usize, usize) {
        match self {
            Self::File { line, column, .. } => (0, *line, *column),
            Self::Default | Self::Follows(_) => (1, 0, 0),
            Self::Environment(_) => (2, 0, 0),
            Self::Flag(_) => (3, 0, 0),
        }
    }
}

/// One thing that keeps a configuration from being used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The path of the setting, such as `ingestion.port`; empty for the file as a whole.
    pub(crate) path: String,
    /// What was found and what would be right.
    pub(crate) message: String,
    /// Where the value comes from, once that is known.
    pub(crate) origin: Option<Origin>,
}

impl Problem {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), origin: None }
    }

    pub(crate) fn at(path: impl Into<String>, message: impl Into<String>, origin: Origin) -> Self {
        Self { path: path.into(), message: message.into(), origin: Some(origin) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that keeps a configuration from being used; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
