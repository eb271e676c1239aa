//! How fast keys are looked up and noted, and what they take: `cargo run --release -p lakegate-ingest --example windows`.
//! An argument gives the number of keys (ten million).
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a program that prints figures")]

#[allow(dead_code, reason = "a part is measured")]
#[path = "../src/duplicates/window.rs"]
mod window;

use std::sync::Arc;

use window::{Met, Window, WindowLimits};
use xxhash_rust::xxh3::xxh3_128;

/// The keys of one request.
const BATCH: usize = 1000;
/// Keys whose hashes are made before the clock runs.
const ROUND: usize = 1 << 20;

/// Resident memory, now and at most, in MiB.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Seconds that this thread was on a processor: other programs on the machine do not count.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn claim_all(window: &Window, from: u64, keys: u64, met: Met) -> f64 {
    let mut took = 0.0;
    for first in (from..from + keys).step_by(ROUND) {
        let last = (first + ROUND as u64).min(from + keys);
        let hashes: Vec<_> = (first..last).map(|n| Some(xxh3_128(&n.to_le_bytes()))).collect();
        let began = processor_seconds();
        for batch in hashes.chunks(BATCH) {
            let found = window.claim(batch.iter().copied(), 0);
            assert!(found.iter().all(|one| *one == met));
        }
        took += processor_seconds() - began;
    }
    keys as f64 / took / 1e6
}

fn main() {
    let keys = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(10_000_000_u64);
    let window = Window::new(WindowLimits { window_us: i64::MAX / 2, keys_max: keys + keys / 8 }, Arc::default());
    println!("before: {} MiB", memory().0);
    let fresh = claim_all(&window, 0, keys, Met::New);
    let (now, peak) = memory();
    println!("{keys} new keys:   {fresh:.2} million/s, {now} MiB resident, {peak} MiB at most");
    println!("{keys} known keys: {:.2} million/s", claim_all(&window, 0, keys, Met::Before));
    println!(
        "{keys} more keys, the first forgotten by number: {:.2} million/s",
        claim_all(&window, keys, keys, Met::New)
    );
    let (now, peak) = memory();
    println!("{} keys are known: {now} MiB resident, {peak} MiB at most", window.keys());
}
