//! The little of Protocol Buffers that is read here: the top level of a message (encoding specification, "Message
//! Structure"). Nothing nests, so that nothing can nest too deep.

use bytes::{Bytes, BytesMut};

/// What is wrong with a message, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at} of {len}")]
pub(crate) struct WireError {
    what: &'static str,
    at: usize,
    len: usize,
}

/// A field's content: a number, or where its bytes lie.
enum Content {
    Number(u64),
    Fixed,
    Bytes { start: usize, end: usize },
}

struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn error(&self, what: &'static str) -> WireError {
        WireError { what, at: self.at, len: self.bytes.len() }
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let Some(byte) = self.bytes.get(self.at) else {
                return Err(self.error("the message ends inside a number"));
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number of more than ten bytes"))
    }

    fn pass(&mut self, len: u64) -> Result<Content, WireError> {
        let end =
            usize::try_from(len).ok().and_then(|len| self.at.checked_add(len)).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else { return Err(self.error("the message ends inside a field")) };
        let start = std::mem::replace(&mut self.at, end);
        Ok(Content::Bytes { start, end })
    }

    fn next(&mut self) -> Result<Option<(u64, Content)>, WireError> {
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let content = match key & 7 {
            0 => Content::Number(self.varint()?),
            1 => self.pass(8).map(|_| Content::Fixed)?,
            2 => {
                let len = self.varint()?;
                self.pass(len)?
            }
            5 => self.pass(4).map(|_| Content::Fixed)?,
            _ => return Err(self.error("a group or an unknown wire type")),
        };
        match key >> 3 {
            0 => Err(self.error("field number 0")),
            number => Ok(Some((number, content))),
        }
    }

    fn wrong_type<T>(&self) -> Result<T, WireError> {
        Err(self.error("a known field of the wrong wire type"))
    }
}

/// The top level of a `storage.IngestStreamRequest`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamRequest {
    pub(crate) sequence: u64,
    /// A `storage.IngestBatchRequest`, sliced out.
    pub(crate) batch: Bytes,
}

impl StreamRequest {
    pub(crate) fn read(message: &Bytes) -> Result<Self, WireError> {
        let mut request = Self::default();
        let mut fields = Fields::new(message);
        while let Some((number, content)) = fields.next()? {
            match (number, content) {
                (1, Content::Number(sequence)) => request.sequence = sequence,
                (2, Content::Bytes { start, end }) => {
                    let more = message.slice(start..end);
                    request.batch = if request.batch.is_empty() { more } else { join(&request.batch, &more) };
                }
                (1 | 2, _) => return fields.wrong_type(),
                _ => {}
            }
        }
        Ok(request)
    }
}

/// A message field that comes twice is merged, which for encoded messages is putting one behind the other.
fn join(one: &Bytes, two: &Bytes) -> Bytes {
    let mut both = BytesMut::with_capacity(one.len() + two.len());
    both.extend_from_slice(one);
    both.extend_from_slice(two);
    both.freeze()
}

/// How many records a `storage.IngestBatchRequest` brings, and its id, as far as it can be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct BatchOutline {
    pub(crate) records: u64,
    pub(crate) batch_id: String,
}

impl BatchOutline {
    pub(crate) fn read(message: &[u8]) -> Self {
        let mut outline = Self::default();
        let mut fields = Fields::new(message);
        while let Ok(Some((number, content))) = fields.next() {
            match (number, content) {
                (1, Content::Bytes { .. }) => outline.records += 1,
                (5, Content::Bytes { start, end }) => {
                    let id = message.get(start..end).filter(|id| id.len() <= 1024).unwrap_or_default();
                    outline.batch_id = String::from_utf8_lossy(id).into_owned();
                }
                _ => {}
            }
        }
        outline
    }
}

/// How many records a `storage.IngestRecordRequest` brings: it is right with one.
pub(crate) fn count_records(message: &[u8]) -> Result<usize, WireError> {
    let (mut fields, mut records) = (Fields::new(message), 0);
    while let Some((number, content)) = fields.next()? {
        match (number, content) {
            (1, Content::Bytes { .. }) => records += 1,
            (1, _) => return fields.wrong_type(),
            _ => {}
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::grpc::proto;

    #[test]
    fn a_batch_is_sliced_out_of_its_stream_message_without_copying() {
        let batch = proto::IngestBatchRequest { batch_id: "b".repeat(300), ..Default::default() };
        let message =
            Bytes::from(proto::IngestStreamRequest { sequence: 300, batch: Some(batch.clone()) }.encode_to_vec());
        let request = StreamRequest::read(&message).unwrap();
        assert_eq!((request.sequence, &*request.batch), (300, &*batch.encode_to_vec()));
        assert!(message.as_ptr_range().contains(&request.batch.as_ptr()));
    }

    #[test]
    fn a_batch_that_comes_in_two_parts_is_merged_as_prost_merges_it() {
        let part = |id: &str| proto::IngestBatchRequest {
            records: vec![proto::DataRecord { event_id: id.to_owned(), ..Default::default() }],
            ..Default::default()
        };
        let mut both = proto::IngestStreamRequest { sequence: 1, batch: Some(part("a")) }.encode_to_vec();
        both.extend(proto::IngestStreamRequest { sequence: 0, batch: Some(part("b")) }.encode_to_vec());
        let right = proto::IngestStreamRequest::decode(&*both).unwrap().batch.unwrap();
        let found = StreamRequest::read(&Bytes::from(both)).unwrap();
        assert_eq!(proto::IngestBatchRequest::decode(found.batch).unwrap(), right);
    }

    #[test]
    fn s31_groups_wild_lengths_and_wrong_wire_types_are_errors() {
        for bad in [&[0x0b][..], &[0x12, 0xff, 0xff, 0xff, 0xff, 0x7f], &[0x10, 1], &[0x0a, 0], &[0x00, 1], &[0xff; 11]]
        {
            assert!(StreamRequest::read(&Bytes::copy_from_slice(bad)).is_err(), "{bad:?} was read");
        }
    }

    #[test]
    fn an_outline_tells_what_it_can_of_a_damaged_batch() {
        let batch = proto::IngestBatchRequest {
            records: vec![proto::DataRecord::default(), proto::DataRecord::default()],
            batch_id: "b1".to_owned(),
            ..Default::default()
        };
        let mut bytes = batch.encode_to_vec();
        bytes.push(0x0b);
        assert_eq!(BatchOutline::read(&bytes), BatchOutline { records: 2, batch_id: "b1".to_owned() });
    }
}
