//! Parquet: row group by row group, page by page.
//!
//! Only the footer and the chunks of the wanted columns are read. The footer is looked over before anything is allocated
//! for it; page headers before their pages are unpacked. The decoder runs where a panic becomes an error. Encrypted files
//! are refused. Nested columns are given as structs, lists and maps.

mod chunks;
mod guard;
mod pages;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader, RowGroupMetaData};

use self::chunks::Chunks;
pub use self::pages::ParquetFile;
use crate::open::read_error;
use crate::{Input, Limits, Mark, Piece, Pieces, ReadError, ReadOptions, Rows};

/// The end of a file: the footer's length and `PAR1`.
const TAIL_BYTES: u64 = 8;

/// What a page's header may take. Statistics can make them long.
const HEADER_BYTES: u64 = 64 << 10;

/// About how many decoded bytes one piece may hold.
const PIECE_BYTES: u64 = 32 << 20;

/// Reads a file's footer, and nothing else of it.
///
/// # Errors
/// It is no Parquet file, its footer is damaged, encrypted or over the limits, or its bytes could not be had.
pub fn read_footer(input: &dyn Input, limits: &Limits) -> Result<Arc<ParquetMetaData>, ReadError> {
    let place = "footer";
    let damaged = |reason: String| ReadError::Damaged { name: input.name().into(), place: place.into(), reason };
    let Some(len) = input.len() else {
        let reason = "a Parquet file is read from its end, and where this one ends is not known".to_owned();
        return Err(ReadError::Unsupported { name: input.name().into(), reason });
    };
    if len < TAIL_BYTES + 4 {
        return Err(damaged(format!("{len} bytes are too few for a Parquet file")));
    }
    let io = |e| read_error(input.name(), place, e);
    let guess = len.min(64 << 10);
    let end = input.read_at(len - guess, usize::try_from(guess).unwrap_or(0)).map_err(io)?;
    let (before, tail) = end.split_last_chunk::<8>().ok_or_else(|| damaged("too short".into()))?;
    let [a, b, c, d, magic @ ..] = tail;
    match magic {
        b"PAR1" => {}
        b"PARE" => {
            let reason = "it is encrypted; encrypted Parquet files are not read".to_owned();
            return Err(ReadError::Unsupported { name: input.name().into(), reason });
        }
        _ => return Err(damaged("it does not end with PAR1: the file is cut off, or no Parquet file".into())),
    }
    let size = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
    if size > limits.footer_bytes {
        let reason = format!("{size} bytes; at most {} are read (limit footer_bytes)", limits.footer_bytes);
        return Err(ReadError::Limit { name: input.name().into(), place: place.into(), reason });
    }
    if size as u64 + TAIL_BYTES + 4 > len {
        return Err(damaged(format!("it claims {size} bytes in a file of {len}")));
    }
    let footer = match before.len().checked_sub(size).and_then(|at| before.get(at..)) {
        Some(footer) => bytes::Bytes::copy_from_slice(footer),
        None => input.read_at(len - TAIL_BYTES - size as u64, size).map_err(io)?,
    };
    let shape = guard::check_footer(&footer).map_err(damaged)?;
    if shape.deepest > limits.nesting {
        let (deepest, most) = (shape.deepest, limits.nesting);
        let reason = format!("columns are nested {deepest} deep; at most {most} is read (limit nesting)");
        return Err(ReadError::Limit { name: input.name().into(), place: place.into(), reason });
    }
    let decoded = catch_unwind(|| {
        ParquetMetaDataReader::decode_schema(&shape.schema).and_then(|schema| {
            let options = ParquetMetaDataOptions::new().with_schema(schema);
            ParquetMetaDataReader::decode_metadata_with_options(&footer, Some(&options))
        })
    });
    let metadata = decoded.map_err(|_| damaged("its decoder gave up".into()))?.map_err(|e| damaged(e.to_string()))?;
    check_metadata(input.name(), &metadata, len, limits)?;
    Ok(Arc::new(metadata))
}

/// What the footer claims, held against the file.
fn check_metadata(name: &str, metadata: &ParquetMetaData, len: u64, limits: &Limits) -> Result<(), ReadError> {
    let leaves = metadata.file_metadata().schema_descr().num_columns();
    if leaves > limits.columns {
        let reason = format!("{leaves} columns; at most {} are read (limit columns)", limits.columns);
        return Err(ReadError::Limit { name: name.into(), place: "footer".into(), reason });
    }
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let damaged = |place: String, reason: String| ReadError::Damaged { name: name.into(), place, reason };
        if group.num_rows() < 0 {
            return Err(damaged(format!("row group {number}"), format!("{} rows", group.num_rows())));
        }
        for column in group.columns() {
            let place = || format!("row group {number}, column {}", column.column_path());
            let range = chunk_range(column).ok_or_else(|| damaged(place(), "a negative offset or size".into()))?;
            if range.end > len {
                return Err(damaged(place(), format!("its bytes {range:?} reach beyond the file's {len}")));
            }
            let repeated = column.column_descr().max_rep_level() > 0;
            if column.num_values() < 0 || (!repeated && column.num_values() != group.num_rows()) {
                let reason = format!("{} values in a row group of {} rows", column.num_values(), group.num_rows());
                return Err(damaged(place(), reason));
            }
        }
    }
    Ok(())
}

fn chunk_range(column: &parquet::file::metadata::ColumnChunkMetaData) -> Option<Range<u64>> {
    let data = u64::try_from(column.data_page_offset()).ok()?;
    let dictionary = column.dictionary_page_offset().map(u64::try_from).transpose().ok()?;
    let start = dictionary.filter(|d| *d > 0).map_or(data, |d| d.min(data));
    Some(start..start.checked_add(u64::try_from(column.compressed_size()).ok()?)?)
}

/// Reads one Parquet file.
pub(crate) struct ParquetReader {
    input: Arc<dyn Input>,
    options: ReadOptions,
    metadata: ArrowReaderMetadata,
    mask: ProjectionMask,
    schema: SchemaRef,
    len: u64,
    read: Arc<AtomicU64>,
    group: usize,
    /// The row within the group that comes next.
    row: u64,
    /// Rows of the groups before.
    before: u64,
    batches: Option<ParquetRecordBatchReader>,
}

impl ParquetReader {
    pub(crate) fn new(input: Arc<dyn Input>, options: &ReadOptions, resume: Option<Mark>) -> Result<Self, ReadError> {
        let footer = read_footer(input.as_ref(), &options.limits)?;
        let len = input.len().unwrap_or_default();
        let name = input.name();
        let damaged = |reason: String| ReadError::Damaged { name: name.into(), place: "schema".into(), reason };
        let build = |skip: bool| {
            let reader_options = ArrowReaderOptions::new().with_skip_arrow_metadata(skip);
            catch_unwind(AssertUnwindSafe(|| ArrowReaderMetadata::try_new(footer.clone(), reader_options)))
        };
        // A damaged Arrow schema among the file's properties is no loss: the Parquet schema says what is needed.
        let metadata = match build(false) {
            Ok(Ok(metadata)) => metadata,
            _ => build(true).map_err(|_| damaged("its decoder gave up".into()))?.map_err(|e| damaged(e.to_string()))?,
        };
        let descriptor = footer.file_metadata().schema_descr();
        let mut wanted = metadata.schema().clone();
        let mask = match &options.columns {
            None => ProjectionMask::all(),
            Some(names) => {
                let roots: Vec<usize> = (wanted.fields().iter().enumerate())
                    .filter(|(_, f)| names.contains(f.name()))
                    .map(|(i, _)| i)
                    .collect();
                wanted = Arc::new(wanted.project(&roots).map_err(|e| damaged(e.to_string()))?);
                ProjectionMask::roots(descriptor, roots)
            }
        };
        let mark = resume.unwrap_or_default();
        let group = usize::try_from(mark.at).unwrap_or(usize::MAX);
        let before: u64 = footer.row_groups().iter().take(group).map(|g| g.num_rows().cast_unsigned()).sum();
        let inside = mark.row.checked_sub(before).filter(|row| {
            group == footer.num_row_groups() && *row == 0
                || footer.row_groups().get(group).is_some_and(|g| *row <= g.num_rows().cast_unsigned())
        });
        let Some(row) = inside else {
            let reason = format!("row group {group} does not hold row {}", mark.row);
            return Err(ReadError::Mark { name: name.into(), reason });
        };
        let read = Arc::new(AtomicU64::new(0));
        Ok(Self {
            input,
            options: options.clone(),
            metadata,
            mask,
            schema: wanted,
            len,
            read,
            group,
            row,
            before,
            batches: None,
        })
    }

    fn damaged(&self, reason: String) -> ReadError {
        ReadError::Damaged {
            name: self.input.name().to_owned(),
            place: format!("row group {}, row {}", self.group, self.row),
            reason,
        }
    }

    /// What the decoder says: bytes that could not be had stay what they are.
    fn failed(&self, error: Box<dyn std::error::Error + Send + Sync>) -> ReadError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
        while let Some(e) = cause {
            if let Some(io) = e.downcast_ref::<std::io::Error>() {
                let source = std::io::Error::new(io.kind(), io.to_string());
                let place = format!("row group {}, row {}", self.group, self.row);
                return ReadError::Io { name: self.input.name().to_owned(), place, source };
            }
            cause = e.source();
        }
        self.damaged(error.to_string())
    }

    /// The chunks of a row group that are wanted.
    fn wanted(&self, group: &RowGroupMetaData) -> Vec<(String, Range<u64>)> {
        let columns = group.columns().iter().enumerate().filter(|(leaf, _)| self.mask.leaf_included(*leaf));
        columns.filter_map(|(_, c)| Some((c.column_path().string(), chunk_range(c)?))).collect()
    }

    /// Begins the present row group.
    fn start(&self, group: &RowGroupMetaData) -> Result<ParquetRecordBatchReader, ReadError> {
        let columns = self.wanted(group);
        let place = format!("row group {}", self.group);
        let chunks = Chunks::new(self.input.clone(), self.len, columns, &self.options.limits, self.read.clone())
            .map_err(|e| read_error(self.input.name(), &place, e))?;
        if let Some(next) = self.metadata.metadata().row_groups().get(self.group + 1) {
            let next: Vec<Range<u64>> = self.wanted(next).into_iter().map(|(_, range)| range).collect();
            if next.iter().map(|range| range.end - range.start).sum::<u64>() <= self.options.limits.fetch_bytes {
                self.input.expect_ranges(&next);
            }
        }
        let rows = group.num_rows().cast_unsigned().max(1);
        let row_bytes = group.total_byte_size().max(1).cast_unsigned() / rows;
        let fit = usize::try_from(PIECE_BYTES / row_bytes.max(1)).unwrap_or(1).max(1);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, self.metadata.clone())
            .with_row_groups(vec![self.group])
            .with_projection(self.mask.clone())
            .with_batch_size(self.options.batch_rows.min(fit))
            .with_offset(usize::try_from(self.row).unwrap_or(usize::MAX));
        let built = catch_unwind(AssertUnwindSafe(|| builder.build()));
        built.map_err(|_| self.damaged("its decoder gave up".into()))?.map_err(|e| self.failed(Box::new(e)))
    }
}

impl Pieces for ParquetReader {
    fn next(&mut self) -> Result<Option<Piece>, ReadError> {
        loop {
            let footer = self.metadata.metadata().clone();
            let Some(group) = footer.row_groups().get(self.group) else { return Ok(None) };
            let rows = group.num_rows().cast_unsigned();
            if self.row < rows {
                let mut batches = match self.batches.take() {
                    Some(batches) => batches,
                    None => self.start(group)?,
                };
                let next = catch_unwind(AssertUnwindSafe(|| batches.next()));
                let next =
                    next.map_err(|_| self.damaged("its decoder gave up: the pages contradict each other".into()))?;
                match next {
                    Some(Ok(batch)) if batch.num_rows() > 0 => {
                        let first_row = self.before + self.row;
                        self.row += batch.num_rows() as u64;
                        self.batches = Some(batches);
                        let next = Mark { row: self.before + self.row, at: self.group as u64, ..Mark::default() };
                        let rows = Rows::Columns(batch);
                        return Ok(Some(Piece { member: None, table: None, first_row, next, rows, bad: Vec::new() }));
                    }
                    Some(Err(e)) => return Err(self.failed(Box::new(e))),
                    _ => return Err(self.damaged(format!("{} of {rows} rows are there", self.row))),
                }
            }
            self.batches = None;
            self.before += rows;
            self.row = 0;
            self.group += 1;
        }
    }

    fn progress(&self) -> (u64, Option<u64>) {
        (self.read.load(Ordering::Relaxed), Some(self.len))
    }

    fn schema(&self) -> Option<SchemaRef> {
        Some(self.schema.clone())
    }

    fn parquet(&self) -> Option<ParquetFile> {
        let metadata = self.metadata.metadata().clone();
        Some(ParquetFile { input: self.input.clone(), metadata, bytes: self.len })
    }
}
