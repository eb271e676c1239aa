//! A gate over a disk and a lake in memory, for tests. What it stands on outlives it, so that a test can open it again.

use std::sync::Arc;

use bytes::Bytes;
use lakegate_env::{Clock, Disk, MemDisk, SeededRandom, SystemClock};
use lakegate_lake::testing::MemoryCatalog;
use lakegate_lake::{Compression, Lake, LakeOptions, Offload, TokioPause, Warehouse, Writer};
use lakegate_log::{Log, LogOptions};
use lakegate_memtable::Memtables;
use lakegate_model::{Contract, StreamName};

use crate::{
    Client, DuplicateSettings, Gate, GateOptions, GateSettings, Payloads, Source, StreamDeclaration, Submission,
    SubmissionOutcome, SubmitError, Wire,
};

/// What outlives a gate.
pub(crate) struct Ground {
    pub(crate) disk: MemDisk,
    warehouse: Warehouse,
    catalog: MemoryCatalog,
    random: Arc<SeededRandom>,
    pub(crate) streams: Vec<StreamDeclaration>,
}

/// A running gate.
pub(crate) struct Opened {
    pub(crate) gate: Gate,
    pub(crate) log: Log,
}

impl Ground {
    pub(crate) fn new(streams: &[(&str, Contract)]) -> Self {
        let (random, warehouse) = (Arc::new(SeededRandom::new(7)), Warehouse::in_memory());
        let catalog = MemoryCatalog::new(warehouse.clone(), random.clone());
        let declared = |(name, contract): &(&str, Contract)| StreamDeclaration {
            name: StreamName::new(name).unwrap(),
            contract: contract.clone(),
        };
        Self { disk: MemDisk::new(), warehouse, catalog, random, streams: streams.iter().map(declared).collect() }
    }

    /// The ground of another instance with the same lake.
    pub(crate) fn beside(&self) -> Self {
        let random = Arc::new(SeededRandom::new(8));
        let (warehouse, catalog) = (self.warehouse.clone(), self.catalog.clone());
        Self { disk: MemDisk::new(), warehouse, catalog, random, streams: self.streams.clone() }
    }

    pub(crate) async fn open(&self) -> Opened {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let options = LogOptions { segment_bytes: 64 << 10, quota_bytes: 8 << 20, ..LogOptions::new("/data/wal") };
        let log = Log::open(disk.clone(), clock.clone(), self.random.clone(), options).unwrap();
        let instance = uuid::Uuid::from_u128(u128::from(log.epoch()));
        let writer = Writer { log: log.id(), partition: 0, epoch: log.epoch(), instance, node: "test".to_owned() };
        let lake = Lake::open(LakeOptions {
            warehouse: self.warehouse.clone(),
            catalog: Arc::new(self.catalog.clone()),
            clock: clock.clone(),
            random: self.random.clone(),
            pause: Arc::new(TokioPause),
            writer,
            compression: Compression::None,
            target_file_bytes: 1 << 20,
            offload: Offload::Inline,
            commit_attempts: 3,
        });
        let (gate, _) = Gate::open(GateOptions {
            settings: GateSettings {
                data_dir: "/data".into(),
                batch_size_max: 1000,
                payload_bytes_max: 1 << 20,
                memory_budget: 4 << 20,
                commit_bytes: 64 << 10,
                flush_interval_us: 1_000_000,
                undeclared_streams: true,
                max_streams: 100,
                longest_window_us: 86_400_000_000,
                duplicates: DuplicateSettings::default(),
            },
            streams: self.streams.clone(),
            log: log.clone(),
            lake,
            memtables: Arc::new(Memtables::new(log.id(), log.durable_handle())),
            disk,
            clock,
            random: self.random.clone(),
        })
        .await
        .unwrap();
        Opened { gate, log }
    }
}

impl Opened {
    /// Sends payloads of one stream.
    pub(crate) async fn send(&self, stream: &str, payloads: &[&str]) -> Result<SubmissionOutcome, SubmitError> {
        let (mut body, mut spans) = (Vec::new(), Vec::new());
        for payload in payloads {
            let start = u32::try_from(body.len()).unwrap();
            body.extend_from_slice(payload.as_bytes());
            spans.push(start..u32::try_from(body.len()).unwrap());
            body.push(b'\n');
        }
        let stream = StreamName::new(stream).unwrap();
        let payloads = Payloads { tenant: None, stream, spans, atomic: false, batch_id: String::new() };
        self.gate
            .submit(Submission {
                principal: None,
                source: Source::Rest,
                wire: Wire::Payloads(payloads),
                body: Bytes::from(body),
                correlation_id: Some("r-1".to_owned()),
                client: Client::default(),
                in_order: true,
            })
            .await
    }

    pub(crate) fn close(self) {
        self.gate.close("the test ends");
        self.log.close();
    }
}
