//! Reading `storage.IngestBatchRequest` from its bytes without copying (Protocol Buffers encoding specification).
//!
//! The same walk serves requests and, after a restart, the log: what is stored is what came. Text is checked when it
//! is taken, not before; unknown fields are passed over; groups and wrong wire types are errors, so that nothing nests
//! deeper than the messages themselves.

use std::ops::Range;

use lakegate_model::{ReasonCode, Refusal, StreamName, TenantId};

/// What is wrong with a message, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at} of {len}")]
pub(crate) struct WireError {
    what: &'static str,
    at: usize,
    len: usize,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

enum Item<'a> {
    Varint(u64),
    Fixed,
    Bytes(&'a [u8]),
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn error(&self, what: &'static str) -> WireError {
        WireError { what, at: self.at, len: self.bytes.len() }
    }

    #[inline]
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

    #[inline]
    fn take(&mut self, len: u64) -> Result<&'a [u8], WireError> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let Some(slice) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(self.error("the message ends inside a field"));
        };
        self.at += slice.len();
        Ok(slice)
    }

    /// The next field's number and content; none at the end.
    #[inline]
    fn next(&mut self) -> Result<Option<(u64, Item<'a>)>, WireError> {
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let item = match key & 7 {
            0 => Item::Varint(self.varint()?),
            1 => self.take(8).map(|_| Item::Fixed)?,
            2 => {
                let len = self.varint()?;
                Item::Bytes(self.take(len)?)
            }
            5 => self.take(4).map(|_| Item::Fixed)?,
            _ => return Err(self.error("a group or an unknown wire type")),
        };
        if key >> 3 == 0 {
            return Err(self.error("field number 0"));
        }
        Ok(Some((key >> 3, item)))
    }

    fn wrong_type<T>(&self) -> Result<T, WireError> {
        Err(self.error("a known field of the wrong wire type"))
    }
}

/// Few records are smaller: room for so many is taken at once.
const SMALL_RECORD_BYTES: usize = 128;

/// What the bytes of a record are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// A `storage.DataRecord`.
    #[default]
    Proto,
    /// A payload and nothing around it.
    Payload,
}

/// The top level of a request.
#[derive(Debug, Default)]
pub(crate) struct BatchRequest<'a> {
    pub(crate) kind: RecordKind,
    pub(crate) records: Vec<&'a [u8]>,
    pub(crate) tenant_id: &'a [u8],
    pub(crate) endpoint_id: &'a [u8],
    pub(crate) atomic: bool,
    pub(crate) batch_id: &'a [u8],
}

impl<'a> BatchRequest<'a> {
    /// Finds the records; looks into none.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut request = Self { records: Vec::with_capacity(bytes.len() / SMALL_RECORD_BYTES), ..Self::default() };
        let mut cursor = Cursor::new(bytes);
        while let Some((field, item)) = cursor.next()? {
            match (field, item) {
                (1, Item::Bytes(record)) => request.records.push(record),
                (2, Item::Bytes(text)) => request.tenant_id = text,
                (3, Item::Bytes(text)) => request.endpoint_id = text,
                (4, Item::Varint(flag)) => request.atomic = flag != 0,
                (5, Item::Bytes(text)) => request.batch_id = text,
                (1..=5, _) => return cursor.wrong_type(),
                _ => {}
            }
        }
        Ok(request)
    }

    /// Rows in columns, which are not looked at here: one record for all that the request says.
    pub(crate) fn of_columns(bytes: &'a [u8], tenant: Option<&'a TenantId>, stream: &'a StreamName) -> Self {
        Self {
            kind: RecordKind::Payload,
            records: vec![bytes],
            tenant_id: tenant.map_or("", TenantId::as_str).as_bytes(),
            endpoint_id: stream.as_str().as_bytes(),
            ..Self::default()
        }
    }

    /// The payloads at `spans` of `bytes`.
    pub(crate) fn of_payloads(
        bytes: &'a [u8],
        spans: &[Range<u32>],
        tenant_id: &'a str,
        endpoint_id: &'a str,
    ) -> Result<Self, WireError> {
        let (len, mut end) = (bytes.len(), 0);
        let mut records = Vec::with_capacity(spans.len());
        for span in spans {
            let (start, stop) = (span.start as usize, span.end as usize);
            let record = if start < end { None } else { bytes.get(start..stop) };
            records.push(record.ok_or(WireError { what: "a payload lies outside the bytes", at: start, len })?);
            end = stop;
        }
        let (tenant_id, endpoint_id) = (tenant_id.as_bytes(), endpoint_id.as_bytes());
        Ok(Self { kind: RecordKind::Payload, records, tenant_id, endpoint_id, ..Self::default() })
    }
}

/// One record's envelope; `&[u8]` where text is not yet checked.
#[derive(Debug, Default)]
pub(crate) struct WireRecord<'a> {
    pub(crate) tenant_id: &'a [u8],
    pub(crate) endpoint_id: &'a [u8],
    pub(crate) event_id: &'a [u8],
    pub(crate) payload: &'a [u8],
    pub(crate) content_type: &'a [u8],
    /// Microseconds since 1970.
    pub(crate) event_time_us: Option<i64>,
    pub(crate) event_type: &'a [u8],
    pub(crate) version: i64,
    /// The map's entries as they lie in the message.
    pub(crate) attributes: Vec<&'a [u8]>,
}

impl<'a> WireRecord<'a> {
    #[inline]
    pub(crate) fn read(kind: RecordKind, bytes: &'a [u8]) -> Result<Self, Refusal> {
        if kind == RecordKind::Payload {
            return Ok(Self { payload: bytes, ..Self::default() });
        }
        Self::read_fields(bytes)
            .map_err(|error| refusal("record", format!("not a storage.DataRecord: {error}")))?
            .in_range()
    }

    fn read_fields(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut record = Self::default();
        let mut cursor = Cursor::new(bytes);
        while let Some((field, item)) = cursor.next()? {
            match (field, item) {
                (1, Item::Bytes(text)) => record.tenant_id = text,
                (2, Item::Bytes(text)) => record.endpoint_id = text,
                (3, Item::Bytes(text)) => record.event_id = text,
                (4, Item::Bytes(bytes)) => record.payload = bytes,
                (5, Item::Bytes(text)) => record.content_type = text,
                (6, Item::Bytes(time)) => record.event_time_us = Some(timestamp(time)?),
                (7, Item::Bytes(text)) => record.event_type = text,
                (8, Item::Varint(version)) => record.version = version.cast_signed(),
                (9, Item::Bytes(entry)) => record.attributes.push(entry),
                (1..=9, _) => return cursor.wrong_type(),
                _ => {}
            }
        }
        Ok(record)
    }

    fn in_range(self) -> Result<Self, Refusal> {
        let Some(time) = self.event_time_us else { return Ok(self) };
        if (crate::time::MIN_US..=crate::time::MAX_US).contains(&time) {
            return Ok(self);
        }
        let message = format!("event_time {time} µs lies outside the years 1 to 9999");
        Err(Refusal { code: ReasonCode::OutOfRange, field: Some("event_time".to_owned()), message })
    }

    /// The attributes, of a key that comes twice the last.
    pub(crate) fn attributes(&self) -> Result<Vec<(&'a str, &'a str)>, Refusal> {
        let mut entries: Vec<(&'a str, &'a str)> = Vec::with_capacity(self.attributes.len());
        for bytes in &self.attributes {
            let (key, value) = entry(bytes).map_err(|error| refusal("attributes", error.to_string()))?;
            let (key, value) = (text("attributes", key)?, text("attributes", value)?);
            match entries.iter_mut().find(|(seen, _)| *seen == key) {
                Some(seen) => seen.1 = value,
                None => entries.push((key, value)),
            }
        }
        Ok(entries)
    }
}

/// A `google.protobuf.Timestamp` in microseconds; saturating, the range is checked by the caller.
fn timestamp(bytes: &[u8]) -> Result<i64, WireError> {
    let mut cursor = Cursor::new(bytes);
    let (mut seconds, mut nanos) = (0_i64, 0_i64);
    while let Some((field, item)) = cursor.next()? {
        match (field, item) {
            (1, Item::Varint(v)) => seconds = v.cast_signed(),
            (2, Item::Varint(v)) => nanos = v.cast_signed(),
            (1 | 2, _) => return cursor.wrong_type(),
            _ => {}
        }
    }
    Ok(seconds.saturating_mul(1_000_000).saturating_add(nanos.div_euclid(1000)))
}

fn entry(bytes: &[u8]) -> Result<(&[u8], &[u8]), WireError> {
    let mut cursor = Cursor::new(bytes);
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    while let Some((field, item)) = cursor.next()? {
        match (field, item) {
            (1, Item::Bytes(v)) => key = v,
            (2, Item::Bytes(v)) => value = v,
            (1 | 2, _) => return cursor.wrong_type(),
            _ => {}
        }
    }
    Ok((key, value))
}

/// An entry of attributes as it lies in a message.
pub(crate) fn write_entry(key: &str, value: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + value.len() + 8);
    for (number, text) in [(1, key), (2, value)] {
        out.push(number << 3 | 2);
        let mut length = text.len();
        while length >= 0x80 {
            out.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
            length >>= 7;
        }
        out.push(u8::try_from(length).unwrap_or_default());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

fn refusal(field: &str, message: String) -> Refusal {
    Refusal { code: ReasonCode::MalformedPayload, field: Some(field.to_owned()), message }
}

/// Checks that bytes are UTF-8.
pub(crate) fn text<'a>(field: &str, bytes: &'a [u8]) -> Result<&'a str, Refusal> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| {
        let at = std::str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len);
        let message = format!("{field} is not UTF-8: byte {at} of {} cannot follow", bytes.len());
        Refusal { code: ReasonCode::InvalidUtf8, field: Some(field.to_owned()), message }
    })
}

#[cfg(test)]
pub(crate) mod testing {
    //! Encoding, for tests.

    pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    pub(crate) fn field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
        varint(out, number << 3 | 2);
        varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }

    /// A record of `stream` with an id and a payload.
    pub(crate) fn record(stream: &str, id: &str, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        field(&mut out, 2, stream.as_bytes());
        field(&mut out, 3, id.as_bytes());
        field(&mut out, 4, payload);
        out
    }

    pub(crate) fn batch(records: &[Vec<u8>], atomic: bool) -> bytes::Bytes {
        let mut out = Vec::new();
        for record in records {
            field(&mut out, 1, record);
        }
        if atomic {
            out.extend_from_slice(&[4 << 3, 1]);
        }
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_cut_at_any_byte_is_refused_or_holds_fewer_records() {
        let whole = testing::batch(&[testing::record("s", "1", b"{}"), testing::record("s", "2", b"{}")], false);
        for end in 0..whole.len() {
            if let Ok(request) = BatchRequest::read(&whole[..end]) {
                assert!(request.records.len() < 2, "cut at {end}");
            }
        }
        assert_eq!(BatchRequest::read(&whole).unwrap().records.len(), 2);
    }

    #[test]
    fn s31_groups_wild_lengths_and_wrong_wire_types_are_errors() {
        for bad in [&[0x0b][..], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f], &[0x08, 0x01], &[0x00, 0x01], &[0xff; 11]] {
            assert!(BatchRequest::read(bad).is_err(), "{bad:?} was read");
        }
    }

    #[test]
    fn a_time_outside_the_years_1_to_9999_is_out_of_range() {
        for seconds in [i64::MAX, i64::MIN, 253_402_300_800] {
            let mut time = vec![0x08];
            testing::varint(&mut time, seconds.cast_unsigned());
            let mut record = Vec::new();
            testing::field(&mut record, 6, &time);
            assert_eq!(WireRecord::read(RecordKind::Proto, &record).unwrap_err().code, ReasonCode::OutOfRange);
        }
    }

    #[test]
    fn of_an_attribute_that_comes_twice_the_last_counts() {
        let mut record = Vec::new();
        for value in ["1", "2"] {
            let mut entry = Vec::new();
            testing::field(&mut entry, 1, b"k");
            testing::field(&mut entry, 2, value.as_bytes());
            testing::field(&mut record, 9, &entry);
        }
        assert_eq!(WireRecord::read(RecordKind::Proto, &record).unwrap().attributes().unwrap(), [("k", "2")]);
    }
}
