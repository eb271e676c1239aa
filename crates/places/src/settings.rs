//! What the configuration allows.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where files may be read from, and within which bounds.
#[derive(Debug, Clone, Default)]
pub struct PlacesSettings {
    /// Folders. `{tenant}` stands for the tenant that asks.
    pub roots: Vec<PathBuf>,
    /// Folders that are never read although they lie in a root: the server's own.
    pub kept_out: Vec<PathBuf>,
    /// Folders inside those that may be read after all.
    pub let_in: Vec<PathBuf>,
    /// Servers.
    pub hosts: Vec<HostRule>,
    /// Buckets, or parts of them.
    pub buckets: Vec<BucketRule>,
    /// How the object store is reached.
    pub s3: S3Settings,
    /// Bounds.
    pub limits: PlaceLimits,
    /// Where the body of a server that serves no ranges is kept while a file is read that needs them.
    pub spool_dir: PathBuf,
}

/// A setting that is not a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} {reason}")]
pub struct RuleError {
    /// What was written.
    pub found: String,
    /// What is wrong and what would be right.
    pub reason: &'static str,
}

/// A server that may be read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRule {
    /// Its name or address in lower case; `*.example.com` stands for every name below.
    pub host: String,
    /// The ports; empty: 80 and 443.
    pub ports: Vec<u16>,
    /// Whether its address may be a private one, or this machine's.
    pub allow_private: bool,
}

impl HostRule {
    /// Reads `data.example.com`, `*.example.com`, `files.local:8080`, `[::1]:8080`.
    ///
    /// # Errors
    /// The text is not a host.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let wrong = |reason| RuleError { found: text.to_owned(), reason };
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((v6, port)) => (format!("[{v6}]"), port.strip_prefix(':')),
            None => match text.split_once(':') {
                Some((host, port)) => (host.to_owned(), Some(port)),
                None => (text.to_owned(), None),
            },
        };
        let bare = host.strip_prefix("*.").unwrap_or(&host);
        if bare.contains(['/', '@', '*', ' ']) || bare.is_empty() {
            return Err(wrong("is not a host; write \"data.example.com\", \"*.example.com\" or \"host:8080\""));
        }
        let ports = match port {
            None => Vec::new(),
            Some(port) => vec![port.parse().map_err(|_| wrong("has no port from 1 to 65535 after the colon"))?],
        };
        // A name is compared as the library of addresses writes it: lower case, numbers as dotted addresses.
        let normal = url::Host::parse(bare).map_err(|_| wrong("is not a host name or address"))?.to_string();
        let normal = normal.trim_end_matches('.');
        let host = if host.starts_with("*.") { format!("*.{normal}") } else { normal.to_owned() };
        Ok(Self { host, ports, allow_private: false })
    }

    /// Whether the rule is about this host, which is written as the library of addresses writes it.
    pub(crate) fn names(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.');
        match self.host.strip_prefix("*.") {
            Some(parent) => host.strip_suffix(parent).is_some_and(|child| child.len() > 1 && child.ends_with('.')),
            None => self.host == host,
        }
    }
}

/// A bucket, or the part of it below a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketRule {
    /// The bucket.
    pub bucket: String,
    /// What keys begin with; `{tenant}` stands for the tenant that asks.
    pub prefix: String,
}

impl BucketRule {
    /// Reads `bucket`, `bucket/prefix/` or `s3://bucket/prefix/`.
    ///
    /// # Errors
    /// The text names no bucket.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let bare = text.strip_prefix("s3://").unwrap_or(text);
        let (bucket, prefix) = bare.split_once('/').unwrap_or((bare, ""));
        match crate::Location::parse(&format!("s3://{bucket}/{prefix}")) {
            Ok(_) => Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() }),
            Err(_) => Err(RuleError {
                found: text.to_owned(),
                reason: "names no bucket; write \"bucket\" or \"bucket/prefix/\"",
            }),
        }
    }

    /// Whether the rule lets `tenant` read `key` of `bucket`.
    pub(crate) fn allows(&self, bucket: &str, key: &str, tenant: Option<&str>) -> bool {
        if self.bucket != bucket {
            return false;
        }
        match with_tenant(&self.prefix, tenant) {
            Some(prefix) => {
                let folder = prefix.strip_suffix('/').unwrap_or(&prefix);
                let inside = key.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
                prefix.is_empty() || inside
            }
            None => false,
        }
    }
}

/// A setting's text for one tenant. None: it is about a tenant, and nobody in particular asks.
pub(crate) fn with_tenant(text: &str, tenant: Option<&str>) -> Option<String> {
    if !text.contains("{tenant}") {
        return Some(text.to_owned());
    }
    tenant.map(|tenant| text.replace("{tenant}", tenant))
}

/// How the object store is reached.
#[derive(Clone)]
pub struct S3Settings {
    /// Its address; empty: that of the provider.
    pub endpoint: String,
    /// The region.
    pub region: String,
    /// The access key; empty: requests are not signed.
    pub access_key: String,
    /// The secret key.
    pub secret_key: String,
    /// Whether buckets are named in the path.
    pub path_style: bool,
}

impl Default for S3Settings {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            region: "us-east-1".into(),
            access_key: String::new(),
            secret_key: String::new(),
            path_style: true,
        }
    }
}

impl fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Settings")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("path_style", &self.path_style)
            .finish_non_exhaustive()
    }
}

/// Bounds on what is read from a place.
#[derive(Debug, Clone)]
pub struct PlaceLimits {
    /// The largest file.
    pub file_bytes_max: u64,
    /// The most files of one listing.
    pub files_max: usize,
    /// How long a server may take to be reached.
    pub connect_timeout: Duration,
    /// How long a server may take for the next bytes of an answer.
    pub answer_timeout: Duration,
    /// The fewest bytes a second that a server may send, measured over the time that we waited for it.
    pub bytes_per_second_min: u64,
    /// How often in a row a request is tried that brings nothing.
    pub attempts: u32,
    /// The first pause between two attempts; it doubles each time, up to 10 s.
    pub first_pause: Duration,
    /// How many requests of one file are under way at once.
    pub in_flight: usize,
    /// How many bytes one request asks for.
    pub chunk_bytes: u64,
}

impl Default for PlaceLimits {
    fn default() -> Self {
        Self {
            file_bytes_max: 256 << 30,
            files_max: 1_000_000,
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
            bytes_per_second_min: 4 << 10,
            attempts: 8,
            first_pause: Duration::from_millis(100),
            in_flight: 4,
            chunk_bytes: 4 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s27_keys_are_not_shown() {
        let settings = S3Settings { secret_key: "hunter2".into(), access_key: "hunter3".into(), ..Default::default() };
        assert!(!format!("{settings:?}").contains("hunter"));
    }

    #[test]
    fn a_rule_for_a_host_is_about_that_host_alone() {
        let rule = HostRule::parse("Data.Example.com").unwrap();
        assert!(rule.names("data.example.com") && rule.names("data.example.com."));
        assert!(!rule.names("xdata.example.com") && !rule.names("example.com"));
        let below = HostRule::parse("*.example.com").unwrap();
        assert!(below.names("a.b.example.com"));
        assert!(!below.names("example.com") && !below.names("badexample.com") && !below.names(".example.com"));
        assert_eq!(HostRule::parse("0x7f.1:8080").unwrap().host, "127.0.0.1");
        assert_eq!(HostRule::parse("[::1]:8080").unwrap().ports, [8080]);
        for bad in ["", "http://x", "u@h", "a*b", "h:port", "h:0x"] {
            assert!(HostRule::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn s15_a_tenant_reads_below_its_own_prefix_alone() {
        let rule = BucketRule::parse("imports/{tenant}/").unwrap();
        assert!(rule.allows("imports", "acme/x.csv", Some("acme")));
        assert!(!rule.allows("imports", "acme2/x.csv", Some("acme")));
        assert!(!rule.allows("imports", "other/x.csv", Some("acme")));
        assert!(!rule.allows("imports", "acme/x.csv", None));
        assert!(!rule.allows("lake", "acme/x.csv", Some("acme")));
        assert!(BucketRule::parse("lake").unwrap().allows("lake", "anything", None));
    }
}
