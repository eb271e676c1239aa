//! Two tenants: one that sends a little at a steady rate, alone and beside one that floods, a hundred times over its quota.
//! The flood is a process of its own, and so is the server.

use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use lakegate_access::NewKey;
use lakegate_env::SystemRandom;
use serde_json::{Value, json};

use super::child::Server;
use super::http_load::{self, Load};
use super::report::{self, Spread, latencies, real};
use super::{Failure, Place};

/// How long the flood may take to be at its height.
const RISE: Duration = Duration::from_millis(500);

/// Settings of the two.
#[derive(Debug, Args)]
pub(crate) struct FairArgs {
    #[command(flatten)]
    place: Place,
    /// Single events a second of the quiet tenant
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// Connections of the flood
    #[arg(long, default_value_t = 16)]
    flood_connections: usize,
    /// Events of each of its requests
    #[arg(long, default_value_t = 1000)]
    flood_batch: usize,
    /// Events a second that the flooding tenant may send; it sends a hundred times as many. 0: it may send what it can,
    /// and does
    #[arg(long, default_value_t = 2000)]
    quota: u32,
}

/// Runs it.
pub(crate) async fn run(args: FairArgs) -> Result<(), Failure> {
    report::heading(&format!("{} events/s of one tenant, alone and beside another's flood", args.rate));
    let (mut alone, mut beside, mut ratios, mut floods, mut answered) = (vec![], vec![], vec![], vec![], vec![]);
    for number in 0..args.place.rounds {
        report::progress(&format!("round {} of {}", number + 1, args.place.rounds));
        let round = one_round(&args, number % 2 == 0).await?;
        alone.push(real(round.alone.1));
        beside.push(real(round.beside.1));
        ratios.push(real(round.beside.1) / real(round.alone.1.max(1)));
        floods.push(round.flood);
        answered.push(round.answered);
    }
    report::line("flood, events/s", &Spread::of(&floods).to_string());
    report::line("quiet beside it, events/s", &Spread::of(&answered).to_string());
    report::line("p99 alone, µs", &Spread::of(&alone).to_string());
    report::line("p99 beside the flood, µs", &Spread::of(&beside).to_string());
    report::line("F-63: p99 beside / alone", &Spread::of(&ratios).to_string());
    Ok(())
}

struct Round {
    alone: (u64, u64, u64),
    beside: (u64, u64, u64),
    answered: f64,
    flood: f64,
}

async fn one_round(args: &FairArgs, alone_first: bool) -> Result<Round, Failure> {
    let [quiet, noisy] = [NewKey::generate(&SystemRandom), NewKey::generate(&SystemRandom)];
    let key = |key: &NewKey, tenant: &str| json!({ "id": key.id, "hash": key.hash(), "tenant": tenant, "permissions": ["write", "read", "operator"] });
    let rates = json!({ "tenants": { "noisy": { "records_per_second": args.quota } } });
    let settings = json!({ "limits": { "rates": rates }, "auth": { "mode": "required", "api_keys": [key(&quiet, "quiet"), key(&noisy, "noisy")] } });
    let server = Server::start(&args.place.dir, &settings).await?;
    let load = || Load {
        address: server.address(),
        token: Some(quiet.key.clone()),
        connections: 8,
        events: 1,
        rate: Some(args.rate),
        seconds: args.place.seconds,
        run: super::unique(),
        patience: None,
    };
    // Tables and memory that are touched for the first time are not part of it.
    http_load::run(Load { seconds: 1.0, ..load() }).await?;
    let mut alone = http_load::Sent::default();
    if alone_first {
        alone = http_load::run(load()).await?;
    }
    let flood = flood(args, &server, &noisy)?;
    tokio::time::sleep(RISE).await;
    let mut beside = http_load::run(load()).await?;
    let output = flood.wait_with_output().await?;
    let figures: Value = serde_json::from_slice(&output.stdout)?;
    if !alone_first {
        alone = http_load::run(load()).await?;
    }
    server.end().await?;
    Ok(Round {
        answered: real(beside.requests) / beside.seconds,
        alone: latencies(&mut alone.us),
        beside: latencies(&mut beside.us),
        flood: figures.get("events_per_second").and_then(Value::as_f64).ok_or("the flood gave no figure")?,
    })
}

/// The other tenant's load, as a process that outlasts the measurement a little.
fn flood(args: &FairArgs, server: &Server, key: &NewKey) -> Result<tokio::process::Child, Failure> {
    // It would have a machine of its own: here it runs behind the server and the quiet client.
    let mut command = tokio::process::Command::new("nice");
    command.args(["-n", "10"]).arg(std::env::current_exe()?);
    command.args(["bench", "http", "--json", "--patient", "--url", &server.address()]);
    command.args(["--connections", &args.flood_connections.to_string(), "--batch", &args.flood_batch.to_string()]);
    if args.quota > 0 {
        let rate = f64::from(args.quota) * 100.0 / real(args.flood_batch.max(1) as u64);
        command.args(["--insist", "--rate", &rate.to_string()]);
    }
    let seconds = args.place.seconds + 2.0 * RISE.as_secs_f64();
    command.args(["--seconds", &seconds.to_string()]).env("LAKEGATE_TOKEN", &key.key).kill_on_drop(true);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
}
