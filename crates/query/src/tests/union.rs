//! Memory and lake as one table.

use std::sync::atomic::AtomicBool;

use datafusion::arrow::array::{Float64Array, StringArray};
use datafusion::arrow::ipc::writer::FileWriter;

use super::*;
use crate::lake::{Comparison, Literal};

/// How many times a part is frozen, committed and dropped while queries count.
const SWAPS: i64 = 10_000;
/// How many of them for each query that counts.
const SWAPS_PER_COUNT: i64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f66_a_count_is_never_above_or_below_what_is_acknowledged_while_parts_are_frozen_committed_and_dropped() {
    let house = Arc::new(House::new());
    let table = name("default", "orders");
    house.push(&table, numbers([0]));
    let progress = Arc::new(Progress { acknowledged: AtomicU64::new(1), ..Progress::default() });
    let counters: Vec<_> = (0..2).map(|_| tokio::spawn(count_until_done(house.clone(), progress.clone()))).collect();
    for swaps in 1..=SWAPS {
        // Some swaps for each count, so that they come at all its instants.
        while progress.counts.load(Ordering::Acquire) < (swaps / SWAPS_PER_COUNT).cast_unsigned() {
            assert!(counters.iter().all(|c| !c.is_finished()), "a count was wrong after {swaps} swaps");
            tokio::task::yield_now().await;
        }
        let memtable = house.push(&table, numbers([swaps]));
        progress.acknowledged.store(swaps.cast_unsigned() + 1, Ordering::Release);
        let next = house.durable.load(Ordering::Acquire);
        let frozen = memtable.lock().freeze(next).unwrap();
        if let Some(part) = frozen {
            tokio::task::yield_now().await;
            house.lake.commit(&table, part.batches().unwrap(), part.next_offset);
            tokio::task::yield_now().await;
            memtable.drop_absorbed(part.next_offset);
        }
        if swaps % 64 == 0 {
            compact(&house.lake, &table);
        }
    }
    progress.done.store(true, Ordering::Release);
    for counter in counters {
        counter.await.unwrap();
    }
    assert_eq!(house.number("SELECT count(*) FROM orders").await, SWAPS + 1);
    assert_eq!(house.number("SELECT count(DISTINCT n) FROM orders").await, SWAPS + 1);
}

#[tokio::test]
async fn f66_a_row_that_moves_between_the_looks_at_memory_and_at_the_lake_is_seen_once() {
    let house = Arc::new(House::new());
    let table = name("default", "orders");
    house.push(&table, numbers([0]));
    let moving = house.clone();
    // What is in memory is frozen, committed and dropped, and a new row comes in.
    let move_rows = move || {
        let memtable = moving.memtables.get(&name("default", "orders")).unwrap();
        let next = moving.durable.load(Ordering::Acquire);
        let part = memtable.lock().freeze(next).unwrap().unwrap();
        moving.lake.commit(memtable.table(), part.batches().unwrap(), part.next_offset);
        memtable.drop_absorbed(part.next_offset);
        compact(&moving.lake, memtable.table());
        moving.push(memtable.table(), numbers([next.cast_signed()]));
    };
    *house.lake.around_view.lock() = Some(Arc::new(move_rows));
    for _ in 0..300 {
        let acknowledged = house.durable.load(Ordering::Acquire).cast_signed();
        let counted = house.number(EXACT_COUNT).await;
        // One row came in between the two looks and was committed at once or not: either is right.
        assert!((acknowledged..=acknowledged + 1).contains(&counted), "{counted} of {acknowledged}");
    }
    *house.lake.around_view.lock() = None;
}

#[derive(Default)]
struct Progress {
    acknowledged: AtomicU64,
    counts: AtomicU64,
    done: AtomicBool,
}

/// Counts exactly, by the statistics, by a scan, and by a join of the table with itself.
async fn count_until_done(house: Arc<House>, progress: Arc<Progress>) {
    let statements = [
        EXACT_COUNT,
        "SELECT count(*) FROM orders",
        "SELECT count(n) FROM orders WHERE n >= 0",
        "SELECT count(*) FROM orders a JOIN orders b ON a.n = b.n",
    ];
    for statement in statements.iter().cycle() {
        if progress.done.load(Ordering::Acquire) {
            return;
        }
        let before = progress.acknowledged.load(Ordering::Acquire).cast_signed();
        let counted = house.number(statement).await;
        // A row may be seen just before its acknowledgement goes out.
        let after = progress.acknowledged.load(Ordering::Acquire).cast_signed() + 1;
        assert!(before <= counted && counted <= after, "{statement}: {counted} rows, acknowledged {before} to {after}");
        progress.counts.fetch_add(1, Ordering::AcqRel);
    }
}

fn compact(lake: &TestLake, table: &TableName) {
    let mut tables = lake.tables.lock();
    let committed = tables.get_mut(table).unwrap();
    committed.batches =
        vec![datafusion::arrow::compute::concat_batches(&committed.schema, &committed.batches).unwrap()];
}

#[tokio::test]
async fn rows_of_memory_and_lake_are_one_table() {
    let house = House::new();
    let table = name("default", "orders");
    house.lake.commit(&table, vec![numbers(0..5), numbers(5..10)], 10);
    house.durable.store(10, Ordering::Release);
    house.push(&table, numbers(10..20));
    assert_eq!(house.number("SELECT count(*) FROM orders").await, 20);
    assert_eq!(house.number("SELECT sum(n) FROM default.orders").await, 190);
    assert_eq!(house.number("SELECT sum(n) FROM lakegate.default.orders WHERE n > 7").await, 162);
}

#[tokio::test]
async fn a_part_that_the_lake_has_absorbed_is_not_read_from_memory_again() {
    let house = House::new();
    let table = name("default", "orders");
    let memtable = house.push(&table, numbers(0..5));
    let part = memtable.lock().freeze(5).unwrap().unwrap();
    house.push(&table, numbers(5..7));
    house.lake.commit(&table, part.batches().unwrap(), 5);
    assert_eq!(house.number("SELECT count(*) FROM orders").await, 7);
    assert_eq!(house.number("SELECT sum(n) FROM orders").await, 21);
}

#[tokio::test]
async fn a_part_that_was_moved_to_a_file_is_read_from_it() {
    let house = House::new();
    let table = name("default", "orders");
    let memtable = house.push(&table, numbers(0..5));
    let part = memtable.lock().freeze(5).unwrap().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.arrow");
    let mut writer = FileWriter::try_new(std::fs::File::create(&path).unwrap(), &numbers([]).schema()).unwrap();
    part.batches().unwrap().iter().for_each(|b| writer.write(b).unwrap());
    writer.finish().unwrap();
    memtable.move_to_file(&part, path);
    house.push(&table, numbers(5..7));
    assert_eq!(house.number("SELECT count(*) FROM orders").await, 7);
    assert_eq!(house.number("SELECT sum(n) FROM orders").await, 21);
}

#[tokio::test]
async fn rows_of_before_and_after_a_new_column_are_read_together() {
    let house = House::new();
    let table = name("default", "orders");
    house.lake.commit(&table, vec![numbers([1])], 1);
    house.durable.store(1, Ordering::Release);
    let fields = vec![Field::new("city", DataType::Utf8, true), Field::new("n", DataType::Int64, false)];
    let columns: Vec<datafusion::arrow::array::ArrayRef> =
        vec![Arc::new(StringArray::from(vec!["Izmir"])), Arc::new(datafusion::arrow::array::Int64Array::from(vec![2]))];
    house.push(&table, RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap());
    assert_eq!(house.lines_as(None, "SELECT * FROM orders ORDER BY n").await, ["1 ", "2 Izmir"]);
    assert_eq!(house.lines_as(None, "SELECT n FROM orders WHERE city = 'Izmir'").await, ["2"]);
    assert_eq!(house.number("SELECT count(*) FROM orders WHERE city IS NULL").await, 1);
}

#[tokio::test]
async fn a_column_whose_type_the_lake_has_widened_is_cast() {
    let house = House::new();
    let table = name("default", "orders");
    let wide = Arc::new(Schema::new(vec![Field::new("n", DataType::Float64, true)]));
    house.lake.commit(
        &table,
        vec![RecordBatch::try_new(wide, vec![Arc::new(Float64Array::from(vec![0.5]))]).unwrap()],
        0,
    );
    house.push(&table, numbers([2]));
    assert_eq!(house.lines_as(None, "SELECT n FROM orders ORDER BY n").await, ["0.5", "2.0"]);
}

#[tokio::test]
async fn simple_conditions_and_needed_columns_alone_reach_the_lake() {
    let house = House::new();
    let table = name("default", "orders");
    house.lake.commit(&table, vec![numbers(0..100)], 100);
    house.ask("SELECT n FROM orders WHERE n >= 10 AND 50 > n AND n % 2 = 0 AND n <> 12").await.unwrap();
    let scan = &house.lake.scans(&table)[0];
    let conditions: Vec<_> = scan.conditions.iter().map(|c| (c.comparison, c.literal.clone())).collect();
    assert_eq!(conditions, [(Comparison::GreaterOrEqual, Literal::Long(10)), (Comparison::Less, Literal::Long(50))]);
    assert_eq!(scan.columns, ["n"]);
}

#[tokio::test]
async fn counting_all_rows_reads_no_file_where_nothing_was_deleted() {
    let house = House::new();
    let table = name("default", "orders");
    house.lake.commit(&table, vec![numbers(0..100)], 100);
    house.durable.store(100, Ordering::Release);
    house.push(&table, numbers([1, 2]));
    assert_eq!(house.number("SELECT count(*) FROM orders").await, 102);
    assert!(house.lake.scans(&table).is_empty());
    house.lake.tables.lock().get_mut(&table).unwrap().exact = false;
    assert_eq!(house.number("SELECT count(*) FROM orders").await, 102);
    assert_eq!(house.lake.scans(&table).len(), 1);
}

#[tokio::test]
async fn a_limit_gives_that_many_rows_of_both() {
    let house = House::new();
    let table = name("default", "orders");
    house.lake.commit(&table, vec![numbers(0..100), numbers(100..200)], 200);
    house.durable.store(200, Ordering::Release);
    house.push(&table, numbers(200..300));
    assert_eq!(house.lines_as(None, "SELECT n FROM orders LIMIT 150").await.len(), 150);
    let request =
        QueryRequest { sql: "SELECT n FROM orders".to_owned(), row_limit: Some(7), ..QueryRequest::default() };
    let rows: usize = house.request(request).await.unwrap().iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 7);
}

#[tokio::test]
async fn a_recursive_query_reads_the_lake_anew_in_each_round() {
    let house = House::new();
    let table = name("default", "steps");
    house.lake.commit(&table, vec![numbers([1]), numbers([2]), numbers([3])], 3);
    let sql = "WITH RECURSIVE walk AS (SELECT 1 AS at UNION ALL SELECT at + 1 FROM walk JOIN steps ON steps.n = walk.at) \
               SELECT max(at) FROM walk";
    assert_eq!(house.number(sql).await, 4);
}

#[tokio::test]
async fn parameters_are_bound_by_number() {
    let house = House::new();
    house.push(&name("default", "orders"), numbers(0..10));
    let request = |parameters: Vec<serde_json::Value>| QueryRequest {
        sql: "SELECT n FROM orders WHERE n > $1 AND n < $2".to_owned(),
        parameters,
        ..QueryRequest::default()
    };
    let rows = house.request(request(vec![3.into(), 5.into()])).await.unwrap();
    assert_eq!(lines(&rows), ["4"]);
    let missing = house.request(request(vec![3.into()])).await.unwrap_err();
    assert!(matches!(&missing, QueryError::Plan(text) if text.contains("$2")), "{missing}");
    let wrong = house.request(request(vec![3.into(), serde_json::json!([1])])).await.unwrap_err();
    assert!(matches!(&wrong, QueryError::Plan(text) if text.contains("parameter $2")), "{wrong}");
}
