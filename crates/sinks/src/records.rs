//! Delivering records one by one: lanes that keep the order of each key, and a window that tells how far all is done.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use lakegate_ingest::Room;
use tokio::time::Instant;

use crate::consumer::{Consumer, RunError};
use crate::kept::Counts;
use crate::outgoing::{order_of, parcels};
use crate::route::{Delivered, Parcel, Route};
use crate::source::{Chunk, End};

/// The position is kept at most so often.
const KEEP_EVERY: Duration = Duration::from_millis(200);

/// A chunk whose records are under way.
struct Batch {
    end: End,
    received_us: i64,
    left: usize,
    bytes: usize,
    records: usize,
    counts: Counts,
}

/// Records that are read and not delivered.
struct Window {
    /// The oldest first; `first` is the number of the oldest.
    batches: VecDeque<Batch>,
    first: u64,
    records: usize,
    bytes: usize,
    lanes: Vec<Lane>,
    turn: usize,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<(u64, Parcel)>,
    busy: bool,
}

struct Done {
    lane: usize,
    batch: u64,
    parcel: Parcel,
    outcome: Delivered,
}

impl Window {
    fn new(lanes: usize) -> Self {
        let lanes = std::iter::repeat_with(Lane::default).take(lanes.max(1)).collect();
        Self { batches: VecDeque::new(), first: 0, records: 0, bytes: 0, lanes, turn: 0 }
    }

    fn take(&mut self, chunk: Chunk, skipped: bool, order: &[Vec<String>]) {
        let (records, bytes) = (chunk.records(), chunk.bytes());
        let mut counts = Counts { matched: records as u64, ..Counts::default() };
        let number = self.first + self.batches.len() as u64;
        let left = if skipped { 0 } else { records };
        if skipped {
            counts.skipped = records as u64;
        } else {
            for parcel in chunk.rows.iter().flat_map(parcels) {
                let lane = self.lane_of(&parcel, order);
                if let Some(lane) = self.lanes.get_mut(lane) {
                    lane.waiting.push_back((number, parcel));
                }
            }
            self.records += records;
            self.bytes += bytes;
        }
        let (end, received_us) = (chunk.end, chunk.received_us);
        let (records, bytes) = if skipped { (0, 0) } else { (records, bytes) };
        self.batches.push_back(Batch { end, received_us, left, bytes, records, counts });
    }

    fn lane_of(&mut self, parcel: &Parcel, order: &[Vec<String>]) -> usize {
        let lanes = self.lanes.len();
        match order_of(parcel, order) {
            Some(key) => {
                let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
                usize::try_from(hash % lanes as u64).unwrap_or(0)
            }
            None => {
                self.turn = (self.turn + 1) % lanes;
                self.turn
            }
        }
    }

    fn batch(&mut self, number: u64) -> Option<&mut Batch> {
        self.batches.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// The oldest batch, once all of it is done.
    fn pop(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front_if(|batch| batch.left == 0)?;
        self.first += 1;
        self.records -= batch.records;
        self.bytes -= batch.bytes;
        Some(batch)
    }
}

impl Consumer {
    pub(crate) async fn run_records(&mut self, route: Arc<Route>) -> Result<Infallible, RunError> {
        route.check(&self.ground.shared.hosts).await.map_err(RunError::Target)?;
        let (batch, order) = (self.settings.batch, self.settings.order_key.clone());
        let mut source = self.source(Room { rows: batch.records, bytes: batch.bytes })?;
        let mut window = Window::new(self.settings.concurrency);
        let mut calls: FuturesUnordered<BoxFuture<'static, Done>> = FuturesUnordered::new();
        let mut kept_at = Instant::now();
        let mut moved = false;
        loop {
            let has_room = window.records < batch.records && window.bytes < batch.bytes;
            tokio::select! {
                chunks = source.next(), if has_room => {
                    for chunk in chunks? {
                        let skipped = self.skips(&chunk);
                        window.take(chunk, skipped, &order);
                    }
                    for lane in 0..window.lanes.len() {
                        self.next_call(&route, &mut window, lane, &calls);
                    }
                }
                Some(done) = calls.next(), if !calls.is_empty() => {
                    let lane = done.lane;
                    self.count(&mut window, done)?;
                    if let Some(lane) = window.lanes.get_mut(lane) {
                        lane.busy = false;
                    }
                    self.next_call(&route, &mut window, lane, &calls);
                }
                () = tokio::time::sleep_until(kept_at + KEEP_EVERY), if moved => {}
            }
            let mut delivered = false;
            while let Some(batch) = window.pop() {
                delivered |= batch.counts.matched > 0;
                self.kept.advance(&batch.end, batch.received_us);
                self.kept.counts.add(batch.counts);
                moved = true;
            }
            let oldest = window.batches.front().map_or(0, |batch| batch.received_us);
            self.live.under_way(window.records, oldest);
            if moved && (kept_at.elapsed() >= KEEP_EVERY || (delivered && window.batches.is_empty())) {
                if delivered || kept_at.elapsed() < KEEP_EVERY * 10 {
                    self.store().await?
                } else {
                    self.store_idle().await?
                }
                (kept_at, moved) = (Instant::now(), false);
            }
        }
    }

    /// Begins the next call of a lane that is free.
    fn next_call(
        &self,
        route: &Arc<Route>,
        window: &mut Window,
        number: usize,
        calls: &FuturesUnordered<BoxFuture<'static, Done>>,
    ) {
        let Some(lane) = window.lanes.get_mut(number).filter(|lane| !lane.busy) else { return };
        let Some((batch, parcel)) = lane.waiting.pop_front() else { return };
        lane.busy = true;
        let (route, breaker, live) = (route.clone(), self.breaker.clone(), self.live.clone());
        calls.push(Box::pin(async move {
            let outcome = route.deliver(&parcel, &breaker, &live).await;
            Done { lane: number, batch, parcel, outcome }
        }));
    }

    fn count(&self, window: &mut Window, done: Done) -> Result<(), RunError> {
        let name = self.settings.name.clone();
        let Some(batch) = window.batch(done.batch) else { return Ok(()) };
        batch.left -= 1;
        match done.outcome {
            Delivered::Well => {
                batch.counts.delivered += 1;
                metrics::counter!("lakegate_consumer_delivered_total", "consumer" => name).increment(1);
            }
            Delivered::GivenUp { attempts, reason } => {
                batch.counts.dead += 1;
                tracing::warn!(consumer = %name, key = %done.parcel.key, %reason, "a record was given up; it is kept");
                metrics::counter!("lakegate_consumer_dead_total", "consumer" => name).increment(1);
                let record = done.parcel.into_dead(attempts, reason, self.ground.clock.wall_us());
                if !self.dead.add(&[record]).map_err(RunError::Keep)? {
                    return Err(RunError::NoRoomForDead);
                }
            }
        }
        Ok(())
    }
}
