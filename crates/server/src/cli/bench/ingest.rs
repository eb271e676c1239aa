//! Batches over gRPC: records a second, and the server's processor time for each beside the floor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;

use super::child::Server;
use super::load::{self, Numbers};
use super::report::{self, Spread, real};
use super::{Failure, Payload, Place, Shape, floor};

const STREAM: &str = "bench";
/// Different requests that are sent in turn.
const REQUESTS: usize = 64;

/// Settings of the load.
#[derive(Debug, Args)]
pub(crate) struct IngestArgs {
    #[command(flatten)]
    place: Place,
    /// gRPC address of a server that runs; without it one is started for each round
    #[arg(long, value_name = "HOST:PORT")]
    url: Option<String>,
    /// Records of each request
    #[arg(long, default_value_t = 1000)]
    batch: usize,
    /// Connections
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// Requests under way on each connection
    #[arg(long, default_value_t = 4)]
    in_flight: usize,
    /// What the payloads are
    #[arg(long, value_enum, default_value_t = Payload::Plain)]
    payload: Payload,
    /// What the server does with them
    #[arg(long, value_enum, default_value_t = Shape::Opaque)]
    shape: Shape,
    /// Begin with a server that has just started, whose memory and segments are touched for the first time; otherwise as
    /// much is sent and committed before
    #[arg(long)]
    cold: bool,
    /// Measure until the records are committed to the table, not only until they are acknowledged
    #[arg(long)]
    committed: bool,
}

struct Round {
    records_per_second: f64,
    cpu_ns: f64,
    peak_memory: u64,
}

/// Runs it.
pub(crate) async fn run(args: IngestArgs) -> Result<(), Failure> {
    let mut numbers = Numbers(1);
    let requests: Vec<Bytes> =
        (0..REQUESTS).map(|_| load::request(STREAM, args.batch, args.payload, args.shape, &mut numbers)).collect();
    let bytes = requests.iter().map(Bytes::len).sum::<usize>() / (REQUESTS * args.batch);
    report::heading(&format!("{} records a request, {bytes} B each, {:?}, {:?}", args.batch, args.payload, args.shape));
    if let Some(url) = &args.url {
        let sent = drive(url, &requests, &args).await?;
        report::line("acknowledged records/s", &format!("{:.0}", real(sent) / args.place.seconds));
        return Ok(());
    }
    let (mut rates, mut ratios, mut ours, mut floors, mut peaks) = (vec![], vec![], vec![], vec![], vec![]);
    for number in 0..args.place.rounds {
        report::progress(&format!("round {} of {}", number + 1, args.place.rounds));
        // A B B A: the floor first in one round, last in the next.
        let (round, floor) = if number % 2 == 0 {
            let floor = measure_floor(&requests, &args).await?;
            (one_round(&requests, &args).await?, floor)
        } else {
            let round = one_round(&requests, &args).await?;
            (round, measure_floor(&requests, &args).await?)
        };
        rates.push(round.records_per_second);
        ours.push(round.cpu_ns);
        floors.push(floor);
        ratios.push(round.cpu_ns / floor);
        peaks.push(real(round.peak_memory) / f64::from(1 << 20));
    }
    let id = if args.committed { "R7" } else { "R5" };
    report::line("acknowledged records/s", &Spread::of(&rates).to_string());
    report::line("server CPU, ns a record", &Spread::of(&ours).to_string());
    report::line("floor, ns a record", &Spread::of(&floors).to_string());
    report::line(&format!("{id}: server CPU / floor"), &Spread::of(&ratios).to_string());
    report::line("peak resident memory, MiB", &Spread::of(&peaks).to_string());
    Ok(())
}

async fn measure_floor(requests: &[Bytes], args: &IngestArgs) -> Result<f64, Failure> {
    let (requests, batch, seconds, with_parquet) = (requests.to_vec(), args.batch, args.place.seconds, args.committed);
    let cost = tokio::task::spawn_blocking(move || floor::run(requests, batch, seconds, with_parquet)).await??;
    Ok(cost.to_arrow_ns + if with_parquet { cost.parquet_ns } else { 0.0 })
}

async fn one_round(requests: &[Bytes], args: &IngestArgs) -> Result<Round, Failure> {
    let flush = if args.committed { ("1s", "64MiB") } else { ("1h", "64GiB") };
    let settings = serde_json::json!({
        "ingestion": { "memory_budget": "8GiB", "flush_interval": flush.0, "commit_bytes": flush.1 },
        "streams": { STREAM: load::stream_settings(args.shape) },
    });
    let server = Server::start(&args.place.dir, &settings).await?;
    let warm = if args.cold { 0 } else { drive(&server.grpc, requests, args).await? };
    server.flush().await?;
    server.settle().await?;
    let (cpu_before, start) = (server.cpu_ns()?, Instant::now());
    let sent = drive(&server.grpc, requests, args).await?;
    let seconds = start.elapsed().as_secs_f64();
    if args.committed {
        while server.waiting().await? > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let cpu = server.cpu_ns()? - cpu_before;
    let peak_memory = server.peak_memory()?;
    let found = server.count(&format!("SELECT count(*) FROM \"default\".{STREAM}")).await?;
    if found != warm + sent {
        return Err(format!("{} records were acknowledged and {found} are there", warm + sent).into());
    }
    server.end().await?;
    Ok(Round { records_per_second: real(sent) / seconds, cpu_ns: real(cpu) / real(sent), peak_memory })
}

/// Sends requests for the time given; returns the records that were acknowledged.
async fn drive(address: &str, requests: &[Bytes], args: &IngestArgs) -> Result<u64, Failure> {
    let sent = Arc::new(AtomicU64::new(0));
    let end = Instant::now() + Duration::from_secs_f64(args.place.seconds);
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..args.connections {
        let channel = load::connect(address).await?;
        for lane in 0..args.in_flight {
            let (channel, sent) = (channel.clone(), sent.clone());
            let own: Vec<Bytes> = requests.iter().skip(connection + lane).cloned().collect();
            tasks.spawn(async move {
                for request in own.iter().cycle() {
                    if Instant::now() >= end {
                        return Ok(());
                    }
                    let answer = load::send(channel.clone(), request.clone()).await?;
                    sent.fetch_add(answer.accepted, Ordering::Relaxed);
                }
                Ok::<(), tonic::Status>(())
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(sent.load(Ordering::Relaxed))
}
