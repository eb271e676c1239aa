//! Which files lie at a place.

use glob::{MatchOptions, Pattern};

use crate::error::PlaceError;
use crate::text::shown;

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Whether folders below are listed too.
    pub recursive: bool,
    /// Which files: `**/*.parquet` is compared with the path below the place, `*.parquet` with the file's name alone.
    pub pattern: Option<String>,
}

/// One file of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// As [`crate::Places::open`] takes it.
    pub uri: String,
    /// The path below the listed place, for people and patterns.
    pub relative: String,
    /// Its size.
    pub bytes: u64,
    /// Its state, as in the file's identity.
    pub version: String,
    /// When it was changed last, in microseconds since 1970.
    pub modified_us: i64,
}

/// What lies at a place, in the order of names.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The files.
    pub files: Vec<Found>,
    /// Entries that were passed over: hidden, unfinished by their name, not regular files, or not to be looked at.
    pub passed_over: u64,
}

/// Compares names with a pattern.
#[derive(Debug, Clone)]
pub(crate) struct Chooser {
    pattern: Option<Pattern>,
    whole_path: bool,
}

const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

impl Chooser {
    pub(crate) fn new(pattern: Option<&str>) -> Result<Self, PlaceError> {
        let Some(text) = pattern.filter(|p| !p.is_empty()) else {
            return Ok(Self { pattern: None, whole_path: false });
        };
        let pattern = Pattern::new(text).map_err(|e| PlaceError::Invalid {
            place: shown(text),
            reason: format!("it is not a pattern ({}); write \"*.parquet\" or \"**/*.csv\"", e.msg),
        })?;
        Ok(Self { pattern: Some(pattern), whole_path: text.contains('/') })
    }

    /// Whether the file of this path below the listed place is wanted.
    pub(crate) fn wants(&self, relative: &str) -> bool {
        let name = relative.rsplit('/').next().unwrap_or(relative);
        if is_unfinished(name) {
            return false;
        }
        match &self.pattern {
            None => true,
            Some(pattern) => pattern.matches_with(if self.whole_path { relative } else { name }, OPTIONS),
        }
    }

    /// Whether files below folders of the listed place can be wanted.
    pub(crate) fn looks_below(&self) -> bool {
        self.whole_path
    }
}

/// Names that writers give to what is not a finished data file.
pub(crate) fn is_unfinished(name: &str) -> bool {
    const ENDINGS: [&str; 7] = [".tmp", ".temp", ".part", ".partial", ".crdownload", ".swp", "~"];
    name.starts_with(['.', '_']) || ENDINGS.iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(pattern: &str, relative: &str) -> bool {
        Chooser::new(Some(pattern)).unwrap().wants(relative)
    }

    #[test]
    fn a_bare_pattern_is_about_the_name_and_one_with_folders_about_the_path() {
        assert!(wants("*.parquet", "API Error/2025-06-12.parquet"));
        assert!(wants("**/*.parquet", "API Error/2025-06-12.parquet"));
        assert!(wants("**/*.parquet", "2025-06-12.parquet"));
        assert!(!wants("Login/*.parquet", "Login/old/2025.parquet"));
        assert!(!wants("*.parquet", "a.csv"));
        assert!(wants("", "a.csv"));
        assert!(Chooser::new(Some("a[")).is_err());
    }

    #[test]
    fn f54_unfinished_files_are_passed_over_by_their_names() {
        for name in ["_SUCCESS", ".hidden.csv", "x.csv.tmp", "x.csv~", "dir/_temporary", "x.crdownload", "x.csv.part"] {
            assert!(!wants("", name), "{name}");
        }
    }
}
