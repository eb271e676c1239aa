//! A Parquet file as it is, and a look at its pages while its bytes pass by.
//!
//! Who takes a file without decoding it has to believe its footer. What can be known without decoding is looked at on the
//! way: each column chunk must be filled by pages from its first byte to its last, the pages must hold as many values as
//! the footer says, and where a page has a checksum it must agree. Values themselves are not looked at.

use std::io::{self, Read};
use std::sync::Arc;

use flate2::Crc;
use parquet::file::metadata::ParquetMetaData;

use super::guard::{self, PageSizes};
use super::{HEADER_BYTES, chunk_range};
use crate::Input;

/// A Parquet file whose footer was read and checked.
#[derive(Clone)]
pub struct ParquetFile {
    /// Its bytes.
    pub input: Arc<dyn Input>,
    /// Its footer.
    pub metadata: Arc<ParquetMetaData>,
    /// How many bytes it has.
    pub bytes: u64,
}

impl std::fmt::Debug for ParquetFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetFile").field("name", &self.input.name()).field("bytes", &self.bytes).finish()
    }
}

impl ParquetFile {
    /// The file from front to back. The reader errs with `InvalidInput` where pages are not as the footer says, with
    /// `InvalidData` where a page's checksum is another than its bytes have.
    ///
    /// # Errors
    /// The bytes cannot be had, or the footer's chunks lie one over the other.
    pub fn checked_bytes(&self) -> io::Result<Box<dyn Read + Send>> {
        let mut chunks = Vec::new();
        for (group, row_group) in self.metadata.row_groups().iter().enumerate() {
            for column in row_group.columns() {
                let name = format!("row group {group}, column {}", column.column_path());
                let range = chunk_range(column).ok_or_else(|| unsound(&name, "a negative offset or size"))?;
                chunks.push(Chunk { name, from: range.start, to: range.end, values: column.num_values() });
            }
        }
        chunks.sort_by_key(|chunk| std::cmp::Reverse(chunk.from));
        for (after, before) in chunks.iter().zip(chunks.iter().skip(1)) {
            if before.to > after.from {
                return Err(unsound(&after.name, &format!("it begins inside {}", before.name)));
            }
        }
        let (stream, page) = (self.input.stream(0)?, Page::Header(Vec::new()));
        Ok(Box::new(Checked { stream, at: 0, chunks, found: 0, page }))
    }
}

struct Chunk {
    name: String,
    from: u64,
    to: u64,
    values: i64,
}

/// Where in a chunk's pages the next byte is.
enum Page {
    /// In a header, of which these bytes have come.
    Header(Vec<u8>),
    /// In a page's data.
    Data {
        /// Where its header begins.
        from: u64,
        /// So many bytes of it are to come.
        left: u64,
        crc: Crc,
        expected: Option<u32>,
    },
}

struct Checked {
    stream: Box<dyn Read + Send>,
    /// The place of the next byte.
    at: u64,
    /// Those that are not done with, the last one first.
    chunks: Vec<Chunk>,
    /// Values of the present chunk's pages so far.
    found: i64,
    page: Page,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        if read == 0 {
            return match self.chunks.last() {
                Some(chunk) if !buffer.is_empty() => Err(unsound(&chunk.name, "the file ends before it does")),
                _ => Ok(0),
            };
        }
        self.look(buffer.get(..read).unwrap_or_default())?;
        Ok(read)
    }
}

impl Checked {
    fn look(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let (false, Some(chunk)) = (bytes.is_empty(), self.chunks.last()) {
            let (from, to) = (chunk.from, chunk.to);
            let taken = if self.at < from {
                clipped(from - self.at, bytes)
            } else if self.at < to {
                self.look_inside(bytes.get(..clipped(to - self.at, bytes)).unwrap_or_default())?
            } else {
                0
            };
            self.at += taken as u64;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.at >= to {
                self.end_chunk()?;
            }
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Looks at bytes of the present chunk; gives how many belong to the present header or page.
    fn look_inside(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let name = self.chunks.last().map_or("", |chunk| chunk.name.as_str());
        match &mut self.page {
            Page::Header(head) => {
                let before = head.len();
                let room = usize::try_from(HEADER_BYTES).unwrap_or(usize::MAX).saturating_sub(before);
                head.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
                let sizes = match guard::page_sizes(head) {
                    Ok(sizes) => sizes,
                    // The rest of it may be still to come.
                    Err(_) if bytes.len() < room => return Ok(bytes.len()),
                    Err(wrong) => return Err(unsound(name, &format!("the page header at byte {}: {wrong}", self.at))),
                };
                let header = usize::try_from(sizes.header).unwrap_or(usize::MAX);
                self.page = data_of(name, self.at.saturating_sub(before as u64), &sizes)?;
                if sizes.kind == DATA_PAGE || sizes.kind == DATA_PAGE_2 {
                    self.found = self.found.saturating_add(sizes.values);
                }
                self.end_page()?;
                Ok(header.saturating_sub(before))
            }
            Page::Data { left, crc, .. } => {
                let taken = clipped(*left, bytes);
                *left -= taken as u64;
                crc.update(bytes.get(..taken).unwrap_or_default());
                self.end_page()?;
                Ok(taken)
            }
        }
    }

    /// Where the page's data is all there: its checksum is compared, and the next header comes.
    fn end_page(&mut self) -> io::Result<()> {
        let Page::Data { from, left: 0, crc, expected } = &self.page else { return Ok(()) };
        let (found, name) = (crc.sum(), self.chunks.last().map_or("", |chunk| chunk.name.as_str()));
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            let what = format!("{name}: the page at byte {from}: its checksum is {found:08x}");
            let what = format!("{what} and should be {expected:08x}: the file is damaged");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        self.page = Page::Header(Vec::new());
        Ok(())
    }

    fn end_chunk(&mut self) -> io::Result<()> {
        let Some(chunk) = self.chunks.pop() else { return Ok(()) };
        let found = std::mem::take(&mut self.found);
        match &self.page {
            Page::Header(head) if head.is_empty() && found == chunk.values => Ok(()),
            Page::Header(head) if head.is_empty() => {
                let what = format!("its pages hold {found} values, and the footer says {}", chunk.values);
                Err(unsound(&chunk.name, &what))
            }
            _ => Err(unsound(&chunk.name, "its last page reaches beyond its end")),
        }
    }
}

const DATA_PAGE: i64 = 0;
const DATA_PAGE_2: i64 = 3;

fn data_of(name: &str, at: u64, sizes: &PageSizes) -> io::Result<Page> {
    match u64::try_from(sizes.packed) {
        Ok(left) if sizes.values >= 0 && sizes.unpacked >= 0 => {
            Ok(Page::Data { from: at, left, crc: Crc::new(), expected: sizes.crc })
        }
        _ => Err(unsound(name, &format!("the page header at byte {at} has negative sizes"))),
    }
}

/// As many bytes as are wanted, or as there are.
fn clipped(wanted: u64, bytes: &[u8]) -> usize {
    usize::try_from(wanted).unwrap_or(usize::MAX).min(bytes.len())
}

fn unsound(name: &str, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: {what}"))
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::WriterProperties;

    use super::*;
    use crate::{BytesInput, Limits, read_footer};

    fn parquet() -> Vec<u8> {
        let n: ArrayRef = Arc::new((0..20_000).map(Some).collect::<Int64Array>());
        let text: ArrayRef = Arc::new((0..20_000).map(|n| Some(format!("row {n}"))).collect::<StringArray>());
        let batch = RecordBatch::try_from_iter([("n", n), ("text", text)]).unwrap();
        let properties =
            WriterProperties::builder().set_max_row_group_row_count(Some(6000)).set_data_page_size_limit(4000);
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties.build())).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    /// Reads with a buffer of so many bytes; the footer is of `sound`.
    fn read(sound: &[u8], bytes: Vec<u8>, step: usize) -> io::Result<Vec<u8>> {
        let metadata = read_footer(&BytesInput::new("a", sound.to_vec()), &Limits::default()).unwrap();
        let file = ParquetFile { bytes: bytes.len() as u64, input: Arc::new(BytesInput::new("a", bytes)), metadata };
        let (mut reader, mut out, mut buffer) = (file.checked_bytes()?, Vec::new(), vec![0; step]);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(out),
                read => out.extend_from_slice(&buffer[..read]),
            }
        }
    }

    #[test]
    fn a_sound_file_passes_unchanged_however_it_is_read() {
        let bytes = parquet();
        for step in [1, 7, 100, 4096, 1 << 20] {
            assert!(read(&bytes, bytes.clone(), step).unwrap() == bytes, "steps of {step} bytes");
        }
    }

    #[test]
    fn f53_pages_that_are_not_as_the_footer_says_are_found() {
        let bytes = parquet();
        let metadata = read_footer(&BytesInput::new("a", bytes.clone()), &Limits::default()).unwrap();
        let chunk = metadata.row_group(1).column(1).clone();
        let place = usize::try_from(chunk_range(&chunk).unwrap().start).unwrap();
        let mut zeroed = bytes.clone();
        zeroed[place..place + 64].fill(0);
        let error = read(&bytes, zeroed, 1 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("row group 1, column \"text\""), "{error}");
        let cut = bytes[..place + 100].to_vec();
        let error = read(&bytes, cut, 1 << 20).unwrap_err();
        assert!(error.to_string().contains("ends before"), "{error}");
    }
}
