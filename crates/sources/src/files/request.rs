//! What an import is asked to do.

use std::sync::Arc;

use lakegate_access::Principal;
use lakegate_model::{StreamName, TenantId};
use lakegate_places::{Location, shown};
use serde::{Deserialize, Serialize};

/// The stream of documents that come with an event type and without a stream.
const DOCUMENTS: &str = "documents";
/// The most places that one request names.
const PLACES_MAX: usize = 10_000;
/// The most files that one job reads at once.
pub(super) const PARALLEL_MAX: usize = 64;

/// What becomes of a file once it is in its table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// It stays where it is.
    #[default]
    Leave,
    /// It is moved into the folder `imported` beside its folder.
    Move,
    /// An object of a bucket gets the tag `lakegate=imported`.
    Tag,
}

/// What to import, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImportRequest {
    /// A file, a folder, or a pattern of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The same, as an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Several of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// The stream that takes the rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// The event type of all rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// Whether the event type is the name of the folder that the file lies in.
    pub event_type_from_dir: bool,
    /// Whether folders below are imported too.
    pub recursive: bool,
    /// Which files of a folder.
    #[serde(alias = "file_pattern", skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// How many files are read at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_files: Option<usize>,
    /// What the files hold; none: found out by their contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Whether files are imported that were imported before.
    pub again: bool,
    /// Whether files are rewritten that could be taken into the table as they are.
    pub rewrite: bool,
    /// Whether files are read and counted, and nothing else.
    pub dry_run: bool,
    /// What becomes of the files.
    pub after: After,
    /// The tenant, while authentication is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// A request that cannot be done by anyone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct RequestError {
    /// The member at fault.
    pub field: &'static str,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl ImportRequest {
    /// The places, whichever way they were named.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        self.path.iter().chain(&self.url).chain(&self.paths).map(String::as_str)
    }

    /// Finds what is wrong with the request itself.
    ///
    /// # Errors
    /// The first thing that is.
    pub fn check(&self) -> Result<(), RequestError> {
        let wrong = |field, reason: String| Err(RequestError { field, reason });
        match self.places().count() {
            0 => {
                return wrong(
                    "path",
                    "names nothing; write {\"path\": \"/srv/drop/a.parquet\"} or {\"url\": \"https://…\"}".into(),
                );
            }
            count if count > PLACES_MAX => {
                return wrong("paths", format!("names {count} places; at most {PLACES_MAX} are taken at once"));
            }
            _ => {}
        }
        if let Some(stream) = &self.stream
            && let Err(e) = StreamName::new(stream)
        {
            return wrong("stream", e.to_string());
        }
        if let Some(event_type) = &self.event_type {
            if event_type.is_empty() || event_type.len() > 256 || event_type.chars().any(char::is_control) {
                return wrong("event_type", "needs 1 to 256 printable characters".into());
            }
            if self.event_type_from_dir {
                return wrong(
                    "event_type",
                    "is given and is to be taken from the folder; choose one of the two".into(),
                );
            }
        }
        if let Some(format) = &self.format
            && lakegate_formats::Format::parse(format).is_none()
        {
            return wrong("format", format!("{:?} is not a format", shown(format)));
        }
        match self.parallel_files {
            Some(count) if !(1..=PARALLEL_MAX).contains(&count) => {
                wrong("parallel_files", format!("is {count}; expected 1 to {PARALLEL_MAX}"))
            }
            _ => Ok(()),
        }
    }

    /// The event type of one file's rows.
    pub(super) fn event_type_of(&self, file: &Location) -> Option<String> {
        if self.event_type_from_dir { file.parent_name() } else { self.event_type.clone() }
    }
}

/// The stream of a file: the one that was asked for, else that of documents where there is an event type, else one of
/// the file's own name. A dump's tables have streams of their own names.
#[must_use]
pub fn stream_for(
    request: &ImportRequest,
    file: &Location,
    event_type: Option<&str>,
    table: Option<&str>,
) -> StreamName {
    let asked = request.stream.as_deref();
    let documents = event_type.map(|_| DOCUMENTS);
    let named = table.or(asked).or(documents);
    let stem = || {
        let name = file.file_name().unwrap_or_default();
        name.split('.').find(|part| !part.is_empty()).unwrap_or_default().to_owned()
    };
    name_of(&named.map_or_else(stem, str::to_owned))
}

/// The nearest valid name: lower case, other characters as `_`, cut to its length.
pub(super) fn name_of(text: &str) -> StreamName {
    let plain = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '_' | '-') => c,
        _ => '_',
    };
    let name: String = text.chars().map(plain).take(63).collect();
    let name = if name.starts_with('-') { name.replacen('-', "_", 1) } else { name };
    // What is left of any text but the empty one is a valid name.
    StreamName::new(&name).unwrap_or_else(|_| documents())
}

fn documents() -> StreamName {
    #[expect(clippy::expect_used, reason = "a constant that is a valid name, as a test shows")]
    StreamName::new(DOCUMENTS).expect("a valid name")
}

/// Who asks for an import.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The tenant whose tables take the rows.
    pub tenant: TenantId,
    /// The credentials; none while authentication is off.
    pub principal: Option<Arc<Principal>>,
    /// What ties the request to logs and traces.
    pub correlation_id: Option<String>,
}

impl Asker {
    /// Nobody in particular, for that tenant.
    #[must_use]
    pub fn nobody(tenant: TenantId) -> Self {
        Self { tenant, principal: None, correlation_id: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(request: &ImportRequest, place: &str, event_type: Option<&str>, table: Option<&str>) -> String {
        stream_for(request, &Location::parse(place).unwrap(), event_type, table).as_str().to_owned()
    }

    #[test]
    fn a_file_finds_its_stream() {
        let plain = ImportRequest::default();
        let asked = ImportRequest { stream: Some("orders".into()), ..plain.clone() };
        assert_eq!(stream(&asked, "/srv/x.csv", Some("Login"), None), "orders");
        assert_eq!(stream(&plain, "/srv/x.csv", Some("Login"), None), "documents");
        assert_eq!(stream(&plain, "/srv/Earth Quakes.csv.gz", None, None), "earth_quakes");
        assert_eq!(stream(&plain, "/srv/dump.sql", None, Some("MediaType")), "mediatype");
        assert_eq!(stream(&plain, "/srv/.csv", None, None), "csv");
    }

    #[test]
    fn requests_that_nobody_can_do_are_refused() {
        let with = |change: fn(&mut ImportRequest)| {
            let mut request = ImportRequest { path: Some("/x".into()), ..ImportRequest::default() };
            change(&mut request);
            request.check()
        };
        with(|_| ()).unwrap();
        for change in [
            (|r: &mut ImportRequest| r.path = None) as fn(&mut ImportRequest),
            |r| r.stream = Some("a\"; DROP".into()),
            |r| r.event_type = Some("a\u{1b}b".into()),
            |r| (r.event_type, r.event_type_from_dir) = (Some("a".into()), true),
            |r| r.parallel_files = Some(0),
            |r| r.format = Some("docx".into()),
        ] {
            with(change).unwrap_err();
        }
        assert!(serde_json::from_str::<ImportRequest>(r#"{"paht": "/x"}"#).is_err());
        let seed = r#"{"path": "D:/w88_data/", "recursive": true, "file_pattern": "*.parquet", "event_type_from_dir": true, "parallel_files": 4}"#;
        assert_eq!(serde_json::from_str::<ImportRequest>(seed).unwrap().pattern.as_deref(), Some("*.parquet"));
    }
}
