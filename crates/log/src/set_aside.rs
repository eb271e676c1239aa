//! Gives up records that cannot be read, so that the log can be opened again.
//!
//! The damaged segment's file is kept beside the log under another name. In its place comes one with every frame that
//! is still whole, where it was; what cannot be read is covered by a gap: a frame without content that stands for the
//! lost records, so that offsets go on and the loss stays visible. Nothing does this by itself: it is an
//! administrator's decision, and the outcome names every record given up.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use lakegate_env::Disk;

use crate::error::OpenError;
use crate::format::{
    FRAME_HEADER_BYTES, FrameHeader, Meta, SEGMENT_HEADER_BYTES, SegmentHeader, round_to_page, seal_frame, segment_name,
};
use crate::inspect::meta_of;
use crate::recover::{failed, read_mark};
use crate::scan::{Expected, SegmentScan};

/// What was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAsideOutcome {
    /// Where the damaged file is kept; `None` if there was none.
    pub kept_as: Option<PathBuf>,
    /// The offsets of the records that are lost.
    pub lost: Vec<Range<u64>>,
}

/// Why nothing was set aside. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SetAsideError {
    /// The log cannot be looked at.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// There is nothing to give up in it.
    #[error("segment {segment} has no damage; look for the segment that `lakegate wal verify` names")]
    Undamaged {
        /// The segment.
        segment: u64,
    },
    /// Damage before it must be dealt with first.
    #[error("segment {segment} before it is damaged too; set that one aside first")]
    EarlierDamage {
        /// The segment.
        segment: u64,
    },
    /// So many cannot be lost in one segment.
    #[error("the damage seems to span {0} records, more than a segment can hold; this needs a look by hand")]
    TooMany(u64),
}

/// Sets a damaged (or missing) segment aside. The log must not be running.
///
/// # Errors
/// See [`SetAsideError`].
pub fn set_aside(disk: &dyn Disk, dir: &Path, segment: u64) -> Result<SetAsideOutcome, SetAsideError> {
    let _lock = disk.lock_dir(dir).map_err(|_| OpenError::InUse { dir: dir.to_path_buf() })?;
    let meta = meta_of(disk, dir)?;
    let synced = read_mark(disk, dir, meta.log)?.durable_offset;
    let reading = || failed(dir, "reading a segment");
    let (begin, least_epoch) = end_of_earlier(disk, dir, &meta, segment)?;
    let end = first_offset_after(disk, dir, &meta, segment).map_err(reading())?.unwrap_or(synced);
    let path = dir.join(segment_name(segment));
    let old = match disk.read(&path) {
        Ok(content) => Some(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(reading()(error).into()),
    };
    let mut content = SegmentHeader { log: meta.log, segment, epoch: meta.epoch }.encode();
    content.extend_from_slice(old.as_deref().and_then(|old| old.get(content.len()..)).unwrap_or_default());
    let mut repair = Repair {
        meta,
        segment,
        content,
        lost: Vec::new(),
        position: SEGMENT_HEADER_BYTES,
        offset: begin,
        epoch: least_epoch,
    };
    if old.is_some() {
        let mut scan =
            SegmentScan::new(disk.open_read(&path).map_err(reading())?, meta.log, segment).map_err(reading())?;
        repair.walk(&mut scan, end).map_err(reading())??;
    }
    if repair.offset < end {
        repair.cover(repair.position + FRAME_HEADER_BYTES as u64, end)?;
    }
    let header_was_whole = old.as_deref().is_some_and(|old| {
        SegmentHeader::decode(old).is_ok_and(|header| header.segment == segment && header.log == meta.log)
    });
    if repair.lost.is_empty() && header_was_whole {
        return Err(SetAsideError::Undamaged { segment });
    }
    let kept_as = old.map(|old| (dir.join(format!("set-aside-{segment:016}-{}", meta.epoch)), old));
    if let Some((kept, old)) = &kept_as {
        disk.write_atomic(kept, old).map_err(failed(dir, "keeping the damaged file"))?;
    }
    disk.write_atomic(&path, &repair.content).map_err(failed(dir, "writing the mended segment"))?;
    Ok(SetAsideOutcome { kept_as: kept_as.map(|(kept, _)| kept), lost: repair.lost })
}

/// A segment that is being put together anew.
struct Repair {
    meta: Meta,
    segment: u64,
    content: Vec<u8>,
    lost: Vec<Range<u64>>,
    position: u64,
    offset: u64,
    epoch: u64,
}

impl Repair {
    /// Keeps every whole frame below `end`, covers what is between them.
    fn walk(&mut self, scan: &mut SegmentScan, end: u64) -> io::Result<Result<(), SetAsideError>> {
        let mut look_from = self.position;
        loop {
            scan.position = look_from;
            let whole = scan.next(Expected { first_offset: None, least_epoch: self.epoch })?;
            let fits = whole.ok().filter(|(header, _)| {
                let adjoins = look_from == self.position && header.first_offset == self.offset;
                let leaves_gap =
                    look_from >= self.position + FRAME_HEADER_BYTES as u64 && header.first_offset > self.offset;
                adjoins || (leaves_gap && header.next_offset() <= end)
            });
            if let Some((header, _)) = fits {
                if header.position > self.position
                    && let Err(error) = self.cover(header.position, header.first_offset)
                {
                    return Ok(Err(error));
                }
                (self.position, self.offset, self.epoch) = (scan.position, header.next_offset(), header.epoch);
                look_from = self.position;
                continue;
            }
            match scan.find_header(look_from + 1)? {
                Some(header) if self.offset < end => look_from = header.position,
                _ => return Ok(Ok(())),
            }
        }
    }

    /// Covers the bytes up to `to` with a gap that stands for the records up to `next_offset`.
    fn cover(&mut self, to: u64, next_offset: u64) -> Result<(), SetAsideError> {
        let records = next_offset - self.offset;
        let too_many = || SetAsideError::TooMany(records);
        let payload_bytes = u32::try_from(to - self.position - FRAME_HEADER_BYTES as u64).map_err(|_| too_many())?;
        let payload = vec![0; payload_bytes as usize];
        let header = FrameHeader {
            payload_bytes,
            records: u32::try_from(records).map_err(|_| too_many())?,
            first_offset: self.offset,
            durable_offset: 0,
            epoch: self.epoch,
            segment: self.segment,
            position: self.position,
            payload_crc: crc32c::crc32c(&payload),
            is_gap: true,
        };
        let mut gap = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
        header.encode(&mut gap);
        seal_frame(self.meta.log, &mut gap, 0);
        gap.extend_from_slice(&payload);
        let end = usize::try_from(to).map_err(|_| too_many())?;
        let start = end - gap.len();
        if self.content.len() < end {
            self.content.resize(usize::try_from(round_to_page(to)).map_err(|_| too_many())?, 0);
        }
        if let Some(place) = self.content.get_mut(start..end) {
            place.copy_from_slice(&gap);
        }
        self.lost.push(self.offset..next_offset);
        (self.position, self.offset) = (to, next_offset);
        Ok(())
    }
}

/// Where the segments before it end: offset and epoch.
fn end_of_earlier(disk: &dyn Disk, dir: &Path, meta: &Meta, segment: u64) -> Result<(u64, u64), SetAsideError> {
    let (mut offset, mut epoch) = (meta.first_offset, 0);
    for earlier in meta.first_segment..segment {
        let reading = || failed(dir, "reading a segment");
        let file = disk
            .open_read(&dir.join(segment_name(earlier)))
            .map_err(|_| SetAsideError::EarlierDamage { segment: earlier })?;
        let mut scan = SegmentScan::new(file, meta.log, earlier).map_err(reading())?;
        while let Ok((header, _)) =
            scan.next(Expected { first_offset: Some(offset), least_epoch: epoch }).map_err(reading())?
        {
            (offset, epoch) = (header.next_offset(), header.epoch);
        }
        // Whole frames of later records behind its end: the damage is there.
        let end = scan.position;
        if let Some(later) = scan.find_header(end).map_err(reading())?
            && later.durable_offset > offset
        {
            return Err(SetAsideError::EarlierDamage { segment: earlier });
        }
    }
    Ok((offset, epoch))
}

/// The first offset in the segments after it.
fn first_offset_after(disk: &dyn Disk, dir: &Path, meta: &Meta, segment: u64) -> io::Result<Option<u64>> {
    for later in segment + 1.. {
        let path = dir.join(segment_name(later));
        if !disk.exists(&path)? {
            break;
        }
        let mut scan = SegmentScan::new(disk.open_read(&path)?, meta.log, later)?;
        if let Ok(header) = scan.peek(Expected { first_offset: None, least_epoch: 0 })? {
            return Ok(Some(header.first_offset));
        }
    }
    Ok(None)
}
