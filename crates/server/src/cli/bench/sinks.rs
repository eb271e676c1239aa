//! What sinks, routes and feeds bring on, and what a consumer costs beside ingestion.
//!
//! Services keep nothing, so that what is measured is ours; `--clickhouse` measures rows into a real server besides.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::child::Server;
use super::discard::Discard;
use super::http_floor::Empty;
use super::http_load::{self, Load};
use super::report::{self, Spread, latencies, real};
use super::{Failure, Place};

/// How long a consumer may take to bring all of it on.
const PATIENCE: Duration = Duration::from_secs(300);
/// Events of one request of the loads.
const BATCH: usize = 1000;
/// Single events a second of the latencies.
const SINGLES: f64 = 200.0;

/// Settings of the measurement.
#[derive(Debug, Args)]
pub(crate) struct SinksArgs {
    #[command(flatten)]
    place: Place,
    /// A ClickHouse server to bring rows into besides; the table `lakegate_bench` is made anew there
    #[arg(long, value_name = "URL")]
    clickhouse: Option<String>,
    /// Requests of a route under way at once
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Events a second beside which a consumer is weighed
    #[arg(long, default_value_t = 100_000.0)]
    rate: f64,
}

/// Runs it.
pub(crate) async fn run(args: SinksArgs) -> Result<(), Failure> {
    report::heading("sinks, routes and feeds");
    let (mut rows, mut row_ns, mut stored) = (vec![], vec![], vec![]);
    let (mut routes, mut route_ns, mut slowed, mut ingest_slowed) = (vec![], vec![], vec![], vec![]);
    let (mut seen, mut seen_p99, mut fed, mut fed_p99, mut added) = (vec![], vec![], vec![], vec![], vec![]);
    for number in 0..args.place.rounds {
        report::progress(&format!("round {} of {}", number + 1, args.place.rounds));
        let discard = Discard::start()?;
        let drained = drain(&args, &table(&discard.url), args.place.seconds).await?;
        rows.push(drained.per_second);
        row_ns.push(drained.cpu_ns);
        if let Some(url) = &args.clickhouse {
            ask(url, "DROP TABLE IF EXISTS default.lakegate_bench").await?;
            let drained = drain(&args, &table(url), args.place.seconds).await?;
            let found: u64 = ask(url, "SELECT uniqExact(_key) FROM default.lakegate_bench").await?.trim().parse()?;
            if found != drained.events {
                return Err(format!("{} events were delivered and {found} are in ClickHouse", drained.events).into());
            }
            stored.push(drained.per_second);
        }
        let empty = Empty::start()?;
        // Connections to it are taken by the system, and nobody ever answers.
        let hangs = std::net::TcpListener::bind("127.0.0.1:0")?;
        let silent = hangs.local_addr()?.to_string();
        let seconds = args.place.seconds / 10.0;
        let drained = drain(&args, &routes_to(&args, &[("c", &empty.address)]), seconds).await?;
        let both = |other: &str| routes_to(&args, &[("c", &empty.address), ("d", other)]);
        let well = drain(&args, &both(&empty.address), seconds).await?;
        let beside = drain(&args, &both(&silent), seconds).await?;
        routes.push(drained.per_second);
        route_ns.push(drained.cpu_ns);
        slowed.push(beside.per_second / well.per_second);
        ingest_slowed.push(beside.ingested / well.ingested);
        let (mut visible, mut feed) = latencies_of(&args).await?;
        let (half, most, _) = latencies(&mut visible);
        seen.push(real(half));
        seen_p99.push(real(most));
        let (half, most, _) = latencies(&mut feed);
        fed.push(real(half));
        fed_p99.push(real(most));
        let alone = cost(&args, &json!({})).await?;
        let mut usual = table(&discard.url);
        // Batches wait as long as they do unless somebody asks for less.
        usual.pointer_mut("/sinks/c").and_then(Value::as_object_mut).map(|sink| sink.remove("batch"));
        let beside = cost(&args, &usual).await?;
        added.push((beside / alone - 1.0) * 100.0);
    }
    report::line("ClickHouse sink, rows/s (aim 300,000)", &Spread::of(&rows).to_string());
    report::line("  server CPU, ns a row", &Spread::of(&row_ns).to_string());
    if !stored.is_empty() {
        report::line("  into the real server, rows/s", &Spread::of(&stored).to_string());
    }
    report::line(&format!("route, requests/s over {} (aim 5,000)", args.connections), &Spread::of(&routes).to_string());
    report::line("  server CPU, ns a request", &Spread::of(&route_ns).to_string());
    report::line("route beside one that hangs / is well (aim 0.9)", &Spread::of(&slowed).to_string());
    report::line("  events taken meanwhile, likewise (aim 0.9)", &Spread::of(&ingest_slowed).to_string());
    report::line("event sent to insert, p50, µs (aim 5,000)", &Spread::of(&seen).to_string());
    report::line("  p99, µs", &Spread::of(&seen_p99).to_string());
    report::line("answer to feed, p50, µs", &Spread::of(&fed).to_string());
    report::line("  p99, µs (aim 10,000)", &Spread::of(&fed_p99).to_string());
    report::line(&format!("CPU added at {:.0} events/s, % (aim 15)", args.rate), &Spread::of(&added).to_string());
    Ok(())
}

fn table(url: &str) -> Value {
    let clickhouse = json!({ "url": url, "table": "lakegate_bench", "order_by": ["event_type", "session_id"] });
    json!({ "sinks": { "c": { "from": { "streams": ["events"] }, "batch": { "wait": "0s" }, "clickhouse": clickhouse } } })
}

fn routes_to(args: &SinksArgs, services: &[(&str, &str)]) -> Value {
    let port = |address: &str| address.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    let route = |(name, address): &(&str, &str)| {
        json!({ "name": name, "from": { "streams": ["events"] }, "url": format!("http://{address}/take"),
                "order_key": ["session_id"], "concurrency": args.connections })
    };
    let ports: Vec<_> = services.iter().map(|(_, address)| port(address)).collect();
    json!({
        "routes": services.iter().map(route).collect::<Vec<_>>(),
        "limits": { "downstream": { "hosts": [{ "host": "127.0.0.1", "ports": ports, "allow_private": true }] } },
    })
}

async fn ask(url: &str, statement: &str) -> Result<String, Failure> {
    let answer = reqwest::Client::new().post(url).body(statement.to_owned()).send().await?;
    Ok(answer.error_for_status()?.text().await?)
}

fn load(args: &SinksArgs, server: &Server) -> Load {
    Load {
        address: server.address(),
        token: None,
        connections: 8,
        events: BATCH,
        rate: None,
        seconds: args.place.seconds,
        run: super::unique(),
        patience: Some(http_load::PATIENCE),
    }
}

async fn tell(server: &Server, what: &str) -> Result<(), Failure> {
    let url = format!("{}/api/consumers/c/{what}", server.http);
    reqwest::Client::new().post(url).send().await?.error_for_status()?;
    Ok(())
}

/// Waits until the consumer has delivered so many.
async fn delivered(server: &Server, events: u64) -> Result<(), Failure> {
    let (client, until) = (reqwest::Client::new(), Instant::now() + PATIENCE);
    while Instant::now() < until {
        let status: Value = client.get(format!("{}/api/consumers/c", server.http)).send().await?.json().await?;
        if status.get("delivered").and_then(Value::as_u64).is_some_and(|count| count >= events) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(format!("{events} events were not delivered in {} s", PATIENCE.as_secs()).into())
}

struct Drained {
    events: u64,
    per_second: f64,
    cpu_ns: f64,
    /// Events a second that were taken meanwhile, before the consumer was let go.
    ingested: f64,
}

/// Lets events gather, then lets the consumer go.
async fn drain(args: &SinksArgs, settings: &Value, seconds: f64) -> Result<Drained, Failure> {
    let server = Server::start(&args.place.dir, settings).await?;
    let warm = http_load::run(Load { seconds: 0.2, rate: Some(20.0), ..load(args, &server) }).await?;
    delivered(&server, warm.events).await?;
    tell(&server, "pause").await?;
    let sent = http_load::run(Load { seconds, ..load(args, &server) }).await?;
    server.flush().await?;
    let (before, began) = (server.cpu_ns()?, Instant::now());
    tell(&server, "resume").await?;
    delivered(&server, warm.events + sent.events).await?;
    let took = began.elapsed().as_secs_f64();
    let cpu = server.cpu_ns()? - before;
    server.end().await?;
    let events = real(sent.events.max(1));
    let (ingested, cpu_ns) = (events / sent.seconds, real(cpu) / events);
    Ok(Drained { events: warm.events + sent.events, per_second: events / took, cpu_ns, ingested })
}

/// The server's processor time for an event at a steady rate.
async fn cost(args: &SinksArgs, settings: &Value) -> Result<f64, Failure> {
    let server = Server::start(&args.place.dir, settings).await?;
    let steady = || Load { rate: Some(args.rate / real(BATCH as u64)), ..load(args, &server) };
    let warm = http_load::run(Load { seconds: 1.0, ..steady() }).await?;
    let before = server.cpu_ns()?;
    let sent = http_load::run(steady()).await?;
    if settings.get("sinks").is_some() {
        delivered(&server, warm.events + sent.events).await?;
    }
    let cpu = server.cpu_ns()? - before;
    server.end().await?;
    Ok(real(cpu) / real(sent.events.max(1)))
}

/// Single events, one after the other: microseconds from the sending until the insert is there, and from the answer until
/// a feed has it.
async fn latencies_of(args: &SinksArgs) -> Result<(Vec<u64>, Vec<u64>), Failure> {
    let mut discard = Discard::start()?;
    let server = Server::start(&args.place.dir, &table(&discard.url)).await?;
    let warm = http_load::run(Load { seconds: 0.2, rate: Some(20.0), ..load(args, &server) }).await?;
    delivered(&server, warm.events).await?;
    let mut lines = follow(&server).await?;
    discard.listens.store(true, Ordering::Relaxed);
    let client = reqwest::Client::new();
    let (mut visible, mut feed) = (vec![], vec![]);
    let (run, end) = (super::unique(), Instant::now() + Duration::from_secs_f64(args.place.seconds));
    let mut number = 0_u64;
    while Instant::now() < end {
        number += 1;
        let id = format!("{run:016x}{number:016x}");
        let event = json!({ "eventId": id, "eventType": "cart_updated", "timestamp": "2026-03-01T12:00:00Z",
            "sessionId": "s-1", "storeId": "store-1", "data": { "n": number } });
        let sent = Instant::now();
        let answer = client.post(format!("{}/events", server.http)).json(&event).send().await?.error_for_status()?;
        let answered = Instant::now();
        drop(answer);
        let came = find(&mut discard.inserts, id.as_bytes()).await?;
        visible.push(u64::try_from(came.saturating_duration_since(sent).as_micros())?);
        let came = find(&mut lines, id.as_bytes()).await?;
        feed.push(u64::try_from(came.saturating_duration_since(answered).as_micros())?);
        tokio::time::sleep_until((sent + Duration::from_secs_f64(1.0 / SINGLES)).into()).await;
    }
    server.end().await?;
    Ok((visible, feed))
}

/// When a piece came that has the words in it.
async fn find(pieces: &mut mpsc::UnboundedReceiver<(Instant, bytes::Bytes)>, words: &[u8]) -> Result<Instant, Failure> {
    loop {
        let piece = tokio::time::timeout(Duration::from_secs(30), pieces.recv()).await?;
        let (came, bytes) = piece.ok_or("the stream ended")?;
        if bytes.windows(words.len()).any(|window| window == words) {
            return Ok(came);
        }
    }
}

/// Follows the feed of the events.
async fn follow(server: &Server) -> Result<mpsc::UnboundedReceiver<(Instant, bytes::Bytes)>, Failure> {
    let mut answer = reqwest::get(format!("{}/api/feeds/events?from=latest", server.http)).await?.error_for_status()?;
    let (sender, lines) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(Some(bytes)) = answer.chunk().await {
            if sender.send((Instant::now(), bytes)).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}
