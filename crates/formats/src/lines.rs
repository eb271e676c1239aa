//! Text in lines: one JSON document a line, or plain lines as rows.
//!
//! Blank lines are passed over and not counted. A line over the limit is a bad row of which only the head is kept; it is
//! never held whole.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use lakegate_model::ColumnType;

use crate::cells::{Cells, arrow_type};
use crate::feed::Feed;
use crate::open::Source;
use crate::piece::RAW_BYTES;
use crate::{BadRow, LinePattern, Mark, Piece, Pieces, ReadError, ReadOptions, Rows};

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum As {
    Document,
    Row(LinePattern),
}

/// Reads lines.
pub(crate) struct LineReader {
    source: Source,
    feed: Feed,
    lines: As,
    options: ReadOptions,
    schema: SchemaRef,
    row: u64,
    broken: Option<ReadError>,
}

/// A column of a log's lines.
type LogColumn = (&'static str, ColumnType);

const WHOLE: [LogColumn; 1] = [("line", ColumnType::String)];

const COMBINED: [LogColumn; 9] = [
    ("host", ColumnType::String),
    ("ident", ColumnType::String),
    ("user", ColumnType::String),
    ("time", ColumnType::Timestamptz),
    ("request", ColumnType::String),
    ("status", ColumnType::Int),
    ("bytes", ColumnType::Long),
    ("referer", ColumnType::String),
    ("user_agent", ColumnType::String),
];

fn columns(pattern: LinePattern) -> &'static [LogColumn] {
    match pattern {
        LinePattern::Whole => &WHOLE,
        LinePattern::Combined => &COMBINED,
    }
}

/// The lines of one piece, as places in the window.
#[derive(Default)]
struct Found {
    spans: Vec<(u64, std::ops::Range<u32>)>,
    bad: Vec<BadRow>,
    at: usize,
}

impl LineReader {
    pub(crate) fn json(source: Source, options: &ReadOptions, resume: Option<Mark>) -> Result<Self, ReadError> {
        Self::new(source, As::Document, options, resume)
    }

    pub(crate) fn text(source: Source, options: &ReadOptions, resume: Option<Mark>) -> Result<Self, ReadError> {
        Self::new(source, As::Row(options.lines), options, resume)
    }

    fn new(mut source: Source, lines: As, options: &ReadOptions, resume: Option<Mark>) -> Result<Self, ReadError> {
        let (feed, row) = source.feed(resume)?;
        let columns = match lines {
            As::Document => &[],
            As::Row(pattern) => columns(pattern),
        };
        let fields: Vec<Field> = columns.iter().map(|(n, t)| Field::new(*n, arrow_type(*t), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        Ok(Self { source, feed, lines, options: options.clone(), schema, row, broken: None })
    }

    fn find(&mut self) -> Result<Found, ReadError> {
        let mut found = Found::default();
        while found.spans.len() < self.options.batch_rows && found.at < self.options.batch_bytes {
            let window = self.feed.window();
            let rest = window.get(found.at..).unwrap_or_default();
            let line = match memchr::memchr(b'\n', rest) {
                Some(len) => rest.get(..=len).unwrap_or_default(),
                None if self.feed.ended() => rest,
                None => {
                    if self.grow(&mut found)? {
                        break;
                    }
                    continue;
                }
            };
            if line.is_empty() {
                break;
            }
            let text = line.trim_ascii();
            if text.len() > self.options.limits.row_bytes {
                found.bad.push(too_long(self.row, text, self.options.limits.row_bytes));
                self.row += 1;
            } else if !text.is_empty() {
                let from = if self.lines == As::Document { line.len() - line.trim_ascii_start().len() } else { 0 };
                let start = found.at + from;
                let end = found.at + line.trim_ascii_end().len();
                let place = |p: usize| u32::try_from(p).unwrap_or(u32::MAX);
                found.spans.push((self.row, place(start)..place(end)));
                self.row += 1;
            }
            found.at += line.len();
        }
        Ok(found)
    }

    /// Gets more text. True: the piece is to be given first.
    fn grow(&mut self, found: &mut Found) -> Result<bool, ReadError> {
        if self.feed.window().len() - found.at <= self.options.limits.row_bytes {
            let filled = self.feed.fill().map_err(|e| self.source.io(self.feed.offset(), e));
            return match filled {
                Ok(_) => Ok(false),
                Err(e) if found.at > 0 => {
                    self.broken = Some(e);
                    Ok(true)
                }
                Err(e) => Err(e),
            };
        }
        if found.at > 0 {
            return Ok(true);
        }
        found.bad.push(too_long(self.row, self.feed.window(), self.options.limits.row_bytes));
        self.row += 1;
        self.feed.skip_past(b'\n').map_err(|e| self.source.io(self.feed.offset(), e))?;
        Ok(true)
    }

    fn rows(&self, found: &mut Found) -> Result<Rows, ReadError> {
        let window = self.feed.window().get(..found.at).unwrap_or_default();
        let As::Row(pattern) = self.lines else {
            return Ok(Rows::Documents {
                body: Bytes::copy_from_slice(window),
                spans: found.spans.iter().map(|(_, span)| span.clone()).collect(),
            });
        };
        let columns = columns(pattern);
        let mut cells: Vec<Cells> = columns.iter().map(|(_, t)| Cells::new(*t, found.spans.len())).collect();
        let mut good = vec![true; found.spans.len()];
        let bad = &mut found.bad;
        let mut fail = |at: usize, field: Option<String>, reason: &str| {
            let Some(((row, span), flag)) = found.spans.get(at).zip(good.get_mut(at)).filter(|(_, f)| **f) else {
                return;
            };
            *flag = false;
            let raw = window.get(span.start as usize..span.end as usize).unwrap_or_default();
            let raw = Bytes::copy_from_slice(raw.get(..raw.len().min(RAW_BYTES)).unwrap_or_default());
            bad.push(BadRow { row: *row, raw, field, reason: reason.to_owned() });
        };
        for (at, (_, span)) in found.spans.iter().enumerate() {
            let line = window.get(span.start as usize..span.end as usize).unwrap_or_default();
            let parts = match pattern {
                LinePattern::Whole => Some(vec![Some(line.into())]),
                LinePattern::Combined => combined(line),
            };
            let Some(parts) = parts else {
                fail(
                    at,
                    None,
                    "not a line of the common or combined log format: host ident user [time] \"request\" status bytes",
                );
                cells.iter_mut().for_each(Cells::append_null);
                continue;
            };
            for ((cell, part), (name, _)) in cells.iter_mut().zip(parts).zip(columns) {
                match part {
                    None => cell.append_null(),
                    Some(text) if cell.append(&text) => {}
                    Some(_) => fail(at, Some((*name).to_owned()), "the value does not fit its column"),
                }
            }
        }
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.len());
        for (cell, (name, _)) in cells.into_iter().zip(columns) {
            let (array, not_text) = cell.finish();
            not_text.into_iter().for_each(|at| fail(at, Some((*name).to_owned()), "not text in UTF-8"));
            arrays.push(array);
        }
        let damaged = |e: arrow::error::ArrowError| self.source.damaged(self.feed.offset(), e.to_string());
        let batch = RecordBatch::try_new(self.schema.clone(), arrays).map_err(damaged)?;
        found.bad.sort_by_key(|b| b.row);
        let whole = !good.contains(&false);
        Ok(Rows::Columns(if whole {
            batch
        } else {
            filter_record_batch(&batch, &BooleanArray::from(good)).map_err(damaged)?
        }))
    }
}

impl Pieces for LineReader {
    fn next(&mut self) -> Result<Option<Piece>, ReadError> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        let first_row = self.row;
        let mut found = self.find()?;
        while found.spans.is_empty() && found.bad.is_empty() {
            if found.at == 0 {
                return Ok(None);
            }
            self.feed.consume(found.at);
            found = self.find()?;
        }
        let rows = self.rows(&mut found)?;
        self.feed.consume(found.at);
        Ok(Some(Piece {
            member: None,
            table: None,
            first_row,
            next: Mark { row: self.row, at: self.feed.offset(), ..Mark::default() },
            rows,
            bad: found.bad,
        }))
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.source.progress()
    }

    fn schema(&self) -> Option<SchemaRef> {
        (self.lines != As::Document).then(|| self.schema.clone())
    }
}

fn too_long(row: u64, text: &[u8], limit: usize) -> BadRow {
    BadRow {
        row,
        raw: Bytes::copy_from_slice(text.get(..RAW_BYTES.min(text.len())).unwrap_or_default()),
        field: None,
        reason: format!("a line of more than {limit} bytes (limit row_bytes); its head is kept"),
    }
}

type Part<'a> = Option<std::borrow::Cow<'a, [u8]>>;

/// `host ident user [10/Oct/2000:13:55:36 -0700] "request" status bytes`, and `"referer" "user agent"` where they are.
fn combined(line: &[u8]) -> Option<Vec<Part<'_>>> {
    let mut rest = line;
    let mut parts = Vec::with_capacity(COMBINED.len());
    for _ in 0..3 {
        let at = memchr::memchr(b' ', rest)?;
        parts.push(dash(rest.get(..at)?));
        rest = rest.get(at + 1..)?;
    }
    let end = memchr::memchr(b']', rest)?;
    parts.push(Some(log_time(rest.strip_prefix(b"[")?.get(..end - 1)?)?.into()));
    rest = rest.get(end + 1..)?.strip_prefix(b" ")?;
    let (request, after) = quoted(rest)?;
    parts.push(dash(request));
    let mut numbers = after.strip_prefix(b" ")?.splitn(3, |b| *b == b' ');
    parts.push(dash(numbers.next()?));
    parts.push(dash(numbers.next()?));
    let Some(rest) = numbers.next() else {
        parts.extend([None, None]);
        return Some(parts);
    };
    let (referer, after) = quoted(rest)?;
    let (agent, after) = quoted(after.strip_prefix(b" ")?)?;
    parts.extend([dash(referer), dash(agent)]);
    after.is_empty().then_some(parts)
}

fn dash(raw: &[u8]) -> Part<'_> {
    (raw != b"-").then_some(raw.into())
}

/// A text in quotes, in which a backslash guards the next byte; and what follows. Escapes are kept as they stand.
fn quoted(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = raw.strip_prefix(b"\"")?;
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', inner.get(at..)?)?;
        if inner.get(at) == Some(&b'"') {
            return Some((inner.get(..at)?, inner.get(at + 1..)?));
        }
        at += 2;
    }
}

/// `17/May/2015:10:05:03 +0000` as `2015-05-17T10:05:03+0000`.
fn log_time(raw: &[u8]) -> Option<Vec<u8>> {
    const MONTHS: [&[u8]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let month = MONTHS.iter().position(|m| raw.get(3..6) == Some(*m))? + 1;
    let mut out = Vec::with_capacity(24);
    out.extend_from_slice(raw.get(7..11)?);
    out.extend_from_slice(format!("-{month:02}-").as_bytes());
    out.extend_from_slice(raw.get(..2)?);
    out.push(b'T');
    out.extend_from_slice(raw.get(12..20)?);
    out.extend_from_slice(raw.get(21..)?);
    Some(out)
}
