//! Zip archives: their directory, and members stored or deflated.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::codec::{self, Codec};
use crate::feed::Stream;
use crate::open::{Counted, read_error};
use crate::{Input, ReadError, ReadOptions};

/// The end record is looked for in this many last bytes: its own 22 and the longest comment.
const END_BYTES: u64 = 22 + 65_535;

/// The largest directory.
const DIRECTORY_BYTES: u64 = 64 << 20;

/// A member, as the directory tells.
pub(crate) struct ZipMember {
    pub(crate) name: String,
    method: u16,
    flags: u16,
    packed: u64,
    unpacked: u64,
    crc: u32,
    at: u64,
}

/// A member's unpacked bytes. The last are given only when their number and checksum are those of the directory.
struct Whole {
    inner: Stream,
    crc: flate2::Crc,
    read: u64,
    unpacked: u64,
    sum: u32,
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if read == 0 && !buffer.is_empty() && self.read != self.unpacked {
            return wrong(format!("it has {} bytes; the directory says {}", self.read, self.unpacked));
        }
        self.crc.update(buffer.get(..read).unwrap_or_default());
        self.read += read as u64;
        if self.read > self.unpacked {
            return wrong(format!("it has more bytes than the {} that the directory says", self.unpacked));
        }
        // With the last byte, and not after it: a reader may have no reason to ask for more.
        if self.read == self.unpacked && self.crc.sum() != self.sum {
            let found = self.crc.sum();
            return wrong(format!("its checksum is {found:08x}; the directory says {:08x}", self.sum));
        }
        Ok(read)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Where the directory lies, and how many members it lists.
fn directory(input: &dyn Input, len: u64) -> std::io::Result<Option<(u64, u64, u64)>> {
    let from = len.saturating_sub(END_BYTES);
    let end = input.read_at(from, usize::try_from(len - from).unwrap_or(0))?;
    let Some(at) = memchr::memmem::rfind(&end, b"PK\x05\x06") else { return Ok(None) };
    let (count, size, offset) = (u16_at(&end, at + 10), u32_at(&end, at + 12), u32_at(&end, at + 16));
    let (Some(count), Some(size), Some(offset)) = (count, size, offset) else { return Ok(None) };
    if offset != u32::MAX && count != u16::MAX && size != u32::MAX {
        return Ok(Some((u64::from(offset), u64::from(size), u64::from(count))));
    }
    // Zip64: a locator before the end record says where its larger twin lies.
    let Some(place) = at.checked_sub(20).and_then(|l| u64_at(&end, l + 8)) else { return Ok(None) };
    let wide = input.read_at(place, 56)?;
    Ok(wide
        .starts_with(b"PK\x06\x06")
        .then(|| Some((u64_at(&wide, 48)?, u64_at(&wide, 40)?, u64_at(&wide, 32)?)))
        .flatten())
}

/// The members that a zip archive's directory lists.
pub(crate) fn members(input: &Arc<dyn Input>, options: &ReadOptions) -> Result<Vec<ZipMember>, ReadError> {
    let place = || "zip directory".to_owned();
    let damaged =
        |reason: &str| ReadError::Damaged { name: input.name().into(), place: place(), reason: reason.into() };
    let Some(len) = input.len() else {
        let reason = "a zip archive is read from its end, and where this one ends is not known".to_owned();
        return Err(ReadError::Unsupported { name: input.name().into(), reason });
    };
    let io = |e| read_error(input.name(), "zip directory", e);
    let (offset, size, count) =
        directory(input.as_ref(), len).map_err(io)?.ok_or_else(|| damaged("it has no end: the archive is cut off"))?;
    if size > DIRECTORY_BYTES || count > options.limits.members {
        let reason = format!(
            "{count} members in {size} bytes; at most {} in {DIRECTORY_BYTES} are read",
            options.limits.members
        );
        return Err(ReadError::Limit { name: input.name().into(), place: place(), reason });
    }
    if offset.checked_add(size).is_none_or(|end| end > len) {
        return Err(damaged("it reaches beyond the file"));
    }
    let bytes = input.read_at(offset, usize::try_from(size).unwrap_or(0)).map_err(io)?;
    let mut out: Vec<ZipMember> = Vec::new();
    let mut rest: &[u8] = &bytes;
    while rest.starts_with(b"PK\x01\x02") {
        let (member, next) = entry(rest).ok_or_else(|| damaged("an entry is cut off"))?;
        out.push(member);
        rest = next;
    }
    // Members that share bytes are how a small archive claims to hold terabytes.
    let mut spans: Vec<(u64, u64)> = out.iter().map(|m| (m.at, m.at.saturating_add(m.packed))).collect();
    spans.sort_unstable();
    if spans.iter().zip(spans.iter().skip(1)).any(|((_, end), (start, _))| end > start) {
        return Err(damaged("members overlap: a decompression bomb"));
    }
    Ok(out)
}

fn entry(bytes: &[u8]) -> Option<(ZipMember, &[u8])> {
    let name_len = usize::from(u16_at(bytes, 28)?);
    let extra_len = usize::from(u16_at(bytes, 30)?);
    let comment_len = usize::from(u16_at(bytes, 32)?);
    let name = bytes.get(46..46 + name_len)?;
    let mut member = ZipMember {
        name: String::from_utf8_lossy(name).into_owned(),
        flags: u16_at(bytes, 8)?,
        method: u16_at(bytes, 10)?,
        packed: u64::from(u32_at(bytes, 20)?),
        unpacked: u64::from(u32_at(bytes, 24)?),
        crc: u32_at(bytes, 16)?,
        at: u64::from(u32_at(bytes, 42)?),
    };
    let extra = bytes.get(46 + name_len..46 + name_len + extra_len)?;
    wide_sizes(&mut member, extra);
    Some((member, bytes.get(46 + name_len + extra_len + comment_len..)?))
}

/// Sizes of more than 32 bits stand in an extra field, those that need it, in this order.
fn wide_sizes(member: &mut ZipMember, extra: &[u8]) {
    let mut rest = extra;
    while let (Some(id), Some(len)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let Some(data) = rest.get(4..4 + usize::from(len)) else { return };
        if id == 1 {
            let mut words = data.chunks_exact(8).filter_map(|w| u64_at(w, 0));
            for size in [&mut member.unpacked, &mut member.packed, &mut member.at] {
                if *size == u64::from(u32::MAX) {
                    *size = words.next().unwrap_or(*size);
                }
            }
        }
        rest = rest.get(4 + usize::from(len)..).unwrap_or_default();
    }
}

impl ZipMember {
    /// The member's bytes. None: it holds none, such as a folder.
    pub(crate) fn open(
        &self,
        input: &Arc<dyn Input>,
        limits: &crate::Limits,
        read: &Arc<AtomicU64>,
    ) -> Result<Option<Stream>, ReadError> {
        if self.name.ends_with('/') || self.packed == 0 {
            return Ok(None);
        }
        let place = format!("member {:?}", self.name);
        let unsupported =
            |reason: String| ReadError::Unsupported { name: input.name().into(), reason: format!("{place}: {reason}") };
        if self.flags & 1 != 0 {
            return Err(unsupported("it is encrypted; encrypted members are not read".into()));
        }
        let io = |e| read_error(input.name(), &place, e);
        let head = input.read_at(self.at, 30).map_err(io)?;
        let lengths = u16_at(&head, 26).zip(u16_at(&head, 28));
        let (Some((name_len, extra_len)), true) = (lengths, head.starts_with(b"PK\x03\x04")) else {
            let reason = "no member begins where the directory says".to_owned();
            return Err(ReadError::Damaged { name: input.name().into(), place, reason });
        };
        let from = self.at + 30 + u64::from(name_len) + u64::from(extra_len);
        let stream = input.stream(from).map_err(io)?;
        let packed: Stream = Box::new(Counted { inner: Box::new(stream.take(self.packed)), read: read.clone() });
        let inner = match self.method {
            0 => packed,
            8 => codec::unpack(packed, Codec::Deflate, limits).map_err(io)?,
            93 => codec::unpack(packed, Codec::Zstd, limits).map_err(io)?,
            other => return Err(unsupported(format!("packed by method {other}; stored, deflate and zstd are read"))),
        };
        let (unpacked, sum) = (self.unpacked, self.crc);
        Ok(Some(Box::new(Whole { inner, crc: flate2::Crc::new(), read: 0, unpacked, sum })))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use crate::{BytesInput, ReadError, ReadOptions, open};

    /// An archive of one member.
    fn archive(method: u16, packed: &[u8], text: &[u8], unpacked: u32) -> Vec<u8> {
        let mut crc = flate2::Crc::new();
        crc.update(text);
        let len = u32::try_from(packed.len()).unwrap();
        let mut common = [20_u16, 0, method, 0, 0].map(u16::to_le_bytes).concat();
        common.extend([crc.sum(), len, unpacked].map(u32::to_le_bytes).concat());
        common.extend([7_u16, 0].map(u16::to_le_bytes).concat());
        let member = [b"PK\x03\x04".as_slice(), &common, b"a.jsonl", packed].concat();
        let directory = [b"PK\x01\x02\x14\0".as_slice(), &common, &[0; 14], b"a.jsonl"].concat();
        let mut end = b"PK\x05\x06\0\0\0\0\x01\0\x01\0".to_vec();
        end.extend(u32::try_from(directory.len()).unwrap().to_le_bytes());
        end.extend(u32::try_from(member.len()).unwrap().to_le_bytes());
        end.extend([0_u8, 0]);
        [member, directory, end].concat()
    }

    fn read(bytes: Vec<u8>) -> Result<usize, ReadError> {
        let mut reader = open(Arc::new(BytesInput::new("a.zip", bytes)), &ReadOptions::default(), None)?;
        let mut rows = 0;
        while let Some(piece) = reader.next()? {
            rows += piece.rows.len();
        }
        Ok(rows)
    }

    #[test]
    fn a_member_whose_bytes_are_not_those_of_the_directory_is_refused() {
        let text: String = (0..50_000).map(|i| format!("{{\"i\":{}}}\n", 100_000 + i)).collect();
        let text = text.as_bytes();
        let len = u32::try_from(text.len()).unwrap();
        let deflate = |bytes: &[u8]| {
            let mut out = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        };
        // A digit for a digit: nothing else tells.
        let mut flipped = text.to_vec();
        let digit = text.len() / 2 + text[text.len() / 2..].iter().position(u8::is_ascii_digit).unwrap();
        flipped[digit] ^= 1;
        for (method, whole, other) in [(0, text.to_vec(), flipped.clone()), (8, deflate(text), deflate(&flipped))] {
            assert_eq!(read(archive(method, &whole, text, len)).unwrap(), 50_000);
            for (packed, unpacked, why) in
                [(&other, len, "its checksum is"), (&whole, len + 1, "it has"), (&whole, len - 1, "it has more bytes")]
            {
                let error = read(archive(method, packed, text, unpacked)).unwrap_err();
                assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
                assert!(error.to_string().contains(why), "{error}");
            }
        }
    }
}
