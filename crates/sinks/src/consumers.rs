//! All consumers of the process: opened, listed, told what to do, ended.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lakegate_env::{Clock, Disk};
use lakegate_ingest::Gate;
use lakegate_model::{Contract, StreamKey};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::breaker::Breaker;
use crate::consumer::{Command, Consumer, Goto, Ground, Order};
use crate::dead::{DeadRecord, DeadRecords};
use crate::live::{ConsumerStatus, Live};
use crate::route::{Parcel, Route};
use crate::settings::{ConsumerSettings, SharedSettings, Target};
use crate::sink::Sink;

/// Orders that wait for one consumer.
const ORDERS: usize = 4;

/// What consumers are opened with.
pub struct ConsumersOptions {
    /// What they follow.
    pub gate: Gate,
    /// The disk of the data folder.
    pub disk: Arc<dyn Disk>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The folder of their positions.
    pub dir: PathBuf,
    /// Each of them.
    pub consumers: Vec<ConsumerSettings>,
    /// What they share.
    pub shared: SharedSettings,
}

/// Why a consumer did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// There is none of that name.
    #[error("there is no consumer {0:?}; `lakegate consumers ls` lists those that there are")]
    Unknown(String),
    /// It could not.
    #[error("{0}")]
    Failed(String),
    /// It has ended.
    #[error("the consumer {0} has ended; the server is ending")]
    Ended(String),
}

/// What became of dead records that were sent again.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Revived {
    /// Delivered now.
    pub delivered: u64,
    /// Refused again, and kept.
    pub refused: u64,
    /// What the service said to the last of these.
    pub last_reason: Option<String>,
}

struct Handle {
    live: Arc<Live>,
    dead: DeadRecords,
    route: Option<Arc<Route>>,
    settings: Arc<ConsumerSettings>,
    orders: mpsc::Sender<Command>,
    task: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

/// All consumers. Clones share them.
#[derive(Clone)]
pub struct Consumers(Arc<Shared>);

struct Shared {
    gate: Gate,
    stop: CancellationToken,
    handles: BTreeMap<String, Handle>,
}

impl Consumers {
    /// Opens and starts them.
    ///
    /// # Errors
    /// A position cannot be read.
    pub fn open(options: ConsumersOptions) -> io::Result<Self> {
        let ConsumersOptions { gate, disk, clock, dir, consumers, shared } = options;
        disk.create_dir_all(&dir)?;
        let stop = CancellationToken::new();
        let ground = Arc::new(Ground { gate: gate.clone(), disk, clock: clock.clone(), shared: Arc::new(shared) });
        let mut breakers: BTreeMap<String, Breaker> = BTreeMap::new();
        let mut handles = BTreeMap::new();
        for settings in consumers {
            let service = service_of(&settings);
            let breaker = breakers.entry(service.clone()).or_insert_with(|| Breaker::new(&service, settings.breaker));
            let words = (settings.name.clone(), settings.target.kind(), service);
            let live = Arc::new(Live::new(words, breaker.clone(), clock.clone()));
            let handle = start(settings, &ground, breaker.clone(), live, &dir, &stop)?;
            handles.insert(handle.live.name.clone(), handle);
        }
        Ok(Self(Arc::new(Shared { gate, stop, handles })))
    }

    /// How each of them is, by name.
    #[must_use]
    pub fn list(&self) -> Vec<ConsumerStatus> {
        self.0.handles.values().map(|handle| self.status(handle)).collect()
    }

    fn status(&self, handle: &Handle) -> ConsumerStatus {
        handle.live.status(self.0.gate.durable_offset(), handle.dead.len())
    }

    fn find(&self, name: &str) -> Result<&Handle, ConsumerError> {
        self.0.handles.get(name).ok_or_else(|| ConsumerError::Unknown(name.to_owned()))
    }

    /// How one of them is.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn show(&self, name: &str) -> Result<ConsumerStatus, ConsumerError> {
        self.find(name).map(|handle| self.status(handle))
    }

    async fn order(&self, name: &str, order: Order) -> Result<ConsumerStatus, ConsumerError> {
        let handle = self.find(name)?;
        let ended = || ConsumerError::Ended(name.to_owned());
        let (sender, answer) = oneshot::channel();
        handle.orders.send((order, sender)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?.map_err(ConsumerError::Failed)?;
        Ok(self.status(handle))
    }

    /// Stops delivering, over restarts too, until it is resumed.
    ///
    /// # Errors
    /// See [`ConsumerError`].
    pub async fn pause(&self, name: &str) -> Result<ConsumerStatus, ConsumerError> {
        self.order(name, Order::Pause).await
    }

    /// Goes on delivering.
    ///
    /// # Errors
    /// See [`ConsumerError`].
    pub async fn resume(&self, name: &str) -> Result<ConsumerStatus, ConsumerError> {
        self.order(name, Order::Resume).await
    }

    /// Moves the position.
    ///
    /// # Errors
    /// See [`ConsumerError`].
    pub async fn rewind(&self, name: &str, to: Goto) -> Result<ConsumerStatus, ConsumerError> {
        self.order(name, Order::Rewind(to)).await
    }

    /// Passes over the records below the offset (none: all that there are now); they are counted as skipped.
    ///
    /// # Errors
    /// See [`ConsumerError`].
    pub async fn skip(&self, name: &str, to: Option<u64>) -> Result<ConsumerStatus, ConsumerError> {
        self.order(name, Order::Skip(to.unwrap_or(u64::MAX))).await
    }

    /// The records that were given up.
    ///
    /// # Errors
    /// There is no such consumer, or its file cannot be read.
    pub fn dead(&self, name: &str) -> Result<Vec<DeadRecord>, ConsumerError> {
        self.find(name)?.dead.list().map_err(|error| ConsumerError::Failed(error.to_string()))
    }

    /// Removes records that were given up: that of a key, or all.
    ///
    /// # Errors
    /// There is no such consumer, or its file cannot be written.
    pub fn purge(&self, name: &str, key: Option<&str>) -> Result<u64, ConsumerError> {
        let gone = |record: &DeadRecord| key.is_none_or(|key| record.key == key);
        self.find(name)?.dead.remove(gone).map_err(|error| ConsumerError::Failed(error.to_string()))
    }

    /// Sends records that were given up again, the oldest first: that of a key, or all. Those that are refused stay.
    ///
    /// # Errors
    /// See [`ConsumerError`].
    pub async fn replay(&self, name: &str, key: Option<&str>) -> Result<Revived, ConsumerError> {
        let handle = self.find(name)?;
        let failed = |error: io::Error| ConsumerError::Failed(error.to_string());
        let mut sink = match &handle.route {
            Some(_) => None,
            None => Some(Sink::open(&handle.settings.target).map_err(ConsumerError::Failed)?),
        };
        let mut done = Revived::default();
        for record in self.dead(name)?.into_iter().filter(|record| key.is_none_or(|key| record.key == key)) {
            let sent = match (&handle.route, &mut sink) {
                (Some(route), _) => route.deliver_once(&Parcel::of_dead(&record)).await,
                (None, Some(sink)) => {
                    let contract = self.contract_of(&record).await?;
                    sink.deliver_again(&record, contract, &handle.settings.order_key).await
                }
                (None, None) => Err("it takes no records".to_owned()),
            };
            match sent {
                Err(reason) => {
                    done.refused += 1;
                    done.last_reason = Some(reason);
                }
                Ok(()) => {
                    let removed = handle.dead.remove(|other| other.key == record.key).map_err(failed)?;
                    if removed > 0 {
                        done.delivered += 1;
                        self.order(name, Order::Revived(1)).await?;
                    }
                }
            }
        }
        Ok(done)
    }

    /// The contract of a record's stream, as it is now.
    async fn contract_of(&self, record: &DeadRecord) -> Result<Option<Arc<Contract>>, ConsumerError> {
        let wanted = |key: &StreamKey| key.tenant.as_str() == record.tenant && key.stream.as_str() == record.stream;
        let tables = self.0.gate.history(wanted).await;
        let tables = tables.map_err(|error| ConsumerError::Failed(error.to_string()))?;
        Ok(tables.into_iter().next().map(|table| table.contract))
    }

    /// Ends all of them; what is under way is delivered again after the next start.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        for handle in self.0.handles.values() {
            let task = handle.task.lock().take();
            if let Some(task) = task {
                let _ = task.await;
            }
        }
    }
}

fn start(
    settings: ConsumerSettings,
    ground: &Arc<Ground>,
    breaker: Breaker,
    live: Arc<Live>,
    dir: &Path,
    stop: &CancellationToken,
) -> io::Result<Handle> {
    let consumer = Consumer::open(settings, ground.clone(), breaker, live.clone(), dir)?;
    let (orders, receiver) = mpsc::channel(ORDERS);
    let (dead, route, settings) = (consumer.dead.clone(), consumer.route.clone(), consumer.settings.clone());
    let task = parking_lot::Mutex::new(Some(tokio::spawn(consumer.run(receiver, stop.clone()))));
    Ok(Handle { live, dead, route, settings, orders, task })
}

/// What a breaker is for: the server, where several consumers may share one.
fn service_of(settings: &ConsumerSettings) -> String {
    match &settings.target {
        Target::Http(route) => route.service(),
        Target::ClickHouse(server) => server.url.origin().ascii_serialization(),
        Target::Kafka(kafka) => format!("kafka://{}", kafka.brokers),
        Target::Redis(_) => format!("redis ({})", settings.name),
        Target::Channel(_) => format!("channel ({})", settings.name),
    }
}
