//! Calls that are answered.

use std::io::{Read, Write};

use bytes::Bytes;
use lakegate_model::{ReasonCode, RecordError, Refusal, Verdict};
use prost::Message;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic_types::StatusExt;

use super::harness::{RawCall, Server, accepted, batch, framed, raw_call, record};
use crate::grpc::proto;

#[tokio::test]
async fn a_batch_reaches_the_gate_as_the_bytes_that_came() {
    let server = Server::start().await;
    let sent = batch("b1", 3);
    let mut request = tonic::Request::new(sent.clone());
    request.metadata_mut().insert("x-request-id", "r-7".parse().unwrap());
    let answer = server.client().await.ingest_batch(request).await.unwrap().into_inner();
    assert_eq!((answer.batch_id.as_str(), answer.accepted, answer.position), ("b1", 3, 41));
    let seen = server.gate.seen().remove(0);
    assert_eq!(&*seen.body, &*sent.encode_to_vec());
    assert_eq!((seen.correlation_id.as_deref(), seen.principal), (Some("r-7"), None));
}

#[tokio::test]
async fn a_record_is_a_batch_of_one_and_its_id_comes_back() {
    let server = Server::start().await;
    let request = proto::IngestRecordRequest { record: Some(record("e1")) };
    let answer = server.client().await.ingest_record(request.clone()).await.unwrap().into_inner();
    assert_eq!((answer.event_id.as_str(), answer.status(), answer.position), ("e1", proto::RecordStatus::Accepted, 41));
    let seen = proto::IngestBatchRequest::decode(server.gate.seen().remove(0).body).unwrap();
    assert_eq!(seen.records, [request.record.unwrap()]);
}

#[tokio::test]
async fn a_batch_of_a_megabyte_in_many_frames_arrives_whole() {
    let server = Server::start().await;
    let mut sent = batch("b1", 1000);
    for record in &mut sent.records {
        record.payload = Bytes::from(vec![b'x'; 2000]);
    }
    let message = sent.encode_to_vec();
    let frames = framed(0, &message).chunks(1000).map(Bytes::copy_from_slice).collect();
    let raw = raw_call(server.addr, RawCall::new("IngestBatch", frames)).await;
    assert_eq!(raw.status.code(), Code::Ok);
    assert_eq!(&*server.gate.seen().remove(0).body, &*message);
    // The head itself may be cut too.
    let frames = framed(0, &message)
        .chunks(3)
        .take(4)
        .map(Bytes::copy_from_slice)
        .chain([framed(0, &message).slice(12..)])
        .collect();
    assert_eq!(raw_call(server.addr, RawCall::new("IngestBatch", frames)).await.status.code(), Code::Ok);
    assert_eq!(&*server.gate.seen().remove(1).body, &*message);
}

#[tokio::test]
async fn an_empty_batch_is_answered_with_zeroes() {
    let server = Server::start().await;
    let answer = server.client().await.ingest_batch(proto::IngestBatchRequest::default()).await.unwrap().into_inner();
    assert_eq!((answer.accepted, answer.rejected, answer.errors.len()), (0, 0, 0));
}

#[tokio::test]
async fn records_that_are_given_back_are_listed_with_their_reason() {
    let server = Server::start().await;
    let refusal = Refusal { code: ReasonCode::MissingField, field: Some("id".into()), message: "id is missing".into() };
    let error = RecordError { index: 1, event_id: "e2".into(), dead_lettered: false, refusal: refusal.clone() };
    let outcome =
        lakegate_ingest::SubmissionOutcome { accepted: 1, rejected: 1, errors: vec![error], ..accepted("b", 1) };
    server.gate.answer_next(Ok(outcome));
    let answer = server.client().await.ingest_batch(batch("b", 2)).await.unwrap().into_inner();
    let right = proto::RecordError {
        index: 1,
        event_id: "e2".into(),
        code: "MISSING_FIELD".into(),
        message: "id is missing".into(),
    };
    assert_eq!((answer.accepted, answer.rejected, answer.errors), (1, 1, vec![right]));
    // A lone record that breaks its contract is told so in the answer.
    server.gate.answer_next(Ok(lakegate_ingest::SubmissionOutcome {
        first_verdict: Verdict::Rejected(refusal.clone()),
        ..accepted("", 0)
    }));
    let request = proto::IngestRecordRequest { record: Some(record("e1")) };
    let answer = server.client().await.ingest_record(request.clone()).await.unwrap().into_inner();
    assert_eq!((answer.status(), answer.message.as_str()), (proto::RecordStatus::Rejected, "id is missing"));
    // One whose payload is not what it says it is, is an error of the request.
    let refusal = Refusal { code: ReasonCode::MalformedPayload, field: Some("payload".into()), ..refusal };
    server.gate.answer_next(Ok(lakegate_ingest::SubmissionOutcome {
        first_verdict: Verdict::Rejected(refusal),
        ..accepted("", 0)
    }));
    let status = server.client().await.ingest_record(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "record.payload");
    assert_eq!(status.get_details_error_info().unwrap().reason, "MALFORMED_PAYLOAD");
}

#[tokio::test]
async fn requests_and_answers_may_be_packed_with_gzip_and_zstd() {
    let server = Server::start().await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut client = server.client().await.send_compressed(encoding).accept_compressed(encoding);
        let answer = client.ingest_batch(batch("b1", 200)).await.unwrap().into_inner();
        assert_eq!(answer.accepted, 200, "{encoding}");
        // Large enough to be packed.
        let id = "i".repeat(1000) + &"j".repeat(1000);
        let answer = client.ingest_batch(batch(&id, 1)).await.unwrap();
        assert_eq!(answer.metadata().get("grpc-encoding").unwrap(), encoding.to_string().as_str());
        assert_eq!(answer.into_inner().batch_id, id);
    }
}

#[tokio::test]
async fn large_answers_are_packed_and_small_ones_are_not() {
    let server = Server::start().await;
    let call = |id: &str| {
        let mut call = RawCall::new("IngestBatch", vec![framed(0, &batch(id, 1).encode_to_vec())]);
        call.headers = &[("grpc-accept-encoding", "identity, deflate, gzip")];
        call
    };
    let small = raw_call(server.addr, call("b")).await;
    assert_eq!((small.body[0], small.headers["grpc-encoding"].to_str().unwrap()), (0, "gzip"));
    let large = raw_call(server.addr, call(&"b".repeat(5000))).await;
    assert_eq!(large.body[0], 1);
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&large.body[5..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(proto::IngestBatchResponse::decode(&*unpacked).unwrap().batch_id.len(), 5000);
}

#[tokio::test]
async fn s28_what_a_message_unpacks_to_is_limited_and_so_is_the_window() {
    let server = Server::start_with(|limits| limits.max_message_bytes = 1 << 20).await;
    let zeroes = vec![0_u8; 64 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&zeroes).unwrap();
    let bombs = [("gzip", gzip.finish().unwrap()), ("zstd", zstd::stream::encode_all(&*zeroes, 19).unwrap())];
    for (name, bomb) in bombs {
        let headers = [("grpc-encoding", name)];
        let call = RawCall { headers: &headers, ..RawCall::new("IngestBatch", vec![framed(1, &bomb)]) };
        let status = raw_call(server.addr, call).await.status;
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert_eq!(status.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
    }
    // A frame that asks for a window of 2 GiB: descriptor byte 0, window byte 0xa8.
    let wide = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    let call = RawCall { headers: &[("grpc-encoding", "zstd")], ..RawCall::new("IngestBatch", vec![framed(1, &wide)]) };
    let status = raw_call(server.addr, call).await.status;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(server.gate.seen().len(), 0);
}

#[tokio::test]
async fn status_and_health_tell_what_the_gate_tells() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let request = proto::IngestionStatusRequest { tenant_id: "acme".into(), endpoint_id: String::new() };
    let answer = client.get_ingestion_status(request).await.unwrap().into_inner();
    let totals = answer.totals.unwrap();
    assert_eq!((totals.received, totals.rejected, answer.durable_position), (2, 2, 4));
    let request = proto::IngestionStatusRequest { tenant_id: "Not A Name".into(), endpoint_id: String::new() };
    assert_eq!(client.get_ingestion_status(request).await.unwrap_err().code(), Code::InvalidArgument);
    let answer = client.health_check(proto::HealthCheckRequest {}).await.unwrap().into_inner();
    assert_eq!((answer.status(), answer.version.as_str()), (proto::HealthStatus::Degraded, "1.2.3"));
    assert_eq!(answer.components[1].message, "behind");
}
