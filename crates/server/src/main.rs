//! Lakegate: records in over gRPC, acknowledged when they are on disk, seen by SQL at once, landed exactly once in
//! Iceberg tables. This is the binary: configuration, command line, wiring, HTTP listener, logs and figures.
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

mod cli;
mod config;
mod flight;
mod http;
mod serve;
mod statements;
mod telemetry;

/// Many small, short-lived buffers made on one thread and freed on another: what this allocator is built for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
