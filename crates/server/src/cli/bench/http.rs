//! Cart events over HTTP: single ones beside an empty hyper server, batches beside the reading of their JSON, or
//! answers at a steady rate.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::child::Server;
use super::http_floor::{self, Empty};
use super::http_load::{self, Load, Sent};
use super::report::{self, Spread, latencies, real};
use super::{Failure, Place};

/// Where shipped contracts keep cart events.
const COUNT: &str = "SELECT count(*) FROM \"default\".events";

/// Settings of the load.
#[derive(Debug, Args)]
pub(crate) struct HttpArgs {
    #[command(flatten)]
    place: Place,
    /// HTTP address of a server that runs; without it one is started for each round
    #[arg(long, value_name = "HOST:PORT")]
    url: Option<String>,
    /// Connections, each with one request under way
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Events of each request; 1: POST /events, more: POST /events/batch
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Requests a second; without it as many as are answered
    #[arg(long)]
    rate: Option<f64>,
    /// An API key or token to show
    #[arg(long, env = "LAKEGATE_TOKEN", hide_env_values = true, hide = true)]
    token: Option<String>,
    /// Come back after answers of 429 and 503
    #[arg(long, hide = true)]
    patient: bool,
    /// Do not wait before that
    #[arg(long, hide = true, requires = "patient")]
    insist: bool,
    /// The figures as JSON, of a server that runs
    #[arg(long, requires = "url")]
    json: bool,
}

impl HttpArgs {
    fn load(&self, address: &str) -> Load {
        Load {
            address: address.to_owned(),
            token: self.token.clone(),
            connections: self.connections.max(1),
            events: self.batch.max(1),
            rate: self.rate,
            seconds: self.place.seconds,
            run: super::unique(),
            patience: self.patient.then_some(if self.insist { Duration::ZERO } else { http_load::PATIENCE }),
        }
    }
}

/// Runs it.
pub(crate) async fn run(args: HttpArgs) -> Result<(), Failure> {
    if let Some(url) = &args.url {
        let mut sent = http_load::run(args.load(url.trim_start_matches("http://"))).await?;
        say(&mut sent, args.json);
        return Ok(());
    }
    report::heading(&format!("{} events a request, {} connections", args.batch, args.connections));
    if args.rate.is_some() {
        return paced(&args).await;
    }
    let (mut rates, mut ratios, mut floors, mut cpu) = (vec![], vec![], vec![], vec![]);
    let (mut p50, mut p99) = (vec![], vec![]);
    for number in 0..args.place.rounds {
        report::progress(&format!("round {} of {}", number + 1, args.place.rounds));
        // A B B A: the floor first in one round, last in the next.
        let first = if number % 2 == 0 { Some(floor(&args).await?) } else { None };
        let mut round = one_round(&args).await?;
        let floor = match first {
            Some(floor) => floor,
            None => floor(&args).await?,
        };
        let per_second = real(round.sent.requests) / round.sent.seconds;
        rates.push(real(round.sent.events) / round.sent.seconds);
        cpu.push(round.cpu_ns);
        floors.push(floor);
        ratios.push(if args.batch > 1 { round.cpu_ns / floor } else { per_second / floor });
        let (half, most, _) = latencies(&mut round.sent.us);
        p50.push(real(half));
        p99.push(real(most));
    }
    report::line("acknowledged events/s", &Spread::of(&rates).to_string());
    report::line("server CPU, ns an event", &Spread::of(&cpu).to_string());
    report::line("answer p50, µs", &Spread::of(&p50).to_string());
    report::line("answer p99, µs", &Spread::of(&p99).to_string());
    if args.batch > 1 {
        report::line("floor (read as typed JSON), ns an event", &Spread::of(&floors).to_string());
        report::line("R8: server CPU / floor", &Spread::of(&ratios).to_string());
    } else {
        report::line("floor (hyper, 200 OK), requests/s", &Spread::of(&floors).to_string());
        report::line("R15: requests/s / floor", &Spread::of(&ratios).to_string());
    }
    Ok(())
}

/// The figures of a load on a server that runs.
fn say(sent: &mut Sent, as_json: bool) {
    let (p50, p99, p999) = latencies(&mut sent.us);
    let (per_second, events) = (real(sent.requests) / sent.seconds, real(sent.events) / sent.seconds);
    if as_json {
        let figures = json!({ "requests": sent.requests, "events": sent.events, "refused": sent.refused,
            "requests_per_second": per_second, "events_per_second": events, "p50_us": p50, "p99_us": p99, "p999_us": p999 });
        return report::plain(&figures.to_string());
    }
    report::line("answered requests/s", &format!("{per_second:.0}"));
    report::line("acknowledged events/s", &format!("{events:.0}"));
    report::line("answer, µs", &format!("p50 {p50}, p99 {p99}, p99.9 {p999}"));
    report::line("refused requests", &sent.refused.to_string());
}

/// Answers at a steady rate, with commits as by default.
async fn paced(args: &HttpArgs) -> Result<(), Failure> {
    let (mut p50, mut p99, mut p999, mut rates) = (vec![], vec![], vec![], vec![]);
    for number in 0..args.place.rounds {
        report::progress(&format!("round {} of {}", number + 1, args.place.rounds));
        let server = Server::start(&args.place.dir, &json!({})).await?;
        let mut sent = http_load::run(args.load(&server.address())).await?;
        check(&server, sent.events).await?;
        server.end().await?;
        rates.push(real(sent.requests) / sent.seconds);
        let (half, most, all) = latencies(&mut sent.us);
        [&mut p50, &mut p99, &mut p999].into_iter().zip([half, most, all]).for_each(|(to, us)| to.push(real(us)));
    }
    report::line("answered requests/s", &Spread::of(&rates).to_string());
    report::line("answer p50, µs", &Spread::of(&p50).to_string());
    report::line("answer p99, µs", &Spread::of(&p99).to_string());
    report::line("answer p99.9, µs", &Spread::of(&p999).to_string());
    Ok(())
}

struct Round {
    sent: Sent,
    cpu_ns: f64,
}

/// As fast as it goes, into memory that was used before.
async fn one_round(args: &HttpArgs) -> Result<Round, Failure> {
    let settings = json!({ "ingestion": { "memory_budget": "8GiB", "flush_interval": "1h", "commit_bytes": "64GiB" } });
    let server = Server::start(&args.place.dir, &settings).await?;
    let warm = http_load::run(args.load(&server.address())).await?;
    server.flush().await?;
    let before = server.cpu_ns()?;
    let sent = http_load::run(args.load(&server.address())).await?;
    let cpu = server.cpu_ns()? - before;
    check(&server, warm.events + sent.events).await?;
    server.end().await?;
    Ok(Round { cpu_ns: real(cpu) / real(sent.events.max(1)), sent })
}

/// What was acknowledged is there.
pub(crate) async fn check(server: &Server, acknowledged: u64) -> Result<(), Failure> {
    let found = server.count(COUNT).await?;
    if found != acknowledged {
        return Err(format!("{acknowledged} events were acknowledged and {found} are there").into());
    }
    Ok(())
}

/// Requests a second of an empty server for single events; processor time of an event's reading for batches.
async fn floor(args: &HttpArgs) -> Result<f64, Failure> {
    let (events, seconds) = (args.batch, args.place.seconds);
    if events > 1 {
        return tokio::task::spawn_blocking(move || http_floor::json_ns(events, seconds)).await?;
    }
    let empty = Empty::start()?;
    let sent = http_load::run(args.load(&empty.address)).await?;
    Ok(real(sent.requests) / sent.seconds)
}
