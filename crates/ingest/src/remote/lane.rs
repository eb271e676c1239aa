//! One table that a writer brings frames to, and how far it has each partition.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use lakegate_model::{StreamKey, Tally};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::writer::LogFrame;
use crate::gate::Gate;
use crate::streams::{DEAD_LETTERS, Stream};
use crate::upstream::{After, Upstream, UpstreamCommit, UpstreamError, UpstreamTarget};

/// How far a table has a partition, as its position says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absorbed {
    /// The offset of the frame that it takes next.
    pub next: u64,
    /// What lies at the offset before, if the partition is the one that was read: a hash.
    pub witness: u64,
}

/// Reads a position; an error says why it means nothing to its partition.
pub type JudgePosition = Box<dyn Fn(u128, &[u8]) -> Result<Absorbed, String> + Send>;

/// One partition, as the table has it.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The first frame that it lacks, by the position that it had when the reading began.
    next: u64,
    /// The hash that the frame before is to have; none: it was seen, or lies before what is read.
    witness: Option<u64>,
    /// The first frame that is passed over on the word of a witness that was not seen yet.
    trusted_from: Option<u64>,
    /// The first frame that waits for a commit, and that is in a commit under way.
    waiting: Option<u64>,
    committing: Option<u64>,
    /// The last frame that was taken, where the table's label of it is behind.
    moved_to: Option<u64>,
}

/// One table.
pub(super) struct Lane {
    pub(super) upstream: Upstream,
    places: HashMap<u128, Place>,
    /// Rows that queries do not see yet, each under the contract that shaped it.
    fresh: Vec<(Arc<Stream>, RecordBatch)>,
    /// Whether it takes what is set aside: then it is committed before the tables whose positions pass that.
    pub(super) is_letters: bool,
    /// How many times something was taken; as of the commit under way; as of the last one that stands.
    taken: u64,
    committing: u64,
    committed: watch::Sender<u64>,
}

impl Lane {
    pub(super) async fn open(gate: &Gate, name: &str, stream: &Arc<Stream>) -> Result<Self, UpstreamError> {
        let StreamKey { tenant, stream: of } = stream.key.clone();
        let is_letters = of.as_str() == DEAD_LETTERS;
        let target = UpstreamTarget {
            tenant,
            stream: of,
            source: crate::api::Source::Kafka,
            name: format!("log/{name}"),
            content_type: String::new(),
        };
        let upstream = gate.open_upstream_of(target, stream.clone()).await?;
        let (committed, _) = watch::channel(0);
        Ok(Self { upstream, places: HashMap::new(), fresh: Vec::new(), is_letters, taken: 0, committing: 0, committed })
    }

    /// Begins with partitions, of each the offset that is read next. Returns where frames lie that are to be held against
    /// the positions ([`Self::see`]).
    pub(super) async fn begin(
        &mut self,
        from: &[(u128, u64)],
        judge: &JudgePosition,
    ) -> Result<Vec<(u128, u64)>, UpstreamError> {
        let ids: Vec<u128> = from.iter().map(|(id, _)| *id).collect();
        let positions = self.upstream.positions(&ids).await?;
        let mut awaited = Vec::new();
        for ((id, from), position) in from.iter().zip(positions) {
            let absorbed = position.as_ref().map(|position| judge(*id, &position.state)).transpose();
            let absorbed = absorbed.map_err(|why| {
                UpstreamError::Halted(format!("the position of the table {}: {why}", self.upstream.table()))
            })?;
            let next = absorbed.map_or(0, |absorbed| absorbed.next);
            let witness = absorbed.filter(|_| next > *from).map(|absorbed| absorbed.witness);
            if witness.is_some() {
                awaited.push((*id, next - 1));
            }
            let place = Place { next, witness, trusted_from: None, waiting: None, committing: None, moved_to: None };
            self.places.insert(*id, place);
            self.upstream.begin(*id, position);
        }
        Ok(awaited)
    }

    /// Holds the last frame that the table has against its position.
    pub(super) fn see(&mut self, frame: &LogFrame<'_>) -> Result<(), UpstreamError> {
        let table = self.upstream.table();
        let Some(place) = self.places.get_mut(&frame.partition) else { return Ok(()) };
        if frame.offset + 1 != place.next {
            return Ok(());
        }
        place.trusted_from = None;
        match place.witness.take() {
            Some(expected) if expected != frame.hash => Err(UpstreamError::Halted(format!(
                "where the last frame of the table {table} lay ({}, offset {}) there is another: the topic was made anew",
                frame.place, frame.offset
            ))),
            _ => Ok(()),
        }
    }

    /// Whether the table has the frame.
    pub(super) fn has(&mut self, frame: &LogFrame<'_>) -> Result<bool, UpstreamError> {
        self.see(frame)?;
        let Some(place) = self.places.get_mut(&frame.partition) else { return Ok(false) };
        let has = frame.offset < place.next;
        if has && place.witness.is_some() {
            place.trusted_from.get_or_insert(frame.offset);
        }
        Ok(has)
    }

    /// Takes what a frame has for the table.
    pub(super) fn take(
        &mut self,
        frame: &LogFrame<'_>,
        stream: &Arc<Stream>,
        rows: Option<RecordBatch>,
        tally: &Tally,
    ) {
        if let Some(rows) = rows.filter(|rows| rows.num_rows() > 0) {
            self.fresh.push((stream.clone(), rows));
        }
        self.taken += 1;
        self.upstream.count_shaped(frame.partition, tally, frame.position.to_vec());
        if let Some(place) = self.places.get_mut(&frame.partition) {
            place.waiting.get_or_insert(frame.offset);
            place.moved_to = Some(frame.offset);
        }
    }

    /// The commit that will hold what was taken so far.
    pub(super) fn next_commit(&self) -> After {
        After { done: self.committed.subscribe(), number: self.taken }
    }

    /// Shows queries what was taken. Small batches become one.
    pub(super) fn show(&mut self, label: impl Fn(u128) -> Option<String>) -> Result<(), UpstreamError> {
        let fresh = std::mem::take(&mut self.fresh);
        for same in fresh.chunk_by(|(a, _), (b, _)| a.fingerprint == b.fingerprint) {
            let Some((stream, first)) = same.first() else { continue };
            let rows = match same {
                [_] => first.clone(),
                many => concat_batches(&first.schema(), many.iter().map(|(_, rows)| rows))
                    .map_err(|error| UpstreamError::Stream(error.to_string()))?,
            };
            self.upstream.put_shaped(stream, rows, self.is_letters);
        }
        for (id, place) in &mut self.places {
            if let Some((offset, name)) = place.moved_to.take().zip(label(*id)) {
                self.upstream.label(name, format!("next offset {}", offset + 1));
            }
        }
        Ok(())
    }

    /// Begins to commit what queries see.
    pub(super) fn begin_commit(&mut self, runtime: &Handle) {
        if self.upstream.is_committing() || !self.upstream.has_uncommitted() {
            return;
        }
        self.upstream.begin_commit(runtime);
        self.committing = self.taken;
        for place in self.places.values_mut() {
            place.committing = place.waiting.take();
        }
    }

    /// What the commit under way came to, if it is done.
    pub(super) fn poll_commit(&mut self, runtime: &Handle) -> Result<Option<UpstreamCommit>, UpstreamError> {
        let done = self.upstream.poll_commit(runtime)?;
        if done.is_some() {
            self.committed.send_replace(self.committing);
            self.places.values_mut().for_each(|place| place.committing = None);
        }
        Ok(done)
    }

    /// The first frame of a partition that the table lacks, or is only believed to have.
    pub(super) fn lacks_from(&self, partition: u128) -> Option<u64> {
        let place = self.places.get(&partition)?;
        [place.waiting, place.committing, place.trusted_from].into_iter().flatten().min()
    }
}
