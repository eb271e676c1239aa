//! The settings of imports: where files may be read from, and how.

use std::borrow::Cow;

use lakegate_places::{BucketRule, HostRule};
use lakegate_sources::files::After;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::units::{Period, Size};

/// Where files may be imported from, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Imports {
    /// Folders that files may be read from, with all below them. `{tenant}` stands for the tenant that asks. The
    /// server's own files are never read.
    pub(crate) roots: Vec<String>,
    /// Servers that files may be read from: `"data.example.com"`, `"*.example.com"`, `"files.local:8080"`, or
    /// `{"host": "files.local", "ports": [8080], "allow_private": true}` where its address is a private one. Each
    /// redirect is checked too.
    pub(crate) hosts: Vec<ImportHost>,
    /// Buckets of `storage.s3` that files may be read from, or parts of them: `"lake"`, `"lake/drop/"`,
    /// `"lake/{tenant}/"`.
    pub(crate) buckets: Vec<String>,
    /// How many files one import reads at once where it does not say.
    #[schemars(range(min = 1, max = 64))]
    pub(crate) parallel_files: u32,
    /// Folders and buckets that are watched.
    pub(crate) watch: ImportWatch,
    /// The folder of the warehouse whose files land in their tables.
    pub(crate) staging: ImportStaging,
    /// Bounds on what is read.
    pub(crate) limits: ImportLimits,
}

impl Default for Imports {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            hosts: Vec::new(),
            buckets: Vec::new(),
            parallel_files: 4,
            watch: ImportWatch::default(),
            staging: ImportStaging::default(),
            limits: ImportLimits::default(),
        }
    }
}

/// Folders and buckets that are watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ImportWatch {
    /// A file is taken when nothing wrote to it for so long.
    pub(crate) settle: Period,
    /// How often a place is listed that does not tell of its changes: a bucket, or a network drive.
    pub(crate) poll: Period,
}

impl Default for ImportWatch {
    fn default() -> Self {
        Self { settle: Period::from_secs(2), poll: Period::from_secs(4) }
    }
}

/// The folder of the warehouse whose files land in their tables: `staging/orders/x.csv` in the stream `orders`, and so
/// does `staging/orders_2024.csv` where `orders` is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ImportStaging {
    /// Whether it is watched.
    pub(crate) enabled: bool,
    /// The stream of files that name none.
    pub(crate) stream: String,
    /// What becomes of a file once it is in its table: `leave`, `move` (into the folder `.imported` beside it), or `tag`
    /// (an object of a bucket gets the tag `lakegate=imported`).
    #[schemars(with = "StagedAfter")]
    pub(crate) after: After,
}

impl Default for ImportStaging {
    fn default() -> Self {
        Self { enabled: true, stream: "service_events_raw".into(), after: After::Move }
    }
}

/// The choices of `after`, for the schema.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "stands in the schema for the type of another room")]
enum StagedAfter {
    /// It stays.
    Leave,
    /// It is moved.
    Move,
    /// It is tagged.
    Tag,
}

/// Bounds on what is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ImportLimits {
    /// The largest file.
    pub(crate) file_bytes_max: Size,
    /// The most files of one folder or prefix.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub(crate) files_max: u32,
    /// How long a server may take to be reached.
    pub(crate) connect_timeout: Period,
    /// How long a server may take for the next bytes.
    pub(crate) answer_timeout: Period,
    /// The fewest bytes a second that a server may send.
    pub(crate) bytes_per_second_min: Size,
    /// How often in a row a request is tried that brings nothing.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) attempts: u32,
    /// How many requests of one file are under way at once.
    #[schemars(range(min = 1, max = 64))]
    pub(crate) requests_in_flight: u32,
}

impl Default for ImportLimits {
    fn default() -> Self {
        Self {
            file_bytes_max: Size::gib(256),
            files_max: 1_000_000,
            connect_timeout: Period::from_secs(10),
            answer_timeout: Period::from_secs(30),
            bytes_per_second_min: Size::kib(4),
            attempts: 8,
            requests_in_flight: 4,
        }
    }
}

/// A server that files may be read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum ImportHost {
    /// Its name, with its port where it is another than 80 and 443.
    Name(String),
    /// With all that can be said of it.
    Rule(ImportHostRule),
}

/// What can be said of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportHostRule {
    host: String,
    #[serde(default)]
    ports: Vec<u16>,
    #[serde(default)]
    allow_private: bool,
}

impl JsonSchema for ImportHost {
    fn schema_name() -> Cow<'static, str> {
        "ImportHost".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "object"],
            "additionalProperties": false,
            "required": ["host"],
            "properties": {
                "host": { "type": "string" },
                "ports": { "type": "array", "items": { "type": "integer", "minimum": 1, "maximum": 65535 } },
                "allow_private": { "type": "boolean" }
            }
        })
    }
}

impl ImportHost {
    /// What it allows.
    pub(super) fn rule(&self) -> Result<HostRule, lakegate_places::RuleError> {
        match self {
            Self::Name(name) => HostRule::parse(name),
            Self::Rule(rule) => {
                let mut parsed = HostRule::parse(&rule.host)?;
                parsed.ports.extend(&rule.ports);
                parsed.allow_private = rule.allow_private;
                Ok(parsed)
            }
        }
    }
}

impl Imports {
    /// The rules for servers.
    pub(crate) fn host_rules(&self) -> Vec<HostRule> {
        self.hosts.iter().filter_map(|host| host.rule().ok()).collect()
    }

    /// The rules for buckets.
    pub(crate) fn bucket_rules(&self) -> Vec<BucketRule> {
        self.buckets.iter().filter_map(|bucket| BucketRule::parse(bucket).ok()).collect()
    }
}

/// Finds what is wrong with these settings.
pub(crate) fn check(imports: &Imports, problems: &mut Vec<Problem>) {
    for (i, root) in imports.roots.iter().enumerate() {
        if !std::path::Path::new(root).is_absolute() {
            let message = format!("{root:?} is not a whole path; write it from / on");
            problems.push(Problem::new(format!("imports.roots[{i}]"), message));
        }
    }
    for (i, host) in imports.hosts.iter().enumerate() {
        if let Err(e) = host.rule() {
            problems.push(Problem::new(format!("imports.hosts[{i}]"), e.to_string()));
        }
    }
    for (i, bucket) in imports.buckets.iter().enumerate() {
        if let Err(e) = BucketRule::parse(bucket) {
            problems.push(Problem::new(format!("imports.buckets[{i}]"), e.to_string()));
        }
    }
    if let Err(e) = lakegate_model::StreamName::new(&imports.staging.stream) {
        problems.push(Problem::new("imports.staging.stream", e.to_string()));
    }
    for (path, period) in [
        ("imports.watch.settle", imports.watch.settle),
        ("imports.watch.poll", imports.watch.poll),
        ("imports.limits.connect_timeout", imports.limits.connect_timeout),
        ("imports.limits.answer_timeout", imports.limits.answer_timeout),
    ] {
        if period < Period::from_millis(10) {
            problems.push(Problem::new(path, format!("found {period}, expected at least 10ms")));
        }
    }
}
