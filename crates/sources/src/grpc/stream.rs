//! `IngestStream`: batches in, answers out in the same order.
//!
//! One task per stream. Invariants:
//! - a batch is read only when a place for its answer is free: at most `stream_window_batches` are read and not yet
//!   taken by the client, so that a client that does not read its answers is not read from;
//! - past `stream_window_bytes` of batches under way nothing is read;
//! - answers leave in the order of sending, so that `acked_sequence` covers everything before it;
//! - when its credentials end, or are revoked, nothing more is read;
//! - what was read is answered before the stream ends, however it ends; after a batch that could not be taken nothing
//!   more is acknowledged.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, FuturesOrdered};
use hyper::body::Body;
use lakegate_access::{AccessError, Opened, Principal};
use lakegate_ingest::SubmitError;
use tokio::sync::mpsc;
use tokio::sync::mpsc::OwnedPermit;
use tokio::time::Duration;
use tonic::Status;

use super::answer;
use super::calls::{log_refusal, submission};
use super::compression::Encoding;
use super::error;
use super::intake::Intake;
use super::message::{MessageReader, Received, frame_answer};
use super::observe::Method;
use super::proto;
use super::reply::StreamItem;
use super::shared::Shared;
use super::wire::StreamRequest;

/// What holds for all batches of a stream.
#[derive(Clone)]
pub(crate) struct Template {
    pub(crate) principal: Option<Arc<Principal>>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) encoding: Option<Encoding>,
}

/// Where an answer goes.
type Place = OwnedPermit<StreamItem>;

/// What was read, with the place for its answer.
type Read = (Place, Result<Option<Received>, Status>);

/// A batch that was worked on.
struct Done {
    place: Place,
    bytes: usize,
    answer: Result<Bytes, Status>,
}

/// Opens a stream: its answers, and the task that makes them.
pub(crate) fn open<I, B>(
    shared: Arc<Shared<I>>,
    reader: MessageReader<B>,
    template: Template,
    place: Option<Opened>,
    began: Instant,
) -> (mpsc::Receiver<StreamItem>, impl Future<Output = ()>)
where
    I: Intake,
    B: Body<Data = Bytes> + Unpin,
{
    let (answers, receiver) = mpsc::channel(shared.limits.stream_window_batches.max(1));
    let task = async move {
        let _place = place;
        let end = run(&shared, reader, &template, answers.clone()).await;
        shared.metrics.note(Method::IngestStream, began, end.code());
        if end.code() != tonic::Code::Ok && !shared.drain.is_cancelled() {
            log_refusal(&end);
        }
        // A client that is gone needs no end.
        let _ = answers.send(Err(end)).await;
    };
    (receiver, task)
}

async fn run<I, B>(
    shared: &Arc<Shared<I>>,
    reader: MessageReader<B>,
    template: &Template,
    answers: mpsc::Sender<StreamItem>,
) -> Status
where
    I: Intake,
    B: Body<Data = Bytes> + Unpin,
{
    let mut ended = std::pin::pin!(shared.door.access.ended(template.principal.as_deref()));
    let mut requests = std::pin::pin!(requests_of(reader, answers.clone()));
    let mut under_way = FuturesOrdered::new();
    let mut bytes_under_way = 0;
    let mut last_sequence = None;
    let mut end: Option<Status> = None;
    loop {
        let reads = end.is_none() && bytes_under_way < shared.limits.stream_window_bytes;
        tokio::select! {
            biased;
            Some(done) = under_way.next(), if !under_way.is_empty() => {
                let Done { place, bytes, answer } = done;
                bytes_under_way -= bytes;
                match answer {
                    Ok(answer) => drop(place.send(Ok(answer))),
                    Err(status) => {
                        // What follows is worked to its end, so that it is decided, but it is not acknowledged.
                        while under_way.next().await.is_some() {}
                        return status;
                    }
                }
            }
            () = shared.drain.cancelled(), if end.is_none() => end = Some(draining()),
            () = ended.as_mut(), if end.is_none() => end = Some(error::not_let_in(&AccessError::Ended)),
            () = answers.closed(), if end.is_none() => end = Some(Status::cancelled("the client ended the stream")),
            Some((place, read)) = requests.next(), if reads => match begin(read, &mut last_sequence) {
                Ok((sequence, batch, received)) => {
                    bytes_under_way += batch.len();
                    under_way.push_back(answer_batch(shared, template, place, sequence, batch, received));
                }
                Err(status) => end = Some(status),
            },
            else => return end.unwrap_or_else(draining),
        }
        if under_way.is_empty()
            && let Some(end) = end
        {
            return end;
        }
    }
}

/// Reads a message whenever there is a place for its answer.
fn requests_of<B: Body<Data = Bytes> + Unpin>(
    reader: MessageReader<B>,
    answers: mpsc::Sender<StreamItem>,
) -> impl futures::Stream<Item = Read> {
    stream::unfold(reader, move |mut reader| {
        let answers = answers.clone();
        async move {
            let place = answers.reserve_owned().await.ok()?;
            let read = reader.next().await;
            Some(((place, read), reader))
        }
    })
}

/// Checks what was read. `Err` with an OK status: the client has sent all.
fn begin(
    read: Result<Option<Received>, Status>,
    last_sequence: &mut Option<u64>,
) -> Result<(u64, Bytes, Received), Status> {
    let Some(received) = read? else { return Err(Status::ok("")) };
    let unreadable = |error| error::malformed(format!("not a storage.IngestStreamRequest: {error}"));
    let StreamRequest { sequence, batch } = StreamRequest::read(&received.bytes).map_err(unreadable)?;
    if let Some(last) = *last_sequence
        && sequence <= last
    {
        let message = format!("the sequence must grow: {sequence} came after {last}");
        return Err(error::invalid("SEQUENCE_NOT_GROWING", "sequence", message));
    }
    *last_sequence = Some(sequence);
    Ok((sequence, batch, received))
}

async fn answer_batch<I: Intake>(
    shared: &Arc<Shared<I>>,
    template: &Template,
    place: Place,
    sequence: u64,
    batch: Bytes,
    received: Received,
) -> Done {
    let bytes = batch.len();
    let result = match submit(shared, template, &batch).await {
        Ok(outcome) => Ok(answer::batch_response(outcome)),
        Err(error) => answer::refused_batch(&batch, &error).ok_or_else(|| error::status_of(&error)),
    };
    drop(received);
    let answer = result.map(|result| {
        let response = proto::IngestStreamResponse { acked_sequence: sequence, result: Some(result) };
        frame_answer(&response, template.encoding)
    });
    Done { place, bytes, answer }
}

/// Gives a batch to the gate; where there is no room, waits a while: meanwhile the window fills and reading stops.
async fn submit<I: Intake>(
    shared: &Arc<Shared<I>>,
    template: &Template,
    batch: &Bytes,
) -> Result<lakegate_ingest::SubmissionOutcome, SubmitError> {
    let patience = tokio::time::Instant::now() + shared.limits.stream_patience;
    loop {
        let mut submission = submission(template.principal.clone(), batch.clone(), template.correlation_id.clone());
        submission.in_order = true;
        let answer = shared.intake.submit(submission).await;
        let Err(SubmitError::OutOfRoom { retry_after_ms, .. } | SubmitError::OverQuota { retry_after_ms, .. }) =
            &answer
        else {
            return answer;
        };
        let again = tokio::time::Instant::now() + Duration::from_millis(*retry_after_ms);
        if again > patience || shared.drain.is_cancelled() {
            return answer;
        }
        tokio::time::sleep_until(again).await;
    }
}

fn draining() -> Status {
    let message = "the server is ending; send again what comes after the last acked_sequence";
    error::unavailable("SHUTTING_DOWN", message, Duration::from_secs(1))
}
