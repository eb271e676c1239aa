//! `lakegate demo`: the whole promise in twenty seconds.
//!
//! Starts the real server as a child process, sends it a shop's events over gRPC, kills it in the middle as a power
//! cut would, starts it again, and then compares what was acknowledged with what SQL finds: each record, once.

mod child;
mod display;
mod events;
mod load;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use clap::Args;
use serde_json::Value;
use uuid::Uuid;

use super::client::{Client, ClientError};
use super::exit::Exit;
use super::output::{grouped, note, print};
use super::sql::{self, Output};
use child::{Server, ServerError};
use display::Display;
use events::{Generator, Stream};
use load::{CLIENTS, Counts, Sender};

pub(crate) const EXAMPLES: &str = "\
Examples:
  lakegate demo
  lakegate demo --seconds 30 --rate 200000
  lakegate demo --dir /tmp/demo --no-kill";

/// How long, how much, where.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Where the demo keeps its files; it must be new or empty. Default: ./lakegate-demo, or the next free ./lakegate-demo-N
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How long events are sent
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=3600))]
    seconds: u64,
    /// Events a second
    #[arg(long, default_value_t = 40_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: u64,
    /// Leave the server alive
    #[arg(long)]
    no_kill: bool,
}

/// Why the demo could not be shown.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("{0} is not empty; name another folder with --dir, or remove it")]
    NotEmpty(PathBuf),
    #[error("{path}: {source}")]
    Files { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("no connection: {0}")]
    Grpc(#[from] tonic::transport::Error),
    #[error("the answer to {0:?} holds no count")]
    NoCount(String),
}

pub(crate) async fn run(args: DemoArgs) -> ExitCode {
    let exit = tokio::select! {
        shown = show(&args) => match shown {
            Ok(exit) => exit,
            Err(e) => {
                note(&format!("error: {e}"));
                Exit::Failure
            }
        },
        _ = tokio::signal::ctrl_c() => Exit::Interrupted,
    };
    exit.into()
}

async fn show(args: &DemoArgs) -> Result<Exit, DemoError> {
    let dir = prepare(args.dir.as_deref())?;
    let files = |source| DemoError::Files { path: dir.clone(), source };
    let mut server = Server::new(&dir).map_err(files)?;
    let display = Display::new();
    let took = server.start().await?;
    display.say(&format!("server ready after {} ms, files in {}", took.as_millis(), dir.display()));

    let counts = Arc::new(Counts::default());
    let http = Client::new(&server.http)?;
    let drawing = tokio::spawn(display.clone().run(counts.clone(), http.clone()));
    let deadline = Instant::now() + Duration::from_secs(args.seconds);
    let senders = start_senders(args, &server, &http, &counts, deadline)?;
    if !args.no_kill {
        tokio::time::sleep(Duration::from_secs(args.seconds) / 2).await;
        server.kill().await?;
        let at = counts.acknowledged();
        display
            .say(&format!("killed the server (SIGKILL) after {} acknowledged records; starting it again", grouped(at)));
        let took = server.start().await?;
        display.say(&format!(
            "server ready again after {} ms: what it had acknowledged is back from its log",
            took.as_millis()
        ));
    }
    for sender in senders {
        // A sender that panicked shows in the comparison: what it sent is then not acknowledged.
        let _ = sender.await;
    }
    drawing.abort();
    display.end();
    let exit = conclude(&http, &counts).await?;
    show_lake(&http, &dir).await?;
    server.stop().await?;
    show_next(&dir);
    Ok(exit)
}

/// A new folder with the demo's configuration in it.
fn prepare(wanted: Option<&Path>) -> Result<PathBuf, DemoError> {
    let free = |dir: &Path| std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    let dir = match wanted {
        Some(dir) if free(dir) => dir.to_owned(),
        Some(dir) => return Err(DemoError::NotEmpty(dir.to_owned())),
        None => {
            let names =
                std::iter::once("lakegate-demo".to_owned()).chain((2..10_000).map(|n| format!("lakegate-demo-{n}")));
            let found = names.map(|n| Path::new(".").join(n)).find(|dir| free(dir));
            found.ok_or_else(|| DemoError::NotEmpty("./lakegate-demo".into()))?
        }
    };
    let files = |source| DemoError::Files { path: dir.clone(), source };
    std::fs::create_dir_all(&dir).map_err(files)?;
    let data = dir.join("data").display().to_string();
    std::fs::write(dir.join("lakegate.json"), events::configuration(&data)).map_err(files)?;
    Ok(dir)
}

fn start_senders(
    args: &DemoArgs,
    server: &Server,
    http: &Client,
    counts: &Arc<Counts>,
    deadline: Instant,
) -> Result<Vec<tokio::task::JoinHandle<()>>, DemoError> {
    let run = Uuid::new_v4().simple().to_string();
    let channel = load::connect(server.grpc_port)?;
    let sender = |i| Sender {
        channel: channel.clone(),
        http: http.clone(),
        counts: counts.clone(),
        generator: Generator::new(&run, i),
        records_per_second: args.rate / CLIENTS,
    };
    Ok((1..=CLIENTS).map(|i| tokio::spawn(sender(i * 2).run(deadline))).collect())
}

/// Compares what was acknowledged with what is stored.
async fn conclude(http: &Client, counts: &Counts) -> Result<Exit, DemoError> {
    let mut exact = true;
    note("");
    for (stream, acknowledged) in Stream::ALL.iter().zip(&counts.acknowledged) {
        let acknowledged = acknowledged.load(Ordering::Relaxed);
        let query = format!("SELECT count(*) AS n, count(DISTINCT event_id) AS d FROM {}", stream.table());
        let answer = sql::fetch(http, &query).await?;
        let number = |column| count_in(&answer, column).ok_or_else(|| DemoError::NoCount(query.clone()));
        let (stored, distinct) = (number(0)?, number(1)?);
        let right = stored == acknowledged && distinct == acknowledged;
        exact &= right;
        note(&format!(
            "{:<16} acknowledged {:>9}   stored {:>9}   different ids {:>9}   {}",
            stream.table(),
            grouped(acknowledged),
            grouped(stored),
            grouped(distinct),
            if right { "each once" } else { "NOT EQUAL" }
        ));
    }
    if let Some((p50, p99)) = counts.latency_ms() {
        note(&format!("durable acknowledgement: p50 {p50:.1} ms, p99 {p99:.1} ms for batches of 200"));
    }
    let (found, again) = (counts.found_stored.load(Ordering::Relaxed), counts.sent_again.load(Ordering::Relaxed));
    if found + again > 0 {
        let text = format!(
            "in flight at the kill: {} found stored, {} sent again under the same ids",
            grouped(found),
            grouped(again)
        );
        note(&text);
    }
    Ok(if exact { Exit::Done } else { Exit::Failure })
}

fn count_in(batches: &[RecordBatch], column: usize) -> Option<u64> {
    let batch = batches.iter().find(|b| b.num_rows() > 0)?;
    let values = batch.columns().get(column)?.as_primitive_opt::<Int64Type>()?;
    (!values.is_empty()).then(|| u64::try_from(values.value(0)).ok())?
}

const QUESTION: &str = "SELECT event_type, count(*) AS events, count(DISTINCT country) AS countries, sum(amount) AS amount \
                        FROM shop.orders GROUP BY event_type ORDER BY events DESC";

/// Shows a result, and the table as the lake has it.
async fn show_lake(http: &Client, dir: &Path) -> Result<(), DemoError> {
    note(&format!("\n$ lakegate sql \"{QUESTION}\""));
    let answer = sql::fetch(http, QUESTION).await?;
    print(&sql::render(&answer, Output::Table)?);
    let patience = Instant::now() + Duration::from_secs(5);
    loop {
        let status = http.get("/api/status").await?;
        let streams = status.get("streams").and_then(Value::as_array).cloned().unwrap_or_default();
        let waiting: u64 = streams.iter().filter_map(|s| s.get("lag_records")?.as_u64()).sum();
        if waiting == 0 || Instant::now() > patience {
            note(&format!(
                "\nIceberg tables in {}, {} records still to be committed:",
                dir.join("data/warehouse").display(),
                grouped(waiting)
            ));
            for stream in &streams {
                let text = |name: &str| stream.get(name).and_then(Value::as_str).unwrap_or("none yet").to_owned();
                note(&format!(
                    "  {:<16} snapshot {}, committed {}",
                    text("table"),
                    text("snapshot_id"),
                    text("last_commit")
                ));
            }
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn show_next(dir: &Path) {
    note(&format!(
        "\nHow to go on:\n  \
         lakegate serve --config {0}/lakegate.json\n  \
         lakegate sql \"SELECT * FROM shop.orders LIMIT 10\"\n  \
         lakegate audit\n  \
         duckdb -c \"INSTALL iceberg; LOAD iceberg; ATTACH '' AS lake (TYPE iceberg, ENDPOINT 'http://127.0.0.1:3001/iceberg', AUTHORIZATION_TYPE 'none'); SELECT event_type, count(*) FROM lake.shop.orders GROUP BY 1\"",
        dir.display()
    ));
}
