//! Tar archives: ustar, with the long names of GNU and pax.
//!
//! A pax size goes before the header's, and both a header and its extensions are read by the same rules, so that no
//! member can hide inside another.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use crate::feed::Stream;

const BLOCK: usize = 512;

/// The most bytes of a long name or of pax records.
const EXTENSION_BYTES: u64 = 1 << 20;

struct State {
    stream: Stream,
    /// Bytes of the present member that are not read, and of its padding.
    left: u64,
    padding: u64,
}

/// A tar archive being read.
pub(crate) struct Tar {
    state: Arc<Mutex<State>>,
}

/// One member's bytes.
struct Member {
    state: Arc<Mutex<State>>,
}

impl Read for Member {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let left = state.left;
        let read = (&mut state.stream).take(left).read(buffer)?;
        if read == 0 && left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends inside a member"));
        }
        state.left -= read as u64;
        Ok(read)
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// A number of a header: octal digits, or base 256 where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        let start = u64::from(first & 0x7f);
        return rest.iter().try_fold(start, |n, b| n.checked_mul(256).map(|n| n | u64::from(*b)));
    }
    let digits = field.trim_ascii().split(|b| *b == 0 || *b == b' ').next().unwrap_or_default();
    digits.iter().try_fold(0_u64, |n, b| {
        let digit = b.checked_sub(b'0').filter(|d| *d < 8)?;
        n.checked_mul(8)?.checked_add(u64::from(digit))
    })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

impl Tar {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { state: Arc::new(Mutex::new(State { stream, left: 0, padding: 0 })) }
    }

    /// The next member's name, and its bytes where it is a file. None: the archive ends.
    pub(crate) fn next_member(&mut self) -> io::Result<Option<(String, Option<Stream>)>> {
        let (mut long_name, mut pax_size) = (None, None);
        loop {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let pass = state.left + state.padding;
            let passed = io::copy(&mut (&mut state.stream).take(pass), &mut io::sink())?;
            (state.left, state.padding) = (0, 0);
            let mut header = Vec::with_capacity(BLOCK);
            (&mut state.stream).take(BLOCK as u64).read_to_end(&mut header)?;
            if passed < pass || (header.len() < BLOCK && !header.is_empty()) {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends inside a member"));
            }
            if header.iter().all(|b| *b == 0) {
                return Ok(None);
            }
            check_sum(&header)?;
            let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default();
            let kind = header.get(156).copied().unwrap_or(0);
            let own = number(field(124, 136)).ok_or_else(|| wrong("a member's size is no number"))?;
            let extension = matches!(kind, b'L' | b'K' | b'x' | b'g');
            let size = if extension { own } else { pax_size.take().unwrap_or(own) };
            let file = matches!(kind, 0 | b'0' | b'7');
            state.left = if file || extension || own > 0 { size } else { 0 };
            state.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
            if extension {
                if size > EXTENSION_BYTES {
                    return Err(wrong("a member's extension of more than 1 MiB"));
                }
                let mut data = Vec::new();
                (&mut state.stream).take(size).read_to_end(&mut data)?;
                state.left = 0;
                match kind {
                    b'L' => long_name = Some(text(&data)),
                    b'x' => pax(&data, &mut long_name, &mut pax_size),
                    _ => {}
                }
                continue;
            }
            let prefix = if field(257, 262) == b"ustar" { text(field(345, 500)) } else { String::new() };
            let short = text(field(0, 100));
            let name = long_name.take().unwrap_or(if prefix.is_empty() { short } else { format!("{prefix}/{short}") });
            drop(state);
            let stream = (file && size > 0).then(|| Box::new(Member { state: self.state.clone() }) as Stream);
            return Ok(Some((name, stream)));
        }
    }
}

fn check_sum(header: &[u8]) -> io::Result<()> {
    let told = number(header.get(148..156).unwrap_or_default());
    let sum = header.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { u64::from(*b) }).sum();
    if told == Some(sum) { Ok(()) } else { Err(wrong("a member's header does not match its checksum")) }
}

/// Records `LEN key=value\n`.
fn pax(data: &[u8], name: &mut Option<String>, size: &mut Option<u64>) {
    let mut rest = data;
    while let Some(space) = memchr::memchr(b' ', rest) {
        let len = rest.get(..space).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| d.parse::<usize>().ok());
        let Some(record) = len.and_then(|len| rest.get(space + 1..len)) else { return };
        rest = rest.get(record.len() + space + 1..).unwrap_or_default();
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        if let Some(value) = record.strip_prefix(b"path=") {
            *name = Some(String::from_utf8_lossy(value).into_owned());
        } else if let Some(value) = record.strip_prefix(b"size=") {
            *size = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
        }
    }
}
