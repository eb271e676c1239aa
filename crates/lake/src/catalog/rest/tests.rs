//! The client against a server that answers what it is told, byte for byte.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use iceberg::{NamespaceIdent, TableIdent};
use lakegate_env::SeededRandom;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{RestCatalog, RestOptions};
use crate::catalog::{Catalog, CatalogError};
use crate::warehouse::Warehouse;

/// An answer: status and body; none breaks the connection after the request was read.
type Canned = Option<(u16, String)>;

#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<VecDeque<Canned>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = Self::default();
        let inner = server.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let request = read_request(&mut socket).await;
                inner.requests.lock().push(request);
                let answer = inner.answers.lock().pop_front().flatten();
                if let Some((status, body)) = answer {
                    let head =
                        format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                    let _ = socket.write_all((head + &body).as_bytes()).await;
                }
            }
        });
        (server, address)
    }

    fn answer(&self, status: u16, body: &str) {
        self.answers.lock().push_back(Some((status, body.to_owned())));
    }

    fn break_off(&self) {
        self.answers.lock().push_back(None);
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock())
    }
}

/// Reads head and body.
async fn read_request(socket: &mut tokio::net::TcpStream) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = socket.read(&mut buffer).await {
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            if body.len() >= length.map_or(0, |l| l.parse().unwrap()) {
                break;
            }
        }
    }
    text
}

async fn connect(server: &Server, address: &str, config: &str) -> RestCatalog {
    server.answer(200, config);
    let catalog = RestCatalog::connect(RestOptions {
        uri: format!("{address}/v1/"),
        token: Some("s3cret".to_owned()),
        warehouse: Some("my lake".to_owned()),
        timeout_ms: 5_000,
        storage: Warehouse::in_memory(),
        random: Arc::new(SeededRandom::new(1)),
    });
    let catalog = catalog.await.unwrap();
    let asked = server.requests().join("");
    assert!(asked.starts_with("GET /v1/config?warehouse=my%20lake "), "{asked}");
    assert!(asked.to_lowercase().contains("authorization: bearer s3cret"), "{asked}");
    assert!(!format!("{catalog:?}").contains("s3cret"));
    catalog
}

fn table() -> TableIdent {
    TableIdent::new(NamespaceIdent::from_strs(["a", "b c"]).unwrap(), "t".to_owned())
}

#[tokio::test]
async fn f30_to_f32_each_answer_to_a_commit_means_what_the_specification_says() {
    let (server, address) = Server::start().await;
    let catalog =
        connect(&server, &address, r#"{"overrides":{"prefix":"p/q"},"defaults":{},"idempotency-key-lifetime":"PT1H"}"#)
            .await;
    let error = |kind: &str| format!(r#"{{"error":{{"message":"m","type":"{kind}","code":1}}}}"#);
    type Meaning = fn(&CatalogError) -> bool;
    let cases: [(u16, &str, Meaning); 9] = [
        (409, "CommitFailedException", |e| matches!(e, CatalogError::Conflict(_))),
        (500, "CommitStateUnknownException", |e| matches!(e, CatalogError::Unknown(_))),
        (502, "", |e| matches!(e, CatalogError::Unknown(_))),
        (503, "", |e| matches!(e, CatalogError::Unknown(_))),
        (504, "", |e| matches!(e, CatalogError::Unknown(_))),
        (429, "", |e| matches!(e, CatalogError::Unavailable(_))),
        (401, "", |e| matches!(e, CatalogError::Unavailable(_))),
        (404, "NoSuchTableException", |e| matches!(e, CatalogError::NotFound(_))),
        (400, "BadRequestException", |e| matches!(e, CatalogError::Rejected(_))),
    ];
    for (status, kind, is_right) in cases {
        server.answer(status, &error(kind));
        let answered = catalog.commit_table(&table(), Vec::new(), Vec::new()).await.unwrap_err();
        assert!(is_right(&answered), "{status} {kind}: {answered:?}");
        let asked = server.requests();
        assert_eq!(asked.len(), 1, "a commit is sent once");
        assert!(asked[0].starts_with("POST /v1/p/q/namespaces/a%1Fb%20c/tables/t "), "{}", asked[0]);
        assert!(asked[0].to_lowercase().contains("idempotency-key: "), "{}", asked[0]);
    }
    server.break_off();
    let answered = catalog.commit_table(&table(), Vec::new(), Vec::new()).await.unwrap_err();
    assert!(matches!(answered, CatalogError::Unknown(_)), "{answered:?}");
    server.answer(200, "{\"half\":");
    let answered = catalog.commit_table(&table(), Vec::new(), Vec::new()).await.unwrap_err();
    assert!(matches!(answered, CatalogError::Unknown(_)), "{answered:?}");
    assert_eq!(server.requests().len(), 2, "a commit is sent once");
}

#[tokio::test]
async fn a_catalog_that_nobody_listens_for_has_not_run_the_commit() {
    let (server, address) = Server::start().await;
    let mut catalog = connect(&server, &address, "{}").await;
    catalog.base = "http://127.0.0.1:1".to_owned();
    let answered = catalog.commit_table(&table(), Vec::new(), Vec::new()).await.unwrap_err();
    assert!(matches!(answered, CatalogError::Unavailable(_)), "{answered:?}");
    assert!(!answered.to_string().contains("s3cret"));
}

#[tokio::test]
async fn s46_a_table_outside_the_warehouse_is_refused() {
    let (server, address) = Server::start().await;
    let catalog = connect(&server, &address, "{}").await;
    let memory = crate::testing::MemoryCatalog::new(Warehouse::in_memory(), Arc::new(SeededRandom::new(2)));
    let space = NamespaceIdent::new("a".to_owned());
    memory.create_namespace(&space, HashMap::new()).await.unwrap();
    let (contract, codec) = (crate::test_support::contract(), crate::Compression::Zstd);
    let creation = || crate::schema::creation_of("t", &contract, codec, 1 << 20, 30).unwrap();
    let made = memory.create_table(&space, creation()).await.unwrap();
    let good =
        serde_json::json!({ "metadata-location": made.metadata_location, "metadata": *made.metadata }).to_string();
    server.answer(200, &good);
    assert_eq!(catalog.load_table(&table()).await.unwrap().metadata.uuid(), made.metadata.uuid());
    server.answer(200, &good);
    catalog.create_table(&space, creation()).await.unwrap();
    // Iceberg's own catalog wants the partitioning to have an id.
    assert!(server.requests().concat().contains("\"spec-id\":0"));
    server.answer(200, &good.replace("memory:///warehouse/", "s3://elsewhere/"));
    let refused = catalog.load_table(&table()).await.unwrap_err();
    assert!(matches!(&refused, CatalogError::Rejected(m) if m.contains("s3://elsewhere")), "{refused:?}");
}

#[tokio::test]
async fn lists_are_read_to_their_last_page() {
    let (server, address) = Server::start().await;
    let catalog = connect(&server, &address, "{}").await;
    server.answer(200, r#"{"identifiers":[{"namespace":["a"],"name":"x"}],"next-page-token":"t 1"}"#);
    server.answer(200, r#"{"identifiers":[{"namespace":["a"],"name":"y"}],"next-page-token":null}"#);
    let found = catalog.list_tables(&NamespaceIdent::new("a".to_owned())).await.unwrap();
    assert_eq!(found.iter().map(TableIdent::name).collect::<Vec<_>>(), ["x", "y"]);
    assert!(server.requests()[1].starts_with("GET /v1/namespaces/a/tables?pageToken=t%201 "));
}
