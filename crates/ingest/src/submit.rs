//! The way of a write: admit, shape, append, wait until it is durable, answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lakegate_access::Action;
use lakegate_log::{AppendError, Ticket};
use lakegate_model::{ReasonCode, StreamKey, TenantId};

use crate::api::{ArrowRows, Submission, SubmissionOutcome, SubmitError, Wire};
use crate::aside::over_quota;
use crate::batch::{NotAllowed, Rules, Shaped, shape_batch};
use crate::columns::{Columns, ColumnsRefused, shape_columns};
use crate::duplicates::{Claim, Doubt};
use crate::frame::{Exception, FrameBody, FrameHeader, FrameStream};
use crate::gate::{Gate, Inner};
use crate::import::conform::Names;
use crate::import::{ImportError, OwnColumns};
use crate::once::{OwnId, answer_again, claim_rows, give_up_rows, outcome_of, take_out_all};
use crate::requests::{Answered, Kept, encode_answer};
use crate::rows::{ReadyRows, Span, tables_of};
use crate::sequence::{Sequence, Turn};
use crate::streams::DEFAULT_TENANT;
use crate::wire::BatchRequest;

/// The most bytes of a request's own id.
const MAX_BATCH_ID_BYTES: usize = 1024;
/// The columns of one request may unpack to this share of the memory budget.
const COLUMNS_SHARE: usize = 4;

/// Bytes of requests under way; given back when the request ends, however it ends.
pub(crate) struct Permit<'g> {
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
        self.take(submission, Turn::default()).await
    }

    /// The same for a request of a connection that is to stay behind those before it in `sequence`.
    ///
    /// # Errors
    /// As of [`Self::submit`]; and where one before it was refused for now.
    pub async fn submit_in(
        &self,
        submission: Submission,
        sequence: &Sequence,
    ) -> Result<SubmissionOutcome, SubmitError> {
        let place = Some(sequence.enter().await?);
        self.take(submission, Turn { place, ..Turn::default() }).await
    }
}

impl Inner {
    /// Takes one request; `turn` is held until it is in the log, or never will be.
    pub(crate) async fn take(&self, submission: &Submission, mut turn: Turn) -> Result<SubmissionOutcome, SubmitError> {
        let result = self.take_in_turn(submission, &mut turn).await;
        if result.as_ref().err().is_none_or(|error| !error.is_for_now()) {
            turn.pass();
        }
        result
    }

    async fn take_in_turn(&self, submission: &Submission, turn: &mut Turn) -> Result<SubmissionOutcome, SubmitError> {
        let _permit = self.admit(submission.body.len())?;
        let body = submission.body.clone();
        let request = read_request(&submission.wire, &body)?;
        let columns = self.read_columns(submission).await?;
        let (limit, found) =
            (self.settings.batch_size_max, columns.as_ref().map_or(request.records.len(), |c| c.0.rows()));
        if found > limit {
            return Err(SubmitError::BatchTooLarge { limit, found });
        }
        let batch_id = read_batch_id(&request)?;
        let _admitted = match (self.quotas.get(), submission.principal.as_deref()) {
            (Some(quotas), Some(principal)) => {
                let (records, bytes) = (found as u64, submission.body.len() as u64);
                Some(quotas.admit(principal, records, bytes).await.map_err(over_quota)?)
            }
            _ => None,
        };
        let rules = self.rules(submission, request.atomic);
        let mut shaped = match &columns {
            Some((columns, names)) => shape_columns(&request, columns, *names, &rules)
                .await
                .map_err(|refused| columns_refused(refused, submission))?,
            None => shape_batch(&request, &rules).await.map_err(|refused| not_allowed(refused, submission))?,
        };
        drop(columns);
        let asked = Asked { submission, request: &request, rules: &rules, batch_id };
        if request.atomic && !shaped.errors.is_empty() {
            return Err(self.refuse_all(&asked, &mut shaped));
        }
        if shaped.total.received == 0 {
            let position = self.log.durable_offset().saturating_sub(1);
            return Ok(SubmissionOutcome { position, ..outcome_of(&shaped, batch_id) });
        }
        if let Some(remote) = self.remote.get() {
            let sent = self.send(remote, &asked, &mut shaped)?;
            turn.pass();
            drop(shaped);
            return self.finish_sent(sent).await;
        }
        let now_us = rules.received_us;
        let claim = self.claim_shared(&request, &shaped, batch_id, now_us).await?;
        hit("ingest.before_append")?;
        let appended = self.append(&asked, &mut shaped, &claim);
        drop(shaped);
        let Appended { ticket, outcome, own, doubt } = match appended {
            Ok(appended) => {
                turn.pass();
                appended
            }
            Err(error) => {
                self.give_up_shared(claim).await;
                return Err(error);
            }
        };
        // What is refused is answered at once; a duplicate waits, for its first copy may not be durable yet.
        let is_kept = outcome.accepted + outcome.duplicates + outcome.dead_lettered > 0;
        if is_kept || !claim.claimed.is_empty() {
            ticket.durable().await.map_err(|error| SubmitError::Unavailable { message: error.to_string() })?;
            hit("ingest.before_confirm")?;
            self.confirm_shared(claim, doubt, own.map(|own| (own, &outcome)), now_us).await;
            hit("ingest.before_ack")?;
        }
        Ok(outcome)
    }
}

fn hit(failpoint: &str) -> Result<(), SubmitError> {
    lakegate_env::hit_failpoint(failpoint).map_err(|error| SubmitError::Unavailable { message: error.to_string() })
}

/// A request that is in the log.
pub(crate) struct Appended {
    pub(crate) ticket: Ticket,
    outcome: SubmissionOutcome,
    /// Its own id, where it is the first of it.
    own: Option<OwnId>,
    /// Keeps the log until others know of it.
    doubt: Option<Doubt>,
}

/// A request, read.
pub(crate) struct Asked<'r> {
    pub(crate) submission: &'r Submission,
    pub(crate) request: &'r BatchRequest<'r>,
    pub(crate) rules: &'r Rules<'r>,
    /// Empty: none.
    pub(crate) batch_id: &'r str,
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
        Wire::Arrow(rows) => {
            let (atomic, batch_id) = (rows.atomic, rows.batch_id.as_bytes());
            Ok(BatchRequest { atomic, batch_id, ..BatchRequest::of_columns(body, rows.tenant.as_ref(), &rows.stream) })
        }
    }
}

fn columns_refused(refused: ColumnsRefused, submission: &Submission) -> SubmitError {
    match refused {
        ColumnsRefused::NotAllowed(refused) => not_allowed(refused, submission),
        ColumnsRefused::Refusal(refusal) => {
            invalid(refusal.code, refusal.field.as_deref().unwrap_or_default(), refusal.message)
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

pub(crate) fn invalid(code: ReasonCode, field: &str, message: String) -> SubmitError {
    SubmitError::Invalid { code, field: field.to_owned(), message, errors: Vec::new() }
}

impl Inner {
    /// The rows of a request that brings columns. A stream that may take its columns from them is given them.
    async fn read_columns(&self, submission: &Submission) -> Result<Option<(Columns, Names)>, SubmitError> {
        let Wire::Arrow(rows) = &submission.wire else { return Ok(None) };
        let read = Columns::read(&submission.body, self.settings.memory_budget / COLUMNS_SHARE);
        let columns = read.map_err(|error| invalid(ReasonCode::MalformedPayload, "", error.to_string()))?;
        // Written elsewhere, nobody who shapes it again would know what columns it was given here.
        if rows.declares && self.remote.get().is_none() {
            self.declare_by(rows, &columns, submission).await?;
        }
        Ok(Some((columns, if rows.by_name { Names::Own } else { Names::Payload })))
    }

    async fn declare_by(
        &self,
        rows: &ArrowRows,
        columns: &Columns,
        submission: &Submission,
    ) -> Result<(), SubmitError> {
        let own = submission.principal.as_ref().map(|principal| principal.tenant.clone());
        let tenant = own.or_else(|| rows.tenant.clone()).or_else(|| TenantId::new(DEFAULT_TENANT).ok());
        let Some(tenant) = tenant else { return Ok(()) };
        let key = StreamKey { tenant, stream: rows.stream.clone() };
        let may = submission.principal.as_ref().is_none_or(|principal| principal.may(Action::Write, &key.stream));
        if !may || rows.tenant.as_ref().is_some_and(|named| *named != key.tenant) {
            // Refused below, with its reason.
            return Ok(());
        }
        let given = self.give_columns(&key, &OwnColumns::Schema(columns.schema.clone())).await;
        given.map_err(|error| match error {
            ImportError::Mismatch(message) | ImportError::Stream(message) => {
                invalid(ReasonCode::WrongType, "schema", message.replace("the file", "the request"))
            }
            error => SubmitError::Unavailable { message: error.to_string() },
        })
    }

    /// Refuses before any work where there is no room for the request.
    pub(crate) fn admit(&self, bytes: usize) -> Result<Permit<'_>, SubmitError> {
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
            client_address: submission.client.address.map_or_else(String::new, |address| address.to_string()).into(),
            user_agent: submission.client.user_agent.as_deref().unwrap_or_default(),
            correlation_id: submission.correlation_id.as_deref().unwrap_or_default(),
            // A table grows where its rows are made.
            lake: self.remote.get().is_none().then_some(&self.lake),
        }
    }

    /// The whole request is given back; it is counted as rejected.
    fn refuse_all(&self, asked: &Asked<'_>, shaped: &mut Shaped<'_>) -> SubmitError {
        for group in &mut shaped.groups {
            group.few.clear();
            group.keys.clear();
            (group.many, group.columns) = (None, None);
            group.tally.rejected += group.tally.accepted + group.tally.dead_lettered;
            (group.tally.accepted, group.tally.dead_lettered, group.tally.bytes) = (0, 0, 0);
        }
        let errors = std::mem::take(&mut shaped.errors);
        // Counted if there is room; the answer is the same.
        let _ = self.append(&Asked { batch_id: "", ..*asked }, shaped, &Claim::default());
        let first = errors.first();
        let (index, code) = first.map_or((0, ReasonCode::AtomicBatch), |error| (error.index, error.refusal.code));
        let why = first.map_or_else(String::new, |error| error.refusal.message.clone());
        let message = format!("nothing was stored: atomic was asked for and record {index} was refused: {why}");
        SubmitError::Invalid { code, field: format!("records[{index}]"), message, errors }
    }

    /// Appends the request to the log and puts its rows into the memtables, under their locks: rows lie in offset
    /// order, and no other request of these tables comes between the look for duplicates and the noting of keys.
    pub(crate) fn append(
        &self,
        asked: &Asked<'_>,
        shaped: &mut Shaped<'_>,
        claim: &Claim,
    ) -> Result<Appended, SubmitError> {
        let mut rows = Vec::with_capacity(shaped.groups.len());
        for group in &mut shaped.groups {
            rows.push(group.take_rows().map_err(|error| SubmitError::Unavailable { message: error.to_string() })?);
        }
        let now_us = asked.rules.received_us;
        let records = u32::try_from(shaped.total.received).unwrap_or(u32::MAX);
        let own = OwnId::of(asked.request, shaped, asked.batch_id);
        let one_at_a_time = own.map(|_| self.requests.gate.lock());
        let known = own.and_then(|own| self.requests.find(own.key, now_us).map(|kept| (kept, own)));
        let again = known.map(|(kept, own)| answer_again(&kept, own, asked.batch_id, shaped)).transpose()?;
        let units = tables_of(&rows);
        let consistent = self.balance_gate.read();
        let mut guards: Vec<_> = units.iter().map(|unit| unit.memtable.lock()).collect();
        if again.is_none() {
            refuse_claimed(&rows)?;
        }
        if again.is_some() {
            take_out_all(&mut rows, shaped);
        } else if claim_rows(&mut rows, shaped, asked.request, now_us, claim)
            .map_err(|error| self.break_down(&error))?
            && asked.rules.atomic
        {
            give_up_rows(&rows);
            drop((guards, consistent, one_at_a_time));
            return Err(self.refuse_all(asked, shaped));
        }
        let is_again = again.is_some();
        let own = own.filter(|_| !is_again);
        let mut outcome = again.unwrap_or_else(|| outcome_of(shaped, asked.batch_id));
        let header = FrameHeader { unchecked: claim.unchecked, ..frame_header(asked, shaped, &rows, own, &outcome) };
        let parts = [header.encode(), asked.submission.body.clone()];
        let with_body = if header.body == FrameBody::None { 1 } else { 2 };
        let ticket = self.log.append(records, parts.get(..with_body).unwrap_or_default()).map_err(|error| {
            give_up_rows(&rows);
            out_of_room(error)
        })?;
        if !is_again {
            outcome.position = ticket.next_offset().saturating_sub(1);
        }
        self.note(&header, &ticket);
        self.recent.note(ticket.first_offset, &rows);
        let span = Span { first_offset: ticket.first_offset, next_offset: ticket.next_offset(), now_us };
        for group in rows.into_iter().filter(|group| !group.is_empty()) {
            let at = units.iter().position(|unit| Arc::ptr_eq(unit, &group.stream.unit));
            if let Some(guard) = at.and_then(|at| guards.get_mut(at)) {
                group.push(guard, span).map_err(|error| self.break_down(&error))?;
            }
        }
        let shared = self.shared.as_ref().filter(|_| !claim.claimed.is_empty());
        let doubt = shared.map(|shared| shared.doubt(ticket.first_offset));
        drop(guards);
        self.count(&header.streams, shaped);
        self.streams.windows.keep_within_bound();
        Ok(Appended { ticket, outcome, own, doubt })
    }

    /// Notes what the frame says about duplicates, so that it is kept when the log is trimmed.
    fn note(&self, header: &FrameHeader, ticket: &Ticket) {
        if header.batch_key != 0 {
            let (answered, received_us) = (header.answered.clone(), header.received_us);
            let position = ticket.next_offset().saturating_sub(1);
            self.requests.note(header.batch_key, Kept { answered, position, received_us });
        }
        if header.batch_key != 0 || header.streams.iter().any(|stream| !stream.keys.is_empty()) {
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
            let stream = &group.stream;
            stream.noticed.count(&group.notes, &stream.shaper.contract, stream.key.stream.as_str());
        }
    }
}

/// A key that a row of a file has claimed is neither there nor not there, until the import has committed.
fn refuse_claimed(rows: &[ReadyRows<'_>]) -> Result<(), SubmitError> {
    let claimed = |ready: &ReadyRows<'_>| ready.stream.claims.holds_any(ready.keys.iter().filter_map(|row| row.key));
    let Some(ready) = rows.iter().find(|ready| claimed(ready)) else { return Ok(()) };
    let message =
        format!("an import of the stream {} holds event keys of this request until its commit", ready.stream.key);
    Err(SubmitError::OutOfRoom { what: "import", message, retry_after_ms: 1000 })
}

/// The frame's header for what is left of a request.
pub(crate) fn frame_header(
    asked: &Asked<'_>,
    shaped: &mut Shaped<'_>,
    rows: &[ReadyRows<'_>],
    own: Option<OwnId>,
    outcome: &SubmissionOutcome,
) -> FrameHeader {
    let Asked { submission, rules, .. } = asked;
    let has_rows = rows.iter().any(|group| !group.is_empty());
    let answered = |own: OwnId| Answered { owner: own.owner, content: own.content, answer: encode_answer(outcome) };
    FrameHeader {
        body: if has_rows { frame_body(&submission.wire) } else { FrameBody::None },
        source: submission.source as u8,
        unchecked: false,
        received_us: rules.received_us,
        id_base: rules.id_base,
        tenant: submission.principal.as_ref().map(|principal| principal.tenant.clone()),
        correlation_id: submission.correlation_id.clone().unwrap_or_default(),
        batch_key: own.map_or(0, |own| own.key),
        answered: own.map_or_else(Answered::unknown, answered),
        streams: frame_streams(shaped, rows),
        exceptions: if has_rows { sorted(std::mem::take(&mut shaped.exceptions)) } else { Vec::new() },
        client_address: submission.client.address.map_or_else(String::new, |address| address.to_string()),
        user_agent: submission.client.user_agent.clone().unwrap_or_default(),
    }
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
        Wire::Arrow(rows) => {
            FrameBody::Arrow { tenant: rows.tenant.clone(), stream: rows.stream.clone(), by_name: rows.by_name }
        }
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
