//! The headers of xz, looked at before the library acts on them.
//!
//! The library makes a dictionary as large as each block's header says, and goes one call deeper for each stream without
//! a block. So the packed bytes are walked along as they are read (The .xz File Format 1.2, sections 2 and 3): a dictionary
//! that alone would take the memory, and streams without end and without contents, are refused. What a walk costs is a
//! few steps for each chunk of LZMA2, of up to 64 KiB.

use std::io::{self, Read};

use crate::codec::Refused;
use crate::feed::Stream;

/// The largest dictionary. The format's own tool asks for at most half of it.
const DICTIONARY_BYTES: u64 = 128 << 20;
/// So many streams without a block may follow each other.
const EMPTY_STREAMS: u32 = 32;
/// A stream's header and footer.
const HEADER_BYTES: usize = 12;
/// The filter that alone may be the last one.
const LZMA2: u64 = 0x21;

/// Packed bytes whose headers are looked at as they go by.
pub(crate) struct Walked {
    inner: Stream,
    walk: Walk,
}

impl Walked {
    pub(crate) fn new(inner: Stream) -> Self {
        Self { inner, walk: Walk::default() }
    }
}

impl Read for Walked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.walk.over(buffer.get(..read).unwrap_or_default())?;
        Ok(read)
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// A stream's header: magic, flags, checksum.
    StreamHeader,
    /// The size of a block's header, or the sign of the index.
    BlockSize,
    /// The rest of a block's header.
    BlockHeader,
    /// The first byte of a chunk.
    Chunk,
    /// The sizes of a chunk, behind which so many bytes of properties stand.
    ChunkSizes { properties: u64 },
    /// A byte of one of the index's numbers; so many come after it. None: the first, which says how many.
    Index { after: Option<u64> },
    /// Zeros between two streams, or the first byte of the next one.
    Padding,
}

/// How far the walk is.
struct Walk {
    next: Next,
    /// Bytes to pass over before that.
    skip: u64,
    /// What was gathered of it, and how much is needed.
    gathered: Vec<u8>,
    wanted: usize,
    /// Bytes of the block's contents, or of the index: both are padded to a multiple of four.
    bytes: u64,
    /// A number of the index, as far as it is read: its value and its bits.
    number: (u64, u32),
    check_bytes: u64,
    blocks: u64,
    empty_streams: u32,
}

impl Default for Walk {
    fn default() -> Self {
        Self {
            next: Next::StreamHeader,
            skip: 0,
            gathered: Vec::new(),
            wanted: HEADER_BYTES,
            bytes: 0,
            number: (0, 0),
            check_bytes: 0,
            blocks: 0,
            empty_streams: 0,
        }
    }
}

impl Walk {
    fn over(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        loop {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
            self.skip -= skipped as u64;
            let taken = skipped.saturating_add(self.wanted - self.gathered.len()).min(bytes.len());
            self.gathered.extend_from_slice(bytes.get(skipped..taken).unwrap_or_default());
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.skip > 0 || self.gathered.len() < self.wanted {
                return Ok(());
            }
            let found = std::mem::take(&mut self.gathered);
            self.step(&found)?;
        }
    }

    fn then(&mut self, next: Next, wanted: usize) {
        (self.next, self.wanted) = (next, wanted);
    }

    fn step(&mut self, found: &[u8]) -> io::Result<()> {
        let first = found.first().copied().unwrap_or_default();
        match self.next {
            Next::StreamHeader => {
                // The second byte of the flags, before the checksum of four bytes.
                let kind = found.len().checked_sub(5).and_then(|at| found.get(at)).copied().unwrap_or_default();
                self.check_bytes = check_bytes(kind);
                self.blocks = 0;
                self.then(Next::BlockSize, 1);
            }
            Next::BlockSize if first == 0 => {
                self.count_stream()?;
                (self.bytes, self.number) = (1, (0, 0));
                self.then(Next::Index { after: None }, 1);
            }
            Next::BlockSize => self.then(Next::BlockHeader, (usize::from(first) + 1) * 4 - 1),
            Next::BlockHeader => {
                check_dictionary(found)?;
                (self.bytes, self.blocks) = (0, self.blocks + 1);
                self.then(Next::Chunk, 1);
            }
            Next::Chunk => self.chunk(first)?,
            Next::ChunkSizes { properties } => {
                let size = found.last_chunk::<2>().map_or(0, |size| u64::from(u16::from_be_bytes(*size)));
                self.skip = size + 1 + properties;
                self.bytes += found.len() as u64 + self.skip;
                self.then(Next::Chunk, 1);
            }
            Next::Index { after } => self.index(first, after)?,
            Next::Padding if first == 0 => {}
            Next::Padding => self.then(Next::StreamHeader, HEADER_BYTES - 1),
        }
        Ok(())
    }

    fn count_stream(&mut self) -> io::Result<()> {
        self.empty_streams = if self.blocks == 0 { self.empty_streams + 1 } else { 0 };
        if self.empty_streams > EMPTY_STREAMS {
            return Err(refused(format!("has more than {EMPTY_STREAMS} streams without contents after each other")));
        }
        Ok(())
    }

    fn chunk(&mut self, control: u8) -> io::Result<()> {
        self.bytes += 1;
        match control {
            0 => {
                self.skip = padding(self.bytes) + self.check_bytes;
                self.then(Next::BlockSize, 1);
            }
            1 | 2 => self.then(Next::ChunkSizes { properties: 0 }, 2),
            0x80.. => self.then(Next::ChunkSizes { properties: u64::from(control >= 0xc0) }, 4),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk of xz begins with no known sign")),
        }
        Ok(())
    }

    fn index(&mut self, byte: u8, after: Option<u64>) -> io::Result<()> {
        self.bytes += 1;
        let (value, bits) = self.number;
        if bits > 56 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a number in the index of xz is too long"));
        }
        self.number = (value | u64::from(byte & 0x7f) << bits, bits + 7);
        if byte & 0x80 != 0 {
            return Ok(());
        }
        let (value, _) = std::mem::take(&mut self.number);
        match after.unwrap_or_else(|| value.saturating_mul(2)) {
            0 => {
                // The index's checksum and the stream's footer.
                self.skip = padding(self.bytes) + 4 + HEADER_BYTES as u64;
                self.then(Next::Padding, 1);
            }
            numbers => self.then(Next::Index { after: Some(numbers - 1) }, 1),
        }
        Ok(())
    }
}

/// Bytes that fill up to a multiple of four.
fn padding(bytes: u64) -> u64 {
    bytes.wrapping_neg() % 4
}

/// How many bytes the check of a block has.
fn check_bytes(kind: u8) -> u64 {
    match kind & 0x0f {
        0 => 0,
        1..=3 => 4,
        4..=6 => 8,
        7..=9 => 16,
        10..=12 => 32,
        _ => 64,
    }
}

fn refused(reason: String) -> io::Error {
    io::Error::other(Refused(reason))
}

/// Looks at the dictionary in a block's header, without the byte of its size: flags, two optional sizes, then each filter
/// with its number, and the size and bytes of its properties.
fn check_dictionary(header: &[u8]) -> io::Result<()> {
    let mut rest = header;
    let flags = byte(&mut rest);
    for bit in [0x40, 0x80] {
        if flags & bit != 0 {
            number(&mut rest);
        }
    }
    for _ in 0..=(flags & 3) {
        let (filter, size) = (number(&mut rest), number(&mut rest));
        if filter == LZMA2 {
            let told = byte(&mut rest.get(..1).unwrap_or_default());
            let bytes = u64::from(2 | (told & 1)).checked_shl(u32::from(told / 2) + 11).unwrap_or(u64::MAX);
            if bytes > DICTIONARY_BYTES {
                return Err(refused(format!(
                    "its dictionary of {bytes} bytes is larger than the {DICTIONARY_BYTES} that are allowed"
                )));
            }
        }
        rest = usize::try_from(size).ok().and_then(|size| rest.get(size..)).unwrap_or_default();
    }
    Ok(())
}

fn byte(rest: &mut &[u8]) -> u8 {
    let (first, after) = rest.split_first().unwrap_or((&0, &[]));
    *rest = after;
    *first
}

fn number(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for bits in (0..63).step_by(7) {
        let next = byte(rest);
        value |= u64::from(next & 0x7f) << bits;
        if next & 0x80 == 0 {
            break;
        }
    }
    value
}
