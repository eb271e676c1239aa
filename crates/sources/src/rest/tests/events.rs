//! `POST /events` and `/events/batch`.

use bytes::Bytes;
use http::{Request, StatusCode};
use lakegate_ingest::{Source, SubmitError, Wire};
use lakegate_model::{ReasonCode, RecordError, Refusal as Broken, Verdict};
use serde_json::{Value, json};

use super::harness::{ask, broken, event, gzip, outcome, pieces, post, rest, rest_with};

const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

/// `2025-06-12T23:59:58.997Z`
fn is_iso(value: &Value) -> bool {
    let text = value.as_str().unwrap_or("");
    text.len() == 24 && text.ends_with('Z') && text.as_bytes()[10] == b'T' && text.as_bytes()[19] == b'.'
}

#[tokio::test]
async fn an_event_is_accepted_once_and_then_known_as_a_duplicate() {
    let (rest, gate) = rest();
    let (status, body) = ask(&rest, post("/events", &[JSON], event("e-1"))).await.unwrap();
    assert_eq!(status, 202);
    assert!(is_iso(&body["timestamp"]), "{body}");
    let members: Vec<_> = body.as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        (members, &body["eventId"], &body["status"]),
        (vec!["eventId".to_owned(), "status".to_owned(), "timestamp".to_owned()], &json!("e-1"), &json!("accepted"))
    );
    let (status, body) = ask(&rest, post("/events", &[JSON], event("e-1"))).await.unwrap();
    assert_eq!((status.as_u16(), &body["status"]), (200, &json!("accepted")));
    assert!(body["message"].as_str().unwrap().contains("duplicate"));
    assert_eq!(gate.payloads(), [event("e-1"), event("e-1")]);
    let Wire::Payloads(payloads) = &gate.seen()[0].wire else { panic!() };
    assert_eq!((payloads.stream.as_str(), &payloads.tenant, payloads.atomic), ("events", &None, false));
    assert_eq!(gate.seen()[0].source, Source::Rest);
}

#[tokio::test]
async fn an_invalid_event_is_told_which_field_was_wrong() {
    let (rest, gate) = rest();
    let refuse = |code, verdict: fn(Broken) -> Verdict| {
        let refusal = Broken { code, field: Some("storeId".into()), message: "is missing".into() };
        let mut outcome = outcome();
        outcome.rejected = 1;
        outcome.first_verdict = verdict(refusal);
        Ok(outcome)
    };
    gate.answer_next(refuse(ReasonCode::MissingField, Verdict::Rejected));
    let (status, body) = ask(&rest, post("/events", &[JSON], event("é\"\\"))).await.unwrap();
    assert_eq!(status, 400);
    assert_eq!(
        (&body["eventId"], &body["status"], &body["message"]),
        (&json!("é\"\\"), &json!("rejected"), &json!("storeId: is missing"))
    );
    gate.answer_next(refuse(ReasonCode::MissingField, Verdict::DeadLettered));
    let (status, body) = ask(&rest, post("/events", &[JSON], event("x"))).await.unwrap();
    assert_eq!(status, 400);
    assert!(body["message"].as_str().unwrap().ends_with("set aside in the dead-letter table"));
    gate.answer_next(refuse(ReasonCode::TooLarge, Verdict::Rejected));
    assert_eq!(ask(&rest, post("/events", &[JSON], event("x"))).await.unwrap().0, 413);
}

#[tokio::test]
async fn s32_an_event_that_is_no_json_is_rejected_without_an_id() {
    let (rest, _) = rest();
    let deep = "[".repeat(100_000);
    for body in ["", "not json", "[]", "{\"eventId\": 5}", "{\"eventId\": \"\\ud800\"}", "\u{feff}{}", "{", &deep] {
        let (status, answer) = ask(&rest, post("/events", &[JSON], body.to_owned())).await.unwrap();
        assert_eq!(
            (status.as_u16(), &answer["eventId"], &answer["status"]),
            (400, &json!(""), &json!("rejected")),
            "{}",
            body.len()
        );
    }
}

#[tokio::test]
async fn every_refusal_has_the_status_of_the_table() {
    let (rest, gate) = rest_with(|limits| limits.body_bytes_max = 1000);
    let large = "x".repeat(1001);
    let plain = ("content-type", "text/plain");
    let get = Request::get("/events").body(http_body_util::Full::new(Bytes::new())).unwrap();
    let cases = [
        (post("/events", &[plain], event("a")), 415, "wrong_content_type"),
        (post("/events", &[JSON, ("content-encoding", "br")], event("a")), 415, "wrong_content_encoding"),
        (post("/events", &[JSON, ("content-encoding", "gzip, gzip")], event("a")), 415, "wrong_content_encoding"),
        (post("/events", &[JSON, ("content-encoding", "gzip")], event("a")), 400, "broken_body"),
        (post("/events", &[JSON], large), 413, "body_too_large"),
        (post("/events", &[JSON, ("x-tenant-id", "A B")], event("a")), 400, "invalid_name"),
        (post("/events", &[JSON, ("idempotency-key", " ")], event("a")), 400, "invalid_idempotency_key"),
        (get, 405, "method_not_allowed"),
    ];
    for (request, status, code) in cases {
        let refusal = ask(&rest, request).await.unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.code), (status, code), "{}", refusal.detail);
    }
    assert!(gate.seen().is_empty());
    let forbidden =
        SubmitError::Forbidden { principal: "p".into(), stream: lakegate_model::StreamName::new("events").unwrap() };
    let full = SubmitError::OutOfRoom { what: "memory", message: "full".into(), retry_after_ms: 1500 };
    for (error, status, retry) in [
        (forbidden, 403, None),
        (SubmitError::WrongTenant { field: "tenant".into() }, 403, None),
        (full, 503, Some(2)),
        (SubmitError::Unavailable { message: "ending".into() }, 503, Some(1)),
    ] {
        gate.answer_next(Err(error));
        let refusal = ask(&rest, post("/events", &[JSON], event("a"))).await.unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.retry_after_s), (status, retry));
    }
}

#[tokio::test]
async fn s28_a_body_is_counted_as_it_unpacks() {
    let (rest, gate) = rest_with(|limits| limits.body_bytes_max = 1 << 20);
    let gzipped = |body: Vec<u8>| post("/events", &[JSON, ("content-encoding", "gzip")], body);
    let (status, _) = ask(&rest, gzipped(gzip(event("z").as_bytes()))).await.unwrap();
    assert_eq!(status, 202);
    let zstd = zstd::encode_all(event("y").as_bytes(), 1).unwrap();
    let (status, _) = ask(&rest, post("/events", &[JSON, ("content-encoding", "zstd")], zstd)).await.unwrap();
    assert_eq!(status, 202);
    let bomb = gzip(&vec![b' '; 100 << 20]);
    assert!(bomb.len() < 1 << 20);
    let refusal = ask(&rest, gzipped(bomb)).await.unwrap_err();
    assert_eq!(refusal.status, 413);
    // A window of 2 GiB, by the frame header of RFC 8878.
    let wide = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    let refusal = ask(&rest, post("/events", &[JSON, ("content-encoding", "zstd")], wide)).await.unwrap_err();
    assert_eq!(refusal.status, 400);
    assert_eq!(gate.seen().len(), 2);
}

#[tokio::test]
async fn f60_a_body_without_end_is_refused_at_the_limit() {
    let (rest, _) = rest_with(|limits| limits.body_bytes_max = 1 << 20);
    let endless = futures::stream::repeat_with(|| {
        Ok::<_, std::io::Error>(hyper::body::Frame::data(Bytes::from(vec![b' '; 8192])))
    });
    let request = Request::post("/events").body(http_body_util::StreamBody::new(endless)).unwrap();
    assert_eq!(ask(&rest, request).await.unwrap_err().status, 413);
}

#[tokio::test]
async fn f58_a_body_that_comes_too_slowly_is_refused() {
    let (rest, gate) = rest_with(|limits| limits.body_grace = std::time::Duration::from_millis(20));
    let silent = futures::stream::pending::<Result<hyper::body::Frame<Bytes>, std::io::Error>>();
    let request = Request::post("/events").body(http_body_util::StreamBody::new(silent)).unwrap();
    let refusal = ask(&rest, request).await.unwrap_err();
    assert_eq!((refusal.status, refusal.code), (StatusCode::REQUEST_TIMEOUT, "body_too_slow"));
    assert!(gate.seen().is_empty());
}

#[tokio::test]
async fn a_batch_keeps_its_order_and_isolates_what_is_bad() {
    let (rest, gate) = rest();
    let body = format!("{{\"events\": [{}, 5, {{\"x\":1}},\n{}], \"more\": []}}", event("a"), event("b"));
    for path in ["/events/batch", "/batch"] {
        let cut: Vec<Bytes> = body.as_bytes().chunks(7).map(Bytes::copy_from_slice).collect();
        let request = Request::post(path).header("content-type", "application/json").body(pieces(cut)).unwrap();
        let (status, answer) = ask(&rest, request).await.unwrap();
        let stored = if path == "/batch" { 200 } else { 202 };
        assert_eq!(status, stored, "all of it is known the second time");
        assert_eq!(
            (&answer["totalEvents"], &answer["successful"], &answer["failed"]),
            (&json!(4), &json!(2), &json!(2))
        );
        assert_eq!(answer["errors"], json!(["events[1]: eventId: is missing", "events[2]: eventId: is missing"]));
        assert!(is_iso(&answer["processedAt"]) && !answer["batchId"].as_str().unwrap().is_empty());
    }
    assert_eq!(gate.payloads()[..4], [event("a"), "5".into(), "{\"x\":1}".into(), event("b")]);
}

#[tokio::test]
async fn an_error_of_a_batch_names_index_and_event() {
    let (rest, gate) = rest();
    let error = RecordError {
        index: 1,
        event_id: String::new(),
        dead_lettered: false,
        refusal: broken("sessionId", "is missing"),
    };
    gate.answer_next(Ok(lakegate_ingest::SubmissionOutcome {
        accepted: 1,
        rejected: 1,
        errors: vec![error],
        ..outcome()
    }));
    let body = format!("{{\"events\":[{},{}]}}", event("a"), event("b-2"));
    let (_, answer) = ask(&rest, post("/events/batch", &[JSON], body)).await.unwrap();
    assert_eq!(answer["errors"], json!(["events[1] (eventId b-2): sessionId: is missing"]));
}

#[tokio::test]
async fn a_batch_over_its_limit_or_all_or_nothing_stores_nothing() {
    let (rest, gate) = rest();
    let many = |count: usize, options: &str| {
        let events: Vec<_> = (0..count).map(|number| event(&format!("n{number}"))).collect();
        post("/events/batch", &[JSON], format!("{{\"options\":{options},\"events\":[{}]}}", events.join(",")))
    };
    for (count, options) in [(3, "{\"maxSize\":2}"), (1001, "{}"), (1001, "{\"maxSize\":5000}"), (1001, "null")] {
        let refusal = ask(&rest, many(count, options)).await.unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.code), (400, "batch_too_large"));
        assert!(refusal.detail.starts_with(&format!("Batch size {count} exceeds limit")));
    }
    assert!(gate.seen().is_empty());
    assert_eq!(ask(&rest, many(1000, "{}")).await.unwrap().0, 202);
    let body = format!("{{\"events\":[{},{{}}],\"options\":{{\"failOnError\":true}}}}", event("new"));
    let (status, answer) = ask(&rest, post("/batch", &[JSON], body)).await.unwrap();
    assert_eq!((status.as_u16(), &answer["successful"], &answer["failed"]), (400, &json!(0), &json!(2)));
    assert_eq!(answer["errors"].as_array().unwrap().len(), 1);
    let Wire::Payloads(last) = &gate.seen().last().unwrap().wire.clone() else { panic!() };
    assert!(last.atomic);
}

#[tokio::test]
async fn a_body_that_is_no_batch_is_refused_with_the_place() {
    let (rest, gate) = rest();
    for (body, detail) in [
        ("", "an object"),
        ("[]", "an object"),
        ("{}", "events: is missing"),
        ("{\"events\":5}", "events: must be a list"),
        ("{\"events\":[1,]}", "a value is expected"),
        ("{\"events\":[],\"events\":[]}", "twice"),
        ("{\"events\":[]} x", "nothing more"),
        ("{\"events\":[],\"options\":[]}", "options must be an object"),
        ("{\"events\":[],\"options\":{\"maxSize\":0}}", "options.maxSize"),
        ("{\"events\":[],\"options\":{\"failOnError\":\"yes\"}}", "options.failOnError"),
    ] {
        let refusal = ask(&rest, post("/events/batch", &[JSON], body)).await.unwrap_err();
        assert_eq!(refusal.status, 400, "{body}");
        assert!(refusal.detail.contains(detail), "{body}: {}", refusal.detail);
    }
    assert!(gate.seen().is_empty());
    let (status, answer) = ask(&rest, post("/events/batch", &[JSON], "{\"events\":[]}")).await.unwrap();
    assert_eq!((status.as_u16(), &answer["totalEvents"]), (200, &json!(0)));
}

#[tokio::test]
async fn the_requests_own_id_goes_to_the_gate_and_comes_back() {
    let (rest, gate) = rest();
    let headers = [JSON, ("idempotency-key", "try-1"), ("x-tenant-id", "acme")];
    let body = format!("{{\"events\":[{}]}}", event("a"));
    let (_, answer) = ask(&rest, post("/events/batch", &headers, body)).await.unwrap();
    assert_eq!(answer["batchId"], "try-1");
    let Wire::Payloads(payloads) = &gate.seen()[0].wire else { panic!() };
    assert_eq!((payloads.batch_id.as_str(), payloads.tenant.as_ref().unwrap().as_str()), ("try-1", "acme"));
}
