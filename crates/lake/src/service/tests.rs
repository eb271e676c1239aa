//! Statuses and shapes of the answers; what other engines make of them is tried with the engines themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{RestAnswer, RestService};
use crate::catalog::{DatabaseAddress, EmbeddedCatalog, EmbeddedOptions};
use crate::warehouse::Warehouse;

async fn service() -> (tempfile::TempDir, RestService) {
    let folder = tempfile::tempdir().unwrap();
    let warehouse = Warehouse::open_folder(&folder.path().join("lake")).unwrap();
    let options = EmbeddedOptions {
        database: DatabaseAddress::Sqlite(folder.path().join("catalog.db")),
        warehouse,
        random: Arc::new(lakegate_env::SystemRandom),
    };
    let catalog = EmbeddedCatalog::open(options).await.unwrap();
    (folder, RestService::new(catalog, BTreeMap::new(), BTreeMap::new()))
}

fn kind(answer: &RestAnswer) -> (u16, String) {
    let kind = answer.body.as_ref().and_then(|b| b["error"]["type"].as_str()).unwrap_or_default().to_owned();
    (answer.status, kind)
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

fn creation(name: &str, staged: bool) -> Vec<u8> {
    let field = json!({ "id": 1, "name": "id", "type": "long", "required": false });
    bytes(&json!({
        "name": name, "stage-create": staged, "properties": { "format-version": "2", "k": "v" },
        "schema": { "type": "struct", "schema-id": 0, "fields": [field] },
    }))
}

#[tokio::test]
async fn a_table_is_created_loaded_committed_to_and_dropped() {
    let (_folder, service) = service().await;
    assert_eq!(service.create_namespace(br#"{"namespace":["a"]}"#).await.status, 200);
    let made = service.create_table("a", &creation("t", false)).await;
    assert_eq!(made.status, 200, "{made:?}");
    let body = made.body.unwrap();
    assert_eq!(
        (body["metadata"]["format-version"].clone(), body["metadata"]["properties"]["k"].clone()),
        (json!(2), json!("v"))
    );
    let uuid = body["metadata"]["table-uuid"].clone();
    assert_eq!(service.table_exists("a", "t").await, RestAnswer { status: 204, body: None });
    let commit = |uuid: &Value| {
        bytes(&json!({
            "identifier": { "namespace": ["a"], "name": "t" },
            "requirements": [{ "type": "assert-table-uuid", "uuid": uuid }],
            "updates": [{ "action": "set-properties", "updates": { "x": "y" } }],
        }))
    };
    let done = service.commit_table("a", "t", &commit(&uuid)).await;
    assert_eq!(done.body.unwrap()["metadata"]["properties"]["x"], json!("y"));
    let lost = service.commit_table("a", "t", &commit(&json!("00000000-0000-0000-0000-000000000001"))).await;
    assert_eq!(kind(&lost), (409, "CommitFailedException".to_owned()));
    let renamed = br#"{"source":{"namespace":["a"],"name":"t"},"destination":{"namespace":["a"],"name":"u"}}"#;
    assert_eq!(service.rename_table(renamed).await.status, 204);
    assert_eq!(
        service.list_tables("a").await.body.unwrap()["identifiers"],
        json!([{ "namespace": ["a"], "name": "u" }])
    );
    assert_eq!(service.drop_table("a", "u", true).await.status, 204);
    assert_eq!(service.drop_namespace("a").await.status, 204);
}

#[tokio::test]
async fn a_staged_table_is_there_after_its_commit_and_not_before() {
    let (_folder, service) = service().await;
    service.create_namespace(br#"{"namespace":["a"]}"#).await;
    let staged = service.create_table("a", &creation("t", true)).await.body.unwrap();
    assert_eq!(staged["metadata-location"], Value::Null);
    assert_eq!(kind(&service.load_table("a", "t").await).0, 404);
    let metadata = &staged["metadata"];
    let commit = bytes(&json!({
        "requirements": [{ "type": "assert-create" }],
        "updates": [
            { "action": "assign-uuid", "uuid": metadata["table-uuid"] },
            { "action": "upgrade-format-version", "format-version": 2 },
            { "action": "add-schema", "schema": metadata["schemas"][0], "last-column-id": 1 },
            { "action": "set-current-schema", "schema-id": -1 },
            { "action": "add-spec", "spec": metadata["partition-specs"][0] },
            { "action": "set-default-spec", "spec-id": -1 },
            { "action": "add-sort-order", "sort-order": metadata["sort-orders"][0] },
            { "action": "set-default-sort-order", "sort-order-id": -1 },
            { "action": "set-location", "location": metadata["location"] },
            { "action": "set-properties", "updates": { "k": "v" } },
        ],
    }));
    let done = service.commit_table("a", "t", &commit).await;
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(service.load_table("a", "t").await.body.unwrap()["metadata"]["table-uuid"], metadata["table-uuid"]);
    assert_eq!(kind(&service.commit_table("a", "t", &commit).await), (409, "CommitFailedException".to_owned()));
}

#[tokio::test]
async fn errors_have_the_specifications_codes() {
    let (_folder, service) = service().await;
    service.create_namespace(br#"{"namespace":["a"]}"#).await;
    service.create_table("a", &creation("t", false)).await;
    let right =
        |answer: RestAnswer, status, name: &str| assert_eq!(kind(&answer), (status, name.to_owned()), "{answer:?}");
    right(service.load_table("a", "x").await, 404, "NoSuchTableException");
    right(service.list_tables("x").await, 404, "NoSuchNamespaceException");
    right(service.create_table("x", &creation("t", false)).await, 404, "NoSuchNamespaceException");
    right(service.create_table("a", &creation("t", false)).await, 409, "AlreadyExistsException");
    right(service.create_table("a", &creation("../t", false)).await, 400, "BadRequestException");
    right(service.create_namespace(br#"{"namespace":["a"]}"#).await, 409, "AlreadyExistsException");
    right(service.create_namespace(b"{").await, 400, "BadRequestException");
    right(service.drop_namespace("a").await, 409, "NamespaceNotEmptyException");
    right(
        service.update_namespace("a", br#"{"removals":["k"],"updates":{"k":"v"}}"#).await,
        422,
        "UnprocessableEntityException",
    );
    right(
        service.register_table("a", br#"{"name":"r","metadata-location":"file:///etc/passwd"}"#).await,
        400,
        "BadRequestException",
    );
    right(service.view("v"), 404, "NoSuchViewException");
    right(service.create_view(), 406, "UnsupportedOperationException");
    assert_eq!(service.list_views("a").await.body.unwrap()["identifiers"], json!([]));
    assert_eq!(service.config().status, 200);
    assert_eq!(service.report_metrics().status, 204);
}
