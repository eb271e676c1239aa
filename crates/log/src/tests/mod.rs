//! The log against a disk that loses power, fails, fills up or is tampered with. Segments are four pages, so that
//! turning to the next one is met all the time.

mod behaviour;
mod crashes;
mod damage;
mod faults;
mod inspection;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use lakegate_env::{Disk, FaultyDisk, ManualClock, MemDisk, Random, SeededRandom, SystemRandom};

use crate::format::segment_name;
use crate::{Driver, Frame, Log, LogOptions, OpenError, Ticket};

const DIR: &str = "/data/wal";

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 16 * 1024,
        quota_bytes: 1024 * 1024,
        max_frame_bytes: 128 * 1024,
        max_queued_bytes: 1024 * 1024,
        realtime: false,
        driver: Driver::Manual,
        ..LogOptions::new(DIR)
    }
}

fn try_open(disk: Arc<dyn Disk>, options: LogOptions) -> Result<Log, OpenError> {
    Log::open(disk, Arc::new(ManualClock::new(0)), Arc::new(SystemRandom), options)
}

fn open(disk: &MemDisk) -> Log {
    try_open(Arc::new(disk.clone()), options()).unwrap()
}

fn refusal(disk: &MemDisk) -> OpenError {
    try_open(Arc::new(disk.clone()), options()).expect_err("the log must refuse to open")
}

fn segment_path(segment: u64) -> PathBuf {
    Path::new(DIR).join(segment_name(segment))
}

/// Frames as they were appended.
#[derive(Default, Clone)]
struct Model(Vec<Frame>);

impl Model {
    fn next_offset(&self) -> u64 {
        self.0.last().map_or(0, Frame::next_offset)
    }

    /// Checks that the log holds these frames from its first one on: all below `acked`, and nothing else.
    fn check(&self, log: &Log, acked: u64) {
        let first = log.first_offset();
        let found: Vec<Frame> = log.read(first).unwrap().map(Result::unwrap).collect();
        assert_eq!(found.first().map_or(first, |frame| frame.first_offset), first);
        let expected: Vec<&Frame> =
            self.0.iter().filter(|frame| frame.first_offset >= first).take(found.len()).collect();
        assert!(found.iter().eq(expected), "what is read is what was appended, in order, once");
        let end = found.last().map_or(first, Frame::next_offset);
        assert_eq!((end, log.durable_offset()), (log.next_offset(), end), "recovery reads all it counts");
        assert!(end >= acked, "{acked} records were acknowledged, {end} are there");
    }

    /// Takes over what the log recovered.
    fn cut(&mut self, log: &Log) {
        self.0.retain(|frame| frame.first_offset < log.next_offset());
    }

    fn append(&mut self, log: &Log, records: u32, payload: Vec<u8>) -> Option<Ticket> {
        let payload = Bytes::from(payload);
        let half = payload.len() / 2;
        let ticket = log.append(records, &[payload.slice(..half), payload.slice(half..)]).ok()?;
        assert_eq!(ticket.first_offset, self.next_offset());
        self.0.push(Frame { first_offset: ticket.first_offset, records, payload });
        Some(ticket)
    }
}

/// Bytes that are nowhere zero, so that a lost sector shows.
fn some_bytes(random: &dyn Random, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&(random.next_u64() | 0x0101_0101_0101_0101).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn below(random: &dyn Random, limit: u64) -> u64 {
    random.next_u64() % limit
}

fn random_payload(random: &dyn Random) -> Vec<u8> {
    let limit = if below(random, 20) == 0 { 40_000 } else { 3_000 };
    let length = below(random, limit);
    some_bytes(random, usize::try_from(length).unwrap())
}

/// Runs a property for many seeds, or for the one in `LAKEGATE_SEED`; tells how to run a failing one again.
fn for_seeds(test: &'static str, count: u64, property: impl Fn(u64)) {
    struct Replay(&'static str, u64);
    impl Drop for Replay {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("replay: LAKEGATE_SEED={} cargo test -p lakegate-log --lib {}", self.1, self.0);
            }
        }
    }
    let only = std::env::var("LAKEGATE_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in only.map_or(0..count, |seed| seed..seed + 1) {
        let replay = Replay(test, seed);
        property(seed);
        drop(replay);
    }
}

/// A log with so many acknowledged frames of one record and 1,000 bytes each, closed. 11 frames fill a segment.
fn disk_with_frames(count: u64) -> (MemDisk, Model) {
    let disk = MemDisk::new();
    let mut model = Model::default();
    let random = SeededRandom::new(7);
    let log = open(&disk);
    for _ in 0..count {
        model.append(&log, 1, some_bytes(&random, 1000)).unwrap();
        assert!(log.step().unwrap());
    }
    log.close();
    (disk, model)
}

fn faulty(disk: &MemDisk) -> FaultyDisk {
    FaultyDisk::new(Arc::new(disk.clone()))
}
