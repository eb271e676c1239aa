//! A window over a stream: what is not yet consumed, growing as far as its user lets it.

use std::io::{self, Read};

/// How much is asked of the stream at once.
const READ_BYTES: usize = 256 << 10;

pub(crate) type Stream = Box<dyn Read + Send>;

/// A stream with what was read of it and not yet consumed.
pub(crate) struct Feed {
    inner: Stream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    offset: u64,
    ended: bool,
}

impl Feed {
    /// `offset` is that of the stream's first byte, in the unpacked file.
    pub(crate) fn new(inner: Stream, offset: u64) -> Self {
        Self { inner, buffer: Vec::new(), start: 0, end: 0, offset, ended: false }
    }

    /// What has been read and not consumed.
    pub(crate) fn window(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The offset of the window's first byte.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Nothing comes after the window.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        let bytes = bytes.min(self.end - self.start);
        self.start += bytes;
        self.offset += bytes as u64;
    }

    /// Makes the window longer. False: the stream is at its end.
    pub(crate) fn fill(&mut self) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() - self.end < READ_BYTES / 2 {
            let len = self.end - self.start;
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, len);
            if self.buffer.len() - len < READ_BYTES {
                self.buffer.resize((len * 2).max(4 * READ_BYTES), 0);
            }
        }
        loop {
            let end = self.buffer.len().min(self.end + READ_BYTES);
            match self.inner.read(self.buffer.get_mut(self.end..end).unwrap_or_default()) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(false);
                }
                Ok(read) => {
                    self.end += read;
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Passes over everything up to and with the next `byte`. False: the stream ended before.
    pub(crate) fn skip_past(&mut self, byte: u8) -> io::Result<bool> {
        loop {
            match memchr::memchr(byte, self.window()) {
                Some(at) => {
                    self.consume(at + 1);
                    return Ok(true);
                }
                None => {
                    let all = self.window().len();
                    self.consume(all);
                    if !self.fill()? {
                        return Ok(false);
                    }
                }
            }
        }
    }
}

/// Reads a stream until `bytes` are there or it ends.
pub(crate) fn read_head(stream: &mut dyn Read, bytes: usize) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    stream.take(bytes as u64).read_to_end(&mut head)?;
    Ok(head)
}
