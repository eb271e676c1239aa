use std::path::Path;
use std::sync::Arc;

use lakegate_env::Disk;
use lakegate_model::LogId;

use super::{DIR, disk_with_frames, open, options, refusal, segment_path, try_open};
use crate::OpenError;
use crate::format::{FrameHeader, Mark, Meta, MetaState, SegmentHeader, seal_frame};
use crate::recover::MARK_NAME;
use crate::trim::META_NAME;

const FRAME: usize = 1064;

#[test]
fn f10_a_flipped_bit_at_any_byte_of_a_middle_frame_is_detected() {
    let (disk, _) = disk_with_frames(16);
    for (segment, frame, first_offset) in [(1, 5, 5), (1, 10, 10), (2, 0, 11), (2, 3, 14)] {
        for at in 0..FRAME {
            let damaged = disk.kill();
            let position = 4096 + frame * FRAME;
            damaged.tamper(&segment_path(segment), |bytes| bytes[position + at] ^= 1 << (at % 8)).unwrap();
            let OpenError::Damaged(damage) = refusal(&damaged) else {
                panic!("byte {at} of frame {frame} was accepted")
            };
            assert_eq!(
                (damage.file, damage.position, damage.first_offset),
                (segment_path(segment), position as u64, first_offset)
            );
            assert!(damage.next_offset.is_some_and(|next| next > first_offset));
        }
    }
}

#[test]
fn f10_damage_that_is_met_while_the_log_runs_is_an_error_of_the_reader() {
    let (disk, _) = disk_with_frames(16);
    let log = open(&disk);
    disk.tamper(&segment_path(1), |bytes| bytes[4096 + 3 * FRAME + 80] ^= 1).unwrap();
    let mut reader = log.read(0).unwrap();
    assert_eq!(reader.by_ref().take_while(Result::is_ok).count(), 3);
    assert!(reader.next().is_none(), "a reader that failed has ended");
}

#[test]
fn f12_segments_that_are_missing_or_not_in_their_place_are_refused_with_the_reason() {
    let (disk, _) = disk_with_frames(40);
    let tampered = |tamper: &dyn Fn(&lakegate_env::MemDisk)| {
        let copy = disk.kill();
        tamper(&copy);
        refusal(&copy)
    };
    let (one, two, three) = (segment_path(1), segment_path(2), segment_path(3));
    assert!(matches!(tampered(&|disk| disk.remove(&one).unwrap()), OpenError::MissingSegment { segment: 1, .. }));
    assert!(matches!(tampered(&|disk| disk.remove(&two).unwrap()), OpenError::MissingSegment { segment: 2, .. }));
    let last = tampered(&|disk| disk.remove(&segment_path(4)).unwrap());
    assert!(matches!(last, OpenError::Damaged(damage) if damage.first_offset == 33 && damage.next_offset == Some(40)));
    let swapped = tampered(&|disk| {
        let content = disk.read(&two).unwrap();
        let other = disk.read(&three).unwrap();
        disk.tamper(&two, |bytes| *bytes = other).unwrap();
        disk.tamper(&three, |bytes| *bytes = content).unwrap();
    });
    assert!(matches!(swapped, OpenError::MisplacedSegment { expected: 2, found: 3, .. }));
    let emptied = tampered(&|disk| disk.tamper(&two, Vec::clear).unwrap());
    assert!(matches!(emptied, OpenError::Damaged(damage) if damage.file == two && damage.position == 0));
    let last_emptied = tampered(&|disk| disk.tamper(&segment_path(4), Vec::clear).unwrap());
    assert!(matches!(last_emptied, OpenError::Damaged(damage) if damage.first_offset == 33));
    let all = tampered(&|disk| (1..=4).for_each(|segment| disk.remove(&segment_path(segment)).unwrap()));
    assert!(matches!(all, OpenError::MissingSegment { segment: 1, .. }));
}

#[test]
fn f12_a_segment_from_an_older_copy_or_another_log_is_refused() {
    let (disk, _) = disk_with_frames(8);
    let old = disk.read(&segment_path(1)).unwrap();
    let log = open(&disk);
    for _ in 0..10 {
        log.append(1, &[vec![1; 1000].into()]).unwrap();
        log.step().unwrap();
    }
    drop(log);
    disk.tamper(&segment_path(1), |bytes| *bytes = old).unwrap();
    assert!(
        matches!(refusal(&disk), OpenError::Damaged(damage) if damage.first_offset == 8 && damage.next_offset == Some(11))
    );
    let (other, _) = disk_with_frames(20);
    let foreign = other.read(&segment_path(1)).unwrap();
    disk.tamper(&segment_path(1), |bytes| *bytes = foreign).unwrap();
    assert!(matches!(refusal(&disk), OpenError::WrongLog { .. }));
}

#[test]
fn f13_two_blocks_of_a_segment_that_were_swapped_are_detected() {
    let (disk, _) = disk_with_frames(16);
    for (one, other) in [(1, 2), (2, 3), (1, 3)] {
        let damaged = disk.kill();
        damaged
            .tamper(&segment_path(1), |bytes| {
                let block = |at: usize| at * 4096..(at + 1) * 4096;
                let content = bytes[block(one)].to_vec();
                bytes.copy_within(block(other), one * 4096);
                bytes[block(other)].copy_from_slice(&content);
            })
            .unwrap();
        assert!(matches!(refusal(&damaged), OpenError::Damaged(damage) if damage.file == segment_path(1)));
    }
}

#[test]
fn f23_files_of_a_newer_version_are_refused() {
    let (disk, _) = disk_with_frames(16);
    for path in [segment_path(1), segment_path(2), Path::new(DIR).join(META_NAME)] {
        let newer = disk.kill();
        newer.tamper(&path, |bytes| bytes[12..14].copy_from_slice(&2_u16.to_le_bytes())).unwrap();
        assert!(matches!(refusal(&newer), OpenError::NewerVersion { file, found: 2, known: 1 } if file == path));
    }
}

#[test]
fn f23_the_bytes_of_version_1_stay_what_they_are() {
    let log = LogId(uuid::Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff));
    let header = FrameHeader {
        payload_bytes: 5,
        records: 2,
        first_offset: 7,
        durable_offset: 0,
        epoch: 3,
        segment: 4,
        position: 4096,
        payload_crc: crc32c::crc32c(b"hello"),
        is_gap: false,
    };
    // Computed by another implementation, from the drawings in docs/formats/wal.md.
    let mut frame = Vec::new();
    header.encode(&mut frame);
    seal_frame(log, &mut frame, 6);
    assert_eq!(
        hex(&frame),
        "4c4746316222e38a0500000002000000070000000000000006000000000000000300000000000000040000000000000000100000000000004cbb719a00000000"
    );
    assert_eq!(FrameHeader::decode(log, &frame), Ok(FrameHeader { durable_offset: 6, ..header }));
    let segment = SegmentHeader { log, segment: 4, epoch: 3 }.encode();
    assert_eq!(
        hex(&segment[..48]),
        "4c4757414c5345478a33a0680100000000112233445566778899aabbccddeeff04000000000000000300000000000000"
    );
    assert!(segment.len() == 4096 && segment[48..].iter().all(|byte| *byte == 0));
    let meta = Meta { state: MetaState::Made, log, epoch: 3, first_segment: 4, first_offset: 7 };
    assert_eq!(
        hex(&meta.encode()),
        "4c4757414c4c4f473f3aa4f40100010000112233445566778899aabbccddeeff030000000000000004000000000000000700000000000000"
    );
    let mark = Mark { durable_offset: 6, count: 9 };
    assert_eq!(hex(&mark.encode(log)), "4c474d4b661ab51706000000000000000900000000000000");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn f25_a_missing_or_damaged_identity_is_refused_and_nothing_is_deleted() {
    let (disk, _) = disk_with_frames(16);
    for name in [META_NAME, MARK_NAME] {
        let path = Path::new(DIR).join(name);
        for at in [None, Some(0), Some(9), Some(20)] {
            let damaged = disk.kill();
            match at {
                None => damaged.remove(&path).unwrap(),
                Some(at) => damaged
                    .tamper(&path, |bytes| {
                        for slot in (at..bytes.len()).step_by(512) {
                            bytes[slot] ^= 1;
                        }
                    })
                    .unwrap(),
            }
            let before = damaged.list(Path::new(DIR)).unwrap();
            assert!(matches!(refusal(&damaged), OpenError::Identity { file, .. } if file == path), "{name} {at:?}");
            assert_eq!(damaged.list(Path::new(DIR)).unwrap(), before);
        }
    }
}

#[test]
fn one_spoilt_slot_of_the_mark_is_no_damage() {
    let (disk, model) = disk_with_frames(16);
    for slot in [0, 512] {
        let torn = disk.kill();
        torn.tamper(&Path::new(DIR).join(MARK_NAME), |bytes| bytes[slot + 9] ^= 1).unwrap();
        model.check(&open(&torn), 16);
    }
    let id = crate::recover::read_meta(&disk, Path::new(DIR)).unwrap().unwrap().log;
    let ahead = Mark { durable_offset: 17, count: 100 };
    disk.tamper(&Path::new(DIR).join(MARK_NAME), |bytes| *bytes = ahead.encode_file(id)).unwrap();
    assert!(
        matches!(try_open(Arc::new(disk), options()), Err(OpenError::Damaged(damage)) if damage.next_offset == Some(17))
    );
}
