//! Rows that could not be taken: set aside in the tenant's dead letters, with the file, the row and its raw text.
//!
//! They go through the gate and its log as rows of the dead-letter table, in a request with an id made of the file and
//! the place in it: an import that is resumed sets no row aside twice.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use lakegate_formats::RAW_BYTES;
use lakegate_memtable::Value;
use lakegate_model::{Refusal, StreamKey, StreamName, Tally};
use serde_json::json;

use crate::api::{Client, Payloads, Source, Submission, SubmitError, Wire};
use crate::batch::{Rules, Shaped, context, own_origin, shape_one};
use crate::duplicates::Claim;
use crate::gate::{Gate, Inner};
use crate::streams::DEAD_LETTERS;
use crate::streams::Stream;
use crate::submit::Asked;
use crate::wire::{BatchRequest, WireRecord};

/// The most letters of one request, and about the most bytes.
const LETTERS_MAX: usize = 1000;
const REQUEST_BYTES: usize = 4 << 20;
/// How often a full gate is asked again before the import gives up, and how long it waits.
const ATTEMPTS: u32 = 600;

/// One row.
#[derive(Debug, Clone)]
pub(crate) struct Letter {
    /// The row's number in the file, from 0.
    pub(crate) row: u64,
    pub(crate) raw: Bytes,
    pub(crate) refusal: Refusal,
}

/// Where rows came from.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    pub(crate) key: StreamKey,
    pub(crate) source: Source,
    pub(crate) file: u128,
    /// The file's name, for people.
    pub(crate) place: String,
    /// What its rows are called, and the number of the first.
    pub(crate) unit: &'static str,
    pub(crate) first: u64,
    pub(crate) correlation_id: Option<String>,
}

impl Gate {
    /// Sets rows aside; durable when this returns.
    pub(crate) async fn set_aside(&self, sender: &Sender, letters: &[Letter]) -> Result<(), SubmitError> {
        for letters in requests_of(letters) {
            let batch_id = match letters.first() {
                Some(first) => format!("import-{:032x}-{}-{}", sender.file, first.row, letters.len()),
                None => continue,
            };
            let mut attempt = 0;
            loop {
                match self.inner.append_letters(sender, letters, &batch_id) {
                    Err(SubmitError::OutOfRoom { retry_after_ms, .. }) if attempt < ATTEMPTS => {
                        attempt += 1;
                        tokio::time::sleep(Duration::from_millis(retry_after_ms)).await;
                    }
                    Err(error) => return Err(error),
                    Ok(ticket) => {
                        let unavailable = |message: String| SubmitError::Unavailable { message };
                        ticket.durable().await.map_err(|error| unavailable(error.to_string()))?;
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Letters in as many as one request takes.
fn requests_of(mut letters: &[Letter]) -> Vec<&[Letter]> {
    let mut requests = Vec::new();
    while !letters.is_empty() {
        let mut bytes = 0;
        let fits = |letter: &&Letter| {
            let first = bytes == 0;
            // Base64 of the raw text, twice, and what is around it.
            bytes += letter.raw.len() * 8 / 3 + 512;
            first || bytes <= REQUEST_BYTES
        };
        let taken = letters.iter().take(LETTERS_MAX).take_while(fits).count().max(1);
        let (request, rest) = letters.split_at(taken);
        requests.push(request);
        letters = rest;
    }
    requests
}

impl Inner {
    /// Appends a request of letters; durable when the ticket is.
    pub(crate) fn append_letters(
        &self,
        sender: &Sender,
        letters: &[Letter],
        batch_id: &str,
    ) -> Result<lakegate_log::Ticket, SubmitError> {
        let unavailable = |message: String| SubmitError::Unavailable { message };
        let received_us = self.clock.wall_us();
        let (body, spans) = documents(sender, letters, received_us);
        let stream = StreamName::new(DEAD_LETTERS).map_err(|error| unavailable(error.to_string()))?;
        let request = BatchRequest::of_payloads(&body, &spans, sender.key.tenant.as_str(), DEAD_LETTERS);
        let request = request.map_err(|error| unavailable(error.to_string()))?;
        let rules = Rules {
            streams: &self.streams,
            tenant: None,
            principal: None,
            source: sender.source.name(),
            received_us,
            id_base: self.next_id_base(),
            payload_bytes_max: usize::MAX,
            atomic: false,
            in_order: true,
            client_address: "".into(),
            user_agent: "",
            correlation_id: "",
            lake: None,
        };
        let target =
            self.streams.dead_letters_of(&sender.key.tenant).map_err(|refusal| unavailable(refusal.message))?;
        let mut shaped =
            Shaped::of_letters(&request, &rules, &target).map_err(|refusal| unavailable(refusal.message))?;
        let count = letters.len() as u64;
        shaped.count_elsewhere(&sender.key, Tally { received: count, dead_lettered: count, ..Tally::default() });
        let tenant = Some(sender.key.tenant.clone());
        let submission = Submission {
            principal: None,
            source: sender.source,
            wire: Wire::Payloads(Payloads { tenant, stream, spans, atomic: false, batch_id: batch_id.to_owned() }),
            body: body.clone(),
            correlation_id: sender.correlation_id.clone(),
            client: Client::default(),
            in_order: true,
        };
        let _permit = self.admit(body.len())?;
        // When it was received is not what tells two requests apart: a resumed import brings the same rows later.
        let raw: Vec<&[u8]> = letters.iter().map(|letter| letter.raw.as_ref()).collect();
        let told_by = BatchRequest { records: raw, ..BatchRequest::default() };
        let asked = Asked { submission: &submission, request: &told_by, rules: &rules, batch_id };
        self.append(&asked, &mut shaped, &Claim::default()).map(|appended| appended.ticket)
    }
}

impl<'a> Shaped<'a> {
    /// Payloads that are rows of the dead-letter table already, as they are written and as replay finds them.
    pub(crate) fn of_letters(
        request: &BatchRequest<'a>,
        rules: &Rules<'_>,
        letters: &Arc<Stream>,
    ) -> Result<Self, Refusal> {
        let mut shaped = Self::of(request);
        let group = shaped.group_of(letters);
        let name = |text: &str| Value::Owned(text.into());
        let mut context =
            context(rules, name(letters.key.tenant.as_str()), name(letters.key.stream.as_str()), own_origin(rules));
        for (index, bytes) in request.records.iter().copied().enumerate() {
            let mut row = Vec::new();
            let read = WireRecord::read(request.kind, bytes);
            match (shape_one(index, read, letters, rules, &mut context, &mut row).refusal, shaped.groups.get_mut(group))
            {
                (Some(refusal), _) => return Err(refusal),
                (None, Some(group)) => group.few.push(row),
                (None, None) => {}
            }
        }
        Ok(shaped)
    }

    /// Counts records for a stream that none of the rows goes to.
    pub(crate) fn count_elsewhere(&mut self, key: &StreamKey, tally: Tally) {
        self.total.add(&tally);
        self.unroutable.push((key.clone(), tally));
    }
}

/// The letters as JSON documents of the dead-letter table's columns.
fn documents(sender: &Sender, letters: &[Letter], received_us: i64) -> (Bytes, Vec<Range<u32>>) {
    let (mut body, mut spans) = (Vec::new(), Vec::with_capacity(letters.len()));
    for letter in letters {
        let Letter { row, raw, refusal } = letter;
        let Sender { place, unit, first, .. } = sender;
        let raw = STANDARD.encode(raw.get(..raw.len().min(RAW_BYTES)).unwrap_or_default());
        let document = json!({
            "tenant_id": sender.key.tenant,
            "endpoint_id": sender.key.stream,
            "received_at": received_us,
            "source": sender.source.name(),
            "reason": refusal.code.as_str(),
            "field": refusal.field,
            "message": format!("{place}, {unit} {}: {}", row + first, refusal.message),
            "payload": raw,
            "record": raw,
            "attempts": 1,
        });
        let start = u32::try_from(body.len()).unwrap_or(u32::MAX);
        body.extend_from_slice(document.to_string().as_bytes());
        spans.push(start..u32::try_from(body.len()).unwrap_or(u32::MAX));
    }
    (body.into(), spans)
}
