//! Packed streams: unpacked as they are read, within limits of size and ratio.

use std::io::{self, BufReader, Read};

use lz4_flex::frame::FrameDecoder;

use crate::feed::Stream;
use crate::xz::Walked;
use crate::{Encoding, Limits};

/// How a stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Gzip,
    Zstd,
    Bzip2,
    Xz,
    Lz4,
    Snappy,
    /// As in a zip archive.
    Deflate,
}

/// Below this many unpacked bytes the ratio is not looked at: small files of zeros are harmless.
const RATIO_FROM: u64 = 16 << 20;

/// The largest window of zstd: 2^27 bytes, what its own tool allows without being asked.
const ZSTD_WINDOW_LOG: u32 = 27;

/// A limit refused to unpack any further.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) String);

impl Codec {
    pub(crate) fn detect(head: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Codec); 5] = [
            (b"\x1f\x8b\x08", Codec::Gzip),
            (b"\x28\xb5\x2f\xfd", Codec::Zstd),
            (b"\xfd7zXZ\0", Codec::Xz),
            (b"\x04\x22\x4d\x18", Codec::Lz4),
            (b"\xff\x06\0\0sNaPpY", Codec::Snappy),
        ];
        if let [b'B', b'Z', b'h', b'1'..=b'9', 0x31 | 0x17, ..] = head {
            return Some(Self::Bzip2);
        }
        MAGIC.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, codec)| *codec)
    }
}

/// Unpacks a stream. Several members one after another are one text.
pub(crate) fn unpack(stream: Stream, codec: Codec, limits: &Limits) -> io::Result<Stream> {
    let stream = if codec == Codec::Xz { Box::new(Walked::new(stream)) } else { stream };
    let packed = Tally { inner: stream, bytes: std::sync::Arc::default() };
    let taken = packed.bytes.clone();
    let unpacked: Stream = match codec {
        Codec::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
        Codec::Deflate => Box::new(flate2::read::DeflateDecoder::new(packed)),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(packed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        Codec::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(packed)),
        Codec::Xz => Box::new(lzma_rust2::XzReader::new(BufReader::new(packed), true)),
        Codec::Lz4 => Box::new(Lz4 { frames: FrameDecoder::new(Tail { inner: packed, last: [1; 8], ended: false }) }),
        Codec::Snappy => Box::new(snap::read::FrameDecoder::new(packed)),
    };
    Ok(Box::new(Guard {
        inner: unpacked,
        packed: taken,
        unpacked: 0,
        ratio: limits.ratio.max(1),
        most: limits.unpacked_bytes,
    }))
}

/// Frames of lz4, one after another. The library ends with the first one, and takes a stream that is cut off between two
/// blocks for one that ended.
struct Lz4 {
    frames: FrameDecoder<Tail>,
}

/// Packed bytes, of which the last ones are known.
struct Tail {
    inner: Tally,
    last: [u8; 8],
    ended: bool,
}

impl Read for Tail {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.ended = read == 0 && !buffer.is_empty();
        for byte in buffer.get(read.saturating_sub(self.last.len())..read).unwrap_or_default() {
            self.last.rotate_left(1);
            if let Some(newest) = self.last.last_mut() {
                *newest = *byte;
            }
        }
        Ok(read)
    }
}

impl Read for Lz4 {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.frames.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Tail { last, ended, .. } = self.frames.get_ref();
            // A frame's end is a block of no bytes, which a checksum of the contents may follow.
            match (ended, last) {
                (true, [.., 0, 0, 0, 0] | [0, 0, 0, 0, ..]) => return Ok(0),
                (true, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
                (false, _) => {}
            }
        }
    }
}

/// Counts packed bytes.
struct Tally {
    inner: Stream,
    bytes: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Read for Tally {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes.fetch_add(read as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(read)
    }
}

/// Stops at the limits.
struct Guard {
    inner: Stream,
    packed: std::sync::Arc<std::sync::atomic::AtomicU64>,
    unpacked: u64,
    ratio: u64,
    most: u64,
}

impl Read for Guard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.unpacked += read as u64;
        let packed = self.packed.load(std::sync::atomic::Ordering::Relaxed);
        if self.unpacked > self.most {
            let reason = format!("unpacks to more than {} bytes (limit unpacked_bytes)", self.most);
            return Err(io::Error::other(Refused(reason)));
        }
        if self.unpacked > RATIO_FROM && self.unpacked / packed.max(1) > self.ratio {
            let reason = format!(
                "{packed} bytes unpack to more than {} times as many (limit ratio): a decompression bomb, or a file to be unpacked by hand",
                self.ratio
            );
            return Err(io::Error::other(Refused(reason)));
        }
        Ok(read)
    }
}

/// Text of another encoding as UTF-8. What means nothing in it becomes U+FFFD.
pub(crate) struct Transcode {
    inner: Stream,
    decoder: encoding_rs::Decoder,
    input: Vec<u8>,
    output: Vec<u8>,
    given: usize,
    ended: bool,
}

impl Transcode {
    pub(crate) fn new(inner: Stream, encoding: Encoding) -> Self {
        let encoding = match encoding {
            Encoding::Utf8 => encoding_rs::UTF_8,
            Encoding::Utf16Le => encoding_rs::UTF_16LE,
            Encoding::Utf16Be => encoding_rs::UTF_16BE,
            Encoding::Windows1252 => encoding_rs::WINDOWS_1252,
        };
        let decoder = encoding.new_decoder_without_bom_handling();
        Self { inner, decoder, input: vec![0; 64 << 10], output: Vec::new(), given: 0, ended: false }
    }
}

impl Read for Transcode {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.given == self.output.len() && !self.ended {
            let read = self.inner.read(&mut self.input)?;
            self.ended = read == 0;
            let text = self.input.get(..read).unwrap_or_default();
            // Three bytes of UTF-8 for one of any of these encodings, and a letter that was begun before.
            self.output.resize(text.len() * 3 + 16, 0);
            let (_, _, written, _) = self.decoder.decode_to_utf8(text, &mut self.output, self.ended);
            self.output.truncate(written);
            self.given = 0;
        }
        let rest = self.output.get(self.given..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        self.given += count;
        Ok(count)
    }
}
