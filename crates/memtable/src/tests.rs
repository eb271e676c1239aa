use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use lakegate_model::{Column, ColumnSource, ColumnType, Contract, LogId, TableName};

use super::*;

fn contract() -> Contract {
    let mut contract = Contract::undeclared_default();
    contract.columns = vec![Column {
        name: "n".to_owned(),
        column_type: ColumnType::Long,
        source: ColumnSource::Path(vec!["n".to_owned()]),
        required: true,
    }];
    contract.partitions.clear();
    contract.sort.clear();
    contract
}

fn memtable() -> (Arc<Memtable>, Arc<AtomicU64>, Memtables) {
    let durable = Arc::new(AtomicU64::new(0));
    let tables = Memtables::new(LogId(uuid()), durable.clone());
    let table = tables.get_or_create(&TableName::new("a", "b").unwrap(), arrow_schema(&contract()));
    (table, durable, tables)
}

fn uuid() -> uuid::Uuid {
    uuid::Uuid::from_u128(7)
}

fn push_one(table: &Memtable, n: i64, offset: u64) {
    let contract = contract();
    let mut guard = table.lock();
    guard.open_rows(|| RowBuilder::new(&contract, arrow_schema(&contract), 8)).push(&[Value::Long(n)]).unwrap();
    guard.seal_run(offset, offset + 1, 1).unwrap();
}

fn batch(values: &[i64]) -> RecordBatch {
    let contract = contract();
    let mut rows = RowBuilder::new(&contract, arrow_schema(&contract), 8);
    for n in values {
        rows.push(&[Value::Long(*n)]).unwrap();
    }
    rows.finish().unwrap()
}

fn seen(snapshot: &MemSnapshot, absorbed: u64) -> Vec<i64> {
    let batches = snapshot.after(absorbed).flat_map(|p| p.batches.clone());
    batches.flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

#[test]
fn a_row_is_seen_only_once_its_offset_is_durable() {
    let (table, durable, _tables) = memtable();
    for n in 0..5 {
        push_one(&table, n, n.cast_unsigned());
    }
    assert!(seen(&table.snapshot().unwrap(), 0).is_empty());
    durable.store(3, Ordering::Release);
    assert_eq!(seen(&table.snapshot().unwrap(), 0), [0, 1, 2]);
    durable.store(5, Ordering::Release);
    assert_eq!(seen(&table.snapshot().unwrap(), 0), [0, 1, 2, 3, 4]);
}

#[test]
fn a_request_of_many_rows_is_seen_whole_or_not_at_all() {
    let (table, durable, _tables) = memtable();
    push_one(&table, 0, 0);
    table.lock().push_batch(batch(&[1, 2, 3]), 1, 4, 1).unwrap();
    push_one(&table, 4, 4);
    durable.store(3, Ordering::Release);
    assert_eq!(seen(&table.snapshot().unwrap(), 0), [0]);
    durable.store(4, Ordering::Release);
    assert_eq!(seen(&table.snapshot().unwrap(), 0), [0, 1, 2, 3]);
}

#[test]
fn f66_each_row_is_seen_once_before_between_and_after_freeze_commit_and_drop() {
    let (table, durable, tables) = memtable();
    for n in 0..3 {
        push_one(&table, n, n.cast_unsigned());
    }
    durable.store(6, Ordering::Release);
    let part = table.lock().freeze(3).unwrap().unwrap();
    for n in 3..6 {
        push_one(&table, n, n.cast_unsigned());
    }
    let snapshot = table.snapshot().unwrap();
    assert_eq!(seen(&snapshot, 0), [0, 1, 2, 3, 4, 5], "frozen, not committed");
    assert_eq!(seen(&snapshot, 3), [3, 4, 5], "committed, not dropped");
    assert_eq!(table.first_pending_offset(), Some(0));
    assert_eq!(table.drop_absorbed(part.next_offset).len(), 1);
    assert_eq!(seen(&table.snapshot().unwrap(), 3), [3, 4, 5], "dropped");
    assert_eq!(seen(&snapshot, 0), [0, 1, 2, 3, 4, 5], "an old snapshot still has its rows");
    assert_eq!(table.first_pending_offset(), Some(3));
    table.lock().freeze(6).unwrap();
    table.drop_absorbed(6);
    assert_eq!(tables.bytes(), 0, "all memory is given back");
    assert_eq!(table.first_pending_offset(), None);
}

#[test]
fn a_part_moved_to_a_file_gives_its_memory_back_and_is_known_by_the_path() {
    let (table, durable, tables) = memtable();
    push_one(&table, 1, 0);
    durable.store(1, Ordering::Release);
    let part = table.lock().freeze(1).unwrap().unwrap();
    assert!(tables.bytes() > 0);
    table.move_to_file(&part, "x.arrow".into());
    assert_eq!(tables.bytes(), 0);
    let snapshot = table.snapshot().unwrap();
    assert_eq!(snapshot.parts[0].spilled.as_deref(), Some(std::path::Path::new("x.arrow")));
    table.drop_absorbed(1);
    assert_eq!(tables.bytes(), 0);
}

#[test]
fn an_empty_active_part_freezes_to_nothing() {
    let (table, _durable, _tables) = memtable();
    assert!(table.lock().freeze(9).unwrap().is_none());
}

#[test]
fn rows_of_another_log_are_seen_until_a_view_counts_their_part_and_leave_ours_alone() {
    let (table, durable, tables) = memtable();
    push_one(&table, 1, 0);
    durable.store(1, Ordering::Release);
    let guest = |number| Guest { counter: "upstream.x".into(), number, owner: 1 };
    table.push_guest(&guest(4), batch(&[10, 11]), 1);
    table.push_guest(&guest(5), batch(&[12]), 2);
    table.push_guest(&guest(4), batch(&[13]), 3);
    let snapshot = table.snapshot().unwrap();
    let seen = |absorbed, counted: u64| {
        let parts = snapshot.lacking(absorbed, |name| if name == "upstream.x" { counted } else { 0 });
        let batches = parts.flat_map(|p| p.batches.clone());
        batches.flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(seen(0, 3), [1, 10, 11, 13, 12]);
    assert_eq!(seen(1, 4), [12]);
    assert_eq!(seen(1, 5), Vec::<i64>::new());
    assert_eq!(table.stats().records, 5);
    let taken = tables.bytes();
    table.drop_guest(&guest(4));
    assert_eq!(table.guest_batches(&guest(4)).len(), 0);
    assert_eq!(table.guest_batches(&guest(5)).len(), 1);
    assert!(tables.bytes() < taken);
    table.drop_guest(&guest(5));
    assert_eq!(table.stats().records, 1);
}

#[test]
fn after_a_start_without_the_lake_only_what_it_lacks_is_left_also_of_a_part_that_lies_across() {
    for spilled in [false, true] {
        for absorbed in 0..12 {
            let (table, durable, tables) = memtable();
            table.unsettle();
            durable.store(100, Ordering::Release);
            for n in 0..3 {
                push_one(&table, n, n.cast_unsigned());
            }
            table.lock().freeze(3).unwrap();
            for n in 3..6 {
                push_one(&table, n, n.cast_unsigned());
            }
            table.lock().push_batch(batch(&[6, 7]), 6, 8, 1).unwrap();
            push_one(&table, 8, 8);
            table.lock().freeze(9).unwrap();
            push_one(&table, 9, 9);
            table.lock().freeze(10).unwrap();
            // A commit never ends within a request.
            if absorbed == 7 {
                continue;
            }
            let parts = table.frozen();
            let rows = parts[1].batches().unwrap();
            if spilled {
                table.move_to_file(&parts[1], "part".into());
            }
            assert!(!table.snapshot().unwrap().is_settled);
            let gone = table.settle(absorbed, |_| Ok::<_, ()>(rows)).unwrap();
            assert!(table.is_settled() && gone.iter().all(|p| p.first_offset < absorbed));
            let left: Vec<i64> = (0..10_i64).filter(|n| n.cast_unsigned() >= absorbed).collect();
            let kept: Vec<i64> = match spilled && absorbed <= 3 {
                // The part in a file is whole, and stays there.
                true => left.into_iter().filter(|n| !(3..9).contains(n)).collect(),
                false => left,
            };
            assert_eq!(seen(&table.snapshot().unwrap(), 0), kept, "absorbed {absorbed}, spilled {spilled}");
            table.settle(100, |_| Ok::<_, ()>(Vec::new())).unwrap();
            assert_eq!(tables.bytes(), 0);
        }
    }
}
