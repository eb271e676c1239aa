//! CSV: rows to typed columns.
//!
//! A row with another number of fields than the header, with a value that does not fit its column, with bytes that are
//! not UTF-8, with text behind a closing quote, or over the limit of length is a bad row; reading goes on with the next
//! line. Fields may hold newlines inside quotes. Blank lines are passed over.

mod sample;
mod split;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use self::sample::{Shape, type_name};
use self::split::{Cell, Split};
use crate::cells::{Cells, Field};
use crate::feed::Feed;
use crate::open::Source;
use crate::piece::RAW_BYTES;
use crate::{BadRow, Mark, Piece, Pieces, ReadError, ReadOptions, Rows};

/// Reads one CSV text.
pub(crate) struct CsvReader {
    source: Source,
    feed: Feed,
    shape: Shape,
    options: ReadOptions,
    row: u64,
    /// The header row is still to be passed over.
    header_due: bool,
    /// Why the file cannot be read on, once the rows before are given.
    broken: Option<ReadError>,
}

/// The rows of one piece, before they are columns.
#[derive(Default)]
struct Found {
    /// Row after row, each with as many cells as there are columns.
    cells: Vec<Cell>,
    /// Each good row's number and where it lies in the window.
    rows: Vec<(u64, u32, u32)>,
    bad: Vec<BadRow>,
    /// How far the window is read.
    at: usize,
}

impl CsvReader {
    pub(crate) fn new(mut source: Source, options: &ReadOptions, resume: Option<Mark>) -> Result<Self, ReadError> {
        let shape = Shape::find(&source.head, source.whole, &options.csv);
        if shape.types.len() > options.limits.columns {
            return Err(source.limit(
                "first row",
                format!("{} columns; at most {} are read (limit columns)", shape.types.len(), options.limits.columns),
            ));
        }
        let header_due = shape.header && resume.is_none_or(|m| m.at == 0);
        let (feed, row) = source.feed(resume)?;
        Ok(Self { source, feed, shape, options: options.clone(), row, header_due, broken: None })
    }

    /// Splits rows until the piece is full or the file ends.
    fn find(&mut self) -> Result<Found, ReadError> {
        let mut found = Found::default();
        let columns = self.shape.types.len();
        while found.rows.len() < self.options.batch_rows && found.at < self.options.batch_bytes {
            let before = found.cells.len();
            let last = self.feed.ended();
            let window = self.feed.window();
            if found.at >= window.len() && last {
                break;
            }
            match self.shape.splitter.split(window, found.at, last, &mut found.cells) {
                Split::Row(next) => {
                    let raw = window.get(found.at..next).unwrap_or_default();
                    let width = found.cells.len() - before;
                    let blank = raw.iter().all(|b| matches!(b, b'\r' | b'\n')) && columns != 1;
                    let comment = self.options.csv.comment.is_some_and(|c| raw.first() == Some(&c));
                    let skipped = blank || comment || raw.is_empty();
                    if skipped || std::mem::take(&mut self.header_due) {
                        found.cells.truncate(before);
                    } else if raw.len() > self.options.limits.row_bytes {
                        found.cells.truncate(before);
                        found.bad.push(bad(self.row, raw, too_long(self.options.limits.row_bytes)));
                        self.row += 1;
                    } else if width == columns {
                        let place = |p: usize| u32::try_from(p).unwrap_or(u32::MAX);
                        found.rows.push((self.row, place(found.at), place(next)));
                        self.row += 1;
                    } else {
                        found.cells.truncate(before);
                        let reason = format!("{width} fields; the first row has {columns}");
                        found.bad.push(bad(self.row, raw, reason));
                        self.row += 1;
                    }
                    found.at = next;
                }
                Split::More => {
                    found.cells.truncate(before);
                    if self.grow(&mut found)? {
                        break;
                    }
                }
                Split::Quote(place) => {
                    found.cells.truncate(before);
                    let rest = window.get(found.at..).unwrap_or_default();
                    let line = memchr::memchr(b'\n', rest).map_or(rest.len(), |n| n + 1);
                    let column = place - found.at + 1;
                    let reason = format!("byte {column}: a quoted field that is not closed, or text behind its end");
                    found.bad.push(bad(self.row, rest.get(..line).unwrap_or_default(), reason));
                    self.row += 1;
                    found.at += line;
                }
            }
        }
        Ok(found)
    }

    /// Gets more text. True: the piece is to be given first, because its row would go over the limit.
    fn grow(&mut self, found: &mut Found) -> Result<bool, ReadError> {
        let pending = self.feed.window().len() - found.at;
        if pending <= self.options.limits.row_bytes {
            let filled = self.feed.fill().map_err(|e| self.source.io(self.feed.offset(), e));
            return match filled {
                Ok(_) => Ok(false),
                // What came whole before the break is given first.
                Err(e) if !found.rows.is_empty() || !found.bad.is_empty() => {
                    self.broken = Some(e);
                    Ok(true)
                }
                Err(e) => Err(e),
            };
        }
        if found.at > 0 {
            return Ok(true);
        }
        // One row fills the limit: an unclosed quote, or a line that never ends. Its first line is given up.
        let head = Bytes::copy_from_slice(self.feed.window().get(..RAW_BYTES).unwrap_or_default());
        let first_line = memchr::memchr(b'\n', self.feed.window());
        let reason = match first_line {
            Some(_) => "a quoted field that is not closed within the longest row allowed".to_owned(),
            None => too_long(self.options.limits.row_bytes),
        };
        let raw = first_line.map_or(head.clone(), |n| head.slice(..n.min(head.len())));
        found.bad.push(BadRow { row: self.row, raw, field: None, reason });
        self.row += 1;
        self.feed.skip_past(b'\n').map_err(|e| self.source.io(self.feed.offset(), e))?;
        Ok(true)
    }

    /// Builds the columns, setting aside rows that do not fit.
    fn build(&self, found: &mut Found) -> Result<RecordBatch, ReadError> {
        let window = self.feed.window();
        let (rows, width) = (found.rows.len(), self.shape.types.len());
        let mut good = vec![true; rows];
        let mut arrays = Vec::with_capacity(width);
        for (column, column_type) in self.shape.types.iter().enumerate() {
            let mut cells = Cells::new(*column_type, rows);
            let mut fail = |row: usize, reason: Option<String>| {
                // The first field at fault is the one that is named.
                if let Some(flag) = good.get_mut(row).filter(|f| **f) {
                    *flag = false;
                    let (number, from, to) = found.rows.get(row).copied().unwrap_or_default();
                    let raw = window.get(from as usize..to as usize).unwrap_or_default();
                    let reason = reason.unwrap_or_else(|| "not text in UTF-8".to_owned());
                    let mut entry = bad(number, raw, reason);
                    entry.field = self.shape.schema.fields().get(column).map(|f| f.name().clone());
                    found.bad.push(entry);
                }
            };
            let of_column = || found.cells.iter().skip(column).step_by(width);
            for row in cells.extend(of_column().map(|cell| self.field(*cell, window))) {
                let raw = of_column().nth(row).map_or(&[][..], |cell| cell.raw(window));
                fail(row, Some(self.misfit(column, raw)));
            }
            let (array, not_text) = cells.finish();
            not_text.into_iter().for_each(|row| fail(row, None));
            arrays.push(array);
        }
        let damaged = |e: arrow::error::ArrowError| self.source.damaged(self.feed.offset(), e.to_string());
        let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(self.shape.schema.clone(), arrays, &options).map_err(damaged)?;
        found.bad.sort_by_key(|b| b.row);
        if good.contains(&false) {
            filter_record_batch(&batch, &BooleanArray::from(good)).map_err(damaged)
        } else {
            Ok(batch)
        }
    }

    #[inline]
    fn field<'w>(&self, cell: Cell, window: &'w [u8]) -> Field<'w> {
        let raw = cell.raw(window);
        if !cell.quoted() && self.options.csv.nulls.iter().any(|n| n.as_bytes() == raw) {
            return Field::Null;
        }
        if cell.doubled() { Field::Made(undouble(raw, self.options.csv.quote)) } else { Field::Raw(raw) }
    }

    fn misfit(&self, column: usize, raw: &[u8]) -> String {
        let shown = String::from_utf8_lossy(raw.get(..raw.len().min(100)).unwrap_or_default()).into_owned();
        let field = self.shape.schema.fields().get(column);
        let wanted = field.map_or("value", |f| type_name(f.data_type()));
        let how = match self.shape.given.get(column) {
            Some(true) => "",
            _ => " (the type was found from the file's first rows; give the column another type if that is wrong)",
        };
        format!("{shown:?} is not a {wanted}{how}")
    }
}

fn undouble(raw: &[u8], quote: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr::memchr(quote, rest) {
        out.extend_from_slice(rest.get(..=at).unwrap_or_default());
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    out
}

fn too_long(limit: usize) -> String {
    format!("longer than {limit} bytes (limit row_bytes)")
}

fn bad(row: u64, raw: &[u8], reason: String) -> BadRow {
    let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
    let raw = Bytes::copy_from_slice(raw.get(..raw.len().min(RAW_BYTES)).unwrap_or_default());
    BadRow { row, raw, field: None, reason }
}

impl Pieces for CsvReader {
    fn next(&mut self) -> Result<Option<Piece>, ReadError> {
        if self.shape.types.is_empty() {
            return Ok(None);
        }
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        let first_row = self.row;
        let mut found = self.find()?;
        while found.rows.is_empty() && found.bad.is_empty() {
            if found.at == 0 {
                return Ok(None);
            }
            self.feed.consume(found.at);
            found = self.find()?;
        }
        let batch = self.build(&mut found)?;
        self.feed.consume(found.at);
        Ok(Some(Piece {
            member: None,
            table: None,
            first_row,
            next: Mark { row: self.row, at: self.feed.offset(), ..Mark::default() },
            rows: Rows::Columns(batch),
            bad: found.bad,
        }))
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.source.progress()
    }

    fn schema(&self) -> Option<SchemaRef> {
        Some(self.shape.schema.clone())
    }
}
