//! A request's records to rows, grouped by stream: the same for a new request and for one that the log gives back.

use std::collections::HashMap;
use std::sync::Arc;

use lakegate_access::{Action, Principal};
use lakegate_memtable::{RowBuilder, Value};
use lakegate_model::{OnConflict, ReasonCode, RecordError, Refusal, StreamKey, StreamName, Tally, TenantId, Verdict};

use crate::api::Source;
use crate::dead_letters::{self, Origin};
use crate::duplicates::{key_of, with_content};
use crate::frame::{Exception, ExceptionKind, assigned_id};
use crate::shape::{Envelope, RecordContext};
use crate::streams::{DEAD_LETTER_MARKS, DEAD_LETTERS, DEFAULT_TENANT, Stream, Streams, UNROUTABLE};
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
}

/// The rows of one stream.
pub(crate) struct Group<'a> {
    pub(crate) stream: Arc<Stream>,
    pub(crate) few: Vec<Vec<Value<'a>>>,
    pub(crate) many: Option<RowBuilder>,
    /// One for each row, where the stream has an event key.
    pub(crate) keys: Vec<RowKey>,
    pub(crate) tally: Tally,
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
    kind: RecordKind,
    few: bool,
    capacity: usize,
    scratch: Vec<u8>,
}

/// The credentials do not reach as far as a record: the whole request is refused.
pub(crate) enum NotAllowed {
    /// The record names a tenant which the credentials do not.
    Tenant { index: usize },
    /// The credentials do not allow writing to the stream.
    Stream(StreamName),
}

/// Reads all records of `request`.
pub(crate) async fn shape_batch<'a>(request: &BatchRequest<'a>, rules: &Rules<'_>) -> Result<Shaped<'a>, NotAllowed> {
    let mut shaped = Shaped::of(request);
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

/// Reads again the records of a request that the log holds, for the streams in `wanted` alone, with the decisions that
/// were made when it came.
///
/// # Errors
/// A record that was accepted cannot be read under its contract: the log and the contracts beside it do not fit.
pub(crate) fn shape_again<'a>(
    request: &BatchRequest<'a>,
    rules: &Rules<'_>,
    wanted: &HashMap<StreamKey, Arc<Stream>>,
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
        let Some(stream) = wanted.get(&key) else {
            if let Some((_, refusal)) = decision {
                shaped.set_aside_again(index, bytes, &key, rules, wanted, refusal);
            }
            continue;
        };
        let name = |text: &str| Value::Owned(text.into());
        let mut context = context(rules, name(key.tenant.as_str()), name(key.stream.as_str()));
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
    let group = shaped.group_of(&stream);
    if shaped.few {
        let name = |text: &str| Value::Owned(text.into());
        let mut context = context(rules, name(stream.key.tenant.as_str()), name(stream.key.stream.as_str()));
        let mut row = Vec::new();
        let read = shape_one(start, read, &stream, rules, &mut context, &mut row);
        shaped.note_key(group, start, &row, &read);
        shaped.note(start, first, group, rules, read, |group| {
            group.few.push(row);
            Ok(())
        });
        return Ok(start + 1);
    }
    let end = request.records.len().min(start + RECORDS_A_TURN);
    let (tenant, name) = (Value::Text(stream.key.tenant.as_str()), Value::Text(stream.key.stream.as_str()));
    let mut context = context(rules, tenant, name);
    let mut row = Vec::with_capacity(stream.shaper.contract.columns.len());
    let capacity = shaped.capacity;
    for (index, bytes) in request.records.iter().copied().enumerate().take(end).skip(start) {
        let record = WireRecord::read(request.kind, bytes);
        if Route::of(request, record.as_ref().ok()) != route {
            return Ok(index);
        }
        let read = shape_one(index, record, &stream, rules, &mut context, &mut row);
        shaped.note_key(group, index, &row, &read);
        shaped.note(index, bytes, group, rules, read, |group| {
            group.many.get_or_insert_with(|| stream.shaper.rows(capacity)).push(&row)
        });
    }
    Ok(end)
}

pub(crate) fn context<'a>(rules: &Rules<'_>, tenant: Value<'a>, stream: Value<'a>) -> RecordContext<'a> {
    RecordContext {
        tenant,
        stream,
        received_us: rules.received_us,
        assigned_id: uuid::Uuid::nil(),
        payload_bytes_max: rules.payload_bytes_max,
    }
}

/// What is known of a record that was read: its id and its payload.
pub(crate) struct Seen<'a> {
    event_id: &'a str,
    payload: &'a [u8],
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
struct Route<'a> {
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
    fn of(request: &BatchRequest<'a>, record: Option<&WireRecord<'a>>) -> Self {
        let pick = |own: Option<&'a [u8]>, default: &'a [u8]| own.filter(|name| !name.is_empty()).unwrap_or(default);
        Self {
            tenant: pick(record.map(|r| r.tenant_id), request.tenant_id),
            stream: pick(record.map(|r| r.endpoint_id), request.endpoint_id),
        }
    }

    fn resolve(&self, rules: &Rules<'_>, index: usize) -> Result<Result<Arc<Stream>, Refusal>, NotAllowed> {
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
    fn key(&self, rules: &Rules<'_>) -> Option<StreamKey> {
        let tenant = match rules.tenant {
            Some(own) => own.clone(),
            None if self.tenant.is_empty() => TenantId::new(DEFAULT_TENANT).ok()?,
            None => TenantId::new(std::str::from_utf8(self.tenant).ok()?).ok()?,
        };
        let stream = StreamName::new(std::str::from_utf8(self.stream).ok()?).ok()?;
        Some(StreamKey { tenant, stream })
    }

    /// Where a record is counted that leads nowhere.
    fn unroutable_key(&self, rules: &Rules<'_>) -> Option<StreamKey> {
        let named = std::str::from_utf8(self.tenant).ok().and_then(|name| TenantId::new(name).ok());
        let tenant = rules.tenant.cloned().or(named).or_else(|| TenantId::new(DEFAULT_TENANT).ok())?;
        Some(StreamKey { tenant, stream: StreamName::new(UNROUTABLE).ok()? })
    }
}

impl<'a> Shaped<'a> {
    pub(crate) fn of(request: &BatchRequest<'_>) -> Self {
        let capacity = request.records.len();
        Self { kind: request.kind, few: capacity <= FEW, capacity, ..Self::default() }
    }

    pub(crate) fn group_of(&mut self, stream: &Arc<Stream>) -> usize {
        if let Some(at) = self.groups.iter().position(|group| Arc::ptr_eq(&group.stream, stream)) {
            return at;
        }
        self.groups.push(Group {
            stream: stream.clone(),
            few: Vec::new(),
            many: None,
            keys: Vec::new(),
            tally: Tally::default(),
        });
        self.groups.len() - 1
    }

    fn note_key(&mut self, group: usize, index: usize, row: &[Value<'_>], seen: &Seen<'_>) {
        let Some(group) = self.groups.get_mut(group) else { return };
        let columns = &group.stream.shaper.key_columns;
        if columns.is_empty() || seen.refusal.is_some() {
            return;
        }
        let mut key = key_of(row, columns, &mut self.scratch);
        if group.stream.shaper.contract.on_conflict == OnConflict::Reject {
            key = key.map(|key| with_content(key, seen.payload));
        }
        group.keys.push(RowKey { index: index_number(index), payload_bytes: seen.payload.len() as u64, key });
    }

    /// Notes what became of a record whose stream is known; `keep` puts its row away.
    fn note(
        &mut self,
        index: usize,
        bytes: &'a [u8],
        group: usize,
        rules: &Rules<'_>,
        seen: Seen<'_>,
        keep: impl FnOnce(&mut Group<'a>) -> Result<(), arrow::error::ArrowError>,
    ) {
        let Some(place) = self.groups.get_mut(group) else { return };
        let mut one = Tally { received: 1, ..Tally::default() };
        let refusal = match seen.refusal {
            None => match keep(place) {
                Ok(()) => None,
                Err(error) => Some(Refusal { code: ReasonCode::WrongType, field: None, message: error.to_string() }),
            },
            refusal => refusal,
        };
        let set_aside = place.stream.shaper.contract.malformed == lakegate_model::Malformed::Skip && !rules.atomic;
        let verdict = match refusal {
            None => {
                one.accepted = 1;
                one.bytes = seen.payload.len() as u64;
                place.tally.add(&one);
                self.total.add(&one);
                if index == 0 {
                    self.note_first(rules, seen.event_id, Verdict::Accepted);
                }
                return;
            }
            Some(refusal) if set_aside => {
                one.dead_lettered = 1;
                Verdict::DeadLettered(refusal)
            }
            Some(refusal) => {
                one.rejected = 1;
                Verdict::Rejected(refusal)
            }
        };
        place.tally.add(&one);
        self.total.add(&one);
        let key = place.stream.key.clone();
        self.note_verdict(index, bytes, &key, rules, seen.event_id, verdict);
    }

    fn note_first(&mut self, rules: &Rules<'_>, event_id: &str, verdict: Verdict) {
        let assigned = || assigned_id(rules.received_us, rules.id_base, 0).hyphenated().to_string();
        self.first_event_id = Some(if event_id.is_empty() { assigned() } else { event_id.to_owned() });
        self.first_verdict = Some(verdict);
    }

    fn note_verdict(
        &mut self,
        index: usize,
        bytes: &'a [u8],
        key: &StreamKey,
        rules: &Rules<'_>,
        event_id: &str,
        verdict: Verdict,
    ) {
        if index == 0 {
            self.note_first(rules, event_id, verdict.clone());
        }
        let (kind, refusal) = match verdict {
            Verdict::Accepted => return,
            Verdict::Duplicate => {
                self.exceptions.push(Exception {
                    index: index_number(index),
                    kind: ExceptionKind::Duplicate,
                    reason: 0,
                });
                return;
            }
            Verdict::Rejected(refusal) => (ExceptionKind::Rejected, refusal),
            Verdict::DeadLettered(refusal) => (ExceptionKind::DeadLettered, refusal),
        };
        let reason = refusal.code as u8;
        self.exceptions.push(Exception { index: index_number(index), kind, reason });
        let dead_lettered = kind == ExceptionKind::DeadLettered;
        if dead_lettered {
            self.set_aside(index, bytes, key, rules, &refusal);
        }
        if self.errors.len() < ERRORS_LISTED_MAX {
            let event_id = event_id.to_owned();
            self.errors.push(RecordError { index: index_number(index), event_id, dead_lettered, refusal });
        }
    }

    /// Puts a record among its tenant's dead letters.
    pub(crate) fn set_aside(
        &mut self,
        index: usize,
        bytes: &'a [u8],
        key: &StreamKey,
        rules: &Rules<'_>,
        refusal: &Refusal,
    ) {
        let Ok(letters) = rules.streams.dead_letters_of(&key.tenant) else { return };
        let group = self.group_of(&letters);
        let (tenant, stream) = (key.tenant.as_str(), key.stream.as_str());
        let letter_id = assigned_id(rules.received_us, rules.id_base, index_number(index));
        let origin = Origin { tenant, stream, source: rules.source, received_us: rules.received_us, letter_id };
        if let Some(group) = self.groups.get_mut(group) {
            group.few.push(dead_letters::row(self.kind, bytes, &origin, refusal));
        }
    }

    /// The same after a restart, if the lake lacks the tenant's dead letters.
    fn set_aside_again(
        &mut self,
        index: usize,
        bytes: &'a [u8],
        key: &StreamKey,
        rules: &Rules<'_>,
        wanted: &HashMap<StreamKey, Arc<Stream>>,
        refusal: &Refusal,
    ) {
        if wanted.keys().any(|wanted| wanted.tenant == key.tenant && wanted.stream.as_str() == DEAD_LETTERS) {
            self.set_aside(index, bytes, key, rules, refusal);
        }
    }

    fn keep_again(&mut self, stream: &Arc<Stream>, row: Vec<Value<'a>>) {
        let group = self.group_of(stream);
        let (few, capacity) = (self.few, self.capacity);
        let Some(group) = self.groups.get_mut(group) else { return };
        if few {
            group.few.push(row);
            return;
        }
        // Of maps alone a push can fail, with keys and values of different number; a row has pairs.
        let _ = group.many.get_or_insert_with(|| stream.shaper.rows(capacity)).push(&row);
    }

    fn refuse_unroutable(
        &mut self,
        index: usize,
        bytes: &'a [u8],
        route: &Route<'_>,
        rules: &Rules<'_>,
        refusal: Refusal,
    ) {
        let Some(key) = route.unroutable_key(rules) else { return };
        let one = Tally { received: 1, rejected: 1, ..Tally::default() };
        self.total.add(&one);
        match self.unroutable.iter_mut().find(|(known, _)| *known == key) {
            Some((_, tally)) => tally.add(&one),
            None => self.unroutable.push((key.clone(), one)),
        }
        self.note_verdict(index, bytes, &key, rules, "", Verdict::Rejected(refusal));
    }
}
