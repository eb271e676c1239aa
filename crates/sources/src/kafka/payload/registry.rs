//! A client of schema registries that speak Confluent's REST interface.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::runtime::Handle;

use super::avro::AvroSchema;
use super::protobuf::ProtobufFile;
use super::{Format, Undecoded};

/// How long the registry may take.
const ANSWER: Duration = Duration::from_secs(10);
/// A number that the registry does not know is asked for again after this.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);
/// The largest answer.
const ANSWER_BYTES: usize = 8 << 20;
/// A schema names at most so many others, and these again.
const REFERENCES: usize = 100;
/// The most schemas that are kept.
const SCHEMAS: usize = 10_000;

/// Where schemas are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistrySettings {
    /// The registry's address.
    pub url: String,
    /// For basic authentication; empty: none.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for RegistrySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistrySettings").finish_non_exhaustive()
    }
}

/// What the registry has under a number.
#[derive(Clone)]
pub(super) enum Found {
    Avro(Arc<AvroSchema>),
    Protobuf(Arc<ProtobufFile>),
    /// Nothing that values of the format can be read with.
    Refused(String),
}

#[derive(Deserialize)]
struct SchemaAnswer {
    schema: String,
    #[serde(rename = "schemaType", default)]
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    name: String,
    subject: String,
    version: u64,
}

pub(super) struct Registry {
    settings: RegistrySettings,
    runtime: Handle,
    client: reqwest::Client,
    known: HashMap<u32, Found>,
    unknown: HashMap<u32, (Instant, String)>,
}

/// Why there is no answer.
enum NoAnswer {
    Away(String),
    Unknown(String),
}

impl Registry {
    pub(super) fn new(settings: &RegistrySettings, runtime: Handle) -> Self {
        let client = reqwest::Client::builder().timeout(ANSWER).build().unwrap_or_default();
        Self { settings: settings.clone(), runtime, client, known: HashMap::new(), unknown: HashMap::new() }
    }

    /// The schema of that number, ready to decode with.
    pub(super) fn schema(&mut self, number: u32, format: Format) -> Result<Found, Undecoded> {
        if let Some(found) = self.known.get(&number) {
            return Ok(found.clone());
        }
        if let Some((_, why)) = self.unknown.get(&number).filter(|(since, _)| since.elapsed() < UNKNOWN_FOR) {
            return Ok(Found::Refused(why.clone()));
        }
        let found = match self.runtime.block_on(self.fetch(number, format)) {
            Ok(found) => found,
            Err(NoAnswer::Away(why)) => return Err(Undecoded::Away(why)),
            Err(NoAnswer::Unknown(why)) => Found::Refused(why),
        };
        match &found {
            Found::Refused(why) => {
                self.unknown.retain(|_, (since, _)| since.elapsed() < UNKNOWN_FOR);
                if self.unknown.len() < SCHEMAS {
                    self.unknown.insert(number, (Instant::now(), why.clone()));
                }
            }
            _ if self.known.len() < SCHEMAS => {
                self.known.insert(number, found.clone());
            }
            _ => {}
        }
        Ok(found)
    }

    async fn fetch(&self, number: u32, format: Format) -> Result<Found, NoAnswer> {
        let answer: SchemaAnswer = self.get(&format!("schemas/ids/{number}")).await?;
        let kind = answer.schema_type.as_deref().unwrap_or("AVRO");
        let wanted = match format {
            Format::Avro => "AVRO",
            Format::Protobuf => "PROTOBUF",
            // Nothing of the schema is needed.
            Format::Json | Format::Raw => return Ok(Found::Refused(String::new())),
        };
        if kind != wanted {
            let why = format!("the registry's schema {number} is of the kind {kind}, not {wanted}");
            return Ok(Found::Refused(why));
        }
        let others = self.references(answer.references).await?;
        let made = match format {
            Format::Protobuf => ProtobufFile::new(&answer.schema, &others).map(|file| Found::Protobuf(Arc::new(file))),
            _ => AvroSchema::new(&answer.schema, &others).map(|schema| Found::Avro(Arc::new(schema))),
        };
        Ok(made.unwrap_or_else(|why| Found::Refused(format!("the registry's schema {number} cannot be read: {why}"))))
    }

    /// The schemas that one refers to, those that these refer to, and so on, by the names under which they are referred to.
    async fn references(&self, mut asked: Vec<Reference>) -> Result<BTreeMap<String, String>, NoAnswer> {
        let mut found = BTreeMap::new();
        while let Some(reference) = asked.pop() {
            if found.contains_key(&reference.name) {
                continue;
            }
            if found.len() >= REFERENCES {
                return Err(NoAnswer::Unknown(format!("a schema refers to more than {REFERENCES} others")));
            }
            let subject: String = url::form_urlencoded::byte_serialize(reference.subject.as_bytes()).collect();
            let path = format!("subjects/{}/versions/{}", subject.replace('+', "%20"), reference.version);
            let answer: SchemaAnswer = self.get(&path).await?;
            asked.extend(answer.references);
            found.insert(reference.name, answer.schema);
        }
        Ok(found)
    }

    async fn get(&self, path: &str) -> Result<SchemaAnswer, NoAnswer> {
        let url = format!("{}/{path}", self.settings.url.trim_end_matches('/'));
        let mut request = self.client.get(url);
        if !self.settings.user.is_empty() {
            request = request.basic_auth(&self.settings.user, Some(&self.settings.password));
        }
        // Without its address, which may hold a password.
        let away = |error: reqwest::Error| NoAnswer::Away(error.without_url().to_string());
        let mut answer = request.send().await.map_err(away)?;
        let status = answer.status();
        if status == reqwest::StatusCode::NOT_FOUND {
            return Err(NoAnswer::Unknown(format!("the registry has nothing under {path}")));
        }
        if !status.is_success() {
            return Err(NoAnswer::Away(format!("it answers {path} with {status}")));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(away)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES {
                return Err(NoAnswer::Unknown(format!(
                    "the registry's answer for {path} is longer than {ANSWER_BYTES} bytes"
                )));
            }
        }
        serde_json::from_slice(&body)
            .map_err(|error| NoAnswer::Away(format!("its answer for {path} is not that of a schema registry: {error}")))
    }
}
