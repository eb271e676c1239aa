//! A gateway's part: frames to the log that is shared, and what was refused here counted here.

use std::collections::BTreeMap;
use std::sync::Arc;

use lakegate_env::hit_failpoint;
use lakegate_model::{ReasonCode, StreamKey, Tally};
use xxhash_rust::xxh3::xxh3_64;

use super::{RemoteError, RemoteLog, RemoteTicket};
use crate::api::{SubmissionOutcome, SubmitError};
use crate::batch::Shaped;
use crate::frame::{FrameBody, FrameHeader, FrameStream};
use crate::gate::Inner;
use crate::once::{OwnId, answer_again, outcome_of, take_out_all};
use crate::requests::{Answered, Kept};
use crate::submit::{Asked, frame_header, invalid};

/// A request whose frames are on their way.
pub(crate) struct Sent {
    tickets: Vec<RemoteTicket>,
    outcome: SubmissionOutcome,
    /// What is to be answered to the same request again, where it has an id.
    kept: Option<(u128, Kept)>,
}

impl Inner {
    /// Begins to write a request to the log that is shared. Does not wait, so that requests keep their order.
    pub(crate) fn send(
        &self,
        remote: &Arc<dyn RemoteLog>,
        asked: &Asked<'_>,
        shaped: &mut Shaped<'_>,
    ) -> Result<Sent, SubmitError> {
        let now_us = asked.rules.received_us;
        let own = OwnId::of(asked.request, shaped, asked.batch_id);
        let known = own.and_then(|own| self.requests.find(own.key, now_us).map(|kept| (kept, own)));
        let again = known.map(|(kept, own)| answer_again(&kept, own, asked.batch_id, shaped)).transpose()?;
        let mut rows = Vec::with_capacity(shaped.groups.len());
        for group in &mut shaped.groups {
            rows.push(group.take_rows().map_err(|error| SubmitError::Unavailable { message: error.to_string() })?);
        }
        let is_again = again.is_some();
        if is_again {
            take_out_all(&mut rows, shaped);
        }
        let outcome = again.unwrap_or_else(|| outcome_of(shaped, asked.batch_id));
        let own = own.filter(|_| !is_again);
        let header = frame_header(asked, shaped, &rows, own, &outcome);
        let mut tickets = Vec::new();
        if header.body != FrameBody::None {
            for (partition, streams) in by_partition(&header.streams, remote.partitions()) {
                let key = streams.first().map_or_else(String::new, |stream| stream.key.to_string());
                let copy = FrameHeader { streams, ..header.clone() };
                let frame = [copy.encode(), asked.submission.body.clone()];
                tickets.push(remote.clone().append(partition, &key, &frame).map_err(|error| match tickets.len() {
                    0 => not_written(error),
                    _ => SubmitError::Unavailable { message: format!("a part of the request was written: {error}") },
                })?);
            }
        }
        for group in &shaped.groups {
            let stream = &group.stream;
            stream.count_accepted(group.tally.accepted);
            stream.noticed.count(&group.notes, &stream.shaper.contract, stream.key.stream.as_str());
        }
        self.count_here(&header);
        let kept = own.map(|own| {
            let answered = Answered { owner: own.owner, ..header.answered };
            (own.key, Kept { answered, position: 0, received_us: now_us })
        });
        Ok(Sent { tickets, outcome, kept })
    }

    /// Waits until all frames are durable.
    pub(crate) async fn finish_sent(&self, sent: Sent) -> Result<SubmissionOutcome, SubmitError> {
        let Sent { tickets, mut outcome, kept } = sent;
        for ticket in tickets {
            outcome.position = ticket.await.map_err(not_written)?;
        }
        if let Some((key, kept)) = kept {
            self.requests.note(key, Kept { position: outcome.position, ..kept });
        }
        let hit = hit_failpoint("ingest.before_ack");
        hit.map_err(|error| SubmitError::Unavailable { message: error.to_string() })?;
        Ok(outcome)
    }

    /// What a request's sender was told at once, and no writer will hear of: counted by the frame of counts that our own
    /// log has for it, if it has room.
    fn count_here(&self, header: &FrameHeader) {
        let streams: Vec<FrameStream> = header.streams.iter().filter_map(told_here).collect();
        let records: u64 = streams.iter().map(|stream| stream.tally.received).sum();
        if records == 0 {
            return;
        }
        let counts = FrameHeader {
            body: FrameBody::None,
            batch_key: 0,
            answered: Answered::unknown(),
            streams,
            exceptions: Vec::new(),
            ..header.clone()
        };
        let _consistent = self.balance_gate.read();
        if self.log.append(u32::try_from(records).unwrap_or(u32::MAX), &[counts.encode()]).is_ok() {
            let mut balance = self.balance.lock();
            counts.streams.iter().for_each(|stream| balance.add(&stream.key, &stream.tally));
        }
    }
}

/// The part of a stream's counts that a writer cannot know.
fn told_here(stream: &FrameStream) -> Option<FrameStream> {
    let Tally { duplicate, rejected, .. } = stream.tally;
    let tally = Tally { received: duplicate + rejected, duplicate, rejected, ..Tally::default() };
    (tally.received > 0).then(|| FrameStream { tally, keys: Vec::new(), ..stream.clone() })
}

/// The streams that bring something, by the partition that each belongs to.
fn by_partition(streams: &[FrameStream], partitions: u32) -> BTreeMap<u32, Vec<FrameStream>> {
    let mut found: BTreeMap<u32, Vec<FrameStream>> = BTreeMap::new();
    for stream in streams {
        let Tally { accepted, dead_lettered, bytes, .. } = stream.tally;
        let tally = Tally { received: accepted + dead_lettered, accepted, dead_lettered, bytes, ..Tally::default() };
        if tally.received > 0 {
            let partition = partition_of(&stream.key, partitions);
            found.entry(partition).or_default().push(FrameStream { tally, ..stream.clone() });
        }
    }
    found
}

/// A stream's partition. It is never to change: duplicates are told by who reads the partition.
pub(super) fn partition_of(key: &StreamKey, partitions: u32) -> u32 {
    let hash = xxh3_64(format!("{}/{}", key.tenant, key.stream).as_bytes());
    u32::try_from(hash % u64::from(partitions.max(1))).unwrap_or(0)
}

fn not_written(error: RemoteError) -> SubmitError {
    match error {
        RemoteError::Away(message) => SubmitError::Unavailable { message },
        RemoteError::Full(message) => SubmitError::OutOfRoom { what: "queue", message, retry_after_ms: 100 },
        RemoteError::TooLarge(message) => invalid(ReasonCode::TooLarge, "", message),
    }
}
