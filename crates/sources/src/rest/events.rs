//! `POST /events`, `POST /events/batch`.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use hyper::body::Body;
use lakegate_ingest::SubmissionOutcome;
use lakegate_model::TenantId;
use uuid::Uuid;

use super::answer::{BatchAnswer, event_response};
use super::body::{Charge, Incoming, Packing, content_type};
use super::refusal::Refusal;
use super::{Caller, Reply, Rest, Sent};
use crate::intake::{Intake, refuse_early};
use crate::json::{Misplaced, Walk, text_value};

/// The most bytes of an `Idempotency-Key`.
const KEY_BYTES_MAX: usize = 255;
/// The most bytes of an event's id that an answer repeats.
const EVENT_ID_BYTES_MAX: usize = 1024;

/// The header that makes a whole request repeatable.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The header that names the tenant while authentication is off.
const TENANT: &str = "x-tenant-id";

/// The tenant that the request names; credentials say more, and then this is not looked at.
pub(crate) fn tenant_of(headers: &HeaderMap, caller: &Caller) -> Result<Option<TenantId>, Refusal> {
    let Some(value) = headers.get(TENANT) else { return Ok(None) };
    let wrong = |detail: String| Refusal::invalid("invalid_name", format!("{TENANT}: {detail}"));
    let name = value.to_str().map_err(|_| wrong("is not text".to_owned()))?;
    let tenant = TenantId::new(name).map_err(|error| wrong(error.to_string()))?;
    match &caller.principal {
        Some(principal) if principal.tenant != tenant => Err(Refusal::wrong_tenant(TENANT)),
        _ => Ok(Some(tenant)),
    }
}

/// The request's own id.
pub(crate) fn request_id(headers: &HeaderMap) -> Result<String, Refusal> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(String::new()) };
    match value.to_str().map(str::trim) {
        Ok(key) if !key.is_empty() && key.len() <= KEY_BYTES_MAX => Ok(key.to_owned()),
        _ => Err(Refusal::invalid(
            "invalid_idempotency_key",
            format!("Idempotency-Key needs 1 to {KEY_BYTES_MAX} printable ASCII characters"),
        )),
    }
}

async fn read<I: Intake, B>(
    rest: &Rest<I>,
    request: Request<B>,
    caller: &Caller,
) -> Result<(Bytes, Charge, Sent), Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let headers = request.headers();
    content_type(headers, &["application/json"])?;
    let sent = Sent {
        body: Bytes::new(),
        spans: Vec::new(),
        stream: rest.events.clone(),
        tenant: tenant_of(headers, caller)?,
        atomic: false,
        batch_id: request_id(headers)?,
        in_order: false,
    };
    let packing = Packing::of(headers)?;
    let mut charge = Charge::new(&rest.budget);
    let body = Incoming::new(request.into_body(), &rest.limits).whole(packing, &rest.limits, &mut charge).await?;
    Ok((body, charge, sent))
}

/// One event.
pub(crate) async fn one<I: Intake, B>(rest: &Rest<I>, request: Request<B>, caller: Caller) -> Result<Reply, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (body, charge, mut sent) = read(rest, request, &caller).await?;
    sent.spans.push(0..span_end(&body)?);
    sent.body = body.clone();
    let tenant = whose(&sent, &caller);
    let outcome = rest.submit(sent, &caller).await?;
    drop(charge);
    if rest.bus.is_heard() && outcome.accepted > 0 {
        rest.tell(tenant.as_ref(), &body);
    }
    Ok(event_response(&event_id(&body), &outcome))
}

/// Whose events they are; none where nobody is named.
fn whose(sent: &Sent, caller: &Caller) -> Option<TenantId> {
    sent.tenant.clone().or_else(|| caller.principal.as_ref().map(|principal| principal.tenant.clone()))
}

fn span_end(body: &Bytes) -> Result<u32, Refusal> {
    u32::try_from(body.len()).map_err(|_| Refusal::too_large("the body", u32::MAX as usize))
}

/// The `eventId` of an event, as far as it has one that can be repeated.
pub(crate) fn event_id(event: &[u8]) -> String {
    let find = || -> Result<Option<Range<usize>>, Misplaced> {
        let mut walk = Walk::new(event);
        walk.enter_object()?;
        let (mut found, mut first) = (None, true);
        while let Some(member) = walk.member(&mut first)? {
            if member.is("eventId") {
                found = Some(member.value);
            }
        }
        Ok(found)
    };
    let value = find().ok().flatten().and_then(|span| event.get(span));
    let text = value.filter(|value| value.len() <= EVENT_ID_BYTES_MAX).and_then(text_value);
    text.map_or_else(String::new, std::borrow::Cow::into_owned)
}

/// What a `BatchEventRequest` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Batch {
    events: Vec<Range<u32>>,
    max_size: Option<u64>,
    fail_on_error: bool,
}

/// Many events.
pub(crate) async fn batch<I: Intake, B>(rest: &Rest<I>, request: Request<B>, caller: Caller) -> Result<Reply, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let held = read(rest, request, &caller).await?;
    let (principal, bytes) = (caller.principal.as_deref(), held.0.len());
    let (body, charge, mut sent) = refuse_early(&rest.intake, principal, bytes, held).await.map_err(Refusal::of)?;
    let batch = match rest.intake.aside(body.len()) {
        None => read_batch(&body)?,
        Some(aside) => {
            let body = body.clone();
            aside.spawn(async move { read_batch(&body) }).await.map_err(|_| Refusal::broken())??
        }
    };
    let most = rest.limits.batch_events_max as u64;
    let limit = batch.max_size.map_or(most, |own| own.min(most));
    let total = batch.events.len();
    if total as u64 > limit {
        let detail = format!("Batch size {total} exceeds limit {limit}; nothing was stored");
        return Err(Refusal::invalid("batch_too_large", detail).with("limit", limit.into()));
    }
    let batch_id = if sent.batch_id.is_empty() { Uuid::now_v7().to_string() } else { sent.batch_id.clone() };
    let spans = batch.events.clone();
    let id_of = |index: u32| event_id(body_of(&body, &spans, index));
    (sent.body, sent.spans, sent.atomic) = (body.clone(), batch.events, batch.fail_on_error);
    let tenant = whose(&sent, &caller);
    let submitted = rest.submit_all(sent, &caller).await?;
    drop(charge);
    match submitted {
        Ok(outcome) => {
            if rest.bus.is_heard() && outcome.accepted > 0 {
                tell_accepted(rest, tenant.as_ref(), &outcome, |index| body_of(&body, &spans, index));
            }
            let status = if outcome.accepted > 0 { StatusCode::ACCEPTED } else { StatusCode::OK };
            let successful = outcome.accepted + outcome.duplicates;
            Ok(BatchAnswer { batch_id: &batch_id, total, successful, errors: &outcome.errors }.reply(status, id_of))
        }
        Err(errors) => {
            let answer = BatchAnswer { batch_id: &batch_id, total, successful: 0, errors: &errors };
            Ok(answer.reply(StatusCode::BAD_REQUEST, id_of))
        }
    }
}

fn body_of<'b>(body: &'b [u8], spans: &[Range<u32>], index: u32) -> &'b [u8] {
    let span = usize::try_from(index).ok().and_then(|at| spans.get(at)).cloned().unwrap_or_default();
    body.get(span.start as usize..span.end as usize).unwrap_or_default()
}

/// Tells subscribers of the events of a batch that are new.
fn tell_accepted<'b, I: Intake>(
    rest: &Rest<I>,
    tenant: Option<&TenantId>,
    outcome: &SubmissionOutcome,
    event: impl Fn(u32) -> &'b [u8],
) {
    let known = outcome.duplicate_indexes.iter().copied().chain(outcome.errors.iter().map(|error| error.index));
    let known: std::collections::HashSet<u32> = known.collect();
    let records = outcome.accepted + outcome.duplicates + outcome.rejected + outcome.dead_lettered;
    for index in (0..u32::try_from(records).unwrap_or(0)).filter(|index| !known.contains(index)) {
        rest.tell(tenant, event(index));
    }
}

/// Finds the events and the options. What stands where it must not is refused; members that are not known are passed
/// over, as in every object of this interface.
fn read_batch(body: &[u8]) -> Result<Batch, Refusal> {
    let unreadable = |error: Misplaced| Refusal::invalid("invalid", format!("the body is not a batch: {error}"));
    let mut walk = Walk::new(body);
    walk.enter_object().map_err(unreadable)?;
    let (mut batch, mut first) = (Batch::default(), true);
    let (mut events, mut options) = (None, None);
    while let Some(member) = walk.member(&mut first).map_err(unreadable)? {
        let place = match () {
            () if member.is("events") => &mut events,
            () if member.is("options") => &mut options,
            () => continue,
        };
        if place.replace(member.value).is_some() {
            return Err(Refusal::invalid("invalid", "the body names events or options twice"));
        }
    }
    walk.end().map_err(unreadable)?;
    let Some(events) = events else {
        return Err(Refusal::invalid("invalid", "events: is missing; send {\"events\": [ … ]}"));
    };
    batch.events = read_events(body, &events)?;
    if let Some(options) = options.and_then(|span| body.get(span)) {
        read_options(options, &mut batch)?;
    }
    Ok(batch)
}

fn read_events(body: &[u8], span: &Range<usize>) -> Result<Vec<Range<u32>>, Refusal> {
    let wrong = |error: Misplaced| Refusal::invalid("invalid", format!("events: {error} of the list"));
    let mut walk = Walk::new(body.get(span.clone()).unwrap_or_default());
    walk.enter_list().map_err(|_| Refusal::invalid("invalid", "events: must be a list"))?;
    let (mut events, mut first) = (Vec::with_capacity(span.len() / 256), true);
    while let Some(event) = walk.element(&mut first).map_err(wrong)? {
        let place =
            |at: usize| u32::try_from(span.start + at).map_err(|_| Refusal::too_large("the body", u32::MAX as usize));
        events.push(place(event.start)?..place(event.end)?);
    }
    walk.end().map_err(wrong)?;
    Ok(events)
}

fn read_options(text: &[u8], batch: &mut Batch) -> Result<(), Refusal> {
    let wrong = |what: &str| Refusal::invalid("invalid", format!("options{what}"));
    let Ok(options) = serde_json::from_slice::<serde_json::Value>(text) else { return Err(wrong(" is not JSON")) };
    let options = match &options {
        serde_json::Value::Null => return Ok(()),
        serde_json::Value::Object(options) => options,
        _ => return Err(wrong(" must be an object")),
    };
    match options.get("maxSize") {
        None | Some(serde_json::Value::Null) => {}
        Some(size) => {
            let size = size.as_u64().filter(|size| *size > 0);
            batch.max_size = Some(size.ok_or_else(|| wrong(".maxSize must be a whole number above 0"))?);
        }
    }
    match options.get("failOnError") {
        None | Some(serde_json::Value::Null) => {}
        Some(flag) => {
            batch.fail_on_error = flag.as_bool().ok_or_else(|| wrong(".failOnError must be true or false"))?
        }
    }
    Ok(())
}
