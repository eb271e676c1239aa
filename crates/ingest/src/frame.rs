//! What the gate writes into the log: its own short header, then the request's bytes as they came.
//!
//! ```text
//! u8   version (4; earlier ones have no part marked "since" a later one)
//! u8   wire     0 tally only, 1 storage.IngestBatchRequest, 2 payloads of one stream (since 2), 3 an Arrow IPC stream (since 4)
//! u8   source
//! u8   1: accepted while the shared window could not be asked; else 0
//! i64  received_us        microseconds since 1970
//! u128 id_base            the 74 random bits of the first assigned id; record i gets id_base + i
//! text tenant             of the credentials; empty: the request decides
//! text correlation id     empty: none
//! u128 batch key          hash of the request's own id; 0: none
//! var  n, then n × { text tenant, text stream, u64 fingerprint, var accepted, var duplicate, var rejected,
//!                    var dead_lettered, var bytes, var m, m × u128 event key }    each stream that the request touches
//! var  n, then n × { var index, u8 verdict (1 duplicate, 2 rejected, 3 dead-lettered), u8 reason }
//!                         the records that are not accepted, by index
//! text client address     since 2; empty: not known
//! text user agent         since 2; empty: not known
//! with a batch key alone: u64 whose it is, u64 content, var n, n bytes of the answer     since 3 (see `requests.rs`)
//! wire 2 alone: text tenant (of the request; empty: `default`), text stream,
//!      var n, n × { var gap, var length }           where each payload lies in the body: so far behind the one before
//! wire 3 alone: text tenant (of the request; empty: `default`), text stream, u8 1: the schema has the contract's own names
//! …    the body
//! ```
//! Integers are little-endian; `var` is a Protocol Buffers varint; `text` is a `var` length and UTF-8.

use std::ops::Range;

use bytes::Bytes;
use lakegate_model::{StreamKey, StreamName, Tally, TenantId};
use uuid::Uuid;

use crate::bytes::{Malformed, Reader, put_text, put_var};
use crate::duplicates::CONTENT_BITS;
use crate::requests::Answered;

const VERSION: u8 = 4;
/// The version before requests had their answer, and event keys a content.
const VERSION_BARE_KEYS: u8 = 2;
/// The version before there were clients and payloads.
const VERSION_FIRST: u8 = 1;
/// A frame without a body: counts alone.
const WIRE_TALLY: u8 = 0;
/// A frame whose body is a `storage.IngestBatchRequest`.
const WIRE_PROTO_BATCH: u8 = 1;
/// A frame whose body holds payloads.
const WIRE_PAYLOADS: u8 = 2;
/// A frame whose body is an Arrow IPC stream.
const WIRE_ARROW: u8 = 3;

/// What a frame's body is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FrameBody {
    /// There is none.
    None,
    /// A `storage.IngestBatchRequest`.
    ProtoBatch,
    /// Payloads of one stream.
    Payloads { tenant: Option<TenantId>, stream: StreamName, spans: Vec<Range<u32>> },
    /// Rows of one stream as an Arrow IPC stream.
    Arrow { tenant: Option<TenantId>, stream: StreamName, by_name: bool },
}

/// One stream that a frame touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FrameStream {
    pub(crate) key: StreamKey,
    /// Of the contract that shaped the records.
    pub(crate) fingerprint: u64,
    pub(crate) tally: Tally,
    /// The event keys of the accepted records.
    pub(crate) keys: Vec<u128>,
}

/// What was decided about a record that was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exception {
    pub(crate) index: u32,
    pub(crate) kind: ExceptionKind,
    pub(crate) reason: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExceptionKind {
    Duplicate = 1,
    Rejected = 2,
    DeadLettered = 3,
}

/// A frame's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) body: FrameBody,
    pub(crate) source: u8,
    /// Others may have stored the same: the window that is shared could not be asked.
    pub(crate) unchecked: bool,
    pub(crate) received_us: i64,
    pub(crate) id_base: u128,
    pub(crate) tenant: Option<TenantId>,
    pub(crate) correlation_id: String,
    /// Hash of the request's own id; 0: it has none.
    pub(crate) batch_key: u128,
    /// What the request with that id was answered.
    pub(crate) answered: Answered,
    pub(crate) streams: Vec<FrameStream>,
    pub(crate) exceptions: Vec<Exception>,
    pub(crate) client_address: String,
    pub(crate) user_agent: String,
}

/// A frame of the log that is not what this version writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Written by a newer version.
    #[error("the frame has version {0}; this binary reads up to {VERSION}")]
    Version(u8),
    /// The checksum was right, yet the content cannot be read.
    #[error("the frame's header cannot be read: {0}")]
    Malformed(&'static str),
}

/// The id that record `index` of a frame gets: a UUID version 7 (RFC 9562) of the time of receipt whose random bits
/// count on from the frame's base, so that replay gives the same.
pub(crate) fn assigned_id(received_us: i64, id_base: u128, index: u32) -> Uuid {
    const RANDOM_BITS: u128 = (1 << 74) - 1;
    let bits = id_base.wrapping_add(u128::from(index)) & RANDOM_BITS;
    let millis = u128::from(u64::try_from(received_us.div_euclid(1000)).unwrap_or(0)) & ((1 << 48) - 1);
    let (high, low) = (bits >> 62, bits & ((1 << 62) - 1));
    Uuid::from_u128(millis << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)
}

impl FrameHeader {
    /// The header's bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(96 + self.exceptions.len() * 4);
        let wire = match self.body {
            FrameBody::None => WIRE_TALLY,
            FrameBody::ProtoBatch => WIRE_PROTO_BATCH,
            FrameBody::Payloads { .. } => WIRE_PAYLOADS,
            FrameBody::Arrow { .. } => WIRE_ARROW,
        };
        out.extend_from_slice(&[VERSION, wire, self.source, u8::from(self.unchecked)]);
        out.extend_from_slice(&self.received_us.to_le_bytes());
        out.extend_from_slice(&self.id_base.to_le_bytes());
        put_text(&mut out, self.tenant.as_ref().map_or("", TenantId::as_str));
        put_text(&mut out, &self.correlation_id);
        out.extend_from_slice(&self.batch_key.to_le_bytes());
        put_var(&mut out, self.streams.len() as u64);
        for stream in &self.streams {
            put_text(&mut out, stream.key.tenant.as_str());
            put_text(&mut out, stream.key.stream.as_str());
            out.extend_from_slice(&stream.fingerprint.to_le_bytes());
            let tally = &stream.tally;
            for count in [tally.accepted, tally.duplicate, tally.rejected, tally.dead_lettered, tally.bytes] {
                put_var(&mut out, count);
            }
            put_var(&mut out, stream.keys.len() as u64);
            stream.keys.iter().for_each(|key| out.extend_from_slice(&key.to_le_bytes()));
        }
        put_var(&mut out, self.exceptions.len() as u64);
        for exception in &self.exceptions {
            put_var(&mut out, u64::from(exception.index));
            out.extend_from_slice(&[exception.kind as u8, exception.reason]);
        }
        put_text(&mut out, &self.client_address);
        put_text(&mut out, &self.user_agent);
        if self.batch_key != 0 {
            self.answered.put(&mut out);
        }
        if let FrameBody::Payloads { tenant, stream, spans } = &self.body {
            put_text(&mut out, tenant.as_ref().map_or("", TenantId::as_str));
            put_text(&mut out, stream.as_str());
            put_spans(&mut out, spans);
        }
        if let FrameBody::Arrow { tenant, stream, by_name } = &self.body {
            put_text(&mut out, tenant.as_ref().map_or("", TenantId::as_str));
            put_text(&mut out, stream.as_str());
            out.push(u8::from(*by_name));
        }
        out.into()
    }

    /// Reads a frame's payload: the header, and the body behind it.
    pub(crate) fn decode(frame: &Bytes) -> Result<(Self, Bytes), FrameError> {
        let mut reader = Reader::new(frame);
        let [version, wire, source, flags] = reader.array()?;
        if !(VERSION_FIRST..=VERSION).contains(&version) {
            return Err(FrameError::Version(version));
        }
        let received_us = i64::from_le_bytes(reader.array()?);
        let id_base = u128::from_le_bytes(reader.array()?);
        let tenant = reader.tenant()?;
        let correlation_id = reader.text()?.to_owned();
        let batch_key = u128::from_le_bytes(reader.array()?);
        let mut streams: Vec<FrameStream> = (0..reader.count()?).map(|_| reader.stream()).collect::<Result<_, _>>()?;
        if version <= VERSION_BARE_KEYS {
            // Their keys were whole hashes: nothing is known of the content.
            let keys = streams.iter_mut().flat_map(|stream| &mut stream.keys);
            keys.for_each(|key| *key &= !CONTENT_BITS);
        }
        let exceptions = (0..reader.count()?).map(|_| reader.exception()).collect::<Result<_, _>>()?;
        let (mut client_address, mut user_agent) = (String::new(), String::new());
        if version > VERSION_FIRST {
            reader.text()?.clone_into(&mut client_address);
            reader.text()?.clone_into(&mut user_agent);
        }
        let has_answer = version > VERSION_BARE_KEYS && batch_key != 0;
        let answered = if has_answer { Answered::read(&mut reader)? } else { Answered::unknown() };
        let body = reader.body(wire)?;
        let header = Self {
            body,
            source,
            unchecked: flags & 1 != 0,
            received_us,
            id_base,
            tenant,
            correlation_id,
            batch_key,
            answered,
            streams,
            exceptions,
            client_address,
            user_agent,
        };
        Ok((header, frame.slice(reader.at()..)))
    }
}

fn put_spans(out: &mut Vec<u8>, spans: &[Range<u32>]) {
    put_var(out, spans.len() as u64);
    let mut end = 0;
    for span in spans {
        put_var(out, u64::from(span.start.saturating_sub(end)));
        put_var(out, u64::from(span.end.saturating_sub(span.start)));
        end = span.end;
    }
}

impl From<Malformed> for FrameError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed.0)
    }
}

impl Reader<'_> {
    fn tenant(&mut self) -> Result<Option<TenantId>, FrameError> {
        match self.text()? {
            "" => Ok(None),
            name => TenantId::new(name).map(Some).map_err(|_| FrameError::Malformed("tenant")),
        }
    }

    fn body(&mut self, wire: u8) -> Result<FrameBody, FrameError> {
        match wire {
            WIRE_TALLY => Ok(FrameBody::None),
            WIRE_PROTO_BATCH => Ok(FrameBody::ProtoBatch),
            WIRE_PAYLOADS => {
                let tenant = self.tenant()?;
                let stream = StreamName::new(self.text()?).map_err(|_| FrameError::Malformed("stream"))?;
                let mut end = 0;
                let spans = (0..self.count()?).map(|_| self.span(&mut end)).collect::<Result<_, _>>()?;
                Ok(FrameBody::Payloads { tenant, stream, spans })
            }
            WIRE_ARROW => {
                let tenant = self.tenant()?;
                let stream = StreamName::new(self.text()?).map_err(|_| FrameError::Malformed("stream"))?;
                let [by_name] = self.array()?;
                Ok(FrameBody::Arrow { tenant, stream, by_name: by_name != 0 })
            }
            _ => Err(FrameError::Malformed("an unknown kind of body")),
        }
    }

    fn span(&mut self, end: &mut u32) -> Result<Range<u32>, FrameError> {
        let wrong = || FrameError::Malformed("a payload's place");
        let mut next = |from: u32| -> Result<u32, FrameError> {
            let step = u32::try_from(self.var()?).map_err(|_| wrong())?;
            from.checked_add(step).ok_or_else(wrong)
        };
        let start = next(*end)?;
        *end = next(start)?;
        Ok(start..*end)
    }

    fn stream(&mut self) -> Result<FrameStream, FrameError> {
        let tenant = TenantId::new(self.text()?).map_err(|_| FrameError::Malformed("tenant"))?;
        let stream = StreamName::new(self.text()?).map_err(|_| FrameError::Malformed("stream"))?;
        let fingerprint = u64::from_le_bytes(self.array()?);
        let mut counts = [0_u64; 5];
        for count in &mut counts {
            *count = self.var()?;
        }
        let keys =
            (0..self.count()?).map(|_| Ok(u128::from_le_bytes(self.array()?))).collect::<Result<_, FrameError>>()?;
        let [accepted, duplicate, rejected, dead_lettered, bytes] = counts;
        let received = accepted.saturating_add(duplicate).saturating_add(rejected).saturating_add(dead_lettered);
        let tally = Tally { received, accepted, duplicate, rejected, dead_lettered, bytes };
        Ok(FrameStream { key: StreamKey { tenant, stream }, fingerprint, tally, keys })
    }

    fn exception(&mut self) -> Result<Exception, FrameError> {
        let index = u32::try_from(self.var()?).map_err(|_| FrameError::Malformed("index"))?;
        let [kind, reason] = self.array()?;
        let kind = match kind {
            1 => ExceptionKind::Duplicate,
            2 => ExceptionKind::Rejected,
            3 => ExceptionKind::DeadLettered,
            _ => return Err(FrameError::Malformed("verdict")),
        };
        Ok(Exception { index, kind, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FrameHeader {
        let key = StreamKey { tenant: TenantId::new("acme").unwrap(), stream: StreamName::new("orders").unwrap() };
        let tally = Tally { received: 4, accepted: 1, duplicate: 1, rejected: 1, dead_lettered: 1, bytes: 300 };
        FrameHeader {
            body: FrameBody::Payloads {
                tenant: None,
                stream: StreamName::new("orders").unwrap(),
                spans: vec![0..1, 3..4],
            },
            source: 1,
            unchecked: true,
            received_us: 1_700_000_000_000_000,
            id_base: 42,
            tenant: Some(TenantId::new("acme").unwrap()),
            correlation_id: "req-1".to_owned(),
            batch_key: 9,
            answered: Answered { owner: 3, content: 4, answer: vec![1, 2] },
            streams: vec![FrameStream { key, fingerprint: 7, tally, keys: vec![1, u128::MAX] }],
            exceptions: vec![
                Exception { index: 1, kind: ExceptionKind::Duplicate, reason: 0 },
                Exception { index: 300, kind: ExceptionKind::DeadLettered, reason: 4 },
            ],
            client_address: "192.0.2.7".to_owned(),
            user_agent: "curl/8".to_owned(),
        }
    }

    fn frame() -> Bytes {
        [header().encode().as_ref(), b"body"].concat().into()
    }

    #[test]
    fn a_frame_reads_back_as_it_was_written() {
        assert_eq!(FrameHeader::decode(&frame()).unwrap(), (header(), Bytes::from_static(b"body")));
        let stream = StreamName::new("orders").unwrap();
        let arrow = FrameBody::Arrow { tenant: None, stream, by_name: true };
        for body in [FrameBody::None, FrameBody::ProtoBatch, arrow] {
            let header = FrameHeader { body, ..header() };
            let frame = [header.encode().as_ref(), b"body"].concat().into();
            assert_eq!(FrameHeader::decode(&frame).unwrap(), (header, Bytes::from_static(b"body")));
        }
    }

    #[test]
    fn f23_a_frame_of_the_first_version_is_read() {
        let mut hex = "01010100".to_owned() + "00f056e5a50a0600" + "2a" + &"00".repeat(15);
        hex += "0461636d65"; // tenant acme
        hex += "057265712d31"; // correlation id req-1
        hex += &"00".repeat(16);
        hex += "0000"; // no streams, no exceptions
        hex += "626f6479";
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let (read, body) = FrameHeader::decode(&bytes.into()).unwrap();
        assert_eq!(
            (read.body, read.tenant.unwrap().as_str(), body.as_ref()),
            (FrameBody::ProtoBatch, "acme", &b"body"[..])
        );
        assert_eq!((read.id_base, read.correlation_id.as_str(), read.user_agent.as_str()), (42, "req-1", ""));
    }

    #[test]
    fn f10_a_damaged_header_never_panics_and_a_cut_one_is_an_error() {
        let frame = frame();
        for end in 0..frame.len() - 4 {
            assert!(FrameHeader::decode(&frame.slice(..end)).is_err(), "cut at {end}");
        }
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut bytes = frame.to_vec();
                bytes[at] ^= 1 << bit;
                let _ = FrameHeader::decode(&bytes.into());
            }
        }
    }

    #[test]
    fn f23_a_newer_version_is_refused() {
        let mut bytes = frame().to_vec();
        bytes[0] = 9;
        assert_eq!(FrameHeader::decode(&bytes.into()), Err(FrameError::Version(9)));
    }

    #[test]
    fn assigned_ids_are_version_7_of_the_time_of_receipt_and_differ_by_record() {
        let first = assigned_id(1_700_000_000_123_456, u128::MAX, 0);
        let second = assigned_id(1_700_000_000_123_456, u128::MAX, 1);
        assert_ne!(first, second);
        for id in [first, second] {
            assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
            assert_eq!(id.get_timestamp().unwrap().to_unix().0, 1_700_000_000);
        }
    }
}
