//! Opens every room in the order that records flow.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lakegate_env::{Clock, DirLock, Disk, Random, RealDisk, SystemClock, SystemRandom};
use lakegate_ingest::{DuplicateSettings, Gate, GateOptions, GateSettings, SharedSettings, StreamDeclaration};
use lakegate_lake::{
    BucketOptions, Care, Catalog, CatalogError, Compression, DatabaseAddress, EmbeddedCatalog, EmbeddedOptions, Lake,
    LakeOptions, Offload, RestCatalog, RestOptions, RestService, TokioPause, Warehouse, Writer,
};
use lakegate_log::{Driver, Log, LogMode, LogOptions};
use lakegate_memtable::Memtables;
use lakegate_model::Contract;
use uuid::Uuid;

use super::{ServeError, folder};
use crate::config::{CompressionType, Config, Duplicates, Redis, Settings, WhenAway};

/// Several requests that wait for the disk at once; what comes beyond is told to come back.
const LOG_QUEUE_MESSAGES: usize = 16;

/// What the log's frame holds besides the request: the gate's decisions.
const FRAME_HEADER_BYTES: usize = 4 << 20;

/// The most streams over all tenants: each has builders in memory and a table in the catalog.
const STREAMS_MAX: usize = 10_000;

/// How often a commit is tried within one flush; after that the flush itself is tried again later.
const COMMIT_ATTEMPTS: u32 = 12;

/// How long an external catalog may take for one answer.
const CATALOG_TIMEOUT_MS: u64 = 30_000;

/// Everything that is open.
pub(super) struct Opened {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) log: Log,
    pub(super) lake: Lake,
    pub(super) memtables: Arc<Memtables>,
    pub(super) gate: Gate,
    /// The embedded catalog for other engines, where it is the one in use.
    pub(super) catalog: Option<RestService>,
    /// Held until the process ends.
    pub(super) lock: Box<dyn DirLock>,
}

/// Opens all rooms; the gate's opening replays the log.
pub(super) async fn open(config: &Config) -> Result<Opened, ServeError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let random: Arc<dyn Random> = Arc::new(SystemRandom);
    let data_dir = config.data_dir();
    folder::make(&data_dir)?;
    let lock = folder::lock(&*disk, &data_dir)?;
    let log = open_log(config, disk.clone(), clock.clone(), random.clone()).await?;
    let (lake, catalog) = open_lake(config, &log, clock.clone(), random.clone()).await?;
    let memtables = Arc::new(
        Memtables::new(log.id(), log.durable_handle())
            .with_batch_rows(usize::try_from(config.settings.ingestion.batch_size).unwrap_or(usize::MAX)),
    );
    let options = GateOptions {
        settings: gate_settings(config)?,
        streams: config
            .streams
            .iter()
            .map(|(name, contract)| StreamDeclaration { name: name.clone(), contract: contract.clone() })
            .collect(),
        log: log.clone(),
        lake: lake.clone(),
        memtables: memtables.clone(),
        disk,
        clock: clock.clone(),
        random,
    };
    let (gate, replayed) = Gate::open(options).await?;
    tracing::info!(
        frames = replayed.frames,
        records = replayed.records,
        bytes = replayed.bytes,
        "the log was replayed"
    );
    Ok(Opened { clock, log, lake, memtables, gate, catalog, lock })
}

async fn open_log(
    config: &Config,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
) -> Result<Log, ServeError> {
    let dir = config.wal_dir();
    let storage = &config.settings.storage;
    let message = config.settings.ingestion.message_bytes_max.as_usize();
    let options = LogOptions {
        segment_bytes: storage.wal.segment_bytes.bytes(),
        quota_bytes: storage.wal.quota.bytes(),
        max_frame_bytes: message.saturating_add(FRAME_HEADER_BYTES),
        max_queued_bytes: message.saturating_mul(LOG_QUEUE_MESSAGES),
        realtime: storage.wal.realtime,
        mode: if storage.wal_enabled { LogMode::Durable } else { LogMode::Volatile },
        driver: Driver::Thread,
        dir: dir.clone(),
    };
    if storage.wal_enabled {
        folder::make(&dir)?;
    }
    // Recovery reads whole segments: not on a thread that others wait for.
    let opened = tokio::task::spawn_blocking(move || Log::open(disk, clock, random, options)).await;
    Ok(opened.map_err(|e| ServeError::Broken(format!("the log's opening was ended: {e}")))??)
}

async fn open_lake(
    config: &Config,
    log: &Log,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
) -> Result<(Lake, Option<RestService>), ServeError> {
    let settings = &config.settings;
    let warehouse = open_warehouse(config)?;
    let failed = |e: CatalogError| match e {
        CatalogError::Unavailable(why) => ServeError::CatalogAway(why),
        other => ServeError::Catalog(other.to_string()),
    };
    let (catalog, embedded): (Arc<dyn Catalog>, _) = if settings.catalog.uri.is_empty() {
        let database = database_address(settings.catalog.database.reveal());
        if let DatabaseAddress::Sqlite(file) = &database
            && let Some(dir) = file.parent().filter(|dir| !dir.as_os_str().is_empty())
        {
            folder::make(dir)?;
        }
        let options = EmbeddedOptions { database, warehouse: warehouse.clone(), random: random.clone() };
        let embedded = EmbeddedCatalog::open(options).await.map_err(failed)?;
        let (told, key) = engine_properties(settings);
        let service = RestService::new(embedded.clone(), told, key);
        (Arc::new(embedded), Some(service))
    } else {
        let options = RestOptions {
            uri: settings.catalog.uri.clone(),
            token: (!settings.catalog.token.is_empty()).then(|| settings.catalog.token.reveal().to_owned()),
            warehouse: (!settings.catalog.warehouse.is_empty()).then(|| settings.catalog.warehouse.clone()),
            timeout_ms: CATALOG_TIMEOUT_MS,
            storage: warehouse.clone(),
            random: random.clone(),
        };
        (Arc::new(RestCatalog::connect(options).await.map_err(failed)?), None)
    };
    let maintenance = &settings.maintenance;
    let care = Care {
        snapshots_keep: usize::try_from(maintenance.snapshots_keep).unwrap_or(usize::MAX).max(2),
        compact: maintenance.compact,
        compact_bytes: maintenance.compact_bytes.bytes(),
    };
    let options = LakeOptions {
        warehouse,
        catalog,
        clock,
        pause: Arc::new(TokioPause),
        writer: Writer {
            log: log.id(),
            partition: 0,
            epoch: log.epoch(),
            instance: Uuid::from_u128(random.next_u128()),
            node: settings.node.id.clone(),
        },
        random,
        compression: compression(settings.storage.compression_type),
        target_file_bytes: settings.storage.target_file_bytes.bytes(),
        offload: Offload::BlockingThreads,
        commit_attempts: COMMIT_ATTEMPTS,
    };
    Ok((Lake::open_with(options, care), embedded))
}

fn gate_settings(config: &Config) -> Result<GateSettings, ServeError> {
    let ingestion = &config.settings.ingestion;
    Ok(GateSettings {
        data_dir: config.data_dir(),
        batch_size_max: usize::try_from(ingestion.batch_size_max).unwrap_or(usize::MAX),
        payload_bytes_max: ingestion.payload_bytes_max.as_usize(),
        memory_budget: ingestion.memory_budget.as_usize(),
        commit_bytes: ingestion.commit_bytes.as_usize(),
        flush_interval_us: i64::try_from(ingestion.flush_interval.get().as_micros()).unwrap_or(i64::MAX),
        undeclared_streams: ingestion.undeclared_streams,
        max_streams: STREAMS_MAX,
        longest_window_us: longest_window_us(config),
        duplicates: duplicate_settings(&config.settings.duplicates)?,
    })
}

/// The longest duplicate window of any stream, that of undeclared ones among them.
fn longest_window_us(config: &Config) -> i64 {
    let windows = config.streams.iter().map(|(_, contract)| contract.duplicate_window_ms);
    let longest = windows.chain([Contract::undeclared_default().duplicate_window_ms]).max().unwrap_or(0);
    i64::try_from(longest.saturating_mul(1000)).unwrap_or(i64::MAX)
}

fn duplicate_settings(settings: &Duplicates) -> Result<DuplicateSettings, ServeError> {
    let shared = (!settings.redis.url.is_empty()).then(|| shared_settings(&settings.redis)).transpose()?;
    Ok(DuplicateSettings {
        keys_max: settings.keys_max,
        requests_window_us: i64::try_from(settings.requests_window.get().as_micros()).unwrap_or(i64::MAX),
        requests_bytes: settings.requests_memory.as_usize(),
        shared,
    })
}

fn shared_settings(redis: &Redis) -> Result<SharedSettings, ServeError> {
    let unread = |error| ServeError::Redis(format!("{} (duplicates.redis.ca) cannot be read: {error}", redis.ca));
    let ca = (!redis.ca.is_empty()).then(|| std::fs::read(&redis.ca).map_err(unread)).transpose()?;
    Ok(SharedSettings {
        url: redis.url.reveal().to_owned(),
        ca,
        prefix: redis.prefix.clone(),
        when_away: match redis.when_away {
            WhenAway::Wait => lakegate_ingest::WhenAway::Wait,
            WhenAway::AcceptAndMark => lakegate_ingest::WhenAway::AcceptAndMark,
        },
        wait: redis.wait.get(),
        claim: redis.claim.get(),
        timeout: redis.timeout.get(),
    })
}

fn open_warehouse(config: &Config) -> Result<Warehouse, ServeError> {
    let (warehouse, s3) = (&config.settings.storage.warehouse, &config.settings.storage.s3);
    let opened = if warehouse.starts_with("s3://") {
        Warehouse::open_bucket(BucketOptions {
            location: warehouse.clone(),
            endpoint: s3.endpoint.clone(),
            region: s3.region.clone(),
            access_key: s3.access_key.reveal().to_owned(),
            secret_key: s3.secret_key.reveal().to_owned(),
            path_style: s3.path_style,
        })
    } else {
        Warehouse::open_folder(Path::new(warehouse.strip_prefix("file://").unwrap_or(warehouse)))
    };
    opened.map_err(|e| ServeError::Warehouse(e.to_string()))
}

/// What the embedded catalog tells engines of the store, and the key that it lends them.
fn engine_properties(settings: &Settings) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    if !settings.storage.warehouse.starts_with("s3://") {
        return Default::default();
    }
    let s3 = &settings.storage.s3;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let path_style = if s3.path_style { "true" } else { "false" };
    let mut told = BTreeMap::from([
        pair("s3.path-style-access", path_style),
        pair("s3.region", &s3.region),
        pair("client.region", &s3.region),
    ]);
    if !s3.endpoint.is_empty() {
        told.extend([pair("s3.endpoint", s3.endpoint.trim_end_matches('/'))]);
    }
    if s3.engine_access_key.is_empty() {
        return (told, BTreeMap::new());
    }
    let key = BTreeMap::from([
        pair("s3.access-key-id", s3.engine_access_key.reveal()),
        pair("s3.secret-access-key", s3.engine_secret_key.reveal()),
    ]);
    (told, key)
}

/// `sqlite://./data/catalog.db` names a file; `postgres://…` a server.
fn database_address(url: &str) -> DatabaseAddress {
    let Some(path) = url.strip_prefix("sqlite:") else { return DatabaseAddress::Postgres(url.to_owned()) };
    let path = path.strip_prefix("//").unwrap_or(path);
    DatabaseAddress::Sqlite(Path::new(path.split('?').next().unwrap_or(path)).to_owned())
}

fn compression(kind: CompressionType) -> Compression {
    match kind {
        CompressionType::Snappy => Compression::Snappy,
        CompressionType::Zstd => Compression::Zstd,
        CompressionType::Lz4 => Compression::Lz4,
        CompressionType::Gzip => Compression::Gzip,
        CompressionType::None => Compression::None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_database_address_leads_to_its_file() {
        for (url, file) in [
            ("sqlite://./data/catalog.db", "./data/catalog.db"),
            ("sqlite:///srv/x.db", "/srv/x.db"),
            ("sqlite:x.db?mode=rwc", "x.db"),
        ] {
            assert_eq!(database_address(url), DatabaseAddress::Sqlite(PathBuf::from(file)));
        }
    }
}
