//! Commits against a catalog that fails on command. The table itself, read back, says what happened.

use super::*;
use crate::scan::ScanRequest;
use crate::test_support::{
    Bench, append, append_from_another_log, commit_of, contract, event_ids, ids, name, read, rows,
};
use crate::testing::Fault;
use lakegate_model::{Column, ColumnSource, ColumnType};

async fn shown(bench: &Bench) -> (u64, Vec<String>, usize) {
    let fresh = bench.rival(9, 9).find_table(&name()).await.unwrap().unwrap();
    let view = fresh.view();
    (view.absorbed_next_offset(crate::test_support::LOG), event_ids(&view).await, view.snapshots().len())
}

#[tokio::test]
async fn a_commit_brings_rows_position_and_totals_at_once() {
    let bench = Bench::new();
    let table = bench.table().await;
    let one = append(&table, 0, 10).await;
    let two = append(&table, 10, 25).await;
    assert_eq!((one.attempts, two.attempts), (1, 1));
    assert!(two.sequence_number > one.sequence_number);
    assert_eq!(shown(&bench).await, (25, ids(0..25), 2));
    let newest = table.view().snapshots().into_iter().next().unwrap();
    let total = |key: &str| newest.summary.get(key).cloned().unwrap_or_default();
    assert_eq!(
        (total("total-records"), total("total-data-files"), total("added-records"), total("added-data-files")),
        ("25".into(), "2".into(), "15".into(), "1".into())
    );
    assert_eq!(table.view().rows_from(crate::test_support::LOG), 25);
}

#[tokio::test]
async fn f30_an_applied_commit_whose_answer_is_lost_is_found_and_not_repeated() {
    let bench = Bench::new();
    let table = bench.table().await;
    bench.faulty.script_commits([Fault::DoneThenLost]);
    let outcome = append(&table, 0, 10).await;
    assert!(outcome.resolved_unknown);
    assert_eq!(bench.faulty.commit_calls(), 1);
    assert_eq!(shown(&bench).await, (10, ids(0..10), 1));
}

#[tokio::test]
async fn f31_an_applied_commit_is_found_also_when_the_first_looks_fail_and_its_files_stay() {
    let bench = Bench::new();
    let table = bench.table().await;
    bench.faulty.script_commits([Fault::DoneThenLost]);
    bench.faulty.script_reads([Fault::Away, Fault::Away, Fault::Away]);
    let outcome = append(&table, 0, 10).await;
    assert!(outcome.resolved_unknown);
    assert_eq!(bench.faulty.commit_calls(), 1);
    assert_eq!(shown(&bench).await, (10, ids(0..10), 1));
    append(&table, 10, 20).await;
    assert_eq!(shown(&bench).await, (20, ids(0..20), 2));
}

#[tokio::test]
async fn f32_a_conflict_after_a_repeated_request_is_our_own_commit() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    bench.faulty.script_commits([Fault::DoneThenConflict]);
    append(&table, 5, 10).await;
    assert_eq!(bench.faulty.commit_calls(), 2);
    assert_eq!(shown(&bench).await, (10, ids(0..10), 2));
}

#[tokio::test]
async fn f33_a_late_first_attempt_and_its_repetition_are_one_commit() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    bench.faulty.script_commits([Fault::Late]);
    append(&table, 5, 10).await;
    let late = bench.faulty.deliver_late().await;
    assert!(matches!(late.as_slice(), [Err(_)]), "{late:?}");
    assert_eq!(shown(&bench).await, (10, ids(0..10), 2));
}

#[tokio::test]
async fn f33_a_late_attempt_that_comes_in_before_the_next_call_is_found_by_it() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    let files = table.write(vec![rows(5, 5)]).await.unwrap();
    bench.faulty.script_commits([Fault::Late]);
    bench.faulty.script_reads(std::iter::repeat_n(Fault::Away, 11));
    let error = table.commit(commit_of(files.clone(), 5, 10)).await.unwrap_err();
    assert!(matches!(error, CommitError::Unavailable { outcome_unknown: true, attempts: 1, .. }), "{error:?}");
    assert!(bench.faulty.deliver_late().await[0].is_ok());
    let outcome = table.commit(commit_of(files, 5, 10)).await.unwrap();
    assert!(outcome.resolved_unknown);
    assert_eq!(outcome.attempts, 0);
    assert_eq!(shown(&bench).await, (10, ids(0..10), 2));
}

#[tokio::test]
async fn f34_a_real_conflict_is_rebased_with_the_same_files() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    let files = table.write(vec![rows(5, 5)]).await.unwrap();
    append_from_another_log(&bench).await;
    let outcome = table.commit(commit_of(files, 5, 10)).await.unwrap();
    assert_eq!(outcome.attempts, 2);
    let (absorbed, shown_ids, snapshots) = shown(&bench).await;
    assert_eq!((absorbed, snapshots), (10, 3));
    assert_eq!(shown_ids, ids(0..10).into_iter().chain(ids(1000..1003)).collect::<Vec<_>>());
}

#[tokio::test]
async fn f35_a_commit_whose_snapshot_was_expired_is_known_by_its_property() {
    let bench = Bench::new();
    let table = bench.table().await;
    let files = table.write(vec![rows(0, 10)]).await.unwrap();
    let outcome = table.commit(commit_of(files.clone(), 0, 10)).await.unwrap();
    append_from_another_log(&bench).await;
    let catalog: &dyn crate::Catalog = &bench.memory;
    let updates = vec![iceberg::TableUpdate::RemoveSnapshots { snapshot_ids: vec![outcome.snapshot_id] }];
    let removed = catalog.commit_table(table.ident(), Vec::new(), updates).await.unwrap();
    assert!(removed.metadata.snapshot_by_id(outcome.snapshot_id).is_none());
    let again = bench.rival(1, 1).open_table(&name(), &contract()).await.unwrap();
    assert_eq!(again.commit(commit_of(files, 0, 10)).await.unwrap().attempts, 0);
}

#[tokio::test]
async fn f36_a_writer_that_was_replaced_is_fenced_off() {
    let bench = Bench::new();
    let zombie = bench.table().await;
    append(&zombie, 0, 5).await;
    let heir = bench.rival(2, 2).open_table(&name(), &contract()).await.unwrap();
    append(&heir, 5, 8).await;
    let files = zombie.write(vec![rows(5, 5)]).await.unwrap();
    let error = zombie.commit(commit_of(files, 5, 10)).await.unwrap_err();
    assert!(matches!(error, CommitError::Fenced { epoch: 1, found_epoch: 2, .. }), "{error:?}");
    assert_eq!(shown(&bench).await, (8, ids(0..8), 2));
}

#[tokio::test]
async fn f36_a_copy_with_the_same_epoch_is_fenced_off_too() {
    let bench = Bench::new();
    let first = bench.table().await;
    append(&first, 0, 5).await;
    let copy = bench.rival(1, 2).open_table(&name(), &contract()).await.unwrap();
    let files = copy.write(vec![rows(5, 5)]).await.unwrap();
    assert!(matches!(copy.commit(commit_of(files, 5, 10)).await.unwrap_err(), CommitError::Fenced { .. }));
}

#[tokio::test]
async fn f36_a_position_only_commit_of_the_heir_stops_a_zombie_that_had_looked_before_it() {
    let bench = Bench::new();
    let zombie = bench.table().await;
    append(&zombie, 0, 5).await;
    // The zombie's commit is on its way when the heir takes over without any rows.
    bench.faulty.script_commits([Fault::Late]);
    bench.faulty.script_reads(std::iter::repeat_n(Fault::Away, 11));
    let files = zombie.write(vec![rows(5, 5)]).await.unwrap();
    zombie.commit(commit_of(files, 5, 10)).await.unwrap_err();
    let heir = bench.rival(2, 2).open_table(&name(), &contract()).await.unwrap();
    heir.commit(commit_of(Vec::new(), 5, 7)).await.unwrap();
    assert!(bench.faulty.deliver_late().await[0].is_err());
    assert_eq!(shown(&bench).await, (7, ids(0..5), 2));
}

#[tokio::test]
async fn f39_a_catalog_that_is_away_leaves_the_commit_to_be_tried_again() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    let files = table.write(vec![rows(5, 5)]).await.unwrap();
    bench.faulty.set_away(true);
    for _ in 0..20 {
        let error = table.commit(commit_of(files.clone(), 5, 10)).await.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
    }
    bench.faulty.set_away(false);
    table.commit(commit_of(files, 5, 10)).await.unwrap();
    assert_eq!(shown(&bench).await, (10, ids(0..10), 2));
}

#[tokio::test]
async fn a_position_without_rows_is_committed() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    table.commit(commit_of(Vec::new(), 5, 50)).await.unwrap();
    append(&table, 50, 52).await;
    let (absorbed, shown_ids, _) = shown(&bench).await;
    assert_eq!(absorbed, 52);
    assert_eq!(shown_ids, ids(0..5).into_iter().chain(ids(50..52)).collect::<Vec<_>>());
    assert_eq!(table.view().total_records(), 7);
}

#[tokio::test]
async fn a_commit_that_does_not_follow_is_refused() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    let files = table.write(vec![rows(7, 5)]).await.unwrap();
    let error = table.commit(commit_of(files, 7, 12)).await.unwrap_err();
    assert!(matches!(error, CommitError::PositionMismatch { expected: 7, found: Some(5), .. }), "{error:?}");
}

#[tokio::test]
async fn a_table_that_lost_the_position_is_never_taken_to_begin_at_zero() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    let keys = LogKeys::new(&crate::test_support::writer(1, 1));
    let removals = vec![keys.wal, keys.epoch, keys.rows, keys.commit];
    let updates = vec![iceberg::TableUpdate::RemoveProperties { removals }];
    crate::Catalog::commit_table(&bench.memory, table.ident(), Vec::new(), updates).await.unwrap();
    let again = bench.rival(2, 2).open_table(&name(), &contract()).await.unwrap();
    let error = again.commit(commit_of(Vec::new(), 0, 6)).await.unwrap_err();
    assert!(matches!(error, CommitError::PositionMismatch { found: None, .. }), "{error:?}");
}

#[tokio::test]
async fn f43_a_table_that_was_dropped_and_made_anew_takes_nothing() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    let files = table.write(vec![rows(5, 5)]).await.unwrap();
    crate::Catalog::drop_table(&bench.memory, table.ident(), false).await.unwrap();
    let error = table.commit(commit_of(files.clone(), 5, 10)).await.unwrap_err();
    assert!(matches!(error, CommitError::TableReplaced { found: None, .. }), "{error:?}");
    let heir = bench.rival(2, 2).open_table(&name(), &contract()).await.unwrap();
    let error = table.commit(commit_of(files, 5, 10)).await.unwrap_err();
    assert!(matches!(error, CommitError::TableReplaced { found: Some(uuid), .. } if uuid == heir.uuid), "{error:?}");
}

fn wider() -> lakegate_model::Contract {
    let mut wider = contract();
    let source = ColumnSource::Path(vec!["color".to_owned()]);
    wider.columns.push(Column { name: "color".to_owned(), column_type: ColumnType::String, source, required: true });
    wider.columns.push(Column {
        name: "tags".to_owned(),
        column_type: ColumnType::StringMap,
        source: ColumnSource::Path(vec!["tags".to_owned()]),
        required: false,
    });
    wider
}

#[tokio::test]
async fn a_new_column_comes_with_the_rows_that_first_have_it() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    let table = bench.lake.open_table(&name(), &wider()).await.unwrap();
    assert_eq!(table.view().schema().fields().len(), 10, "nothing is changed before a commit");
    let mut columns: Vec<(String, arrow::array::ArrayRef)> = rows(5, 2)
        .schema()
        .fields()
        .iter()
        .zip(rows(5, 2).columns())
        .map(|(f, c)| (f.name().clone(), c.clone()))
        .collect();
    columns.push(("color".to_owned(), std::sync::Arc::new(arrow::array::StringArray::from(vec!["red", "blue"]))));
    let batch = arrow::array::RecordBatch::try_from_iter(columns).unwrap();
    let files = table.write(vec![batch]).await.unwrap();
    let outcome = table.commit(commit_of(files, 5, 7)).await.unwrap();
    assert_eq!(outcome.attempts, 1);
    let view = bench.rival(9, 9).find_table(&name()).await.unwrap().unwrap().view();
    assert_eq!(view.schema().fields().len(), 12);
    let request =
        ScanRequest { projection: Some(vec!["color".to_owned(), "event_id".to_owned()]), ..ScanRequest::default() };
    let all = read(&view, request).await;
    let nulls: usize = all.iter().map(|b| b.column(0).null_count()).sum();
    assert_eq!((nulls, all.iter().map(|b| b.num_rows()).sum::<usize>()), (5, 7));
    append(&table, 7, 9).await;
    assert_eq!(event_ids(&table.view()).await, ids(0..9));
}

#[tokio::test]
async fn f34_columns_that_another_writer_adds_meanwhile_make_the_files_stale() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    let table = bench.lake.open_table(&name(), &wider()).await.unwrap();
    let files = table.write(vec![rows(5, 2)]).await.unwrap();
    let current = table.view().metadata().current_schema().as_ref().clone();
    let mut fields = current.as_struct().fields().to_vec();
    let id = table.view().metadata().last_column_id() + 1;
    fields.push(std::sync::Arc::new(iceberg::spec::NestedField::optional(
        id,
        "theirs",
        iceberg::spec::Type::Primitive(iceberg::spec::PrimitiveType::Long),
    )));
    let schema = iceberg::spec::Schema::builder().with_fields(fields).with_schema_id(1).build().unwrap();
    let updates =
        vec![iceberg::TableUpdate::AddSchema { schema }, iceberg::TableUpdate::SetCurrentSchema { schema_id: -1 }];
    crate::Catalog::commit_table(&bench.memory, table.ident(), Vec::new(), updates).await.unwrap();
    let error = table.commit(commit_of(files, 5, 7)).await.unwrap_err();
    assert!(matches!(error, CommitError::StaleFiles { .. }), "{error:?}");
    let mut again = commit_of(table.write(vec![rows(5, 2)]).await.unwrap(), 5, 7);
    again.commit_id = Uuid::from_u128(99);
    table.commit(again).await.unwrap();
    assert_eq!(shown(&bench).await.1, ids(0..7));
}

#[tokio::test]
async fn two_hundred_commits_keep_few_manifests_and_snapshots_and_lose_no_row() {
    let bench = Bench::new();
    let table = bench.table().await;
    for n in 0..200 {
        append(&table, n, n + 1).await;
    }
    let view = bench.rival(9, 9).find_table(&name()).await.unwrap().unwrap().view();
    assert_eq!(event_ids(&view).await, ids(0..200));
    assert_eq!((view.total_records(), view.total_data_files()), (200, 200));
    assert!(view.manifests().await.unwrap().len() <= 40, "{}", view.manifests().await.unwrap().len());
    assert!(view.snapshots().len() <= 120, "{}", view.snapshots().len());
    assert_eq!(table.view().files().await.unwrap().len(), 200);
}

#[tokio::test]
async fn files_of_expired_snapshots_go_after_their_time_and_not_before() {
    let bench = Bench::new();
    let table = bench.table().await;
    for n in 0..130 {
        append(&table, n, n + 1).await;
    }
    assert_eq!(bench.lake.maintain(&table).await.unwrap().removed, 0);
    let waiting = bench.lake.maintain(&table).await.unwrap().waiting;
    assert!(waiting > 0);
    // The pause moves the clock of this lake; an hour is past every grace.
    for _ in 0..4 {
        table.lake.options.pause.pause(Duration::from_secs(900)).await;
    }
    let done = bench.lake.maintain(&table).await.unwrap();
    assert!(done.removed > 0, "{done:?}");
    assert_eq!(event_ids(&table.view()).await, ids(0..130));
    let fresh = bench.rival(9, 9).find_table(&name()).await.unwrap().unwrap().view();
    assert_eq!(event_ids(&fresh).await, ids(0..130));
}

#[tokio::test]
async fn f33_files_of_a_commit_that_may_still_come_to_stand_are_not_given_up() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 5).await;
    // Known columns: the attempt asserts the snapshot alone, and another writer's new column does not stop it.
    let files = table.write(vec![rows(5, 5)]).await.unwrap();
    bench.faulty.script_commits([Fault::Late]);
    bench.faulty.script_reads(std::iter::repeat_n(Fault::Away, 11));
    table.commit(commit_of(files.clone(), 5, 10)).await.unwrap_err();
    // The same commit, with files that do not fit any more.
    let mut stale = files.clone();
    let field = iceberg::spec::NestedField::optional(
        99,
        "odd",
        iceberg::spec::Type::Primitive(iceberg::spec::PrimitiveType::Long),
    );
    let schema = iceberg::spec::Schema::builder().with_fields([std::sync::Arc::new(field)]).build().unwrap();
    stale[0].schema = std::sync::Arc::new(schema);
    let error = table.commit(commit_of(stale.clone(), 5, 10)).await.unwrap_err();
    assert!(matches!(error, CommitError::Unavailable { outcome_unknown: true, .. }), "{error:?}");
    // Once another commit came in, the late one cannot stand any more.
    append_from_another_log(&bench).await;
    let error = table.commit(commit_of(stale, 5, 10)).await.unwrap_err();
    assert!(matches!(error, CommitError::StaleFiles { .. }), "{error:?}");
    assert!(bench.faulty.deliver_late().await[0].is_err());
}
