//! Arrow IPC, as a file or a stream. Both are read from front to back; a file's footer is not needed for that.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::{Message, MessageHeader, RecordBatch as BatchHeader, root_as_message};

use crate::feed::{Feed, Stream};
use crate::open::Source;
use crate::{Mark, Piece, Pieces, ReadError, ReadOptions, Rows};

/// Reads record batches.
pub(crate) struct ArrowReader {
    source: Source,
    batches: StreamReader<Stream>,
    columns: Option<Vec<usize>>,
    row: u64,
    /// Rows to pass over: those before the mark.
    skip: u64,
    rows: usize,
    pending: Option<arrow::record_batch::RecordBatch>,
}

/// A feed as a stream, each message's lengths held against the file and the limits. The library makes room for what a
/// message claims before it has read it, so that a message is handed on only when its claims were looked at.
struct Messages {
    feed: Feed,
    /// How long the whole is, where that is known. Of packed files it is not.
    total: Option<u64>,
    /// Bytes of the present message that were looked at and are still to be handed on.
    checked: u64,
    most: usize,
}

/// Before each message; older writers leave it out.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// A schema of so many bytes has more columns than are read.
const HEAD_BYTES: usize = 16 << 20;

/// What stands before a packed buffer that is not: its length otherwise.
const NOT_PACKED: i64 = -1;

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The number at a place in a window.
fn length_at(window: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(window.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl Messages {
    /// Whether the window has so many bytes, read if need be.
    fn has(&mut self, bytes: usize) -> io::Result<bool> {
        while self.feed.window().len() < bytes {
            match self.feed.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                // The library takes this kind for the end of the stream.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(invalid(format!("the file ends too early, it is cut off: {e}")));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Looks at the message that begins here.
    fn check(&mut self) -> io::Result<()> {
        let place = self.feed.offset();
        self.has(8)?;
        let window = self.feed.window();
        let before = if window.starts_with(&CONTINUATION) { 4 } else { 0 };
        // That there is no length, or that of the end, is for the library to tell.
        let Some(len) = length_at(window, before) else {
            self.checked = window.len() as u64;
            return Ok(());
        };
        let (len, start) = (len as usize, before + 4);
        if len == 0 {
            self.checked = start as u64;
            return Ok(());
        }
        if len > HEAD_BYTES {
            return Err(invalid(format!(
                "the message at byte {place} claims a head of {len} bytes; at most {HEAD_BYTES} are read"
            )));
        }
        if !self.has(start + len)? {
            return Err(invalid(format!(
                "the message at byte {place} claims a head of {len} bytes; the file ends before"
            )));
        }
        let head = self.feed.window().get(start..start + len).unwrap_or_default().to_vec();
        let message = root_as_message(&head)
            .map_err(|e| invalid(format!("the head of the message at byte {place} cannot be read: {e}")))?;
        let body = self.body_bytes(&message, place, start + len)?;
        let batch = match message.header_type() {
            MessageHeader::RecordBatch => message.header_as_record_batch(),
            MessageHeader::DictionaryBatch => message.header_as_dictionary_batch().and_then(|d| d.data()),
            _ => None,
        };
        if let Some(batch) = batch {
            self.check_buffers(&batch, start + len, body)
                .map_err(|what| invalid(format!("the message at byte {place}: {what}")))?;
        }
        self.checked = (start + len + body) as u64;
        Ok(())
    }

    /// The length of a message's body, once it is known to be there.
    fn body_bytes(&mut self, message: &Message<'_>, place: u64, head: usize) -> io::Result<usize> {
        let claimed = message.bodyLength();
        let wrong =
            |why: String| invalid(format!("the message at byte {place} claims a body of {claimed} bytes; {why}"));
        let body = usize::try_from(claimed).map_err(|_| wrong("none is negative".to_owned()))?;
        if body > self.most {
            return Err(wrong(format!("at most {} are read", self.most)));
        }
        let end = place.saturating_add(head as u64).saturating_add(body as u64);
        if let Some(total) = self.total.filter(|total| end > *total) {
            return Err(wrong(format!("the file has {total} bytes")));
        }
        if self.has(head.saturating_add(body))? { Ok(body) } else { Err(wrong("the file ends before".to_owned())) }
    }

    /// Holds a batch's buffers against its body, and what they unpack to against the limit.
    fn check_buffers(&self, batch: &BatchHeader<'_>, from: usize, len: usize) -> Result<(), String> {
        let body = self.feed.window().get(from..from.saturating_add(len)).unwrap_or_default();
        let packed = batch.compression().is_some();
        let mut room = self.most;
        let Some(buffers) = batch.buffers() else { return Ok(()) };
        for (number, buffer) in buffers.iter().enumerate() {
            let (at, size) = (buffer.offset(), buffer.length());
            let found = usize::try_from(at).ok().zip(usize::try_from(size).ok());
            let found = found.and_then(|(at, size)| body.get(at..at.checked_add(size)?));
            let found =
                found.ok_or_else(|| format!("buffer {number} claims {size} bytes at {at} of a body of {len}"))?;
            let mut made = found.len();
            if packed && !found.is_empty() {
                let head =
                    found.first_chunk::<8>().ok_or_else(|| format!("buffer {number} is packed without a length"))?;
                let claimed = i64::from_le_bytes(*head);
                if claimed != NOT_PACKED {
                    let what = || format!("buffer {number} claims to unpack to {claimed} bytes, which none can");
                    made = usize::try_from(claimed).map_err(|_| what())?;
                }
            }
            room = room.checked_sub(made).ok_or_else(|| {
                format!("buffer {number} claims {made} bytes unpacked; a message may have {} in all", self.most)
            })?;
        }
        Ok(())
    }
}

impl Read for Messages {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.checked == 0 {
            self.check()?;
        }
        let most = usize::try_from(self.checked).unwrap_or(usize::MAX);
        let window = self.feed.window();
        let mut window = window.get(..most.min(window.len())).unwrap_or_default();
        let read = window.read(buffer)?;
        self.feed.consume(read);
        self.checked = self.checked.saturating_sub(read as u64);
        Ok(read)
    }
}

impl ArrowReader {
    pub(crate) fn new(mut source: Source, options: &ReadOptions, resume: Option<Mark>) -> Result<Self, ReadError> {
        let (mut feed, _) = source.feed(None)?;
        while feed.window().len() < 8 && feed.fill().map_err(|e| source.io(0, e))? {}
        if feed.window().starts_with(b"ARROW1") {
            feed.consume(8);
            // Some writers fill up to 64 bytes, and no message begins with a length of zero.
            for _ in 1..8 {
                while feed.window().len() < 8 && feed.fill().map_err(|e| source.io(0, e))? {}
                if feed.window().starts_with(&[0; 8]) {
                    feed.consume(8);
                }
            }
        }
        let most = options.limits.page_bytes;
        let stream: Stream = Box::new(Messages { feed, total: source.length(), checked: 0, most });
        let built = catch_unwind(AssertUnwindSafe(|| StreamReader::try_new(stream, None)));
        let batches = built
            .map_err(|_| source.damaged(0, "its decoder gave up".into()))?
            .map_err(|e| source.damaged(0, e.to_string()))?;
        let columns = options.columns.as_ref().map(|names| {
            let fields = batches.schema().fields().clone();
            (0..fields.len()).filter(|i| fields.get(*i).is_some_and(|f| names.contains(f.name()))).collect()
        });
        let skip = resume.map_or(0, |m| m.row);
        Ok(Self { source, batches, columns, row: 0, skip, rows: options.batch_rows.max(1), pending: None })
    }
}

impl Pieces for ArrowReader {
    fn next(&mut self) -> Result<Option<Piece>, ReadError> {
        loop {
            let batch = match self.pending.take() {
                Some(batch) => batch,
                None => {
                    let next = catch_unwind(AssertUnwindSafe(|| self.batches.next()));
                    let damaged = |reason: String| self.source.damaged(self.source.progress().0, reason);
                    match next.map_err(|_| damaged("its decoder gave up".into()))? {
                        None => return Ok(None),
                        Some(batch) => batch.map_err(|e| damaged(e.to_string()))?,
                    }
                }
            };
            let pass = usize::try_from(self.skip.saturating_sub(self.row)).unwrap_or(usize::MAX).min(batch.num_rows());
            self.row += pass as u64;
            let batch = batch.slice(pass, batch.num_rows() - pass);
            if batch.num_rows() == 0 {
                continue;
            }
            let count = self.rows.min(batch.num_rows());
            if count < batch.num_rows() {
                self.pending = Some(batch.slice(count, batch.num_rows() - count));
            }
            let mut batch = batch.slice(0, count);
            if let Some(columns) = &self.columns {
                batch = batch.project(columns).map_err(|e| self.source.damaged(0, e.to_string()))?;
            }
            let first_row = self.row;
            self.row += count as u64;
            let next = Mark { row: self.row, ..Mark::default() };
            return Ok(Some(Piece {
                member: None,
                table: None,
                first_row,
                next,
                rows: Rows::Columns(batch),
                bad: Vec::new(),
            }));
        }
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.source.progress()
    }

    fn schema(&self) -> Option<SchemaRef> {
        let schema = self.batches.schema();
        match &self.columns {
            None => Some(schema),
            Some(columns) => schema.project(columns).ok().map(std::sync::Arc::new),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};
    use arrow::ipc::CompressionType;
    use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
    use arrow::record_batch::RecordBatch;

    use crate::{BytesInput, Format, ReadError, ReadOptions, open};

    fn batch() -> RecordBatch {
        RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![7; 5_000])) as ArrayRef)]).unwrap()
    }

    fn file(compression: Option<CompressionType>) -> Vec<u8> {
        let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let mut writer = FileWriter::try_new_with_options(Vec::new(), &batch().schema(), options).unwrap();
        writer.write(&batch()).unwrap();
        writer.finish().unwrap();
        writer.into_inner().unwrap()
    }

    fn read(bytes: Vec<u8>, page_bytes: usize) -> Result<usize, ReadError> {
        let mut options = ReadOptions { format: Some(Format::Arrow), ..ReadOptions::default() };
        options.limits.page_bytes = page_bytes;
        let mut reader = open(Arc::new(BytesInput::new("a.arrow", bytes)), &options, None)?;
        let mut rows = 0;
        while let Some(piece) = reader.next()? {
            rows += piece.rows.len();
        }
        Ok(rows)
    }

    /// Where each message's head begins, and where its body does.
    fn messages(bytes: &[u8]) -> Vec<(usize, usize)> {
        let mut out = Vec::new();
        let mut at = if bytes.starts_with(b"ARROW1") { 8 } else { 0 };
        while bytes[at..].starts_with(&[0; 8]) {
            at += 8;
        }
        while at + 8 <= bytes.len() {
            let len = super::length_at(bytes, at + 4).unwrap() as usize;
            if len == 0 {
                break;
            }
            let head = arrow::ipc::root_as_message(&bytes[at + 8..at + 8 + len]).unwrap();
            out.push((at + 8, at + 8 + len));
            at += 8 + len + usize::try_from(head.bodyLength()).unwrap();
        }
        out
    }

    #[test]
    fn packed_and_unpacked_files_and_streams_are_read() {
        for compression in [None, Some(CompressionType::ZSTD), Some(CompressionType::LZ4_FRAME)] {
            assert_eq!(read(file(compression), 1 << 20).unwrap(), 5_000);
        }
        let mut writer = StreamWriter::try_new(Vec::new(), &batch().schema()).unwrap();
        writer.write(&batch()).unwrap();
        // Without the mark of the end.
        assert_eq!(read(writer.get_ref().clone(), 1 << 20).unwrap(), 5_000);
    }

    #[test]
    fn s28_a_body_or_head_longer_than_the_file_or_the_limit_is_refused() {
        let sound = file(None);
        let (head, body) = messages(&sound)[1];
        let len = arrow::ipc::root_as_message(&sound[head..body]).unwrap().bodyLength();
        let at = memchr::memmem::find(&sound[head..body], &len.to_le_bytes()).unwrap() + head;
        for claimed in [1_i64 << 50, i64::MAX, -1, 1 << 19] {
            let mut hostile = sound.clone();
            hostile[at..at + 8].copy_from_slice(&claimed.to_le_bytes());
            let error = read(hostile, 1 << 20).unwrap_err().to_string();
            assert!(error.contains(&format!("claims a body of {claimed} bytes")), "{error}");
        }
        for claimed in [i32::MAX, 1 << 20] {
            let mut hostile = sound.clone();
            hostile[head - 4..head].copy_from_slice(&claimed.to_le_bytes());
            let error = read(hostile, 1 << 20).unwrap_err().to_string();
            assert!(error.contains(&format!("claims a head of {claimed} bytes")), "{error}");
        }
        assert!(read(sound, 30_000).unwrap_err().to_string().contains("at most 30000 are read"));
    }

    #[test]
    fn s28_a_packed_buffer_that_claims_more_than_the_limit_is_refused() {
        for compression in [CompressionType::ZSTD, CompressionType::LZ4_FRAME] {
            let sound = file(Some(compression));
            let at = memchr::memmem::rfind(&sound, &40_000_i64.to_le_bytes()).unwrap();
            for claimed in [1_i64 << 50, i64::MAX, -2] {
                let mut hostile = sound.clone();
                hostile[at..at + 8].copy_from_slice(&claimed.to_le_bytes());
                let error = read(hostile, 1 << 20).unwrap_err().to_string();
                assert!(error.contains(&format!("{claimed} bytes")), "{error}");
            }
            assert!(read(sound, 30_000).unwrap_err().to_string().contains("a message may have 30000 in all"));
        }
    }
}
