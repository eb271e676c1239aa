//! Measures acknowledgement latency and throughput of the log against a bare write + fdatasync loop of the same
//! scheduling class, in the same run and the same folder.
//!
//! `cargo run --release -p lakegate-log --example wal_bench [folder]`

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a measurement that fails may panic; its output is the point"
)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lakegate_env::{Disk, RealDisk, SystemClock, SystemRandom, set_realtime};
use lakegate_log::{Log, LogOptions};

const RUN: Duration = Duration::from_secs(3);
const RECORD_BYTES: usize = 300;

struct Figures {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

fn figures(mut latencies: Vec<Duration>, took: Duration) -> Figures {
    latencies.sort_unstable();
    let at = |share: f64| {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a percentile"
        )]
        let index = ((latencies.len() - 1) as f64 * share) as usize;
        latencies[index].as_secs_f64() * 1e6
    };
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    let per_second = latencies.len() as f64 / took.as_secs_f64();
    Figures { per_second, p50_us: at(0.5), p99_us: at(0.99), max_us: at(1.0) }
}

fn print(what: &str, figures: &Figures) {
    let Figures { per_second, p50_us, p99_us, max_us } = figures;
    println!("{what:<44} {per_second:>10.0}/s  p50 {p50_us:>7.0} us  p99 {p99_us:>7.0} us  max {max_us:>8.0} us");
}

/// One thread: writes 4 KiB into a zeroed file, fdatasync, again.
fn bare(dir: &Path) -> Figures {
    let path = dir.join("bare");
    let file = RealDisk.create_new(&path).unwrap();
    file.allocate_zeroed(64 * 1024 * 1024).unwrap();
    let measured = std::thread::spawn(move || {
        let _ = set_realtime();
        let page = [7_u8; 4096];
        let (begin, mut latencies, mut position) = (Instant::now(), Vec::new(), 0);
        while begin.elapsed() < RUN {
            let one = Instant::now();
            file.write_all_at(&page, position).unwrap();
            file.sync_data().unwrap();
            latencies.push(one.elapsed());
            position = (position + 4096) % (64 * 1024 * 1024);
        }
        figures(latencies, begin.elapsed())
    });
    let measured = measured.join().unwrap();
    RealDisk.remove(&path).unwrap();
    measured
}

fn open(dir: &Path) -> Log {
    let options = LogOptions { quota_bytes: 2 * 1024 * 1024 * 1024, ..LogOptions::new(dir.join("wal")) };
    Log::open(Arc::new(RealDisk), Arc::new(SystemClock::default()), Arc::new(SystemRandom), options).unwrap()
}

fn trim_along(log: &Log, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let _ = log.trim(log.durable_offset());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// So many threads, each: append one record, wait until it is durable, again.
fn threads(dir: &Path, count: usize) -> Figures {
    let log = open(dir);
    let payload = Bytes::from(vec![5_u8; RECORD_BYTES]);
    let (all, stop, begin) = (Mutex::new(Vec::new()), AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        let trimmer = scope.spawn(|| trim_along(&log, &stop));
        let workers: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    let mut latencies = Vec::new();
                    while begin.elapsed() < RUN {
                        let one = Instant::now();
                        log.append(1, std::slice::from_ref(&payload)).unwrap().wait_durable().unwrap();
                        latencies.push(one.elapsed());
                    }
                    all.lock().unwrap().extend(latencies);
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        stop.store(true, Ordering::Relaxed);
        trimmer.join().unwrap();
    });
    figures(all.into_inner().unwrap(), begin.elapsed())
}

/// The same with tasks of a tokio runtime.
fn tasks(dir: &Path, count: usize, workers: usize) -> Figures {
    let log = open(dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).build().unwrap();
    let payload = Bytes::from(vec![5_u8; RECORD_BYTES]);
    let stop = Arc::new(AtomicBool::new(false));
    let trimmer = std::thread::spawn({
        let (log, stop) = (log.clone(), Arc::clone(&stop));
        move || trim_along(&log, &stop)
    });
    let begin = Instant::now();
    let latencies = runtime.block_on(async {
        let tasks: Vec<_> = (0..count)
            .map(|_| {
                let (log, payload) = (log.clone(), payload.clone());
                tokio::spawn(async move {
                    let mut latencies = Vec::new();
                    while begin.elapsed() < RUN {
                        let one = Instant::now();
                        log.append(1, std::slice::from_ref(&payload)).unwrap().durable().await.unwrap();
                        latencies.push(one.elapsed());
                    }
                    latencies
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.unwrap());
        }
        all
    });
    let took = begin.elapsed();
    stop.store(true, Ordering::Relaxed);
    trimmer.join().unwrap();
    let status = log.status();
    #[allow(clippy::cast_precision_loss, reason = "a measurement")]
    let group = status.frames as f64 / status.groups as f64;
    println!("  ({} class, {} groups of {group:.1} frames)", status.scheduling, status.groups);
    figures(latencies, took)
}

fn main() {
    let dir = std::env::args().nth(1).map_or_else(|| std::env::temp_dir().join("lakegate-wal-bench"), Into::into);
    std::fs::create_dir_all(&dir).unwrap();
    for round in 1..=2 {
        println!("round {round}");
        print("bare 4 KiB write + fdatasync, one thread", &bare(&dir));
        print("log, 1 thread x 1 record", &threads(&dir, 1));
        print("log, 1 task x 1 record", &tasks(&dir, 1, 1));
        print("log, 64 tasks x 1 record, 1 worker", &tasks(&dir, 64, 1));
        print("log, 64 tasks x 1 record, 2 workers", &tasks(&dir, 64, 2));
        print("log, 64 threads x 1 record", &threads(&dir, 64));
        print("log, 512 tasks x 1 record, 1 worker", &tasks(&dir, 512, 1));
        print("log, 4096 tasks x 1 record, 1 worker", &tasks(&dir, 4096, 1));
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
