//! `IngestStream`: windows, order, ends.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use lakegate_ingest::SubmitError;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use super::harness::{RawCall, Server, batch, framed, raw_call, within};
use crate::grpc::proto;

type Requests = mpsc::Sender<proto::IngestStreamRequest>;

fn numbered(sequence: u64) -> proto::IngestStreamRequest {
    proto::IngestStreamRequest { sequence, batch: Some(batch(&sequence.to_string(), 2)) }
}

async fn open(server: &Server) -> (Requests, Streaming<proto::IngestStreamResponse>) {
    let (requests, receiver) = mpsc::channel(1000);
    let answers = server.client().await.ingest_stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    (requests, answers)
}

async fn next(
    answers: &mut Streaming<proto::IngestStreamResponse>,
) -> Result<Option<proto::IngestStreamResponse>, Status> {
    within(answers.message()).await
}

/// Reads to the end: the acknowledged sequences, and how it ended.
async fn read_all(answers: &mut Streaming<proto::IngestStreamResponse>) -> (Vec<u64>, Code) {
    let mut acked = Vec::new();
    loop {
        match next(answers).await {
            Ok(Some(answer)) => acked.push(answer.acked_sequence),
            Ok(None) => return (acked, Code::Ok),
            Err(status) => return (acked, status.code()),
        }
    }
}

#[tokio::test]
async fn after_the_client_has_sent_all_every_batch_is_answered_and_the_stream_ends_well() {
    let server = Server::start().await;
    let (requests, mut answers) = open(&server).await;
    for sequence in 1..=200 {
        requests.send(numbered(sequence)).await.unwrap();
    }
    drop(requests);
    let first = next(&mut answers).await.unwrap().unwrap();
    let result = first.result.unwrap();
    assert_eq!((first.acked_sequence, result.batch_id.as_str(), result.accepted), (1, "1", 2));
    assert_eq!(read_all(&mut answers).await, ((2..=200).collect(), Code::Ok));
}

#[tokio::test]
async fn the_window_bounds_what_is_read_ahead_and_answers_keep_their_order() {
    let server = Server::start_with(|limits| limits.stream_window_batches = 8).await;
    server.gate.hold(0..u64::MAX);
    let (requests, mut answers) = open(&server).await;
    for sequence in 1..=50 {
        requests.send(numbered(sequence)).await.unwrap();
    }
    server.gate.wait_for(8).await;
    assert_eq!(server.gate.seen().len(), 8, "more was read than the window holds");
    // The later ones are done first; their answers wait for that of the first.
    server.gate.hold(1..2);
    server.gate.wait_until_under_way(1).await;
    assert!(answers.message().now_or_never().is_none(), "an answer overtook the first");
    server.gate.release();
    drop(requests);
    assert_eq!(read_all(&mut answers).await, ((1..=50).collect(), Code::Ok));
    assert_eq!(server.gate.at_once_max(), 8);
}

#[tokio::test]
async fn past_the_bytes_of_the_window_nothing_is_read() {
    let server = Server::start_with(|limits| limits.stream_window_bytes = 1).await;
    let (requests, mut answers) = open(&server).await;
    for sequence in 1..=20 {
        requests.send(numbered(sequence)).await.unwrap();
    }
    drop(requests);
    assert_eq!(read_all(&mut answers).await, ((1..=20).collect(), Code::Ok));
    assert_eq!(server.gate.at_once_max(), 1);
}

#[tokio::test]
async fn a_client_that_reads_no_answers_is_not_read_from() {
    let server = Server::start_with(|limits| limits.stream_window_batches = 4).await;
    let mut sender = super::harness::connect_h2(server.addr).await;
    let request = http::Request::post(format!("http://{}/storage.IngestionService/IngestStream", server.addr))
        .header("content-type", "application/grpc");
    let (response, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    let (parts, _unread) = within(response).await.unwrap().into_parts();
    assert_eq!(parts.status, http::StatusCode::OK);
    // An answer of 40 kB each fills the window of 64 KiB that a client begins with.
    for sequence in 1..=50 {
        let batch = batch(&"b".repeat(40_000), 1);
        let message = proto::IngestStreamRequest { sequence, batch: Some(batch) }.encode_to_vec();
        body.send_data(framed(0, &message), false).unwrap();
    }
    server.gate.wait_for(5).await;
    // A call on another connection shows that the server is at work, and gives it time to read too much.
    for _ in 0..20 {
        server.client().await.health_check(proto::HealthCheckRequest {}).await.unwrap();
    }
    assert!(server.gate.seen().len() <= 8, "{} batches were read", server.gate.seen().len());
}

#[tokio::test]
async fn a_sequence_that_does_not_grow_ends_the_stream_after_everything_before_is_answered() {
    for wrong in [2, 3] {
        let server = Server::start().await;
        let (requests, mut answers) = open(&server).await;
        for sequence in [1, 3, wrong, 9] {
            requests.send(numbered(sequence)).await.unwrap();
        }
        for right in [1, 3] {
            assert_eq!(next(&mut answers).await.unwrap().unwrap().acked_sequence, right);
        }
        let status = next(&mut answers).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_details_error_info().unwrap().reason, "SEQUENCE_NOT_GROWING");
        assert_eq!(server.gate.seen().len(), 2);
    }
}

#[tokio::test]
async fn f52_a_batch_that_is_refused_is_answered_and_its_neighbours_are_stored() {
    let server = Server::start().await;
    let mut damaged = numbered(2).encode_to_vec();
    // Inside the batch, the first record's length is made to reach past its end.
    let at = damaged.iter().position(|byte| *byte == 0x0a).unwrap() + 1;
    damaged[at] = 0x7f;
    let messages = [numbered(1).encode_to_vec(), damaged, numbered(3).encode_to_vec()];
    let parts = messages.iter().map(|message| framed(0, message)).collect();
    let raw = raw_call(server.addr, RawCall::new("IngestStream", parts)).await;
    assert_eq!(raw.status.code(), Code::Ok, "{:?}", raw.status);
    let mut body = raw.body;
    let mut results = Vec::new();
    while !body.is_empty() {
        let len = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
        results.push(proto::IngestStreamResponse::decode(body.slice(5..5 + len)).unwrap());
        body = body.slice(5 + len..);
    }
    let accepted: Vec<_> = results.iter().map(|answer| answer.result.as_ref().unwrap().accepted).collect();
    assert_eq!(accepted, [2, 0, 2]);
    assert_eq!(results[1].result.as_ref().unwrap().errors[0].code, "MALFORMED_PAYLOAD");
}

#[tokio::test]
async fn a_batch_over_the_limit_is_answered_as_rejected_whole() {
    let server = Server::start().await;
    server.gate.answer_next(Err(SubmitError::BatchTooLarge { limit: 1, found: 2 }));
    let (requests, mut answers) = open(&server).await;
    requests.send(numbered(1)).await.unwrap();
    requests.send(numbered(2)).await.unwrap();
    drop(requests);
    let result = next(&mut answers).await.unwrap().unwrap().result.unwrap();
    assert_eq!((result.batch_id.as_str(), result.rejected, result.errors[0].code.as_str()), ("1", 2, "TOO_LARGE"));
    assert_eq!(read_all(&mut answers).await, (vec![2], Code::Ok));
}

#[tokio::test]
async fn bytes_that_are_no_stream_message_end_the_stream_after_everything_before_is_answered() {
    let server = Server::start().await;
    let parts = vec![framed(0, &numbered(1).encode_to_vec()), framed(0, &[0x0b])];
    let raw = raw_call(server.addr, RawCall::new("IngestStream", parts)).await;
    assert_eq!(raw.status.code(), Code::InvalidArgument);
    assert!(!raw.body.is_empty(), "the first batch was not answered");
    let half = vec![framed(0, &numbered(1).encode_to_vec()), Bytes::from_static(&[0, 0, 0])];
    assert_eq!(raw_call(server.addr, RawCall::new("IngestStream", half)).await.status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_batch_waits_for_room_and_then_goes_through() {
    let server = Server::start().await;
    let full = || Err(SubmitError::OutOfRoom { what: "queue", message: "full".into(), retry_after_ms: 1 });
    server.gate.answer_next(full());
    server.gate.answer_next(full());
    let (requests, mut answers) = open(&server).await;
    requests.send(numbered(1)).await.unwrap();
    drop(requests);
    assert_eq!(read_all(&mut answers).await, (vec![1], Code::Ok));
    assert_eq!(server.gate.seen().len(), 3);
}

#[tokio::test]
async fn without_room_for_long_the_stream_ends_and_nothing_after_is_acknowledged() {
    let server = Server::start_with(|limits| limits.stream_patience = Duration::ZERO).await;
    server.gate.hold(1..u64::MAX);
    let (requests, mut answers) = open(&server).await;
    requests.send(numbered(0)).await.unwrap();
    assert_eq!(next(&mut answers).await.unwrap().unwrap().acked_sequence, 0);
    server.gate.answer_next(Err(SubmitError::OutOfRoom { what: "memory", message: "full".into(), retry_after_ms: 5 }));
    for sequence in 1..=3 {
        requests.send(numbered(sequence)).await.unwrap();
    }
    server.gate.wait_for(2).await;
    server.gate.release();
    let status = next(&mut answers).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_some());
}

#[tokio::test]
async fn at_the_servers_end_an_open_stream_is_answered_and_told_to_go_elsewhere() {
    let server = Server::start().await;
    server.gate.hold(2..u64::MAX);
    let (requests, mut answers) = open(&server).await;
    requests.send(numbered(1)).await.unwrap();
    requests.send(numbered(2)).await.unwrap();
    assert_eq!(next(&mut answers).await.unwrap().unwrap().acked_sequence, 1);
    server.gate.wait_for(2).await;
    server.shut_down();
    let gate = server.gate.clone();
    gate.release();
    assert_eq!(next(&mut answers).await.unwrap().unwrap().acked_sequence, 2);
    let status = next(&mut answers).await.unwrap_err();
    assert_eq!(
        (status.code(), status.get_details_error_info().unwrap().reason.as_str()),
        (Code::Unavailable, "SHUTTING_DOWN")
    );
    server.ended().await;
}

#[tokio::test]
async fn what_a_client_sent_before_it_went_is_worked_to_its_end() {
    let server = Server::start().await;
    server.gate.hold(0..u64::MAX);
    let (requests, answers) = open(&server).await;
    requests.send(numbered(1)).await.unwrap();
    server.gate.wait_for(1).await;
    drop((requests, answers));
    server.gate.release();
    server.shut_down();
    server.ended().await;
}
