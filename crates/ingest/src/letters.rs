//! Dead letters brought again after a fix.
//!
//! A letter goes through the gate like any request: its own record, under a request id that is made of the letter's, all
//! or nothing. So it is stored once however often it is brought, its event key is the one it had, and a letter that is
//! refused again makes no second letter. What became of it is a row in the tenant's table of marks: a letter without a
//! mark, or with refusals alone, is still to be brought. A crash between the two brings it again, and its request id
//! tells that it was there.
//!
//! Letters that nobody will want are removed for good from their table, in one commit that says how many they were.

use bytes::Bytes;
use lakegate_lake::{Condition, LakeError, Op, RemovedOutcome, RewriteError, Scalar};
use lakegate_model::{StreamName, TableName, TenantId};

use crate::api::{Client, Payloads, Source, Submission, SubmitError, Wire};
use crate::bytes::put_var;
use crate::gate::Gate;
use crate::streams::{DEAD_LETTER_MARKS, DEAD_LETTERS};

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

/// Which letters are to be removed: those for which all that is said holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// For which stream.
    pub stream: Option<String>,
    /// For which reason.
    pub reason: Option<String>,
    /// Of which id.
    pub letter_id: Option<String>,
    /// Received then or later, in microseconds since 1970.
    pub since_us: Option<i64>,
    /// Received before.
    pub until_us: i64,
}

impl LetterFilter {
    fn conditions(&self) -> Vec<Condition> {
        let condition = |column: &str, op, value| Condition { column: column.to_owned(), op, value };
        let texts = [("endpoint_id", &self.stream), ("reason", &self.reason), ("letter_id", &self.letter_id)];
        let texts = texts.into_iter().filter_map(|(column, text)| Some((column, text.clone()?)));
        let mut all: Vec<_> = texts.map(|(column, text)| condition(column, Op::Eq, Scalar::Text(text))).collect();
        all.extend(self.since_us.map(|us| condition("received_at", Op::GreaterEq, Scalar::Micros(us))));
        all.push(condition("received_at", Op::Less, Scalar::Micros(self.until_us)));
        all
    }
}

/// Letters could not be removed; all are still there, unless the text says that it is not known.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// Letters that are in memory could not be brought into their table before.
    #[error("letters that are in memory could not be brought into their table before: {0}")]
    NotFlushed(String),
    /// The table could not be asked for or written anew.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
}

impl From<LakeError> for PurgeError {
    fn from(error: LakeError) -> Self {
        Self::Rewrite(error.into())
    }
}

impl Gate {
    /// Removes a tenant's letters for good; those that come meanwhile stay. What became of letters that were brought
    /// again stays known.
    ///
    /// # Errors
    /// See [`PurgeError`].
    pub async fn purge_letters(&self, tenant: &TenantId, which: &LetterFilter) -> Result<RemovedOutcome, PurgeError> {
        let Ok(name) = TableName::new(tenant.as_str(), DEAD_LETTERS) else { return Ok(RemovedOutcome::default()) };
        if let Some(unit) = self.inner.streams.units().into_iter().find(|unit| unit.table == name) {
            self.inner.freeze(&unit);
            let flushed = self.inner.flush_frozen(&unit).await;
            flushed.map_err(|error| PurgeError::NotFlushed(error.to_string()))?;
        }
        let Some(table) = self.inner.lake.find_table(&name).await? else { return Ok(RemovedOutcome::default()) };
        Ok(table.remove_rows(&which.conditions()).await?)
    }

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
