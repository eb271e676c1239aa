//! Compression of messages, by the gRPC compression specification: gzip and zstd.
//!
//! What a message holds is counted while it is unpacked: past the limit the work stops, however small the message was.

use std::io::{self, Read, Write};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tonic::Status;

use super::error;
use super::message::Charge;

/// So much is unpacked at a time between two looks at the limits.
const STEP_BYTES: u64 = 64 << 10;
/// A zstd message that asks for a larger window is refused: 8 MiB is what RFC 8878 asks decoders to support.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Answers are packed for speed.
const LEVEL: u32 = 1;
/// Smaller answers are sent as they are: packing them costs more than it saves.
const PACKED_BYTES_MIN: usize = 1024;

/// What unsupported encodings are answered with, and what the client may choose from.
pub(crate) const ACCEPTED: HeaderValue = HeaderValue::from_static("identity,gzip,zstd");

/// How messages are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Encoding {
    fn named(name: &str) -> Option<Self> {
        match name.trim() {
            "gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// How the request's messages are packed.
    pub(crate) fn of_request(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let Some(value) = headers.get("grpc-encoding") else { return Ok(None) };
        let name = value.to_str().unwrap_or("?");
        if name == "identity" {
            return Ok(None);
        }
        let unknown =
            || Status::unimplemented(format!("grpc-encoding {name:?} is not supported; use gzip, zstd or identity"));
        Self::named(name).map(Some).ok_or_else(unknown)
    }

    /// How answers may be packed: the first of the client's list that is known here.
    pub(crate) fn for_answers(headers: &HeaderMap) -> Option<Self> {
        headers.get("grpc-accept-encoding")?.to_str().ok()?.split(',').find_map(Self::named)
    }

    /// The header's value.
    pub(crate) fn header(self) -> HeaderValue {
        match self {
            Self::Gzip => HeaderValue::from_static("gzip"),
            Self::Zstd => HeaderValue::from_static("zstd"),
        }
    }
}

/// Unpacks one message of at most `max_bytes`, charging what it takes.
pub(crate) fn unpack(
    encoding: Encoding,
    packed: &[u8],
    max_bytes: usize,
    charge: &mut Charge,
) -> Result<Bytes, Status> {
    let damaged = |error: io::Error| error::malformed(format!("the message cannot be unpacked: {error}"));
    match encoding {
        Encoding::Gzip => read_all(flate2::bufread::GzDecoder::new(packed), max_bytes, charge),
        Encoding::Zstd => {
            let mut reader = zstd::stream::read::Decoder::with_buffer(packed).map_err(damaged)?;
            reader.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(damaged)?;
            read_all(reader, max_bytes, charge)
        }
    }
}

fn read_all(mut reader: impl Read, max_bytes: usize, charge: &mut Charge) -> Result<Bytes, Status> {
    let mut unpacked = Vec::new();
    loop {
        let read = reader.by_ref().take(STEP_BYTES).read_to_end(&mut unpacked);
        let read = read.map_err(|error| error::malformed(format!("the message cannot be unpacked: {error}")))?;
        if unpacked.len() > max_bytes {
            return Err(error::too_large(&format!("unpacked more than {max_bytes}"), max_bytes));
        }
        if read == 0 {
            return Ok(Bytes::from(unpacked));
        }
        charge.add(read)?;
    }
}

/// Packs an answer where that pays. None: it is sent as it is.
pub(crate) fn pack(encoding: Option<Encoding>, message: &[u8]) -> Option<Vec<u8>> {
    let encoding = encoding.filter(|_| message.len() >= PACKED_BYTES_MIN)?;
    let packed = match encoding {
        Encoding::Gzip => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(LEVEL));
            writer.write_all(message).and_then(|()| writer.finish())
        }
        Encoding::Zstd => zstd::stream::encode_all(message, i32::try_from(LEVEL).unwrap_or_default()),
    };
    packed.ok().filter(|packed| packed.len() < message.len())
}
