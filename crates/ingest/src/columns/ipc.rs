//! An Arrow IPC stream from a stranger, to batches ("Arrow Columnar Format", IPC streaming format).
//!
//! Promises: nothing outside the bytes is read, nothing is made that is larger than `decoded_bytes_max`, and what comes
//! out was validated whole: offsets, lengths, UTF-8. The library's reader trusts the lengths that a message claims, so
//! that they are looked at here first. Refuses: dictionaries that change midway (deltas are taken), rows without columns.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::{read_dictionary, read_record_batch};
use arrow::ipc::{Message, MessageHeader, RecordBatch as BatchHeader, convert, root_as_message};
use bytes::Bytes;

/// Before each message; older writers leave it out.
const CONTINUATION: u32 = u32::MAX;
/// A schema of so many bytes has more columns than any table.
const METADATA_BYTES_MAX: usize = 4 << 20;
/// What stands before a compressed buffer: its length, or this for one that is not.
const UNCOMPRESSED: i64 = -1;

/// Why the bytes are no stream that is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a stream of Arrow IPC messages that can be taken: {what} (message {message}, at byte {at} of {len})")]
pub(crate) struct IpcError {
    what: String,
    message: usize,
    at: usize,
    len: usize,
}

/// The batches of a stream.
pub(crate) fn read_stream(bytes: &Bytes, decoded_bytes_max: usize) -> Result<(SchemaRef, Vec<RecordBatch>), IpcError> {
    let mut reader = StreamReader { bytes, at: 0, message: 0, room: decoded_bytes_max, limit: decoded_bytes_max };
    // What the checks below let through and the library still cannot take must not end more than this request.
    let read = std::panic::catch_unwind(AssertUnwindSafe(|| reader.read()));
    let found = read.unwrap_or_else(|_| Err("its buffers are not what its schema says".to_owned()));
    found.map_err(|what| IpcError { what, message: reader.message, at: reader.at, len: bytes.len() })
}

struct StreamReader<'a> {
    bytes: &'a Bytes,
    at: usize,
    message: usize,
    /// Bytes that may yet be made.
    room: usize,
    limit: usize,
}

impl StreamReader<'_> {
    fn read(&mut self) -> Result<(SchemaRef, Vec<RecordBatch>), String> {
        let mut schema: Option<SchemaRef> = None;
        let mut dictionaries: HashMap<i64, ArrayRef> = HashMap::new();
        let mut batches = Vec::new();
        while let Some((head, start)) = self.metadata()? {
            let message = root_as_message(&head).map_err(|error| format!("its head cannot be read: {error}"))?;
            let body = self.body(&message, start)?;
            match (message.header_type(), &schema) {
                (MessageHeader::Schema, None) => schema = Some(Arc::new(schema_of(&message)?)),
                (MessageHeader::DictionaryBatch, Some(schema)) => {
                    let header = message.header_as_dictionary_batch().ok_or("a dictionary without content")?;
                    self.check(&header.data().ok_or("a dictionary without values")?, body.len(), &body)?;
                    read_dictionary(&body, header, schema, &mut dictionaries, &message.version()).map_err(why)?;
                }
                (MessageHeader::RecordBatch, Some(schema)) => {
                    let header = message.header_as_record_batch().ok_or("rows without content")?;
                    self.check(&header, body.len(), &body)?;
                    let schema = Arc::clone(schema);
                    let version = message.version();
                    let batch = read_record_batch(&body, header, schema, &dictionaries, None, &version).map_err(why)?;
                    batches.push(batch);
                }
                (MessageHeader::Schema, Some(_)) => return Err("a second schema".to_owned()),
                (_, None) => return Err("a message before the schema".to_owned()),
                (other, _) => return Err(format!("a message of the kind {other:?}")),
            }
            self.message += 1;
        }
        let schema = schema.ok_or("no schema")?;
        if schema.fields().is_empty() {
            return Err("rows without columns".to_owned());
        }
        Ok((schema, batches))
    }

    fn number(&mut self) -> Option<u32> {
        let bytes = self.bytes.get(self.at..self.at.checked_add(4)?)?;
        self.at += 4;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    /// The next message's head, and where its body begins. None: the stream is at its end.
    fn metadata(&mut self) -> Result<Option<(Bytes, usize)>, String> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let cut = || "it ends inside a message's length".to_owned();
        let mut len = self.number().ok_or_else(cut)?;
        if len == CONTINUATION {
            len = self.number().ok_or_else(cut)?;
        }
        if len == 0 {
            return Ok(None);
        }
        let len = usize::try_from(len).ok().filter(|len| *len <= METADATA_BYTES_MAX);
        let len = len.ok_or_else(|| format!("a head of more than {METADATA_BYTES_MAX} bytes"))?;
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("it ends inside a message's head")?;
        let head = self.bytes.slice(self.at..end);
        self.at = end;
        Ok(Some((head, end)))
    }

    fn body(&mut self, message: &Message<'_>, start: usize) -> Result<Buffer, String> {
        let len = usize::try_from(message.bodyLength()).map_err(|_| "a body of negative length".to_owned())?;
        let end = start.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("it ends inside a message's body")?;
        self.at = end;
        Ok(Buffer::from(self.bytes.slice(start..end)))
    }

    /// Holds what a batch claims against the bytes that there are.
    fn check(&mut self, batch: &BatchHeader<'_>, body_len: usize, body: &[u8]) -> Result<(), String> {
        let nodes = batch.nodes().ok_or("rows without columns")?;
        // A value takes a bit at least, but for those of columns that are all null.
        let most = i64::try_from(body_len).unwrap_or(i64::MAX).saturating_mul(8).max(batch.length());
        if batch.length() < 0 || batch.length() > i64::from(u32::MAX) {
            return Err(format!("{} rows", batch.length()));
        }
        if nodes.iter().any(|node| node.length() < 0 || node.null_count() < 0 || node.length() > most) {
            return Err("a column of more values than its bytes can hold".to_owned());
        }
        let is_compressed = batch.compression().is_some();
        for buffer in batch.buffers().ok_or("rows without buffers")?.iter() {
            let (from, len) = (usize::try_from(buffer.offset()), usize::try_from(buffer.length()));
            let (Ok(from), Ok(len)) = (from, len) else { return Err("a buffer at a negative place".to_owned()) };
            let bytes = from.checked_add(len).and_then(|end| body.get(from..end));
            let bytes = bytes.ok_or("a buffer outside of its message")?;
            let made = if is_compressed && len > 0 { unpacked_bytes(bytes)? } else { len };
            self.room =
                self.room.checked_sub(made).ok_or_else(|| format!("more than {} bytes unpacked", self.limit))?;
        }
        Ok(())
    }
}

fn unpacked_bytes(bytes: &[u8]) -> Result<usize, String> {
    let head = bytes.first_chunk::<8>().ok_or("a compressed buffer without its length")?;
    match i64::from_le_bytes(*head) {
        UNCOMPRESSED => Ok(bytes.len()),
        len => usize::try_from(len).map_err(|_| "a compressed buffer of negative length".to_owned()),
    }
}

fn schema_of(message: &Message<'_>) -> Result<Schema, String> {
    let header = message.header_as_schema().ok_or("a schema without content")?;
    Ok(convert::fb_to_schema(header))
}

fn why(error: ArrowError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, Int64Array, StringArray};
    use arrow::datatypes::Int32Type;
    use arrow::ipc::CompressionType;
    use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};

    use super::*;

    fn batch() -> RecordBatch {
        let words: DictionaryArray<Int32Type> = ["a", "b", "a"].into_iter().collect();
        let columns: [(&str, ArrayRef); 3] = [
            ("n", Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]))),
            ("t", Arc::new(StringArray::from(vec!["x", "größe", ""]))),
            ("w", Arc::new(words)),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn stream(compression: Option<CompressionType>) -> Vec<u8> {
        let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batch().schema(), options).unwrap();
        writer.write(&batch()).unwrap();
        writer.finish().unwrap();
        writer.into_inner().unwrap()
    }

    #[test]
    fn what_the_library_writes_is_read_compressed_or_not() {
        for compression in [None, Some(CompressionType::ZSTD), Some(CompressionType::LZ4_FRAME)] {
            let (_, batches) = read_stream(&stream(compression).into(), 1 << 20).unwrap();
            assert_eq!(batches, [batch()]);
        }
    }

    #[test]
    fn s31_a_stream_cut_or_damaged_anywhere_is_refused_or_read_and_never_more() {
        std::panic::set_hook(Box::new(|_| {}));
        let whole = stream(None);
        for end in 0..whole.len() {
            let _ = read_stream(&whole[..end].to_vec().into(), 1 << 20);
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                if let Ok((_, batches)) = read_stream(&damaged.into(), 1 << 20) {
                    for batch in batches {
                        batch.columns().iter().for_each(|column| column.to_data().validate_full().unwrap());
                    }
                }
            }
        }
        let _ = std::panic::take_hook();
    }

    #[test]
    fn s31_a_stream_that_unpacks_to_more_than_it_may_is_refused() {
        let zeros = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![0; 100_000])) as ArrayRef)]);
        let zeros = zeros.unwrap();
        let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD)).unwrap();
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), &zeros.schema(), options).unwrap();
        writer.write(&zeros).unwrap();
        let bytes: Bytes = writer.into_inner().unwrap().into();
        assert!(bytes.len() < 4096);
        assert_eq!(read_stream(&bytes, 1 << 20).unwrap().1, [zeros]);
        let error = read_stream(&bytes, 100_000).unwrap_err().to_string();
        assert!(error.contains("more than 100000 bytes unpacked"), "{error}");
    }
}
