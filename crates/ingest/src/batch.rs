//! A request's records to rows, grouped by stream: the same for a new request and for one that the log gives back.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use lakegate_access::{Action, Principal};
use lakegate_lake::Lake;
use lakegate_memtable::{RowBuilder, Value};
use lakegate_model::{RecordError, Refusal, StreamKey, StreamName, Tally, TenantId, Verdict, event_type_part};

use crate::api::Source;
use crate::frame::{Exception, ExceptionKind, assigned_id};
use crate::growth::Wishes;
use crate::noticed::RequestNotes;
use crate::shape::{ClientOf, Envelope, Found, Marks, RecordContext};
use crate::streams::{DEAD_LETTER_MARKS, DEFAULT_TENANT, Stream, Streams, UNROUTABLE};
use crate::wire::{BatchRequest, RecordKind, WireRecord, text};

/// Requests of at most so many records put their rows beside those of others; larger ones make batches of their own.
pub(crate) const FEW: usize = 16;
/// After so many records others get a turn on the thread.
const RECORDS_A_TURN: usize = 1024;
/// The most record errors that an answer lists; the counts are always whole.
pub(crate) const ERRORS_LISTED_MAX: usize = 1000;

/// What holds for all records of a request.
pub(crate) struct Rules<'r> {
    pub(crate) streams: &'r Streams,
    /// The tenant of the credentials.
    pub(crate) tenant: Option<&'r TenantId>,
    /// Who asks; none while authentication is off, and after a restart, when what may be written was decided.
    pub(crate) principal: Option<&'r Principal>,
    pub(crate) source: &'static str,
    pub(crate) received_us: i64,
    pub(crate) id_base: u128,
    pub(crate) payload_bytes_max: usize,
    /// A record that breaks its contract is given back even where the contract says to set it aside.
    pub(crate) atomic: bool,
    /// No other request of the sender may overtake this one.
    pub(crate) in_order: bool,
    /// The client's address; empty: not known. The same for the two below.
    pub(crate) client_address: Cow<'r, str>,
    pub(crate) user_agent: &'r str,
    pub(crate) correlation_id: &'r str,
    /// Where tables that grow by what records bring are asked; none: nothing grows.
    pub(crate) lake: Option<&'r Lake>,
}

/// The rows of one stream.
pub(crate) struct Group<'a> {
    pub(crate) stream: Arc<Stream>,
    pub(crate) few: Vec<Vec<Value<'a>>>,
    pub(crate) many: Option<RowBuilder>,
    /// Rows that came in columns; then there are no others.
    pub(crate) columns: Option<RecordBatch>,
    /// One for each row, where the stream has an event key.
    pub(crate) keys: Vec<RowKey>,
    pub(crate) tally: Tally,
    pub(crate) notes: RequestNotes,
    pub(crate) wishes: Wishes,
}

/// What tells a row from others of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowKey {
    pub(crate) index: u32,
    pub(crate) payload_bytes: u64,
    /// None: the record has none of the key's fields, and is never taken for a duplicate.
    pub(crate) key: Option<u128>,
}

/// A request's records, decided.
#[derive(Default)]
pub(crate) struct Shaped<'a> {
    pub(crate) groups: Vec<Group<'a>>,
    /// Counts of records whose stream could not be told.
    pub(crate) unroutable: Vec<(StreamKey, Tally)>,
    pub(crate) exceptions: Vec<Exception>,
    pub(crate) errors: Vec<RecordError>,
    /// Records that were there already, as far as they are listed.
    pub(crate) duplicate_indexes: Vec<u32>,
    pub(crate) total: Tally,
    pub(crate) first_event_id: Option<String>,
    pub(crate) first_verdict: Option<Verdict>,
    pub(crate) kind: RecordKind,
    /// Whether what records want beyond their columns is noted, to be read again once they can have it.
    pub(crate) may_grow: bool,
    pub(crate) few: bool,
    pub(crate) capacity: usize,
    pub(crate) scratch: Vec<u8>,
}

/// The credentials do not reach as far as a record: the whole request is refused.
pub(crate) enum NotAllowed {
    /// The record names a tenant which the credentials do not.
    Tenant { index: usize },
    /// The credentials do not allow writing to the stream.
    Stream(StreamName),
}

/// Reads all records of `request`. Where they want columns that their tables can be given, they are read again under
/// the contracts that have these.
pub(crate) async fn shape_batch<'a>(request: &BatchRequest<'a>, rules: &Rules<'_>) -> Result<Shaped<'a>, NotAllowed> {
    let mut shaped = shape_all(request, rules, true).await?;
    let Some(lake) = rules.lake.filter(|_| shaped.groups.iter().any(|group| !group.wishes.is_empty())) else {
        return Ok(shaped);
    };
    for group in &mut shaped.groups {
        let wishes = std::mem::take(&mut group.wishes);
        if wishes.is_empty() {
            continue;
        }
        if let Err(error) = rules.streams.grow(&group.stream, wishes, lake).await {
            tracing::warn!(table = %group.stream.unit.table, %error, "the table cannot grow by what records bring");
        }
    }
    drop(shaped);
    shape_all(request, rules, false).await
}

async fn shape_all<'a>(
    request: &BatchRequest<'a>,
    rules: &Rules<'_>,
    may_grow: bool,
) -> Result<Shaped<'a>, NotAllowed> {
    let mut shaped = Shaped { may_grow, ..Shaped::of(request) };
    let mut index = 0;
    while index < request.records.len() {
        let before = index;
        index = shape_run(request, rules, index, &mut shaped)?;
        if index - before >= RECORDS_A_TURN && !rules.in_order {
            tokio::task::yield_now().await;
        }
    }
    Ok(shaped)
}

/// The streams of a frame that are read again: of each, its parts by event type.
pub(crate) type Wanted = HashMap<StreamKey, Vec<Arc<Stream>>>;

/// The part of a stream that a record goes into.
fn pick<'s>(parts: &'s [Arc<Stream>], record: Option<&WireRecord<'_>>) -> Option<&'s Arc<Stream>> {
    let first = parts.first()?;
    if !first.shaper.splits_by_event_type() {
        return Some(first);
    }
    let part = record.and_then(|record| first.shaper.event_type_of(record)).map(|name| event_type_part(&name));
    parts.iter().find(|stream| stream.shaper.contract.part == part.as_deref().unwrap_or_default())
}

/// Reads again the records of a request that the log holds, for the streams in `wanted` alone, with the decisions that
/// were made when it came.
///
/// # Errors
/// A record that was accepted cannot be read under its contract: the log and the contracts beside it do not fit.
pub(crate) fn shape_again<'a>(
    request: &BatchRequest<'a>,
    rules: &Rules<'_>,
    wanted: &Wanted,
    decided: &HashMap<u32, (ExceptionKind, Refusal)>,
) -> Result<Shaped<'a>, String> {
    let mut shaped = Shaped::of(request);
    for (index, bytes) in request.records.iter().copied().enumerate() {
        let read = WireRecord::read(request.kind, bytes);
        let Some(key) = Route::of(request, read.as_ref().ok()).key(rules) else { continue };
        let decision = decided.get(&index_number(index));
        if matches!(decision, Some((ExceptionKind::Duplicate | ExceptionKind::Rejected, _))) {
            continue;
        }
        let Some(stream) = wanted.get(&key).and_then(|parts| pick(parts, read.as_ref().ok())) else {
            if let Some((_, refusal)) = decision {
                shaped.set_aside_again(index, bytes, &key, rules, wanted, refusal);
            }
            continue;
        };
        let name = |text: &str| Value::Owned(text.into());
        let mut context = context(rules, name(key.tenant.as_str()), name(key.stream.as_str()), own_origin(rules));
        let mut row = Vec::with_capacity(stream.shaper.contract.columns.len());
        let seen = shape_one(index, read, stream, rules, &mut context, &mut row);
        match (decision, seen.refusal) {
            (Some((_, refusal)), found) => {
                shaped.set_aside_again(index, bytes, &key, rules, wanted, &found.unwrap_or_else(|| refusal.clone()))
            }
            (None, None) => shaped.keep_again(stream, row),
            (None, Some(refusal)) => return Err(format!("record {index} was accepted, but now: {}", refusal.message)),
        }
    }
    Ok(shaped)
}

/// Reads records from `start` on for as long as they are of one stream. Returns where it stopped.
fn shape_run<'a>(
    request: &BatchRequest<'a>,
    rules: &Rules<'_>,
    start: usize,
    shaped: &mut Shaped<'a>,
) -> Result<usize, NotAllowed> {
    let Some(first) = request.records.get(start).copied() else { return Ok(start + 1) };
    let read = WireRecord::read(request.kind, first);
    let route = Route::of(request, read.as_ref().ok());
    let stream = match route.resolve(rules, start)? {
        Ok(stream) => stream,
        Err(refusal) => {
            shaped.refuse_unroutable(start, first, &route, rules, refusal);
            return Ok(start + 1);
        }
    };
    let splits = stream.shaper.splits_by_event_type();
    let part = if splits { part_of(rules, &stream, read.as_ref().ok()) } else { Ok(stream) };
    let stream = match part {
        Ok(stream) => shaped.pinned(stream),
        Err(refusal) => {
            shaped.refuse_unroutable(start, first, &route, rules, refusal);
            return Ok(start + 1);
        }
    };
    let group = shaped.group_of(&stream);
    if shaped.few {
        let name = |text: &str| Value::Owned(text.into());
        let (tenant, name) = (name(stream.key.tenant.as_str()), name(stream.key.stream.as_str()));
        let mut context = context(rules, tenant, name, own_origin(rules));
        context.may_grow = shaped.may_grow;
        let mut row = Vec::new();
        let read = shape_one(start, read, &stream, rules, &mut context, &mut row);
        shaped.note_marks(group, rules, &mut context);
        shaped.note_key(group, start, &row, &read);
        shaped.note(start, first, group, rules, read, |group| {
            group.few.push(row);
            Ok(())
        });
        return Ok(start + 1);
    }
    let end = request.records.len().min(start + RECORDS_A_TURN);
    let (tenant, name) = (Value::Text(stream.key.tenant.as_str()), Value::Text(stream.key.stream.as_str()));
    let mut context = context(rules, tenant, name, origin(rules));
    context.may_grow = shaped.may_grow;
    let mut row = Vec::with_capacity(stream.shaper.contract.columns.len());
    let capacity = if splits { shaped.capacity.min(RECORDS_A_TURN) } else { shaped.capacity };
    for (index, bytes) in request.records.iter().copied().enumerate().take(end).skip(start) {
        let record = WireRecord::read(request.kind, bytes);
        if Route::of(request, record.as_ref().ok()) != route || (splits && index > start) {
            return Ok(index);
        }
        let read = shape_one(index, record, &stream, rules, &mut context, &mut row);
        shaped.note_marks(group, rules, &mut context);
        shaped.note_key(group, index, &row, &read);
        shaped.note(index, bytes, group, rules, read, |group| {
            group.many.get_or_insert_with(|| stream.shaper.rows(capacity)).push(&row)
        });
    }
    Ok(end)
}

pub(crate) fn context<'a>(
    rules: &Rules<'_>,
    tenant: Value<'a>,
    stream: Value<'a>,
    origin: ClientOf<'a>,
) -> RecordContext<'a> {
    RecordContext {
        tenant,
        stream,
        received_us: rules.received_us,
        assigned_id: uuid::Uuid::nil(),
        payload_bytes_max: rules.payload_bytes_max,
        source: rules.source,
        origin,
        may_grow: false,
        marks: Marks::default(),
        found: Found::default(),
    }
}

fn origin<'r>(rules: &'r Rules<'_>) -> ClientOf<'r> {
    let value = |text: &'r str| if text.is_empty() { Value::Null } else { Value::Text(text) };
    let (client_address, user_agent) = (value(&rules.client_address), value(rules.user_agent));
    ClientOf { client_address, user_agent, correlation_id: value(rules.correlation_id) }
}

/// The same for rows that outlive the request.
pub(crate) fn own_origin<'a>(rules: &Rules<'_>) -> ClientOf<'a> {
    let value = |text: &str| if text.is_empty() { Value::Null } else { Value::Owned(text.into()) };
    let (client_address, user_agent) = (value(&rules.client_address), value(rules.user_agent));
    ClientOf { client_address, user_agent, correlation_id: value(rules.correlation_id) }
}

/// Of a stream that goes into tables by event type, the part for this record.
pub(crate) fn part_of(
    rules: &Rules<'_>,
    stream: &Arc<Stream>,
    record: Option<&WireRecord<'_>>,
) -> Result<Arc<Stream>, Refusal> {
    let event_type = record.and_then(|record| stream.shaper.event_type_of(record));
    rules.streams.part_of(stream, event_type.as_deref())
}

/// What is known of a record that was read: its id and its payload.
pub(crate) struct Seen<'a> {
    pub(crate) event_id: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) refusal: Option<Refusal>,
}

pub(crate) fn shape_one<'a>(
    index: usize,
    record: Result<WireRecord<'a>, Refusal>,
    stream: &Stream,
    rules: &Rules<'_>,
    context: &mut RecordContext<'a>,
    row: &mut Vec<Value<'a>>,
) -> Seen<'a> {
    let refused = |event_id, refusal| Seen { event_id, payload: &[], refusal: Some(refusal) };
    let record = match record {
        Ok(record) => record,
        Err(refusal) => return refused("", refusal),
    };
    let envelope = match Envelope::read(&record) {
        Ok(envelope) => envelope,
        Err(refusal) => return refused("", refusal),
    };
    context.assigned_id = assigned_id(rules.received_us, rules.id_base, index_number(index));
    let event_id = envelope.event_id;
    match stream.shaper.shape(&record, &envelope, context, row) {
        Ok(()) => Seen { event_id, payload: record.payload, refusal: None },
        Err(refusal) => refused(event_id, refusal),
    }
}

pub(crate) fn index_number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// The names that a record goes by.
#[derive(Clone, Copy)]
pub(crate) struct Route<'a> {
    tenant: &'a [u8],
    stream: &'a [u8],
}

impl PartialEq for Route<'_> {
    /// Most records of a request take the request's own names: then the slices are the same, and no byte is compared. A
    /// profile had a tenth of the server's time in comparing them.
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &[u8], b: &[u8]| std::ptr::eq(a, b) || a.len() == b.len() && (a.is_empty() || a == b);
        same(self.tenant, other.tenant) && same(self.stream, other.stream)
    }
}

impl<'a> Route<'a> {
    /// Where the record names nothing, or cannot be read, the request's own names hold.
    pub(crate) fn of(request: &BatchRequest<'a>, record: Option<&WireRecord<'a>>) -> Self {
        let pick = |own: Option<&'a [u8]>, default: &'a [u8]| own.filter(|name| !name.is_empty()).unwrap_or(default);
        Self {
            tenant: pick(record.map(|r| r.tenant_id), request.tenant_id),
            stream: pick(record.map(|r| r.endpoint_id), request.endpoint_id),
        }
    }

    pub(crate) fn resolve(&self, rules: &Rules<'_>, index: usize) -> Result<Result<Arc<Stream>, Refusal>, NotAllowed> {
        let tenant = match rules.tenant {
            Some(own) if self.tenant.is_empty() || self.tenant == own.as_str().as_bytes() => own.as_str(),
            Some(_) => return Err(NotAllowed::Tenant { index }),
            None if self.tenant.is_empty() => DEFAULT_TENANT,
            None => match text("tenant_id", self.tenant) {
                Ok(tenant) => tenant,
                Err(refusal) => return Ok(Err(refusal)),
            },
        };
        if rules.source == Source::Internal.name() && self.stream == DEAD_LETTER_MARKS.as_bytes() {
            return Ok(rules.streams.marks_of(tenant));
        }
        let stream = text("endpoint_id", self.stream).and_then(|stream| rules.streams.resolve(tenant, stream));
        match (&stream, rules.principal) {
            (Ok(stream), Some(principal)) if !principal.may(Action::Write, &stream.key.stream) => {
                Err(NotAllowed::Stream(stream.key.stream.clone()))
            }
            _ => Ok(stream),
        }
    }

    /// The stream's key, where the names are valid.
    pub(crate) fn key(&self, rules: &Rules<'_>) -> Option<StreamKey> {
        let tenant = match rules.tenant {
            Some(own) => own.clone(),
            None if self.tenant.is_empty() => TenantId::new(DEFAULT_TENANT).ok()?,
            None => TenantId::new(std::str::from_utf8(self.tenant).ok()?).ok()?,
        };
        let stream = StreamName::new(std::str::from_utf8(self.stream).ok()?).ok()?;
        Some(StreamKey { tenant, stream })
    }

    /// Where a record is counted that leads nowhere.
    pub(crate) fn unroutable_key(&self, rules: &Rules<'_>) -> Option<StreamKey> {
        let named = std::str::from_utf8(self.tenant).ok().and_then(|name| TenantId::new(name).ok());
        let tenant = rules.tenant.cloned().or(named).or_else(|| TenantId::new(DEFAULT_TENANT).ok())?;
        Some(StreamKey { tenant, stream: StreamName::new(UNROUTABLE).ok()? })
    }
}
