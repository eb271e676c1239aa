//! Requests to a gate that does what a test says.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use lakegate_ingest::{ComponentHealth, GateStatus, Submission, SubmissionOutcome, SubmitError, Wire};
use lakegate_model::{ReasonCode, RecordError, Refusal as Broken, StreamName, TenantId, Verdict};
use serde_json::Value;

use crate::intake::Intake;
use crate::rest::{Caller, Refusal, Rest, RestLimits, Route};

/// A gate that takes every payload which is a JSON object with an `eventId` (a text), once; the next answers may be
/// scripted.
#[derive(Clone, Default)]
pub(crate) struct Double(Arc<State>);

#[derive(Default)]
struct State {
    seen: Mutex<Vec<Submission>>,
    script: Mutex<VecDeque<Result<SubmissionOutcome, SubmitError>>>,
    ids: Mutex<std::collections::HashSet<String>>,
}

impl Double {
    pub(crate) fn answer_next(&self, answer: Result<SubmissionOutcome, SubmitError>) {
        self.0.script.lock().unwrap().push_back(answer);
    }

    pub(crate) fn seen(&self) -> Vec<Submission> {
        self.0.seen.lock().unwrap().clone()
    }

    /// The payloads that came, in order.
    pub(crate) fn payloads(&self) -> Vec<String> {
        self.seen().iter().flat_map(payloads_of).collect()
    }
}

pub(crate) fn payloads_of(submission: &Submission) -> Vec<String> {
    let Wire::Payloads(payloads) = &submission.wire else { panic!("not payloads") };
    let cut = |span: &std::ops::Range<u32>| &submission.body[span.start as usize..span.end as usize];
    payloads.spans.iter().map(|span| String::from_utf8_lossy(cut(span)).into_owned()).collect()
}

impl Intake for Double {
    async fn submit(&self, submission: Submission) -> Result<SubmissionOutcome, SubmitError> {
        self.0.seen.lock().unwrap().push(submission.clone());
        if let Some(answer) = self.0.script.lock().unwrap().pop_front() {
            return answer;
        }
        let Wire::Payloads(request) = &submission.wire else { panic!("not payloads") };
        let mut outcome = outcome();
        for (index, payload) in payloads_of(&submission).iter().enumerate() {
            let index = index as u32;
            let value: Value = serde_json::from_str(payload).unwrap_or(Value::Null);
            let verdict = match value["eventId"].as_str() {
                Some(id) if self.0.ids.lock().unwrap().insert(id.to_owned()) => Verdict::Accepted,
                Some(_) => Verdict::Duplicate,
                None => Verdict::Rejected(broken("eventId", "is missing")),
            };
            match &verdict {
                Verdict::Accepted => outcome.accepted += 1,
                Verdict::Duplicate => {
                    outcome.duplicates += 1;
                    outcome.duplicate_indexes.push(index);
                }
                Verdict::Rejected(refusal) | Verdict::DeadLettered(refusal) => {
                    outcome.rejected += 1;
                    let refusal = refusal.clone();
                    let error = RecordError { index, event_id: String::new(), dead_lettered: false, refusal };
                    outcome.errors.push(error);
                }
            }
            if index == 0 {
                outcome.first_verdict = verdict;
            }
        }
        if request.atomic && !outcome.errors.is_empty() {
            let message = "nothing was stored".to_owned();
            let (code, field, errors) = (ReasonCode::MissingField, "records[0]".to_owned(), outcome.errors);
            return Err(SubmitError::Invalid { code, field, message, errors });
        }
        Ok(outcome)
    }

    fn status(&self, _: Option<&TenantId>, _: Option<&StreamName>) -> GateStatus {
        panic!("not asked here")
    }

    fn health(&self) -> Vec<ComponentHealth> {
        Vec::new()
    }
}

pub(crate) fn broken(field: &str, message: &str) -> Broken {
    Broken { code: ReasonCode::MissingField, field: Some(field.to_owned()), message: message.to_owned() }
}

/// An outcome of nothing.
pub(crate) fn outcome() -> SubmissionOutcome {
    SubmissionOutcome {
        batch_id: String::new(),
        accepted: 0,
        duplicates: 0,
        rejected: 0,
        dead_lettered: 0,
        errors: Vec::new(),
        duplicate_indexes: Vec::new(),
        position: 7,
        first_event_id: None,
        first_verdict: Verdict::Accepted,
    }
}

pub(crate) fn rest() -> (Rest<Double>, Double) {
    rest_with(|_| {})
}

pub(crate) fn rest_with(set: impl FnOnce(&mut RestLimits)) -> (Rest<Double>, Double) {
    let mut limits = RestLimits::default();
    set(&mut limits);
    let gate = Double::default();
    (Rest::over(gate.clone(), limits, std::sync::Arc::default()).unwrap(), gate)
}

/// A request for a path; headers as pairs.
pub(crate) fn post(path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).unwrap()
}

pub(crate) async fn ask<B>(rest: &Rest<Double>, request: Request<B>) -> Result<(StatusCode, Value), Refusal>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let route = Route::of(request.uri().path()).unwrap();
    let reply = rest.answer(&route, request, Caller::default()).await?;
    assert_eq!(reply.headers()["content-type"], "application/json");
    let status = reply.status();
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    Ok((status, serde_json::from_slice(&body).unwrap()))
}

type Piece = Result<Frame<Bytes>, std::io::Error>;

/// A body that comes in pieces.
pub(crate) fn pieces(parts: Vec<Bytes>) -> StreamBody<futures::stream::Iter<std::vec::IntoIter<Piece>>> {
    let frames: Vec<Piece> = parts.into_iter().map(|part| Ok(Frame::data(part))).collect();
    StreamBody::new(futures::stream::iter(frames))
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

pub(crate) fn event(id: &str) -> String {
    let event = serde_json::json!({
        "eventId": id, "eventType": "item_added", "timestamp": "2025-06-12T23:59:58.997Z", "sessionId": "s-1",
        "storeId": "store-1", "data": { "sku": "a", "quantity": 2 },
    });
    event.to_string()
}
