//! `lakegate bench`: figures of this machine, each beside its floor in the same run.
//!
//! Rounds of floor and product are interleaved (A B B A …); what is reported is the median of the rounds' ratios with
//! the least and the greatest. Processor time is the process's own, as the kernel accounts it; the load generator's is
//! not in it. The product's output is counted at the end by SQL: a ratio whose output is not whole is no ratio.

mod child;
mod floor;
mod ingest;
mod latency;
mod load;
mod report;
mod wal;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

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
  lakegate bench latency                          answers alone, beside flushes, and until SQL sees them";

#[derive(Debug, Subcommand)]
enum What {
    /// Durable acknowledgements of single records, in this process, beside bare write+fdatasync
    Wal(wal::WalArgs),
    /// Batches over gRPC: records a second, processor time for each, in memory and in the table
    Ingest(ingest::IngestArgs),
    /// Answers over gRPC: alone, while tables are committed, and until a query sees the record
    Latency(latency::LatencyArgs),
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

/// Why a benchmark gave no figure.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs it.
pub(crate) async fn run(args: BenchArgs) -> ExitCode {
    let done = match args.what {
        What::Wal(args) => wal::run(args).await,
        What::Ingest(args) => ingest::run(args).await,
        What::Latency(args) => latency::run(args).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::complain(&error);
            ExitCode::FAILURE
        }
    }
}
