//! One consumer: reads, delivers, keeps its position behind what is delivered, obeys.
//!
//! Invariants: the position on disk never passes a record that is neither delivered, skipped nor kept among the dead;
//! records that agree in the order key are under way one at a time; what is read and not delivered is bounded in records
//! and bytes. A command ends what is under way: it is delivered again under the same keys.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lakegate_env::{Clock, Disk};
use lakegate_ingest::{Gate, Room};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::breaker::{Breaker, Ended};
use crate::dead::{DeadRecord, DeadRecords};
use crate::kept::{Back, Counts, Keeper, Kept};
use crate::live::{ConsumerState, Live};
use crate::outgoing::Message;
use crate::record::Rows;
use crate::route::{Route, pause_after};
use crate::settings::{ConsumerSettings, SharedSettings, Start, Target, What};
use crate::sink::{Sink, dead_of};
use crate::source::{Chunk, End, Source, SourceError};

/// A position that moved without a delivery is kept at most so often.
const KEEP_IDLE_EVERY: Duration = Duration::from_secs(2);
/// The pause after an error that is not the service's.
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);

/// Where a consumer is told to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goto {
    /// To the end of the log.
    Tail,
    /// To the beginning of the log.
    Head,
    /// To the oldest row of the tables.
    Lake,
    /// To an offset of the log; where the log has it no more, the tables are read from there.
    Offset(u64),
}

/// What a consumer is told.
#[derive(Debug)]
pub(crate) enum Order {
    Pause,
    Resume,
    Rewind(Goto),
    /// Passes over everything below the offset.
    Skip(u64),
    /// So many of the dead were delivered.
    Revived(u64),
}

pub(crate) type Command = (Order, oneshot::Sender<Result<(), String>>);

/// Why delivering cannot go on for now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("the position cannot be kept: {0}")]
    Keep(io::Error),
    #[error("{0}")]
    Target(String),
    #[error(
        "the records that were given up take all their room (dead_letters_max): lakegate consumers dead ls|replay|purge"
    )]
    NoRoomForDead,
}

/// What a consumer stands on.
pub(crate) struct Ground {
    pub(crate) gate: Gate,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) shared: Arc<SharedSettings>,
}

pub(crate) struct Consumer {
    pub(crate) settings: Arc<ConsumerSettings>,
    pub(crate) ground: Arc<Ground>,
    pub(crate) breaker: Breaker,
    pub(crate) live: Arc<Live>,
    pub(crate) dead: DeadRecords,
    pub(crate) route: Option<Arc<Route>>,
    pub(crate) kept: Kept,
    keeper: Keeper,
    kept_at: Instant,
}

impl Consumer {
    /// Opens it at the position that is kept, or where its settings say.
    pub(crate) fn open(
        settings: ConsumerSettings,
        ground: Arc<Ground>,
        breaker: Breaker,
        live: Arc<Live>,
        dir: &Path,
    ) -> io::Result<Self> {
        let keeper = Keeper::new(ground.disk.clone(), dir, &settings.name);
        let gate = &ground.gate;
        let kept = match keeper.load()? {
            Some(kept) => kept,
            None => {
                let mut kept = Kept::new(gate.log_id(), gate.durable_offset());
                go(
                    gate,
                    &mut kept,
                    match settings.start {
                        Start::Tail => Goto::Tail,
                        Start::Head => Goto::Head,
                        Start::Lake => Goto::Lake,
                    },
                );
                kept
            }
        };
        let dead = DeadRecords::open(ground.disk.clone(), dir, &settings.name, settings.dead_bytes_max)?;
        let route = match &settings.target {
            Target::Http(route) => {
                let rules = Arc::from(ground.shared.hosts.clone());
                let route = Route::open((**route).clone(), settings.retry, rules).map_err(io::Error::other)?;
                Some(Arc::new(route))
            }
            _ => None,
        };
        let settings = Arc::new(settings);
        let consumer = Self { settings, ground, breaker, live, dead, route, kept, keeper, kept_at: Instant::now() };
        consumer.hold();
        // Told before the first write of its position, which may take a while: nobody is to see a paused one run.
        if consumer.kept.paused {
            consumer.live.set_state(ConsumerState::Paused);
        }
        consumer.live.kept(&consumer.kept);
        Ok(consumer)
    }

    /// Delivers until it is told to stop.
    pub(crate) async fn run(mut self, mut orders: mpsc::Receiver<Command>, stop: CancellationToken) {
        // From the first moment on: a crash before the first delivery must not begin at a later tail.
        let mut failed = self.store().await.err();
        loop {
            let paused = self.kept.paused;
            self.live.set_state(if paused { ConsumerState::Paused } else { ConsumerState::Running });
            self.live.under_way(0, 0);
            self.live.kept(&self.kept);
            let pause = failed.take().map(|error| self.live.failed(&error.to_string()));
            let order = {
                let work = async {
                    if pause.is_some() {
                        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                    }
                    if paused { std::future::pending().await } else { self.deliver().await }
                };
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    order = orders.recv() => match order {
                        Some(order) => Ok(order),
                        None => break,
                    },
                    error = work => Err(error),
                }
            };
            match order {
                Ok((order, answer)) => {
                    let done = self.obey(order).await.map_err(|error| error.to_string());
                    let _ = answer.send(done);
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Err(error) = self.store().await {
            tracing::warn!(consumer = %self.settings.name, %error, "the position could not be kept at the end");
        }
        self.live.set_state(ConsumerState::Stopped);
    }

    async fn deliver(&mut self) -> RunError {
        let done: Result<Infallible, RunError> = match (self.settings.what, self.route.clone()) {
            (What::Notices, _) => self.run_notices().await,
            (What::Records, Some(route)) => self.run_records(route).await,
            (What::Records, None) => self.run_batches().await,
        };
        match done {
            Err(error) => error,
        }
    }

    async fn obey(&mut self, order: Order) -> Result<(), RunError> {
        match order {
            Order::Pause => self.kept.paused = true,
            Order::Resume => self.kept.paused = false,
            Order::Rewind(to) => go(&self.ground.gate, &mut self.kept, to),
            Order::Skip(offset) => self.kept.skip_to = offset.min(self.ground.gate.durable_offset()),
            Order::Revived(count) => {
                self.kept.counts.dead = self.kept.counts.dead.saturating_sub(count);
                self.kept.counts.delivered += count;
            }
        }
        self.store().await
    }

    /// Keeps the position, and tells the log what is still needed of it.
    pub(crate) async fn store(&mut self) -> Result<(), RunError> {
        self.keeper.store(&self.kept).await.map_err(RunError::Keep)?;
        self.kept_at = Instant::now();
        self.hold();
        self.live.kept(&self.kept);
        Ok(())
    }

    /// Keeps a position that moved without a delivery, now and then.
    pub(crate) async fn store_idle(&mut self) -> Result<(), RunError> {
        self.live.kept(&self.kept);
        if self.kept_at.elapsed() < KEEP_IDLE_EVERY { Ok(()) } else { self.store().await }
    }

    fn hold(&self) {
        let offset = self.kept.back.as_ref().map_or(self.kept.offset, |back| back.then);
        match self.settings.what {
            What::Records => self.ground.gate.hold(&self.settings.name, offset),
            What::Notices => self.ground.gate.release(&self.settings.name),
        }
    }

    pub(crate) fn source(&self, room: Room) -> Result<Source, RunError> {
        let filter = Arc::new(self.settings.filter.clone());
        Ok(Source::start(self.ground.gate.clone(), filter, &self.kept, room)?)
    }

    /// Whether the records of a chunk are to be passed over.
    pub(crate) fn skips(&self, chunk: &Chunk) -> bool {
        matches!(chunk.end, End::Log(offset) if offset <= self.kept.skip_to)
    }

    async fn run_batches(&mut self) -> Result<Infallible, RunError> {
        let mut sink = Sink::open(&self.settings.target).map_err(RunError::Target)?;
        let batch = self.settings.batch;
        let mut source = self.source(Room { rows: batch.records, bytes: batch.bytes })?;
        let mut waiting = std::collections::VecDeque::new();
        loop {
            let chunks = self.gather(&mut source, &mut waiting).await?;
            let mut counts = Counts::default();
            let mut rows = Vec::new();
            let (from, mut received_us) = (self.kept.offset, 0);
            let mut after = self.kept.clone();
            for chunk in chunks {
                let records = chunk.records() as u64;
                counts.matched += records;
                if self.skips(&chunk) {
                    counts.skipped += records;
                } else {
                    counts.delivered += records;
                    rows.extend(chunk.rows);
                }
                after.advance(&chunk.end, chunk.received_us);
                received_us = if received_us == 0 { chunk.received_us } else { received_us };
            }
            if rows.is_empty() {
                after.batch_end = None;
                self.kept = after;
                self.kept.counts.add(counts);
                self.store_idle().await?;
                continue;
            }
            if sink.needs_same_batches() && after.back.is_none() && self.kept.batch_end != Some(after.offset) {
                self.kept.batch_end = Some(after.offset);
                self.store().await?;
            }
            let records = rows.iter().map(Rows::len).sum();
            self.live.under_way(records, received_us);
            let token = format!("{}-{}-{from}-{}", self.settings.name, self.kept.log, after.offset);
            let dead = self.send(&mut sink, &rows, &token).await;
            if !dead.is_empty() {
                counts.delivered -= dead.len() as u64;
                counts.dead += dead.len() as u64;
                self.bury(&dead).await?;
            }
            after.counts.add(counts);
            after.batch_end = None;
            self.kept = after;
            self.store().await?;
            self.live.under_way(0, 0);
        }
    }

    /// The chunks of the next batch: the one that was begun before a crash as it was, else what comes while there is room
    /// and time.
    async fn gather(
        &mut self,
        source: &mut Source,
        waiting: &mut std::collections::VecDeque<Chunk>,
    ) -> Result<Vec<Chunk>, RunError> {
        let (batch, begun) = (self.settings.batch, self.kept.batch_end);
        let (mut chunks, mut records, mut bytes) = (Vec::new(), 0, 0);
        let mut until: Option<Instant> = None;
        loop {
            while let Some(chunk) = waiting.pop_front() {
                let end = chunk.end.clone();
                records += chunk.records();
                bytes += chunk.bytes();
                chunks.push(chunk);
                match (begun, &end) {
                    (Some(begun), End::Log(offset)) if *offset >= begun => return Ok(chunks),
                    (Some(_), End::Log(_)) => {}
                    // Between log and tables a batch ends.
                    (_, End::Begun(_) | End::Table(..)) => return Ok(chunks),
                    (None, _) if records >= batch.records || bytes >= batch.bytes => return Ok(chunks),
                    _ => {}
                }
            }
            if records == 0 && !chunks.is_empty() && begun.is_none() {
                return Ok(chunks);
            }
            let next = match until {
                None if records > 0 && begun.is_none() => {
                    until = Some(Instant::now() + batch.wait);
                    continue;
                }
                None => source.next().await?,
                Some(until) => match tokio::time::timeout_at(until, source.next()).await {
                    Ok(next) => next?,
                    Err(_) => return Ok(chunks),
                },
            };
            waiting.extend(next);
        }
    }

    /// Sends a batch until it is taken; returns the records that were refused for what they are.
    async fn send(&mut self, sink: &mut Sink, rows: &[Rows], token: &str) -> Vec<DeadRecord> {
        let messages = sink.messages(rows, &self.settings.order_key);
        let mut attempts = 0;
        loop {
            let permit = self.breaker.permit().await;
            attempts += 1;
            let started = Instant::now();
            let sent = sink.deliver(rows, &messages, token).await;
            self.live.took(started.elapsed());
            match sent {
                Ok(refused) => {
                    permit.end(Ended::Well);
                    self.live.well();
                    return dead_of(rows, &refused, &self.settings, (attempts, self.ground.clock.wall_us()));
                }
                Err(reason) => {
                    permit.end(Ended::Badly);
                    self.live.failed(&reason);
                }
            }
            tokio::time::sleep(pause_after(attempts, &self.settings.retry)).await;
        }
    }

    /// Keeps records that were refused. Where there is no room it waits: the others of their batch are delivered already.
    async fn bury(&self, dead: &[DeadRecord]) -> Result<(), RunError> {
        if let Some(first) = dead.first() {
            let (consumer, reason) = (&self.settings.name, &first.reason);
            tracing::warn!(%consumer, records = dead.len(), key = %first.key, %reason, "records were refused; they are kept");
        }
        while !self.dead.add(dead).map_err(RunError::Keep)? {
            self.live.failed(&RunError::NoRoomForDead.to_string());
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        }
        let name = self.settings.name.clone();
        metrics::counter!("lakegate_consumer_dead_total", "consumer" => name).increment(dead.len() as u64);
        self.live.well();
        Ok(())
    }

    /// Sends messages until they are taken: notices, which are no records.
    pub(crate) async fn send_messages(&mut self, sink: &mut Sink, messages: Vec<Message>) {
        let mut attempts = 0;
        loop {
            let permit = self.breaker.permit().await;
            attempts += 1;
            match sink.deliver(&[], &messages, "").await {
                Ok(refused) => {
                    permit.end(Ended::Well);
                    self.live.well();
                    for one in refused {
                        tracing::warn!(consumer = %self.settings.name, reason = %one.reason, "a notice was refused");
                    }
                    return;
                }
                Err(reason) => {
                    permit.end(Ended::Badly);
                    self.live.failed(&reason);
                }
            }
            tokio::time::sleep(pause_after(attempts, &self.settings.retry)).await;
        }
    }
}

/// Moves a position.
fn go(gate: &Gate, kept: &mut Kept, to: Goto) {
    (kept.log, kept.back, kept.batch_end) = (gate.log_id(), None, None);
    (kept.skip_to, kept.received_us) = (0, 0);
    kept.taken.clear();
    match to {
        Goto::Tail => kept.offset = gate.durable_offset(),
        Goto::Head => kept.offset = gate.first_offset(),
        Goto::Offset(offset) => kept.offset = offset.min(gate.durable_offset()),
        Goto::Lake => {
            kept.offset = 0;
            kept.back = Some(Back { from: None, then: gate.first_offset(), ..Back::default() });
        }
    }
}
