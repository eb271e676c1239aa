//! Durable acknowledgements of single records in this process, beside bare write+fdatasync by a thread of the same
//! scheduling class on a file laid out the same way.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use lakegate_env::{RealDisk, SystemClock, SystemRandom, set_realtime};
use lakegate_log::{Log, LogOptions};

use super::report::{self, Spread, latencies, real};
use super::{Failure, Place};

/// Bytes of one record's frame payload.
const RECORD_BYTES: usize = 300;
/// The file that bare syncs are measured on.
const FLOOR_BYTES: u64 = 64 << 20;

/// Settings of the measurement.
#[derive(Debug, Args)]
pub(crate) struct WalArgs {
    #[command(flatten)]
    place: Place,
    /// Callers that wait at the same time
    #[arg(long, default_value_t = 64)]
    callers: usize,
}

/// Latencies in microseconds of one part of a round, sorted by [`latencies`].
struct Part {
    p50: u64,
    p99: u64,
    p999: u64,
    per_second: f64,
}

impl Part {
    fn of(mut us: Vec<u64>, seconds: f64) -> Self {
        let per_second = real(us.len() as u64) / seconds;
        let (p50, p99, p999) = latencies(&mut us);
        Self { p50, p99, p999, per_second }
    }
}

/// Runs it.
pub(crate) async fn run(args: WalArgs) -> Result<(), Failure> {
    report::heading(&format!("one record of {RECORD_BYTES} B an acknowledgement; {} callers", args.callers));
    let (mut r1, mut r2, mut r3) = (vec![], vec![], vec![]);
    let mut shown = Vec::new();
    for number in 0..args.place.rounds {
        report::progress(&format!("round {} of {}", number + 1, args.place.rounds));
        std::fs::create_dir_all(&args.place.dir)?;
        let (dir, seconds) = (args.place.dir.clone(), args.place.seconds);
        let bare = tokio::task::spawn_blocking(move || bare_syncs(&dir, seconds, None)).await??;
        let dir = args.place.dir.clone();
        let pace = Duration::from_secs_f64(2.0 / bare.per_second);
        let bare_half = tokio::task::spawn_blocking(move || bare_syncs(&dir, seconds, Some(pace))).await??;
        let log = open_log(&args.place.dir.join("wal"))?;
        let one = one_caller(&log, seconds, None).await?;
        let half = one_caller(&log, seconds, Some(pace)).await?;
        let many = many_callers(&log, args.callers, seconds).await?;
        let scheduling = log.status().scheduling;
        log.close();
        drop(log);
        std::fs::remove_dir_all(&args.place.dir)?;
        r1.push(real(one.p50) / real(bare.p50));
        r2.push(real(half.p99) / real(bare_half.p99));
        r3.push(many.per_second / (bare.per_second * real(args.callers as u64)));
        shown.push((bare, bare_half, one, half, many, scheduling));
    }
    if let Some((bare, bare_half, one, half, many, scheduling)) = shown.last() {
        let part = |name: &str, part: &Part| {
            let Part { p50, p99, p999, per_second } = part;
            report::line(name, &format!("p50 {p50} µs, p99 {p99} µs, p99.9 {p999} µs, {per_second:.0}/s"));
        };
        report::line("scheduling class of the log's thread", scheduling);
        part("bare write+fdatasync", bare);
        part("bare, at half the rate", bare_half);
        part("one caller", one);
        part("one caller, at half the rate", half);
        part(&format!("{} callers", args.callers), many);
    }
    report::line("R1: p50, one caller / bare", &Spread::of(&r1).to_string());
    report::line("R2: p99 at half the rate / bare", &Spread::of(&r2).to_string());
    report::line("R3: acknowledgements / (bare syncs x callers)", &Spread::of(&r3).to_string());
    Ok(())
}

fn zeroed_file(path: &Path) -> Result<File, Failure> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
    let zeros = vec![0; 1 << 20];
    for block in 0..FLOOR_BYTES / (1 << 20) {
        file.write_all_at(&zeros, block << 20)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn bare_syncs(dir: &Path, seconds: f64, pace: Option<Duration>) -> Result<Part, Failure> {
    let path = dir.join("floor");
    let file = zeroed_file(&path)?;
    let done = std::thread::spawn(move || -> std::io::Result<Vec<u64>> {
        let _ = set_realtime();
        let record = [7; RECORD_BYTES];
        let (mut us, mut at) = (Vec::new(), 0);
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end {
            let start = Instant::now();
            file.write_all_at(&record, at % (FLOOR_BYTES - 4096))?;
            file.sync_data()?;
            us.push(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
            at += RECORD_BYTES as u64;
            if let Some(pace) = pace {
                std::thread::sleep(pace.saturating_sub(start.elapsed()));
            }
        }
        Ok(us)
    });
    let us = done.join().map_err(|_| "the floor's thread failed")??;
    std::fs::remove_file(path)?;
    Ok(Part::of(us, seconds))
}

fn open_log(dir: &Path) -> Result<Log, Failure> {
    let options = LogOptions { realtime: true, ..LogOptions::new(dir) };
    Ok(Log::open(Arc::new(RealDisk), Arc::new(SystemClock::default()), Arc::new(SystemRandom), options)?)
}

async fn one_caller(log: &Log, seconds: f64, pace: Option<Duration>) -> Result<Part, Failure> {
    let log = log.clone();
    let done = tokio::task::spawn_blocking(move || -> Result<Vec<u64>, Failure> {
        let record = Bytes::from_static(&[7; RECORD_BYTES]);
        let mut us = Vec::new();
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end {
            let start = Instant::now();
            log.append(1, std::slice::from_ref(&record))?.wait_durable()?;
            us.push(u64::try_from(start.elapsed().as_micros())?);
            if let Some(pace) = pace {
                std::thread::sleep(pace.saturating_sub(start.elapsed()));
            }
        }
        Ok(us)
    });
    Ok(Part::of(done.await??, seconds))
}

async fn many_callers(log: &Log, callers: usize, seconds: f64) -> Result<Part, Failure> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let log = log.clone();
        tasks.spawn(async move {
            let record = Bytes::from_static(&[7; RECORD_BYTES]);
            let mut us = Vec::new();
            while Instant::now() < end {
                let start = Instant::now();
                log.append(1, std::slice::from_ref(&record))?.durable().await?;
                us.push(u64::try_from(start.elapsed().as_micros())?);
            }
            Ok::<_, Failure>(us)
        });
    }
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.extend(done??);
    }
    Ok(Part::of(all, seconds))
}
