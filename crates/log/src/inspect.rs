//! Looks into a log's folder without opening the log: for `lakegate wal ls`, `verify` and `dump`. Works beside a
//! running log, of which it then sees what was synced when it began; changes nothing.
//!
//! [`set_aside`] is the exception: it gives up records that cannot be read, and needs the log stopped.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use lakegate_env::Disk;
use lakegate_model::LogId;

use crate::error::{Damage, OpenError};
use crate::format::{Meta, MetaState, SegmentHeader, parse_segment_name};
use crate::recover::{Liveness, Survey, failed, read_mark, read_meta, survey};
use crate::scan::{Expected, SegmentScan};
use crate::trim::META_NAME;

pub use crate::set_aside::{SetAsideError, SetAsideOutcome, set_aside};

/// What a log's folder holds, by the headers alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogListing {
    /// The log's identity.
    pub id: LogId,
    /// Its newest opening.
    pub epoch: u64,
    /// The oldest offset that counts.
    pub first_offset: u64,
    /// Every record below it was synced, says the mark.
    pub synced_offset: u64,
    /// The segments, oldest first.
    pub segments: Vec<SegmentListing>,
    /// Files to be used again, and their sizes.
    pub spares: Vec<(String, u64)>,
    /// Whether a process has the log open.
    pub in_use: bool,
}

/// One segment's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentListing {
    /// Its number.
    pub segment: u64,
    /// Its file.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The offset of its first record, if it has any that can be read.
    pub first_offset: Option<u64>,
    /// Whether it was trimmed, and only its file is left.
    pub is_trimmed: bool,
    /// What is wrong with its header, if anything.
    pub problem: Option<String>,
}

/// A log whose every frame was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// The log's identity.
    pub id: LogId,
    /// The segments, oldest first.
    pub segments: Vec<VerifiedSegment>,
    /// The offset after the last record that can be read.
    pub next_offset: u64,
    /// Every record below it was synced, says the mark.
    pub synced_offset: u64,
    /// Whether a process has the log open; then only what was synced was looked at.
    pub in_use: bool,
}

/// A segment whose every frame was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedSegment {
    /// Its number.
    pub segment: u64,
    /// Its file.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// How many frames it has.
    pub frames: u64,
    /// Its first offset.
    pub first_offset: u64,
    /// The offset after its last record.
    pub next_offset: u64,
    /// Where its frames end.
    pub end_position: u64,
}

/// A frame and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpedFrame {
    /// The number of its segment.
    pub segment: u64,
    /// Where it begins in the segment.
    pub position: u64,
    /// The opening that wrote it.
    pub epoch: u64,
    /// The offset of its first record.
    pub first_offset: u64,
    /// How many records.
    pub records: u32,
    /// What was synced when it was written.
    pub durable_offset: u64,
    /// Whether it stands for records that were given up.
    pub is_gap: bool,
    /// What was appended.
    pub payload: Bytes,
}

/// Lists what a log's folder holds.
///
/// # Errors
/// There is no log, or its small files cannot be read.
pub fn list(disk: &dyn Disk, dir: &Path) -> Result<LogListing, OpenError> {
    let meta = meta_of(disk, dir)?;
    let mark = read_mark(disk, dir, meta.log)?;
    let reading = || failed(dir, "listing the folder");
    let (mut segments, mut spares) = (Vec::new(), Vec::new());
    for name in disk.list(dir).map_err(reading())? {
        let file = dir.join(&name);
        if name.starts_with("spare-") {
            spares.push((name, disk.len(&file).map_err(reading())?));
        } else if let Some(segment) = parse_segment_name(&name) {
            segments.push(list_segment(disk, &meta, segment, file).map_err(reading())?);
        }
    }
    let in_use = is_in_use(disk, dir);
    Ok(LogListing {
        id: meta.log,
        epoch: meta.epoch,
        first_offset: meta.first_offset,
        synced_offset: mark.durable_offset,
        segments,
        spares,
        in_use,
    })
}

fn list_segment(disk: &dyn Disk, meta: &Meta, segment: u64, file: PathBuf) -> std::io::Result<SegmentListing> {
    let mut scan = SegmentScan::new(disk.open_read(&file)?, meta.log, segment)?;
    let problem = match SegmentHeader::decode(&scan.bytes_at(0, 4096)?) {
        Ok(header) if header.log != meta.log => Some(format!("it belongs to log {}", header.log)),
        Ok(header) if header.segment != segment => Some(format!("it holds segment {}", header.segment)),
        Ok(_) => None,
        Err(fault) => Some(fault.to_string()),
    };
    let first = scan.peek(Expected { first_offset: None, least_epoch: 0 })?;
    let first_offset = first.ok().map(|header| header.first_offset);
    Ok(SegmentListing {
        segment,
        file,
        bytes: scan.length,
        first_offset,
        is_trimmed: segment < meta.first_segment,
        problem,
    })
}

/// Reads every frame and checks it.
///
/// # Errors
/// The reason for which the log would refuse to open.
pub fn verify(disk: &dyn Disk, dir: &Path) -> Result<VerifyReport, OpenError> {
    let (survey, in_use) = survey_now(disk, dir)?;
    let segments = survey.walks.into_iter().map(|walk| VerifiedSegment {
        segment: walk.segment,
        file: walk.path,
        bytes: walk.length,
        frames: walk.frames,
        first_offset: walk.first_offset,
        next_offset: walk.next_offset,
        end_position: walk.end,
    });
    Ok(VerifyReport {
        id: survey.meta.log,
        segments: segments.collect(),
        next_offset: survey.next_offset,
        synced_offset: survey.mark.durable_offset,
        in_use,
    })
}

/// Reads up to `limit` frames from the one that holds `from_offset`, as far as they are whole. Goes through damaged
/// logs too, up to the damage, which is given beside what was read.
///
/// # Errors
/// There is no log, or the disk failed.
pub fn dump(
    disk: &dyn Disk,
    dir: &Path,
    from_offset: u64,
    limit: usize,
) -> Result<(Vec<DumpedFrame>, Option<Damage>), OpenError> {
    let meta = meta_of(disk, dir)?;
    let synced = read_mark(disk, dir, meta.log)?.durable_offset;
    let reading = || failed(dir, "reading a segment");
    let mut numbers: Vec<u64> =
        disk.list(dir).map_err(reading())?.iter().filter_map(|name| parse_segment_name(name)).collect();
    numbers.retain(|number| *number >= meta.first_segment);
    let (mut dumped, mut next, mut least_epoch, mut last_fault) = (Vec::new(), meta.first_offset, 0, None);
    for segment in numbers {
        let file = dir.join(crate::format::segment_name(segment));
        let mut scan =
            disk.open_read(&file).and_then(|opened| SegmentScan::new(opened, meta.log, segment)).map_err(reading())?;
        while dumped.len() < limit {
            let position = scan.position;
            match scan.next(Expected { first_offset: Some(next), least_epoch }).map_err(reading())? {
                Ok((header, payload)) => {
                    (next, least_epoch) = (header.next_offset(), header.epoch);
                    if next > from_offset {
                        dumped.push(DumpedFrame {
                            segment,
                            position,
                            epoch: header.epoch,
                            first_offset: header.first_offset,
                            records: header.records,
                            durable_offset: header.durable_offset,
                            is_gap: header.is_gap,
                            payload,
                        });
                    }
                }
                Err(fault) => {
                    if scan.position > crate::format::SEGMENT_HEADER_BYTES || last_fault.is_none() {
                        last_fault = Some((file.clone(), position, fault));
                    }
                    break;
                }
            }
        }
    }
    let damage = last_fault.filter(|_| dumped.len() < limit && next < synced).map(|(file, position, fault)| Damage {
        file,
        position,
        found: fault.to_string(),
        first_offset: next,
        next_offset: Some(synced),
    });
    Ok((dumped, damage))
}

/// Surveys the log; the lock is held meanwhile unless another process has it.
fn survey_now(disk: &dyn Disk, dir: &Path) -> Result<(Survey, bool), OpenError> {
    let lock = disk.lock_dir(dir);
    let liveness = if lock.is_ok() { Liveness::Stopped } else { Liveness::Running };
    let surveyed = survey(disk, dir, meta_of(disk, dir)?, liveness);
    Ok((surveyed?, lock.is_err()))
}

fn is_in_use(disk: &dyn Disk, dir: &Path) -> bool {
    disk.lock_dir(dir).is_err()
}

pub(crate) fn meta_of(disk: &dyn Disk, dir: &Path) -> Result<Meta, OpenError> {
    let missing = || OpenError::Identity {
        file: dir.join(META_NAME),
        found: "missing: there is no log here, or not a whole one".to_owned(),
    };
    read_meta(disk, dir)?.filter(|meta| meta.state == MetaState::Made).ok_or_else(missing)
}
