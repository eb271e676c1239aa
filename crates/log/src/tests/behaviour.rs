use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use lakegate_env::{Disk, MemDisk, RealDisk, SeededRandom, SystemClock, SystemRandom};

use super::{DIR, Model, disk_with_frames, for_seeds, open, options, random_payload, some_bytes, try_open};
use crate::{AppendError, Driver, Log, LogError, LogHealth, LogMode, LogOptions, OpenError, ReadError};

fn poll<T>(future: impl Future<Output = T>) -> Poll<T> {
    std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn threaded(dir: &Path) -> Log {
    let options = LogOptions {
        driver: Driver::Thread,
        segment_bytes: 64 * 1024,
        quota_bytes: 8 * 1024 * 1024,
        realtime: false,
        ..LogOptions::new(dir)
    };
    Log::open(Arc::new(RealDisk), Arc::new(SystemClock::default()), Arc::new(SystemRandom), options).unwrap()
}

#[test]
fn a_record_is_durable_after_its_group_was_synced_and_not_before() {
    let log = open(&MemDisk::new());
    let mut model = Model::default();
    let one = model.append(&log, 3, vec![1; 10]).unwrap();
    let two = model.append(&log, 2, vec![2; 50_000]).unwrap();
    assert_eq!((one.first_offset, two.first_offset, log.next_offset(), log.durable_offset()), (0, 3, 5, 0));
    assert!(poll(one.durable()).is_pending() && poll(log.wait_durable(5)).is_pending());
    assert_eq!(log.read(0).unwrap().count(), 0, "what is not durable is not read");
    assert!(log.step().unwrap());
    assert_eq!(
        (poll(one.durable()), poll(two.durable()), poll(log.wait_durable(5))),
        (Poll::Ready(Ok(())), Poll::Ready(Ok(())), Poll::Ready(Ok(())))
    );
    assert!(!log.step().unwrap());
    model.check(&log, 5);
}

#[test]
fn a_payload_can_be_told_its_offset() {
    let log = open(&MemDisk::new());
    log.append(4, &[]).unwrap();
    log.append_with(1, |offset| vec![Bytes::from(offset.to_string())]).unwrap();
    log.step().unwrap();
    assert_eq!(log.read(4).unwrap().next().unwrap().unwrap().payload, "4");
}

#[test]
fn a_reader_begins_at_the_frame_that_holds_its_offset_and_goes_on_when_there_is_more() {
    for_seeds("a_reader_begins", 5, |seed| {
        let random = SeededRandom::new(seed);
        let log = open(&MemDisk::new());
        let mut model = Model::default();
        let mut follower = log.read(0).unwrap();
        let mut followed = Vec::new();
        for round in 0..60 {
            model.append(&log, 1 + round % 4, random_payload(&random)).unwrap();
            if round % 3 == 0 {
                log.step().unwrap();
            }
            followed.extend(follower.by_ref().map(Result::unwrap));
        }
        log.step().unwrap();
        followed.extend(follower.map(Result::unwrap));
        assert_eq!(followed, model.0);
        for offset in 0..log.next_offset() {
            let frame = log.read(offset).unwrap().next().unwrap().unwrap();
            assert!((frame.first_offset..frame.next_offset()).contains(&offset));
        }
    });
}

#[test]
fn each_opening_has_a_higher_epoch_and_the_same_identity() {
    let (disk, model) = disk_with_frames(5);
    let first = open(&disk);
    let (id, epoch) = (first.id(), first.epoch());
    drop(first);
    let second = open(&disk);
    assert_eq!((second.id(), second.epoch()), (id, epoch + 1));
    model.check(&second, 5);
}

#[test]
fn what_is_too_much_is_refused_with_nothing_appended() {
    let options = LogOptions { max_queued_bytes: 10_000, ..options() };
    let log = try_open(Arc::new(MemDisk::new()), options).unwrap();
    assert_eq!(log.append(0, &[]).unwrap_err(), AppendError::NoRecords);
    assert!(matches!(log.append(1, &[vec![0; 200_000].into()]).unwrap_err(), AppendError::TooLarge { .. }));
    log.append(1, &[vec![0; 9_000].into()]).unwrap();
    let refused = log.append(1, &[vec![0; 9_000].into()]).unwrap_err();
    assert!(matches!(refused, AppendError::QueueFull { .. }) && refused.is_retryable());
    log.step().unwrap();
    assert_eq!(log.append(1, &[vec![0; 9_000].into()]).unwrap().first_offset, 1);
}

#[test]
fn the_quota_refuses_and_trimming_makes_room_again() {
    let disk = MemDisk::new();
    let options = LogOptions { quota_bytes: 128 * 1024, ..options() };
    let log = try_open(Arc::new(disk.clone()), options.clone()).unwrap();
    let mut model = Model::default();
    for round in 0..20 {
        let mut written = 0;
        let refused = loop {
            match log.append(1, &[vec![7; 1000].into()]) {
                Ok(ticket) => {
                    model.0.push(crate::Frame {
                        first_offset: ticket.first_offset,
                        records: 1,
                        payload: vec![7; 1000].into(),
                    });
                    written += 1;
                }
                Err(error) => break error,
            }
            log.step().unwrap();
        };
        assert!(matches!(refused, AppendError::QuotaFull { .. }) && refused.is_retryable());
        assert!(written >= 70, "a quota of eight segments holds the frames of seven in round {round}: {written}");
        assert!(log.status().bytes <= 128 * 1024);
        assert!(disk.used_bytes() <= 128 * 1024 + 300 * 1024, "{}", disk.used_bytes());
        let trimmed = log.trim(log.durable_offset()).unwrap();
        assert!(trimmed.segments >= 6);
        model.check(&log, model.next_offset());
        assert!(matches!(log.read(0).err().unwrap(), ReadError::Trimmed { .. }));
    }
    drop(log);
    model.check(&try_open(Arc::new(disk), options).unwrap(), model.next_offset());
}

#[test]
fn trimming_never_takes_what_is_not_below_the_offset() {
    let (disk, model) = disk_with_frames(40);
    let log = open(&disk);
    for offset in 0..45 {
        let outcome = log.trim(offset).unwrap();
        assert!(outcome.first_offset <= offset && log.first_offset() == outcome.first_offset);
        model.check(&log, 40);
    }
    assert!(log.first_offset() > 20);
}

#[test]
fn f19_a_second_opening_of_the_same_folder_is_refused() {
    let disk = MemDisk::new();
    let first = open(&disk);
    assert!(matches!(try_open(Arc::new(disk.clone()), options()), Err(OpenError::InUse { .. })));
    first.close();
    open(&disk);
    let dir = tempfile::tempdir().unwrap();
    let held = threaded(dir.path());
    let again = Log::open(
        Arc::new(RealDisk),
        Arc::new(SystemClock::default()),
        Arc::new(SystemRandom),
        LogOptions::new(dir.path()),
    );
    assert!(again.unwrap_err().to_string().contains("in use"));
    drop(held);
    threaded(dir.path());
}

#[test]
fn a_volatile_log_calls_everything_durable_at_once_and_touches_no_disk() {
    let disk = MemDisk::new();
    let log = try_open(Arc::new(disk.clone()), LogOptions { mode: LogMode::Volatile, ..options() }).unwrap();
    let ticket = log.append(3, &[Bytes::from_static(b"x")]).unwrap();
    assert_eq!((poll(ticket.durable()), log.durable_offset(), log.next_offset()), (Poll::Ready(Ok(())), 3, 3));
    assert_eq!(log.read(0).unwrap().count(), 0);
    assert_eq!(log.trim(3).unwrap().segments, 0);
    assert!(disk.list(Path::new(DIR)).is_err());
    log.close();
    assert_eq!(log.append(1, &[]).unwrap_err(), AppendError::Stopped(LogError::Closed));
}

#[test]
fn a_closed_log_has_written_what_was_queued_and_takes_no_more() {
    let disk = MemDisk::new();
    let log = open(&disk);
    let mut model = Model::default();
    let ticket = model.append(&log, 1, vec![1; 100]).unwrap();
    log.close();
    assert_eq!(ticket.wait_durable(), Ok(()));
    assert_eq!(log.append(1, &[]).unwrap_err(), AppendError::Stopped(LogError::Closed));
    assert_eq!(log.status().health, LogHealth::Closed);
    model.check(&open(&disk.crash(1)), 1);
}

#[test]
fn many_threads_append_and_read_while_the_log_turns_and_is_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let log = threaded(dir.path());
    let total = 8 * 300;
    std::thread::scope(|scope| {
        for worker in 0..8_u64 {
            let log = log.clone();
            scope.spawn(move || {
                let random = SeededRandom::new(worker);
                for _ in 0..300 {
                    let length = usize::try_from(super::below(&random, 3000)).unwrap();
                    let ticket = log.append(1, &[some_bytes(&random, length).into()]).unwrap();
                    ticket.wait_durable().unwrap();
                    assert!(log.durable_offset() > ticket.first_offset);
                }
            });
        }
        let log = log.clone();
        scope.spawn(move || {
            let mut reader = log.read(0).unwrap();
            let mut next = 0;
            let mut progress = log.subscribe();
            while next < total {
                for frame in reader.by_ref() {
                    assert_eq!(frame.unwrap().first_offset, next);
                    next += 1;
                }
                if next % 500 > 400 {
                    log.trim(next - 200).unwrap();
                }
                let seen = progress.borrow_and_update().durable_offset;
                if seen <= next {
                    std::thread::yield_now();
                }
            }
        });
    });
    assert_eq!(log.durable_offset(), total);
    assert!(log.first_offset() > 0);
    log.close();
    let again = threaded(dir.path());
    assert_eq!(again.next_offset(), total);
    assert_eq!(
        again
            .read(again.first_offset())
            .unwrap()
            .map(Result::unwrap)
            .map(|frame| u64::from(frame.records))
            .sum::<u64>(),
        total - again.first_offset()
    );
}

#[test]
fn a_large_frame_gets_a_segment_of_its_size_and_survives() {
    let disk = MemDisk::new();
    let log = open(&disk);
    let random = SeededRandom::new(3);
    let mut model = Model::default();
    for length in [10, 100_000, 10, 128 * 1024, 20_000, 1] {
        model.append(&log, 1, some_bytes(&random, length)).unwrap();
        log.step().unwrap();
        log.prepare_ahead().unwrap();
    }
    model.check(&log, 6);
    drop(log);
    model.check(&open(&disk.crash(5)), 6);
}
