//! How a source is, for people and for machines.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::KafkaSource;

/// What a source does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// It looks for its brokers and its topic.
    Connecting,
    /// It reads.
    Running,
    /// It waits and will try again, and why.
    Waiting(String),
    /// It has stopped until somebody changes something, and why.
    Stopped(String),
}

/// One source.
#[derive(Debug, Clone)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// Its topic or pattern.
    pub topic: String,
    /// Its stream.
    pub stream: String,
    /// What it does.
    pub state: SourceState,
    /// Rows that it handed on, since the process began.
    pub accepted: u64,
    /// Records that it set aside, since then.
    pub dead_lettered: u64,
    /// Records without a value, since then.
    pub tombstones: u64,
    /// The partitions that it reads.
    pub partitions: Vec<PartitionStatus>,
}

/// One partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionStatus {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// The offset of the record that is read next.
    pub next: i64,
    /// The offset up to which its table has it; below 0: nothing was committed since it is read here.
    pub committed: i64,
    /// The offset at its end; below 0: not known yet.
    pub end: i64,
}

impl PartitionStatus {
    /// How many offsets the table lacks, as far as it is known.
    #[must_use]
    pub fn lag(&self) -> i64 {
        if self.end < 0 { 0 } else { (self.end - self.committed.max(0)).max(0) }
    }
}

/// The figures of one source.
#[derive(Debug)]
pub(super) struct Figures {
    inner: Mutex<SourceStatus>,
    partitions: Mutex<BTreeMap<(String, i32), PartitionStatus>>,
}

impl Figures {
    pub(super) fn new(source: &KafkaSource) -> Self {
        let status = SourceStatus {
            name: source.name.clone(),
            topic: source.topic.clone(),
            stream: source.stream.to_string(),
            state: SourceState::Connecting,
            accepted: 0,
            dead_lettered: 0,
            tombstones: 0,
            partitions: Vec::new(),
        };
        Self { inner: Mutex::new(status), partitions: Mutex::default() }
    }

    pub(super) fn status(&self) -> SourceStatus {
        let partitions = self.partitions.lock().values().cloned().collect();
        SourceStatus { partitions, ..self.inner.lock().clone() }
    }

    pub(super) fn set_state(&self, state: SourceState) {
        self.inner.lock().state = state;
    }

    /// Whether a broker can be reached, while the source reads. The client connects again by itself.
    pub(super) fn note_reached(&self, is_reached: bool) {
        let mut inner = self.inner.lock();
        match &inner.state {
            SourceState::Running if !is_reached => {
                inner.state = SourceState::Waiting("no broker can be reached; it goes on when one is back".to_owned());
            }
            SourceState::Waiting(_) if is_reached => inner.state = SourceState::Running,
            _ => {}
        }
    }

    pub(super) fn count(&self, accepted: u64, dead_lettered: u64) {
        let mut inner = self.inner.lock();
        inner.accepted += accepted;
        inner.dead_lettered += dead_lettered;
    }

    pub(super) fn count_tombstones(&self, tombstones: u64) {
        let mut inner = self.inner.lock();
        inner.tombstones += tombstones;
        metrics::counter!("lakegate_kafka_tombstones_total", "source" => inner.name.clone()).increment(tombstones);
    }

    /// Changes what is known of a partition that is read here.
    pub(super) fn of_partition(&self, topic: &str, partition: i32, change: impl FnOnce(&mut PartitionStatus)) {
        let mut partitions = self.partitions.lock();
        let status = partitions.entry((topic.to_owned(), partition)).or_insert_with(|| PartitionStatus {
            topic: topic.to_owned(),
            partition,
            next: -1,
            committed: -1,
            end: -1,
        });
        change(status);
    }

    /// The partition is read by another process from now on.
    pub(super) fn forget(&self, topic: &str, partition: i32) {
        self.partitions.lock().remove(&(topic.to_owned(), partition));
        self.gauge(topic, partition, 0);
    }

    pub(super) fn forget_all(&self) {
        let all: Vec<_> = self.partitions.lock().keys().cloned().collect();
        all.iter().for_each(|(topic, partition)| self.forget(topic, *partition));
    }

    /// Notes the ends of partitions, and shows the lag.
    pub(super) fn note_ends<'t>(&self, ends: impl Iterator<Item = (&'t str, i32, i64)>) {
        for (topic, partition, end) in ends {
            let mut lag = None;
            if let Some(status) = self.partitions.lock().get_mut(&(topic.to_owned(), partition)) {
                status.end = end.max(status.end);
                lag = Some(status.lag());
            }
            if let Some(lag) = lag {
                self.gauge(topic, partition, lag);
            }
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "a figure for dashboards")]
    fn gauge(&self, topic: &str, partition: i32, lag: i64) {
        let source = self.inner.lock().name.clone();
        let labels = [("source", source), ("topic", topic.to_owned()), ("partition", partition.to_string())];
        metrics::gauge!("lakegate_kafka_lag_records", &labels).set(lag as f64);
    }
}
