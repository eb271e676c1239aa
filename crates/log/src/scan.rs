//! Walks the frames of one segment, for recovery, readers and inspection alike.

use std::io;

use bytes::Bytes;
use lakegate_env::DiskFile;
use lakegate_env::disk::read_full_at;
use lakegate_model::LogId;

use crate::format::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameFault, FrameHeader, SEGMENT_HEADER_BYTES};

/// How much is read at a time, if a frame does not need more.
const WINDOW_BYTES: usize = 512 * 1024;

/// No frame has a larger payload, whatever a damaged length says; checked before any memory is taken for it.
pub(crate) const MAX_PAYLOAD_BYTES: u32 = 512 * 1024 * 1024;

/// What the frame at a position must fit to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Its first offset; `None` accepts any.
    pub(crate) first_offset: Option<u64>,
    /// Its epoch is this or higher: what is lower was left behind by a crash.
    pub(crate) least_epoch: u64,
}

/// One segment, read from the front.
pub(crate) struct SegmentScan {
    file: Box<dyn DiskFile>,
    log: LogId,
    segment: u64,
    pub(crate) length: u64,
    /// Where the next frame begins.
    pub(crate) position: u64,
    window: Bytes,
    window_start: u64,
}

impl SegmentScan {
    /// Begins at the first frame.
    pub(crate) fn new(file: Box<dyn DiskFile>, log: LogId, segment: u64) -> io::Result<Self> {
        let length = file.len()?;
        Ok(Self { file, log, segment, length, position: SEGMENT_HEADER_BYTES, window: Bytes::new(), window_start: 0 })
    }

    /// Forgets what was read ahead, which may have been overwritten since.
    pub(crate) fn forget_window(&mut self) {
        self.window = Bytes::new();
    }

    /// The frame at the present position, without moving.
    pub(crate) fn peek(&mut self, expected: Expected) -> io::Result<Result<FrameHeader, FrameFault>> {
        let bytes = self.bytes_at(self.position, FRAME_HEADER_BYTES)?;
        let header = match FrameHeader::decode(self.log, &bytes) {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let in_place = header.segment == self.segment && header.position == self.position;
        let in_order = expected.first_offset.is_none_or(|offset| offset == header.first_offset);
        if !in_place || !in_order || header.epoch < expected.least_epoch {
            return Ok(Err(header.misplaced()));
        }
        if header.payload_bytes > MAX_PAYLOAD_BYTES {
            return Ok(Err(FrameFault::TooLong(header.payload_bytes)));
        }
        if self.position + header.bytes() > self.length {
            return Ok(Err(FrameFault::CutOff));
        }
        Ok(Ok(header))
    }

    /// The frame at the present position, its payload checked, and moves behind it. After a fault the position is
    /// that of the frame with the fault.
    pub(crate) fn next(&mut self, expected: Expected) -> io::Result<Result<(FrameHeader, Bytes), FrameFault>> {
        let header = match self.peek(expected)? {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let payload = self.bytes_at(self.position + FRAME_HEADER_BYTES as u64, header.payload_bytes as usize)?;
        if payload.len() < header.payload_bytes as usize {
            return Ok(Err(FrameFault::CutOff));
        }
        if crc32c::crc32c(&payload) != header.payload_crc {
            return Ok(Err(FrameFault::PayloadChecksum));
        }
        self.position += header.bytes();
        Ok(Ok((header, payload)))
    }

    /// Moves behind a frame whose header was seen, without reading its payload.
    pub(crate) fn skip(&mut self, header: &FrameHeader) {
        self.position += header.bytes();
    }

    /// The next place at or after `from` where a header of this segment lies that is valid there, of whatever epoch
    /// and offset.
    pub(crate) fn find_header(&mut self, from: u64) -> io::Result<Option<FrameHeader>> {
        let mut at = from;
        while at + FRAME_HEADER_BYTES as u64 <= self.length {
            let bytes = self.bytes_at(at, WINDOW_BYTES)?;
            let last = bytes.len().saturating_sub(FRAME_HEADER_BYTES);
            for place in candidates(&bytes).take_while(|place| *place <= last) {
                let header = FrameHeader::decode(self.log, bytes.get(place..).unwrap_or_default()).ok();
                let here = at + place as u64;
                if let Some(header) = header.filter(|header| header.segment == self.segment && header.position == here)
                {
                    return Ok(Some(header));
                }
            }
            at += last as u64 + 1;
        }
        Ok(None)
    }

    /// Whether there is nothing but zeros in the page at `from`.
    pub(crate) fn is_blank(&mut self, from: u64) -> io::Result<bool> {
        Ok(self.bytes_at(from, 4096)?.iter().all(|byte| *byte == 0))
    }

    /// `length` bytes from `position`, fewer at the end of the file.
    pub(crate) fn bytes_at(&mut self, position: u64, length: usize) -> io::Result<Bytes> {
        let inside = position.checked_sub(self.window_start).and_then(|start| usize::try_from(start).ok());
        if let Some(start) = inside
            && start.checked_add(length).is_some_and(|end| end <= self.window.len())
        {
            return Ok(self.window.slice(start..start + length));
        }
        let left = usize::try_from(self.length.saturating_sub(position)).unwrap_or(usize::MAX);
        let mut buffer = vec![0; length.max(WINDOW_BYTES).min(left)];
        let filled = read_full_at(&*self.file, &mut buffer, position)?;
        buffer.truncate(filled);
        self.window = buffer.into();
        self.window_start = position;
        Ok(self.window.slice(..length.min(filled)))
    }
}

/// Where a frame's first bytes lie.
fn candidates(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let [first, ..] = FRAME_MAGIC;
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = bytes.get(at..)?;
            let place = at + rest.iter().position(|byte| *byte == first)?;
            at = place + 1;
            if bytes.get(place..).is_some_and(|here| here.starts_with(&FRAME_MAGIC)) {
                return Some(place);
            }
        }
    })
}
