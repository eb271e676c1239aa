//! The demo's clients: they send batches over gRPC, and take nothing for stored that was not acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::uri::PathAndQuery;
use lakegate_sources::grpc::proto::{DataRecord, IngestBatchRequest, IngestBatchResponse};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use super::events::{Event, Generator, Stream};
use crate::cli::client::Client;
use crate::cli::sql;

/// Records in one request.
const BATCH_RECORDS: usize = 200;

/// Requests under way at once.
pub(super) const CLIENTS: u64 = 8;

/// What all clients together have done.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Records handed to the server at least once.
    pub(super) sent: AtomicU64,
    /// Records acknowledged, or found stored after the server died before it could answer.
    pub(super) acknowledged: [AtomicU64; Stream::ALL.len()],
    /// Records that were in flight when the server died, and were found stored.
    pub(super) found_stored: AtomicU64,
    /// Records that were in flight when the server died, and had to be sent again.
    pub(super) sent_again: AtomicU64,
    /// Microseconds from request to answer.
    latencies: Mutex<Vec<u32>>,
}

impl Counts {
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }

    fn acknowledge(&self, stream: Stream, records: usize) {
        let place = Stream::ALL.iter().position(|s| *s == stream).and_then(|i| self.acknowledged.get(i));
        if let Some(count) = place {
            count.fetch_add(records as u64, Ordering::Relaxed);
        }
    }

    /// The median and the 99th percentile of all answers so far, in milliseconds.
    pub(super) fn latency_ms(&self) -> Option<(f64, f64)> {
        let mut sorted = self.latencies.lock().clone();
        sorted.sort_unstable();
        let at = |percent: usize| {
            sorted.get(sorted.len().saturating_sub(1) * percent / 100).map(|us| f64::from(*us) / 1000.0)
        };
        Some((at(50)?, at(99)?))
    }
}

/// One client: its connection, its events, its share of the rate.
pub(super) struct Sender {
    pub(super) channel: Channel,
    pub(super) http: Client,
    pub(super) counts: Arc<Counts>,
    pub(super) generator: Generator,
    pub(super) records_per_second: u64,
}

/// A connection that is made when it is first used, and made again when it breaks.
pub(super) fn connect(port: u16) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?;
    Ok(endpoint.connect_timeout(Duration::from_secs(2)).timeout(Duration::from_secs(20)).connect_lazy())
}

impl Sender {
    /// Sends until `deadline`; then every batch it began is acknowledged or found stored.
    pub(super) async fn run(mut self, deadline: Instant) {
        let pace = Duration::from_secs_f64(BATCH_RECORDS as f64 / self.records_per_second.max(1) as f64);
        let mut next = Instant::now();
        let mut turn = 0usize;
        while Instant::now() < deadline {
            // One order for every three page views.
            let stream = if turn.is_multiple_of(4) { Stream::Orders } else { Stream::PageViews };
            turn += 1;
            let events: Vec<Event> = (0..BATCH_RECORDS).map(|_| self.generator.next(stream)).collect();
            self.counts.sent.fetch_add(events.len() as u64, Ordering::Relaxed);
            self.deliver(stream, events).await;
            next += pace;
            let now = Instant::now();
            if next > now {
                tokio::time::sleep_until(next.into()).await;
            } else {
                next = now;
            }
        }
    }

    /// Sends a batch until all of it is stored. After a broken answer it asks what is stored before it sends again.
    async fn deliver(&mut self, stream: Stream, mut events: Vec<Event>) {
        while !events.is_empty() {
            let started = Instant::now();
            match self.send(stream, &events).await {
                Ok(answer) => {
                    let stored = usize::try_from(answer.accepted + answer.duplicates).unwrap_or(usize::MAX);
                    self.counts.acknowledge(stream, stored.min(events.len()));
                    self.counts.latencies.lock().push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
                    return;
                }
                Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(_) => {
                    let missing = self.missing(stream, &events).await;
                    let found = events.len() - missing.len();
                    self.counts.acknowledge(stream, found);
                    self.counts.found_stored.fetch_add(found as u64, Ordering::Relaxed);
                    self.counts.sent_again.fetch_add(missing.len() as u64, Ordering::Relaxed);
                    events = missing;
                }
            }
        }
    }

    async fn send(&mut self, stream: Stream, events: &[Event]) -> Result<IngestBatchResponse, tonic::Status> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = prost_types::Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        };
        let record = |event: &Event| DataRecord {
            event_id: event.id.clone(),
            event_type: event.kind.to_owned(),
            event_time: Some(now),
            payload: event.payload.clone().into_bytes().into(),
            ..DataRecord::default()
        };
        let request = IngestBatchRequest {
            records: events.iter().map(record).collect(),
            endpoint_id: stream.name().to_owned(),
            ..IngestBatchRequest::default()
        };
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
        let codec = tonic_prost::ProstCodec::default();
        let path = PathAndQuery::from_static("/storage.IngestionService/IngestBatch");
        grpc.unary(tonic::Request::new(request), path, codec).await.map(tonic::Response::into_inner)
    }

    /// Asks, until the server is there again, which of the events are not stored.
    async fn missing(&self, stream: Stream, events: &[Event]) -> Vec<Event> {
        let ids: Vec<String> = events.iter().map(|e| format!("'{}'", e.id)).collect();
        let query = format!("SELECT event_id FROM {} WHERE event_id IN ({})", stream.table(), ids.join(","));
        loop {
            match sql::fetch(&self.http, &query).await {
                Ok(batches) => {
                    let mut stored = std::collections::HashSet::new();
                    for batch in &batches {
                        let ids = batch
                            .columns()
                            .first()
                            .and_then(|c| arrow::compute::cast(c, &arrow::datatypes::DataType::Utf8).ok());
                        let ids = ids
                            .as_deref()
                            .and_then(|c| c.as_any().downcast_ref::<arrow::array::StringArray>().cloned());
                        stored.extend(ids.iter().flatten().flatten().map(str::to_owned));
                    }
                    return events.iter().filter(|e| !stored.contains(&e.id)).cloned().collect();
                }
                Err(crate::cli::client::ClientError::Refused { status: 400 | 404, .. }) => return events.to_vec(),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}
