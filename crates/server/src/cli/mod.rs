//! The command line: what each command is called, what it takes, how it ends.
//!
//! Data goes to the standard output, everything else to the standard error. Exit codes: 0 done, 1 failed or found
//! something wrong, 2 wrong usage, 75 not now, 78 wrong configuration, 130 Ctrl-C.

mod audit;
mod bench;
mod client;
mod config;
mod consumers;
mod demo;
mod dlq;
mod exit;
mod flush;
mod import;
mod key;
mod output;
#[cfg(test)]
mod reference;
mod schema;
mod serve;
mod sql;
mod status;
mod table;
mod tail;
mod version;
mod wal;

use std::future::Future;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use exit::Exit;

pub(crate) use version::VERSION;

/// The durable front door of a lakehouse: records in over gRPC, acknowledged when they are on disk, seen by SQL at
/// once, and landed exactly once in Apache Iceberg tables.
#[derive(Debug, Parser)]
#[command(name = "lakegate", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  lakegate demo                                        see it work, in twenty seconds
  lakegate serve                                       run it with all the defaults
  lakegate sql 'SELECT count(*) FROM \"default\".events'  ask it
  lakegate status --watch                              look at it

Exit codes: 0 done, 1 failed, 2 wrong usage, 75 not now, 78 wrong configuration, 130 Ctrl-C.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    #[command(after_help = serve::EXAMPLES)]
    Serve(serve::ServeArgs),
    /// See it work: a stream of events, a kill in the middle, and every record once
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::DemoArgs),
    /// Ask one SQL query over memory and lake
    #[command(
        after_help = "Examples:\n  lakegate sql 'SHOW TABLES'\n  lakegate sql 'SELECT event_type, count(*) FROM \"default\".events GROUP BY 1'\n  lakegate sql -o csv 'SELECT * FROM \"default\".events' > events.csv"
    )]
    Sql(sql::SqlArgs),
    /// Follow a stream's durable records as they come
    #[command(after_help = "Examples:\n  lakegate tail orders\n  lakegate tail orders --from earliest -n 10")]
    Tail(tail::TailArgs),
    /// Show what was taken and how far the lake is behind
    #[command(
        after_help = "Examples:\n  lakegate status\n  lakegate status --watch\n  lakegate status --json | jq .totals"
    )]
    Status(status::StatusArgs),
    /// Bring what is in memory into the tables now
    #[command(after_help = "Example:\n  lakegate flush")]
    Flush(flush::FlushArgs),
    /// Import files, folders, addresses and objects into tables
    #[command(after_help = import::EXAMPLES)]
    Import(import::ImportArgs),
    /// List, show, bring again and remove the records that were set aside
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Show and steer the sinks and routes that records are brought on to
    #[command(subcommand)]
    Consumers(consumers::ConsumersCommand),
    /// Check, show and describe configurations
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Make, list and revoke API keys; a running server notices within seconds
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Show what a configuration would change of the tables, and what changed before
    #[command(subcommand)]
    Schema(schema::SchemaCommand),
    /// List, show, compact and expire tables of a running server
    #[command(subcommand)]
    Table(table::TableCommand),
    /// Look into a write-ahead log on disk
    #[command(subcommand)]
    Wal(wal::WalCommand),
    /// Measure
    Bench(bench::BenchArgs),
    /// Check that everything that came in adds up to what is there; exits with 1 where it does not
    #[command(after_help = "Example:\n  lakegate audit")]
    Audit(audit::AuditArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  lakegate completions bash > /etc/bash_completion.d/lakegate")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the version
    #[command(after_help = "Example:\n  lakegate version --json")]
    Version {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Reads the command line, runs the command, and says how it ended.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    match cli.command {
        Command::Serve(args) => serve::run(&args).into(),
        Command::Demo(args) => with_threads(demo::run(args)),
        Command::Sql(args) => interruptible(sql::run(args)).into(),
        Command::Import(args) => with_threads(async move { import::run(args).await.into() }),
        Command::Tail(args) => interruptible(tail::run(args)).into(),
        Command::Status(args) => interruptible(status::run(args)).into(),
        Command::Flush(args) => interruptible(flush::run(args)).into(),
        Command::Dlq(command) => interruptible(dlq::run(command)).into(),
        Command::Consumers(command) => interruptible(consumers::run(command)).into(),
        Command::Audit(args) => interruptible(audit::run(args)).into(),
        Command::Config(command) => config::run(command).into(),
        Command::Key(command) => key::run(command).into(),
        Command::Schema(command) => interruptible(schema::run(command)).into(),
        Command::Table(command) => interruptible(table::run(command)).into(),
        Command::Wal(command) => wal::run(command).into(),
        Command::Bench(args) => with_threads(bench::run(args)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lakegate", &mut script);
            output::print(&String::from_utf8_lossy(&script));
            Exit::Done.into()
        }
        Command::Version { json } => version::run(json).into(),
    }
}

/// Runs a client's command on this thread, until it ends or Ctrl-C ends it.
fn interruptible(command: impl Future<Output = Exit>) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            output::note(&format!("error: no event loop: {e}"));
            return Exit::Temporary;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            exit = command => exit,
            _ = tokio::signal::ctrl_c() => Exit::Interrupted,
        }
    })
}

/// Runs a command that needs the machine's threads; it handles Ctrl-C itself.
fn with_threads(command: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(e) => {
            output::note(&format!("error: no threads: {e}"));
            Exit::Temporary.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_command_is_understood() {
        for line in [
            "lakegate serve",
            "lakegate serve --config a.json --data-dir d --port 1 --http-port 2 --bind ::1",
            "lakegate demo",
            "lakegate sql SELECT",
            "lakegate sql -o json --url http://x:1 SELECT",
            "lakegate tail orders --from 12 --tenant t -n 3",
            "lakegate tail orders --from latest",
            "lakegate import a.csv s3://b/c --stream s --parallel 4 --dry-run",
            "lakegate status --watch",
            "lakegate flush",
            "lakegate dlq ls --stream orders --reason WRONG_TYPE",
            "lakegate dlq show 1",
            "lakegate dlq replay --stream orders --dry-run",
            "lakegate consumers ls --json",
            "lakegate consumers rewind raw --to lake",
            "lakegate consumers dead replay raw --key k",
            "lakegate config check a.json",
            "lakegate config show --effective --origin",
            "lakegate config schema",
            "lakegate key create --tenant acme --name shop --permission write:cart --permission read --expires 90d",
            "lakegate key ls --json",
            "lakegate key revoke abc",
            "lakegate key rotate abc --overlap 1h",
            "lakegate table ls",
            "lakegate table expire default.events --keep 5",
            "lakegate wal ls",
            "lakegate wal verify --dir x",
            "lakegate wal dump --from 7 --limit 2",
            "lakegate audit",
            "lakegate completions zsh",
            "lakegate version --json",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap();
        }
    }

    #[test]
    fn wrong_usage_ends_with_2_and_every_command_has_an_example() {
        for line in ["lakegate", "lakegate serv", "lakegate sql -o yaml x", "lakegate tail s --from noon"] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
        }
        fn leaves(command: &clap::Command, found: &mut Vec<(String, bool)>) {
            // The benchmarks have their examples at `bench` itself.
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "bench") {
                if sub.has_subcommands() {
                    leaves(sub, found);
                } else {
                    found.push((
                        sub.get_name().to_owned(),
                        sub.get_after_help().is_some() || sub.get_after_long_help().is_some(),
                    ));
                }
            }
        }
        let mut found = Vec::new();
        leaves(&Cli::command(), &mut found);
        let without: Vec<_> = found.iter().filter(|(_, has)| !has).collect();
        assert!(without.is_empty(), "{without:?}");
    }
}
