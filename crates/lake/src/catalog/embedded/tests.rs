//! The catalog on a real SQLite file and a real folder.

use std::collections::HashMap;
use std::sync::Arc;

use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};
use iceberg::{NamespaceIdent, TableCreation, TableIdent, TableRequirement, TableUpdate};
use lakegate_env::{SeededRandom, SystemRandom};
use lakegate_model::{LogId, TableName};
use uuid::Uuid;

use super::{DatabaseAddress, EmbeddedCatalog, EmbeddedOptions};
use crate::catalog::{Catalog, CatalogError};
use crate::lake::Lake;
use crate::options::{LakeOptions, Offload, TokioPause, Writer};
use crate::test_support::{append, commit_of, contract, event_ids, ids, name, options, rows, writer};
use crate::warehouse::Warehouse;

struct Home {
    folder: tempfile::TempDir,
    warehouse: Warehouse,
    catalog: EmbeddedCatalog,
}

async fn open(folder: &tempfile::TempDir) -> (Warehouse, EmbeddedCatalog) {
    let warehouse = Warehouse::open_folder(&folder.path().join("lake")).unwrap();
    let database = folder.path().join("catalog.db");
    let options = EmbeddedOptions {
        database: DatabaseAddress::Sqlite(database),
        warehouse: warehouse.clone(),
        random: Arc::new(SystemRandom),
    };
    (warehouse.clone(), EmbeddedCatalog::open(options).await.unwrap())
}

impl Home {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (warehouse, catalog) = open(&folder).await;
        Self { folder, warehouse, catalog }
    }

    fn lake(&self, writer: Writer, seed: u64) -> Lake {
        Lake::open(options(&self.warehouse, Arc::new(self.catalog.clone()), writer, seed))
    }
}

fn ns(text: &str) -> NamespaceIdent {
    NamespaceIdent::from_strs(text.split('.')).unwrap()
}

fn creation(name: &str) -> TableCreation {
    let field = NestedField::required(1, "id", Type::Primitive(PrimitiveType::Long));
    let schema = Schema::builder().with_fields([Arc::new(field)]).build().unwrap();
    TableCreation::builder().name(name.to_owned()).schema(schema).build()
}

fn set(key: &str, value: &str) -> Vec<TableUpdate> {
    vec![TableUpdate::SetProperties { updates: HashMap::from([(key.to_owned(), value.to_owned())]) }]
}

#[tokio::test]
async fn namespaces_are_made_listed_changed_and_dropped_when_empty() {
    let home = Home::new().await;
    let catalog = &home.catalog;
    catalog.create_namespace(&ns("a"), HashMap::from([("k".into(), "v".into())])).await.unwrap();
    catalog.create_namespace(&ns("a.b"), HashMap::new()).await.unwrap();
    assert!(matches!(catalog.create_namespace(&ns("a"), HashMap::new()).await, Err(CatalogError::AlreadyExists(_))));
    assert_eq!(catalog.list_namespaces(None).await.unwrap(), vec![ns("a")]);
    assert_eq!(catalog.list_namespaces(Some(&ns("a"))).await.unwrap(), vec![ns("a.b")]);
    assert!(matches!(catalog.list_namespaces(Some(&ns("z"))).await, Err(CatalogError::NotFound(_))));
    let change = catalog
        .update_namespace(&ns("a"), vec!["k".into(), "x".into()], HashMap::from([("n".into(), "1".into())]))
        .await
        .unwrap();
    assert_eq!(
        (change.removed, change.missing, change.updated),
        (vec!["k".into()], vec!["x".into()], vec!["n".into()])
    );
    let mut properties = catalog.load_namespace(&ns("a")).await.unwrap();
    let location = properties.remove("location");
    assert!(location.is_some_and(|place| place.starts_with("file://") && place.ends_with("/a")), "a place of its own");
    assert_eq!(properties, HashMap::from([("n".into(), "1".into())]));
    assert!(matches!(catalog.drop_namespace(&ns("a")).await, Err(CatalogError::NotEmpty(_))));
    catalog.drop_namespace(&ns("a.b")).await.unwrap();
    catalog.drop_namespace(&ns("a")).await.unwrap();
    assert!(matches!(catalog.load_namespace(&ns("a")).await, Err(CatalogError::NotFound(_))));
    for bad in ["", "a/b", "..", "a\u{0}", "%2e"] {
        let namespace = NamespaceIdent::new(bad.to_owned());
        assert!(catalog.create_namespace(&namespace, HashMap::new()).await.is_err(), "{bad:?} was let in");
    }
}

#[tokio::test]
async fn tables_are_made_moved_registered_and_dropped() {
    let home = Home::new().await;
    let catalog = &home.catalog;
    let (one, two) = (TableIdent::new(ns("a"), "one".into()), TableIdent::new(ns("a"), "two".into()));
    assert!(matches!(catalog.create_table(&ns("a"), creation("one")).await, Err(CatalogError::NotFound(_))));
    catalog.create_namespace(&ns("a"), HashMap::new()).await.unwrap();
    let made = catalog.create_table(&ns("a"), creation("one")).await.unwrap();
    assert!(matches!(catalog.create_table(&ns("a"), creation("one")).await, Err(CatalogError::AlreadyExists(_))));
    catalog.rename_table(&one, &two).await.unwrap();
    assert!(matches!(catalog.load_table(&one).await, Err(CatalogError::NotFound(_))));
    assert_eq!(catalog.load_table(&two).await.unwrap().metadata.uuid(), made.metadata.uuid());
    catalog.create_table(&ns("a"), creation("one")).await.unwrap();
    assert!(matches!(catalog.rename_table(&one, &two).await, Err(CatalogError::AlreadyExists(_))));
    assert_eq!(catalog.list_tables(&ns("a")).await.unwrap(), vec![one.clone(), two.clone()]);
    catalog.drop_table(&two, false).await.unwrap();
    catalog.register_table(&two, &made.metadata_location, false).await.unwrap();
    assert_eq!(catalog.load_table(&two).await.unwrap().metadata.uuid(), made.metadata.uuid());
    assert!(matches!(catalog.register_table(&two, "file:///etc/passwd", true).await, Err(CatalogError::Rejected(_))));
    catalog.drop_table(&two, true).await.unwrap();
    assert!(!home.warehouse.exists(&made.metadata_location).await.unwrap());
    let mut outside = creation("three");
    outside.location = Some("file:///tmp/elsewhere".into());
    assert!(matches!(catalog.create_table(&ns("a"), outside).await, Err(CatalogError::Rejected(_))));
}

#[tokio::test]
async fn who_comes_second_to_make_a_table_leaves_nothing_behind() {
    let home = Home::new().await;
    let catalog = &home.catalog;
    catalog.create_namespace(&ns("a"), HashMap::new()).await.unwrap();
    let table = TableIdent::new(ns("a"), "one".into());
    // Both look before either makes its row: in the place of the first, and in one of its own.
    for location in [None, Some(format!("{}/a/one-12345678", home.warehouse.root()))] {
        let first = catalog.stage(&ns("a"), creation("one")).await.unwrap();
        let second = catalog.stage(&ns("a"), TableCreation { location, ..creation("one") }).await.unwrap();
        let left = second.metadata_location.clone();
        catalog.insert_table(&table, first).await.unwrap();
        assert!(matches!(catalog.insert_table(&table, second).await, Err(CatalogError::AlreadyExists(_))));
        assert!(!home.warehouse.exists(&left).await.unwrap());
        let kept = catalog.load_table(&table).await.unwrap();
        assert!(home.warehouse.exists(&kept.metadata_location).await.unwrap());
        let folder = std::path::Path::new(home.warehouse.root().trim_start_matches("file://")).join("a");
        let folders: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(folders, ["one"]);
        catalog.drop_table(&table, true).await.unwrap();
    }
}

#[tokio::test]
async fn a_commit_whose_requirement_does_not_hold_is_a_conflict_and_changes_nothing() {
    let home = Home::new().await;
    let catalog = &home.catalog;
    catalog.create_namespace(&ns("a"), HashMap::new()).await.unwrap();
    catalog.create_table(&ns("a"), creation("t")).await.unwrap();
    let table = TableIdent::new(ns("a"), "t".into());
    let wrong = vec![TableRequirement::UuidMatch { uuid: Uuid::from_u128(1) }];
    assert!(matches!(catalog.commit_table(&table, wrong, set("k", "v")).await, Err(CatalogError::Conflict(_))));
    assert!(!catalog.load_table(&table).await.unwrap().metadata.properties().contains_key("k"));
    let outside = set("write.data.path", "file:///tmp/elsewhere");
    assert!(matches!(catalog.commit_table(&table, Vec::new(), outside).await, Err(CatalogError::Rejected(_))));
    let missing = TableIdent::new(ns("a"), "nothing".into());
    assert!(matches!(catalog.commit_table(&missing, Vec::new(), set("k", "v")).await, Err(CatalogError::NotFound(_))));
}

#[tokio::test]
async fn several_tables_change_together_or_not_at_all() {
    let home = Home::new().await;
    let catalog = &home.catalog;
    catalog.create_namespace(&ns("a"), HashMap::new()).await.unwrap();
    let table = |name: &str| TableIdent::new(ns("a"), name.to_owned());
    for name in ["t", "u"] {
        catalog.create_table(&ns("a"), creation(name)).await.unwrap();
    }
    let change = |name: &str, requirements, value: &str| super::TableChange {
        table: table(name),
        requirements,
        updates: set("k", value),
    };
    catalog.commit_tables(vec![change("t", vec![], "1"), change("u", vec![], "1")]).await.unwrap();
    let wrong = vec![TableRequirement::NotExist];
    let failed = catalog.commit_tables(vec![change("t", vec![], "2"), change("u", wrong, "2")]).await;
    assert!(matches!(failed, Err(CatalogError::Conflict(_))), "{failed:?}");
    for name in ["t", "u"] {
        assert_eq!(catalog.load_table(&table(name)).await.unwrap().metadata.properties().get("k").unwrap(), "1");
    }
}

#[tokio::test]
async fn what_was_committed_is_there_after_the_catalog_is_opened_again() {
    let home = Home::new().await;
    let table = home.lake(writer(1, 1), 1).open_table(&name(), &contract()).await.unwrap();
    append(&table, 0, 10).await;
    home.catalog.close().await;
    let (warehouse, catalog) = open(&home.folder).await;
    let lake = Lake::open(options(&warehouse, Arc::new(catalog), writer(2, 2), 2));
    assert_eq!(lake.list_tables().await.unwrap(), vec![name()]);
    let table = lake.open_table(&name(), &contract()).await.unwrap();
    assert_eq!(table.view().absorbed_next_offset(crate::test_support::LOG), 10);
    append(&table, 10, 20).await;
    assert_eq!(event_ids(&table.view()).await, ids(0..20));
}

fn metadata_files(home: &Home, table: &TableName) -> usize {
    let folder = home.folder.path().join("lake").join(&table.namespace).join(&table.name).join("metadata");
    std::fs::read_dir(folder)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().path().to_string_lossy().ends_with(".metadata.json"))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_writers_at_once_lose_no_commit_and_old_metadata_files_go() {
    let home = Home::new().await;
    home.lake(writer(1, 1), 1).open_table(&name(), &contract()).await.unwrap();
    let mut tasks = Vec::new();
    for n in 0..8_u64 {
        let log = LogId(Uuid::from_u128(u128::from(n) + 100));
        let writer = Writer { log, ..writer(1, u128::from(n) + 1) };
        let base = options(&home.warehouse, Arc::new(home.catalog.clone()), writer, n);
        let random = Arc::new(SeededRandom::new(n));
        let options = LakeOptions {
            pause: Arc::new(TokioPause),
            random,
            offload: Offload::BlockingThreads,
            commit_attempts: 100,
            ..base
        };
        tasks.push(tokio::spawn(async move {
            let table = Lake::open(options).open_table(&name(), &contract()).await.unwrap();
            for at in 0..25_u64 {
                let first = i64::try_from(n * 1000 + at).unwrap();
                let mut commit = commit_of(table.write(vec![rows(first, 1)]).await.unwrap(), at, at + 1);
                commit.log.as_mut().unwrap().position.log = log;
                commit.commit_id = Uuid::from_u128(u128::from(n + 1) << 32 | u128::from(at));
                table.commit(commit).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let table = home.lake(writer(1, 1), 50).find_table(&name()).await.unwrap().unwrap();
    let expected: Vec<String> = (0..8).flat_map(|n| ids(n * 1000..n * 1000 + 25)).collect();
    assert_eq!(event_ids(&table.view()).await, expected);
    assert_eq!(table.view().total_records(), 200);
    assert!(metadata_files(&home, &name()) <= 31, "{}", metadata_files(&home, &name()));
}

/// Takes about a minute without optimisation, so it is run by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute; run by name to see the figures"]
#[allow(clippy::print_stderr, reason = "its figures are what it is run for")]
async fn two_thousand_commits_stay_as_fast_as_the_first_ones() {
    let home = Home::new().await;
    let base = options(&home.warehouse, Arc::new(home.catalog.clone()), writer(1, 1), 1);
    let lake = Lake::open(LakeOptions { offload: Offload::BlockingThreads, ..base });
    let table = lake.open_table(&name(), &contract()).await.unwrap();
    let (mut write_us, mut commit_us) = (Vec::new(), Vec::new());
    for n in 0..2000_i64 {
        let started = std::time::Instant::now();
        let files = table.write(vec![rows(n * 10, 10)]).await.unwrap();
        write_us.push(started.elapsed().as_micros());
        let at = u64::try_from(n).unwrap() * 10;
        let started = std::time::Instant::now();
        table.commit(commit_of(files, at, at + 10)).await.unwrap();
        commit_us.push(started.elapsed().as_micros());
    }
    let median = |part: &[u128]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part[part.len() / 2]
    };
    for start in [0, 10, 100, 200, 500, 1000, 1500, 1900] {
        let part = start..start + 90;
        let slowest = commit_us[part.clone()].iter().max().unwrap();
        eprintln!(
            "commits {part:?}: median {} us, slowest {slowest} us; write median {} us",
            median(&commit_us[part.clone()]),
            median(&write_us[part.clone()])
        );
    }
    assert_eq!(table.view().total_records(), 20_000);
    assert!(median(&commit_us[1900..]) <= 2 * median(&commit_us[200..300]), "commits became slower");
}
