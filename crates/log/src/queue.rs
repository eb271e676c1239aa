//! What was appended and is not written yet, and the plan of where it will lie.
//!
//! The place of a frame (segment and position) is fixed when it is appended, under one short lock: so its checksums
//! can be made without the writer, and the quota is known before anything is accepted. The writer takes everything
//! queued as one batch and leaves an empty one behind.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{AppendError, LogError};
use crate::format::{FRAME_HEADER_BYTES, FrameHeader, SEGMENT_HEADER_BYTES, round_to_page};
use crate::ticket::Group;

/// Payloads up to this size are copied into the batch's one buffer; larger ones are kept as they are and written
/// from where they lie. Copying this much takes about as long as the work of one more slice in the write.
const COPY_LIMIT_BYTES: usize = 16 * 1024;

/// A buffer that grew beyond this is given back after its batch.
const KEEP_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// A frame in a batch.
#[derive(Debug, Clone)]
pub(crate) struct FrameSlot {
    pub(crate) segment: u64,
    pub(crate) position: u64,
    pub(crate) bytes: u64,
    pub(crate) end_offset: u64,
    /// Header, and the payload if it was copied, in the batch's buffer.
    pub(crate) copied: Range<usize>,
    /// The payload's parts, if they were kept, in the batch's list.
    pub(crate) kept: Range<usize>,
}

/// Frames that are written together.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) buffer: Vec<u8>,
    pub(crate) kept: Vec<Bytes>,
    pub(crate) frames: Vec<FrameSlot>,
    pub(crate) bytes: usize,
    pub(crate) group: Arc<Group>,
}

impl Batch {
    /// Empties it for the next use, with a new group.
    pub(crate) fn reset(&mut self) {
        self.buffer.clear();
        self.buffer.shrink_to(KEEP_BUFFER_BYTES);
        self.kept.clear();
        self.frames.clear();
        self.bytes = 0;
        self.group = Arc::default();
    }
}

/// A payload that is about to be appended.
pub(crate) struct Payload<'a> {
    pub(crate) parts: &'a [Bytes],
    pub(crate) bytes: u32,
    pub(crate) crc: u32,
}

impl<'a> Payload<'a> {
    /// Measures and sums up the parts.
    pub(crate) fn new(parts: &'a [Bytes], limit_bytes: usize) -> Result<Self, AppendError> {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        let too_large = AppendError::TooLarge { bytes, limit_bytes };
        let length = u32::try_from(bytes).map_err(|_| too_large.clone())?;
        if bytes > limit_bytes {
            return Err(too_large);
        }
        let crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        Ok(Self { parts, bytes: length, crc })
    }
}

/// A segment and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) segment: u64,
    pub(crate) bytes: u64,
}

/// Where the next frame goes, and which segments there are and will be.
pub(crate) struct Layout {
    pub(crate) segment: u64,
    pub(crate) position: u64,
    pub(crate) capacity: u64,
    /// All segments together, those being prepared included.
    pub(crate) total_bytes: u64,
    pub(crate) segment_count: u64,
    pub(crate) quota_bytes: u64,
    pub(crate) max_segment_bytes: u64,
    /// Segments after `segment` that are prepared or will be, in order.
    pub(crate) promised: VecDeque<Room>,
    /// Of these and of those already in use, the ones that must still be prepared.
    pub(crate) to_prepare: VecDeque<Room>,
    /// Why the disk has no room for the next one.
    pub(crate) out_of_room: Option<Arc<str>>,
}

/// How fast the segments of a new log grow to full size.
const GROWTH: u64 = 4;

/// The first segment of a new log is zeroed while its opener waits: some milliseconds for this much.
pub(crate) const FIRST_SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

impl Layout {
    /// The size of the segment after one of `capacity` bytes.
    fn size_after(&self, capacity: u64) -> u64 {
        round_to_page(capacity.saturating_mul(GROWTH).max(FIRST_SEGMENT_BYTES).min(self.max_segment_bytes))
    }

    /// The size that the next segment needs if it must hold a frame of `frame_bytes`.
    fn next_size(&self, frame_bytes: u64) -> u64 {
        self.size_after(self.capacity).max(round_to_page(SEGMENT_HEADER_BYTES + frame_bytes))
    }

    /// Promises the next segment if none is, and the quota allows it.
    pub(crate) fn promise_ahead(&mut self) {
        let size = self.size_after(self.capacity);
        if self.promised.is_empty() && self.out_of_room.is_none() && self.total_bytes + size <= self.quota_bytes {
            self.promise(size);
        }
    }

    fn promise(&mut self, bytes: u64) {
        let room = Room { segment: self.segment + 1, bytes };
        self.total_bytes += bytes;
        self.segment_count += 1;
        self.promised.push_back(room);
        self.to_prepare.push_back(room);
    }

    /// Gives a frame its place. Returns the new segment if it is the first in one.
    fn place(&mut self, frame_bytes: u64) -> Result<Option<Room>, AppendError> {
        if self.position + frame_bytes <= self.capacity {
            return Ok(None);
        }
        let needed = self.next_size(frame_bytes);
        let promised = self.promised.front().copied();
        let prepared =
            promised.is_some_and(|room| !self.to_prepare.iter().any(|waiting| waiting.segment == room.segment));
        if let Some(reason) = self.out_of_room.as_ref().filter(|_| !prepared) {
            return Err(AppendError::OutOfRoom { reason: Arc::clone(reason) });
        }
        let least = promised.map_or(needed, |room| room.bytes.max(round_to_page(SEGMENT_HEADER_BYTES + frame_bytes)));
        let more = least - promised.map_or(0, |room| room.bytes);
        // A lone segment cannot be trimmed: without a second one a quota that was made smaller would block for ever.
        if self.segment_count > 1 && self.total_bytes + more > self.quota_bytes {
            return Err(AppendError::QuotaFull {
                used_bytes: self.total_bytes,
                quota_bytes: self.quota_bytes,
                needed_bytes: more,
            });
        }
        if promised.is_none() {
            self.promise(least);
        } else {
            self.total_bytes += more;
        }
        self.promised.pop_front();
        self.segment += 1;
        self.position = SEGMENT_HEADER_BYTES;
        self.capacity = least;
        Ok(Some(Room { segment: self.segment, bytes: least }))
    }
}

/// What was appended and is not written yet.
pub(crate) struct Queue {
    pub(crate) next_offset: u64,
    pub(crate) epoch: u64,
    pub(crate) batch: Batch,
    /// An empty batch to put in the place of the one that is taken.
    pub(crate) spare: Option<Batch>,
    pub(crate) in_flight_bytes: usize,
    pub(crate) max_queued_bytes: usize,
    pub(crate) layout: Layout,
    /// No append is accepted any more.
    pub(crate) stopped: Option<LogError>,
}

/// Where an accepted frame begins.
pub(crate) struct Accepted {
    pub(crate) first_offset: u64,
    pub(crate) group: Arc<Group>,
    /// It is the first frame of this segment.
    pub(crate) new_segment: Option<Room>,
}

impl Queue {
    /// Accepts a frame or refuses it; does no I/O.
    pub(crate) fn push(&mut self, records: u32, payload: &Payload<'_>) -> Result<Accepted, AppendError> {
        if let Some(error) = &self.stopped {
            return Err(AppendError::Stopped(error.clone()));
        }
        let frame_bytes = FRAME_HEADER_BYTES + payload.bytes as usize;
        let waiting = self.batch.bytes + self.in_flight_bytes;
        if waiting > 0 && waiting + frame_bytes > self.max_queued_bytes {
            return Err(AppendError::QueueFull { queued_bytes: waiting, limit_bytes: self.max_queued_bytes });
        }
        let new_segment = self.layout.place(frame_bytes as u64)?;
        let first_offset = self.next_offset;
        self.next_offset += u64::from(records);
        self.add_frame(records, payload, first_offset, frame_bytes);
        Ok(Accepted { first_offset, group: Arc::clone(&self.batch.group), new_segment })
    }

    fn add_frame(&mut self, records: u32, payload: &Payload<'_>, first_offset: u64, frame_bytes: usize) {
        let batch = &mut self.batch;
        let (copied_from, kept_from) = (batch.buffer.len(), batch.kept.len());
        let header = FrameHeader {
            payload_bytes: payload.bytes,
            records,
            first_offset,
            durable_offset: 0,
            epoch: self.epoch,
            segment: self.layout.segment,
            position: self.layout.position,
            payload_crc: payload.crc,
            is_gap: false,
        };
        header.encode(&mut batch.buffer);
        if payload.bytes as usize <= COPY_LIMIT_BYTES {
            for part in payload.parts {
                batch.buffer.extend_from_slice(part);
            }
        } else {
            batch.kept.extend(payload.parts.iter().filter(|part| !part.is_empty()).cloned());
        }
        batch.frames.push(FrameSlot {
            segment: self.layout.segment,
            position: self.layout.position,
            bytes: frame_bytes as u64,
            end_offset: self.next_offset,
            copied: copied_from..batch.buffer.len(),
            kept: kept_from..batch.kept.len(),
        });
        batch.bytes += frame_bytes;
        self.layout.position += frame_bytes as u64;
    }

    /// Takes everything that is queued; `None` if nothing is.
    pub(crate) fn take(&mut self) -> Option<Batch> {
        if self.batch.frames.is_empty() {
            return None;
        }
        let empty = self.spare.take().unwrap_or_default();
        let taken = std::mem::replace(&mut self.batch, empty);
        self.in_flight_bytes = taken.bytes;
        Some(taken)
    }

    /// Gives a written batch back.
    pub(crate) fn give_back(&mut self, mut batch: Batch) {
        batch.reset();
        self.in_flight_bytes = 0;
        self.spare = Some(batch);
    }
}
