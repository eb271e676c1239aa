//! The way of a write: admit, shape, append, wait until it is durable, answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lakegate_log::{AppendError, Ticket};
use lakegate_model::{ReasonCode, Verdict};

use crate::api::{Submission, SubmissionOutcome, SubmitError, Wire};
use crate::batch::{ERRORS_LISTED_MAX, NotAllowed, Rules, Shaped, shape_batch};
use crate::duplicates::batch_key;
use crate::frame::{Exception, ExceptionKind, FrameBody, FrameHeader, FrameStream};
use crate::gate::{Gate, Inner};
use crate::rows::{ReadyRows, Span, tables_of};
use crate::wire::BatchRequest;

/// The most bytes of a request's own id.
const MAX_BATCH_ID_BYTES: usize = 1024;

/// Bytes of requests under way; given back when the request ends, however it ends.
struct Permit<'g> {
    inflight: &'g AtomicUsize,
    bytes: usize,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.inflight.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Gate {
    /// Takes one request. When this returns `Ok`, all that is counted as accepted or dead-lettered is on disk and seen
    /// by queries.
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing was stored, except perhaps after [`SubmitError::Unavailable`].
    pub async fn submit(&self, submission: Submission) -> Result<SubmissionOutcome, SubmitError> {
        let inner = &*self.inner;
        let _permit = inner.admit(submission.body.len())?;
        let body = submission.body.clone();
        let request = read_request(&submission.wire, &body)?;
        let limit = inner.settings.batch_size_max;
        if request.records.len() > limit {
            return Err(SubmitError::BatchTooLarge { limit, found: request.records.len() });
        }
        let batch_id = read_batch_id(&request)?.to_owned();
        let rules = inner.rules(&submission, request.atomic);
        let mut shaped = shape_batch(&request, &rules).await.map_err(|refused| not_allowed(refused, &submission))?;
        if request.atomic && !shaped.errors.is_empty() {
            return Err(inner.refuse_all(&submission, &rules, shaped));
        }
        let ticket = match shaped.total.received {
            0 => None,
            _ => Some(inner.append(&submission, &rules, &batch_id, &mut shaped)?),
        };
        let position =
            ticket.as_ref().map_or_else(|| inner.log.durable_offset(), Ticket::next_offset).saturating_sub(1);
        let outcome = SubmissionOutcome {
            batch_id,
            accepted: shaped.total.accepted,
            duplicates: shaped.total.duplicate,
            rejected: shaped.total.rejected,
            dead_lettered: shaped.total.dead_lettered,
            errors: std::mem::take(&mut shaped.errors),
            duplicate_indexes: std::mem::take(&mut shaped.duplicate_indexes),
            position,
            first_event_id: shaped.first_event_id.take(),
            first_verdict: shaped.first_verdict.take().unwrap_or(Verdict::Accepted),
        };
        drop(shaped);
        // What is refused is answered at once; a duplicate waits, for its first copy may not be durable yet.
        if let Some(ticket) = ticket.filter(|_| outcome.accepted + outcome.duplicates + outcome.dead_lettered > 0) {
            ticket.durable().await.map_err(|error| SubmitError::Unavailable { message: error.to_string() })?;
            let hit = lakegate_env::hit_failpoint("ingest.before_ack");
            hit.map_err(|error| SubmitError::Unavailable { message: error.to_string() })?;
        }
        Ok(outcome)
    }
}

fn read_request<'a>(wire: &'a Wire, body: &'a [u8]) -> Result<BatchRequest<'a>, SubmitError> {
    match wire {
        Wire::ProtoBatch => BatchRequest::read(body).map_err(|error| {
            invalid(ReasonCode::MalformedPayload, "", format!("not a storage.IngestBatchRequest: {error}"))
        }),
        Wire::Payloads(payloads) => {
            let tenant = payloads.tenant.as_ref().map_or("", lakegate_model::TenantId::as_str);
            let request = BatchRequest::of_payloads(body, &payloads.spans, tenant, payloads.stream.as_str());
            let request = request.map_err(|error| invalid(ReasonCode::MalformedPayload, "", error.to_string()))?;
            Ok(BatchRequest { atomic: payloads.atomic, batch_id: payloads.batch_id.as_bytes(), ..request })
        }
    }
}

fn not_allowed(refused: NotAllowed, submission: &Submission) -> SubmitError {
    match refused {
        NotAllowed::Tenant { index } => SubmitError::WrongTenant { field: format!("records[{index}].tenant_id") },
        NotAllowed::Stream(stream) => {
            let principal =
                submission.principal.as_ref().map_or_else(String::new, |principal| principal.id.to_string());
            SubmitError::Forbidden { principal, stream }
        }
    }
}

fn read_batch_id<'a>(request: &BatchRequest<'a>) -> Result<&'a str, SubmitError> {
    let refused = |code, message| invalid(code, "batch_id", message);
    let text =
        crate::wire::text("batch_id", request.batch_id).map_err(|refusal| refused(refusal.code, refusal.message))?;
    if text.len() > MAX_BATCH_ID_BYTES {
        let message = format!("batch_id has {} bytes; at most {MAX_BATCH_ID_BYTES} are taken", text.len());
        return Err(refused(ReasonCode::TooLarge, message));
    }
    Ok(text)
}

fn invalid(code: ReasonCode, field: &str, message: String) -> SubmitError {
    SubmitError::Invalid { code, field: field.to_owned(), message, errors: Vec::new() }
}

impl Inner {
    /// Refuses before any work where there is no room for the request.
    fn admit(&self, bytes: usize) -> Result<Permit<'_>, SubmitError> {
        if let Some(reason) = self.closed_reason() {
            return Err(SubmitError::Unavailable { message: reason });
        }
        let before = self.inflight.fetch_add(bytes, Ordering::Relaxed);
        let permit = Permit { inflight: &self.inflight, bytes };
        let taken = self.memtables.bytes() + before + bytes;
        if taken > self.settings.memory_budget {
            self.flush_wanted.notify_one();
            let message = format!(
                "{taken} bytes of rows and requests would be in memory, the budget is {} (ingestion.memory_budget); the lake is behind",
                self.settings.memory_budget
            );
            return Err(SubmitError::OutOfRoom { what: "memory", message, retry_after_ms: 500 });
        }
        Ok(permit)
    }

    fn rules<'r>(&'r self, submission: &'r Submission, atomic: bool) -> Rules<'r> {
        Rules {
            streams: &self.streams,
            tenant: submission.principal.as_ref().map(|principal| &principal.tenant),
            principal: submission.principal.as_deref(),
            source: submission.source.name(),
            received_us: self.clock.wall_us(),
            id_base: self.next_id_base(),
            payload_bytes_max: self.settings.payload_bytes_max,
            atomic,
            in_order: submission.in_order,
        }
    }

    /// The whole request is given back; it is counted as rejected.
    fn refuse_all(&self, submission: &Submission, rules: &Rules<'_>, mut shaped: Shaped<'_>) -> SubmitError {
        for group in &mut shaped.groups {
            group.few.clear();
            group.keys.clear();
            group.many = None;
            group.tally.rejected += group.tally.accepted + group.tally.dead_lettered;
            (group.tally.accepted, group.tally.dead_lettered, group.tally.bytes) = (0, 0, 0);
        }
        let errors = std::mem::take(&mut shaped.errors);
        // Counted if there is room; the answer is the same.
        let _ = self.append(submission, rules, "", &mut shaped);
        let first = errors.first();
        let (index, code) = first.map_or((0, ReasonCode::AtomicBatch), |error| (error.index, error.refusal.code));
        let why = first.map_or_else(String::new, |error| error.refusal.message.clone());
        let message = format!("nothing was stored: atomic was asked for and record {index} was refused: {why}");
        SubmitError::Invalid { code, field: format!("records[{index}]"), message, errors }
    }

    /// Appends the request to the log and puts its rows into the memtables, under their locks: rows lie in offset
    /// order, and no other request of these tables comes between the look for duplicates and the noting of keys.
    fn append(
        &self,
        submission: &Submission,
        rules: &Rules<'_>,
        batch_id: &str,
        shaped: &mut Shaped<'_>,
    ) -> Result<Ticket, SubmitError> {
        let mut rows = Vec::with_capacity(shaped.groups.len());
        for group in &mut shaped.groups {
            rows.push(group.take_rows().map_err(|error| SubmitError::Unavailable { message: error.to_string() })?);
        }
        let records = u32::try_from(shaped.total.received).unwrap_or(u32::MAX);
        let batch =
            (!batch_id.is_empty()).then(|| (self.batches.gate.lock(), batch_key(&batch_name(shaped, batch_id))));
        let units = tables_of(&rows);
        let _consistent = self.balance_gate.read();
        let mut guards: Vec<_> = units.iter().map(|unit| unit.memtable.lock()).collect();
        match &batch {
            Some((_, key)) if self.batches.window.contains(*key, rules.received_us) => take_out_all(&mut rows, shaped),
            _ => take_out_duplicates(&mut rows, shaped, rules.received_us).map_err(|error| self.break_down(&error))?,
        }
        let has_rows = rows.iter().any(|group| !group.is_empty());
        let header = FrameHeader {
            body: if has_rows { frame_body(&submission.wire) } else { FrameBody::None },
            source: submission.source as u8,
            received_us: rules.received_us,
            id_base: rules.id_base,
            tenant: submission.principal.as_ref().map(|principal| principal.tenant.clone()),
            correlation_id: submission.correlation_id.clone().unwrap_or_default(),
            batch_key: batch.as_ref().filter(|_| has_rows).map_or(0, |(_, key)| *key),
            streams: frame_streams(shaped, &rows),
            exceptions: if has_rows { sorted(std::mem::take(&mut shaped.exceptions)) } else { Vec::new() },
            client_address: submission.client.address.map_or_else(String::new, |address| address.to_string()),
            user_agent: submission.client.user_agent.clone().unwrap_or_default(),
        };
        let head = header.encode();
        let parts = [head, submission.body.clone()];
        let parts = if has_rows { parts.as_slice() } else { parts.get(..1).unwrap_or_default() };
        let ticket = self.log.append(records, parts).map_err(out_of_room)?;
        self.note_keys(&rows, &header);
        let span =
            Span { first_offset: ticket.first_offset, next_offset: ticket.next_offset(), now_us: rules.received_us };
        for group in rows.into_iter().filter(|group| !group.is_empty()) {
            let at = units.iter().position(|unit| Arc::ptr_eq(unit, &group.stream.unit));
            if let Some(guard) = at.and_then(|at| guards.get_mut(at)) {
                group.push(guard, span).map_err(|error| self.break_down(&error))?;
            }
        }
        drop(guards);
        self.count(&header.streams, shaped);
        Ok(ticket)
    }

    fn note_keys(&self, rows: &[ReadyRows<'_>], header: &FrameHeader) {
        if header.batch_key != 0 {
            self.batches.window.note(header.batch_key, header.received_us);
            self.has_keys.store(true, Ordering::Relaxed);
        }
        for group in rows {
            let Some(window) = &group.stream.window else { continue };
            group.keys.iter().filter_map(|row| row.key).for_each(|key| window.note(key, header.received_us));
            self.has_keys.store(true, Ordering::Relaxed);
        }
    }

    fn count(&self, streams: &[FrameStream], shaped: &Shaped<'_>) {
        let mut balance = self.balance.lock();
        for stream in streams {
            balance.add(&stream.key, &stream.tally);
        }
        drop(balance);
        for group in &shaped.groups {
            group.stream.count_accepted(group.tally.accepted);
        }
    }
}

/// The name under which a request's own id is remembered, with the tenants that its records are of: no tenant's id meets
/// another's, whether the credentials or the request say whose it is.
fn batch_name(shaped: &Shaped<'_>, batch_id: &str) -> String {
    let tenants: BTreeSet<&str> = shaped.groups.iter().map(|group| group.stream.key.tenant.as_str()).collect();
    tenants.into_iter().chain([batch_id]).collect::<Vec<_>>().join("/")
}

/// Takes out of `rows` what their streams have seen, or what comes twice in the request itself.
fn take_out_duplicates(
    rows: &mut [ReadyRows<'_>],
    shaped: &mut Shaped<'_>,
    now_us: i64,
) -> Result<(), arrow::error::ArrowError> {
    for (group, ready) in rows.iter_mut().enumerate() {
        let Some(window) = &ready.stream.window else { continue };
        let mut own = hashbrown::HashSet::with_capacity(ready.keys.len());
        let seen = |key: u128| window.contains(key, now_us) || !own.insert(key);
        let flags: Vec<bool> = ready.keys.iter().map(|row| row.key).map(lift(seen)).collect();
        if !flags.contains(&true) {
            continue;
        }
        let duplicates = ready.keys.iter().zip(&flags).filter(|(_, flag)| **flag);
        let duplicates: Vec<(u32, u64)> = duplicates.map(|(row, _)| (row.index, row.payload_bytes)).collect();
        shaped.count_duplicates(group, &duplicates);
        ready.take_out(&flags)?;
    }
    Ok(())
}

fn lift(mut seen: impl FnMut(u128) -> bool) -> impl FnMut(Option<u128>) -> bool {
    move |key| key.is_some_and(&mut seen)
}

/// The same request was stored before: all of it is taken out.
fn take_out_all(rows: &mut Vec<ReadyRows<'_>>, shaped: &mut Shaped<'_>) {
    rows.clear();
    shaped.errors.clear();
    shaped.count_all_as_duplicates();
}

fn sorted(mut exceptions: Vec<Exception>) -> Vec<Exception> {
    exceptions.sort_by_key(|exception| exception.index);
    exceptions
}

fn frame_streams(shaped: &Shaped<'_>, rows: &[ReadyRows<'_>]) -> Vec<FrameStream> {
    let keys_of =
        |at: usize| rows.get(at).map_or_else(Vec::new, |ready| ready.keys.iter().filter_map(|row| row.key).collect());
    let known = shaped.groups.iter().enumerate().map(|(at, group)| FrameStream {
        key: group.stream.key.clone(),
        fingerprint: group.stream.fingerprint,
        tally: group.tally,
        keys: keys_of(at),
    });
    let unroutable = shaped.unroutable.iter();
    let unroutable = unroutable.map(|(key, tally)| FrameStream {
        key: key.clone(),
        fingerprint: 0,
        tally: *tally,
        keys: Vec::new(),
    });
    known.chain(unroutable).collect()
}

fn frame_body(wire: &Wire) -> FrameBody {
    match wire {
        Wire::ProtoBatch => FrameBody::ProtoBatch,
        Wire::Payloads(payloads) => FrameBody::Payloads {
            tenant: payloads.tenant.clone(),
            stream: payloads.stream.clone(),
            spans: payloads.spans.clone(),
        },
    }
}

fn out_of_room(error: AppendError) -> SubmitError {
    let message = error.to_string();
    match error {
        AppendError::QuotaFull { .. } => SubmitError::OutOfRoom { what: "wal_quota", message, retry_after_ms: 2000 },
        AppendError::OutOfRoom { .. } => SubmitError::OutOfRoom { what: "disk", message, retry_after_ms: 2000 },
        AppendError::QueueFull { .. } => SubmitError::OutOfRoom { what: "queue", message, retry_after_ms: 100 },
        AppendError::TooLarge { .. } => invalid(ReasonCode::TooLarge, "", message),
        AppendError::NoRecords | AppendError::Stopped(_) => SubmitError::Unavailable { message },
    }
}

impl Shaped<'_> {
    /// Records of one group, each with its payload's bytes, turned out to be duplicates.
    fn count_duplicates(&mut self, group: usize, records: &[(u32, u64)]) {
        let (count, bytes) = (records.len() as u64, records.iter().map(|(_, bytes)| bytes).sum::<u64>());
        if let Some(group) = self.groups.get_mut(group) {
            group.tally.accepted -= count;
            group.tally.duplicate += count;
            group.tally.bytes -= bytes;
        }
        self.total.accepted -= count;
        self.total.duplicate += count;
        for (index, _) in records {
            self.exceptions.push(Exception { index: *index, kind: ExceptionKind::Duplicate, reason: 0 });
            self.list_duplicate(*index);
            if *index == 0 {
                self.first_verdict = Some(Verdict::Duplicate);
            }
        }
    }

    fn list_duplicate(&mut self, index: u32) {
        if self.duplicate_indexes.len() < ERRORS_LISTED_MAX {
            self.duplicate_indexes.push(index);
        }
    }

    fn count_all_as_duplicates(&mut self) {
        for index in 0..u32::try_from(self.total.received.min(ERRORS_LISTED_MAX as u64)).unwrap_or(0) {
            self.list_duplicate(index);
        }
        let all = |tally: &mut lakegate_model::Tally| {
            let received = tally.received;
            *tally = lakegate_model::Tally { received, duplicate: received, ..lakegate_model::Tally::default() };
        };
        all(&mut self.total);
        self.groups.iter_mut().for_each(|group| all(&mut group.tally));
        self.unroutable.iter_mut().for_each(|(_, tally)| all(tally));
        self.first_verdict = Some(Verdict::Duplicate);
    }
}
