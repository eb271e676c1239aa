//! What a text names: a path, an address, an object.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use url::Url;

use crate::error::PlaceError;
use crate::text::{percent_decoded, percent_encoded, shown};

/// The longest text that is taken for a place.
const TEXT_BYTES_MAX: usize = 8 << 10;
/// The longest key that S3 knows.
const KEY_BYTES_MAX: usize = 1024;

/// A place that was named, not yet looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A path on this machine, as it was written.
    Local(PathBuf),
    /// An address of a server.
    Http(Url),
    /// An object, or a prefix of objects.
    S3 {
        /// The bucket.
        bucket: String,
        /// The object's key, or a prefix of keys.
        key: String,
    },
}

impl Location {
    /// Reads a path, `file://`, `http://`, `https://` or `s3://`.
    ///
    /// # Errors
    /// The text names no place that can be read.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        let invalid = |reason: String| PlaceError::Invalid { place: shown(text), reason };
        if text.is_empty() {
            return Err(invalid("it is empty; name a path or an address".into()));
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(invalid(format!("it has {} bytes; at most {TEXT_BYTES_MAX} are taken", text.len())));
        }
        if text.contains('\0') {
            return Err(invalid("it holds a zero byte".into()));
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Self::Local(PathBuf::from(text))) };
        match scheme.to_ascii_lowercase().as_str() {
            "file" => Self::parse_file(rest).ok_or_else(|| {
                invalid("a file address is file:///path, on this machine, with %XX for special characters".into())
            }),
            "http" | "https" => match Url::parse(text) {
                Ok(url) => Ok(Self::Http(url)),
                Err(e) => Err(invalid(format!("it is not an address ({e}); write https://host/path"))),
            },
            "s3" | "s3a" => Self::parse_s3(rest).map_err(|reason| invalid(reason.into())),
            _ => Err(invalid("only paths, file://, http://, https:// and s3:// are read".into())),
        }
    }

    fn parse_file(rest: &str) -> Option<Self> {
        let path = rest.strip_prefix("localhost").filter(|p| p.starts_with('/')).unwrap_or(rest);
        let decoded = percent_decoded(path)?;
        let right = decoded.first() == Some(&b'/') && !decoded.contains(&0);
        right.then(|| Self::Local(PathBuf::from(OsString::from_vec(decoded))))
    }

    fn parse_s3(rest: &str) -> Result<Self, &'static str> {
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
        if bucket.len() < 3 || bucket.len() > 63 || !bucket.bytes().all(plain) || bucket.contains("..") {
            return Err(
                "it names no bucket; write s3://bucket/key, with a bucket of 3 to 63 letters, digits, '-' or '.'",
            );
        }
        if key.len() > KEY_BYTES_MAX {
            return Err("its key has more than 1024 bytes");
        }
        if key.split('/').any(|part| part == "." || part == "..") {
            return Err("its key has a part '.' or '..', which would lead to another object on the way");
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// Splits a place with wildcards into the folder before the first one and the pattern from there on. None: there
    /// are no wildcards. An address of a server never has any.
    #[must_use]
    pub fn split_glob(&self) -> Option<(Self, String)> {
        let is_glob = |text: &str| text.contains(['*', '?', '[']);
        let (text, make): (&str, &dyn Fn(&str) -> Self) = match self {
            Self::Http(_) => return None,
            Self::Local(path) => (path.to_str()?, &|base| Self::Local(PathBuf::from(base))),
            Self::S3 { bucket, key } => (key, &|base| Self::S3 { bucket: bucket.clone(), key: base.to_owned() }),
        };
        if !is_glob(text) {
            return None;
        }
        let mut base = 0;
        for part in text.split_inclusive('/') {
            if is_glob(part) {
                break;
            }
            base += part.len();
        }
        let (folder, pattern) = text.split_at_checked(base)?;
        let folder = if folder.is_empty() && matches!(self, Self::Local(_)) { "." } else { folder };
        Some((make(folder), pattern.to_owned()))
    }

    /// The name of the folder that the file lies in, such as `API Error`.
    #[must_use]
    pub fn parent_name(&self) -> Option<String> {
        match self {
            Self::Local(path) => Some(path.parent()?.file_name()?.to_str()?.to_owned()),
            Self::S3 { key, .. } => key.rsplit('/').nth(1).filter(|name| !name.is_empty()).map(str::to_owned),
            Self::Http(url) => {
                let parent = url.path_segments()?.rev().nth(1)?;
                String::from_utf8(percent_decoded(parent)?).ok().filter(|name| !name.is_empty())
            }
        }
    }

    /// The file's own name.
    #[must_use]
    pub fn file_name(&self) -> Option<String> {
        match self {
            Self::Local(path) => Some(path.file_name()?.to_string_lossy().into_owned()),
            Self::S3 { key, .. } => key.rsplit('/').next().filter(|name| !name.is_empty()).map(str::to_owned),
            Self::Http(url) => {
                let name = url.path_segments()?.next_back()?;
                String::from_utf8(percent_decoded(name)?).ok().filter(|name| !name.is_empty())
            }
        }
    }

    /// As text that [`Self::parse`] reads back, whatever bytes the name has.
    #[must_use]
    pub fn uri(&self) -> String {
        match self {
            Self::Local(path) => local_uri(path),
            Self::Http(url) => url.as_str().to_owned(),
            Self::S3 { bucket, key } => format!("s3://{bucket}/{key}"),
        }
    }

    /// For messages: escaped, and without what an address may hold of secrets.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Local(path) => shown(&path.to_string_lossy()),
            Self::Http(url) => shown(&without_secrets(url)),
            Self::S3 { .. } => shown(&self.uri()),
        }
    }
}

pub(crate) fn local_uri(path: &Path) -> String {
    format!("file://{}", percent_encoded(path.as_os_str().as_bytes()))
}

/// An address without user, password, query and fragment: any of them may be a secret.
pub(crate) fn without_secrets(url: &Url) -> String {
    let mut url = url.clone();
    let has_query = url.query().is_some();
    // An address of http or https has a host, so that both can be taken away.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    if has_query { format!("{url}?…") } else { url.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(bucket: &str, key: &str) -> Location {
        Location::S3 { bucket: bucket.into(), key: key.into() }
    }

    #[test]
    fn paths_addresses_and_objects_are_told_apart() {
        assert_eq!(Location::parse("/srv/a b.csv").unwrap(), Location::Local("/srv/a b.csv".into()));
        assert_eq!(Location::parse("file:///srv/a%20b.csv").unwrap(), Location::Local("/srv/a b.csv".into()));
        assert_eq!(Location::parse("s3://lake/API Error/x.csv").unwrap(), s3("lake", "API Error/x.csv"));
        assert!(matches!(Location::parse("https://x/y").unwrap(), Location::Http(_)));
        assert_eq!(Location::parse("D:/w88_data/x").unwrap(), Location::Local("D:/w88_data/x".into()));
    }

    #[test]
    fn s13_other_schemes_are_refused() {
        for text in
            ["gopher://x/", "ftp://x/", "jar:file://x", "data://x", "", "a\0b", "file://host/etc/passwd", "file:///%zz"]
        {
            assert!(matches!(Location::parse(text), Err(PlaceError::Invalid { .. })), "{text:?}");
        }
    }

    #[test]
    fn s15_keys_that_climb_and_odd_buckets_are_refused() {
        for text in
            ["s3://lake/../other/x", "s3://lake/a/./b", "s3://", "s3://UPPER/x", "s3://a..b/x", "s3://a@b.example/x"]
        {
            assert!(matches!(Location::parse(text), Err(PlaceError::Invalid { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_pattern_begins_at_the_first_part_with_a_wildcard() {
        let split = |text: &str| Location::parse(text).unwrap().split_glob();
        assert_eq!(split("/srv/*/x.csv"), Some((Location::Local("/srv/".into()), "*/x.csv".into())));
        assert_eq!(split("s3://lake/a/b*.csv"), Some((s3("lake", "a/"), "b*.csv".into())));
        assert_eq!(split("*.csv"), Some((Location::Local(".".into()), "*.csv".into())));
        assert_eq!(split("/srv/x.csv"), None);
        assert_eq!(split("https://h/x?y=*"), None);
    }

    #[test]
    fn the_folders_name_is_found_also_with_blanks() {
        for text in ["/srv/API Error/x.parquet", "s3://lake/in/API Error/x.parquet", "https://h/API%20Error/x.parquet"]
        {
            assert_eq!(Location::parse(text).unwrap().parent_name().as_deref(), Some("API Error"), "{text}");
        }
        assert_eq!(Location::parse("s3://lake/x").unwrap().parent_name(), None);
    }

    #[test]
    fn s27_secrets_of_an_address_are_not_shown() {
        let shown = Location::parse("https://user:hunter2@h/x?token=hunter2#hunter2").unwrap().shown();
        assert_eq!(shown, "https://h/x?…");
    }
}
