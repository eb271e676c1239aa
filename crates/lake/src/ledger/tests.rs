//! The ledger against a map, and files absorbed by two who race.

use std::collections::HashMap;

use lakegate_env::{Random, SeededRandom};
use uuid::Uuid;

use super::*;
use crate::commit::Commit;
use crate::error::CommitError;
use crate::options::Writer;
use crate::test_support::{Bench, LOG, append, commit_of, contract, event_ids, ids, name, options, rows, writer};
use crate::testing::Fault;

fn complete(id: u128, rows: u64) -> FileMark {
    FileMark { id, rows, state: FileState::Complete }
}

fn partial(id: u128, rows: u64) -> FileMark {
    FileMark { id, rows, state: FileState::Partial(rows.to_be_bytes().to_vec()) }
}

fn first(to: FileMark) -> Vec<FileChange> {
    vec![FileChange { from: None, to }]
}

/// Rows `from..to` of the file 7, as one that ends the file.
async fn import(table: &LakeTable, commit_id: u128, from: i64, to: i64) -> Result<u32, CommitError> {
    let files = table.write(vec![rows(from, to - from)]).await.unwrap();
    let marks = first(complete(7, u64::try_from(to - from).unwrap()));
    let mut commit = Commit::of_marks(Uuid::from_u128(commit_id), files, marks);
    commit.counts.insert("imported".to_owned(), u64::try_from(to - from).unwrap());
    table.commit(commit).await.map(|outcome| outcome.attempts)
}

/// A process with a log of its own.
async fn other_process(bench: &Bench) -> Arc<LakeTable> {
    let log = lakegate_model::LogId(Uuid::from_u128(77));
    let options = options(&bench.warehouse, Arc::new(bench.memory.clone()), Writer { log, ..writer(1, 2) }, 5);
    crate::lake::Lake::open(options).open_table(&name(), &contract()).await.unwrap()
}

#[tokio::test]
async fn the_ledger_says_what_a_map_says_after_every_commit_and_after_a_restart() {
    let random = SeededRandom::new(11);
    let bench = Bench::new();
    let mut table = bench.table().await;
    let mut model: HashMap<u128, FileMark> = HashMap::new();
    for round in 0..120_u128 {
        let mut marks = Vec::new();
        for _ in 0..=random.next_u64() % 12 {
            let id = u128::from(random.next_u64() % 300) << 90;
            if marks.iter().any(|c: &FileChange| c.to.id == id) {
                continue;
            }
            let rows = random.next_u64() % 1000;
            let to = if rows.is_multiple_of(2) { complete(id, rows) } else { partial(id, rows) };
            marks.push(FileChange { from: model.get(&id).cloned(), to });
        }
        let next: Vec<FileMark> = marks.iter().map(|c| c.to.clone()).collect();
        if random.next_u64().is_multiple_of(4) {
            bench.faulty.script_commits([Fault::DoneThenLost]);
        }
        table.commit(Commit::of_marks(Uuid::from_u128(round + 1), Vec::new(), marks)).await.unwrap();
        model.extend(next.into_iter().map(|mark| (mark.id, mark)));
        if round % 10 == 0 {
            table = bench.rival(1, 1).open_table(&name(), &contract()).await.unwrap();
            for id in (0..300_u128).map(|n| n << 90) {
                assert_eq!(table.absorbed_file(id).await.unwrap(), model.get(&id).cloned());
            }
            assert_eq!(table.view().properties()[COUNT], model.len().to_string());
            table = bench.lake.open_table(&name(), &contract()).await.unwrap();
        }
    }
    let recent = table.view().properties()[RECENT].clone();
    assert!(recent.len() < 5 << 10, "the property stays small: {}", recent.len());
}

#[tokio::test]
async fn a_hundred_thousand_files_leave_the_metadata_small() {
    let bench = Bench::new();
    let table = bench.table().await;
    let id = |n: u128| n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    for part in 0..10_u128 {
        let marks = (0..10_000).map(|n| FileChange { from: None, to: complete(id(part * 10_000 + n), 1) }).collect();
        table.commit(Commit::of_marks(Uuid::from_u128(part + 1), Vec::new(), marks)).await.unwrap();
    }
    for n in 0..20 {
        let marks = first(complete(n + 1, 1));
        table.commit(Commit::of_marks(Uuid::from_u128(100 + n), Vec::new(), marks)).await.unwrap();
    }
    let fresh = bench.rival(9, 9).open_table(&name(), &contract()).await.unwrap();
    assert_eq!(fresh.absorbed_file(id(99_999)).await.unwrap(), Some(complete(id(99_999), 1)));
    assert_eq!(fresh.absorbed_file(id(100_000)).await.unwrap(), None);
    let metadata = bench.warehouse.read(fresh.view().metadata_location()).await.unwrap();
    assert!(metadata.len() < 60_000, "{}", metadata.len());
}

#[tokio::test]
async fn of_two_who_import_one_file_the_second_to_commit_is_told_and_adds_no_row() {
    let bench = Bench::new();
    let (one, two) = (bench.table().await, other_process(&bench).await);
    // Both have looked, and written; then both commit.
    assert_eq!(one.absorbed_file(7).await.unwrap(), None);
    assert_eq!(two.absorbed_file(7).await.unwrap(), None);
    import(&one, 1, 0, 10).await.unwrap();
    let error = import(&two, 2, 0, 10).await.unwrap_err();
    let found = complete(7, 10);
    assert!(
        matches!(&error, CommitError::AlreadyAbsorbed { file: 7, found: f, .. } if f.as_deref() == Some(&found)),
        "{error}"
    );
    assert_eq!(event_ids(&one.refresh().await.unwrap()).await, ids(0..10));
    assert_eq!(two.refresh().await.unwrap().counter("imported"), 10);
}

#[tokio::test]
async fn f34_the_ledger_is_looked_at_again_when_another_import_comes_between_look_and_swap() {
    let bench = Bench::new();
    let (one, two) = (bench.table().await, other_process(&bench).await);
    // Its first attempt is lost on the way, and meanwhile the other one commits.
    bench.faulty.script_commits([Fault::Late]);
    bench.faulty.script_reads(std::iter::repeat_n(Fault::Away, 11));
    let files = one.write(vec![rows(0, 10)]).await.unwrap();
    let commit = Commit::of_marks(Uuid::from_u128(1), files, first(complete(7, 10)));
    let error = one.commit(commit.clone()).await.unwrap_err();
    assert!(matches!(error, CommitError::Unavailable { outcome_unknown: true, .. }), "{error}");
    import(&two, 2, 0, 10).await.unwrap();
    assert!(bench.faulty.deliver_late().await[0].is_err());
    assert!(matches!(one.commit(commit).await.unwrap_err(), CommitError::AlreadyAbsorbed { .. }));
    assert_eq!(event_ids(&one.view()).await, ids(0..10));
}

#[tokio::test]
async fn f30_f35_an_import_whose_answer_is_lost_is_known_by_its_mark_also_without_its_snapshot() {
    let bench = Bench::new();
    let table = bench.table().await;
    bench.faulty.script_commits([Fault::DoneThenLost]);
    import(&table, 1, 0, 10).await.unwrap();
    for n in 0..130 {
        append(&table, n, n + 1).await;
    }
    let view = table.refresh().await.unwrap();
    assert!(!view.has_commit(Uuid::from_u128(1)), "its snapshot is expired");
    assert_eq!(import(&table, 1, 0, 10).await.unwrap(), 0, "found, not done again");
    assert_eq!(table.view().counter("imported"), 10);
}

#[tokio::test]
async fn imports_leave_the_position_as_it_is_and_the_log_goes_on_after_them() {
    let bench = Bench::new();
    let table = bench.table().await;
    import(&table, 1, 0, 10).await.unwrap();
    assert_eq!(table.view().absorbed_next_offset(LOG), 0);
    let files = table.write(vec![rows(10, 5)]).await.unwrap();
    table.commit(commit_of(files, 0, 15)).await.unwrap();
    assert_eq!(table.view().absorbed_next_offset(LOG), 15);
    let again = vec![FileChange { from: Some(complete(7, 10)), to: complete(7, 13) }];
    let files = table.write(vec![rows(15, 3)]).await.unwrap();
    table.commit(Commit::of_marks(Uuid::from_u128(3), files, again)).await.unwrap();
    assert_eq!(table.view().absorbed_next_offset(LOG), 15);
    assert_eq!(event_ids(&table.view()).await, ids(0..18));
    assert_eq!(table.absorbed_file(7).await.unwrap(), Some(complete(7, 13)));
}

#[tokio::test]
async fn f36_an_import_of_a_writer_that_was_replaced_is_fenced_off() {
    let bench = Bench::new();
    let zombie = bench.table().await;
    append(&zombie, 0, 5).await;
    let heir = bench.rival(2, 2).open_table(&name(), &contract()).await.unwrap();
    append(&heir, 5, 8).await;
    assert!(matches!(import(&zombie, 1, 8, 9).await.unwrap_err(), CommitError::Fenced { .. }));
}

#[tokio::test]
async fn a_lost_or_damaged_ledger_stops_imports_and_is_never_taken_for_empty() {
    let bench = Bench::new();
    let table = bench.table().await;
    let marks = (0..1000).map(|n| FileChange { from: None, to: complete(n, 1) }).collect();
    table.commit(Commit::of_marks(Uuid::from_u128(1), Vec::new(), marks)).await.unwrap();
    let ledger = table.view().properties()[LEDGER].clone();
    let mut bytes = bench.warehouse.read(&ledger).await.unwrap().to_vec();
    for at in [0, 9, 30, bytes.len() / 2, bytes.len() - 1] {
        bytes[at] ^= 4;
        assert!(encoding::decode_ledger(&bytes).is_none(), "a flipped bit at {at}");
        bytes[at] ^= 4;
        assert!(encoding::decode_ledger(&bytes[..at]).is_none(), "cut at {at}");
    }
    assert_eq!(encoding::decode_ledger(&bytes).unwrap().len(), 1000);
    for key in [COUNT, RECENT, LEDGER] {
        let removals = vec![key.to_owned()];
        let updates = vec![iceberg::TableUpdate::RemoveProperties { removals }];
        crate::Catalog::commit_table(&bench.memory, table.ident(), Vec::new(), updates).await.unwrap();
        let fresh = bench.rival(1, 1).open_table(&name(), &contract()).await.unwrap();
        fresh.absorbed_file(5).await.unwrap_err();
        let value = table.view().properties()[key].clone();
        let updates = vec![iceberg::TableUpdate::SetProperties { updates: [(key.to_owned(), value)].into() }];
        crate::Catalog::commit_table(&bench.memory, table.ident(), Vec::new(), updates).await.unwrap();
        assert!(fresh.absorbed_file(5).await.unwrap().is_some());
    }
}
