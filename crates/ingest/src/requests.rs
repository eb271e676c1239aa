//! Requests that brought an id of their own: the same one again is answered as the first was, and stores nothing.
//!
//! A request is told by its tenants and its id; its content, by a hash of what its records say. What it was answered
//! lies in its frame, as bytes, and in files once the frame is trimmed ([`crate::keys`]). In memory the answers are bounded
//! in bytes: past the bound the tenant with the most loses its oldest, and that is counted.

use std::collections::VecDeque;

use hashbrown::HashMap;
use lakegate_model::{ReasonCode, RecordError, Refusal, Verdict};
use parking_lot::Mutex;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

use crate::api::SubmissionOutcome;
use crate::bytes::{Malformed, Reader, put_text, put_var};
use crate::wire::{BatchRequest, WireRecord};

/// What an answer takes in memory besides its bytes.
const OVERHEAD_BYTES: usize = 120;

/// What a frame says about the request's own id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answered {
    /// Hash of its tenants.
    pub(crate) owner: u64,
    /// Hash of what it said; 0: not known.
    pub(crate) content: u64,
    /// What it was answered, but for the position. Empty: not known.
    pub(crate) answer: Vec<u8>,
}

/// A request that was answered before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) answered: Answered,
    pub(crate) position: u64,
    pub(crate) received_us: i64,
}

#[derive(Default)]
struct Queue {
    order: VecDeque<(i64, u128)>,
    bytes: usize,
}

#[derive(Default)]
struct Inner {
    by_key: HashMap<u128, Kept>,
    owners: HashMap<u64, Queue>,
    bytes: usize,
}

/// The requests of all tenants.
pub(crate) struct Requests {
    inner: Mutex<Inner>,
    /// Held from the look to the noting.
    pub(crate) gate: Mutex<()>,
    window_us: i64,
    bytes_max: usize,
}

/// The key of a request's own id, and the hash of whose it is.
pub(crate) fn request_key(tenants: &str, id: &str) -> (u128, u64) {
    (xxh3_128(format!("{tenants}/{id}").as_bytes()).max(1), xxh3_64(tenants.as_bytes()))
}

impl Requests {
    pub(crate) fn new(window_us: i64, bytes_max: usize) -> Self {
        Self { inner: Mutex::default(), gate: Mutex::new(()), window_us, bytes_max }
    }

    /// What the request was answered within the window before `now_us`.
    pub(crate) fn find(&self, key: u128, now_us: i64) -> Option<Kept> {
        let inner = self.inner.lock();
        inner.by_key.get(&key).filter(|kept| kept.received_us.saturating_add(self.window_us) >= now_us).cloned()
    }

    /// Notes what a request was answered.
    pub(crate) fn note(&self, key: u128, kept: Kept) {
        let mut inner = self.inner.lock();
        let (owner, time_us, bytes) = (kept.answered.owner, kept.received_us, size_of(&kept));
        if inner.by_key.contains_key(&key) {
            inner.remove(key);
        }
        inner.by_key.insert(key, kept);
        inner.bytes += bytes;
        let queue = inner.owners.entry(owner).or_default();
        queue.bytes += bytes;
        queue.order.push_back((time_us, key));
        while inner.bytes > self.bytes_max {
            let Some(largest) = inner.largest() else { return };
            inner.pop(largest);
            metrics::counter!("lakegate_request_ids_forgotten_early_total").increment(1);
        }
    }

    /// Forgets what is over.
    pub(crate) fn sweep(&self, now_us: i64) {
        let mut inner = self.inner.lock();
        let owners: Vec<u64> = inner.owners.keys().copied().collect();
        for owner in owners {
            let is_over = |queue: &Queue| {
                queue.order.front().is_some_and(|(time, _)| time.saturating_add(self.window_us) < now_us)
            };
            while inner.owners.get(&owner).is_some_and(is_over) {
                inner.pop(owner);
            }
        }
        inner.owners.retain(|_, queue| !queue.order.is_empty());
    }

    /// How long an answer is kept, in microseconds.
    pub(crate) fn window_us(&self) -> i64 {
        self.window_us
    }
}

impl Inner {
    fn largest(&self) -> Option<u64> {
        let waiting = self.owners.iter().filter(|(_, queue)| !queue.order.is_empty());
        waiting.max_by_key(|(owner, queue)| (queue.bytes, **owner)).map(|(owner, _)| *owner)
    }

    /// Forgets the owner's oldest.
    fn pop(&mut self, owner: u64) {
        let oldest = self.owners.get_mut(&owner).and_then(|queue| queue.order.pop_front());
        let Some((time_us, key)) = oldest else { return };
        // Noted again since then: the later note has a place of its own.
        if self.by_key.get(&key).is_some_and(|kept| kept.received_us == time_us) {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: u128) {
        let Some(kept) = self.by_key.remove(&key) else { return };
        let bytes = size_of(&kept);
        self.bytes -= bytes;
        if let Some(queue) = self.owners.get_mut(&kept.answered.owner) {
            queue.bytes -= bytes;
        }
    }
}

fn size_of(kept: &Kept) -> usize {
    kept.answered.answer.len() + OVERHEAD_BYTES
}

/// Hash of what a request's records say. The order of attributes does not count: senders' maps have none.
pub(crate) fn content_of(request: &BatchRequest<'_>) -> u64 {
    let mut hash = Xxh3::new();
    let mut put = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    put(request.tenant_id);
    put(request.endpoint_id);
    put(&[u8::from(request.atomic)]);
    for bytes in &request.records {
        let Ok(record) = WireRecord::read(request.kind, bytes) else {
            put(bytes);
            continue;
        };
        for field in [record.tenant_id, record.endpoint_id, record.event_id, record.payload] {
            put(field);
        }
        put(record.content_type);
        put(record.event_type);
        put(&record.event_time_us.map_or([0; 9], |time| {
            let [a, b, c, d, e, f, g, h] = time.to_le_bytes();
            [1, a, b, c, d, e, f, g, h]
        }));
        put(&record.version.to_le_bytes());
        let attributes = record.attributes.iter().map(|entry| xxh3_64(entry)).fold(0_u64, u64::wrapping_add);
        put(&attributes.to_le_bytes());
    }
    hash.digest().max(1)
}

/// An outcome as bytes, but for its id and position.
pub(crate) fn encode_answer(outcome: &SubmissionOutcome) -> Vec<u8> {
    let mut out = Vec::with_capacity(32 + outcome.errors.len() * 64);
    for count in [outcome.accepted, outcome.duplicates, outcome.rejected, outcome.dead_lettered] {
        put_var(&mut out, count);
    }
    put_text(&mut out, outcome.first_event_id.as_deref().unwrap_or_default());
    match &outcome.first_verdict {
        Verdict::Accepted => out.push(0),
        Verdict::Duplicate => out.push(1),
        Verdict::Rejected(refusal) => {
            out.push(2);
            put_refusal(&mut out, refusal);
        }
        Verdict::DeadLettered(refusal) => {
            out.push(3);
            put_refusal(&mut out, refusal);
        }
    }
    put_var(&mut out, outcome.errors.len() as u64);
    for error in &outcome.errors {
        put_var(&mut out, u64::from(error.index));
        put_text(&mut out, &error.event_id);
        out.push(u8::from(error.dead_lettered));
        put_refusal(&mut out, &error.refusal);
    }
    put_var(&mut out, outcome.duplicate_indexes.len() as u64);
    for index in &outcome.duplicate_indexes {
        put_var(&mut out, u64::from(*index));
    }
    out
}

fn put_refusal(out: &mut Vec<u8>, refusal: &Refusal) {
    out.push(refusal.code as u8);
    put_text(out, refusal.field.as_deref().unwrap_or_default());
    put_text(out, &refusal.message);
}

/// The outcome that [`encode_answer`] wrote.
pub(crate) fn decode_answer(batch_id: &str, position: u64, bytes: &[u8]) -> Result<SubmissionOutcome, Malformed> {
    let mut reader = Reader::new(bytes);
    let [accepted, duplicates, rejected, dead_lettered] = [reader.var()?, reader.var()?, reader.var()?, reader.var()?];
    let first = reader.text()?;
    let first_event_id = (!first.is_empty()).then(|| first.to_owned());
    let first_verdict = match reader.array()? {
        [0] => Verdict::Accepted,
        [1] => Verdict::Duplicate,
        [2] => Verdict::Rejected(read_refusal(&mut reader)?),
        _ => Verdict::DeadLettered(read_refusal(&mut reader)?),
    };
    let errors = (0..reader.count()?).map(|_| read_error(&mut reader)).collect::<Result<_, _>>()?;
    let duplicate_indexes = (0..reader.count()?).map(|_| reader.var32()).collect::<Result<_, _>>()?;
    Ok(SubmissionOutcome {
        batch_id: batch_id.to_owned(),
        accepted,
        duplicates,
        rejected,
        dead_lettered,
        errors,
        duplicate_indexes,
        position,
        first_event_id,
        first_verdict,
    })
}

fn read_error(reader: &mut Reader<'_>) -> Result<RecordError, Malformed> {
    let index = reader.var32()?;
    let event_id = reader.text()?.to_owned();
    let [dead_lettered] = reader.array()?;
    Ok(RecordError { index, event_id, dead_lettered: dead_lettered != 0, refusal: read_refusal(reader)? })
}

fn read_refusal(reader: &mut Reader<'_>) -> Result<Refusal, Malformed> {
    let [code] = reader.array()?;
    let code = ReasonCode::from_number(code).ok_or(Malformed("reason"))?;
    let field = reader.text()?;
    let field = (!field.is_empty()).then(|| field.to_owned());
    Ok(Refusal { code, field, message: reader.text()?.to_owned() })
}

impl Kept {
    /// Puts an entry of a file of answers.
    pub(crate) fn put(&self, key: u128, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(64 + self.answered.answer.len());
        body.extend_from_slice(&key.to_le_bytes());
        body.extend_from_slice(&self.received_us.to_le_bytes());
        body.extend_from_slice(&self.position.to_le_bytes());
        self.answered.put(&mut body);
        out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&body);
    }

    /// The entries of a block of such a file.
    pub(crate) fn all(body: &[u8]) -> impl Iterator<Item = (u128, Self)> {
        let mut reader = Reader::new(body);
        std::iter::from_fn(move || Self::read(&mut reader).ok())
    }

    fn read(reader: &mut Reader<'_>) -> Result<(u128, Self), Malformed> {
        let length = usize::try_from(u32::from_le_bytes(reader.array()?)).map_err(|_| Malformed("length"))?;
        let mut entry = Reader::new(reader.take(length)?);
        let key = u128::from_le_bytes(entry.array()?);
        let received_us = i64::from_le_bytes(entry.array()?);
        let position = u64::from_le_bytes(entry.array()?);
        Ok((key, Self { answered: Answered::read(&mut entry)?, position, received_us }))
    }
}

impl Answered {
    /// Of an id whose frame says no more than that it was there.
    pub(crate) fn unknown() -> Self {
        Self { owner: 0, content: 0, answer: Vec::new() }
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.owner.to_le_bytes());
        out.extend_from_slice(&self.content.to_le_bytes());
        put_var(out, self.answer.len() as u64);
        out.extend_from_slice(&self.answer);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let owner = u64::from_le_bytes(reader.array()?);
        let content = u64::from_le_bytes(reader.array()?);
        let length = reader.count()?;
        Ok(Self { owner, content, answer: reader.take(length)?.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing;

    fn kept(owner: u64, received_us: i64) -> Kept {
        Kept { answered: Answered { owner, content: 1, answer: vec![7; 80] }, position: 3, received_us }
    }

    #[test]
    fn an_answer_reads_back_as_it_was_given_and_from_a_file_too() {
        let refusal = Refusal { code: ReasonCode::WrongType, field: Some("a.b".into()), message: "é".into() };
        let error = RecordError { index: 300, event_id: "x".into(), dead_lettered: true, refusal: refusal.clone() };
        let outcome = SubmissionOutcome {
            batch_id: "b".into(),
            accepted: 1,
            duplicates: 200,
            rejected: 3,
            dead_lettered: 4,
            errors: vec![error.clone(), RecordError { refusal: Refusal { field: None, ..refusal.clone() }, ..error }],
            duplicate_indexes: vec![0, 5, 1 << 30],
            position: 77,
            first_event_id: Some("id".into()),
            first_verdict: Verdict::DeadLettered(refusal),
        };
        let answer = encode_answer(&outcome);
        assert_eq!(decode_answer("b", 77, &answer).unwrap(), outcome);
        for end in 0..answer.len() {
            assert!(decode_answer("b", 77, &answer[..end]).is_err(), "cut at {end}");
        }
        let mut bytes = Vec::new();
        kept(1, 2).put(8, &mut bytes);
        kept(3, 4).put(9, &mut bytes);
        assert_eq!(Kept::all(&bytes).collect::<Vec<_>>(), [(8, kept(1, 2)), (9, kept(3, 4))]);
    }

    #[test]
    fn s47_answers_are_bounded_in_bytes_and_a_flood_takes_its_own_tenants_first() {
        let requests = Requests::new(1_000_000, 20_000);
        requests.note(1, kept(1, 0));
        for n in 2..1000 {
            requests.note(n, kept(2, i64::try_from(n).unwrap()));
            assert!(requests.inner.lock().bytes <= 20_000);
        }
        assert!(requests.find(1, 0).is_some() && requests.find(2, 0).is_none() && requests.find(999, 0).is_some());
        assert!(requests.find(1, 1_000_001).is_none(), "its window is over");
        requests.sweep(3_000_000);
        let inner = requests.inner.lock();
        assert_eq!((inner.bytes, inner.by_key.len(), inner.owners.len()), (0, 0, 0));
    }

    #[test]
    fn f51_requests_differ_by_what_they_say_and_not_by_the_order_of_attributes() {
        let with = |payload: &[u8], attributes: &[&[u8]]| {
            let mut record = testing::record("s", "1", payload);
            attributes.iter().for_each(|entry| testing::field(&mut record, 9, entry));
            content_of(&BatchRequest::read(&testing::batch(&[record], false)).unwrap())
        };
        let (one, two): (&[u8], &[u8]) = (b"\x0a\x01a\x12\x01b", b"\x0a\x01c\x12\x01d");
        assert_eq!(with(b"{}", &[one, two]), with(b"{}", &[two, one]));
        assert_ne!(with(b"{}", &[one]), with(b"{}", &[two]));
        assert_ne!(with(b"{}", &[]), with(b"{ }", &[]));
    }
}
