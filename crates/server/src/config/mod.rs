//! The configuration: one JSON file with comments, overridden by the environment, overridden by flags.
//!
//! Promises that a configuration which loads can be used: every unknown name, wrong value and contradiction is found
//! at once, with file, line and column, and with what would be right. Refuses to guess. Secrets are never printed.

mod auth;
mod check;
mod consumer_of;
mod consumers;
mod imports;
mod kafka;
mod kafka_log;
mod layers;
mod limits;
mod network;
mod notation;
mod problem;
#[cfg(test)]
mod reference;
mod schema;
mod secret;
mod settings;
mod show;
mod stream;
mod stream_column;
mod stream_schema;
#[cfg(test)]
pub(crate) mod tests;
mod units;
mod validate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lakegate_model::{Contract, Shipped, StreamName};
use serde_json::Value;

pub(crate) use auth::{Auth, AuthMode, Certificate, ClientCertificates, JwtAlgorithm, Rate};
pub(crate) use check::is_loopback;
pub(crate) use kafka::{KafkaFormat, KafkaLost, KafkaSource as KafkaSourceSettings, KafkaStart};
pub(crate) use kafka_log::{KafkaLogLost, LogKind};
pub(crate) use network::Network;
pub(crate) use problem::{Origin, Problem, Problems};
pub(crate) use schema::{schema, schema_text, sorted};
pub(crate) use settings::{CompressionType, Duplicates, LogFormat, LogLevel, Redis, Settings, Telemetry, WhenAway};
pub(crate) use show::{ShowWhat, show};
pub(crate) use units::Period;

use layers::Layers;

/// What the command line sets, over everything else.
#[derive(Debug, Default, Clone)]
pub(crate) struct Flags {
    /// `--data-dir`.
    pub(crate) data_dir: Option<String>,
    /// `--bind`.
    pub(crate) bind: Option<String>,
    /// `--port`.
    pub(crate) port: Option<u16>,
    /// `--http-port`.
    pub(crate) http_port: Option<u16>,
}

impl Flags {
    fn values(&self) -> Vec<(&'static str, [&'static str; 2], Value)> {
        let text = |v: &Option<String>| v.clone().map(Value::String);
        let number = |v: Option<u16>| v.map(|n| Value::Number(n.into()));
        [
            ("--data-dir", ["node", "data_dir"], text(&self.data_dir)),
            ("--bind", ["ingestion", "bind"], text(&self.bind)),
            ("--port", ["ingestion", "port"], number(self.port)),
            ("--http-port", ["ingestion", "http_port"], number(self.http_port)),
        ]
        .into_iter()
        .filter_map(|(flag, path, value)| value.map(|v| (flag, path, v)))
        .collect()
    }
}

/// Where settings are read from.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    /// The file's name, for messages, and its text.
    pub(crate) file: Option<(String, String)>,
    /// The environment.
    pub(crate) environment: Vec<(String, String)>,
    /// The command line.
    pub(crate) flags: Flags,
}

impl Inputs {
    /// Reads the file, and the environment of this process.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(file: Option<&Path>, flags: Flags) -> Result<Self, Problems> {
        let file = match file {
            None => None,
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path)
                    .map_err(|e| Problems(vec![Problem::new("", format!("{name}: cannot be read: {e}"))]))?;
                Some((name, text))
            }
        };
        let environment = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Ok(Self { file, environment: environment.collect(), flags })
    }
}

/// A configuration that can be used.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The settings.
    pub(crate) settings: Settings,
    /// The declared streams.
    pub(crate) streams: Vec<(StreamName, Contract)>,
    /// What should be said at start although it stops nothing.
    pub(crate) warnings: Vec<String>,
    origins: BTreeMap<String, Origin>,
}

impl Config {
    /// Lays file, environment and flags over the defaults and checks the whole.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(crate) fn load(inputs: Inputs) -> Result<Self, Problems> {
        let schema = schema();
        let mut layers = Layers::new();
        if let Some((name, text)) = &inputs.file {
            layers.add_file(name, text);
        }
        layers.add_environment(inputs.environment.iter().cloned(), &schema);
        let unused_variables = kafka::add_environment(&mut layers, &inputs.environment);
        for (flag, path, value) in inputs.flags.values() {
            layers.set(&path.map(str::to_owned), value, &Origin::Flag(flag));
        }
        follow_data_dir(&mut layers);

        let mut problems = std::mem::take(&mut layers.problems);
        let folder = inputs.file.as_ref().and_then(|(name, _)| Path::new(name).parent()).unwrap_or(Path::new(""));
        stream_schema::read_files(&mut layers.tree, folder, &mut problems);
        validate::validate(&layers.tree, &schema, "", &mut problems);
        let settings = match serde_path_to_error::deserialize::<_, Settings>(layers.tree.clone()) {
            Ok(settings) => {
                problems.extend(check::check(&settings));
                Some(settings)
            }
            Err(e) => {
                if problems.is_empty() {
                    problems.push(Problem::new(e.path().to_string(), e.inner().to_string()));
                }
                None
            }
        };
        match settings {
            Some(settings) if problems.is_empty() => {
                let mut warnings = check::warnings(&settings);
                warnings.extend(unused_variables);
                Ok(Self { streams: streams_of(&settings), warnings, origins: layers.origins, settings })
            }
            _ => {
                for problem in &mut problems {
                    problem.origin = problem.origin.take().or_else(|| layers.origin_near(&problem.path));
                }
                problems.sort_by_key(|p| p.origin.as_ref().map_or((1, 0, 0), Origin::place));
                Err(Problems(problems))
            }
        }
    }

    /// The folder of everything that this process keeps.
    pub(crate) fn data_dir(&self) -> PathBuf {
        PathBuf::from(&self.settings.node.data_dir)
    }

    /// The folder of the write-ahead log.
    pub(crate) fn wal_dir(&self) -> PathBuf {
        match self.settings.storage.wal.dir.as_str() {
            "" => self.data_dir().join("wal"),
            dir => PathBuf::from(dir),
        }
    }
}

/// The declared streams, then those that have a contract of the binary because nobody declared them otherwise.
fn streams_of(settings: &Settings) -> Vec<(StreamName, Contract)> {
    let declared = settings.streams.iter().map(|(name, stream)| (name.as_str(), stream.contract()));
    let shipped = Shipped::ALL.into_iter().filter(|shipped| !settings.streams.contains_key(shipped.stream()));
    let all = declared.chain(shipped.map(|shipped| (shipped.stream(), shipped.contract())));
    all.filter_map(|(name, contract)| Some((StreamName::new(name).ok()?, contract))).collect()
}

/// Warehouse and catalog lie in the data folder while nobody puts them elsewhere.
fn follow_data_dir(layers: &mut Layers) {
    let Some(data_dir) = layers.tree.pointer("/node/data_dir").and_then(Value::as_str).map(str::to_owned) else {
        return;
    };
    let data_dir = data_dir.trim_end_matches('/').to_owned();
    let origin = Origin::Follows("node.data_dir");
    let followers = [
        ("storage.warehouse", ["storage", "warehouse"], format!("{data_dir}/warehouse")),
        ("catalog.database", ["catalog", "database"], format!("sqlite://{data_dir}/catalog.db")),
    ];
    for (path, members, value) in followers {
        let section_is_object = layers.tree.get(members[0]).is_none_or(Value::is_object);
        if !layers.is_set(path) && section_is_object {
            layers.set(&members.map(str::to_owned), Value::String(value), &origin);
        }
    }
}
