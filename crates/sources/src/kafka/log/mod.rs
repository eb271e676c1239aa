//! A Kafka topic as the log that instances share: gateways write to it, writers read it by one consumer group.
//!
//! A record of the topic is a frame as our own log would hold it. It is written by an idempotent producer and taken as
//! written when all in-sync replicas have it. A partition is read from the group's offset on, which is moved only behind
//! frames that all their tables have; what a table has is passed over by its own position, so that the group's offset may
//! lie too early and never too late. Reading begins earlier still, to remember the keys of what came in the last while.
//!
//! Promises: nothing is acknowledged that the brokers do not have; brokers that are away are waited for, and refused for at
//! once when that is known. Refuses: topics with fewer partitions than are set, and offsets that mean nothing to the topic
//! as it is now ([`LogOnLost`] says what to do).

mod producer;
mod reading;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lakegate_ingest::Gate;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use self::producer::Producer;
use super::status::SourceState;

/// Client settings that the log makes itself.
pub const LOG_PROPERTIES: [&str; 8] = [
    "bootstrap.servers",
    "group.id",
    "acks",
    "enable.idempotence",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "transactional.id",
];

/// The largest frame that a topic made here takes.
const FRAME_BYTES_MAX: &str = "104857600";

/// What is done where the group's offset means nothing to the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogOnLost {
    /// The writer stops and says so.
    #[default]
    Stop,
    /// The partition is read from its first frame; what the tables have is passed over.
    Earliest,
}

/// The topic, and what this process does with it.
#[derive(Clone)]
pub struct KafkaLog {
    /// The brokers, `host:port` with commas between.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// The consumer group of the writers.
    pub group_id: String,
    /// How many partitions streams are spread over.
    pub partitions: u32,
    /// How many brokers keep each partition, where the topic is made here.
    pub replication: u16,
    /// How long frames are kept, where the topic is made here.
    pub retention: Duration,
    /// Whether this process brings frames into tables.
    pub writes: bool,
    /// How long a request waits for the brokers.
    pub timeout: Duration,
    /// So far before the group's offset reading begins, to remember what came.
    pub remember: Duration,
    /// What is done where the group's offset means nothing to the topic.
    pub on_lost: LogOnLost,
    /// Further settings of the client library, such as `security.protocol`.
    pub properties: Vec<(String, String)>,
    /// What tells this process in the group over restarts.
    pub instance: String,
}

impl std::fmt::Debug for KafkaLog {
    /// Without the client's settings, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaLog").field("topic", &self.topic).field("writes", &self.writes).finish_non_exhaustive()
    }
}

/// How one side of the log is.
type State = Arc<Mutex<SourceState>>;

/// The log of a process: its producer, and the thread that reads where the process writes tables.
pub struct KafkaLogs {
    producer: Option<(Arc<Producer>, State)>,
    writer: State,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for KafkaLogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaLogs").field("writer", &self.writer.lock()).finish_non_exhaustive()
    }
}

impl KafkaLogs {
    /// Begins: from now on the gate's requests go to the topic. `runtime` is where commits run.
    ///
    /// # Errors
    /// The client cannot be made of these settings, or a thread cannot be started; the reason is for people.
    pub fn start(log: KafkaLog, gate: &Gate, runtime: &Handle) -> Result<Self, String> {
        let log = Arc::new(log);
        let state = State::new(Mutex::new(SourceState::Connecting));
        let producer = Producer::start(log.clone(), state.clone(), runtime)?;
        gate.write_to(producer.clone());
        let (writer, stop) = (State::new(Mutex::new(SourceState::Connecting)), Arc::new(AtomicBool::new(false)));
        let mut thread = None;
        if log.writes {
            let life = session::Life {
                log,
                gate: gate.clone(),
                runtime: runtime.clone(),
                stop: stop.clone(),
                state: writer.clone(),
            };
            let named = std::thread::Builder::new().name("kafka-log".to_owned());
            thread = Some(named.spawn(move || life.run()).map_err(|error| error.to_string())?);
        } else {
            *writer.lock() = SourceState::Running;
        }
        Ok(Self { producer: Some((producer, state)), writer, stop, thread: Mutex::new(thread) })
    }

    /// None: requests go to our own log.
    #[must_use]
    pub fn none() -> Self {
        let writer = State::new(Mutex::new(SourceState::Running));
        Self { producer: None, writer, stop: Arc::default(), thread: Mutex::new(None) }
    }

    /// Commits what was read and ends. What takes too long is cut off by who waits, and read again after the next start.
    pub async fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || drop(thread.join())).await;
        }
    }

    /// How the producer and the writer are; none where there is no such log.
    #[must_use]
    pub fn status(&self) -> Option<[(&'static str, SourceState); 2]> {
        let (_, producer) = self.producer.as_ref()?;
        Some([("gateway", producer.lock().clone()), ("writer", self.writer.lock().clone())])
    }
}
