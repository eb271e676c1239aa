//! The gate itself: opened over a log and a lake, then shared by all sources.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lakegate_access::Quotas;
use lakegate_env::{Clock, Disk, Random};
use lakegate_lake::Lake;
use lakegate_log::Log;
use lakegate_memtable::Memtables;
use lakegate_model::{StreamKey, TableName, Tally};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::api::StreamDeclaration;
use crate::balance::{Balance, BalanceError};
use crate::contracts::{ContractStore, ContractStoreError};
use crate::duplicates::{SharedUrlError, SharedWindow, Windows};
use crate::flush::TableUnit;
use crate::follow::Holds;
use crate::frame::FrameError;
use crate::growth::{GROWTH_DIR, GrowthStore};
use crate::import::{self, OwnContracts};
use crate::keys::BlockFiles;
use crate::recent::Recent;
use crate::remember::{DuplicateSettings, open_answers, open_keys};
use crate::replay::Replayed;
use crate::requests::Requests;
use crate::spill::Spills;
use crate::streams::{Beside, Streams};
use crate::tables::Dropped;

/// How often the gate looks whether a table is due.
const TICK: Duration = Duration::from_millis(50);
/// How many tables are flushed at a time.
const FLUSHES_AT_ONCE: usize = 2;
/// How often files that no table needs any more are looked for.
const MAINTAIN_EVERY_US: u64 = 60_000_000;
/// Memory is not freed by parts smaller than this share of the budget: they would only become small files.
const SMALL_PART_SHARE: usize = 64;
/// The balance is kept and the log trimmed at most so often.
pub(crate) const TRIM_EVERY_US: u64 = 1_000_000;

/// What the gate is told at its opening.
#[derive(Debug, Clone)]
pub struct GateSettings {
    /// Where the gate keeps contracts, the balance and spilled rows.
    pub data_dir: PathBuf,
    /// The most records of one request.
    pub batch_size_max: usize,
    /// The most bytes of one payload.
    pub payload_bytes_max: usize,
    /// The most bytes that rows and requests may take in memory.
    pub memory_budget: usize,
    /// A table is committed when so many bytes wait.
    pub commit_bytes: usize,
    /// Or when the oldest row has waited so long, in microseconds.
    pub flush_interval_us: i64,
    /// Whether a record may make a stream that nobody declared.
    pub undeclared_streams: bool,
    /// The most streams, over all tenants.
    pub max_streams: usize,
    /// The longest duplicate window of any stream, in microseconds: keys older than that are forgotten.
    pub longest_window_us: i64,
    /// What is remembered to tell duplicates.
    pub duplicates: DuplicateSettings,
}

/// All that the gate stands on.
pub struct GateOptions {
    /// Settings.
    pub settings: GateSettings,
    /// The streams of the configuration.
    pub streams: Vec<StreamDeclaration>,
    /// The log.
    pub log: Log,
    /// The lake.
    pub lake: Lake,
    /// The memtables, shared with who queries.
    pub memtables: Arc<Memtables>,
    /// The disk of the data folder.
    pub disk: Arc<dyn Disk>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
}

/// Why the gate did not open.
#[derive(Debug, thiserror::Error)]
pub enum GateOpenError {
    /// A frame of the log cannot be read back.
    #[error("the log cannot be read: {0}")]
    Log(lakegate_log::ReadError),
    /// A frame's header cannot be read.
    #[error("the frame at offset {offset} cannot be replayed: {error}")]
    Frame {
        /// Where.
        offset: u64,
        /// Why.
        error: FrameError,
    },
    /// A frame's records cannot be read.
    #[error("the frame at offset {offset} cannot be replayed: {reason}")]
    Body {
        /// Where.
        offset: u64,
        /// Why.
        reason: String,
    },
    /// A contract could not be read or kept.
    #[error(transparent)]
    Contract(ContractStoreError),
    /// A stream of the log cannot be made.
    #[error("a stream of the log cannot be made: {0}")]
    Stream(String),
    /// The window that is shared cannot be.
    #[error(transparent)]
    Shared(SharedUrlError),
    /// The kept event keys could not be read.
    #[error("the event keys that tell duplicates: {0}")]
    Keys(std::io::Error),
    /// The balance could not be read.
    #[error(transparent)]
    Balance(BalanceError),
    /// The folder for spilled rows could not be made.
    #[error("the folder for rows that do not fit into memory: {0}")]
    Spill(String),
    /// The lake could not tell how far a table is.
    #[error("how far the table {table} is cannot be told: {error}; start again when the catalog can be reached")]
    Lake {
        /// Which table.
        table: TableName,
        /// Why.
        error: String,
    },
}

/// With so few segments there is none to remove: the one in use and the one prepared ahead.
pub(crate) const SEGMENTS_KEPT: u64 = 2;

pub(crate) struct Inner {
    pub(crate) settings: GateSettings,
    pub(crate) log: Log,
    pub(crate) lake: Lake,
    pub(crate) memtables: Arc<Memtables>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) streams: Streams,
    pub(crate) contracts: Arc<ContractStore>,
    pub(crate) spills: Spills,
    /// How much each client and tenant may send; set once, before anything is sent.
    pub(crate) quotas: OnceLock<Quotas>,
    pub(crate) inflight: AtomicUsize,
    /// Those of them that are rows of files.
    pub(crate) importing: AtomicUsize,
    /// What became of rows of files, as the tables say.
    pub(crate) imported: Mutex<BTreeMap<StreamKey, Tally>>,
    /// Rows of other logs that are in memory and not committed.
    pub(crate) upstream: Mutex<crate::upstream::Pending>,
    /// Event keys of imported rows whose commit may stand or not.
    pub(crate) unsettled: Mutex<Vec<import::Unsettled>>,
    pub(crate) flush_wanted: Notify,
    /// Taken for reading around each append, for writing to get sums that belong to one offset.
    pub(crate) balance_gate: RwLock<()>,
    pub(crate) balance: Mutex<Balance>,
    pub(crate) requests: Requests,
    /// The log that requests are written to in place of ours; set once, before the first of them.
    pub(crate) remote: OnceLock<Arc<dyn crate::remote::RemoteLog>>,
    /// The window that other instances share, if they do.
    pub(crate) shared: Option<SharedWindow>,
    /// Where long requests are worked on, so that short ones need not wait for them.
    pub(crate) aside: OnceLock<Handle>,
    pub(crate) keys: BlockFiles,
    pub(crate) answers: BlockFiles,
    /// Whether the log may hold event keys or requests' own ids.
    pub(crate) has_keys: AtomicBool,
    pub(crate) holds: Holds,
    /// What followers need not shape again.
    pub(crate) recent: Recent,
    /// Tables that were dropped, and with them what the log holds for them.
    pub(crate) dropped: Dropped,
    closed: Mutex<Option<String>>,
    is_closed: AtomicBool,
    id_base: Mutex<u128>,
    pub(crate) trimmed: Mutex<Trimmed>,
}

#[derive(Default)]
pub(crate) struct Trimmed {
    /// The keys of frames below this are in files.
    pub(crate) keys_upto: u64,
    pub(crate) offset: u64,
    pub(crate) at_us: u64,
}

/// The way in for all sources. Clones share one gate.
#[derive(Clone)]
pub struct Gate {
    pub(crate) inner: Arc<Inner>,
}

impl Gate {
    /// Opens the gate: replays what the log holds and the lake lacks.
    ///
    /// # Errors
    /// See [`GateOpenError`]. Nothing is lost: the log stays as it is.
    pub async fn open(options: GateOptions) -> Result<(Self, Replayed), GateOpenError> {
        let GateOptions { settings, streams, log, lake, memtables, disk, clock, random } = options;
        let contracts =
            ContractStore::open(disk.clone(), settings.data_dir.join("contracts")).map_err(GateOpenError::Contract)?;
        let contracts = Arc::new(contracts);
        let growth = GrowthStore::open(disk.clone(), clock.clone(), settings.data_dir.join(GROWTH_DIR));
        let growth = growth.map_err(GateOpenError::Contract)?;
        let requests = Requests::new(settings.duplicates.requests_window_us, settings.duplicates.requests_bytes);
        let windows = Windows::new(settings.duplicates.keys_max, settings.longest_window_us);
        let keys = open_keys(&disk, &settings, &windows, &requests).map_err(GateOpenError::Keys)?;
        let settled = import::settle_claims(&*disk, &settings.data_dir, &lake, &keys).await?;
        for entry in &settled {
            windows.remember(entry.stream, entry.key, entry.received_us);
        }
        let answers = open_answers(&disk, &settings, &requests).map_err(GateOpenError::Keys)?;
        let open_shared = |shared| SharedWindow::open(shared, log.id(), clock.clone(), random.clone());
        let shared = settings.duplicates.shared.clone().map(open_shared).transpose().map_err(GateOpenError::Shared)?;
        if let Some(shared) = &shared {
            let window_ms = u64::try_from(settings.longest_window_us / 1000).unwrap_or(u64::MAX);
            settled.iter().for_each(|entry| shared.confirm_later(entry.stream, entry.key, window_ms));
        }
        let (undeclared, most) = (settings.undeclared_streams, settings.max_streams);
        let own = OwnContracts::open(&disk, &settings.data_dir.join("contracts/own"), &contracts);
        let own = own.map_err(GateOpenError::Contract)?;
        let streams =
            Streams::new(&streams, undeclared, most, &contracts, Beside { own, growth }, memtables.clone(), windows);
        let streams = streams.map_err(GateOpenError::Contract)?;
        let spills = Spills::open(disk.clone(), settings.data_dir.join("spill"));
        let spills = spills.map_err(|error| GateOpenError::Spill(error.to_string()))?;
        let balance =
            Balance::load(&*disk, &settings.data_dir.join("balance.json"), log.id()).map_err(GateOpenError::Balance)?;
        let id_base = Mutex::new(random.next_u128());
        let dropped = Dropped::open(disk.clone(), settings.data_dir.join("dropped_tables.json"));
        let dropped = dropped.map_err(GateOpenError::Contract)?;
        let inner = Inner {
            settings,
            log,
            lake,
            memtables,
            disk,
            clock,
            random,
            streams,
            contracts,
            spills,
            quotas: OnceLock::new(),
            inflight: AtomicUsize::new(0),
            importing: AtomicUsize::new(0),
            imported: Mutex::default(),
            upstream: Mutex::default(),
            unsettled: Mutex::default(),
            flush_wanted: Notify::new(),
            balance_gate: RwLock::new(()),
            balance: Mutex::new(balance),
            requests,
            remote: OnceLock::new(),
            shared,
            aside: OnceLock::new(),
            keys,
            answers,
            has_keys: AtomicBool::new(false),
            holds: Holds::default(),
            recent: Recent::default(),
            dropped,
            closed: Mutex::default(),
            is_closed: AtomicBool::new(false),
            id_base,
            trimmed: Mutex::default(),
        };
        let replayed = inner.replay().await?;
        inner.confirm_waiting().await;
        Ok((Self { inner: Arc::new(inner) }, replayed))
    }

    /// From now on requests of known clients are limited. Called once, before the first of them.
    pub fn limit(&self, quotas: Quotas) {
        let _ = self.inner.quotas.set(quotas);
    }

    /// Flushes, trims and keeps the figures, until the gate is shut. Spawned once by who opened the gate.
    pub async fn run(&self) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let gate = self.clone();
        tokio::spawn(async move {
            if let Err(error) = gate.load_imported().await {
                tracing::warn!(%error, "what files brought to the tables is not counted yet");
            }
        });
        let mut next_second_us = 0;
        let mut next_maintain_us = MAINTAIN_EVERY_US;
        while !self.inner.is_closed.load(Ordering::Acquire) {
            tokio::select! {
                _ = interval.tick() => {}
                () = self.inner.flush_wanted.notified() => {}
            }
            let now = self.inner.clock.monotonic_us();
            if now >= next_second_us {
                next_second_us = now + 1_000_000;
                self.inner.tick_rates();
                let gate = self.clone();
                if self.inner.shared.is_some() {
                    tokio::spawn(async move { gate.inner.confirm_waiting().await });
                }
            }
            if now >= next_maintain_us {
                next_maintain_us = now + MAINTAIN_EVERY_US;
                let gate = self.clone();
                tokio::spawn(async move { gate.inner.maintain().await });
            }
            self.start_flushes();
            if self.inner.is_upkeep_due(now) {
                // Writes and syncs files: not on a thread that answers requests.
                let gate = self.clone();
                let upkeep = move || {
                    gate.inner.keep_memory();
                    gate.inner.forget_old();
                    gate.inner.trim(false);
                };
                let _ = tokio::task::spawn_blocking(upkeep).await;
            }
        }
    }

    /// Begins a flush of each table that is due and has none under way.
    fn start_flushes(&self) {
        self.inner.freeze_due(false);
        let waiting = self.inner.streams.units().into_iter().filter(|unit| !unit.memtable.frozen().is_empty());
        for unit in waiting.filter(|unit| unit.is_ready(self.inner.clock.monotonic_us())).take(FLUSHES_AT_ONCE) {
            let gate = self.clone();
            tokio::spawn(async move {
                if matches!(gate.inner.flush_table(&unit, false).await, Ok(true)) {
                    gate.inner.flush_wanted.notify_one();
                }
            });
        }
    }

    /// One round of what [`Self::run`] does, on the caller's task: for simulations.
    pub async fn run_once(&self) {
        self.inner.freeze_due(false);
        self.inner.flush_once().await;
        self.inner.keep_memory();
        self.inner.forget_old();
        self.inner.trim(true);
    }

    /// Brings everything that is durable into the lake. Returns the tables that could not be brought, with the reason.
    pub async fn flush_all(&self) -> BTreeMap<TableName, String> {
        self.inner.freeze_due(true);
        let mut failed = BTreeMap::new();
        for unit in self.inner.streams.units() {
            if let Err(error) = self.inner.flush_frozen(&unit).await {
                failed.insert(unit.table.clone(), error.to_string());
            }
        }
        self.inner.trim(true);
        failed
    }

    /// Takes no more requests; those under way are answered.
    pub fn close(&self, reason: &str) {
        self.inner.close(reason.to_owned());
    }

    /// The sums for each tenant and stream, as of now: what came through the log, and what files brought.
    #[must_use]
    pub fn balance(&self) -> BTreeMap<StreamKey, Tally> {
        self.inner.sums()
    }
}

impl Inner {
    /// What came through the log, and what files and other logs brought.
    pub(crate) fn sums(&self) -> BTreeMap<StreamKey, Tally> {
        let mut sums = self.balance.lock().tallies.clone();
        for (key, tally) in &*self.imported.lock() {
            sums.entry(key.clone()).or_default().add(tally);
        }
        for (key, tally) in self.upstream.lock().values() {
            sums.entry(key.clone()).or_default().add(tally);
        }
        sums
    }

    /// The folder of event keys.
    pub(crate) fn keys_dir(&self) -> PathBuf {
        self.settings.data_dir.join("keys")
    }

    /// Why no requests are taken, if none are.
    pub(crate) fn closed_reason(&self) -> Option<String> {
        if !self.is_closed.load(Ordering::Acquire) {
            return None;
        }
        self.closed.lock().clone()
    }

    pub(crate) fn close(&self, reason: String) {
        self.closed.lock().get_or_insert(reason);
        self.is_closed.store(true, Ordering::Release);
        self.flush_wanted.notify_one();
    }

    /// A thing that must not be has happened: no more requests are taken, what is durable is found again at the next
    /// start. Gives the error that the request under way is answered with.
    pub(crate) fn break_down(&self, error: &dyn std::fmt::Display) -> crate::SubmitError {
        let message = format!("rows could not be put into memory: {error}; restart to replay them from the log");
        tracing::error!(%error, "rows could not be put into memory");
        self.close(message.clone());
        crate::SubmitError::Unavailable { message }
    }

    /// A fresh stretch of the random bits of ids: no two requests of a process share one.
    pub(crate) fn next_id_base(&self) -> u128 {
        let mut base = self.id_base.lock();
        *base = base.wrapping_add(1 << 32);
        *base
    }

    /// Flushes each table that may be, one after the other.
    pub(crate) async fn flush_once(&self) {
        for unit in self.streams.units() {
            while matches!(self.flush_table(&unit, false).await, Ok(true)) {}
        }
    }

    async fn confirm_waiting(&self) {
        if let Some(shared) = &self.shared {
            shared.tell_waiting().await;
        }
    }

    fn is_upkeep_due(&self, now_us: u64) -> bool {
        self.memtables.bytes() > self.settings.memory_budget / 2 || now_us >= self.trimmed.lock().at_us + TRIM_EVERY_US
    }

    /// Frees memory before it runs out: what is over half the budget is frozen, and what the lake does not take is
    /// moved to files.
    pub(crate) fn keep_memory(&self) {
        self.spills.sweep();
        let taken = self.memtables.bytes();
        if taken > self.settings.memory_budget / 2 {
            self.freeze_larger_than(self.settings.memory_budget / SMALL_PART_SHARE);
        }
        if taken > self.settings.memory_budget / 4 * 3 {
            self.spill_excess();
        }
    }

    fn tick_rates(&self) {
        for stream in self.streams.all() {
            stream.rate.tick(stream.accepted.load(Ordering::Relaxed));
        }
    }
}

impl TableUnit {
    fn is_ready(&self, now_us: u64) -> bool {
        !self.is_busy() && self.may_try(now_us)
    }
}
