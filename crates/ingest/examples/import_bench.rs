//! How many rows of files one second of processor time brings into a table, and how fast that is.
//!
//! `import_bench generate DIR ROWS` writes `events.parquet`, `events.csv` and `events.ndjson` of the same rows: 15 columns
//! as events have them, half of the text random. `import_bench run DIR FILE…` imports each file into a table of its own
//! columns, with and without event keys, every row looked at; beside it one pass of the Parquet library's own reader and
//! writer over a Parquet file. `benches/peers/duckdb_copy.py DIR` does the same with DuckDB.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a tool of the command line that measures"
)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use lakegate_env::{RealDisk, SystemClock, SystemRandom};
use lakegate_formats::{BytesInput, ReadOptions, open};
use lakegate_ingest::{
    Begun, DuplicateSettings, Gate, GateOptions, GateSettings, ImportTarget, OwnColumns, StreamDeclaration,
};
use lakegate_lake::testing::MemoryCatalog;
use lakegate_lake::{Compression, Lake, LakeOptions, Offload, TokioPause, Warehouse, Writer};
use lakegate_log::{Log, LogOptions};
use lakegate_memtable::Memtables;
use lakegate_model::{StreamName, TenantId};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression as Codec, ZstdLevel};
use parquet::file::properties::WriterProperties;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 64 * 1024;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["generate", dir, rows] => generate(Path::new(dir), rows.parse().expect("a number of rows")),
        ["run", dir, files @ ..] => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            for file in files {
                let path = Path::new(dir).join(file);
                if file.ends_with(".parquet") {
                    one_pass(&path, Path::new(dir));
                }
                read_alone(&path);
                for keyed in [false, true] {
                    runtime.block_on(import(&path, Path::new(dir), keyed));
                }
            }
        }
        _ => println!("import_bench generate DIR ROWS | import_bench run DIR FILE…"),
    }
}

fn rows(rng: &mut StdRng, first: usize, count: usize) -> RecordBatch {
    let words = ["view", "cart_add", "cart_remove", "checkout", "search", "login", "logout", "refund"];
    let n = |at: usize| first + at;
    let hex = |rng: &mut StdRng| format!("{:016x}{:016x}", rng.random::<u64>(), rng.random::<u64>());
    let mut text = |make: &mut dyn FnMut(&mut StdRng, usize) -> String| {
        Arc::new((0..count).map(|at| Some(make(rng, n(at)))).collect::<StringArray>()) as ArrayRef
    };
    let ids = text(&mut |rng, _| hex(rng));
    let sessions = text(&mut |_, n| format!("session-{:08}", n / 20));
    let kinds = text(&mut |rng, _| words[rng.random_range(0..words.len())].to_owned());
    let members = text(&mut |rng, _| format!("member-{:06}", rng.random_range(0..500_000)));
    let pages = text(&mut |rng, _| format!("/shop/item/{}/{}", rng.random_range(0..5000), rng.random_range(0..30)));
    let agents = text(&mut |rng, _| format!("Mozilla/5.0 (X11; Linux) Build/{}", rng.random_range(0..40)));
    let countries = text(&mut |rng, _| ["DE", "US", "FR", "IN", "BR"][rng.random_range(0..5)].to_owned());
    let notes = text(&mut |rng, n| if n.is_multiple_of(3) { hex(rng) } else { String::new() });
    let times: TimestampMicrosecondArray =
        (0..count).map(|at| Some(1_760_000_000_000_000 + n(at) as i64 * 1_700)).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("event_id", ids),
        ("event_time", Arc::new(times.with_timezone("+00:00"))),
        ("event_type", kinds),
        ("session", sessions),
        ("member", members),
        ("page", pages),
        ("agent", agents),
        ("country", countries),
        ("note", notes),
        ("store", Arc::new((0..count).map(|_| Some(rng.random_range(0..200))).collect::<Int32Array>())),
        ("quantity", Arc::new((0..count).map(|_| Some(rng.random_range(1..9))).collect::<Int64Array>())),
        (
            "price",
            Arc::new(
                (0..count).map(|_| Some(f64::from(rng.random_range(1..100_000)) / 100.0)).collect::<Float64Array>(),
            ),
        ),
        ("score", Arc::new((0..count).map(|_| Some(rng.random::<f64>())).collect::<Float64Array>())),
        ("paid", Arc::new((0..count).map(|_| Some(rng.random_bool(0.3))).collect::<BooleanArray>())),
        ("sequence", Arc::new((0..count).map(|at| Some(n(at) as i64)).collect::<Int64Array>())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn properties() -> WriterProperties {
    WriterProperties::builder().set_compression(Codec::ZSTD(ZstdLevel::default())).build()
}

fn generate(dir: &Path, count: usize) {
    std::fs::create_dir_all(dir).unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let file = |name: &str| std::io::BufWriter::new(File::create(dir.join(name)).unwrap());
    let schema = rows(&mut StdRng::seed_from_u64(1), 0, 1).schema();
    let mut parquet = ArrowWriter::try_new(file("events.parquet"), schema, Some(properties())).unwrap();
    let mut csv = arrow::csv::WriterBuilder::new().build(file("events.csv"));
    let mut json = arrow::json::LineDelimitedWriter::new(file("events.ndjson"));
    for first in (0..count).step_by(BATCH) {
        let batch = rows(&mut rng, first, BATCH.min(count - first));
        parquet.write(&batch).unwrap();
        csv.write(&batch).unwrap();
        json.write(&batch).unwrap();
    }
    parquet.close().unwrap();
    json.finish().unwrap();
}

/// Seconds of processor time that this process has used: user and system, in clock ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn report(what: &str, path: &Path, rows: u64, begun: Instant, cpu: f64) {
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let (name, rows) = (path.file_name().unwrap().to_string_lossy(), rows as f64);
    println!(
        "{name:16} {what:24} {rows:9} rows  {wall:6.2} s  {:9.0} rows/s  {cpu:6.2} cpu s  {:9.0} rows/cpu s  peak {} MiB",
        rows / wall,
        rows / cpu,
        peak_mib()
    );
}

/// What the Parquet library alone takes to decode and encode the file.
fn one_pass(path: &Path, dir: &Path) {
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let (schema, mut count) = (reader.schema().clone(), 0);
    let out = dir.join("one-pass.parquet");
    let mut writer = ArrowWriter::try_new(File::create(&out).unwrap(), schema, Some(properties())).unwrap();
    for batch in reader.with_batch_size(BATCH).build().unwrap() {
        let batch = batch.unwrap();
        count += batch.num_rows() as u64;
        writer.write(&batch).unwrap();
    }
    writer.close().unwrap();
    report("decode and encode alone", path, count, begun, cpu);
    std::fs::remove_file(out).unwrap();
}

/// What reading the file into columns or documents takes, without anything after it.
fn read_alone(path: &Path) {
    let input = Arc::new(BytesInput::new(path.to_string_lossy().as_ref(), std::fs::read(path).unwrap()));
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let mut reader = open(input, &ReadOptions::default(), None).unwrap();
    let mut count = 0;
    while let Some(piece) = reader.next().unwrap() {
        count += piece.rows.len() as u64;
    }
    report("read alone", path, count, begun, cpu);
}

async fn gate(data: &Path, keyed: bool, columns: &OwnColumns) -> Gate {
    let clock = Arc::new(SystemClock::default());
    let random = Arc::new(SystemRandom);
    let disk = Arc::new(RealDisk);
    let log = Log::open(disk.clone(), clock.clone(), random.clone(), LogOptions::new(data.join("wal"))).unwrap();
    let warehouse = Warehouse::open_folder(&data.join("warehouse")).unwrap();
    let writer = Writer {
        log: log.id(),
        partition: 0,
        epoch: log.epoch(),
        instance: uuid::Uuid::new_v4(),
        node: "bench".into(),
    };
    let lake = Lake::open(LakeOptions {
        catalog: Arc::new(MemoryCatalog::new(warehouse.clone(), random.clone())),
        warehouse,
        clock: clock.clone(),
        random: random.clone(),
        pause: Arc::new(TokioPause),
        writer,
        compression: Compression::Zstd,
        target_file_bytes: 128 << 20,
        offload: Offload::BlockingThreads,
        commit_attempts: 3,
    });
    let mut streams = Vec::new();
    if keyed {
        let mut contract = columns.contract().unwrap();
        contract.event_key = vec!["event_id".to_owned()];
        streams.push(StreamDeclaration { name: StreamName::new("events").unwrap(), contract });
    }
    let settings = GateSettings {
        data_dir: data.to_owned(),
        batch_size_max: 100_000,
        payload_bytes_max: 16 << 20,
        memory_budget: 512 << 20,
        commit_bytes: 64 << 20,
        flush_interval_us: 5_000_000,
        undeclared_streams: true,
        max_streams: 100,
        longest_window_us: 86_400_000_000,
        duplicates: DuplicateSettings::default(),
    };
    let memtables = Arc::new(Memtables::new(log.id(), log.durable_handle()));
    let options = GateOptions { settings, streams, log, lake, memtables, disk, clock, random };
    Gate::open(options).await.unwrap().0
}

async fn import(path: &Path, dir: &Path, keyed: bool) {
    let data: PathBuf = dir.join("data");
    let _ = std::fs::remove_dir_all(&data);
    std::fs::create_dir_all(&data).unwrap();
    let input = || Arc::new(BytesInput::new(path.to_string_lossy().as_ref(), std::fs::read(path).unwrap()));
    let sample = open(input(), &ReadOptions::default(), None).unwrap();
    // A text of documents tells no columns: those of the Parquet file of the same rows are taken.
    let schema = sample.schema().filter(|schema| !schema.fields().is_empty()).unwrap_or_else(|| {
        ParquetRecordBatchReaderBuilder::try_new(File::open(dir.join("events.parquet")).unwrap())
            .unwrap()
            .schema()
            .clone()
    });
    drop(sample);
    let columns = OwnColumns::Schema(schema);
    let gate = gate(&data, keyed, &columns).await;
    let target = ImportTarget {
        principal: None,
        tenant: TenantId::new("bench").unwrap(),
        stream: StreamName::new("events").unwrap(),
        event_type: None,
        columns: Some(columns),
        file: 1,
        uri: path.to_string_lossy().into_owned(),
        again: false,
        rewrite: true,
        correlation_id: None,
    };
    let input = input();
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let Begun::Import(mut import) = gate.begin_import(target).await.unwrap() else { return };
    let (sender, mut pieces) = tokio::sync::mpsc::channel(1);
    let reading = std::thread::spawn(move || {
        let mut reader = open(input, &ReadOptions::default(), None).unwrap();
        while let Some(piece) = reader.next().unwrap() {
            if sender.blocking_send(piece).is_err() {
                return;
            }
        }
    });
    while let Some(piece) = pieces.recv().await {
        import.take(piece).await.unwrap();
    }
    reading.join().unwrap();
    let summary = import.finish().await.unwrap();
    report(if keyed { "import, with event keys" } else { "import" }, path, summary.rows, begun, cpu);
    assert_eq!(summary.dead_lettered, 0, "rows were set aside");
    drop(gate);
    let _ = std::fs::remove_dir_all(&data);
}
