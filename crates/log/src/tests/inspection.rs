use std::path::Path;

use lakegate_env::{Disk, MemDisk, SeededRandom};

use super::{DIR, Model, disk_with_frames, open, refusal, segment_path, some_bytes};
use crate::OpenError;
use crate::inspect::{SetAsideError, dump, list, set_aside, verify};

const FRAME: usize = 1064;

fn dir() -> &'static Path {
    Path::new(DIR)
}

#[test]
fn a_stopped_log_is_listed_verified_and_dumped() {
    let (disk, model) = disk_with_frames(30);
    let listing = list(&disk, dir()).unwrap();
    assert_eq!((listing.first_offset, listing.synced_offset, listing.in_use), (0, 30, false));
    let firsts: Vec<_> =
        listing.segments.iter().map(|segment| (segment.segment, segment.first_offset, segment.bytes)).collect();
    assert_eq!(firsts, [(1, Some(0), 16 * 1024), (2, Some(11), 16 * 1024), (3, Some(22), 16 * 1024)]);
    let report = verify(&disk, dir()).unwrap();
    let counts: Vec<_> = report.segments.iter().map(|segment| (segment.frames, segment.next_offset)).collect();
    assert_eq!((report.next_offset, counts), (30, vec![(11, 11), (11, 22), (8, 30)]));
    let (frames, damage) = dump(&disk, dir(), 10, 3).unwrap();
    assert_eq!((frames.iter().map(|frame| frame.first_offset).collect::<Vec<_>>(), damage), (vec![10, 11, 12], None));
    assert_eq!(frames[1].payload, model.0[11].payload);
    assert_eq!((frames[0].segment, frames[1].segment, frames[1].position), (1, 2, 4096));
}

#[test]
fn a_running_log_is_inspected_as_far_as_it_is_synced() {
    let (disk, _) = disk_with_frames(14);
    let log = open(&disk);
    for _ in 0..20 {
        log.append(1, &[vec![1; 1000].into()]).unwrap();
        log.step().unwrap();
    }
    log.append(1, &[vec![1; 1000].into()]).unwrap();
    let report = verify(&disk, dir()).unwrap();
    assert!(report.in_use && report.next_offset == 34 && report.synced_offset == 34);
    assert!(list(&disk, dir()).unwrap().in_use);
    assert_eq!(dump(&disk, dir(), 0, 100).unwrap().0.len(), 34);
}

#[test]
fn damage_is_reported_and_the_frames_before_it_are_dumped() {
    let (disk, _) = disk_with_frames(30);
    disk.tamper(&segment_path(2), |bytes| bytes[4096 + 4 * FRAME + 500] ^= 4).unwrap();
    assert!(matches!(verify(&disk, dir()), Err(OpenError::Damaged(damage)) if damage.first_offset == 15));
    let (frames, damage) = dump(&disk, dir(), 0, 100).unwrap();
    let damage = damage.unwrap();
    assert_eq!((frames.len(), damage.first_offset, damage.next_offset), (15, 15, Some(30)));
}

/// What is lost by a change to a log of 30 frames is this; everything else is read back, and the log goes on.
fn sets_aside(segment: u64, lost: &[(u64, u64)], tamper: impl FnOnce(&MemDisk)) {
    let (disk, mut model) = disk_with_frames(30);
    tamper(&disk);
    refusal(&disk);
    let damaged = disk.read(&segment_path(segment)).ok();
    let outcome = set_aside(&disk, dir(), segment).unwrap();
    assert_eq!(outcome.lost.iter().map(|range| (range.start, range.end)).collect::<Vec<_>>(), lost);
    assert_eq!(outcome.kept_as.map(|kept| disk.read(&kept).unwrap()), damaged);
    model.0.retain(|frame| !lost.iter().any(|(from, to)| (*from..*to).contains(&frame.first_offset)));
    let log = open(&disk);
    assert_eq!(log.next_offset(), 30);
    assert!(log.read(0).unwrap().map(Result::unwrap).eq(model.0.iter().cloned()));
    model.0.push(crate::Frame {
        first_offset: 30,
        records: 1,
        payload: some_bytes(&SeededRandom::new(1), 1000).into(),
    });
    log.append(1, &[model.0.last().unwrap().payload.clone()]).unwrap();
    log.step().unwrap();
    drop(log);
    assert!(open(&disk.crash(1)).read(0).unwrap().map(Result::unwrap).eq(model.0.iter().cloned()));
    assert!(matches!(set_aside(&disk, dir(), segment), Err(SetAsideError::Undamaged { .. })));
}

#[test]
fn a_damaged_segment_is_set_aside_and_only_what_cannot_be_read_is_lost() {
    let flip = |segment: u64, at: usize| {
        move |disk: &MemDisk| disk.tamper(&segment_path(segment), |bytes| bytes[at] ^= 1).unwrap()
    };
    sets_aside(2, &[(15, 16)], flip(2, 4096 + 4 * FRAME + 500));
    sets_aside(2, &[(15, 16)], flip(2, 4096 + 4 * FRAME + 10));
    sets_aside(1, &[(0, 1)], flip(1, 4096));
    sets_aside(2, &[(21, 22)], flip(2, 4096 + 10 * FRAME + 20));
    sets_aside(3, &[(29, 30)], flip(3, 4096 + 7 * FRAME + 100));
    sets_aside(2, &[(12, 14), (16, 17)], |disk| {
        disk.tamper(&segment_path(2), |bytes| {
            bytes[4096 + FRAME..4096 + 3 * FRAME].fill(0x5a);
            bytes[4096 + 5 * FRAME + 64] ^= 1;
        })
        .unwrap();
    });
    sets_aside(2, &[(13, 22)], |disk| {
        disk.tamper(&segment_path(2), |bytes| bytes.truncate(4096 + 2 * FRAME + 30)).unwrap()
    });
    sets_aside(2, &[(11, 22)], |disk| disk.remove(&segment_path(2)).unwrap());
    sets_aside(3, &[], flip(3, 20));
}

#[test]
fn the_first_of_several_damaged_segments_comes_first_and_a_running_log_is_left_alone() {
    let (disk, _) = disk_with_frames(30);
    for segment in [1, 2] {
        disk.tamper(&segment_path(segment), |bytes| bytes[4096 + 3 * FRAME] ^= 1).unwrap();
    }
    assert!(matches!(set_aside(&disk, dir(), 2), Err(SetAsideError::EarlierDamage { segment: 1 })));
    set_aside(&disk, dir(), 1).unwrap();
    set_aside(&disk, dir(), 2).unwrap();
    let log = open(&disk);
    assert_eq!(log.read(0).unwrap().count(), 28);
    assert!(matches!(set_aside(&disk, dir(), 1), Err(SetAsideError::Log(OpenError::InUse { .. }))));
    let mut model = Model::default();
    model.0.extend(log.read(0).unwrap().map(Result::unwrap));
}
