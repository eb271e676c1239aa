//! `POST /api/ingest/event` and `POST /api/ingest/streams/{stream}`: one JSON object, a list of them, or NDJSON.
//!
//! NDJSON is worked on as it comes: whole lines go to the gate in groups while the next ones are read, a few groups at
//! a time. What breaks its contract is given back or set aside, as the stream says; the answer counts.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use http::{Request, StatusCode};
use hyper::body::Body;
use lakegate_ingest::SubmissionOutcome;
use lakegate_model::{RecordError, StreamName, TenantId};
use serde_json::json;

use super::answer::json_reply;
use super::body::{Charge, Incoming, Packing, content_type};
use super::events::{request_id, tenant_of};
use super::lines::{Group, Lines};
use super::refusal::{Refusal, listed};
use super::unpack::Unpacked;
use super::{Caller, Reply, Rest, Sent};
use crate::intake::{Intake, refuse_early};
use crate::json::Walk;
use crate::time::{now_ms, put_time};

/// The media types of NDJSON that are in use.
const NDJSON: [&str; 3] = ["application/x-ndjson", "application/ndjson", "application/jsonl"];
/// The most lines that go to the gate together.
const GROUP_LINES: usize = 1000;
/// Groups of one request that are under way at once.
const GROUPS_AT_ONCE: usize = 4;
/// The most faults that are listed.
const ERRORS_MAX: usize = 100;

/// What became of a request's documents so far.
#[derive(Debug, Default)]
struct Counts {
    received: u64,
    accepted: u64,
    duplicates: u64,
    rejected: u64,
    skipped: u64,
    position: u64,
    errors: Vec<RecordError>,
}

impl Counts {
    fn add(&mut self, outcome: SubmissionOutcome) {
        let before = u32::try_from(self.received).unwrap_or(u32::MAX);
        self.received += outcome.accepted + outcome.duplicates + outcome.rejected + outcome.dead_lettered;
        self.accepted += outcome.accepted;
        self.duplicates += outcome.duplicates;
        self.rejected += outcome.rejected;
        self.skipped += outcome.dead_lettered;
        self.position = self.position.max(outcome.position);
        let room = ERRORS_MAX.saturating_sub(self.errors.len());
        let errors = outcome.errors.into_iter().take(room);
        self.errors.extend(errors.map(|error| RecordError { index: error.index.saturating_add(before), ..error }));
    }

    fn reply(&self) -> Reply {
        let status = match () {
            () if self.accepted + self.skipped > 0 => StatusCode::ACCEPTED,
            () if self.rejected > 0 && self.duplicates == 0 => StatusCode::BAD_REQUEST,
            () => StatusCode::OK,
        };
        let mut time = Vec::new();
        put_time(&mut time, now_ms());
        let mut body = json!({
            "status": if status == StatusCode::BAD_REQUEST { "rejected" } else { "accepted" },
            "received": self.received,
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "skipped": self.skipped,
            "rejected": self.rejected,
            "position": self.position,
            "timestamp": String::from_utf8_lossy(&time),
        });
        if let (false, Some(members)) = (self.errors.is_empty(), body.as_object_mut()) {
            members.insert("errors".to_owned(), listed(&self.errors));
        }
        json_reply(status, body.to_string().into_bytes())
    }

    /// The rest was refused: what is durable is durable.
    fn refuse(&self, refusal: Refusal) -> Refusal {
        if self.received == 0 {
            return refusal;
        }
        let refusal = refusal.with("received", self.received.into()).with("accepted", self.accepted.into());
        let refusal = refusal.with("duplicates", self.duplicates.into()).with("skipped", self.skipped.into());
        refusal.with("rejected", self.rejected.into())
    }
}

/// Takes a request's documents.
pub(crate) async fn take<I: Intake, B>(
    rest: &Rest<I>,
    stream: StreamName,
    request: Request<B>,
    caller: Caller,
) -> Result<Reply, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let headers = request.headers();
    let kind = content_type(headers, &["application/json", NDJSON[0], NDJSON[1], NDJSON[2]])?;
    let target = Target { stream, tenant: tenant_of(headers, &caller)?, batch_id: request_id(headers)?, caller };
    let packing = Packing::of(headers)?;
    let incoming = Incoming::new(request.into_body(), &rest.limits);
    let by_lines = NDJSON.contains(&kind);
    if by_lines && target.batch_id.is_empty() {
        let unpacked = Unpacked::new(incoming, packing, rest.limits.body_bytes_max);
        return Stream { rest, target, counts: Counts::default() }.run(unpacked).await;
    }
    let mut charge = Charge::new(&rest.budget);
    let body = incoming.whole(packing, &rest.limits, &mut charge).await?;
    let (principal, bytes) = (target.caller.principal.as_deref(), body.len());
    let (body, _charge) = refuse_early(&rest.intake, principal, bytes, (body, charge)).await.map_err(Refusal::of)?;
    let group = if by_lines { all_lines(&body, rest.limits.line_bytes_max)? } else { read_json(body)? };
    let mut counts = Counts::default();
    if !group.spans.is_empty() {
        counts.add(rest.submit(target.sent(group), &target.caller).await?);
    }
    Ok(counts.reply())
}

/// Where documents go.
struct Target {
    stream: StreamName,
    tenant: Option<TenantId>,
    batch_id: String,
    caller: Caller,
}

impl Target {
    fn sent(&self, group: Group) -> Sent {
        Sent {
            body: group.body,
            spans: group.spans,
            stream: self.stream.clone(),
            tenant: self.tenant.clone(),
            atomic: false,
            batch_id: self.batch_id.clone(),
            in_order: true,
        }
    }
}

/// One value, or each of a list.
fn read_json(body: Bytes) -> Result<Group, Refusal> {
    let wrong = |error: crate::json::Misplaced| Refusal::invalid("invalid", format!("the body is not JSON: {error}"));
    let place = |at: usize| u32::try_from(at).map_err(|_| Refusal::too_large("the body", u32::MAX as usize));
    let mut walk = Walk::new(&body);
    let mut spans = Vec::new();
    if walk.is_at_list() {
        walk.enter_list().map_err(wrong)?;
        let mut first = true;
        while let Some(span) = walk.element(&mut first).map_err(wrong)? {
            spans.push(place(span.start)?..place(span.end)?);
        }
        walk.end().map_err(wrong)?;
    } else {
        // Whatever it is, the gate judges it.
        spans.push(0..place(body.len())?);
    }
    Ok(Group { body, spans })
}

fn all_lines(body: &[u8], line_bytes_max: usize) -> Result<Group, Refusal> {
    let mut lines = Lines::new(line_bytes_max.max(body.len()));
    lines.push(body);
    let group = lines.take(usize::MAX, true);
    let long = |span: &std::ops::Range<u32>| (span.end - span.start) as usize > line_bytes_max;
    if group.spans.iter().any(long) {
        return Err(Refusal::too_large("a line", line_bytes_max));
    }
    Ok(group)
}

/// NDJSON on its way.
struct Stream<'r, I> {
    rest: &'r Rest<I>,
    target: Target,
    counts: Counts,
}

impl<I: Intake> Stream<'_, I> {
    async fn run<B>(mut self, mut unpacked: Unpacked<B>) -> Result<Reply, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        match self.pump(&mut unpacked).await {
            Ok(()) => Ok(self.counts.reply()),
            Err(refusal) => Err(self.counts.refuse(refusal)),
        }
    }

    async fn pump<B>(&mut self, unpacked: &mut Unpacked<B>) -> Result<(), Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let (rest, target) = (self.rest, &self.target);
        let submit = |group: Group| rest.submit(target.sent(group), &target.caller);
        let mut lines = Lines::new(rest.limits.line_bytes_max);
        let mut charge = Charge::new(&rest.budget);
        let mut under_way = FuturesOrdered::new();
        let mut ended = false;
        // The first failure; what is under way is waited for, so that the counts are right.
        let mut failed = None;
        while !ended && failed.is_none() {
            let next = tokio::select! {
                biased;
                Some(done) = under_way.next(), if !under_way.is_empty() => {
                    failed = count(&mut self.counts, done);
                    continue;
                }
                next = unpacked.piece() => next,
            };
            match next {
                Ok(Some(piece)) => lines.push(&piece),
                Ok(None) => ended = true,
                Err(refusal) => failed = Some(refusal),
            }
            while failed.is_none() {
                let group = lines.take(GROUP_LINES, ended);
                if group.spans.is_empty() {
                    break;
                }
                under_way.push_back(submit(group));
                while under_way.len() >= GROUPS_AT_ONCE && failed.is_none() {
                    failed = under_way.next().await.and_then(|done| count(&mut self.counts, done));
                }
            }
            if let Err(refusal) = charge.hold(lines.held()) {
                failed.get_or_insert(refusal);
            }
        }
        while let Some(done) = under_way.next().await {
            let error = count(&mut self.counts, done);
            failed = failed.or(error);
        }
        self.counts.received += lines.too_long;
        self.counts.rejected += lines.too_long;
        failed.map_or(Ok(()), Err)
    }
}

fn count(counts: &mut Counts, done: Result<SubmissionOutcome, Refusal>) -> Option<Refusal> {
    match done {
        Ok(outcome) => {
            counts.add(outcome);
            None
        }
        Err(refusal) => Some(refusal),
    }
}
