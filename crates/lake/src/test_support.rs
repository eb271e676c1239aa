//! What this room's tests share.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int64Array, MapBuilder, MapFieldNames, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use futures::StreamExt;
use lakegate_env::{ManualClock, SeededRandom};
use lakegate_model::{Column, ColumnSource, ColumnType, Contract, LogId, Position, TableName};
use uuid::Uuid;

use crate::catalog::Catalog;
use crate::commit::Commit;
use crate::lake::Lake;
use crate::options::{Compression, LakeOptions, Offload, Writer};
use crate::scan::ScanRequest;
use crate::table::LakeTable;
use crate::testing::{ClockPause, FaultyCatalog, MemoryCatalog};
use crate::view::TableView;
use crate::warehouse::Warehouse;
use crate::write::WrittenFile;

pub(crate) const DAY_US: i64 = 86_400_000_000;
/// 2026-01-02T12:00:00Z. In the past: the library's own clock is the machine's.
pub(crate) const NOON_US: i64 = 1_767_312_000_000_000 + DAY_US / 2;

pub(crate) const LOG: LogId = LogId(Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0));

pub(crate) fn name() -> TableName {
    TableName::new("acme", "orders").unwrap()
}

pub(crate) fn contract() -> Contract {
    let mut contract = Contract::undeclared_default();
    contract.columns.push(Column {
        name: "amount".to_owned(),
        column_type: ColumnType::Double,
        source: ColumnSource::Path(vec!["amount".to_owned()]),
        required: false,
    });
    contract
}

pub(crate) fn writer(epoch: u64, instance: u128) -> Writer {
    Writer { log: LOG, partition: 0, epoch, instance: Uuid::from_u128(instance), node: "test".to_owned() }
}

pub(crate) fn options(warehouse: &Warehouse, catalog: Arc<dyn Catalog>, writer: Writer, seed: u64) -> LakeOptions {
    let clock = Arc::new(ManualClock::new(NOON_US));
    LakeOptions {
        warehouse: warehouse.clone(),
        catalog,
        clock: Arc::clone(&clock) as _,
        random: Arc::new(SeededRandom::new(seed)),
        pause: Arc::new(ClockPause::new(clock)),
        writer,
        compression: Compression::Zstd,
        target_file_bytes: 128 << 20,
        offload: Offload::Inline,
        commit_attempts: 12,
    }
}

/// A lake in memory whose catalog does as it is told.
pub(crate) struct Bench {
    pub(crate) warehouse: Warehouse,
    pub(crate) memory: MemoryCatalog,
    pub(crate) faulty: FaultyCatalog,
    pub(crate) lake: Lake,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let warehouse = Warehouse::in_memory();
        let memory = MemoryCatalog::new(warehouse.clone(), Arc::new(SeededRandom::new(7)));
        let faulty = FaultyCatalog::new(Arc::new(memory.clone()));
        let lake = Lake::open(options(&warehouse, Arc::new(faulty.clone()), writer(1, 1), 1));
        Self { warehouse, memory, faulty, lake }
    }

    /// Another writer of the same log, with the catalog undisturbed.
    pub(crate) fn rival(&self, epoch: u64, instance: u128) -> Lake {
        Lake::open(options(
            &self.warehouse,
            Arc::new(self.memory.clone()),
            writer(epoch, instance),
            1000 + u64::try_from(instance).unwrap(),
        ))
    }

    pub(crate) async fn table(&self) -> Arc<LakeTable> {
        self.lake.open_table(&name(), &contract()).await.unwrap()
    }
}

/// Commits three rows, `1000..1003`, of another log to the same table.
pub(crate) async fn append_from_another_log(bench: &Bench) {
    let log = LogId(Uuid::from_u128(77));
    let options = options(&bench.warehouse, Arc::new(bench.memory.clone()), Writer { log, ..writer(1, 2) }, 5);
    let table = Lake::open(options).open_table(&name(), &contract()).await.unwrap();
    let mut commit = commit_of(table.write(vec![rows(1000, 3)]).await.unwrap(), 0, 3);
    commit.log.as_mut().unwrap().position.log = log;
    commit.commit_id = Uuid::from_u128(4711);
    table.commit(commit).await.unwrap();
}

/// Rows `first..first + rows`; row n has event time noon + n seconds.
pub(crate) fn rows(first: i64, rows: i64) -> RecordBatch {
    let numbers: Vec<i64> = (first..first + rows).collect();
    let times: Vec<i64> = numbers.iter().map(|n| NOON_US + n * 1_000_000).collect();
    rows_at(&numbers, &times)
}

pub(crate) fn rows_at(numbers: &[i64], times: &[i64]) -> RecordBatch {
    let text =
        |f: &dyn Fn(&i64) -> String| Arc::new(numbers.iter().map(|n| Some(f(n))).collect::<StringArray>()) as ArrayRef;
    let time =
        |values: &[i64]| Arc::new(TimestampMicrosecondArray::from(values.to_vec()).with_timezone("+00:00")) as ArrayRef;
    let names = MapFieldNames { entry: "key_value".to_owned(), key: "key".to_owned(), value: "value".to_owned() };
    let mut map = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    for n in numbers {
        map.keys().append_value("n");
        map.values().append_value(n.to_string());
        map.append(n % 3 != 0).unwrap();
    }
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("tenant_id", text(&|_| "acme".to_owned())),
        ("endpoint_id", text(&|_| "orders".to_owned())),
        ("event_id", text(&|n| format!("e-{n:08}"))),
        ("event_type", text(&|n| format!("type-{}", n % 5))),
        ("event_time", time(times)),
        ("received_at", time(times)),
        ("version", Arc::new(Int64Array::from(vec![1; numbers.len()]))),
        ("payload", text(&|n| format!("{{\"n\":{n}}}"))),
        ("attributes", Arc::new(map.finish())),
        (
            "amount",
            Arc::new(numbers.iter().map(|n| if n % 7 == 0 { f64::NAN } else { *n as f64 }).collect::<Float64Array>()),
        ),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

pub(crate) fn commit_of(files: Vec<WrittenFile>, from: u64, to: u64) -> Commit {
    // The id follows from the range, so that a test's runs are alike.
    let commit_id = Uuid::from_u128((u128::from(from) << 64) | u128::from(to) | 0x7000_0000_0000_0000_0000);
    Commit::of_log(commit_id, files, Position { log: LOG, partition: 0, next_offset: to }, from)
}

/// Writes and commits the rows `from..to`.
pub(crate) async fn append(table: &LakeTable, from: i64, to: i64) -> crate::CommitOutcome {
    let files = table.write(vec![rows(from, to - from)]).await.unwrap();
    table.commit(commit_of(files, u64::try_from(from).unwrap(), u64::try_from(to).unwrap())).await.unwrap()
}

pub(crate) async fn read(view: &TableView, request: ScanRequest) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    for mut stream in view.scan(request).await.unwrap() {
        while let Some(batch) = stream.next().await {
            batches.push(batch.unwrap());
        }
    }
    batches
}

/// The event ids that the view shows, sorted.
pub(crate) async fn event_ids(view: &TableView) -> Vec<String> {
    let request = ScanRequest { projection: Some(vec!["event_id".to_owned()]), ..ScanRequest::default() };
    let mut ids = Vec::new();
    for batch in read(view, request).await {
        let column = batch.column(0).as_any().downcast_ref::<StringArray>().unwrap().clone();
        ids.extend(column.iter().map(|id| id.unwrap().to_owned()));
    }
    ids.sort();
    ids
}

pub(crate) fn ids(range: std::ops::Range<i64>) -> Vec<String> {
    range.map(|n| format!("e-{n:08}")).collect()
}
