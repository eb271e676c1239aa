//! Dead letters brought again after a fix.
//!
//! A letter goes through the gate like any request: its own record, under a request id that is made of the letter's, all
//! or nothing. So it is stored once however often it is brought, its event key is the one it had, and a letter that is
//! refused again makes no second letter. What became of it is a row in the tenant's table of marks: a letter without a
//! mark, or with refusals alone, is still to be brought. A crash between the two brings it again, and its request id
//! tells that it was there.

use bytes::Bytes;
use lakegate_model::{StreamName, TenantId};

use crate::api::{Client, Payloads, Source, Submission, SubmitError, Wire};
use crate::bytes::put_var;
use crate::gate::Gate;
use crate::streams::DEAD_LETTER_MARKS;

/// A letter as its table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its id.
    pub letter_id: String,
    /// The stream that it was for.
    pub stream: StreamName,
    /// The record, a `storage.DataRecord`.
    pub record: Bytes,
}

/// What became of a letter that was brought again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LetterOutcome {
    /// It is stored.
    Stored,
    /// It was there already.
    Duplicate,
    /// It was refused again, with the reason for people.
    Refused(String),
}

impl LetterOutcome {
    /// Its name, as marks keep it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Duplicate => "duplicate",
            Self::Refused(_) => "refused",
        }
    }
}

impl Gate {
    /// Brings a letter again.
    ///
    /// # Errors
    /// There is no room, or the gate is closed: it stays as it was. See [`SubmitError`].
    pub async fn replay_letter(&self, tenant: &TenantId, letter: &DeadLetter) -> Result<LetterOutcome, SubmitError> {
        let submission = Submission {
            principal: None,
            source: Source::Internal,
            wire: Wire::ProtoBatch,
            body: request_of(tenant, letter),
            correlation_id: None,
            client: Client::default(),
            in_order: false,
        };
        match self.submit(submission).await {
            Ok(outcome) if outcome.duplicates > 0 => Ok(LetterOutcome::Duplicate),
            Ok(_) => Ok(LetterOutcome::Stored),
            Err(SubmitError::Invalid { message, errors, .. }) => {
                let first = errors.into_iter().next().map(|error| error.refusal.message);
                Ok(LetterOutcome::Refused(first.unwrap_or(message)))
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps what became of letters.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub async fn mark_letters(
        &self,
        tenant: &TenantId,
        letters: &[(String, LetterOutcome)],
    ) -> Result<(), SubmitError> {
        let Ok(stream) = StreamName::new(DEAD_LETTER_MARKS) else { return Ok(()) };
        let (mut body, mut spans) = (Vec::new(), Vec::with_capacity(letters.len()));
        let at = |bytes: &Vec<u8>| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        for (letter_id, outcome) in letters {
            let message = match outcome {
                LetterOutcome::Refused(message) => Some(message.as_str()),
                LetterOutcome::Stored | LetterOutcome::Duplicate => None,
            };
            let mark = serde_json::json!({ "letter_id": letter_id, "outcome": outcome.name(), "message": message });
            let start = at(&body);
            body.extend_from_slice(mark.to_string().as_bytes());
            spans.push(start..at(&body));
        }
        let payloads = Payloads { tenant: Some(tenant.clone()), stream, spans, atomic: true, batch_id: String::new() };
        let submission = Submission {
            principal: None,
            source: Source::Internal,
            wire: Wire::Payloads(payloads),
            body: body.into(),
            correlation_id: None,
            client: Client::default(),
            in_order: false,
        };
        self.submit(submission).await.map(|_| ())
    }
}

/// A `storage.IngestBatchRequest` of the one record.
fn request_of(tenant: &TenantId, letter: &DeadLetter) -> Bytes {
    let id = format!("dead-letter:{}", letter.letter_id);
    let mut out = Vec::with_capacity(letter.record.len() + 128);
    let fields: [(u8, &[u8]); 4] = [
        (1, &letter.record),
        (2, tenant.as_str().as_bytes()),
        (3, letter.stream.as_str().as_bytes()),
        (5, id.as_bytes()),
    ];
    for (field, bytes) in fields {
        out.push(field << 3 | 2);
        put_var(&mut out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
    // atomic
    out.extend_from_slice(&[4 << 3, 1]);
    out.into()
}
