//! Answers over gRPC: alone, while tables are committed, and until a query sees the record.

use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;

use super::child::Server;
use super::load::{self, Numbers};
use super::report::{self, Spread, latencies, real};
use super::{Failure, Payload, Place, Shape};

const STREAM: &str = "bench";
/// A small stream whose rows are counted.
const SEEN: &str = "seen";
/// Records of the load beside which answers are measured.
const LOAD_BATCH: usize = 500;

/// Settings of the measurement.
#[derive(Debug, Args)]
pub(crate) struct LatencyArgs {
    #[command(flatten)]
    place: Place,
    /// Records a second beside which single answers are measured
    #[arg(long, default_value_t = 50_000)]
    load: u32,
}

/// Runs it.
pub(crate) async fn run(args: LatencyArgs) -> Result<(), Failure> {
    report::heading(&format!("single records beside {} records/s", args.load));
    let (mut r20, mut r21) = (vec![], vec![]);
    let mut lines = Vec::new();
    for number in 0..args.place.rounds {
        report::progress(&format!("round {} of {}", number + 1, args.place.rounds));
        let quiet = round(&args, "1h").await?;
        let busy = round(&args, "300ms").await?;
        r20.push(real(busy.seen.1) / real(busy.answered.1));
        r21.push(real(busy.answered.1) / real(quiet.answered.1));
        lines = vec![
            ("no flush", quiet.answered),
            ("flush and commit every 300 ms", busy.answered),
            ("until SQL sees it", busy.seen),
        ];
    }
    for (name, (p50, p99, p999)) in lines {
        report::line(name, &format!("p50 {p50} µs, p99 {p99} µs, p99.9 {p999} µs"));
    }
    report::line("R20: p99 until SQL sees it / p99 of the answer", &Spread::of(&r20).to_string());
    report::line("R21: p99 with flush and commit / without", &Spread::of(&r21).to_string());
    Ok(())
}

struct Round {
    answered: (u64, u64, u64),
    /// From sending to the answer of a query sent after the acknowledgement, less a query's own time.
    seen: (u64, u64, u64),
}

async fn round(args: &LatencyArgs, flush_interval: &str) -> Result<Round, Failure> {
    let settings = serde_json::json!({
        "ingestion": { "memory_budget": "4GiB", "flush_interval": flush_interval, "commit_bytes": "4GiB" },
        "streams": { STREAM: load::stream_settings(Shape::Opaque), SEEN: load::stream_settings(Shape::Opaque) },
    });
    let server = Server::start(&args.place.dir, &settings).await?;
    let channel = load::connect(&server.grpc).await?;
    let pressure = tokio::spawn(load_beside(server.grpc.clone(), args.load, args.place.seconds));
    let mut numbers = Numbers(99);
    let (mut answered, mut seen) = (Vec::new(), Vec::new());
    let end = Instant::now() + Duration::from_secs_f64(args.place.seconds);
    let mut count = 0_u32;
    while Instant::now() < end {
        let request = load::request(STREAM, 1, Payload::Plain, Shape::Opaque, &mut numbers);
        let start = Instant::now();
        load::send(channel.clone(), request).await?;
        let us = u64::try_from(start.elapsed().as_micros())?;
        answered.push(us);
        count += 1;
        if count.is_multiple_of(20) {
            seen.push(us + visible(&server, &channel, &mut numbers).await?);
        }
    }
    pressure.await??;
    server.end().await?;
    Ok(Round { answered: latencies(&mut answered), seen: latencies(&mut seen) })
}

/// Microseconds for which a record that was answered is not yet seen. A query sent after the answer either counts it,
/// which is no time at all, or the loop goes on until one does.
async fn visible(server: &Server, channel: &tonic::transport::Channel, numbers: &mut Numbers) -> Result<u64, Failure> {
    let request = load::request(SEEN, 1, Payload::Plain, Shape::Opaque, numbers);
    let sql = "SELECT count(*) FROM \"default\".seen";
    let before = server.count(sql).await.unwrap_or_default();
    if load::send(channel.clone(), request).await?.accepted != 1 {
        return Err("a record was refused".into());
    }
    let answered = Instant::now();
    let mut late = 0;
    while server.count(sql).await? <= before {
        late = u64::try_from(answered.elapsed().as_micros())?;
    }
    Ok(late)
}

/// Sends batches at a steady rate.
async fn load_beside(address: String, records_per_second: u32, seconds: f64) -> Result<(), Failure> {
    let channel = load::connect(&address).await?;
    let mut numbers = Numbers(3);
    let requests: Vec<Bytes> =
        (0..16).map(|_| load::request(STREAM, LOAD_BATCH, Payload::Plain, Shape::Opaque, &mut numbers)).collect();
    let every = Duration::from_secs_f64(real(LOAD_BATCH as u64) / f64::from(records_per_second.max(1)));
    let mut interval = tokio::time::interval(every);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    for request in requests.iter().cycle() {
        interval.tick().await;
        if Instant::now() >= end {
            break;
        }
        load::send(channel.clone(), request.clone()).await?;
    }
    Ok(())
}
