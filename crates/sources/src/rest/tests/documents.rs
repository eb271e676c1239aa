//! `POST /api/ingest/event` and `/api/ingest/streams/{stream}`.

use bytes::Bytes;
use http::Request;
use lakegate_ingest::{SubmitError, Wire};
use serde_json::json;

use super::harness::{ask, event, gzip, outcome, pieces, post, rest, rest_with};

const JSON: (&str, &str) = ("content-type", "application/json");
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

fn lines(count: usize) -> String {
    (0..count).map(|number| event(&format!("d{number}")) + "\n").collect()
}

#[tokio::test]
async fn one_document_a_list_and_lines_are_taken_alike() {
    for (headers, body) in [
        ([JSON], event("a")),
        ([JSON], format!(" [{}]", event("a"))),
        ([NDJSON], format!("\n{}\r\n", event("a"))),
        ([NDJSON], event("a")),
    ] {
        let (rest, gate) = rest();
        let (status, answer) = ask(&rest, post("/api/ingest/event", &headers, body)).await.unwrap();
        assert_eq!(
            (status.as_u16(), &answer["received"], &answer["accepted"], &answer["position"]),
            (202, &json!(1), &json!(1), &json!(7))
        );
        assert_eq!(gate.payloads(), [event("a")]);
        let Wire::Payloads(payloads) = &gate.seen()[0].wire else { panic!() };
        assert_eq!(payloads.stream.as_str(), "documents");
    }
}

#[tokio::test]
async fn lines_come_in_order_however_they_are_cut_and_packed() {
    let text = lines(2500);
    for (packing, bytes) in [
        ("identity", text.clone().into_bytes()),
        ("gzip", gzip(text.as_bytes())),
        ("zstd", zstd::encode_all(text.as_bytes(), 1).unwrap()),
    ] {
        for size in [1000, 65_536] {
            let (rest, gate) = rest();
            let parts = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
            let request =
                Request::post("/api/ingest/event").header(NDJSON.0, NDJSON.1).header("content-encoding", packing);
            let (status, answer) = ask(&rest, request.body(pieces(parts)).unwrap()).await.unwrap();
            assert_eq!((status.as_u16(), &answer["accepted"]), (202, &json!(2500)), "{packing} in {size}");
            assert_eq!(gate.payloads().iter().map(|line| format!("{line}\n")).collect::<String>(), text);
        }
    }
}

#[tokio::test]
async fn what_is_malformed_is_counted_and_its_neighbours_stay() {
    let (rest, gate) = rest_with(|limits| limits.line_bytes_max = 1000);
    let long = format!("{{\"eventId\":\"{}\"}}", "x".repeat(2000));
    let body = format!("{}\nnot json\n{}\n{}\n{}\n", event("a"), event("b"), long, event("a"));
    let (status, answer) = ask(&rest, post("/api/ingest/event", &[NDJSON], body)).await.unwrap();
    assert_eq!(status, 202);
    assert_eq!(
        (&answer["received"], &answer["accepted"], &answer["duplicates"], &answer["rejected"]),
        (&json!(5), &json!(2), &json!(1), &json!(2))
    );
    assert_eq!((&answer["errors"][0]["index"], &answer["errors"][0]["field"]), (&json!(1), &json!("eventId")));
    assert!(gate.payloads().contains(&"not json".to_owned()), "the gate sees it, and sets it aside if it is to");
    let (status, answer) = ask(&rest, post("/api/ingest/event", &[JSON], "{}")).await.unwrap();
    assert_eq!((status.as_u16(), &answer["status"]), (400, &json!("rejected")));
}

#[tokio::test]
async fn a_failure_on_the_way_tells_what_is_stored() {
    let (rest, gate) = rest();
    gate.answer_next(Ok(lakegate_ingest::SubmissionOutcome { accepted: 1000, ..outcome() }));
    gate.answer_next(Err(SubmitError::OutOfRoom { what: "memory", message: "full".into(), retry_after_ms: 10 }));
    let refusal = ask(&rest, post("/api/ingest/event", &[NDJSON], lines(2000))).await.unwrap_err();
    assert_eq!((refusal.status.as_u16(), refusal.retry_after_s), (503, Some(1)));
    assert!(refusal.members.contains(&("accepted", json!(1000))), "{:?}", refusal.members);
}

#[tokio::test]
async fn s28_lines_that_unpack_without_end_are_refused() {
    let (rest, _) = rest_with(|limits| limits.body_bytes_max = 1 << 20);
    let bomb = zstd::encode_all(std::io::Read::take(std::io::repeat(b'\n'), 1 << 30), 1).unwrap();
    let request = post("/api/ingest/event", &[NDJSON, ("content-encoding", "zstd")], bomb);
    assert_eq!(ask(&rest, request).await.unwrap_err().status, 413);
    let broken = post("/api/ingest/event", &[NDJSON, ("content-encoding", "gzip")], lines(3));
    assert_eq!(ask(&rest, broken).await.unwrap_err().code, "broken_body");
    let mut cut = gzip(lines(3000).as_bytes());
    cut.truncate(cut.len() / 2);
    let cut = post("/api/ingest/event", &[NDJSON, ("content-encoding", "gzip")], cut);
    assert_eq!(ask(&rest, cut).await.unwrap_err().code, "broken_body");
}

#[tokio::test]
async fn any_stream_has_a_path_of_its_own() {
    let (rest, gate) = rest();
    let (status, _) = ask(&rest, post("/api/ingest/streams/orders", &[JSON], event("a"))).await.unwrap();
    assert_eq!(status, 202);
    let Wire::Payloads(payloads) = &gate.seen()[0].wire else { panic!() };
    assert_eq!(payloads.stream.as_str(), "orders");
    let refusal = ask(&rest, post("/api/ingest/streams/A%22B", &[JSON], event("a"))).await.unwrap_err();
    assert_eq!(refusal.status, 404);
    let keyed = [NDJSON, ("idempotency-key", "k")];
    let (_, answer) = ask(&rest, post("/api/ingest/streams/orders", &keyed, lines(1500))).await.unwrap();
    assert_eq!(answer["accepted"], 1500);
    assert_eq!(gate.seen().len(), 2, "a request with an id of its own is one submission");
}
