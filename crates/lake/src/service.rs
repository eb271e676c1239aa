//! The embedded catalog as other engines see it: requests and answers of the Iceberg REST catalog specification.
//!
//! JSON in, status and JSON out; which HTTP library carries them is the server's matter. Answers and errors have the
//! specification's shapes and codes. Views are answered as a catalog without any.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use iceberg::spec::{FormatVersion, Schema, SortOrder, UnboundPartitionSpec};
use iceberg::{NamespaceIdent, TableCreation, TableIdent, TableRequirement, TableUpdate};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::catalog::{Catalog, CatalogError, EmbeddedCatalog, LoadedTable, TableChange};

/// What is answered: a status, and for most a body.
#[derive(Debug, Clone, PartialEq)]
pub struct RestAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The JSON body; none for 204 and answers to HEAD.
    pub body: Option<Value>,
}

impl RestAnswer {
    fn ok(body: Value) -> Self {
        Self { status: 200, body: Some(body) }
    }

    /// Leaves in the list `name` of the body the items that `stays` says yes to.
    pub fn keep(&mut self, name: &str, stays: impl Fn(&Value) -> bool) {
        if let Some(items) = self.body.as_mut().and_then(|body| body.get_mut(name)).and_then(Value::as_array_mut) {
            items.retain(stays);
        }
    }

    fn done() -> Self {
        Self { status: 204, body: None }
    }

    /// An error in the specification's form.
    #[must_use]
    pub fn error(status: u16, kind: &str, message: &str) -> Self {
        Self { status, body: Some(json!({ "error": { "message": message, "type": kind, "code": status } })) }
    }
}

/// What clients may call, as `GET /v1/config` lists it.
const ENDPOINTS: &[&str] = &[
    "GET /v1/{prefix}/namespaces",
    "POST /v1/{prefix}/namespaces",
    "GET /v1/{prefix}/namespaces/{namespace}",
    "HEAD /v1/{prefix}/namespaces/{namespace}",
    "DELETE /v1/{prefix}/namespaces/{namespace}",
    "POST /v1/{prefix}/namespaces/{namespace}/properties",
    "GET /v1/{prefix}/namespaces/{namespace}/tables",
    "POST /v1/{prefix}/namespaces/{namespace}/tables",
    "POST /v1/{prefix}/namespaces/{namespace}/register",
    "GET /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "HEAD /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "DELETE /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}/metrics",
    "POST /v1/{prefix}/tables/rename",
    "POST /v1/{prefix}/transactions/commit",
    "GET /v1/{prefix}/namespaces/{namespace}/views",
];

#[derive(Deserialize)]
struct CreateNamespace {
    namespace: NamespaceIdent,
    #[serde(default)]
    properties: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct UpdateNamespace {
    #[serde(default)]
    removals: Option<Vec<String>>,
    #[serde(default)]
    updates: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CreateTable {
    name: String,
    #[serde(default)]
    location: Option<String>,
    schema: Schema,
    #[serde(default)]
    partition_spec: Option<UnboundPartitionSpec>,
    #[serde(default)]
    write_order: Option<SortOrder>,
    #[serde(default)]
    stage_create: Option<bool>,
    #[serde(default)]
    properties: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RegisterTable {
    name: String,
    metadata_location: String,
    #[serde(default)]
    overwrite: Option<bool>,
}

#[derive(Deserialize)]
struct CommitTable {
    #[serde(default)]
    identifier: Option<TableIdent>,
    requirements: Vec<TableRequirement>,
    updates: Vec<TableUpdate>,
}

#[derive(Deserialize)]
struct RenameTable {
    source: TableIdent,
    destination: TableIdent,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CommitTransaction {
    table_changes: Vec<CommitTable>,
}

/// The embedded catalog behind the REST specification's requests. Clones share it.
#[derive(Debug, Clone)]
pub struct RestService {
    catalog: EmbeddedCatalog,
    /// What engines are told of the store, as `GET /v1/config` has it.
    told: Arc<BTreeMap<String, String>>,
    /// The same with a key, as each table has it; empty where no key is lent: engines that get a part keep to it.
    lent: Arc<BTreeMap<String, String>>,
}

type Answered = Result<RestAnswer, RestAnswer>;

fn settle(answered: Answered) -> RestAnswer {
    answered.unwrap_or_else(|error| error)
}

/// The levels of a namespace as a path has them: percent-decoded, with the unit separator between them.
fn namespace_of(path: &str) -> Result<NamespaceIdent, RestAnswer> {
    let levels = path.split('\u{1f}').map(str::to_owned).collect();
    NamespaceIdent::from_vec(levels).map_err(|e| RestAnswer::error(400, "BadRequestException", &e.to_string()))
}

fn parse<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, RestAnswer> {
    serde_json::from_slice(body)
        .map_err(|e| RestAnswer::error(400, "BadRequestException", &format!("the request's body cannot be read: {e}")))
}

fn failed(error: CatalogError) -> RestAnswer {
    let message = error.to_string();
    match &error {
        CatalogError::NotFound(what) if what.starts_with("namespace") => {
            RestAnswer::error(404, "NoSuchNamespaceException", &message)
        }
        CatalogError::NotFound(_) => RestAnswer::error(404, "NoSuchTableException", &message),
        CatalogError::AlreadyExists(_) => RestAnswer::error(409, "AlreadyExistsException", &message),
        CatalogError::NotEmpty(_) => RestAnswer::error(409, "NamespaceNotEmptyException", &message),
        CatalogError::Conflict(_) => RestAnswer::error(409, "CommitFailedException", &message),
        CatalogError::Rejected(_) => RestAnswer::error(400, "BadRequestException", &message),
        CatalogError::Unavailable(_) => RestAnswer::error(503, "ServiceUnavailableException", &message),
        CatalogError::Unknown(_) => RestAnswer::error(500, "CommitStateUnknownException", &message),
    }
}

fn table_body(loaded: &LoadedTable, staged: bool, properties: &BTreeMap<String, String>) -> Result<Value, RestAnswer> {
    let unwritable = |e: serde_json::Error| RestAnswer::error(500, "InternalServerError", &e.to_string());
    let metadata = serde_json::to_value(loaded.metadata.as_ref()).map_err(unwritable)?;
    let location = if staged { Value::Null } else { Value::from(loaded.metadata_location.clone()) };
    Ok(json!({ "metadata-location": location, "metadata": metadata, "config": properties }))
}

impl RestService {
    /// The service over that catalog. `told` tells engines how to reach the files (`s3.endpoint`, …), `key` with what
    /// key; that goes to who may read a table, with the table.
    #[must_use]
    pub fn new(catalog: EmbeddedCatalog, told: BTreeMap<String, String>, key: BTreeMap<String, String>) -> Self {
        let lent = if key.is_empty() { BTreeMap::new() } else { told.clone().into_iter().chain(key).collect() };
        Self { catalog, told: Arc::new(told), lent: Arc::new(lent) }
    }

    /// `GET /v1/config`
    #[must_use]
    pub fn config(&self) -> RestAnswer {
        RestAnswer::ok(json!({ "defaults": *self.told, "overrides": {}, "endpoints": ENDPOINTS }))
    }

    /// `GET /v1/namespaces?parent=`
    pub async fn list_namespaces(&self, parent: Option<&str>) -> RestAnswer {
        let work = async {
            let parent = parent.filter(|p| !p.is_empty()).map(namespace_of).transpose()?;
            let found = self.catalog.list_namespaces(parent.as_ref()).await.map_err(failed)?;
            Ok(RestAnswer::ok(json!({ "namespaces": found, "next-page-token": null })))
        };
        settle(work.await)
    }

    /// `POST /v1/namespaces`
    pub async fn create_namespace(&self, body: &[u8]) -> RestAnswer {
        let work = async {
            let CreateNamespace { namespace, properties } = parse(body)?;
            let properties = properties.unwrap_or_default();
            self.catalog.create_namespace(&namespace, properties.clone()).await.map_err(failed)?;
            Ok(RestAnswer::ok(json!({ "namespace": namespace, "properties": properties })))
        };
        settle(work.await)
    }

    /// `GET /v1/namespaces/{namespace}`
    pub async fn load_namespace(&self, namespace: &str) -> RestAnswer {
        let work = async {
            let namespace = namespace_of(namespace)?;
            let properties = self.catalog.load_namespace(&namespace).await.map_err(failed)?;
            Ok(RestAnswer::ok(json!({ "namespace": namespace, "properties": properties })))
        };
        settle(work.await)
    }

    /// `HEAD /v1/namespaces/{namespace}`
    pub async fn namespace_exists(&self, namespace: &str) -> RestAnswer {
        let work = async {
            self.catalog.load_namespace(&namespace_of(namespace)?).await.map_err(failed)?;
            Ok(RestAnswer::done())
        };
        settle(work.await)
    }

    /// `DELETE /v1/namespaces/{namespace}`
    pub async fn drop_namespace(&self, namespace: &str) -> RestAnswer {
        let work = async {
            self.catalog.drop_namespace(&namespace_of(namespace)?).await.map_err(failed)?;
            Ok(RestAnswer::done())
        };
        settle(work.await)
    }

    /// `POST /v1/namespaces/{namespace}/properties`
    pub async fn update_namespace(&self, namespace: &str, body: &[u8]) -> RestAnswer {
        let work = async {
            let namespace = namespace_of(namespace)?;
            let UpdateNamespace { removals, updates } = parse(body)?;
            let (removals, updates) = (removals.unwrap_or_default(), updates.unwrap_or_default());
            if let Some(both) = removals.iter().find(|key| updates.contains_key(*key)) {
                let message = format!("the property {both:?} is to be both set and removed");
                return Err(RestAnswer::error(422, "UnprocessableEntityException", &message));
            }
            let change = self.catalog.update_namespace(&namespace, removals, updates).await.map_err(failed)?;
            Ok(RestAnswer::ok(
                json!({ "updated": change.updated, "removed": change.removed, "missing": change.missing }),
            ))
        };
        settle(work.await)
    }

    /// `GET /v1/namespaces/{namespace}/tables`
    pub async fn list_tables(&self, namespace: &str) -> RestAnswer {
        let work = async {
            let found = self.catalog.list_tables(&namespace_of(namespace)?).await.map_err(failed)?;
            Ok(RestAnswer::ok(json!({ "identifiers": found, "next-page-token": null })))
        };
        settle(work.await)
    }

    /// `POST /v1/namespaces/{namespace}/tables`
    pub async fn create_table(&self, namespace: &str, body: &[u8]) -> RestAnswer {
        let work = async {
            let namespace = namespace_of(namespace)?;
            let request: CreateTable = parse(body)?;
            let staged = request.stage_create.unwrap_or(false);
            let creation = creation_of(request)?;
            let made = match staged {
                true => self.catalog.stage_table(&namespace, creation).await,
                false => self.catalog.create_table(&namespace, creation).await,
            };
            table_body(&made.map_err(failed)?, staged, &self.lent).map(RestAnswer::ok)
        };
        settle(work.await)
    }

    /// `POST /v1/namespaces/{namespace}/register`
    pub async fn register_table(&self, namespace: &str, body: &[u8]) -> RestAnswer {
        let work = async {
            let namespace = namespace_of(namespace)?;
            let RegisterTable { name, metadata_location, overwrite } = parse(body)?;
            let table = TableIdent::new(namespace, name);
            let taken = self.catalog.register_table(&table, &metadata_location, overwrite.unwrap_or(false)).await;
            table_body(&taken.map_err(failed)?, false, &self.lent).map(RestAnswer::ok)
        };
        settle(work.await)
    }

    /// `GET /v1/namespaces/{namespace}/tables/{table}`
    pub async fn load_table(&self, namespace: &str, table: &str) -> RestAnswer {
        let work = async {
            let table = TableIdent::new(namespace_of(namespace)?, table.to_owned());
            let loaded = self.catalog.load_table(&table).await.map_err(failed)?;
            table_body(&loaded, false, &self.lent).map(RestAnswer::ok)
        };
        settle(work.await)
    }

    /// `HEAD /v1/namespaces/{namespace}/tables/{table}`
    pub async fn table_exists(&self, namespace: &str, table: &str) -> RestAnswer {
        let work = async {
            let table = TableIdent::new(namespace_of(namespace)?, table.to_owned());
            self.catalog.load_table(&table).await.map_err(failed)?;
            Ok(RestAnswer::done())
        };
        settle(work.await)
    }

    /// `POST /v1/namespaces/{namespace}/tables/{table}`
    pub async fn commit_table(&self, namespace: &str, table: &str, body: &[u8]) -> RestAnswer {
        let work = async {
            let table = TableIdent::new(namespace_of(namespace)?, table.to_owned());
            let CommitTable { identifier, requirements, updates } = parse(body)?;
            if let Some(other) = identifier.filter(|i| *i != table) {
                let message = format!("the path names the table {table} and the body {other}");
                return Err(RestAnswer::error(400, "BadRequestException", &message));
            }
            let loaded = self.catalog.commit_table(&table, requirements, updates).await.map_err(failed)?;
            table_body(&loaded, false, &self.lent).map(RestAnswer::ok)
        };
        settle(work.await)
    }

    /// `DELETE /v1/namespaces/{namespace}/tables/{table}?purgeRequested=`
    pub async fn drop_table(&self, namespace: &str, table: &str, purge: bool) -> RestAnswer {
        let work = async {
            let table = TableIdent::new(namespace_of(namespace)?, table.to_owned());
            self.catalog.drop_table(&table, purge).await.map_err(failed)?;
            Ok(RestAnswer::done())
        };
        settle(work.await)
    }

    /// `POST /v1/tables/rename`
    pub async fn rename_table(&self, body: &[u8]) -> RestAnswer {
        let work = async {
            let RenameTable { source, destination } = parse(body)?;
            self.catalog.rename_table(&source, &destination).await.map_err(failed)?;
            Ok(RestAnswer::done())
        };
        settle(work.await)
    }

    /// `POST /v1/namespaces/{namespace}/tables/{table}/metrics`: taken, and not kept.
    #[must_use]
    pub fn report_metrics(&self) -> RestAnswer {
        RestAnswer::done()
    }

    /// `POST /v1/transactions/commit`
    pub async fn commit_transaction(&self, body: &[u8]) -> RestAnswer {
        let work = async {
            let CommitTransaction { table_changes } = parse(body)?;
            let mut changes = Vec::with_capacity(table_changes.len());
            for CommitTable { identifier, requirements, updates } in table_changes {
                let missing =
                    || RestAnswer::error(400, "BadRequestException", "each of table-changes needs an identifier");
                changes.push(TableChange { table: identifier.ok_or_else(missing)?, requirements, updates });
            }
            self.catalog.commit_tables(changes).await.map_err(failed)?;
            Ok(RestAnswer::done())
        };
        settle(work.await)
    }

    /// `GET /v1/namespaces/{namespace}/views`: there are none.
    pub async fn list_views(&self, namespace: &str) -> RestAnswer {
        let work = async {
            self.catalog.load_namespace(&namespace_of(namespace)?).await.map_err(failed)?;
            Ok(RestAnswer::ok(json!({ "identifiers": [], "next-page-token": null })))
        };
        settle(work.await)
    }

    /// Everything about one view: it is not there.
    #[must_use]
    pub fn view(&self, name: &str) -> RestAnswer {
        RestAnswer::error(
            404,
            "NoSuchViewException",
            &format!("view {name} does not exist; this catalog holds no views"),
        )
    }

    /// `POST /v1/namespaces/{namespace}/views`
    #[must_use]
    pub fn create_view(&self) -> RestAnswer {
        RestAnswer::error(406, "UnsupportedOperationException", "this catalog holds no views")
    }
}

fn creation_of(request: CreateTable) -> Result<TableCreation, RestAnswer> {
    let mut properties = request.properties.unwrap_or_default();
    let format_version = match properties.remove("format-version").as_deref() {
        None | Some("2") => FormatVersion::V2,
        Some("1") => FormatVersion::V1,
        Some("3") => FormatVersion::V3,
        Some(other) => {
            return Err(RestAnswer::error(
                400,
                "BadRequestException",
                &format!("the format version {other:?} is none of 1, 2 and 3"),
            ));
        }
    };
    Ok(TableCreation::builder()
        .name(request.name)
        .location_opt(request.location)
        .schema(request.schema)
        .partition_spec_opt(request.partition_spec)
        .sort_order_opt(request.write_order.filter(|o| !o.is_unsorted()))
        .properties(properties)
        .format_version(format_version)
        .build())
}
