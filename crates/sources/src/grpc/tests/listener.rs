//! The port: what else it serves, whom it takes, how it ends.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::{v1, v1alpha};

use super::harness::{Server, batch, connect_h2, within};
use crate::grpc::proto;

async fn ask_http1(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn health_is_answered_over_http1_and_http2_on_the_same_port_and_nothing_else_is() {
    let server = Server::start().await;
    let answer = ask_http1(&server, "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n{\"status\":\"ok\"}"), "{answer}");
    assert!(answer.contains("content-type: application/json"), "{answer}");
    for (request, code) in [
        ("GET /", "404"),
        ("GET /metrics", "404"),
        ("POST /health", "405"),
        ("POST /events", "404"),
        ("POST /storage.IngestionService/HealthCheck", "415"),
    ] {
        let answer = ask_http1(&server, &format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{request}: {answer}");
    }
    let request = http::Request::get(format!("http://{}/health", server.addr)).body(()).unwrap();
    let (response, _) = connect_h2(server.addr).await.send_request(request, true).unwrap();
    let mut response = within(response).await.unwrap();
    assert_eq!(&*response.body_mut().data().await.unwrap().unwrap(), b"{\"status\":\"ok\"}");
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    let server = Server::start().await;
    let right = ["grpc.health.v1.Health", "storage.IngestionService"];
    macro_rules! ask {
        ($version:ident, $request:expr) => {{
            let mut client = $version::server_reflection_client::ServerReflectionClient::new(server.channel().await);
            let request = $version::ServerReflectionRequest { host: String::new(), message_request: Some($request) };
            let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
            within(answers.message()).await.unwrap().unwrap().message_response.unwrap()
        }};
    }
    let answer = ask!(v1, v1::server_reflection_request::MessageRequest::ListServices(String::new()));
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
        panic!("{answer:?}")
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(right.iter().all(|name| names.contains(name)), "{names:?}");
    let answer = ask!(v1alpha, v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()));
    let v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
        panic!("{answer:?}")
    };
    assert!(list.service.iter().any(|service| service.name == right[1]));
    let symbol = v1::server_reflection_request::MessageRequest::FileContainingSymbol("storage.DataRecord".into());
    let answer = ask!(v1, symbol);
    assert!(matches!(answer, v1::server_reflection_response::MessageResponse::FileDescriptorResponse(_)), "{answer:?}");
}

#[tokio::test]
async fn grpc_health_tells_each_service_and_its_watchers_are_let_go_at_the_end() {
    let server = Server::start().await;
    let mut client = HealthClient::new(server.channel().await);
    for service in ["", "storage.IngestionService"] {
        let answer = client.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status, 1, "{service:?}");
    }
    let unknown = client.check(HealthCheckRequest { service: "nothing".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let mut watched = client.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(within(watched.next()).await.unwrap().unwrap(), HealthCheckResponse { status: 1 });
    server.shut_down();
    while let Some(change) = within(watched.next()).await {
        assert_eq!(change.unwrap(), HealthCheckResponse { status: 2 });
    }
    server.ended().await;
}

#[tokio::test]
async fn f61_a_connection_too_many_is_told_so_and_the_others_live() {
    let server = Server::start_with(|limits| limits.max_connections = 2).await;
    let (mut one, mut two) = (server.client().await, server.client().await);
    one.ingest_batch(batch("a", 1)).await.unwrap();
    two.ingest_batch(batch("b", 1)).await.unwrap();
    let status = server.client().await.ingest_batch(batch("c", 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("max_connections"), "{status:?}");
    let answer = ask_http1(&server, "GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    one.ingest_batch(batch("d", 1)).await.unwrap();
    // A place that is free again is taken.
    drop(two);
    let taken = async {
        loop {
            if let Ok(mut client) = tonic::transport::Endpoint::from_shared(format!("http://{}", server.addr))
                .unwrap()
                .connect()
                .await
                .map(proto::ingestion_service_client::IngestionServiceClient::new)
                && client.ingest_batch(batch("e", 1)).await.is_ok()
            {
                return;
            }
        }
    };
    within(taken).await;
}

#[tokio::test]
async fn f58_connections_that_say_nothing_are_closed() {
    let server = Server::start_with(|limits| limits.header_timeout = Duration::from_millis(50)).await;
    for begun in ["", "PRI * HT", "GET /health HTTP/1.1\r\nx: "] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ = within(stream.read_to_end(&mut rest)).await;
    }
}

#[tokio::test]
async fn f59_a_peer_that_answers_no_ping_is_closed() {
    let server = Server::start_with(|limits| {
        limits.keepalive_interval = Duration::from_millis(50);
        limits.keepalive_timeout = Duration::from_millis(50);
    })
    .await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    // The preface and empty settings; nothing after that.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut rest = Vec::new();
    let _ = within(stream.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn s33_a_flood_of_resets_harms_nobody_else() {
    let server = Server::start().await;
    let mut sender = connect_h2(server.addr).await;
    for _ in 0..5_000 {
        let request = http::Request::post(format!("http://{}/storage.IngestionService/IngestBatch", server.addr))
            .header("content-type", "application/grpc");
        // Where the server has closed the connection, the flood is over.
        let Ok((_, mut body)) = sender.send_request(request.body(()).unwrap(), false) else { break };
        body.send_reset(h2::Reason::CANCEL);
        tokio::task::yield_now().await;
        if std::future::poll_fn(|context| sender.poll_ready(context)).await.is_err() {
            break;
        }
    }
    server.client().await.ingest_batch(batch("x", 1)).await.unwrap();
    assert_eq!(server.gate.seen().len(), 1);
}

#[tokio::test]
async fn at_the_end_calls_under_way_are_answered_and_idle_connections_closed() {
    let server = Server::start().await;
    server.gate.hold(1..u64::MAX);
    let mut client = server.client().await;
    let idle = server.client().await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    let call = tokio::spawn(async move { client.ingest_batch(batch("1", 1)).await });
    server.gate.wait_for(1).await;
    server.shut_down();
    let mut rest = Vec::new();
    let _ = within(silent.read_to_end(&mut rest)).await;
    assert!(TcpStream::connect(server.addr).await.is_err(), "a connection was accepted after the end began");
    server.gate.release();
    assert_eq!(within(call).await.unwrap().unwrap().into_inner().accepted, 1);
    server.ended().await;
    drop(idle);
}

#[tokio::test]
async fn what_is_not_done_after_the_drain_timeout_is_closed() {
    let server = Server::start_with(|limits| limits.drain_timeout = Duration::from_millis(50)).await;
    server.gate.hold(1..u64::MAX);
    let mut client = server.client().await;
    let call = tokio::spawn(async move { client.ingest_batch(batch("1", 1)).await });
    server.gate.wait_for(1).await;
    server.shut_down();
    assert!(within(call).await.unwrap().is_err());
    server.ended().await;
}
