//! Notes what became of each record of a request: counts, errors, dead letters.

use std::sync::Arc;

use lakegate_memtable::Value;
use lakegate_model::{OnConflict, ReasonCode, RecordError, Refusal, StreamKey, Tally, Verdict};

use crate::batch::{ERRORS_LISTED_MAX, FEW, Group, Route, RowKey, Rules, Seen, Shaped, Wanted, index_number};
use crate::dead_letters::{self, Origin};
use crate::duplicates::{key_of, with_content};
use crate::frame::{Exception, ExceptionKind, assigned_id};
use crate::growth::Wishes;
use crate::noticed::RequestNotes;
use crate::shape::RecordContext;
use crate::streams::{DEAD_LETTERS, Stream};
use crate::wire::BatchRequest;

impl<'a> Shaped<'a> {
    pub(crate) fn of(request: &BatchRequest<'_>) -> Self {
        let capacity = request.records.len();
        Self { kind: request.kind, few: capacity <= FEW, capacity, ..Self::default() }
    }

    /// The version of the stream that this request began with: all its records are of one.
    pub(crate) fn pinned(&self, stream: Arc<Stream>) -> Arc<Stream> {
        let same = |group: &&Group<'_>| {
            group.stream.key == stream.key && group.stream.shaper.contract.part == stream.shaper.contract.part
        };
        match self.groups.iter().find(|group| Arc::ptr_eq(&group.stream, &stream)) {
            Some(_) => stream,
            None => self.groups.iter().find(same).map_or(stream, |group| group.stream.clone()),
        }
    }

    /// Notes what a record brought beside its row.
    #[inline]
    pub(crate) fn note_marks(&mut self, group: usize, rules: &Rules<'_>, context: &mut RecordContext<'_>) {
        if context.marks.is_empty() {
            return;
        }
        let mut marks = std::mem::take(&mut context.marks);
        let Some(group) = self.groups.get_mut(group) else { return };
        group.notes.add(&marks);
        if self.may_grow {
            group.wishes.add(std::mem::take(&mut marks.wanted), &group.stream, &rules.streams.growth);
        }
    }

    pub(crate) fn group_of(&mut self, stream: &Arc<Stream>) -> usize {
        if let Some(at) = self.groups.iter().position(|group| Arc::ptr_eq(&group.stream, stream)) {
            return at;
        }
        self.groups.push(Group {
            stream: stream.clone(),
            few: Vec::new(),
            many: None,
            columns: None,
            keys: Vec::new(),
            tally: Tally::default(),
            notes: RequestNotes::default(),
            wishes: Wishes::default(),
        });
        self.groups.len() - 1
    }

    pub(crate) fn note_key(&mut self, group: usize, index: usize, row: &[Value<'_>], seen: &Seen<'_>) {
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
    pub(crate) fn note(
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

    pub(crate) fn note_first(&mut self, rules: &Rules<'_>, event_id: &str, verdict: Verdict) {
        let assigned = || assigned_id(rules.received_us, rules.id_base, 0).hyphenated().to_string();
        self.first_event_id = Some(if event_id.is_empty() { assigned() } else { event_id.to_owned() });
        self.first_verdict = Some(verdict);
    }

    pub(crate) fn note_verdict(
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
    pub(crate) fn set_aside_again(
        &mut self,
        index: usize,
        bytes: &'a [u8],
        key: &StreamKey,
        rules: &Rules<'_>,
        wanted: &Wanted,
        refusal: &Refusal,
    ) {
        if wanted.keys().any(|wanted| wanted.tenant == key.tenant && wanted.stream.as_str() == DEAD_LETTERS) {
            self.set_aside(index, bytes, key, rules, refusal);
        }
    }

    pub(crate) fn keep_again(&mut self, stream: &Arc<Stream>, row: Vec<Value<'a>>) {
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

    pub(crate) fn refuse_unroutable(
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
