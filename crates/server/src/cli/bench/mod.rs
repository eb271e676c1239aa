//! `lakegate bench`: figures of this machine, each beside its floor in the same run.
//!
//! Rounds of floor and product are interleaved (A B B A …); what is reported is the median of the rounds' ratios with
//! the least and the greatest. Processor time is the process's own, as the kernel accounts it; the load generator's is
//! not in it. The product's output is counted at the end by SQL: a ratio whose output is not whole is no ratio.

mod cart;
mod child;
mod discard;
mod fair;
mod floor;
mod http;
mod http_floor;
mod http_load;
mod ingest;
mod latency;
mod load;
mod report;
mod sinks;
mod wal;
mod ws;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use lakegate_env::{Random, SystemRandom};

/// What is measured.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

const EXAMPLES: &str = "\
Examples:
  lakegate bench wal                              acknowledgements beside bare write+fdatasync
  lakegate bench ingest                           records a second over gRPC, processor time beside the floor
  lakegate bench ingest --url 127.0.0.1:8081      load on a server that runs
  lakegate bench latency                          answers alone, beside flushes, and until SQL sees them
  lakegate bench http                             single cart events beside an empty HTTP server
  lakegate bench http --batch 1000                batches beside the reading of their JSON
  lakegate bench http --rate 10000                answers at a steady rate
  lakegate bench ws                               one WebSocket that does not wait for its answers
  lakegate bench ws --idle 18000                  memory of sockets that say nothing
  lakegate bench fair                             a tenant's answers alone and beside another's flood
  lakegate bench sinks                            what sinks, routes and feeds bring on, and what they cost";

#[derive(Debug, Subcommand)]
enum What {
    /// Durable acknowledgements of single records, in this process, beside bare write+fdatasync
    Wal(wal::WalArgs),
    /// Batches over gRPC: records a second, processor time for each, in memory and in the table
    Ingest(ingest::IngestArgs),
    /// Answers over gRPC: alone, while tables are committed, and until a query sees the record
    Latency(latency::LatencyArgs),
    /// Cart events over HTTP: events a second, processor time for each, answers at a steady rate
    Http(http::HttpArgs),
    /// Cart events over WebSockets: events a second over one, memory of many
    Ws(ws::WsArgs),
    /// A tenant's answers alone and beside another tenant's flood
    Fair(fair::FairArgs),
    /// Rows into ClickHouse, requests of a route, latencies of sink and feed, processor time of a consumer
    Sinks(sinks::SinksArgs),
}

/// What the records' payloads are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Payload {
    /// Words and numbers that repeat, as events do.
    Plain,
    /// Random text that no codec makes smaller.
    Random,
}

/// What the server does with a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// Kept as bytes, not looked into.
    Opaque,
    /// JSON, read into eight columns.
    Json,
}

/// Where the benchmark keeps its data.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// A folder for the data, on the disk that is to be measured; removed afterwards
    #[arg(long, default_value = "./lakegate-bench")]
    dir: PathBuf,
    /// Rounds, each of floor and product
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each part of a round
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

/// A number that no other load has, for ids.
fn unique() -> u64 {
    SystemRandom.next_u64()
}

/// Lets this process, and servers that it starts, open as many files as the system allows.
fn raise_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Where it is refused, opening says so.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, all);
}

/// Why a benchmark gave no figure.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs it.
pub(crate) async fn run(args: BenchArgs) -> ExitCode {
    let done = match args.what {
        What::Wal(args) => wal::run(args).await,
        What::Ingest(args) => ingest::run(args).await,
        What::Latency(args) => latency::run(args).await,
        What::Http(args) => http::run(args).await,
        What::Ws(args) => ws::run(args).await,
        What::Fair(args) => fair::run(args).await,
        What::Sinks(args) => sinks::run(args).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::complain(&error);
            ExitCode::FAILURE
        }
    }
}
