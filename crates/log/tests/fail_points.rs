//! The instants that matter, each hit exactly. Fail points are global to the process, so that these tests have a
//! process of their own and run one after the other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed test is a panic"
)]
#![cfg(debug_assertions)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use lakegate_env::{
    Disk, FailAction, ManualClock, MemDisk, RealDisk, SystemClock, SystemRandom, arm_failpoint, disarm_failpoints,
};
use lakegate_log::{Driver, Log, LogHealth, LogOptions};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const POINTS: [&str; 9] = [
    "wal.before_write",
    "wal.after_partial_write",
    "wal.after_write_before_sync",
    "wal.after_sync",
    "wal.rotate.after_create",
    "wal.rotate.after_preallocate",
    "wal.rotate.after_header",
    "wal.trim.after_mark",
    "wal.trim.after_unlink",
];

fn alone() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    disarm_failpoints();
    guard
}

fn options(dir: &Path) -> LogOptions {
    LogOptions {
        segment_bytes: 16 * 1024,
        quota_bytes: 1024 * 1024,
        realtime: false,
        driver: Driver::Manual,
        ..LogOptions::new(dir)
    }
}

fn open(disk: Arc<dyn Disk>, dir: &Path) -> Log {
    Log::open(disk, Arc::new(ManualClock::new(0)), Arc::new(SystemRandom), options(dir)).unwrap()
}

fn payload(offset: u64) -> Bytes {
    vec![u8::try_from(offset % 250).unwrap() + 1; 900].into()
}

/// Every record is there once, unchanged, from the log's beginning to at least `acked`.
fn check(log: &Log, acked: u64) {
    let mut next = log.first_offset();
    for frame in log.read(next).unwrap() {
        let frame = frame.unwrap();
        assert_eq!((frame.first_offset, &frame.payload), (next, &payload(next)));
        next = frame.next_offset();
    }
    assert!(next >= acked && next == log.next_offset(), "{acked} were acknowledged, {next} are there");
}

/// Appends and trims until something fails; returns how many were acknowledged.
fn work(log: &Log, count: u64) -> u64 {
    for _ in 0..count {
        if log.append_with(1, |offset| vec![payload(offset)]).is_err() || log.step().is_err() {
            break;
        }
        if log.next_offset().is_multiple_of(40) {
            let _ = log.trim(log.durable_offset());
        }
    }
    log.durable_offset()
}

#[test]
fn f02_f03_f06_an_error_at_any_instant_loses_nothing_acknowledged() {
    let _alone = alone();
    let dir = Path::new("/wal");
    for point in POINTS {
        for action in [FailAction::Eio, FailAction::Enospc] {
            for nth in [1, 2, 3, 7, 20] {
                let disk = MemDisk::new();
                let log = open(Arc::new(disk.clone()), dir);
                arm_failpoint(point, action, nth);
                let acked = work(&log, 100);
                disarm_failpoints();
                for (seed, after) in [disk.kill(), disk.crash(nth), disk.crash(nth + 100)].into_iter().enumerate() {
                    let log = open(Arc::new(after.clone()), dir);
                    check(&log, acked);
                    let acked = work(&log, 30);
                    check(&open(Arc::new(after.crash(seed as u64)), dir), acked);
                }
            }
        }
    }
}

#[test]
fn f16_no_room_while_a_segment_is_made_ends_by_itself() {
    let _alone = alone();
    for point in ["wal.rotate.after_create", "wal.rotate.after_preallocate", "wal.rotate.after_header"] {
        let log = open(Arc::new(MemDisk::new()), Path::new("/wal"));
        arm_failpoint(point, FailAction::Enospc, 1);
        assert_eq!(work(&log, 40), log.next_offset(), "the writer tries again and goes on");
        assert_eq!(log.status().health, LogHealth::Healthy);
        check(&log, 39);
    }
}

/// Not a test of its own: the life that [`f02_a_killed_process`] ends. Writes down each acknowledgement.
#[test]
fn a_life_to_be_killed() {
    let Ok(dir) = std::env::var("LAKEGATE_TEST_WAL") else { return };
    let dir = Path::new(&dir);
    let options = LogOptions { driver: Driver::Thread, ..options(&dir.join("wal")) };
    let log = Log::open(Arc::new(RealDisk), Arc::new(SystemClock::default()), Arc::new(SystemRandom), options).unwrap();
    let mut journal = fs::OpenOptions::new().append(true).create(true).open(dir.join("acked")).unwrap();
    for _ in 0..200 {
        let ticket = log.append_with(1, |offset| vec![payload(offset)]).unwrap();
        ticket.wait_durable().unwrap();
        writeln!(journal, "{}", ticket.next_offset()).unwrap();
        if log.next_offset().is_multiple_of(40) {
            log.trim(log.durable_offset()).unwrap();
        }
    }
}

#[test]
fn f02_a_killed_process_loses_nothing_it_acknowledged() {
    let _alone = alone();
    for point in POINTS {
        let dir = tempfile::tempdir().unwrap();
        for nth in [1, 2, 9] {
            let life = Command::new(std::env::current_exe().unwrap())
                .args(["a_life_to_be_killed", "--exact"])
                .env("LAKEGATE_TEST_WAL", dir.path())
                .env("LAKEGATE_FAILPOINTS", format!("{point}=kill@{nth}"))
                .output()
                .unwrap();
            let journal = fs::read_to_string(dir.path().join("acked")).unwrap_or_default();
            let acked = journal.lines().last().map_or(0, |line| line.parse().unwrap());
            // The log of a process that was killed while making it was never acknowledged anything.
            check(&open(Arc::new(RealDisk), &dir.path().join("wal")), acked);
            assert!(!life.status.success() || nth > 2, "{point} was not hit");
        }
    }
}
