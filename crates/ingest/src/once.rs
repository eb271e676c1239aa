//! What was here before is stored once: event keys of records, and the own ids of requests.

use std::collections::BTreeSet;

use lakegate_model::{ReasonCode, RecordError, Refusal, Tally, Verdict};

use crate::api::{SubmissionOutcome, SubmitError};
use crate::batch::{ERRORS_LISTED_MAX, Shaped};
use crate::duplicates::{CONTENT_BITS, Claim, ClaimError, Doubt, Met, stream_hash};
use crate::frame::{Exception, ExceptionKind};
use crate::gate::Inner;
use crate::requests::{Answered, Kept, content_of, decode_answer, encode_answer, request_key};
use crate::rows::ReadyRows;
use crate::wire::{BatchRequest, WireRecord};

/// A request's own id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OwnId {
    pub(crate) key: u128,
    /// Hash of its tenants.
    pub(crate) owner: u64,
    /// Hash of what it says.
    pub(crate) content: u64,
}

impl OwnId {
    /// None, where the request brought none. It is remembered with the tenants that its records are of: no tenant's id
    /// meets another's, whether the credentials or the request say whose it is.
    pub(crate) fn of(request: &BatchRequest<'_>, shaped: &Shaped<'_>, batch_id: &str) -> Option<Self> {
        if batch_id.is_empty() {
            return None;
        }
        let known = shaped.groups.iter().map(|group| group.stream.key.tenant.as_str());
        let unroutable = shaped.unroutable.iter().map(|(key, _)| key.tenant.as_str());
        let tenants: BTreeSet<&str> = known.chain(unroutable).collect();
        let tenants = tenants.into_iter().collect::<Vec<_>>().join("/");
        let (key, owner) = request_key(&tenants, batch_id);
        Some(Self { key, owner, content: content_of(request) })
    }
}

/// What the same request was answered before.
///
/// # Errors
/// It had the same id and said something else.
pub(crate) fn answer_again(
    kept: &Kept,
    own: OwnId,
    batch_id: &str,
    shaped: &Shaped<'_>,
) -> Result<SubmissionOutcome, SubmitError> {
    if kept.answered.content != 0 && kept.answered.content != own.content {
        let message = format!(
            "the id {batch_id:?} was used for a request that brought something else; send this one under an id of its own"
        );
        let (code, field) = (ReasonCode::Conflict, "batch_id".to_owned());
        return Err(SubmitError::Invalid { code, field, message, errors: Vec::new() });
    }
    // An answer of an earlier version is not known: all of the request was there before.
    let answer = decode_answer(batch_id, kept.position, &kept.answered.answer);
    Ok(answer.unwrap_or_else(|_| outcome_of(shaped, batch_id)))
}

/// The answer to a request, but for its position.
pub(crate) fn outcome_of(shaped: &Shaped<'_>, batch_id: &str) -> SubmissionOutcome {
    SubmissionOutcome {
        batch_id: batch_id.to_owned(),
        accepted: shaped.total.accepted,
        duplicates: shaped.total.duplicate,
        rejected: shaped.total.rejected,
        dead_lettered: shaped.total.dead_lettered,
        errors: shaped.errors.clone(),
        duplicate_indexes: shaped.duplicate_indexes.clone(),
        position: 0,
        first_event_id: shaped.first_event_id.clone(),
        first_verdict: shaped.first_verdict.clone().unwrap_or(Verdict::Accepted),
    }
}

impl Inner {
    /// Claims the event keys of a request, and its own id, where other instances share the window.
    pub(crate) async fn claim_shared(
        &self,
        request: &BatchRequest<'_>,
        shaped: &Shaped<'_>,
        batch_id: &str,
        now_us: i64,
    ) -> Result<Claim, SubmitError> {
        let Some(shared) = &self.shared else { return Ok(Claim::default()) };
        let own = OwnId::of(request, shaped, batch_id);
        // What this instance answered it answers again without asking.
        let own = own.filter(|own| self.requests.find(own.key, now_us).is_none());
        let unknown = Kept { answered: Answered::unknown(), position: 0, received_us: now_us };
        let mut keys: Vec<_> = own.iter().map(|own| shared.request_key(own.key, &unknown, 0)).collect();
        for group in shaped.groups.iter().filter(|group| group.stream.window.is_some()) {
            let (hash, window_ms) = (stream_hash(&group.stream.key), group.stream.shaper.contract.duplicate_window_ms);
            let of_group = group.keys.iter().filter_map(|row| row.key);
            keys.extend(of_group.map(|key| shared.event_key(hash, key, window_ms)));
        }
        if keys.is_empty() {
            return Ok(Claim::default());
        }
        let claim = shared.claim(keys, own.map(|own| own.owner)).await.map_err(not_claimed)?;
        if let (Some(kept), Some(own)) = (&claim.again, own) {
            self.requests.note(own.key, kept.clone());
        }
        if claim.unchecked {
            metrics::counter!("lakegate_records_unchecked_total").increment(shaped.total.accepted);
        }
        Ok(claim)
    }

    /// Tells the others that what was claimed is stored.
    pub(crate) async fn confirm_shared(
        &self,
        claim: Claim,
        doubt: Option<Doubt>,
        own: Option<(OwnId, &SubmissionOutcome)>,
        now_us: i64,
    ) {
        let Some(shared) = self.shared.as_ref().filter(|_| !claim.claimed.is_empty()) else { return };
        let request = own.map(|(own, outcome)| {
            let answered = Answered { owner: own.owner, content: own.content, answer: encode_answer(outcome) };
            let kept = Kept { answered, position: outcome.position, received_us: now_us };
            shared.request_key(own.key, &kept, self.requests.window_us())
        });
        shared.confirm(claim.into_confirmed(request), doubt).await;
    }

    /// Tells the others that what was claimed is not stored.
    pub(crate) async fn give_up_shared(&self, claim: Claim) {
        if let Some(shared) = &self.shared {
            shared.give_up(claim).await;
        }
    }
}

fn not_claimed(error: ClaimError) -> SubmitError {
    SubmitError::OutOfRoom { what: "duplicates", message: error.to_string(), retry_after_ms: 1000 }
}

/// Claims the rows' keys in their streams' windows, and takes out of `rows` what was there, or what comes twice in the
/// request itself. Returns whether a record met its key with other content.
pub(crate) fn claim_rows(
    rows: &mut [ReadyRows<'_>],
    shaped: &mut Shaped<'_>,
    request: &BatchRequest<'_>,
    now_us: i64,
    claim: &Claim,
) -> Result<bool, arrow::error::ArrowError> {
    let mut conflict = false;
    let mut seen = claim.seen.iter().copied();
    for (group, ready) in rows.iter_mut().enumerate() {
        let Some(window) = &ready.stream.window else { continue };
        let mut met = window.claim(ready.keys.iter().map(|row| row.key), now_us);
        for (met, key) in met.iter_mut().zip(&ready.keys).filter_map(|(met, row)| row.key.map(|key| (met, key))) {
            match seen.next() {
                Some(Some(content)) if *met == Met::New => *met = meets(key, content),
                _ => {}
            }
        }
        conflict |= take_out(group, ready, shaped, request, &met)?;
    }
    Ok(conflict)
}

/// What a key is that another instance stored with that content.
fn meets(key: u128, content: u32) -> Met {
    let own = key & CONTENT_BITS;
    let differs = own != 0 && content != 0 && own != u128::from(content);
    if differs { Met::Otherwise } else { Met::Before }
}

/// Takes the rows out of one group that are not new.
fn take_out(
    group: usize,
    ready: &mut ReadyRows<'_>,
    shaped: &mut Shaped<'_>,
    request: &BatchRequest<'_>,
    met: &[Met],
) -> Result<bool, arrow::error::ArrowError> {
    if met.iter().all(|met| *met == Met::New) {
        return Ok(false);
    }
    let of = |wanted: Met| {
        let found = ready.keys.iter().zip(met).filter(move |(_, met)| **met == wanted);
        found.map(|(row, _)| (row.index, row.payload_bytes)).collect::<Vec<(u32, u64)>>()
    };
    let (duplicates, conflicts) = (of(Met::Before), of(Met::Otherwise));
    shaped.count_duplicates(group, &duplicates);
    shaped.count_conflicts(group, &conflicts, request);
    let flags: Vec<bool> = met.iter().map(|met| *met != Met::New).collect();
    ready.take_out(&flags)?;
    Ok(!conflicts.is_empty())
}

/// Takes back what [`claim_rows`] claimed, for the rows were not stored.
pub(crate) fn give_up_rows(rows: &[ReadyRows<'_>]) {
    for ready in rows {
        if let Some(window) = &ready.stream.window {
            window.give_up(ready.keys.iter().filter_map(|row| row.key));
        }
    }
}

/// The same request was stored before: all of it is taken out.
pub(crate) fn take_out_all(rows: &mut Vec<ReadyRows<'_>>, shaped: &mut Shaped<'_>) {
    rows.clear();
    shaped.errors.clear();
    shaped.exceptions.clear();
    shaped.count_all_as_duplicates();
}

impl Shaped<'_> {
    /// Records of one group, each with its payload's bytes, turned out to be duplicates.
    fn count_duplicates(&mut self, group: usize, records: &[(u32, u64)]) {
        self.move_tally(group, records, |tally, count| tally.duplicate += count);
        for (index, _) in records {
            self.exceptions.push(Exception { index: *index, kind: ExceptionKind::Duplicate, reason: 0 });
            self.list_duplicate(*index);
            if *index == 0 {
                self.first_verdict = Some(Verdict::Duplicate);
            }
        }
    }

    /// Records of one group met their key with another payload: they are given back.
    fn count_conflicts(&mut self, group: usize, records: &[(u32, u64)], request: &BatchRequest<'_>) {
        if records.is_empty() {
            return;
        }
        self.move_tally(group, records, |tally, count| tally.rejected += count);
        let key =
            self.groups.get(group).map_or_else(String::new, |group| group.stream.shaper.contract.event_key.join(", "));
        let refusal = Refusal {
            code: ReasonCode::Conflict,
            field: Some(key.clone()),
            message: format!(
                "the same event key ({key}) was stored with another payload; a corrected event needs a key of its own"
            ),
        };
        for (index, _) in records {
            let (index, refusal, reason) = (*index, refusal.clone(), refusal.code as u8);
            self.exceptions.push(Exception { index, kind: ExceptionKind::Rejected, reason });
            if index == 0 {
                self.first_verdict = Some(Verdict::Rejected(refusal.clone()));
            }
            let record = request.records.get(index as usize);
            let record = record.and_then(|bytes| WireRecord::read(request.kind, bytes).ok()).unwrap_or_default();
            let event_id = String::from_utf8_lossy(record.event_id).into_owned();
            self.errors.push(RecordError { index, event_id, dead_lettered: false, refusal });
        }
        self.errors.sort_by_key(|error| error.index);
        self.errors.truncate(ERRORS_LISTED_MAX);
    }

    /// Records that were counted as accepted are counted otherwise.
    fn move_tally(&mut self, group: usize, records: &[(u32, u64)], count_as: impl Fn(&mut Tally, u64)) {
        let (count, bytes) = (records.len() as u64, records.iter().map(|(_, bytes)| bytes).sum::<u64>());
        let group = self.groups.get_mut(group).map(|group| &mut group.tally);
        for tally in group.into_iter().chain([&mut self.total]) {
            tally.accepted -= count;
            tally.bytes -= bytes;
            count_as(tally, count);
        }
    }

    fn list_duplicate(&mut self, index: u32) {
        if self.duplicate_indexes.len() < ERRORS_LISTED_MAX {
            self.duplicate_indexes.push(index);
        }
    }

    fn count_all_as_duplicates(&mut self) {
        self.duplicate_indexes.clear();
        for index in 0..u32::try_from(self.total.received.min(ERRORS_LISTED_MAX as u64)).unwrap_or(0) {
            self.list_duplicate(index);
        }
        let all = |tally: &mut Tally| {
            let received = tally.received;
            *tally = Tally { received, duplicate: received, ..Tally::default() };
        };
        all(&mut self.total);
        self.groups.iter_mut().for_each(|group| all(&mut group.tally));
        self.unroutable.iter_mut().for_each(|(_, tally)| all(tally));
        self.first_verdict = Some(Verdict::Duplicate);
    }
}
