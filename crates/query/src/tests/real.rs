//! The same against the real lake, its Parquet files and its commits.

use std::sync::atomic::AtomicBool;

use lakegate_env::{ManualClock, SeededRandom};
use lakegate_lake::testing::{ClockPause, MemoryCatalog};
use lakegate_lake::{Commit, Compression, Lake, LakeOptions, LakeTable, Offload, Warehouse, Writer};
use lakegate_memtable::{RowBuilder, Value, arrow_schema};
use lakegate_model::{Column, ColumnSource, ColumnType, Contract, Position};
use uuid::Uuid;

use super::*;

const LOG: LogId = LogId(Uuid::from_u128(7));
const NOON_US: i64 = 1_767_355_200_000_000;
/// Commits while queries count. Each writes, syncs and commits a Parquet file.
const COMMITS: i64 = 150;

fn contract() -> Contract {
    let column = |name: &str, column_type, required| Column {
        name: name.to_owned(),
        column_type,
        source: ColumnSource::Path(vec![name.to_owned()]),
        required,
    };
    let mut contract = Contract::undeclared_default();
    contract.columns = vec![
        column("n", ColumnType::Long, true),
        column("at", ColumnType::Timestamptz, false),
        column("ratio", ColumnType::Double, false),
        column("price", ColumnType::Decimal { precision: 12, scale: 2 }, false),
        column("day", ColumnType::Date, false),
        column("city", ColumnType::String, false),
        column("tags", ColumnType::StringMap, false),
    ];
    contract.partitions.clear();
    contract.sort.clear();
    contract
}

fn rows(range: std::ops::Range<i64>) -> RecordBatch {
    let contract = contract();
    let mut rows = RowBuilder::new(&contract, arrow_schema(&contract), 8);
    for n in range {
        let ratio = if n % 5 == 0 { Value::Double(f64::NAN) } else { Value::Double(n as f64 / 2.0) };
        let city = if n % 3 == 0 { Value::Null } else { Value::Owned(format!("city-{}", n % 4).into()) };
        let tags = Value::OwnedMap(vec![("n".to_owned(), n.to_string())]);
        let at = Value::Long(NOON_US + n * 1_000_000);
        rows.push(&[
            Value::Long(n),
            at,
            ratio,
            Value::Decimal(i128::from(n) * 25),
            Value::Long(20_000 + n),
            city,
            tags,
        ])
        .unwrap();
    }
    rows.finish().unwrap()
}

/// A house with a real lake.
struct RealHouse {
    house: House,
    table: Arc<LakeTable>,
}

impl RealHouse {
    async fn new(warehouse: Warehouse) -> Self {
        let random = Arc::new(SeededRandom::new(7));
        let clock = Arc::new(ManualClock::new(NOON_US));
        let lake = Lake::open(LakeOptions {
            warehouse: warehouse.clone(),
            catalog: Arc::new(MemoryCatalog::new(warehouse, random.clone())),
            clock: clock.clone(),
            random,
            pause: Arc::new(ClockPause::new(clock)),
            writer: Writer { log: LOG, partition: 0, epoch: 1, instance: Uuid::from_u128(1), node: "test".to_owned() },
            compression: Compression::Zstd,
            target_file_bytes: 128 << 20,
            offload: Offload::BlockingThreads,
            commit_attempts: 12,
        });
        let table = lake.open_table(&name("default", "orders"), &contract()).await.unwrap();
        let mut house = House::new();
        let options = QueryOptions {
            lake: Arc::new(lake),
            memtables: house.memtables.clone(),
            memory_limit_bytes: 256 << 20,
            default_limits: LIMITS,
            concurrent: 4,
            target_partitions: 2,
            spill_dir: None,
        };
        house.engine = QueryEngine::new(options).unwrap();
        Self { house, table }
    }

    fn push(&self, batch: RecordBatch) -> Arc<Memtable> {
        self.house.push(self.table.name(), batch)
    }

    /// Freezes what is in memory, commits it and drops it.
    async fn flush(&self) {
        let memtable = self.house.memtables.get(self.table.name()).unwrap();
        let next_offset = self.house.durable.load(Ordering::Acquire);
        let part = memtable.lock().freeze(next_offset).unwrap().unwrap();
        let files = self.table.write(part.batches().unwrap()).await.unwrap();
        let expected_next_offset = self.table.view().absorbed_next_offset(LOG);
        let position = Position { log: LOG, partition: 0, next_offset: part.next_offset };
        let commit_id = Uuid::from_u128(u128::from(part.next_offset));
        let commit = Commit::of_log(commit_id, files, position, expected_next_offset);
        self.table.commit(commit).await.unwrap();
        memtable.drop_absorbed(part.next_offset);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_is_the_same_from_memory_and_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let real = RealHouse::new(Warehouse::open_folder(folder.path()).unwrap()).await;
    let sql = "SELECT * FROM orders ORDER BY n";
    real.push(rows(0..40));
    let hot = lines(&real.house.ask(sql).await.unwrap());
    assert_eq!(hot.len(), 40);
    real.flush().await;
    assert_eq!(lines(&real.house.ask(sql).await.unwrap()), hot);
    assert_eq!(real.house.number("SELECT count(*) FROM orders").await, 40);
    let plan = lines(&real.house.ask("EXPLAIN SELECT count(*) FROM orders").await.unwrap()).join("\n");
    assert!(!plan.contains("LakegateScan"), "the count is known without reading: {plan}");
    real.push(rows(40..80));
    let both = lines(&real.house.ask(sql).await.unwrap());
    assert_eq!((&both[..40], both.len()), (&hot[..], 80));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_that_the_lake_uses_change_no_result() {
    let real = RealHouse::new(Warehouse::in_memory()).await;
    for at in 0..4 {
        real.push(rows(at * 25..at * 25 + 25));
        real.flush().await;
    }
    real.push(rows(100..120));
    let conditions = [
        "n = 7",
        "n > 90 AND n <= 110",
        "n < 5 OR n > 115",
        "n IN (1, 30, 60, 110)",
        "city = 'city-1'",
        "city >= 'city-2' AND n < 50",
        "city IS NULL",
        "city IS NOT NULL AND n >= 99",
        "city <> 'city-1'",
        "ratio > 10",
        "ratio < 10 AND n > 2",
        "ratio = 2.0",
        "at >= TIMESTAMP '2026-01-02T12:00:50Z'",
        "at < '2026-01-02T12:00:50Z' AND at > '2026-01-02T12:00:10Z'",
        "day = DATE '2024-10-14'",
        "day > '2024-12-01'",
        "price >= 10.00 AND price < 11",
        "NOT (n > 3)",
        "n BETWEEN 20 AND 30",
    ];
    for condition in conditions {
        let filtered = real.house.number(&format!("SELECT count(*) FROM orders WHERE {condition}")).await;
        // The same condition as a value is never handed to the lake.
        let looked_at = real.house.number(&format!("SELECT count(*) FILTER (WHERE {condition}) FROM orders")).await;
        assert_eq!(filtered, looked_at, "{condition}");
        assert!(filtered > 0 && filtered < 120, "{condition} chooses {filtered} of 120");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f66_counts_stay_right_while_the_real_lake_commits() {
    let real = Arc::new(RealHouse::new(Warehouse::in_memory()).await);
    real.push(rows(0..1));
    let acknowledged = Arc::new(AtomicU64::new(1));
    let done = Arc::new(AtomicBool::new(false));
    let counter = {
        let (real, acknowledged, done) = (real.clone(), acknowledged.clone(), done.clone());
        tokio::spawn(async move {
            let statements = [EXACT_COUNT, "SELECT count(*) FROM orders", "SELECT count(n) FROM orders WHERE n >= 0"];
            for statement in statements.iter().cycle().take_while(|_| !done.load(Ordering::Acquire)) {
                let before = acknowledged.load(Ordering::Acquire).cast_signed();
                let counted = real.house.number(statement).await;
                let after = acknowledged.load(Ordering::Acquire).cast_signed() + 1;
                assert!(
                    before <= counted && counted <= after,
                    "{statement}: {counted} rows, acknowledged {before} to {after}"
                );
            }
        })
    };
    for n in 1..=COMMITS {
        real.push(rows(n..n + 1));
        acknowledged.store(n.cast_unsigned() + 1, Ordering::Release);
        real.flush().await;
        assert!(!counter.is_finished(), "a count was wrong after {n} commits");
    }
    done.store(true, Ordering::Release);
    counter.await.unwrap();
    assert_eq!(real.house.number("SELECT count(*) FROM orders").await, COMMITS + 1);
}
