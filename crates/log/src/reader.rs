//! Reads durable frames while the log is being written.
//!
//! A reader has its own file handles and takes no lock but a short one when it turns to another segment. What lies
//! beyond the durable offset may be half written; it is not looked at, and what was read ahead of it is forgotten.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::error::{Damage, ReadError};
use crate::options::LogMode;
use crate::scan::{Expected, SegmentScan};
use crate::shared::{SegmentEntry, Shared};

/// What one append put into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The offset of its first record.
    pub first_offset: u64,
    /// How many records.
    pub records: u32,
    /// The payload as it was appended.
    pub payload: Bytes,
}

impl Frame {
    /// The offset after its last record.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.first_offset + u64::from(self.records)
    }
}

/// Reads frames in order. When it has caught up with the durable offset it gives `None`; asked again later it goes on.
/// Records that were given up by setting damage aside are skipped with a warning; the next frame's offset shows it.
pub struct Reader {
    shared: Arc<Shared>,
    /// The offset of the next frame, or one within it.
    next_offset: u64,
    open: Option<OpenSegment>,
    failed: bool,
}

struct OpenSegment {
    entry: SegmentEntry,
    scan: SegmentScan,
    /// The offset of the frame at the scan's position.
    at_offset: u64,
    least_epoch: u64,
    /// Frames below it were durable when the window was read.
    window_durable: u64,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, from_offset: u64) -> Result<Self, ReadError> {
        let first_offset = shared.meta.lock().first_offset;
        if from_offset < first_offset && shared.options.mode == LogMode::Durable {
            return Err(ReadError::Trimmed { asked: from_offset, first_offset });
        }
        Ok(Self { shared, next_offset: from_offset, open: None, failed: false })
    }

    /// The offset that is read next.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.next_offset
    }

    fn read_next(&mut self) -> Result<Option<Frame>, ReadError> {
        if self.shared.options.mode == LogMode::Volatile {
            return Ok(None);
        }
        loop {
            let durable = self.shared.durable.load(Ordering::Acquire);
            if self.next_offset >= durable {
                return Ok(None);
            }
            let mut open = match self.open.take() {
                Some(open) => open,
                None => self.open_segment(durable)?,
            };
            if self.is_behind(&open) {
                continue;
            }
            let frame = self.read_frame(&mut open, durable)?;
            self.open = Some(open);
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    /// Whether the segment ends before the next frame.
    fn is_behind(&self, open: &OpenSegment) -> bool {
        let segments = self.shared.segments.lock();
        let next = segments.iter().find(|entry| entry.room.segment > open.entry.room.segment);
        next.is_some_and(|next| open.at_offset >= next.first_offset)
    }

    /// The frame at the scan's position; `None` if it lies before what is asked for, or was given up.
    fn read_frame(&mut self, open: &mut OpenSegment, durable: u64) -> Result<Option<Frame>, ReadError> {
        if open.at_offset >= open.window_durable {
            open.scan.forget_window();
            open.window_durable = durable;
        }
        let expected = Expected { first_offset: Some(open.at_offset), least_epoch: open.least_epoch };
        let file = || self.shared.segment_path(open.entry.room.segment);
        let header = open.scan.peek(expected).map_err(|source| ReadError::Disk { file: file(), source })?;
        if let Ok(header) = &header
            && header.next_offset() <= self.next_offset
        {
            open.scan.skip(header);
            open.at_offset = header.next_offset();
            open.least_epoch = header.epoch;
            return Ok(None);
        }
        let position = open.scan.position;
        let read = open.scan.next(expected).map_err(|source| ReadError::Disk { file: file(), source })?;
        let (header, payload) =
            read.map_err(|fault| self.fault(file(), position, open.at_offset, &fault.to_string()))?;
        open.at_offset = header.next_offset();
        open.least_epoch = header.epoch;
        self.next_offset = header.next_offset();
        if header.is_gap {
            tracing::warn!(
                first_offset = header.first_offset,
                records = header.records,
                "records that were given up are skipped"
            );
            return Ok(None);
        }
        Ok(Some(Frame { first_offset: header.first_offset, records: header.records, payload }))
    }

    fn open_segment(&self, durable: u64) -> Result<OpenSegment, ReadError> {
        let entry = {
            let segments = self.shared.segments.lock();
            segments.iter().rev().find(|entry| entry.first_offset <= self.next_offset).copied()
        };
        let Some(entry) = entry else { return Err(self.trimmed()) };
        let path = self.shared.segment_path(entry.room.segment);
        let opened = self
            .shared
            .disk
            .open_read(&path)
            .and_then(|file| SegmentScan::new(file, self.shared.id, entry.room.segment));
        match opened {
            Ok(scan) => {
                Ok(OpenSegment { entry, scan, at_offset: entry.first_offset, least_epoch: 0, window_durable: durable })
            }
            Err(_) if self.is_trimmed() => Err(self.trimmed()),
            Err(source) => Err(ReadError::Disk { file: path, source }),
        }
    }

    /// A frame that is not there: trimmed meanwhile, its file used again, or damaged.
    fn fault(&self, file: PathBuf, position: u64, first_offset: u64, found: &str) -> ReadError {
        if self.is_trimmed() {
            return self.trimmed();
        }
        ReadError::Damaged(Damage { file, position, found: found.to_owned(), first_offset, next_offset: None })
    }

    fn is_trimmed(&self) -> bool {
        self.next_offset < self.shared.meta.lock().first_offset
    }

    fn trimmed(&self) -> ReadError {
        ReadError::Trimmed { asked: self.next_offset, first_offset: self.shared.meta.lock().first_offset }
    }
}

impl Iterator for Reader {
    type Item = Result<Frame, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let read = self.read_next().transpose();
        self.failed = matches!(read, Some(Err(_)));
        read
    }
}
