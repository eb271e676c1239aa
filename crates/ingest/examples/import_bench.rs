//! How many rows of files one second of processor time brings into a table, and how fast that is.
//!
//! `import_bench generate DIR ROWS` writes `events.parquet`, `events.csv` and `events.ndjson` of the same rows: 15 columns
//! as events have them, half of the text random. `import_bench run DIR FILE…` imports each file into a table of its own
//! columns, with and without event keys, every row looked at; beside it one pass of the Parquet library's own reader and
//! writer over a Parquet file. `benches/peers/duckdb_copy.py DIR` does the same with DuckDB. `import_bench memory DIR` makes
//! inputs that are huge in one way each and imports each in a process of its own, which tells its peak of memory.
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
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use lakegate_env::{RealDisk, SystemClock, SystemRandom};
use lakegate_formats::{BytesInput, Input, ReadOptions, open};
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
        ["memory", dir] => memory(Path::new(dir)),
        ["huge", dir, file] => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(import_huge(&Path::new(dir).join(file), Path::new(dir)));
        }
        _ => println!("import_bench generate DIR ROWS | import_bench run DIR FILE… | import_bench memory DIR"),
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

/// A file that is read where it lies.
struct FileInput(File, String);

impl Input for FileInput {
    fn name(&self) -> &str {
        &self.1
    }

    fn len(&self) -> Option<u64> {
        Some(self.0.metadata().unwrap().len())
    }

    fn read_at(&self, offset: u64, len: usize) -> std::io::Result<bytes::Bytes> {
        let mut buffer = vec![0; len];
        self.0.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }

    fn read_ranges(&self, ranges: &[Range<u64>]) -> std::io::Result<Vec<bytes::Bytes>> {
        ranges.iter().map(|r| self.read_at(r.start, usize::try_from(r.end - r.start).unwrap())).collect()
    }

    fn stream(&self, from: u64) -> std::io::Result<Box<dyn Read + Send>> {
        let mut file = File::open(&self.1)?;
        file.seek(SeekFrom::Start(from))?;
        Ok(Box::new(file))
    }
}

/// Makes one huge input after the other, and imports each in a process of its own.
fn memory(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let own = std::env::current_exe().unwrap();
    for (name, make) in [
        ("row-group-of-1-gib.parquet", huge_row_group as fn(&Path)),
        ("statement-of-500-mb.sql", huge_statement),
        ("line-of-100-mb.csv", |path| huge_line(path, "id,text\n1,", "\n2,x\n")),
        ("line-of-100-mb.jsonl", |path| huge_line(path, "{\"id\":1,\"text\":\"", "\"}\n{\"id\":2}\n")),
        ("bomb-of-4-gb.csv.gz", bomb),
    ] {
        let path = dir.join(name);
        make(&path);
        let status = std::process::Command::new(&own).args(["huge", dir.to_str().unwrap(), name]).status().unwrap();
        assert!(status.success(), "{name}: {status}");
        std::fs::remove_file(path).unwrap();
    }
}

/// 128 Mi values of 8 bytes without any pattern, in two columns of one row group.
fn huge_row_group(path: &Path) {
    let mut rng = StdRng::seed_from_u64(11);
    let column = |rng: &mut StdRng| Arc::new((0..1 << 20).map(|_| Some(rng.random::<i64>())).collect::<Int64Array>());
    let mut batch = || {
        let (a, b): (ArrayRef, ArrayRef) = (column(&mut rng), column(&mut rng));
        RecordBatch::try_from_iter([("a", a), ("b", b)]).unwrap()
    };
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(None).set_dictionary_enabled(false).build();
    let first = batch();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), first.schema(), Some(properties)).unwrap();
    writer.write(&first).unwrap();
    (1..64).for_each(|_| writer.write(&batch()).unwrap());
    assert_eq!(writer.close().unwrap().num_row_groups(), 1);
}

fn huge_statement(path: &Path) {
    let mut out = std::io::BufWriter::new(File::create(path).unwrap());
    write!(out, "CREATE TABLE `t` (`id` bigint, `text` varchar(80));\nINSERT INTO `t` VALUES (0,'first')").unwrap();
    for n in 1..10_000_000_u64 {
        write!(out, ",({n},'a text of some length, number {:x}')", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap();
    }
    writeln!(out, ";").unwrap();
}

fn huge_line(path: &Path, before: &str, after: &str) {
    let mut out = std::io::BufWriter::new(File::create(path).unwrap());
    out.write_all(before.as_bytes()).unwrap();
    (0..100).for_each(|_| out.write_all(&[b'x'; 1_000_000]).unwrap());
    out.write_all(after.as_bytes()).unwrap();
}

fn bomb(path: &Path) {
    let mut out = flate2::write::GzEncoder::new(File::create(path).unwrap(), flate2::Compression::fast());
    out.write_all(b"id,text\n").unwrap();
    let zeros = vec![0; 1 << 20];
    (0..4096).for_each(|_| out.write_all(&zeros).unwrap());
    out.finish().unwrap();
}

async fn import_huge(path: &Path, dir: &Path) {
    let data = dir.join("data");
    let _ = std::fs::remove_dir_all(&data);
    std::fs::create_dir_all(&data).unwrap();
    let input = Arc::new(FileInput(File::open(path).unwrap(), path.to_string_lossy().into_owned()));
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let (mut gate_of, mut rows, mut bad) = (None, 0, 0);
    let mut reader = open(input, &ReadOptions::default(), None).unwrap();
    let ended = loop {
        let piece = match reader.next() {
            Ok(Some(piece)) => piece,
            Ok(None) => break "read whole".to_owned(),
            Err(error) => break error.to_string(),
        };
        let columns = match (&piece.rows, &piece.table) {
            (_, Some(table)) => OwnColumns::Table { table: table.clone(), keyed: false },
            (lakegate_formats::Rows::Columns(batch), None) => OwnColumns::Schema(batch.schema()),
            (lakegate_formats::Rows::Documents { .. }, None) => {
                let fields = vec![arrow::datatypes::Field::new("id", arrow::datatypes::DataType::Int64, true)];
                OwnColumns::Schema(Arc::new(arrow::datatypes::Schema::new(fields)))
            }
        };
        if gate_of.is_none() {
            let target = ImportTarget {
                principal: None,
                tenant: TenantId::new("bench").unwrap(),
                stream: StreamName::new("huge").unwrap(),
                event_type: None,
                columns: Some(columns.clone()),
                file: 1,
                uri: path.to_string_lossy().into_owned(),
                again: false,
                rewrite: true,
                correlation_id: None,
            };
            let gate = gate(&data, false, &columns).await;
            let Begun::Import(import) = gate.begin_import(target).await.unwrap() else { return };
            gate_of = Some((gate, import));
        }
        let Some((_, import)) = &mut gate_of else { return };
        let counts = import.take(piece).await.unwrap();
        (rows, bad) = (rows + counts.accepted, bad + counts.dead_lettered);
    };
    if let Some((gate, import)) = gate_of {
        import.finish().await.unwrap();
        drop(gate);
    }
    report("huge", path, rows, begun, cpu);
    println!("  {bad} rows set aside; {ended}");
    let _ = std::fs::remove_dir_all(&data);
}
