//! From a file to its reader: unpack, detect, begin.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::archive::{self, Archive};
use crate::codec::{self, Codec, Refused};
use crate::csv::CsvReader;
use crate::detect::{self, Kind};
use crate::feed::{Feed, Stream, read_head};
use crate::ipc::ArrowReader;
use crate::json::JsonReader;
use crate::lines::LineReader;
use crate::parquet::ParquetReader;
use crate::sql::SqlReader;
use crate::{BytesInput, Encoding, Format, Input, Mark, Pieces, ReadError, ReadOptions};

/// How much of a text is looked at before it is read: for the format, CSV's types and the like.
const HEAD_BYTES: usize = 256 << 10;

/// A text about to be read, with its head.
pub(crate) struct Source {
    pub(crate) name: String,
    /// The first bytes, without a byte order mark.
    pub(crate) head: Vec<u8>,
    /// The head is all there is.
    pub(crate) whole: bool,
    stream: Option<Stream>,
    /// Where the text can be read from any place: the file, and where in it the text begins.
    seek: Option<(Arc<dyn Input>, u64)>,
    read: Arc<AtomicU64>,
    total: Option<u64>,
}

impl Source {
    /// From a mark on, or from the beginning; and the number of the row there.
    pub(crate) fn feed(&mut self, resume: Option<Mark>) -> Result<(Feed, u64), ReadError> {
        let mark = resume.unwrap_or_default();
        let beginning: Stream = Box::new(io::Cursor::new(self.head.clone()).chain(self.stream.take().into_reader()));
        if mark.at == 0 {
            return Ok((Feed::new(beginning, 0), mark.row));
        }
        if let Some((input, base)) = &self.seek {
            if input.len().is_some_and(|len| base + mark.at > len) {
                return Err(ReadError::Mark {
                    name: self.name.clone(),
                    reason: format!("it has fewer than the {} bytes that were read", mark.at),
                });
            }
            self.read.store(base + mark.at, Ordering::Relaxed);
            let stream = input.stream(base + mark.at).map_err(|e| self.io(mark.at, e))?;
            return Ok((Feed::new(Box::new(Counted { inner: stream, read: self.read.clone() }), mark.at), mark.row));
        }
        let mut rest = beginning;
        let skipped = io::copy(&mut rest.by_ref().take(mark.at), &mut io::sink()).map_err(|e| self.io(mark.at, e))?;
        if skipped < mark.at {
            return Err(ReadError::Mark {
                name: self.name.clone(),
                reason: format!("it unpacks to {skipped} bytes, fewer than the {} that were read", mark.at),
            });
        }
        Ok((Feed::new(rest, mark.at), mark.row))
    }

    pub(crate) fn progress(&self) -> (u64, Option<u64>) {
        (self.read.load(Ordering::Relaxed), self.total)
    }

    /// How long the text is. None: only reading to the end tells.
    pub(crate) fn length(&self) -> Option<u64> {
        self.seek.as_ref().and_then(|(input, base)| input.len()?.checked_sub(*base))
    }

    pub(crate) fn io(&self, offset: u64, source: io::Error) -> ReadError {
        read_error(&self.name, &format!("after byte {offset}"), source)
    }

    pub(crate) fn damaged(&self, offset: u64, reason: String) -> ReadError {
        ReadError::Damaged { name: self.name.clone(), place: format!("byte {offset}"), reason }
    }

    pub(crate) fn limit(&self, place: &str, reason: String) -> ReadError {
        ReadError::Limit { name: self.name.clone(), place: place.to_owned(), reason }
    }
}

/// An absent stream is an empty one.
trait IntoReader {
    fn into_reader(self) -> Stream;
}

impl IntoReader for Option<Stream> {
    fn into_reader(self) -> Stream {
        self.unwrap_or_else(|| Box::new(io::empty()))
    }
}

/// What an error of reading means: a limit, damage, or bytes that could not be had.
pub(crate) fn read_error(name: &str, place: &str, source: io::Error) -> ReadError {
    let (name, place) = (name.to_owned(), place.to_owned());
    if let Some(refused) = source.get_ref().and_then(|e| e.downcast_ref::<Refused>()) {
        return ReadError::Limit { name, place, reason: refused.to_string() };
    }
    match source.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            ReadError::Damaged { name, place, reason: source.to_string() }
        }
        io::ErrorKind::UnexpectedEof => {
            ReadError::Damaged { name, place, reason: format!("the file ends too early, it is cut off: {source}") }
        }
        _ => ReadError::Io { name, place, source },
    }
}

/// Counts what is taken from the file.
pub(crate) struct Counted {
    pub(crate) inner: Stream,
    pub(crate) read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Begins to read a file, at its beginning or where a mark says.
///
/// # Errors
/// The file is of no known format, its head is damaged, or the mark does not fit it.
pub fn open(input: Arc<dyn Input>, options: &ReadOptions, resume: Option<Mark>) -> Result<Box<dyn Pieces>, ReadError> {
    let name = input.name().to_owned();
    let failed = |e| read_error(&name, "at its beginning", e);
    let read = Arc::new(AtomicU64::new(0));
    let total = input.len();
    let mut raw: Stream = Box::new(Counted { inner: input.stream(0).map_err(failed)?, read: read.clone() });
    let head = read_head(&mut raw, detect::MAGIC_BYTES).map_err(failed)?;
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        let members = archive::zip::members(&input, options)?;
        return Ok(Box::new(Archive::zip(input, members, options, resume, read)));
    }
    let random = |format| options.format.is_none() || options.format == Some(format);
    if (head.starts_with(b"PAR1") || head.starts_with(b"PARE")) && random(Format::Parquet) {
        return Ok(Box::new(ParquetReader::new(input, options, resume)?));
    }
    let codec = Codec::detect(&head);
    let stream: Stream = Box::new(io::Cursor::new(head).chain(raw));
    let (stream, seekable) = match codec {
        Some(codec) => (codec::unpack(stream, codec, &options.limits).map_err(failed)?, None),
        None => (stream, Some(input)),
    };
    begin(Begin { name, stream, seekable, read, total, nested: false }, options, resume)
}

/// A stream whose format is not known yet.
pub(crate) struct Begin {
    pub(crate) name: String,
    pub(crate) stream: Stream,
    pub(crate) seekable: Option<Arc<dyn Input>>,
    pub(crate) read: Arc<AtomicU64>,
    pub(crate) total: Option<u64>,
    /// It is a member of an archive: another archive inside is refused.
    pub(crate) nested: bool,
}

/// Finds the format of an unpacked stream and begins.
pub(crate) fn begin(
    mut from: Begin,
    options: &ReadOptions,
    resume: Option<Mark>,
) -> Result<Box<dyn Pieces>, ReadError> {
    let (mut head, broken) = match read_head(&mut from.stream, HEAD_BYTES) {
        Ok(head) => (head, None),
        Err(e) => (Vec::new(), Some(e)),
    };
    if let Some(e) = broken {
        return Err(read_error(&from.name, "at its beginning", e));
    }
    if detect::is_tar(&head) {
        if from.nested {
            return Err(unsupported(
                &from.name,
                "an archive within an archive is not read; unpack the outer one".into(),
            ));
        }
        let stream: Stream = Box::new(io::Cursor::new(head).chain(from.stream));
        let archive = Archive::tar(stream, from.name, options, resume, (from.read, from.total));
        return Ok(Box::new(archive));
    }
    let mut whole = head.len() < HEAD_BYTES;
    let (encoding, mark_bytes) = detect::encoding(&head, options.csv.encoding);
    let (mut stream, mut seekable) = (from.stream, from.seekable);
    if encoding == Encoding::Utf8 {
        head.drain(..mark_bytes);
    } else {
        // Text of another encoding is read as UTF-8 from here on; its offsets are those of the UTF-8.
        let packed: Stream = Box::new(io::Cursor::new(head.split_off(mark_bytes)).chain(stream));
        stream = Box::new(codec::Transcode::new(packed, encoding));
        head = read_head(&mut stream, HEAD_BYTES).map_err(|e| read_error(&from.name, "at its beginning", e))?;
        whole = head.len() < HEAD_BYTES;
        seekable = None;
    }
    let format = match options.format {
        Some(format) => format,
        None => match detect::format(&head, &from.name) {
            Kind::Known(format) => format,
            Kind::Other(what) => return Err(unsupported(&from.name, what.to_owned())),
        },
    };
    let seek = seekable.clone().map(|input| (input, mark_bytes as u64));
    let source =
        Source { name: from.name, head, whole, stream: Some(stream), seek, read: from.read, total: from.total };
    Ok(match format {
        Format::Csv => Box::new(CsvReader::new(source, options, resume)?),
        Format::JsonLines => Box::new(LineReader::json(source, options, resume)?),
        Format::Lines => Box::new(LineReader::text(source, options, resume)?),
        Format::Json => Box::new(JsonReader::new(source, options, resume)?),
        Format::Sql => Box::new(SqlReader::new(source, options, resume)?),
        Format::Parquet => Box::new(ParquetReader::new(in_memory(source, seekable, options)?, options, resume)?),
        Format::Arrow => Box::new(ArrowReader::new(source, options, resume)?),
    })
}

fn unsupported(name: &str, reason: String) -> ReadError {
    ReadError::Unsupported { name: name.to_owned(), reason }
}

/// A packed file that must be read from its end is held in memory, up to the limit.
fn in_memory(
    source: Source,
    seekable: Option<Arc<dyn Input>>,
    options: &ReadOptions,
) -> Result<Arc<dyn Input>, ReadError> {
    if let Some(input) = seekable {
        return Ok(input);
    }
    let limit = options.limits.page_bytes as u64;
    let mut bytes = source.head.clone();
    let mut rest = source.stream.into_reader();
    let read = rest.by_ref().take(limit).read_to_end(&mut bytes);
    read.map_err(|e| read_error(&source.name, "unpacking", e))?;
    if bytes.len() as u64 > limit {
        let reason = format!("a Parquet file inside another is read up to {limit} bytes; unpack it first");
        return Err(unsupported(&source.name, reason));
    }
    Ok(Arc::new(BytesInput::new(source.name, bytes)))
}
