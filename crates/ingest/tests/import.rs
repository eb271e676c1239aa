//! Files into tables: once, whatever dies when; with the rules that live records have; and the counts add up.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a failed test is a panic"
)]

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use futures::StreamExt;
use lakegate_env::{FailAction, ManualClock, MemDisk, SeededRandom, arm_failpoint, disarm_failpoints};
use lakegate_formats::{BadRow, BytesInput, Mark, Piece, ReadOptions, Rows};
use lakegate_ingest::{
    Begun, Client, DuplicateSettings, Gate, GateOptions, GateSettings, Import, ImportError, ImportSummary,
    ImportTarget, OwnColumns, Payloads, Source, StreamDeclaration, Submission, SubmitError, Wire,
};
use lakegate_lake::testing::{ClockPause, Fault, FaultyCatalog, MemoryCatalog};
use lakegate_lake::{Compression, Lake, LakeOptions, Offload, ScanRequest, Warehouse, Writer};
use lakegate_log::{Log, LogOptions};
use lakegate_memtable::Memtables;
use lakegate_model::{Column, ColumnSource, ColumnType, Contract, StreamKey, StreamName, TableName, TenantId};

/// Fail points are the process's: one test at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const FILE: u128 = 0xf11e;

/// What outlives a process.
struct World {
    clock: Arc<ManualClock>,
    random: Arc<SeededRandom>,
    disk: MemDisk,
    warehouse: Warehouse,
    catalog: MemoryCatalog,
    epoch: u128,
}

struct Process {
    gate: Gate,
    lake: Lake,
    catalog: FaultyCatalog,
}

fn contract() -> Contract {
    let column = |name: &str, column_type, required| Column {
        name: name.to_owned(),
        column_type,
        source: ColumnSource::Path(vec![name.to_owned()]),
        required,
    };
    Contract {
        columns: vec![column("id", ColumnType::String, true), column("n", ColumnType::Long, false)],
        partitions: Vec::new(),
        sort: Vec::new(),
        ..Contract::undeclared_default()
    }
}

impl World {
    fn new() -> Self {
        let random = Arc::new(SeededRandom::new(11));
        let warehouse = Warehouse::in_memory();
        let catalog = MemoryCatalog::new(warehouse.clone(), random.clone());
        let clock = Arc::new(ManualClock::new(1_760_000_000_000_000));
        Self { clock, random, disk: MemDisk::new(), warehouse, catalog, epoch: 0 }
    }

    async fn start(&mut self) -> Process {
        self.epoch += 1;
        let disk = Arc::new(self.disk.clone());
        let catalog = FaultyCatalog::new(Arc::new(self.catalog.clone()));
        let options = LogOptions { segment_bytes: 1 << 20, quota_bytes: 64 << 20, ..LogOptions::new("/data/wal") };
        let log = Log::open(disk.clone(), self.clock.clone(), self.random.clone(), options).unwrap();
        let instance = uuid::Uuid::from_u128(self.epoch);
        let writer = Writer { log: log.id(), partition: 0, epoch: log.epoch(), instance, node: "test".to_owned() };
        let lake = Lake::open(LakeOptions {
            warehouse: self.warehouse.clone(),
            catalog: Arc::new(catalog.clone()),
            clock: self.clock.clone(),
            random: self.random.clone(),
            pause: Arc::new(ClockPause::new(self.clock.clone())),
            writer,
            compression: Compression::None,
            target_file_bytes: 1 << 20,
            offload: Offload::BlockingThreads,
            commit_attempts: 3,
        });
        let declare = |name: &str, contract| StreamDeclaration { name: StreamName::new(name).unwrap(), contract };
        let keyed = Contract { event_key: vec!["id".to_owned()], ..contract() };
        let (gate, _) = Gate::open(GateOptions {
            settings: GateSettings {
                data_dir: "/data".into(),
                batch_size_max: 10_000,
                payload_bytes_max: 1 << 20,
                memory_budget: 16 << 20,
                commit_bytes: 4 << 20,
                flush_interval_us: 1_000_000,
                undeclared_streams: true,
                max_streams: 100,
                longest_window_us: 86_400_000_000,
                duplicates: DuplicateSettings::default(),
            },
            streams: vec![declare("plain", contract()), declare("keyed", keyed)],
            memtables: Arc::new(Memtables::new(log.id(), log.durable_handle())),
            log,
            lake: lake.clone(),
            disk,
            clock: self.clock.clone(),
            random: self.random.clone(),
        })
        .await
        .unwrap();
        Process { gate, lake, catalog }
    }

    /// The process is gone, and what it had not synced with it.
    fn lose_power(&mut self, process: Process) {
        drop(process);
        self.disk = self.disk.crash(7);
    }
}

fn tenant() -> TenantId {
    TenantId::new("acme").unwrap()
}

fn target(stream: &str) -> ImportTarget {
    ImportTarget {
        principal: None,
        tenant: tenant(),
        stream: StreamName::new(stream).unwrap(),
        event_type: None,
        columns: None,
        file: FILE,
        uri: "file:///in/rows.parquet".to_owned(),
        again: false,
        rewrite: false,
        correlation_id: None,
    }
}

/// The mark behind so many rows, as readers keep it: version, flags, member, row, place.
fn mark(row: i64) -> Mark {
    let bytes: Vec<u8> = [1, 0, 0, 0, 0, 0].into_iter().chain(row.to_le_bytes()).chain([0; 8]).collect();
    Mark::from_bytes(&bytes).unwrap()
}

/// Rows `from..to` of the file, as columns or as documents by turns.
fn piece(from: i64, to: i64) -> Piece {
    let ids: Vec<String> = (from..to).map(|n| format!("r{n:05}")).collect();
    let rows = if from % 20 == 0 {
        let columns: Vec<(&str, ArrayRef)> =
            vec![("id", Arc::new(StringArray::from(ids))), ("n", Arc::new(Int64Array::from_iter_values(from..to)))];
        Rows::Columns(RecordBatch::try_from_iter(columns).unwrap())
    } else {
        let documents = ids.iter().zip(from..).map(|(id, n)| format!("{{\"id\":\"{id}\",\"n\":{n}}}"));
        documents_of(&documents.collect::<Vec<_>>())
    };
    let (first_row, next) = (from.unsigned_abs(), mark(to));
    Piece { member: None, table: None, first_row, next, rows, bad: Vec::new() }
}

fn documents_of(texts: &[String]) -> Rows {
    let (mut body, mut spans) = (Vec::new(), Vec::new());
    for text in texts {
        let start = u32::try_from(body.len()).unwrap();
        body.extend_from_slice(text.as_bytes());
        spans.push(start..u32::try_from(body.len()).unwrap());
    }
    Rows::Documents { body: body.into(), spans }
}

async fn begin(process: &Process, target: ImportTarget) -> Result<Import, ImportError> {
    match process.gate.begin_import(target).await? {
        Begun::Import(import) => Ok(*import),
        Begun::Absorbed { rows } => panic!("absorbed already, {rows} rows"),
    }
}

/// Imports the rows `0..rows` in pieces of ten, from where the table says.
async fn import(process: &Process, target: ImportTarget, rows: i64) -> Result<ImportSummary, ImportError> {
    let mut import = begin(process, target).await?;
    let from = import.resume_mark().map_or(0, |mark| i64::from_le_bytes(mark.to_bytes()[6..14].try_into().unwrap()));
    for first in (from..rows).step_by(10) {
        import.take(piece(first, (first + 10).min(rows))).await?;
    }
    import.finish().await
}

async fn column(process: &Process, table: &str, column: &str) -> Vec<String> {
    let name = TableName::new("acme", table).unwrap();
    let Some(table) = process.lake.find_table(&name).await.unwrap() else { return Vec::new() };
    let request =
        ScanRequest { projection: Some(vec![column.to_owned()]), filter: vec![], batch_size: 1024, concurrency: 1 };
    let mut found = Vec::new();
    for mut stream in table.view().scan(request).await.unwrap() {
        while let Some(batch) = stream.next().await {
            let batch = batch.unwrap();
            let texts = batch.column(0).as_string::<i32>();
            found.extend(texts.iter().map(|text| text.unwrap().to_owned()));
        }
    }
    found.sort();
    found
}

fn ids(range: std::ops::Range<i64>) -> Vec<String> {
    range.map(|n| format!("r{n:05}")).collect()
}

async fn send(process: &Process, stream: &str, texts: &[String]) -> Result<(u64, u64), SubmitError> {
    let Rows::Documents { body, spans } = documents_of(texts) else { unreachable!() };
    let stream = StreamName::new(stream).unwrap();
    let payloads = Payloads { tenant: Some(tenant()), stream, spans, atomic: false, batch_id: String::new() };
    let submission = Submission {
        principal: None,
        source: Source::Rest,
        wire: Wire::Payloads(payloads),
        body,
        correlation_id: None,
        client: Client::default(),
        in_order: false,
    };
    let outcome = process.gate.submit(submission).await?;
    Ok((outcome.accepted, outcome.duplicates))
}

fn record(n: i64) -> String {
    format!("{{\"id\":\"r{n:05}\",\"n\":{n}}}")
}

fn sums(process: &Process, stream: &str) -> (u64, u64, u64, u64) {
    let key = StreamKey { tenant: tenant(), stream: StreamName::new(stream).unwrap() };
    let tally = process.gate.balance().get(&key).copied().unwrap_or_default();
    assert!(tally.closes(), "{tally:?}");
    (tally.received, tally.accepted, tally.duplicate, tally.dead_lettered)
}

#[tokio::test]
async fn a_file_is_absorbed_once_and_once_more_when_asked() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let process = world.start().await;
    let summary = import(&process, target("plain"), 95).await.unwrap();
    assert_eq!((summary.rows, summary.accepted, summary.commits), (95, 95, 1));
    assert_eq!(column(&process, "plain", "id").await, ids(0..95));
    assert!(matches!(process.gate.begin_import(target("plain")).await, Ok(Begun::Absorbed { rows: 95 })));
    let other = ImportTarget { file: 2, ..target("plain") };
    assert_eq!(import(&process, other, 5).await.unwrap().accepted, 5, "another file is another file");
    let again = ImportTarget { again: true, ..target("plain") };
    assert_eq!(import(&process, again, 95).await.unwrap().accepted, 95);
    assert_eq!(column(&process, "plain", "id").await.len(), 195);
    assert_eq!(sums(&process, "plain"), (195, 195, 0, 0));
    world.lose_power(process);
    let process = world.start().await;
    assert!(matches!(process.gate.begin_import(target("plain")).await, Ok(Begun::Absorbed { rows: 95 })));
}

#[tokio::test]
async fn f52_an_import_that_dies_anywhere_goes_on_and_no_row_is_lost_or_doubled() {
    let _turn = TURN.lock().await;
    let points = [
        "import.before_write",
        "import.after_write",
        "import.after_keys",
        "lake.commit.before",
        "lake.commit.after_upload",
        "lake.commit.after_swap",
        "import.after_commit",
        "import.after_keep",
        "lake.write.half",
        "lake.write.before_sync",
    ];
    for stream in ["plain", "keyed"] {
        for point in points {
            for nth in 1..=2 {
                let mut world = World::new();
                let process = world.start().await;
                send(&process, stream, &[record(1)]).await.unwrap();
                process.gate.flush_all().await;
                let mut first = begin(&process, target(stream)).await.unwrap();
                for from in (0..60).step_by(10) {
                    first.take(piece(from, from + 10)).await.unwrap();
                }
                first.commit_now().await.unwrap();
                first.take(piece(60, 70)).await.unwrap();
                // A commit tries by itself three times: so often the fail point has to be met.
                arm_failpoint(point, FailAction::Eio, nth);
                let died = match first.commit_now().await {
                    Err(error) => Some(error),
                    Ok(()) => first.take(piece(70, 80)).await.map(|_| ()).err(),
                };
                drop(first);
                disarm_failpoints();
                world.lose_power(process);
                let process = world.start().await;
                let summary = import(&process, target(stream), 95).await.unwrap();
                let twice = if stream == "plain" { vec!["r00001".to_owned()] } else { Vec::new() };
                let mut expected: Vec<String> = ids(0..95).into_iter().chain(twice).collect();
                expected.sort();
                let found = column(&process, stream, "id").await;
                assert_eq!(found, expected, "{stream} {point} {nth}: {died:?}, then {summary:?}");
                if stream == "keyed" {
                    let all: Vec<String> = (0..100).map(record).collect();
                    assert_eq!(send(&process, stream, &all).await, Ok((5, 95)), "{point} {nth}: keys are known");
                }
                process.gate.flush_all().await;
                process.gate.run_once().await;
                let (received, accepted, ..) = sums(&process, stream);
                assert_eq!(accepted, column(&process, stream, "id").await.len() as u64, "{point}: {received} came");
            }
        }
    }
}

/// Five files of ten rows each, read to their ends. File 1 has the rows 0 to 9 of the keys, and so on.
async fn read_five(process: &Process, stream: &str) -> Vec<Box<Import>> {
    let mut imports = Vec::new();
    for file in 1..=5 {
        let Ok(Begun::Import(mut import)) = process.gate.begin_import(ImportTarget { file, ..target(stream) }).await
        else {
            continue;
        };
        let from = i64::try_from(file - 1).unwrap() * 10;
        import.take(Piece { first_row: 0, next: mark(10), ..piece(from, from + 10) }).await.unwrap();
        import.write_now().await.unwrap();
        assert!(import.is_small());
        imports.push(import);
    }
    imports
}

#[tokio::test]
async fn f52_files_that_share_a_commit_are_each_absorbed_once_wherever_the_process_dies() {
    let _turn = TURN.lock().await;
    for stream in ["plain", "keyed"] {
        let mut world = World::new();
        let process = world.start().await;
        let imports = read_five(&process, stream).await;
        let snapshots: BTreeSet<_> =
            process.gate.finish_together(imports).await.into_iter().map(|done| done.unwrap().snapshot_id).collect();
        assert_eq!(snapshots.len(), 1, "one commit");
        assert_eq!(column(&process, stream, "id").await, ids(0..50));
        assert!(read_five(&process, stream).await.is_empty(), "each is known by itself");
        for point in [
            "import.after_keys",
            "lake.commit.before",
            "lake.commit.after_swap",
            "import.after_commit",
            "import.after_keep",
        ] {
            for nth in [1, 3] {
                let mut world = World::new();
                let process = world.start().await;
                let imports = read_five(&process, stream).await;
                arm_failpoint(point, FailAction::Eio, nth);
                let died = process.gate.finish_together(imports).await;
                disarm_failpoints();
                world.lose_power(process);
                let process = world.start().await;
                let imports = read_five(&process, stream).await;
                for done in process.gate.finish_together(imports).await {
                    done.unwrap();
                }
                assert_eq!(column(&process, stream, "id").await, ids(0..50), "{stream} {point} {nth}: {died:?}");
                if stream == "keyed" {
                    let all: Vec<String> = (0..55).map(record).collect();
                    assert_eq!(send(&process, stream, &all).await, Ok((5, 50)), "{point} {nth}: keys are known");
                }
                process.gate.flush_all().await;
                process.gate.run_once().await;
                process.gate.load_imported().await.unwrap();
                let (_, accepted, ..) = sums(&process, stream);
                assert_eq!(accepted, column(&process, stream, "id").await.len() as u64, "{point} {nth}");
            }
        }
    }
}

#[tokio::test]
async fn a_file_that_another_absorbed_does_not_keep_its_neighbours_from_their_commit() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let process = world.start().await;
    let imports = read_five(&process, "plain").await;
    let third = ImportTarget { file: 3, ..target("plain") };
    let mut other = begin(&process, third).await.unwrap();
    other.take(Piece { first_row: 0, next: mark(10), ..piece(20, 30) }).await.unwrap();
    other.finish().await.unwrap();
    let answers = process.gate.finish_together(imports).await;
    let late: Vec<bool> =
        answers.iter().map(|answer| matches!(answer, Err(ImportError::AbsorbedElsewhere(_)))).collect();
    assert_eq!(late, [false, false, true, false, false], "{answers:?}");
    assert_eq!(answers.iter().flatten().count(), 4);
    assert_eq!(column(&process, "plain", "id").await, ids(0..50));
}

#[tokio::test]
async fn of_two_imports_of_one_file_the_second_to_commit_adds_nothing() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let process = world.start().await;
    let mut first = begin(&process, target("plain")).await.unwrap();
    let mut second = begin(&process, target("plain")).await.unwrap();
    first.take(piece(0, 10)).await.unwrap();
    second.take(piece(0, 10)).await.unwrap();
    assert_eq!(first.finish().await.unwrap().accepted, 10);
    assert!(matches!(second.finish().await, Err(ImportError::AbsorbedElsewhere(_))));
    assert_eq!(column(&process, "plain", "id").await, ids(0..10));
}

#[tokio::test]
async fn a_row_is_a_duplicate_of_a_record_and_a_record_of_a_row() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let process = world.start().await;
    assert_eq!(send(&process, "keyed", &[record(3), record(200)]).await, Ok((2, 0)));
    let mut import = begin(&process, target("keyed")).await.unwrap();
    let counts = import.take(piece(0, 10)).await.unwrap();
    assert_eq!((counts.accepted, counts.duplicates), (9, 1));
    let again = Piece { first_row: 10, ..piece(0, 10) };
    assert_eq!(import.take(again).await.unwrap().duplicates, 10, "a row that comes twice in the file");
    let held = send(&process, "keyed", &[record(4), record(300)]).await;
    assert!(matches!(held, Err(SubmitError::OutOfRoom { what: "import", .. })), "{held:?}");
    assert_eq!(send(&process, "keyed", &[record(300)]).await, Ok((1, 0)));
    let summary = import.finish().await.unwrap();
    assert_eq!((summary.accepted, summary.duplicates), (9, 11));
    assert_eq!(send(&process, "keyed", &[record(4)]).await, Ok((0, 1)));
    world.lose_power(process);
    let process = world.start().await;
    assert_eq!(send(&process, "keyed", &[record(4), record(3), record(301)]).await, Ok((1, 2)));
    process.gate.flush_all().await;
    assert_eq!(column(&process, "keyed", "id").await.len(), 9 + 2 + 1 + 1);
}

#[tokio::test]
async fn imports_that_want_each_others_keys_both_end() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let process = world.start().await;
    let one = begin(&process, ImportTarget { file: 1, ..target("keyed") }).await.unwrap();
    let two = begin(&process, ImportTarget { file: 2, ..target("keyed") }).await.unwrap();
    let run = |mut import: Import, pieces: [Piece; 2]| async move {
        for piece in pieces {
            import.take(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        import.finish().await.unwrap()
    };
    let at = |row: u64, piece: Piece| Piece { first_row: row, ..piece };
    let (one, two) = tokio::join!(
        run(one, [at(0, piece(0, 10)), at(10, piece(10, 20))]),
        run(two, [at(0, piece(10, 20)), at(10, piece(0, 10))])
    );
    assert_eq!(one.accepted + two.accepted, 20);
    assert_eq!(one.duplicates + two.duplicates, 20);
    assert_eq!(column(&process, "keyed", "id").await, ids(0..20));
}

#[tokio::test(start_paused = true)]
async fn what_becomes_of_a_commit_that_was_not_answered_is_found_out_by_the_next_import() {
    let _turn = TURN.lock().await;
    for fault in [Fault::DoneThenLost, Fault::LostBefore] {
        let mut world = World::new();
        let process = world.start().await;
        let mut first = begin(&process, target("keyed")).await.unwrap();
        first.take(piece(0, 10)).await.unwrap();
        // The commit's answer is lost, and then the catalog is away for longer than an import waits.
        process.catalog.script_commits([fault]);
        process.catalog.script_reads(std::iter::repeat_n(Fault::Away, 1000));
        let died = first.finish().await.unwrap_err();
        assert!(matches!(died, ImportError::Unknown(_)), "{died}");
        let held = send(&process, "keyed", &[record(4)]).await;
        assert!(matches!(held, Err(SubmitError::OutOfRoom { what: "import", .. })), "{fault:?}: {held:?}");
        let table = TableName::new("acme", "keyed").unwrap();
        while process.lake.find_table(&table).await.is_err() {}
        if let Begun::Import(mut second) = process.gate.begin_import(target("keyed")).await.unwrap() {
            second.take(piece(0, 10)).await.unwrap();
            second.finish().await.unwrap();
        }
        assert_eq!(column(&process, "keyed", "id").await, ids(0..10), "{fault:?}");
        assert_eq!(send(&process, "keyed", &[record(4)]).await, Ok((0, 1)), "{fault:?}");
    }
}

#[tokio::test]
async fn a_bad_row_is_set_aside_once_with_its_file_number_and_text() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let process = world.start().await;
    let texts = [record(0), "{\"n\":1}".to_owned(), "{\"id\":\"r00002\",\"n\":\"x\"}".to_owned(), record(3)];
    let torn = BadRow { row: 4, raw: Bytes::from_static(b"torn,"), field: None, reason: "too few fields".to_owned() };
    let piece = Piece { rows: documents_of(&texts), bad: vec![torn], next: mark(5), ..piece(0, 5) };
    let mut first = begin(&process, target("plain")).await.unwrap();
    let counts = first.take(piece.clone()).await.unwrap();
    assert_eq!((counts.rows, counts.accepted, counts.dead_lettered), (5, 2, 3));
    drop(first);
    world.lose_power(process);
    let process = world.start().await;
    let mut second = begin(&process, target("plain")).await.unwrap();
    assert!(second.resume_mark().is_none());
    second.take(piece).await.unwrap();
    second.finish().await.unwrap();
    process.gate.flush_all().await;
    let messages = column(&process, "dead_letters", "message").await;
    let expected = ["row 2: id is required", "row 3: n must be", "row 5: too few fields"];
    assert_eq!(messages.len(), 3, "{messages:?}");
    for (message, expected) in messages.iter().zip(expected) {
        assert!(message.starts_with("file:///in/rows.parquet, ") && message.contains(expected), "{message}");
    }
    assert_eq!(column(&process, "plain", "id").await, ["r00000", "r00003"]);
    let (received, accepted, duplicate, dead_lettered) = sums(&process, "plain");
    assert_eq!((received, accepted, duplicate, dead_lettered), (8, 2, 3, 3), "the second copies are duplicates");
}

#[tokio::test]
async fn a_file_of_other_columns_is_refused_and_says_what_is_there_and_what_was_expected() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let process = world.start().await;
    let columns: Vec<(&str, ArrayRef)> = vec![("name", Arc::new(StringArray::from(vec!["x"])))];
    let rows = Rows::Columns(RecordBatch::try_from_iter(columns).unwrap());
    let mut import = begin(&process, target("plain")).await.unwrap();
    let error = import.take(Piece { rows, ..piece(0, 1) }).await.unwrap_err();
    assert!(matches!(&error, ImportError::Mismatch(text) if text.contains("\"id\"") && text.contains("[\"name\"]")));
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_stream_that_nobody_declared_takes_its_first_files_columns_and_keeps_them() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let process = world.start().await;
    let Rows::Columns(batch) = piece(0, 10).rows else { unreachable!() };
    let own = ImportTarget { columns: Some(OwnColumns::Schema(batch.schema())), ..target("fresh") };
    let mut first = begin(&process, own.clone()).await.unwrap();
    first.take(piece(0, 10)).await.unwrap();
    first.finish().await.unwrap();
    assert_eq!(column(&process, "fresh", "id").await, ids(0..10));
    let name = TableName::new("acme", "fresh").unwrap();
    let table = process.lake.find_table(&name).await.unwrap().unwrap();
    let fields: Vec<String> = table.view().schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(fields, ["id", "n"]);
    world.lose_power(process);
    let process = world.start().await;
    assert_eq!(send(&process, "fresh", &[record(10)]).await, Ok((1, 0)), "records go into the same columns");
    process.gate.flush_all().await;
    let second = ImportTarget { file: 2, ..own };
    let mut second = begin(&process, second).await.unwrap();
    second.take(piece(20, 30)).await.unwrap();
    second.finish().await.unwrap();
    let expected: Vec<String> = ids(0..11).into_iter().chain(ids(20..30)).collect();
    assert_eq!(column(&process, "fresh", "id").await, expected);
}

#[tokio::test]
async fn a_parquet_file_that_fits_is_taken_as_it_is_and_once() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let process = world.start().await;
    let Rows::Columns(batch) = piece(0, 10).rows else { unreachable!() };
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let input = Arc::new(BytesInput::new("a.parquet", bytes));
    let file = lakegate_formats::open(input, &ReadOptions::default(), None).unwrap().parquet().unwrap();
    let mut import = begin(&process, target("plain")).await.unwrap();
    let counts = import.adopt(&file).await.unwrap().unwrap();
    assert_eq!((counts.rows, counts.accepted), (10, 10));
    let summary = import.finish().await.unwrap();
    assert!(summary.adopted);
    assert_eq!((summary.rows, summary.accepted, summary.files), (10, 10, 1));
    assert_eq!(column(&process, "plain", "id").await, ids(0..10));
    assert_eq!(sums(&process, "plain"), (10, 10, 0, 0));
    assert!(matches!(process.gate.begin_import(target("plain")).await, Ok(Begun::Absorbed { rows: 10 })));
    let mut keyed = begin(&process, target("keyed")).await.unwrap();
    let obstacle = keyed.adopt(&file).await.unwrap().unwrap_err().0;
    assert!(obstacle.contains("duplicates by [\"id\"]"), "{obstacle}");
    let rewrite = ImportTarget { file: 9, rewrite: true, ..target("plain") };
    let obstacle = begin(&process, rewrite).await.unwrap().adopt(&file).await.unwrap().unwrap_err().0;
    assert!(obstacle.contains("as was asked"), "{obstacle}");
}

#[tokio::test]
async fn rows_of_more_memory_than_the_budget_pass_through_it() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let process = world.start().await;
    let text = "x".repeat(1000);
    let mut import = begin(&process, target("plain")).await.unwrap();
    let mut most = 0;
    for first in 0..40_u64 {
        let ids: StringArray = (0..1000).map(|n| Some(format!("{first}-{n}-{text}"))).collect();
        let rows = RecordBatch::try_from_iter(vec![("id", Arc::new(ids) as ArrayRef)]).unwrap();
        import.take(Piece { rows: Rows::Columns(rows), first_row: first * 1000, ..piece(0, 1) }).await.unwrap();
        most = most.max(process.gate.status(None, None).inflight_bytes);
    }
    assert!(most <= 8 << 20, "{most} bytes were under way");
    let summary = import.finish().await.unwrap();
    assert_eq!(summary.accepted, 40_000);
    assert!(summary.files > 3, "{} files", summary.files);
    assert_eq!(process.gate.status(None, None).inflight_bytes, 0);
    let counted: BTreeMap<_, _> = process.gate.balance();
    assert_eq!(counted.values().map(|tally| tally.accepted).sum::<u64>(), 40_000);
}
