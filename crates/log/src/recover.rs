//! Looks at what lies in the log's folder, and decides what it means; then mends what may be mended.
//!
//! [`survey`] reads everything and changes nothing. It refuses whatever it cannot explain by a crash. Its rules:
//!
//! 1. Segments run from the first that `log.meta` names, without a gap. Those below it are leftovers of a trimming.
//! 2. Frames follow each other by position, offset and epoch (which never falls). The first place where no such frame
//!    is, is the segment's end. Since a segment is synced before the next one gets its first frame, that frame must
//!    follow on the end; if it does not, the segment is damaged there.
//! 3. The end of the last segment that has frames is the log's end. If the mark, or any frame that can still be found
//!    behind the end, says that more had been synced, acknowledged records are damaged. If not, what lies behind is a
//!    torn tail that nobody was told of.
//! 4. A last segment whose header is missing or blank was being made, and is discarded, if nothing was acknowledged in it.
//!
//! [`mend`] then makes the end firm before anything is appended: frames beyond the mark are written again (a sync that
//! failed may have left them in memory alone), what is behind them is zeroed, and both are synced. It can be
//! interrupted and begun again at every point.

use std::io;
use std::path::{Path, PathBuf};

use lakegate_env::{Disk, DiskFile};
use lakegate_model::LogId;

use crate::error::{Damage, OpenError};
use crate::format::{
    FrameFault, FrameHeader, MARK_FILE_BYTES, Mark, Meta, PAGE_BYTES, SEGMENT_HEADER_BYTES, SegmentFault,
    SegmentHeader, VERSION, parse_segment_name, round_to_page, segment_name,
};
use crate::scan::{Expected, SegmentScan};
use crate::trim::META_NAME;

/// The name of the file that holds the mark.
pub(crate) const MARK_NAME: &str = "synced.mark";

/// How much is written at a time while mending.
const PIECE_BYTES: usize = 1024 * 1024;

/// A segment that was walked through.
#[derive(Debug, Clone)]
pub(crate) struct Walk {
    pub(crate) segment: u64,
    pub(crate) path: PathBuf,
    pub(crate) length: u64,
    pub(crate) frames: u64,
    pub(crate) first_offset: u64,
    pub(crate) next_offset: u64,
    /// Where its frames end.
    pub(crate) end: u64,
    /// What lies there.
    pub(crate) fault: FrameFault,
    pub(crate) last_epoch: u64,
    /// Where its first frame beyond the mark begins; its end if there is none.
    unsynced_from: u64,
    /// The end of what a crash left behind its frames, if there is anything.
    garbage_end: Option<u64>,
}

/// What lies in the log's folder.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) meta: Meta,
    pub(crate) mark: Mark,
    /// In order; the discarded one is not among them.
    pub(crate) walks: Vec<Walk>,
    /// Which of them is the last with frames (or the first, if none has any).
    pub(crate) active: usize,
    pub(crate) next_offset: u64,
    /// Files that mean nothing any more.
    pub(crate) leftovers: Vec<String>,
    pub(crate) spares: Vec<String>,
    /// A segment that was being made, and why it is held for that.
    pub(crate) discarded: Option<(String, SegmentFault)>,
}

/// Reads `log.meta`; `None` if there is no log.
pub(crate) fn read_meta(disk: &dyn Disk, dir: &Path) -> Result<Option<Meta>, OpenError> {
    let file = dir.join(META_NAME);
    match disk.read(&file) {
        Ok(bytes) => match Meta::decode(&bytes) {
            Ok(meta) => Ok(Some(meta)),
            Err(crate::format::MetaFault::Newer(found)) => Err(OpenError::NewerVersion { file, found, known: VERSION }),
            Err(fault) => Err(OpenError::Identity { file, found: fault.to_string() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let names = disk.list(dir).map_err(failed(dir, "listing the folder"))?;
            if names.iter().any(|name| parse_segment_name(name).is_some() || name == MARK_NAME) {
                return Err(OpenError::Identity { file, found: "missing".to_owned() });
            }
            Ok(None)
        }
        Err(error) => Err(failed(dir, "reading log.meta")(error)),
    }
}

pub(crate) fn read_mark(disk: &dyn Disk, dir: &Path, log: LogId) -> Result<Mark, OpenError> {
    let file = dir.join(MARK_NAME);
    let bytes = match disk.read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Identity { file, found: "missing".to_owned() });
        }
        Err(error) => return Err(failed(dir, "reading the mark")(error)),
    };
    let whole = bytes.len() == MARK_FILE_BYTES;
    let mark = Mark::decode_file(log, &bytes).filter(|_| whole);
    mark.ok_or_else(|| OpenError::Identity { file, found: "damaged, or of another log".to_owned() })
}

/// Whether somebody writes while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    Stopped,
    /// Only what the mark covers is looked at.
    Running,
}

/// Reads everything, changes nothing.
pub(crate) fn survey(disk: &dyn Disk, dir: &Path, meta: Meta, liveness: Liveness) -> Result<Survey, OpenError> {
    let mark = read_mark(disk, dir, meta.log)?;
    let names = disk.list(dir).map_err(failed(dir, "listing the folder"))?;
    let numbers: Vec<u64> = names.iter().filter_map(|name| parse_segment_name(name)).collect();
    let live: Vec<u64> = numbers.iter().copied().filter(|number| *number >= meta.first_segment).collect();
    check_row(dir, &meta, &mark, &live)?;
    let mut survey = Survey {
        meta,
        mark,
        walks: Vec::new(),
        active: 0,
        next_offset: meta.first_offset,
        leftovers: numbers
            .iter()
            .filter(|number| **number < meta.first_segment)
            .map(|number| segment_name(*number))
            .collect(),
        spares: names.iter().filter(|name| name.starts_with("spare-")).cloned().collect(),
        discarded: None,
    };
    survey.leftovers.extend(names.iter().filter(|name| name.starts_with("wal-") && name.ends_with(".tmp")).cloned());
    let mut scans = Vec::new();
    let mut least_epoch = 0;
    for number in &live {
        if liveness == Liveness::Running && !survey.walks.is_empty() && survey.next_offset >= mark.durable_offset {
            break;
        }
        let is_last = live.last() == Some(number) && live.len() > 1;
        let Some((walk, scan)) = walk_segment(disk, dir, &mut survey, *number, least_epoch, is_last)? else { continue };
        if walk.frames > 0 {
            survey.active = survey.walks.len();
            survey.next_offset = walk.next_offset;
            least_epoch = walk.last_epoch;
        }
        survey.walks.push(walk);
        scans.push(scan);
    }
    if liveness == Liveness::Running && survey.next_offset >= mark.durable_offset {
        return Ok(survey);
    }
    judge_tail(&mut survey, &mut scans).map_err(failed(dir, "reading a segment"))??;
    Ok(survey)
}

fn check_row(dir: &Path, meta: &Meta, mark: &Mark, live: &[u64]) -> Result<(), OpenError> {
    for (expected, number) in (meta.first_segment..).zip(live) {
        if *number != expected {
            let reason = format!("segment {number} is there");
            return Err(OpenError::MissingSegment { dir: dir.to_path_buf(), segment: expected, reason });
        }
    }
    if live.is_empty() {
        let reason = format!(
            "records {} up to (not including) {} were acknowledged",
            meta.first_offset,
            mark.durable_offset.max(meta.first_offset)
        );
        return Err(OpenError::MissingSegment { dir: dir.to_path_buf(), segment: meta.first_segment, reason });
    }
    Ok(())
}

/// Walks through one segment; `None` if it is to be discarded.
fn walk_segment(
    disk: &dyn Disk,
    dir: &Path,
    survey: &mut Survey,
    number: u64,
    least_epoch: u64,
    may_discard: bool,
) -> Result<Option<(Walk, SegmentScan)>, OpenError> {
    let name = segment_name(number);
    let path = dir.join(&name);
    let reading = || failed(dir, "reading a segment");
    let file = disk.open_read(&path).map_err(reading())?;
    let mut scan = SegmentScan::new(file, survey.meta.log, number).map_err(reading())?;
    let first_page = scan.bytes_at(0, usize::try_from(SEGMENT_HEADER_BYTES).unwrap_or(4096)).map_err(reading())?;
    let expected = survey.next_offset;
    match check_header(&path, &first_page, survey.meta.log, number, expected) {
        Ok(Ok(())) => {}
        Ok(Err(fault)) if may_discard && scan.find_header(0).map_err(reading())?.is_none() => {
            survey.discarded = Some((name, fault));
            return Ok(None);
        }
        Ok(Err(fault)) => {
            let damage =
                Damage { file: path, position: 0, found: fault.to_string(), first_offset: expected, next_offset: None };
            return Err(OpenError::Damaged(damage));
        }
        Err(error) => return Err(error),
    }
    let first = scan.peek(Expected { first_offset: None, least_epoch }).map_err(reading())?;
    if let Ok(header) = first
        && header.first_offset != expected
    {
        return Err(OpenError::Damaged(broken_chain(survey, &path, &header)));
    }
    let walk =
        walk_frames(&mut scan, path, number, expected, least_epoch, survey.mark.durable_offset).map_err(reading())?;
    Ok(Some((walk, scan)))
}

/// Outer error: never discardable. Inner: perhaps a segment that was being made.
fn check_header(
    path: &Path,
    page: &[u8],
    log: LogId,
    number: u64,
    expected: u64,
) -> Result<Result<(), SegmentFault>, OpenError> {
    match SegmentHeader::decode(page) {
        Ok(header) if header.log != log => {
            Err(OpenError::WrongLog { file: path.to_path_buf(), expected: log, found: header.log })
        }
        Ok(header) if header.segment != number => {
            Err(OpenError::MisplacedSegment { file: path.to_path_buf(), expected: number, found: header.segment })
        }
        Ok(_) => Ok(Ok(())),
        Err(SegmentFault::Newer(found)) => {
            Err(OpenError::NewerVersion { file: path.to_path_buf(), found, known: VERSION })
        }
        Err(fault @ (SegmentFault::Short | SegmentFault::Blank)) => Ok(Err(fault)),
        Err(fault @ SegmentFault::Broken) => Err(OpenError::Damaged(Damage {
            file: path.to_path_buf(),
            position: 0,
            found: fault.to_string(),
            first_offset: expected,
            next_offset: None,
        })),
    }
}

/// The damage when a segment does not follow on the one before.
fn broken_chain(survey: &Survey, path: &Path, header: &FrameHeader) -> Damage {
    let expected = survey.next_offset;
    let before = survey.walks.get(survey.active).filter(|_| header.first_offset > expected);
    let (file, position, found) = match before {
        Some(walk) => (walk.path.clone(), walk.end, walk.fault.to_string()),
        None => (
            path.to_path_buf(),
            SEGMENT_HEADER_BYTES,
            format!("it begins with record {}, not {expected}", header.first_offset),
        ),
    };
    Damage {
        file,
        position,
        found,
        first_offset: expected,
        next_offset: Some(header.first_offset).filter(|next| *next > expected),
    }
}

fn walk_frames(
    scan: &mut SegmentScan,
    path: PathBuf,
    segment: u64,
    from_offset: u64,
    least_epoch: u64,
    mark: u64,
) -> io::Result<Walk> {
    let mut walk = Walk {
        segment,
        path,
        length: scan.length,
        frames: 0,
        first_offset: from_offset,
        next_offset: from_offset,
        end: scan.position,
        fault: FrameFault::NoFrame,
        last_epoch: least_epoch,
        unsynced_from: u64::MAX,
        garbage_end: None,
    };
    loop {
        match scan.next(Expected { first_offset: Some(walk.next_offset), least_epoch: walk.last_epoch })? {
            Ok((header, _)) => {
                walk.frames += 1;
                walk.next_offset = header.next_offset();
                walk.last_epoch = header.epoch;
                if walk.next_offset > mark {
                    walk.unsynced_from = walk.unsynced_from.min(walk.end);
                }
                walk.end = scan.position;
            }
            Err(fault) => {
                walk.fault = fault;
                walk.unsynced_from = walk.unsynced_from.min(walk.end);
                return Ok(walk);
            }
        }
    }
}

/// Tells a torn tail from damage to what was acknowledged, in the last segment with frames and those after it.
fn judge_tail(survey: &mut Survey, scans: &mut [SegmentScan]) -> io::Result<Result<(), OpenError>> {
    let next_offset = survey.next_offset;
    let active = survey.active;
    let mut proven = survey.mark.durable_offset;
    let mut found_at = None;
    for (at, (walk, scan)) in survey.walks.iter_mut().zip(scans).enumerate().skip(active) {
        // A segment that was prepared and never begun need not be read through.
        if at > active && scan.is_blank(walk.end)? {
            continue;
        }
        let mut from = walk.end;
        while let Some(header) = scan.find_header(from)? {
            from = header.position + 1;
            walk.garbage_end =
                Some(walk.garbage_end.unwrap_or(0).max((header.position + header.bytes()).min(walk.length)));
            if header.durable_offset > next_offset {
                proven = proven.max(header.durable_offset);
                found_at.get_or_insert(at);
            }
        }
    }
    if proven <= next_offset {
        return Ok(Ok(()));
    }
    let at = found_at.unwrap_or(active);
    Ok(survey.walks.get(at).map_or(Ok(()), |walk| {
        Err(OpenError::Damaged(Damage {
            file: walk.path.clone(),
            position: walk.end,
            found: walk.fault.to_string(),
            first_offset: next_offset,
            next_offset: Some(proven),
        }))
    }))
}

/// Makes the end of the log firm, and removes what means nothing any more.
pub(crate) fn mend(disk: &dyn Disk, dir: &Path, survey: &Survey) -> io::Result<()> {
    if let Some((name, fault)) = &survey.discarded {
        tracing::warn!(file = %name, found = %fault, "a segment that was being made when the log last stopped is discarded");
        disk.remove(&dir.join(name))?;
    }
    for name in &survey.leftovers {
        tracing::info!(file = %name, "a leftover of the log's last run is removed");
        disk.remove(&dir.join(name))?;
    }
    if survey.discarded.is_some() || !survey.leftovers.is_empty() {
        disk.sync_dir(dir)?;
    }
    for walk in survey.walks.iter().skip(survey.active) {
        let file = disk.open(&walk.path)?;
        if walk.end > walk.unsynced_from {
            rewrite(&*file, walk.unsynced_from, walk.end)?;
        }
        if let Some(garbage_end) = walk.garbage_end {
            tracing::warn!(
                file = %walk.path.display(), position = walk.end, found = %walk.fault, next_offset = survey.next_offset,
                "a torn tail that was never acknowledged is cut off"
            );
            zero(&*file, walk.end, garbage_end)?;
        }
        // What is torn may have lost its header, so that no end of it is known: one page at least.
        zero(&*file, walk.end, round_to_page(walk.end).max(walk.end + 64).min(walk.length))?;
        file.sync_data()?;
    }
    Ok(())
}

/// Writes what is read once more, so that the next sync says something about it.
fn rewrite(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    let mut buffer = vec![0; PIECE_BYTES];
    while at < to {
        let length = usize::try_from(to - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let piece = buffer.get_mut(..length).unwrap_or_default();
        let count = lakegate_env::disk::read_full_at(file, piece, at)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_all_at(piece.get(..count).unwrap_or_default(), at)?;
        at += count as u64;
    }
    Ok(())
}

fn zero(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
    let mut at = from;
    while at < to {
        let length = usize::try_from(to - at).unwrap_or(usize::MAX).min(ZEROS.len());
        file.write_all_at(ZEROS.get(..length).unwrap_or_default(), at)?;
        at += length as u64;
    }
    Ok(())
}

/// Says what was being done when the disk failed.
pub(crate) fn failed(dir: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    let dir = dir.to_path_buf();
    move |source| OpenError::Disk { dir, doing, source }
}
