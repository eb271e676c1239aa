//! Results as bytes: Arrow IPC, JSON, lines of JSON, CSV, or a table for people.
//!
//! Promises: rows are encoded batch by batch as they come; nothing holds a whole result (the table form looks at the
//! first rows for its widths). JSON: whole numbers and decimals are numbers with all their digits, times are
//! RFC 3339 (a time without a zone has no offset), dates `YYYY-MM-DD`, binary hexadecimal, NaN and infinities null,
//! and a null is written as `null`. CSV has a heading, and a null is an empty field.

mod table;

use std::io::Write;

use arrow::csv;
use arrow::ipc::writer::StreamWriter;
use arrow::json::WriterBuilder as JsonWriterBuilder;
use arrow::json::writer::LineDelimited;
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use futures::{future, stream};

use crate::error::QueryError;
use crate::run::QueryResult;

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// One JSON array of objects.
    Json,
    /// One JSON object a line.
    JsonLines,
    /// With a line of headings.
    Csv,
    /// The Arrow IPC stream.
    Arrow,
    /// With lines, and a count of rows at its end, for people.
    Table,
}

impl OutputFormat {
    /// The format that an `Accept` header likes best; JSON where it says nothing, none where it wants others only.
    #[must_use]
    pub fn for_accept(accept: Option<&str>) -> Option<Self> {
        let Some(accept) = accept.map(str::trim).filter(|a| !a.is_empty()) else { return Some(Self::Json) };
        let mut best: Option<(f32, Self)> = None;
        for kind in accept.split(',') {
            let (name, settings) = kind.split_once(';').unwrap_or((kind, ""));
            let quality =
                settings.split(';').find_map(|s| s.trim().strip_prefix("q=")?.parse().ok()).unwrap_or(1.0_f32);
            let better = best.is_none_or(|(known, _)| quality > known);
            if let (Some(format), true) = (Self::for_media_type(name.trim()), quality > 0.0 && better) {
                best = Some((quality, format));
            }
        }
        best.map(|(_, format)| format)
    }

    fn for_media_type(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "application/json" | "application/*" | "*/*" => Some(Self::Json),
            "application/x-ndjson" | "application/jsonl" | "application/jsonlines" => Some(Self::JsonLines),
            "text/csv" => Some(Self::Csv),
            "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
            "text/plain" | "text/*" => Some(Self::Table),
            _ => None,
        }
    }

    /// What a `Content-Type` header says of it.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::JsonLines => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Table => "text/plain; charset=utf-8",
        }
    }
}

/// The result as bytes, as they come. An error ends the bytes in the middle; who sends them must break off, so that
/// no reader takes the part for the whole.
#[must_use]
pub fn body(result: QueryResult, format: OutputFormat) -> BoxStream<'static, Result<Bytes, QueryError>> {
    let begin = Encoder::new(format, &result.schema);
    let pieces = result.stream.map_ok(Some).chain(stream::once(future::ready(Ok(None)))).boxed();
    let encoded = stream::try_unfold((begin, pieces), |(encoder, mut pieces)| async move {
        let mut encoder = encoder?;
        let bytes = match pieces.try_next().await? {
            None => return Ok(None),
            Some(Some(batch)) => encoder.rows(&batch)?,
            Some(None) => encoder.end()?,
        };
        Ok(Some((bytes, (Ok(encoder), pieces))))
    });
    encoded.try_filter(|bytes| future::ready(!bytes.is_empty())).boxed()
}

/// Writes the result as it comes.
///
/// # Errors
/// The query's error, or [`QueryError::Internal`] when the sink does not take the bytes.
pub async fn write(result: QueryResult, format: OutputFormat, sink: &mut impl Write) -> Result<(), QueryError> {
    let mut bytes = body(result, format);
    while let Some(piece) = bytes.try_next().await? {
        sink.write_all(&piece).map_err(|e| QueryError::Internal(format!("the result could not be written: {e}")))?;
    }
    Ok(())
}

/// Turns batches into bytes, one after another.
enum Encoder {
    Json { lines: bool, is_first: bool },
    Csv { is_first: bool, schema: SchemaRef },
    Arrow(Box<StreamWriter<Vec<u8>>>),
    Table(table::TableWriter),
}

impl Encoder {
    fn new(format: OutputFormat, schema: &SchemaRef) -> Result<Self, QueryError> {
        Ok(match format {
            OutputFormat::Json => Self::Json { lines: false, is_first: true },
            OutputFormat::JsonLines => Self::Json { lines: true, is_first: true },
            OutputFormat::Csv => Self::Csv { is_first: true, schema: schema.clone() },
            OutputFormat::Arrow => {
                Self::Arrow(Box::new(StreamWriter::try_new(Vec::new(), schema).map_err(|e| unwritable(&e))?))
            }
            OutputFormat::Table => Self::Table(table::TableWriter::new(schema)),
        })
    }

    fn rows(&mut self, batch: &RecordBatch) -> Result<Bytes, QueryError> {
        match self {
            Self::Json { lines, is_first } => json(batch, *lines, std::mem::replace(is_first, false)),
            Self::Csv { is_first, .. } => comma_separated(batch, std::mem::replace(is_first, false)),
            Self::Arrow(writer) => writer.write(batch).map(|()| std::mem::take(writer.get_mut())),
            Self::Table(writer) => writer.rows(batch),
        }
        .map(Bytes::from)
        .map_err(|e| unwritable(&e))
    }

    fn end(&mut self) -> Result<Bytes, QueryError> {
        match self {
            Self::Json { lines: true, .. } => Ok(Vec::new()),
            Self::Json { is_first: true, .. } => Ok(b"[]\n".to_vec()),
            Self::Json { .. } => Ok(b"\n]\n".to_vec()),
            Self::Csv { is_first: true, schema } => comma_separated(&RecordBatch::new_empty(schema.clone()), true),
            Self::Csv { .. } => Ok(Vec::new()),
            Self::Arrow(writer) => writer.finish().map(|()| std::mem::take(writer.get_mut())),
            Self::Table(writer) => writer.end(),
        }
        .map(Bytes::from)
        .map_err(|e| unwritable(&e))
    }
}

fn unwritable(error: &ArrowError) -> QueryError {
    QueryError::Failed(format!(
        "its rows cannot be written in the format asked for: {error}; choose another, or cast the column"
    ))
}

fn json(batch: &RecordBatch, lines: bool, is_first: bool) -> Result<Vec<u8>, ArrowError> {
    let mut text = Vec::new();
    let mut writer = JsonWriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut text);
    writer.write(batch)?;
    writer.finish()?;
    drop(writer);
    if lines {
        return Ok(text);
    }
    // Within a value a line break is escaped: each one that is there ends an object.
    let mut array = Vec::with_capacity(text.len() + text.len() / 16);
    array.extend_from_slice(if is_first { b"[\n" } else { b",\n" });
    for (at, line) in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
        array.extend_from_slice(if at == 0 { b"" } else { b",\n" });
        array.extend_from_slice(line);
    }
    Ok(array)
}

fn comma_separated(batch: &RecordBatch, with_header: bool) -> Result<Vec<u8>, ArrowError> {
    let mut text = Vec::new();
    csv::WriterBuilder::new().with_header(with_header).build(&mut text).write(batch)?;
    Ok(text)
}
