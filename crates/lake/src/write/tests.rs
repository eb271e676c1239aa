//! Rows written and read back: types, partitions, order, bounds, and what an error leaves behind.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int32Array,
    Int64Array, LargeBinaryArray, MapBuilder, MapFieldNames, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use lakegate_env::SeededRandom;
use lakegate_model::{Column, ColumnSource, ColumnType, Contract, PartitionField, SortField, TableName, Transform};

use crate::lake::Lake;
use crate::options::{LakeOptions, Offload};
use crate::scan::{Condition, Op, Scalar, ScanRequest};
use crate::table::LakeTable;
use crate::test_support::{
    Bench, DAY_US, NOON_US, append, commit_of, contract, event_ids, ids, options, read, rows, rows_at, writer,
};
use crate::testing::MemoryCatalog;
use crate::warehouse::Warehouse;

fn every_type() -> Contract {
    let types = [
        ("b", ColumnType::Boolean),
        ("i", ColumnType::Int),
        ("l", ColumnType::Long),
        ("f", ColumnType::Float),
        ("d", ColumnType::Double),
        ("dec9", ColumnType::Decimal { precision: 9, scale: 2 }),
        ("dec18", ColumnType::Decimal { precision: 18, scale: 4 }),
        ("dec38", ColumnType::Decimal { precision: 38, scale: 10 }),
        ("date", ColumnType::Date),
        ("ts", ColumnType::Timestamp),
        ("tstz", ColumnType::Timestamptz),
        ("s", ColumnType::String),
        ("bin", ColumnType::Binary),
        ("js", ColumnType::Json),
        ("m", ColumnType::StringMap),
    ];
    let column = |(name, column_type): (&str, ColumnType)| Column {
        name: name.to_owned(),
        column_type,
        source: ColumnSource::Path(vec![name.to_owned()]),
        required: false,
    };
    Contract {
        columns: types.into_iter().map(column).collect(),
        partitions: Vec::new(),
        sort: Vec::new(),
        ..contract()
    }
}

fn one_of_every_type() -> RecordBatch {
    let names = MapFieldNames { entry: "key_value".to_owned(), key: "key".to_owned(), value: "value".to_owned() };
    let mut map = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    map.keys().append_value("k");
    map.values().append_value("v");
    map.append(true).unwrap();
    map.append(false).unwrap();
    map.append(true).unwrap();
    let decimal = |precision, scale, value: i128| {
        let array = Decimal128Array::from(vec![Some(value), None, Some(-value)])
            .with_precision_and_scale(precision, scale)
            .unwrap();
        Arc::new(array) as ArrayRef
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("b", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("i", Arc::new(Int32Array::from(vec![Some(i32::MIN), None, Some(i32::MAX)]))),
        ("l", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(i64::MAX)]))),
        ("f", Arc::new(Float32Array::from(vec![Some(f32::NAN), None, Some(-0.0)]))),
        ("d", Arc::new(Float64Array::from(vec![Some(f64::NAN), None, Some(f64::NEG_INFINITY)]))),
        ("dec9", decimal(9, 2, 999_999_999)),
        ("dec18", decimal(18, 4, 999_999_999_999_999_999)),
        ("dec38", decimal(38, 10, 99_999_999_999_999_999_999_999_999_999_999_999_999)),
        ("date", Arc::new(Date32Array::from(vec![Some(-719_162), None, Some(2_932_896)]))),
        ("ts", Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), None, Some(NOON_US)]))),
        (
            "tstz",
            Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), None, Some(NOON_US)]).with_timezone("+00:00")),
        ),
        ("s", Arc::new(StringArray::from(vec![Some(""), None, Some("ß🦀 \u{0}")]))),
        ("bin", Arc::new(LargeBinaryArray::from(vec![Some(&b""[..]), None, Some(&b"\x00\xff"[..])]))),
        ("js", Arc::new(StringArray::from(vec![Some("{\"a\":[1,2]}"), None, Some("null")]))),
        ("m", Arc::new(map.finish())),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn table_of(bench: &Bench, name: &str, contract: &Contract) -> Arc<LakeTable> {
    bench.lake.open_table(&TableName::new("acme", name).unwrap(), contract).await.unwrap()
}

/// All rows as text, so that NaN equals NaN and -0 differs from 0.
fn shown(batch: &RecordBatch) -> String {
    arrow::util::pretty::pretty_format_batches(std::slice::from_ref(batch)).unwrap().to_string()
}

#[tokio::test]
async fn every_type_comes_back_as_it_was_written_with_nulls_nan_and_extremes() {
    for warehouse in
        [Warehouse::in_memory(), Warehouse::open_folder(tempfile::tempdir().unwrap().keep().as_path()).unwrap()]
    {
        let catalog = MemoryCatalog::new(warehouse.clone(), Arc::new(SeededRandom::new(3)));
        let lake = Lake::open(options(&warehouse, Arc::new(catalog), writer(1, 1), 1));
        let table = lake.open_table(&TableName::new("acme", "types").unwrap(), &every_type()).await.unwrap();
        let written = one_of_every_type();
        let files = table.write(vec![written.clone()]).await.unwrap();
        assert_eq!((files.len(), files[0].rows()), (1, 3));
        table.commit(commit_of(files, 0, 3)).await.unwrap();
        let back = read(&table.view(), ScanRequest::default()).await;
        assert_eq!(back.len(), 1);
        assert_eq!(shown(&back[0]), shown(&written));
        assert_eq!(back[0].schema(), table.view().schema());
    }
}

#[tokio::test]
async fn counts_and_bounds_in_the_metadata_are_those_of_the_rows() {
    let bench = Bench::new();
    let table = table_of(&bench, "types", &every_type()).await;
    let files = table.write(vec![one_of_every_type()]).await.unwrap();
    let file = &files[0].data_file;
    let id = |name: &str| table.view().metadata().current_schema().field_id_by_name(name).unwrap();
    let bounds = |name: &str| {
        let text = |b: Option<&iceberg::spec::Datum>| b.map(|b| b.to_string());
        (text(file.lower_bounds().get(&id(name))), text(file.upper_bounds().get(&id(name))))
    };
    let some = |low: &str, high: &str| (Some(low.to_owned()), Some(high.to_owned()));
    assert_eq!(bounds("i"), some("-2147483648", "2147483647"));
    assert_eq!(bounds("l"), some("-9223372036854775808", "9223372036854775807"));
    assert_eq!(bounds("dec9"), some("-9999999.99", "9999999.99"));
    assert_eq!(bounds("dec18"), some("-99999999999999.9999", "99999999999999.9999"));
    assert_eq!(
        bounds("dec38"),
        some("-9999999999999999999999999999.9999999999", "9999999999999999999999999999.9999999999")
    );
    assert_eq!(bounds("date"), some("0001-01-01", "9999-12-31"));
    assert_eq!(bounds("js"), (None, None));
    assert_eq!(file.nan_value_counts().get(&id("d")), Some(&1));
    assert_eq!(file.null_value_counts().get(&id("l")), Some(&1));
    assert_eq!(file.value_counts().get(&id("l")), Some(&3));
}

fn times_of(batches: &[RecordBatch]) -> Vec<i64> {
    let column = |b: &RecordBatch| {
        b.column_by_name("event_time").unwrap().as_primitive::<TimestampMicrosecondType>().values().to_vec()
    };
    batches.iter().flat_map(column).collect()
}

#[tokio::test]
async fn rows_of_several_days_become_a_sorted_file_per_day() {
    let bench = Bench::new();
    let table = bench.table().await;
    let numbers: Vec<i64> = (0..1000).collect();
    let times: Vec<i64> = numbers.iter().map(|n| NOON_US + (n * 7919 % 1000) * (3 * DAY_US / 1000)).collect();
    let batches: Vec<RecordBatch> =
        (0..10).map(|i| rows_at(&numbers[i * 100..(i + 1) * 100], &times[i * 100..(i + 1) * 100])).collect();
    let files = table.write(batches).await.unwrap();
    assert_eq!(files.len(), 4, "noon to noon over three days touches four");
    table.commit(commit_of(files, 0, 1000)).await.unwrap();
    assert_eq!(event_ids(&table.view()).await, ids(0..1000));
    let infos = table.view().files().await.unwrap();
    assert!(infos.iter().all(|f| f.sorted && f.location.contains("/event_time_day=2026-01-0")), "{infos:?}");
    for stream in table.view().scan(ScanRequest { concurrency: 10, ..ScanRequest::default() }).await.unwrap() {
        let batches: Vec<RecordBatch> = futures::TryStreamExt::try_collect(stream).await.unwrap();
        let times = times_of(&batches);
        assert!(times.is_sorted(), "a file's rows are in order");
        assert_eq!(times.first().unwrap().div_euclid(DAY_US), times.last().unwrap().div_euclid(DAY_US));
    }
}

#[tokio::test]
async fn all_transforms_and_a_descending_text_order_partition_and_sort() {
    let bench = Bench::new();
    let field = |column: &str, transform| PartitionField { column: column.to_owned(), transform };
    let transforms = [
        vec![field("event_type", Transform::Identity), field("event_time", Transform::Hour)],
        vec![field("event_id", Transform::Bucket(4))],
        vec![field("event_type", Transform::Truncate(3)), field("event_time", Transform::Month)],
        vec![field("event_time", Transform::Year), field("amount", Transform::Identity)],
        Vec::new(),
    ];
    for (at, partitions) in transforms.into_iter().enumerate() {
        let sort = vec![
            SortField { column: "event_type".to_owned(), descending: true },
            SortField { column: "event_id".to_owned(), descending: false },
        ];
        let contract = Contract { partitions, sort, ..contract() };
        let table = table_of(&bench, &format!("t{at}"), &contract).await;
        let files = table.write(vec![rows(0, 50), rows(50, 30)]).await.unwrap();
        table.commit(commit_of(files, 0, 80)).await.unwrap();
        assert_eq!(event_ids(&table.view()).await, ids(0..80), "case {at}");
        for stream in table.view().scan(ScanRequest { concurrency: 1000, ..ScanRequest::default() }).await.unwrap() {
            let batches: Vec<RecordBatch> = futures::TryStreamExt::try_collect(stream).await.unwrap();
            let key = |b: &RecordBatch, i: usize| {
                let text = |name: &str| b.column_by_name(name).unwrap().as_string::<i32>().value(i).to_owned();
                (std::cmp::Reverse(text("event_type")), text("event_id"))
            };
            let keys: Vec<_> = batches.iter().flat_map(|b| (0..b.num_rows()).map(move |i| key(b, i))).collect();
            assert!(keys.is_sorted(), "case {at}");
        }
    }
}

#[tokio::test]
async fn a_partition_by_a_column_that_avro_cannot_name_is_read_back_and_its_manifests_are_merged() {
    let bench = Bench::new();
    let mut contract = every_type();
    let (column, place) = ("@day 1".to_owned(), 0);
    contract.columns[place].name.clone_from(&column);
    contract.columns[place].column_type = ColumnType::Long;
    contract.partitions = vec![PartitionField { column: column.clone(), transform: Transform::Identity }];
    let table = table_of(&bench, "odd", &contract).await;
    for n in 0..40 {
        let only = RecordBatch::try_from_iter([(column.as_str(), Arc::new(Int64Array::from(vec![n])) as ArrayRef)]);
        let files = table.write(vec![only.unwrap()]).await.unwrap();
        let n = n.cast_unsigned();
        table.commit(commit_of(files, n, n + 1)).await.unwrap();
    }
    let rival = bench.rival(9, 9).find_table(&TableName::new("acme", "odd").unwrap()).await.unwrap().unwrap();
    let rows: usize = read(&rival.view(), ScanRequest::default()).await.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 40);
}

#[tokio::test]
async fn rows_that_lie_in_order_are_written_as_they_lie_in_files_of_the_target_size() {
    let bench = Bench::new();
    let table = bench.table().await;
    let batches: Vec<RecordBatch> = (0..10).map(|i| rows(i * 2048, 2048)).collect();
    let files = table.write(batches).await.unwrap();
    let bytes: u64 = files.iter().map(super::WrittenFile::bytes).sum();
    assert_eq!(files.iter().map(super::WrittenFile::rows).sum::<u64>(), 10 * 2048);
    assert_eq!(files.len(), 1, "{bytes} bytes");
}

#[tokio::test]
async fn conditions_leave_out_files_that_cannot_match() {
    let bench = Bench::new();
    let table = bench.table().await;
    for n in 0..10 {
        append(&table, n * 100, (n + 1) * 100).await;
    }
    let view = table.view();
    let scan = async |column: &str, op, value| {
        let filter = vec![Condition { column: column.to_owned(), op, value }];
        let projection = Some(vec!["version".to_owned(), "event_id".to_owned()]);
        let batches = read(&view, ScanRequest { projection, filter, ..ScanRequest::default() }).await;
        batches.iter().map(RecordBatch::num_rows).sum::<usize>()
    };
    assert_eq!(scan("event_id", Op::Eq, Scalar::Text("e-00000042".into())).await, 1);
    assert_eq!(scan("event_time", Op::Less, Scalar::Micros(NOON_US + 150_000_000)).await, 150);
    assert_eq!(scan("event_time", Op::GreaterEq, Scalar::Micros(NOON_US + 990_000_000)).await, 10);
    assert_eq!(scan("version", Op::Eq, Scalar::Long(2)).await, 0);
    assert_eq!(scan("version", Op::IsNull, Scalar::Null).await, 0);
    assert_eq!(scan("version", Op::NotNull, Scalar::Null).await, 1000);
    let count = read(&view, ScanRequest { projection: Some(Vec::new()), ..ScanRequest::default() }).await;
    assert_eq!(count.iter().map(RecordBatch::num_rows).sum::<usize>(), 1000);
    let filter =
        vec![Condition { column: "event_id".to_owned(), op: Op::Less, value: Scalar::Text("e-00000010".into()) }];
    let count = read(&view, ScanRequest { projection: Some(Vec::new()), filter, ..ScanRequest::default() }).await;
    assert_eq!(count.iter().map(RecordBatch::num_rows).sum::<usize>(), 10);
}

#[tokio::test]
async fn a_missing_column_is_null_an_unknown_or_missing_required_one_an_error() {
    let bench = Bench::new();
    let table = table_of(&bench, "types", &every_type()).await;
    let only = RecordBatch::try_from_iter([("l", Arc::new(Int32Array::from(vec![5])) as ArrayRef)]).unwrap();
    let files = table.write(vec![only]).await.unwrap();
    table.commit(commit_of(files, 0, 1)).await.unwrap();
    let back = read(&table.view(), ScanRequest::default()).await;
    assert_eq!(back[0].column_by_name("l").unwrap().as_primitive::<Int64Type>().value(0), 5);
    assert_eq!(back[0].column_by_name("s").unwrap().null_count(), 1);
    let unknown = RecordBatch::try_from_iter([("zzz", Arc::new(Int32Array::from(vec![5])) as ArrayRef)]).unwrap();
    assert!(table.write(vec![unknown]).await.unwrap_err().to_string().contains("zzz"));
    let orders = bench.table().await;
    let missing = rows(0, 3).project(&[0, 1]).unwrap();
    assert!(orders.write(vec![missing]).await.unwrap_err().to_string().contains("required"));
    assert!(orders.write(Vec::new()).await.unwrap().is_empty());
}

fn parquet_files(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .map(|e| e.unwrap().path())
        .map(
            |p| if p.is_dir() { parquet_files(&p) } else { usize::from(p.extension().is_some_and(|e| e == "parquet")) },
        )
        .sum()
}

#[tokio::test]
async fn rows_that_cannot_be_written_leave_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let warehouse = Warehouse::open_folder(folder.path()).unwrap();
    let catalog = MemoryCatalog::new(warehouse.clone(), Arc::new(SeededRandom::new(3)));
    let lake = Lake::open(options(&warehouse, Arc::new(catalog), writer(1, 1), 1));
    let table = lake.open_table(&TableName::new("acme", "orders").unwrap(), &contract()).await.unwrap();
    let days: Vec<i64> = (0..6).map(|n| NOON_US + n * DAY_US).collect();
    // A file lies where the third day's folder would be.
    let data = table.view().metadata().location().trim_start_matches("file://").to_owned() + "/data";
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(format!("{data}/event_time_day=2026-01-04"), b"").unwrap();
    table.write(vec![rows_at(&[0, 1, 2, 3, 4, 5], &days)]).await.unwrap_err();
    assert_eq!(parquet_files(folder.path()), 0);
}

/// Says something in an optimised build only.
#[tokio::test]
#[ignore = "measures; run by name in an optimised build"]
#[allow(clippy::print_stderr, reason = "its figures are what it is run for")]
async fn writing_a_million_rows_in_order_and_out_of_order() {
    let folder = tempfile::tempdir().unwrap();
    let warehouse = Warehouse::open_folder(folder.path()).unwrap();
    let catalog = MemoryCatalog::new(warehouse.clone(), Arc::new(SeededRandom::new(3)));
    let lake = Lake::open(options(&warehouse, Arc::new(catalog), writer(1, 1), 1));
    let table = lake.open_table(&TableName::new("acme", "orders").unwrap(), &contract()).await.unwrap();
    let step = 40; // ms between two rows: all of them lie in one half of a day
    let batch = |numbers: Vec<i64>| {
        let times: Vec<i64> = numbers.iter().map(|n| NOON_US + n * step * 1000).collect();
        rows_at(&numbers, &times)
    };
    let sorted: Vec<RecordBatch> = (0..122).map(|i| batch((i * 8192..(i + 1) * 8192).collect())).collect();
    let mixed: Vec<RecordBatch> =
        (0..122).map(|i| batch((0..8192).map(|n| (i * 8192 + n) * 7919 % (122 * 8192)).collect())).collect();
    for (what, batches) in [("in order", sorted), ("out of order", mixed)] {
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let started = std::time::Instant::now();
        let files = table.write(batches).await.unwrap();
        let us = started.elapsed().as_micros();
        let bytes: u64 = files.iter().map(super::WrittenFile::bytes).sum();
        let (ns, per_row) = (us * 1000 / rows as u128, bytes / rows as u64);
        eprintln!("{what}: {rows} rows of 10 columns, {ns} ns and {per_row} bytes a row, {} files", files.len());
    }
}

#[test]
fn s46_a_location_outside_the_warehouse_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let warehouse = Warehouse::open_folder(folder.path()).unwrap();
    let root = warehouse.root().to_owned();
    let plain = root.trim_start_matches("file://").to_owned();
    for good in [format!("{root}/a/b.parquet"), format!("{plain}/a"), format!("file:{plain}/a")] {
        warehouse.check(&good).unwrap();
    }
    let bad = [
        "file:///etc/passwd".to_owned(),
        "/etc/passwd".to_owned(),
        "s3://other/x".to_owned(),
        format!("{root}/../x"),
        format!("{root}/a/../../x"),
        format!("{root}x/a"),
        root.clone(),
        format!("{root}/a?b"),
        format!("{root}/a\0b"),
    ];
    for location in bad {
        assert!(warehouse.check(&location).is_err(), "{location:?} was let in");
    }
}

#[tokio::test]
async fn rows_that_are_written_as_they_come_are_those_that_came_and_a_misfit_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let warehouse = Warehouse::open_folder(folder.path()).unwrap();
    let catalog = MemoryCatalog::new(warehouse.clone(), Arc::new(SeededRandom::new(3)));
    let options =
        LakeOptions { offload: Offload::BlockingThreads, ..options(&warehouse, Arc::new(catalog), writer(1, 1), 1) };
    let lake = Lake::open(options);
    let table = lake.open_table(&TableName::new("acme", "types").unwrap(), &every_type()).await.unwrap();
    assert!(table.takes_rows_as_they_come());
    let sorted = lake.open_table(&TableName::new("acme", "sorted").unwrap(), &contract()).await.unwrap();
    assert!(!sorted.takes_rows_as_they_come());
    let refused = sorted.write_as_they_come(std::iter::once(rows(0, 1))).await.unwrap_err().to_string();
    assert!(refused.contains("order"), "{refused}");

    let some = one_of_every_type();
    let misfit = RecordBatch::try_from_iter([("other", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    let error = table.write_as_they_come(vec![some.clone(), misfit].into_iter()).await.unwrap_err();
    assert!(error.to_string().contains("other"), "{error}");
    let data = |folder: &std::path::Path| {
        let mut folders = vec![folder.to_owned()];
        let mut found = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false => found += usize::from(entry.path().extension().is_some_and(|name| name == "parquet")),
                }
            }
        }
        found
    };
    assert_eq!(data(folder.path()), 0);

    let (sender, receiver) = std::sync::mpsc::channel();
    let writing = tokio::spawn(async move { table.write_as_they_come(receiver.into_iter()).await.map(|f| (table, f)) });
    for _ in 0..3 {
        sender.send(some.clone()).unwrap();
        sender.send(some.slice(0, 0)).unwrap();
    }
    drop(sender);
    let (table, files) = writing.await.unwrap().unwrap();
    assert_eq!((files.len(), files[0].rows(), data(folder.path())), (1, 9, 1));
    table.commit(commit_of(files, 0, 9)).await.unwrap();
    let back = read(&table.view(), ScanRequest::default()).await;
    let back = arrow::compute::concat_batches(&back[0].schema(), &back).unwrap();
    let wanted = arrow::compute::concat_batches(&some.schema(), &[some.clone(), some.clone(), some.clone()]).unwrap();
    assert_eq!(shown(&back), shown(&wanted));
    assert!(table.write_as_they_come(std::iter::empty()).await.unwrap().is_empty());
}
