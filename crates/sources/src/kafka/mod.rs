//! Kafka topics: read by consumer groups, each record in its table once.
//!
//! The topic is the log, so that records are not written to ours. How far a partition was read is committed with its
//! rows; the group's own offsets follow, for those who watch the group. On assignment the table's position decides where
//! a partition is read on. A process that was left behind by a rebalance cannot commit: the table's position has moved.
//!
//! Each source has a thread of its own, which reads, shapes and hands on; files are encoded and committed elsewhere.
//! A session is one life of a consumer. Whatever goes wrong ends the session, and the next one begins from the table's
//! positions: there is no other way back, so that there is none that could be wrong.
//!
//! Promises: no record is skipped in silence; memory is bounded by the gate's budget and by what the client fetches ahead
//! (16 MiB for each source); brokers, registries and tables that are away are waited for. Refuses: positions that mean
//! nothing to the topic as it is now ([`OnLostPosition`] says what to do), and streams with a table for each event type.

mod assign;
mod context;
pub mod log;
mod payload;
mod position;
mod probe;
mod reader;
mod session;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lakegate_ingest::Gate;
use lakegate_model::{StreamName, TenantId};
use tokio::runtime::Handle;

pub use self::payload::{Format, RegistrySettings};
use self::status::Figures;
pub use self::status::{PartitionStatus, SourceState, SourceStatus};

/// Client settings that a source makes itself.
pub const OWN_PROPERTIES: [&str; 7] = [
    "bootstrap.servers",
    "group.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "statistics.interval.ms",
    "enable.partition.eof",
];

/// Where a partition begins that its table knows nothing of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At its first record.
    #[default]
    Earliest,
    /// At its end, as it is when the topic is first seen.
    Latest,
    /// At the first record of that time or later, in milliseconds since 1970.
    Timestamp(i64),
    /// Nowhere: only topics are read that the table knows.
    Table,
}

/// What is done where the table's position means nothing to the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLostPosition {
    /// The source stops and says so.
    #[default]
    Stop,
    /// The partition is read from its first record.
    Earliest,
    /// The partition is read from its end.
    Latest,
}

/// One source.
#[derive(Clone)]
pub struct KafkaSource {
    /// Its name: positions are kept under it, and it is never to be changed. Two sources of one stream have two names.
    pub name: String,
    /// The brokers, `host:port` with commas between.
    pub brokers: String,
    /// The topic, or with a `^` at its beginning a pattern of topics.
    pub topic: String,
    /// The consumer group.
    pub group_id: String,
    /// Whose records they become.
    pub tenant: TenantId,
    /// Of which stream.
    pub stream: StreamName,
    /// What the values are.
    pub format: Format,
    /// Where their schemas are.
    pub registry: Option<RegistrySettings>,
    /// So many records are handed on at once, or more while there is a backlog.
    pub batch_size: usize,
    /// Or what came in so long.
    pub flush_interval: Duration,
    /// Where a partition begins that its table knows nothing of.
    pub start: Start,
    /// What is done where the table's position means nothing to the topic.
    pub on_lost_position: OnLostPosition,
    /// Further settings of the client library, such as `security.protocol`.
    pub properties: Vec<(String, String)>,
    /// What tells this process in the group over restarts; empty: nothing.
    pub instance: String,
}

impl std::fmt::Debug for KafkaSource {
    /// Without the client's settings, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSource").field("name", &self.name).field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// The sources of a process.
#[derive(Debug, Default)]
pub struct KafkaSources {
    stop: Arc<AtomicBool>,
    threads: parking_lot::Mutex<Vec<JoinHandle<()>>>,
    figures: Vec<Arc<Figures>>,
}

impl KafkaSources {
    /// Begins to read. `runtime` is where commits run.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(sources: Vec<KafkaSource>, gate: &Gate, runtime: &Handle) -> std::io::Result<Self> {
        let started = Self {
            stop: Arc::default(),
            threads: parking_lot::Mutex::default(),
            figures: sources.iter().map(|source| Arc::new(Figures::new(source))).collect(),
        };
        for (source, figures) in sources.into_iter().zip(&started.figures) {
            let life = session::Life {
                source: Arc::new(source),
                gate: gate.clone(),
                runtime: runtime.clone(),
                stop: started.stop.clone(),
                figures: figures.clone(),
                mistaken: Arc::default(),
            };
            let thread = std::thread::Builder::new().name(format!("kafka-{}", life.source.name));
            started.threads.lock().push(thread.spawn(move || life.run())?);
        }
        Ok(started)
    }

    /// Commits what was read and ends. What takes too long is cut off by who waits, and read again after the next start.
    pub async fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        let threads = std::mem::take(&mut *self.threads.lock());
        let join = move || threads.into_iter().for_each(|thread| drop(thread.join()));
        let _ = tokio::task::spawn_blocking(join).await;
    }

    /// How each source is.
    #[must_use]
    pub fn status(&self) -> Vec<SourceStatus> {
        self.figures.iter().map(|figures| figures.status()).collect()
    }
}
