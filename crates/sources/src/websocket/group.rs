//! Records of one socket that go to the gate together, and what they are answered.

use std::ops::Range;

use lakegate_ingest::{SubmissionOutcome, SubmitError};
use serde_json::json;

use super::bus::Told;
use super::message::{put_ack, put_error};
use crate::rest::{DUPLICATE, message_of};

/// The most records of a group: the gate lists the duplicates and faults of so many.
pub(crate) const RECORDS_MAX: usize = 1000;
/// The most bytes, except for a single record.
pub(crate) const BYTES_MAX: usize = 256 << 10;
/// The most faults that one answer about documents lists.
const LISTED_MAX: usize = 20;

/// Records that go together.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) body: Vec<u8>,
    pub(crate) spans: Vec<Range<u32>>,
    /// Of events: whom to answer.
    pub(crate) told: Vec<Told>,
}

impl Group {
    pub(crate) fn is_full(&self) -> bool {
        self.spans.len() >= RECORDS_MAX || self.body.len() >= BYTES_MAX
    }

    /// Adds a record, written by `put`.
    pub(crate) fn add(&mut self, put: impl FnOnce(&mut Vec<u8>) -> Option<Told>) {
        let start = self.body.len();
        let told = put(&mut self.body);
        // Far below 4 GiB: a message and a group are bounded.
        let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        self.spans.push(place(start)..place(self.body.len()));
        self.told.extend(told);
    }
}

/// A group that the gate has answered.
pub(crate) struct Done {
    pub(crate) told: Vec<Told>,
    pub(crate) result: Result<SubmissionOutcome, SubmitError>,
}

/// One answer about an event.
pub(crate) enum Verdict<'a> {
    Stored(&'a Told),
    Other,
}

impl Done {
    /// Writes an answer for each event, in order; `send` takes it with what it means.
    pub(crate) fn answer_events(&self, now_ms: u64, mut send: impl FnMut(&mut dyn FnMut(&mut Vec<u8>), Verdict<'_>)) {
        let outcome = match &self.result {
            Ok(outcome) => outcome,
            Err(error) => {
                let text = error.to_string();
                for told in &self.told {
                    send(&mut |out| put_error(out, Some(&told.event_id), &text, now_ms), Verdict::Other);
                }
                return;
            }
        };
        let mut errors = outcome.errors.iter().peekable();
        let mut duplicates = outcome.duplicate_indexes.iter().peekable();
        for (index, told) in (0_u32..).zip(&self.told) {
            if let Some(error) = errors.next_if(|error| error.index == index) {
                let text = message_of(&error.refusal, error.dead_lettered);
                send(&mut |out| put_error(out, Some(&told.event_id), &text, now_ms), Verdict::Other);
            } else if duplicates.next_if(|found| **found == index).is_some() {
                send(&mut |out| put_ack(out, &told.event_id, Some(DUPLICATE), now_ms), Verdict::Other);
            } else {
                send(&mut |out| put_ack(out, &told.event_id, None, now_ms), Verdict::Stored(told));
            }
        }
    }
}

/// What became of a socket's documents since it was opened.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    accepted: u64,
    duplicates: u64,
    skipped: u64,
    rejected: u64,
}

impl Counts {
    /// Counts a group and writes the answer: how many are durable in all.
    pub(crate) fn answer(&mut self, out: &mut Vec<u8>, done: &Done) {
        let outcome = match &done.result {
            Ok(outcome) => outcome,
            Err(error) => {
                let code = match error {
                    SubmitError::OutOfRoom { .. } | SubmitError::Unavailable { .. } => "retry",
                    _ => "refused",
                };
                let answer =
                    json!({ "type": "error", "code": code, "error": error.to_string(), "durable": self.durable() });
                out.extend_from_slice(answer.to_string().as_bytes());
                return;
            }
        };
        self.accepted += outcome.accepted;
        self.duplicates += outcome.duplicates;
        self.skipped += outcome.dead_lettered;
        self.rejected += outcome.rejected;
        let mut answer = json!({
            "type": "ack",
            "durable": self.durable(),
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "skipped": self.skipped,
            "rejected": self.rejected,
        });
        let errors = outcome.errors.iter().take(LISTED_MAX);
        let errors: Vec<_> = errors.map(|error| message_of(&error.refusal, error.dead_lettered)).collect();
        if let (false, Some(members)) = (errors.is_empty(), answer.as_object_mut()) {
            members.insert("errors".to_owned(), errors.into());
        }
        out.extend_from_slice(answer.to_string().as_bytes());
    }

    /// Documents that are on disk: in their table, there before, or set aside.
    fn durable(&self) -> u64 {
        self.accepted + self.duplicates + self.skipped
    }
}
