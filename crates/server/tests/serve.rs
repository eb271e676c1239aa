//! The binary as its users meet it: started, asked, stopped, killed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lakegate_sources::grpc::proto::{DataRecord, IngestBatchRequest, IngestBatchResponse};
use serde_json::{Value, json};

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn lakegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lakegate"));
    command.stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LAKEGATE")) {
        command.env_remove(name);
    }
    command
}

struct Server {
    child: Child,
    grpc: u16,
    url: String,
}

impl Server {
    fn command(dir: &Path, grpc: u16, http: u16) -> Command {
        let mut command = lakegate();
        command.arg("serve").arg("--data-dir").arg(dir.join("data"));
        command.args(["--port", &grpc.to_string(), "--http-port", &http.to_string()]);
        command.env("LAKEGATE__INGESTION__FLUSH_INTERVAL", "200ms");
        command
    }

    async fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[]).await
    }

    async fn start_with(dir: &Path, environment: &[(&str, &str)]) -> Self {
        let (grpc, http) = (free_port(), free_port());
        let mut command = Self::command(dir, grpc, http);
        command.envs(environment.iter().copied());
        let log = std::fs::File::options().create(true).append(true).open(dir.join("server.log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut server = Self { child, grpc, url: format!("http://127.0.0.1:{http}") };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if reqwest::get(format!("{}/readyz", server.url)).await.is_ok_and(|a| a.status().is_success()) {
                return server;
            }
            let ended = server.child.try_wait().unwrap();
            let log = std::fs::read_to_string(dir.join("server.log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "the server is not ready: {ended:?}\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = reqwest::get(format!("{}{path}", self.url)).await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
    }

    async fn ask(&self, sql: &str, accept: &str) -> (u16, String, String) {
        let request = reqwest::Client::new().post(format!("{}/api/sql", self.url)).header("accept", accept);
        let answer = request.json(&json!({ "sql": sql })).send().await.unwrap();
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        (answer.status().as_u16(), kind, answer.text().await.unwrap())
    }

    async fn count(&self, table: &str) -> u64 {
        let (status, _, text) = self.ask(&format!("SELECT count(*) AS n FROM {table}"), "text/csv").await;
        assert_eq!(status, 200, "{text}");
        text.lines().nth(1).unwrap().parse().unwrap()
    }

    async fn send(&self, stream: &str, ids: std::ops::Range<u32>) -> IngestBatchResponse {
        let record = |id: u32| DataRecord {
            event_id: format!("e{id}"),
            event_type: "made".into(),
            payload: format!("{{\"n\":{id}}}").into_bytes().into(),
            ..DataRecord::default()
        };
        let request =
            IngestBatchRequest { records: ids.map(record).collect(), endpoint_id: stream.into(), ..Default::default() };
        let channel = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", self.grpc)).unwrap();
        let mut grpc = tonic::client::Grpc::new(channel.connect().await.unwrap());
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/storage.IngestionService/IngestBatch");
        grpc.unary(tonic::Request::new(request), path, tonic_prost::ProstCodec::default()).await.unwrap().into_inner()
    }

    /// SIGTERM; returns the exit code.
    fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn lakegate(&self, args: &[&str]) -> Output {
        lakegate().env("LAKEGATE_URL", &self.url).args(args).output().unwrap()
    }
}

impl Drop for Server {
    /// A test that fails leaves no server behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c01_what_was_acknowledged_is_seen_at_once_and_after_kill_and_after_stop_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    assert_eq!(server.send("clicks", 0..100).await.accepted, 100);
    assert_eq!(server.count("\"default\".clicks").await, 100);
    server.kill();

    let server = Server::start(dir.path()).await;
    assert_eq!(server.count("\"default\".clicks").await, 100);
    assert_eq!(server.send("clicks", 100..250).await.accepted, 150);
    assert_eq!(server.stop(), Some(0));

    let server = Server::start(dir.path()).await;
    assert_eq!(server.count("\"default\".clicks").await, 250);
    let (status, body) = server.get("/api/status").await;
    assert_eq!((status, body["totals"]["accepted"].as_u64()), (200, Some(250)));
    assert!(body["streams"][0]["snapshot_id"].is_string(), "a stop commits: {body}");
    let audit = server.lakegate(&["audit"]);
    assert!(audit.status.success(), "{}{}", text(&audit.stdout), text(&audit.stderr));
    server.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_answers_in_its_own_form() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    server.send("clicks", 0..3).await;
    let (status, health) = server.get("/health").await;
    assert_eq!((status, health["status"].as_str()), (200, Some("healthy")), "{health}");
    assert_eq!(server.get("/livez").await, (200, json!({ "status": "ok" })));
    assert_eq!(server.get("/metrics").await.1["ingestion"]["eventsReceived"], 3);
    let prometheus = reqwest::Client::new()
        .get(format!("{}/metrics", server.url))
        .header("accept", "text/plain")
        .send()
        .await
        .unwrap();
    let prometheus = prometheus.text().await.unwrap();
    for name in [
        "lakegate_records_accepted_total{tenant=\"default\",stream=\"clicks\"",
        "lakegate_wal_bytes",
        "lakegate_http_request_seconds_bucket",
    ] {
        assert!(prometheus.contains(name), "{name} is not in\n{prometheus}");
    }
    let sql = "SELECT event_id, version FROM \"default\".clicks ORDER BY event_id";
    for (accept, kind, part) in [
        ("application/json", "application/json", "\"e1\""),
        ("application/x-ndjson", "application/x-ndjson", "\"event_id\":\"e1\""),
        ("text/csv", "text/csv", "e1,0"),
        ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.stream", "event_id"),
    ] {
        let (status, found, body) = server.ask(sql, accept).await;
        assert!(status == 200 && found.starts_with(kind) && body.contains(part), "{accept}: {status} {found} {body}");
    }
    for (sql, status, code) in [
        ("SELEC", 400, "syntax"),
        ("SELECT * FROM nowhere.x", 404, "unknown_table"),
        ("DELETE FROM \"default\".clicks", 403, "not_allowed"),
    ] {
        let (found, kind, body) = server.ask(sql, "application/json").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (found, kind.as_str(), body["code"].as_str()),
            (status, "application/problem+json", Some(code)),
            "{sql}: {body}"
        );
        assert!(body["correlationId"].is_string());
    }
    assert_eq!(server.get("/api/sql").await.1, json!({ "queries": [] }));
    assert_eq!(server.get("/iceberg/v1/config").await.0, 200);
    assert_eq!(server.get("/nothing").await.0, 404);
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_ask_a_running_server_and_say_when_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    server.send("clicks", 0..3).await;
    let sql = |output: &str| server.lakegate(&["sql", "-o", output, "SELECT count(*) AS n FROM \"default\".clicks"]);
    assert_eq!(text(&sql("csv").stdout), "n\n3\n");
    assert_eq!(text(&sql("json").stdout), "{\"n\":3}\n");
    assert!(text(&sql("table").stdout).contains("| 3 |"));
    let wrong = server.lakegate(&["sql", "SELECT * FROM nowhere.x"]);
    assert_eq!(wrong.status.code(), Some(1), "{}", text(&wrong.stderr));
    assert!(text(&server.lakegate(&["status"]).stdout).contains("default.clicks"));
    let away = lakegate().args(["status", "--url", &format!("http://127.0.0.1:{}", free_port())]).output().unwrap();
    assert_eq!(away.status.code(), Some(75));
    assert!(text(&away.stderr).contains("lakegate serve"), "{}", text(&away.stderr));
    server.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_shows_what_becomes_durable_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    server.send("clicks", 0..3).await;
    let mut events = reqwest::Client::new()
        .get(format!("{}/api/feeds/clicks?limit=2", server.url))
        .header("accept", "text/event-stream")
        .send()
        .await
        .unwrap();
    let tail = lakegate()
        .env("LAKEGATE_URL", &server.url)
        .args(["tail", "clicks", "-n", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut tail = Some(tail);
    // The command begins at an instant of its own, so that records come until it has seen its two.
    let mut id = 3;
    while tail.as_mut().unwrap().try_wait().unwrap().is_none() {
        server.send("clicks", id..id + 1).await;
        id += 1;
        assert!(id < 5_000, "the tail saw nothing");
    }
    let said = text(&tail.take().unwrap().wait_with_output().unwrap().stdout);
    let rows: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2, "{said}");
    assert!(rows.iter().all(|row| row["event_type"] == "made" && row["event_id"].is_string()), "{said}");
    let mut all = String::new();
    while let Some(piece) = events.chunk().await.unwrap() {
        all += &text(&piece);
    }
    assert_eq!(all.matches("data: ").count(), 2, "{all}");
    assert!(all.contains("\"event_id\":\"e3\""), "from latest, the first is the first new one: {all}");
    let last = all.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap().to_owned();
    server.send("clicks", id..id + 1).await;
    let resumed = reqwest::Client::new().get(format!("{}/api/feeds/clicks?limit=1", server.url));
    let resumed = resumed.header("accept", "text/event-stream").header("last-event-id", last).send().await.unwrap();
    let resumed = resumed.text().await.unwrap();
    assert!(resumed.contains("\"event_id\":\"e5\""), "goes on behind e3 and e4: {resumed}");
    server.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_reach_a_collector_with_the_name_of_the_service() {
    let (spans, mut received) = tokio::sync::mpsc::channel::<Vec<u8>>(64);
    let export = axum::routing::post(move |body: axum::body::Bytes| async move {
        let _ = spans.try_send(body.to_vec());
        ([("content-type", "application/grpc"), ("grpc-status", "0")], axum::body::Bytes::from_static(&[0; 5]))
    });
    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route(path, export)).await });
    let dir = tempfile::tempdir().unwrap();
    let environment =
        [("LAKEGATE__TELEMETRY__OTLP_ENDPOINT", collector.as_str()), ("LAKEGATE__TELEMETRY__TRACE_RATIO", "1")];
    let server = Server::start_with(dir.path(), &environment).await;
    server.send("clicks", 0..1).await;
    assert_eq!(tokio::task::spawn_blocking(move || server.stop()).await.unwrap(), Some(0));
    let sent = tokio::time::timeout(Duration::from_secs(10), received.recv()).await.unwrap().unwrap();
    let sent = text(&sent);
    for part in ["lakegate", "service.instance.id", "gw-1", "correlation_id"] {
        assert!(sent.contains(part), "{part} is not in {sent:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_on_the_same_folder_or_port_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let second = Server::command(dir.path(), free_port(), free_port()).output().unwrap();
    assert_eq!(second.status.code(), Some(75));
    assert!(text(&second.stderr).contains("in use by another lakegate"), "{}", text(&second.stderr));
    let elsewhere = tempfile::tempdir().unwrap();
    let second = Server::command(elsewhere.path(), server.grpc, free_port()).output().unwrap();
    assert_eq!(second.status.code(), Some(75));
    assert!(text(&second.stderr).contains("--port"), "{}", text(&second.stderr));
    server.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_its_log_works_and_says_loudly_what_that_costs() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &[("LAKEGATE__STORAGE__WAL_ENABLED", "false")]).await;
    assert_eq!(server.send("clicks", 0..10).await.accepted, 10);
    assert_eq!(server.count("\"default\".clicks").await, 10);
    let (status, health) = server.get("/health").await;
    assert_eq!((status, health["status"].as_str()), (200, Some("degraded")));
    assert!(health["services"]["durability"]["error"].as_str().unwrap().contains("lost"));
    assert!(text(&server.lakegate(&["status"]).stdout).contains("WARNING"));
    assert_eq!(server.stop(), Some(0));
    assert!(std::fs::read_to_string(dir.path().join("server.log")).unwrap().contains("LOST"));
}

#[test]
fn a_wrong_configuration_ends_with_78_and_names_every_problem() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gate.json");
    std::fs::write(&file, "{\n  \"ingestion\": { \"prot\": 1, \"http_port\": -1 }\n}").unwrap();
    for command in [["config", "check"], ["serve", "--config"]] {
        let found = lakegate().args(command).arg(&file).output().unwrap();
        let said = text(&found.stderr);
        assert_eq!(found.status.code(), Some(78), "{said}");
        assert!(said.contains("gate.json:2:18: ingestion.prot: unknown setting; did you mean `port`?"), "{said}");
        assert!(said.contains("gate.json:2:29: ingestion.http_port: found -1"), "{said}");
    }
    std::fs::write(&file, "{}").unwrap();
    assert_eq!(lakegate().args(["config", "check"]).arg(&file).output().unwrap().status.code(), Some(0));
}

#[test]
fn help_has_no_colours_when_nobody_looks() {
    let mut child = lakegate().arg("--help").stdout(Stdio::piped()).spawn().unwrap();
    let mut help = String::new();
    child.stdout.take().unwrap().read_to_string(&mut help).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(help.contains("Examples:") && !help.contains('\x1b'), "{help}");
}
