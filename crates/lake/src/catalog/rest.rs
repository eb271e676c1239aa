//! An external Iceberg REST catalog.
//!
//! What an answer means for a commit: 2xx done; 409 another came first; 429 not run; 500, 502, 503, 504, a broken
//! connection and a time-out: not known. A commit's POST is sent once, whatever comes back; looking and trying again is
//! the caller's. Locations that the catalog names are used only if they lie in the warehouse.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use iceberg::spec::{TableMetadata, UnboundPartitionSpec};
use iceberg::{NamespaceIdent, TableCreation, TableIdent, TableRequirement, TableUpdate};
use lakegate_env::Random;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{Catalog, CatalogError, LoadedTable, NamespaceChange};
use crate::warehouse::Warehouse;

/// Answers larger than this are refused.
const MAX_ANSWER_BYTES: usize = 512 << 20;
/// How many pages of a listing are asked for.
const MAX_PAGES: usize = 10_000;

/// What an external catalog is reached with.
#[derive(Clone)]
pub struct RestOptions {
    /// Its address, with or without the trailing `/v1`.
    pub uri: String,
    /// The bearer token, if it wants one. Never logged.
    pub token: Option<String>,
    /// The warehouse's name, as the catalog knows it.
    pub warehouse: Option<String>,
    /// How long an answer may take, in milliseconds.
    pub timeout_ms: u64,
    /// Where tables' files lie: everything the catalog names must lie in it.
    pub storage: Warehouse,
    /// Where idempotency keys come from.
    pub random: Arc<dyn Random>,
}

/// An external Iceberg REST catalog.
pub struct RestCatalog {
    client: reqwest::Client,
    base: String,
    token: Option<String>,
    warehouse: Option<String>,
    /// What the catalog says of itself; asked once.
    agreed: OnceCell<Agreed>,
    storage: Warehouse,
    random: Arc<dyn Random>,
}

/// How the catalog is spoken to.
struct Agreed {
    prefix: String,
    separator: String,
    idempotent: bool,
}

impl std::fmt::Debug for RestCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestCatalog").field("base", &self.base).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ConfigAnswer {
    #[serde(default)]
    defaults: HashMap<String, String>,
    #[serde(default)]
    overrides: HashMap<String, String>,
    #[serde(default)]
    idempotency_key_lifetime: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct TableAnswer {
    metadata_location: Option<String>,
    metadata: TableMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ListAnswer {
    #[serde(default)]
    namespaces: Vec<NamespaceIdent>,
    #[serde(default)]
    identifiers: Vec<TableIdent>,
    #[serde(default)]
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
struct NamespaceAnswer {
    #[serde(default)]
    properties: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct ChangeAnswer {
    #[serde(default)]
    updated: Vec<String>,
    #[serde(default)]
    removed: Vec<String>,
    #[serde(default)]
    missing: Option<Vec<String>>,
}

/// An answer, read to its end.
struct Answer {
    status: StatusCode,
    body: Vec<u8>,
}

impl RestCatalog {
    /// Asks the catalog for its configuration. One that is away is asked again when it is needed.
    ///
    /// # Errors
    /// It refuses.
    pub async fn connect(options: RestOptions) -> Result<Self, CatalogError> {
        let RestOptions { uri, token, warehouse, timeout_ms, storage, random } = options;
        let client = reqwest::Client::builder()
            .timeout(Duration::from_millis(timeout_ms.max(1)))
            .redirect(reqwest::redirect::Policy::none())
            // A kept connection may be closed by the other side just as a commit goes out on it; the library would send
            // it again by itself only for requests that may be repeated, and POST is none.
            .pool_idle_timeout(Duration::from_secs(30))
            .build()
            .map_err(|e| CatalogError::Rejected(format!("the catalog's address or settings: {e}")))?;
        let base = uri.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let catalog = Self { client, base, token, warehouse, agreed: OnceCell::new(), storage, random };
        match catalog.agree().await {
            Err(CatalogError::Unavailable(why)) => tracing::warn!(%why, "the catalog is away; tables wait for it"),
            other => other?,
        }
        Ok(catalog)
    }

    /// The catalog has said how it is spoken to.
    async fn agree(&self) -> Result<(), CatalogError> {
        self.agreed.get_or_try_init(|| self.ask_config()).await.map(drop)
    }

    async fn ask_config(&self) -> Result<Agreed, CatalogError> {
        let query = self.warehouse.as_ref().map(|w| format!("?warehouse={}", encode(w))).unwrap_or_default();
        let answer = self.ask(Method::GET, &format!("config{query}"), None, &[]).await?;
        let config: ConfigAnswer = self.read(answer, "the catalog's configuration")?;
        let setting = |key: &str| config.overrides.get(key).or_else(|| config.defaults.get(key)).cloned();
        Ok(Agreed {
            prefix: setting("prefix").map(|p| format!("{}/", p.trim_matches('/'))).unwrap_or_default(),
            separator: setting("namespace-separator").unwrap_or_else(|| "%1F".to_owned()),
            idempotent: config.idempotency_key_lifetime.is_some(),
        })
    }

    fn prefix(&self) -> &str {
        self.agreed.get().map_or("", |agreed| &agreed.prefix)
    }

    fn separator(&self) -> &str {
        self.agreed.get().map_or("%1F", |agreed| &agreed.separator)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, String)],
    ) -> Result<Answer, CatalogError> {
        let changes = method != Method::GET && method != Method::HEAD;
        let lost = |what: &str, e: reqwest::Error| {
            let message = format!("{what}: {}", e.without_url());
            if changes { CatalogError::Unknown(message) } else { CatalogError::Unavailable(message) }
        };
        let mut request = self.client.request(method, format!("{}/v1/{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let mut response = match request.send().await {
            // It never left: no connection was made.
            Err(e) if e.is_connect() => {
                return Err(CatalogError::Unavailable(format!("the catalog cannot be reached: {}", e.without_url())));
            }
            other => other.map_err(|e| lost("no answer from the catalog", e))?,
        };
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| lost("the catalog's answer broke off", e))? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(CatalogError::Rejected(format!(
                    "the catalog's answer is larger than {MAX_ANSWER_BYTES} bytes"
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        let answer = Answer { status, body: bytes };
        if status.is_success() { Ok(answer) } else { Err(meaning(&answer, changes)) }
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, answer: Answer, what: &str) -> Result<T, CatalogError> {
        serde_json::from_slice(&answer.body).map_err(|e| CatalogError::Rejected(format!("{what} cannot be read: {e}")))
    }

    /// A table's answer, its places checked.
    fn table(&self, answer: Answer, changed: bool) -> Result<LoadedTable, CatalogError> {
        let unreadable =
            |message: String| if changed { CatalogError::Unknown(message) } else { CatalogError::Rejected(message) };
        let table: TableAnswer = serde_json::from_slice(&answer.body)
            .map_err(|e| unreadable(format!("the catalog's table cannot be read: {e}")))?;
        self.storage.check(table.metadata.location()).map_err(|e| unreadable(e.to_string()))?;
        Ok(LoadedTable {
            metadata_location: table.metadata_location.unwrap_or_default(),
            metadata: Arc::new(table.metadata),
        })
    }

    fn namespace_path(&self, namespace: &NamespaceIdent) -> String {
        let levels: Vec<String> = namespace.iter().map(|level| encode(level)).collect();
        format!("{}namespaces/{}", self.prefix(), levels.join(self.separator()))
    }

    fn table_path(&self, table: &TableIdent) -> String {
        format!("{}/tables/{}", self.namespace_path(table.namespace()), encode(table.name()))
    }

    async fn list(&self, path: &str) -> Result<ListAnswer, CatalogError> {
        let mut all = ListAnswer { namespaces: Vec::new(), identifiers: Vec::new(), next_page_token: None };
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mark = if path.contains('?') { '&' } else { '?' };
            let page = token.map(|t| format!("{mark}pageToken={}", encode(&t))).unwrap_or_default();
            let answer = self.ask(Method::GET, &format!("{path}{page}"), None, &[]).await?;
            let mut found: ListAnswer = self.read(answer, "the catalog's list")?;
            all.namespaces.append(&mut found.namespaces);
            all.identifiers.append(&mut found.identifiers);
            token = found.next_page_token.filter(|t| !t.is_empty());
            if token.is_none() {
                return Ok(all);
            }
        }
        Err(CatalogError::Rejected(format!("the catalog's list has more than {MAX_PAGES} pages")))
    }

    /// A key of its own for each request: the caller's next attempt is another commit, on another base.
    fn idempotency(&self) -> Vec<(&'static str, String)> {
        if !self.agreed.get().is_some_and(|agreed| agreed.idempotent) {
            return Vec::new();
        }
        let id =
            uuid::Builder::from_unix_timestamp_millis(uuid_time_ms(), &random_tail(self.random.as_ref())).into_uuid();
        vec![("Idempotency-Key", id.to_string())]
    }
}

/// A new table's partitioning. The specification lets it be without an id; Iceberg's own catalog does not.
fn spec_of(spec: UnboundPartitionSpec) -> Option<Value> {
    let mut spec = serde_json::to_value(spec).ok()?;
    spec.as_object_mut()?.entry("spec-id").or_insert_with(|| Value::from(0));
    Some(spec)
}

fn uuid_time_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or_default()
}

fn random_tail(random: &dyn Random) -> [u8; 10] {
    let mut tail = [0; 10];
    for (to, from) in tail.iter_mut().zip(random.next_u128().to_be_bytes()) {
        *to = from;
    }
    tail
}

/// Percent-encodes everything that is not a plain character of a path's part.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            other => {
                out.push('%');
                out.push_str(&format!("{other:02X}"));
            }
        }
    }
    out
}

fn meaning(answer: &Answer, changes: bool) -> CatalogError {
    #[derive(Deserialize)]
    struct Model {
        error: Option<Inner>,
    }
    #[derive(Deserialize)]
    struct Inner {
        #[serde(default)]
        message: String,
        #[serde(default, rename = "type")]
        kind: String,
    }
    let inner = serde_json::from_slice::<Model>(&answer.body).ok().and_then(|m| m.error);
    let kind = inner.as_ref().map(|e| e.kind.clone()).unwrap_or_default();
    let said: String = inner.map(|e| e.message).unwrap_or_default().chars().take(500).collect();
    let message = format!("{} {kind} {said}", answer.status.as_u16());
    match answer.status {
        StatusCode::NOT_FOUND => CatalogError::NotFound(message),
        StatusCode::CONFLICT if kind == "AlreadyExistsException" => CatalogError::AlreadyExists(message),
        StatusCode::CONFLICT if kind == "NamespaceNotEmptyException" => CatalogError::NotEmpty(message),
        StatusCode::CONFLICT => CatalogError::Conflict(message),
        // Credentials may be renewed; nothing was run.
        StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            CatalogError::Unavailable(message)
        }
        status if status.as_u16() == 419 => CatalogError::Unavailable(message),
        status if status.is_server_error() && changes => CatalogError::Unknown(message),
        status if status.is_server_error() => CatalogError::Unavailable(message),
        _ => CatalogError::Rejected(message),
    }
}

#[async_trait]
impl Catalog for RestCatalog {
    async fn list_namespaces(&self, parent: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>, CatalogError> {
        self.agree().await?;
        let below = parent.map(|p| {
            let levels: Vec<String> = p.iter().map(|level| encode(level)).collect();
            format!("?parent={}", levels.join(self.separator()))
        });
        Ok(self.list(&format!("{}namespaces{}", self.prefix(), below.unwrap_or_default())).await?.namespaces)
    }

    async fn create_namespace(
        &self,
        namespace: &NamespaceIdent,
        properties: HashMap<String, String>,
    ) -> Result<(), CatalogError> {
        self.agree().await?;
        let body = json!({ "namespace": namespace, "properties": properties });
        match self.ask(Method::POST, &format!("{}namespaces", self.prefix()), Some(body), &self.idempotency()).await {
            Err(CatalogError::Conflict(message)) => Err(CatalogError::AlreadyExists(message)),
            other => other.map(|_| ()),
        }
    }

    async fn load_namespace(&self, namespace: &NamespaceIdent) -> Result<HashMap<String, String>, CatalogError> {
        self.agree().await?;
        let answer = self.ask(Method::GET, &self.namespace_path(namespace), None, &[]).await?;
        let found: NamespaceAnswer = self.read(answer, "the catalog's namespace")?;
        Ok(found.properties.unwrap_or_default())
    }

    async fn update_namespace(
        &self,
        namespace: &NamespaceIdent,
        removals: Vec<String>,
        updates: HashMap<String, String>,
    ) -> Result<NamespaceChange, CatalogError> {
        self.agree().await?;
        let body = json!({ "removals": removals, "updates": updates });
        let path = format!("{}/properties", self.namespace_path(namespace));
        let answer = self.ask(Method::POST, &path, Some(body), &self.idempotency()).await?;
        let ChangeAnswer { updated, removed, missing } = self.read(answer, "the catalog's change")?;
        Ok(NamespaceChange { updated, removed, missing: missing.unwrap_or_default() })
    }

    async fn drop_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        self.agree().await?;
        self.ask(Method::DELETE, &self.namespace_path(namespace), None, &self.idempotency()).await.map(|_| ())
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<TableIdent>, CatalogError> {
        self.agree().await?;
        Ok(self.list(&format!("{}/tables", self.namespace_path(namespace))).await?.identifiers)
    }

    async fn create_table(
        &self,
        namespace: &NamespaceIdent,
        creation: TableCreation,
    ) -> Result<LoadedTable, CatalogError> {
        self.agree().await?;
        let mut properties = creation.properties;
        properties.insert("format-version".to_owned(), (creation.format_version as u8).to_string());
        let mut body = json!({
            "name": creation.name,
            "schema": creation.schema,
            "stage-create": false,
            "properties": properties,
        });
        if let Some(map) = body.as_object_mut() {
            let optional = [
                ("location", creation.location.map(Value::from)),
                ("partition-spec", creation.partition_spec.and_then(spec_of)),
                ("write-order", creation.sort_order.and_then(|o| serde_json::to_value(o).ok())),
            ];
            map.extend(optional.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))));
        }
        let path = format!("{}/tables", self.namespace_path(namespace));
        match self.ask(Method::POST, &path, Some(body), &self.idempotency()).await {
            Err(CatalogError::Conflict(message)) => Err(CatalogError::AlreadyExists(message)),
            other => self.table(other?, true),
        }
    }

    async fn load_table(&self, table: &TableIdent) -> Result<LoadedTable, CatalogError> {
        self.agree().await?;
        let answer = self.ask(Method::GET, &self.table_path(table), None, &[]).await?;
        self.table(answer, false)
    }

    async fn commit_table(
        &self,
        table: &TableIdent,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<LoadedTable, CatalogError> {
        self.agree().await?;
        let identifier = json!({ "namespace": table.namespace(), "name": table.name() });
        let body = json!({ "identifier": identifier, "requirements": requirements, "updates": updates });
        let answer = self.ask(Method::POST, &self.table_path(table), Some(body), &self.idempotency()).await?;
        self.table(answer, true)
    }

    async fn drop_table(&self, table: &TableIdent, purge: bool) -> Result<(), CatalogError> {
        self.agree().await?;
        let path = format!("{}?purgeRequested={purge}", self.table_path(table));
        self.ask(Method::DELETE, &path, None, &self.idempotency()).await.map(|_| ())
    }

    async fn rename_table(&self, from: &TableIdent, to: &TableIdent) -> Result<(), CatalogError> {
        self.agree().await?;
        let body = json!({ "source": from, "destination": to });
        match self.ask(Method::POST, &format!("{}tables/rename", self.prefix()), Some(body), &self.idempotency()).await
        {
            Err(CatalogError::Conflict(message)) => Err(CatalogError::AlreadyExists(message)),
            other => other.map(|_| ()),
        }
    }

    async fn register_table(
        &self,
        table: &TableIdent,
        metadata_location: &str,
        overwrite: bool,
    ) -> Result<LoadedTable, CatalogError> {
        self.agree().await?;
        self.storage.check(metadata_location)?;
        let body = json!({ "name": table.name(), "metadata-location": metadata_location, "overwrite": overwrite });
        let path = format!("{}/register", self.namespace_path(table.namespace()));
        let answer = self.ask(Method::POST, &path, Some(body), &self.idempotency()).await?;
        self.table(answer, true)
    }
}
