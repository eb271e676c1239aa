use lakegate_env::{Disk, Fault, MemDisk, OpKind, Random, SeededRandom};
use std::path::Path;
use std::sync::Arc;

use super::{
    DIR, Model, below, disk_with_frames, faulty, for_seeds, open, options, random_payload, segment_path, some_bytes,
    try_open,
};
use crate::OpenError;
use crate::recover::MARK_NAME;

/// One life of a log: opens, appends, writes, trims, until a fault or a whim ends it. Returns what was acknowledged.
fn live(disk: &MemDisk, model: &mut Model, acked: u64, random: &SeededRandom) -> u64 {
    let faulty = faulty(disk);
    if below(random, 2) == 0 {
        let kinds = [
            OpKind::Write,
            OpKind::SyncData,
            OpKind::SyncDir,
            OpKind::Rename,
            OpKind::Allocate,
            OpKind::Create,
            OpKind::Remove,
        ];
        let kind = kinds[usize::try_from(below(random, kinds.len() as u64)).unwrap()];
        let faults = [Fault::Eio, Fault::ShortWrite, Fault::EioAfter, Fault::Enospc];
        faulty.fail_from(kind, 1 + below(random, 40), faults[usize::try_from(below(random, 4)).unwrap()]);
    }
    let Ok(log) = try_open(Arc::new(faulty), options()) else { return acked };
    model.check(&log, acked);
    model.cut(&log);
    let mut acked = log.durable_offset();
    for _ in 0..below(random, 60) {
        match below(random, 10) {
            0..6 => {
                let records = 1 + u32::try_from(below(random, 3)).unwrap();
                model.append(&log, records, random_payload(random));
            }
            6..9 => {
                if log.step().is_err() {
                    break;
                }
            }
            _ => {
                let _ = log.trim(acked.saturating_sub(below(random, 30)));
                let _ = log.prepare_ahead();
            }
        }
        acked = log.durable_offset();
    }
    if below(random, 4) == 0 {
        log.close();
    }
    log.durable_offset()
}

#[test]
fn f07_a_power_loss_at_any_moment_loses_nothing_acknowledged() {
    for_seeds("f07_a_power_loss", 300, |seed| {
        let random = SeededRandom::new(seed);
        let mut disk = MemDisk::new();
        let mut model = Model::default();
        let mut acked = 0;
        for _ in 0..6 {
            acked = live(&disk, &mut model, acked, &random);
            disk = disk.crash(random.next_u64());
        }
        model.check(&open(&disk), acked);
    });
}

#[test]
fn f07_the_test_would_notice_a_sync_that_is_left_out() {
    for kind in [OpKind::SyncData, OpKind::SyncDir] {
        let noticed = (0..40).filter(|seed| {
            let disk = MemDisk::new();
            let lying = faulty(&disk);
            let log = try_open(Arc::new(lying.clone()), options()).unwrap();
            lying.fail_from(kind, 1, Fault::Lie);
            let random = SeededRandom::new(*seed);
            for _ in 0..30 {
                log.append(1, &[some_bytes(&random, 1000).into()]).unwrap();
                log.step().unwrap();
            }
            let acked = log.durable_offset();
            try_open(Arc::new(disk.crash(*seed)), options()).map_or(true, |log| log.next_offset() < acked)
        });
        assert!(noticed.count() > 10, "{kind:?}");
    }
}

#[test]
fn f01_a_kill_at_any_moment_loses_nothing_acknowledged() {
    for_seeds("f01_a_kill", 100, |seed| {
        let random = SeededRandom::new(seed);
        let mut disk = MemDisk::new();
        let mut model = Model::default();
        let mut acked = 0;
        for _ in 0..6 {
            acked = live(&disk, &mut model, acked, &random);
            disk = disk.kill();
        }
        model.check(&open(&disk), acked);
    });
}

/// A log of `frames` acknowledged frames and one more that was written but not acknowledged: the mark is the old one.
fn disk_with_unacked_frame(frames: u64) -> (MemDisk, Model) {
    let (disk, model) = disk_with_frames(frames + 1);
    let (before, _) = disk_with_frames(frames);
    let mark_path = Path::new(DIR).join(MARK_NAME);
    // Only the offset and count of the older disk's mark fit; its log has another identity, so it is made anew.
    let id = crate::recover::read_meta(&disk, Path::new(DIR)).unwrap().unwrap().log;
    drop(before);
    let mark = crate::format::Mark { durable_offset: frames, count: 1 };
    disk.tamper(&mark_path, |bytes| *bytes = mark.encode_file(id)).unwrap();
    (disk, model)
}

const FRAME: usize = 1064;

#[test]
fn f08_a_torn_last_frame_is_cut_at_every_byte() {
    for frames in [3, 11, 13] {
        let (disk, model) = disk_with_unacked_frame(frames);
        let segment = 1 + frames / 11;
        let begin = 4096 + usize::try_from(frames % 11).unwrap() * FRAME;
        for cut in 0..FRAME {
            let torn = disk.kill();
            torn.tamper(&segment_path(segment), |bytes| match cut % 3 {
                0 => bytes.truncate(begin + cut),
                1 => bytes[begin + cut..].fill(0),
                _ => bytes[begin + cut..].fill(0xa5),
            })
            .unwrap();
            let log = open(&torn);
            assert_eq!(log.next_offset(), frames, "cut at {cut}");
            let mut model = model.clone();
            model.cut(&log);
            model.check(&log, frames);
            let again = torn.crash(cut as u64);
            model.check(&open(&again), frames);
            model.append(&log, 1, vec![9; 1000]).unwrap();
            log.step().unwrap();
            model.check(&log, frames + 1);
            drop(log);
            model.check(&open(&torn.crash(cut as u64)), frames + 1);
        }
        let whole = open(&disk);
        assert_eq!(whole.next_offset(), frames + 1, "a whole frame that nobody was told of may stay");
    }
}

#[test]
fn f11_damage_to_the_last_acknowledged_frame_is_not_taken_for_a_torn_tail() {
    let (disk, _) = disk_with_frames(14);
    for at in (0..FRAME).step_by(7) {
        let damaged = disk.kill();
        damaged.tamper(&segment_path(2), |bytes| bytes[4096 + 2 * FRAME + at] ^= 1).unwrap();
        let Err(OpenError::Damaged(damage)) = try_open(Arc::new(damaged), options()) else {
            panic!("byte {at} was accepted")
        };
        assert_eq!((damage.file, damage.position), (segment_path(2), 4096 + 2 * FRAME as u64));
        assert_eq!((damage.first_offset, damage.next_offset), (13, Some(14)));
    }
}

#[test]
fn f11_a_later_frame_proves_the_damage_where_the_mark_lags() {
    let (disk, _) = disk_with_unacked_frame(13);
    let id = crate::recover::read_meta(&disk, Path::new(DIR)).unwrap().unwrap().log;
    let mark = crate::format::Mark { durable_offset: 5, count: 1 };
    disk.tamper(&Path::new(DIR).join(MARK_NAME), |bytes| *bytes = mark.encode_file(id)).unwrap();
    disk.tamper(&segment_path(2), |bytes| bytes[4096 + FRAME + 100] ^= 1).unwrap();
    let Err(OpenError::Damaged(damage)) = try_open(Arc::new(disk), options()) else { panic!("it was accepted") };
    assert_eq!((damage.first_offset, damage.next_offset), (12, Some(13)));
}

#[test]
fn f09_a_whole_frame_of_an_earlier_epoch_behind_the_end_is_not_taken() {
    let (longer, mut model) = disk_with_frames(4);
    let log = open(&longer);
    model.append(&log, 1, vec![4; 1000]).unwrap();
    model.append(&log, 1, vec![5; 1000]).unwrap();
    log.step().unwrap();
    drop(log);
    // Nobody was told of frames 4 and 5. Frame 4 is torn; frame 5 (of the same length, whole) lies behind it.
    let old = longer.read(&segment_path(1)).unwrap();
    let torn = longer.kill();
    let id = crate::recover::read_meta(&torn, Path::new(DIR)).unwrap().unwrap().log;
    let mark = crate::format::Mark { durable_offset: 4, count: 1 };
    torn.tamper(&Path::new(DIR).join(MARK_NAME), |bytes| *bytes = mark.encode_file(id)).unwrap();
    torn.tamper(&segment_path(1), |bytes| bytes[4096 + 4 * FRAME + 70] ^= 1).unwrap();
    let log = open(&torn);
    model.cut(&log);
    assert_eq!(log.next_offset(), 4);
    model.append(&log, 1, vec![6; 1000]).unwrap();
    log.step().unwrap();
    drop(log);
    // Put the old frame 5 back behind the new frame 4, as a disk that had lost the zeros would.
    torn.tamper(&segment_path(1), |bytes| {
        bytes[4096 + 5 * FRAME..4096 + 6 * FRAME].copy_from_slice(&old[4096 + 5 * FRAME..4096 + 6 * FRAME])
    })
    .unwrap();
    let log = open(&torn);
    assert_eq!(log.next_offset(), 5);
    model.check(&log, 5);
}

#[test]
fn f09_what_a_recycled_segment_held_is_never_read_as_new() {
    for_seeds("f09_what_a_recycled", 50, |seed| {
        let random = SeededRandom::new(seed);
        let mut disk = MemDisk::new();
        let mut model = Model::default();
        for round in 0..6 {
            let log = open(&disk);
            model.check(&log, 0);
            model.cut(&log);
            for _ in 0..50 {
                // All of one length: whatever lay in a recycled file lies exactly where a frame may be looked for.
                model.append(&log, 1, some_bytes(&random, 1000)).unwrap();
                log.step().unwrap();
            }
            log.trim(log.durable_offset()).unwrap();
            assert!(disk.list(Path::new(DIR)).unwrap().iter().any(|name| name.starts_with("spare-")) || round == 0);
            let acked = log.durable_offset();
            model.append(&log, 1, some_bytes(&random, 1000)).unwrap();
            drop(log);
            disk = if round % 2 == 0 { disk.kill() } else { disk.crash(seed) };
            model.check(&open(&disk), acked);
        }
    });
}

#[test]
fn f03_a_newest_segment_without_a_header_is_discarded_when_nothing_was_acknowledged_in_it() {
    let (disk, model) = disk_with_frames(5);
    for content in [Vec::new(), vec![0; 10], vec![0; 16 * 1024]] {
        let disk = disk.kill();
        disk.create_new(&segment_path(2)).unwrap();
        disk.tamper(&segment_path(2), |bytes| *bytes = content.clone()).unwrap();
        let log = open(&disk);
        model.check(&log, 5);
        drop(log);
        model.check(&open(&disk), 5);
    }
}

#[test]
fn f03_a_segment_that_was_being_made_is_removed() {
    let (disk, model) = disk_with_frames(5);
    let temporary = segment_path(2).with_extension("tmp");
    disk.create_new(&temporary).unwrap().allocate_zeroed(100).unwrap();
    model.check(&open(&disk), 5);
    assert!(!disk.exists(&temporary).unwrap());
}

#[test]
fn a_log_that_was_never_finished_being_made_is_begun_anew() {
    for seed in 0..20 {
        for kind in [OpKind::Write, OpKind::SyncData, OpKind::SyncDir, OpKind::Rename, OpKind::Allocate, OpKind::Create]
        {
            for nth in 1.. {
                let disk = MemDisk::new();
                let broken = faulty(&disk);
                broken.fail_from(kind, nth, Fault::Eio);
                let opened = try_open(Arc::new(broken.clone()), options());
                if broken.faults_acted() == 0 {
                    break;
                }
                drop(opened);
                open(&disk.crash(seed));
                open(&disk.kill());
            }
        }
    }
}

#[test]
fn f06_a_trimming_that_is_cut_short_leaves_no_gap() {
    for_seeds("f06_a_trimming", 12, |seed| {
        for kind in [OpKind::Remove, OpKind::Rename, OpKind::SyncDir, OpKind::Write, OpKind::SyncData, OpKind::Create] {
            for nth in 1.. {
                let (disk, model) = disk_with_frames(60);
                let broken = faulty(&disk);
                let log = try_open(Arc::new(broken.clone()), options()).unwrap();
                broken.fail_from(kind, nth, Fault::Eio);
                let trimmed = log.trim(45);
                if broken.faults_acted() == 0 {
                    assert!(trimmed.unwrap().segments == 4);
                    break;
                }
                let after = if nth % 2 == 0 { disk.kill() } else { disk.crash(seed) };
                let log = open(&after);
                model.check(&log, 60);
                let first = log.first_offset();
                assert!(first == 0 || first == 44, "all or nothing is trimmed, not up to {first}");
            }
        }
    });
}
