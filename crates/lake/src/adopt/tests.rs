//! Files made by the Parquet library, not by our writer, taken in and read back.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, TimeUnit};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use uuid::Uuid;

use super::*;
use crate::commit::Commit;
use crate::scan::{Condition, Op, Scalar, ScanRequest};
use crate::test_support::{Bench, DAY_US, NOON_US, append, event_ids, name, read, rows};

/// Rows as another program would write them: fewer columns, narrower types, ids or none.
fn foreign(numbers: &[i64], day: i64, with_ids: bool) -> RecordBatch {
    let text =
        |f: &dyn Fn(i64) -> String| Arc::new(numbers.iter().map(|n| Some(f(*n))).collect::<StringArray>()) as ArrayRef;
    let time = |f: &dyn Fn(i64) -> i64| {
        Arc::new(TimestampMicrosecondArray::from_iter_values(numbers.iter().map(|n| f(*n))).with_timezone("UTC"))
            as ArrayRef
    };
    let stamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let columns: Vec<(&str, i32, DataType, ArrayRef)> = vec![
        ("event_id", 3, DataType::Utf8, text(&|n| format!("e-{n:08}"))),
        ("tenant_id", 1, DataType::Utf8, text(&|_| "acme".to_owned())),
        ("endpoint_id", 2, DataType::Utf8, text(&|_| "orders".to_owned())),
        ("event_type", 4, DataType::Utf8, text(&|_| "imported".to_owned())),
        ("event_time", 5, stamp.clone(), time(&|n| NOON_US + day * DAY_US + n)),
        ("received_at", 6, stamp, time(&|n| NOON_US + n)),
        ("version", 7, DataType::Int32, Arc::new(Int32Array::from(vec![9; numbers.len()]))),
        ("payload", 8, DataType::Utf8, text(&|n| format!("{{\"n\":{n}}}"))),
        ("amount", 10, DataType::Float32, Arc::new(Float32Array::from_iter_values(numbers.iter().map(|n| *n as f32)))),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, id, data_type, _)| {
            let field = Field::new(*name, data_type.clone(), true);
            let id = HashMap::from([("PARQUET:field_id".to_owned(), id.to_string())]);
            if with_ids { field.with_metadata(id) } else { field }
        })
        .collect();
    let arrays = columns.into_iter().map(|(_, _, _, array)| array).collect();
    RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), arrays).unwrap()
}

fn parquet(batch: &RecordBatch) -> Bytes {
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    Bytes::from(out)
}

fn plan(table: &LakeTable, file: &Bytes, constants: &[(&str, Scalar)]) -> Result<AdoptPlan, Obstacle> {
    let metadata = Arc::clone(ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap().metadata());
    let constants = constants.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
    table.adopt_check(&Footer { metadata: &metadata, bytes: u64::try_from(file.len()).unwrap(), constants })
}

fn copy(file: &Bytes) -> AdoptHow {
    AdoptHow::Copy(Box::new(std::io::Cursor::new(file.clone())))
}

async fn commit(table: &LakeTable, id: u128, file: WrittenFile) {
    table.commit(Commit::of_marks(Uuid::from_u128(id), vec![file], Vec::new())).await.unwrap();
}

#[tokio::test]
async fn files_with_and_without_ids_are_read_together_with_ordinary_ones() {
    let bench = Bench::new();
    let table = bench.table().await;
    append(&table, 0, 3).await;
    for (id, with_ids) in [(10, true), (20, false)] {
        let file = parquet(&foreign(&[id, id + 1], 0, with_ids));
        let written = table.adopt_file(plan(&table, &file, &[]).unwrap(), copy(&file)).await.unwrap();
        assert_eq!(written.rows(), 2);
        assert_eq!(bench.warehouse.read(written.location()).await.unwrap(), file, "byte for byte");
        commit(&table, u128::try_from(id).unwrap(), written).await;
    }
    let expected: Vec<String> = [0, 1, 2, 10, 11, 20, 21].iter().map(|n| format!("e-{n:08}")).collect();
    let fresh = bench.rival(1, 1).find_table(&name()).await.unwrap().unwrap();
    assert_eq!(event_ids(&fresh.view()).await, expected);
    // Narrower types come out as the table's, also where a condition leaves files out.
    let version = Condition { column: "version".to_owned(), op: Op::Eq, value: Scalar::Long(9) };
    let request = ScanRequest {
        projection: Some(vec!["version".to_owned(), "amount".to_owned()]),
        filter: vec![version],
        ..ScanRequest::default()
    };
    let found = read(&fresh.view(), request).await;
    assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), 4);
    assert!(found.iter().all(|b| *b.schema().field(0).data_type() == DataType::Int64));
    assert_eq!(fresh.view().total_records(), 7);
}

#[tokio::test]
async fn what_the_footer_does_not_prove_does_not_fit_and_the_reason_is_said() {
    let bench = Bench::new();
    let table = bench.table().await;
    let because = |batch: RecordBatch| plan(&table, &parquet(&batch), &[]).err().unwrap().0;
    let good = foreign(&[1, 2], 0, true);
    let without = |name: &str| {
        let keep: Vec<usize> = (0..good.num_columns()).filter(|i| good.schema().field(*i).name() != name).collect();
        good.project(&keep).unwrap()
    };
    assert!(because(without("event_time")).contains("lacks the column \"event_time\""));
    let with = |name: &str, field: Field, array: ArrayRef| {
        let at = good.schema().index_of(name).unwrap();
        let mut fields: Vec<Field> = good.schema().fields().iter().map(|f| f.as_ref().clone()).collect();
        let mut columns = good.columns().to_vec();
        fields[at] = field.with_metadata(fields[at].metadata().clone());
        columns[at] = array;
        RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), columns).unwrap()
    };
    let odd = with("version", Field::new("version", DataType::Utf8, true), Arc::new(StringArray::from(vec!["1", "2"])));
    assert!(because(odd).contains("is of the type Utf8"));
    let unknown = with("version", Field::new("colour", DataType::Int32, true), Arc::new(Int32Array::from(vec![1, 2])));
    assert!(because(unknown).contains("\"colour\", which the table does not have"));
    let null = with(
        "event_id",
        Field::new("event_id", DataType::Utf8, true),
        Arc::new(StringArray::from(vec![Some("a"), None])),
    );
    assert!(because(null).contains("every row has the column \"event_id\""));
    let days = arrow::compute::concat_batches(&good.schema(), [&good, &foreign(&[3], 1, true)]).unwrap();
    assert!(because(days).contains("one partition"));
    let mut fields: Vec<Field> = good.schema().fields().iter().map(|f| f.as_ref().clone()).collect();
    fields[0] = fields[0].clone().with_metadata(HashMap::from([("PARQUET:field_id".to_owned(), "77".to_owned())]));
    let moved = RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), good.columns().to_vec()).unwrap();
    assert!(because(moved).contains("field id 77"));
}

#[tokio::test]
async fn a_file_that_changed_after_its_footer_was_read_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let warehouse = crate::Warehouse::open_folder(folder.path()).unwrap();
    let random = Arc::new(lakegate_env::SeededRandom::new(3));
    let catalog = Arc::new(crate::testing::MemoryCatalog::new(warehouse.clone(), random));
    let writer = crate::test_support::writer(1, 1);
    let lake = crate::Lake::open(crate::test_support::options(&warehouse, catalog, writer, 1));
    let table = lake.open_table(&name(), &crate::test_support::contract()).await.unwrap();
    let file = parquet(&foreign(&[1], 0, true));
    let checked = plan(&table, &file, &[]).unwrap();
    for other in [file.slice(..file.len() - 1), Bytes::from([&file[..], b"x"].concat())] {
        let error = table.adopt_file(checked.clone(), copy(&other)).await.unwrap_err();
        assert!(error.to_string().contains("changed while it was copied"), "{error}");
    }
    let written = table.adopt_file(checked, copy(&file)).await.unwrap();
    let day = std::path::PathBuf::from(written.location().trim_start_matches("file://"));
    assert_eq!(std::fs::read_dir(day.parent().unwrap()).unwrap().count(), 1, "only the good one");
}

#[tokio::test]
async fn a_referenced_file_stays_where_it_is_and_one_outside_is_refused() {
    let bench = Bench::new();
    let table = bench.table().await;
    let file = parquet(&foreign(&[1, 2], 0, false));
    let place = format!("{}/inbox/a.parquet", bench.warehouse.root());
    bench.warehouse.save(vec![(place.clone(), file.clone())]).await.unwrap();
    let checked = plan(&table, &file, &[]).unwrap();
    let outside = AdoptHow::Reference("memory:///elsewhere/a.parquet".to_owned());
    table.adopt_file(checked.clone(), outside).await.unwrap_err();
    let written = table.adopt_file(checked, AdoptHow::Reference(place.clone())).await.unwrap();
    table.discard(std::slice::from_ref(&written)).await;
    assert!(bench.warehouse.exists(&place).await.unwrap());
    commit(&table, 1, written).await;
    assert_eq!(event_ids(&table.view()).await, ["e-00000001", "e-00000002"]);
    // Ordinary rows after it, of the same table.
    let files = table.write(vec![rows(3, 1)]).await.unwrap();
    commit(&table, 2, files.into_iter().next().unwrap()).await;
    assert_eq!(event_ids(&table.view()).await.len(), 3);
}

/// A file that lacks a map column: the library's reader has no nulls of it.
#[tokio::test]
async fn a_table_with_adopted_files_is_read_compacted_and_cut_with_all_its_columns() {
    let bench = Bench::new();
    let table = bench.table().await;
    for n in 0..10 {
        append(&table, n, n + 1).await;
    }
    for (id, with_ids) in [(10, true), (20, false)] {
        let file = parquet(&foreign(&[id, id + 1], 0, with_ids));
        let written = table.adopt_file(plan(&table, &file, &[]).unwrap(), copy(&file)).await.unwrap();
        commit(&table, u128::try_from(id).unwrap(), written).await;
    }
    let shape = |batches: Vec<RecordBatch>| -> (usize, usize) {
        let nulls = |b: &RecordBatch| b.column_by_name("attributes").unwrap().null_count();
        (batches.iter().map(RecordBatch::num_rows).sum(), batches.iter().map(nulls).sum())
    };
    // Of the ten rows of our own, every third has no attributes.
    assert_eq!(shape(read(&table.view(), ScanRequest::default()).await), (14, 8));
    assert_eq!(table.compact_once().await.unwrap().removed, 12);
    assert_eq!(shape(read(&table.view(), ScanRequest::default()).await), (14, 8));
    let id = Condition { column: "event_id".to_owned(), op: Op::Eq, value: Scalar::Text("e-00000020".to_owned()) };
    assert_eq!(table.remove_rows(&[id]).await.unwrap().rows, 1);
    assert_eq!(shape(read(&table.view(), ScanRequest::default()).await), (13, 7));
}
