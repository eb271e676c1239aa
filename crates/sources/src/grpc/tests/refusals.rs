//! Requests that are refused: always with an answer.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use lakegate_ingest::SubmitError;
use prost::Message;
use tonic::Code;
use tonic_types::StatusExt;

use super::harness::{RawCall, Server, batch, framed, raw_call, record, within};
use crate::grpc::proto;

#[tokio::test]
async fn s31_bytes_that_are_no_message_are_refused_with_details() {
    let server = Server::start().await;
    let whole = proto::IngestRecordRequest { record: Some(record("e1")) }.encode_to_vec();
    let wrong: [(&str, Vec<u8>); 6] = [
        ("cut", whole[..whole.len() - 3].to_vec()),
        ("group", vec![0x0b, 0x0c]),
        ("wrong wire type", vec![0x08, 0x01]),
        ("wild length", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ("no record", vec![]),
        ("two records", [&whole[..], &whole[..]].concat()),
    ];
    for (name, message) in wrong {
        let raw = raw_call(server.addr, RawCall::new("IngestRecord", vec![framed(0, &message)])).await;
        assert_eq!(
            (raw.http_status, raw.status.code()),
            (StatusCode::OK, Code::InvalidArgument),
            "{name}: {:?}",
            raw.status
        );
        assert_eq!(raw.status.get_details_error_info().unwrap().domain, "lakegate", "{name}");
        assert!(raw.status.get_details_bad_request().is_some(), "{name}");
    }
    assert_eq!(server.gate.seen().len(), 0);
    let raw = raw_call(server.addr, RawCall::new("IngestBatch", vec![framed(0, &[0x0a, 0x05, 0x00])])).await;
    assert_eq!(raw.status.code(), Code::InvalidArgument);
    assert_eq!(raw.status.get_details_error_info().unwrap().reason, "MALFORMED_PAYLOAD");
}

#[tokio::test]
async fn f60_a_message_over_the_limit_is_refused_by_its_head_alone() {
    let server = Server::start_with(|limits| limits.max_message_bytes = 1000).await;
    let status = server.client().await.ingest_batch(batch(&"b".repeat(1000), 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
    let head = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]);
    let raw = raw_call(server.addr, RawCall { ends: false, ..RawCall::new("IngestBatch", vec![head]) }).await;
    assert_eq!(raw.status.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn f60_headers_over_the_limit_are_refused() {
    let server = Server::start().await;
    let long = "h".repeat(20 << 10);
    let headers = [("x-long", long.as_str())];
    let raw =
        raw_call(server.addr, RawCall { headers: &headers, ..RawCall::new("IngestBatch", vec![framed(0, b"")]) }).await;
    assert_eq!(raw.http_status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn a_request_that_is_not_one_message_is_refused() {
    let server = Server::start().await;
    let message = framed(0, &batch("b", 1).encode_to_vec());
    let wrong: [(&str, Vec<Bytes>, Code); 6] = [
        ("nothing", vec![], Code::InvalidArgument),
        ("half a head", vec![message.slice(..3)], Code::InvalidArgument),
        ("half a message", vec![message.slice(..message.len() - 1)], Code::InvalidArgument),
        ("two messages", vec![message.clone(), message.clone()], Code::InvalidArgument),
        ("an unknown flag", vec![framed(2, b"")], Code::Internal),
        ("packed by nothing", vec![framed(1, b"x")], Code::Internal),
    ];
    for (name, parts, code) in wrong {
        assert_eq!(raw_call(server.addr, RawCall::new("IngestBatch", parts)).await.status.code(), code, "{name}");
    }
    assert_eq!(server.gate.seen().len(), 0);
}

#[tokio::test]
async fn what_is_not_known_is_unimplemented_and_what_is_not_grpc_is_told_so() {
    let server = Server::start().await;
    let message = || vec![framed(0, b"")];
    for path in ["/storage.IngestionService/Nothing", "/storage.Other/IngestBatch", "/x"] {
        assert_eq!(
            raw_call(server.addr, RawCall::new(path, message())).await.status.code(),
            Code::Unimplemented,
            "{path}"
        );
    }
    let packed = RawCall { headers: &[("grpc-encoding", "snappy")], ..RawCall::new("IngestBatch", message()) };
    let raw = raw_call(server.addr, packed).await;
    assert_eq!(raw.status.code(), Code::Unimplemented);
    assert_eq!(raw.headers["grpc-accept-encoding"], "identity,gzip,zstd");
    for content_type in ["application/json", "application/grpc+json", "application/grpc-web"] {
        let headers = [("content-type", content_type)];
        let raw = raw_call(server.addr, RawCall { headers: &headers, ..RawCall::new("IngestBatch", message()) }).await;
        assert_eq!(raw.http_status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
}

#[tokio::test]
async fn what_the_gate_refuses_is_told_with_its_code_and_when_to_come_back() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let errors = [
        (SubmitError::WrongTenant { field: "records[0].tenant_id".into() }, Code::PermissionDenied),
        (SubmitError::BatchTooLarge { limit: 10, found: 11 }, Code::InvalidArgument),
        (
            SubmitError::OutOfRoom { what: "memory", message: "full".into(), retry_after_ms: 700 },
            Code::ResourceExhausted,
        ),
        (SubmitError::Unavailable { message: "the log failed".into() }, Code::Unavailable),
    ];
    for (error, code) in errors {
        server.gate.answer_next(Err(error.clone()));
        let status = client.ingest_batch(batch("b", 1)).await.unwrap_err();
        assert_eq!(status.code(), code, "{error:?}");
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let comes_back = matches!(code, Code::ResourceExhausted | Code::Unavailable);
        assert_eq!(retry.is_some(), comes_back, "{error:?}");
    }
}

#[tokio::test]
async fn f58_a_message_that_trickles_is_given_up() {
    let server = Server::start_with(|limits| limits.message_grace = Duration::from_millis(100)).await;
    let message = framed(0, &batch("b", 1).encode_to_vec());
    for method in ["IngestBatch", "IngestStream"] {
        let call = RawCall { ends: false, ..RawCall::new(method, vec![message.slice(..8)]) };
        let raw = raw_call(server.addr, call).await;
        assert_eq!(raw.status.code(), Code::DeadlineExceeded, "{method}");
    }
}

#[tokio::test]
async fn past_the_budget_for_messages_a_call_is_told_to_come_back() {
    let server = Server::start_with(|limits| limits.receive_budget_bytes = 64 << 10).await;
    server.gate.hold(1..u64::MAX);
    let mut client = server.client().await;
    let mut large = batch("1", 1);
    large.records[0].payload = Bytes::from(vec![b'x'; 60 << 10]);
    let (mut other, sent) = (client.clone(), large.clone());
    let held = tokio::spawn(async move { other.ingest_batch(sent).await });
    server.gate.wait_for(1).await;
    let status = client.ingest_batch(large).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_some());
    server.gate.release();
    assert_eq!(within(held).await.unwrap().unwrap().into_inner().accepted, 1);
}
