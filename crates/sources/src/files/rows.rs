//! One file's rows, for a statement that reads it as a table.
//!
//! Promises: the columns are known before the first row; a row that cannot be read ends the reading with its number, the
//! column, what was found and what was expected: a statement takes a file whole or not at all.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::json::reader::infer_json_schema_from_iterator;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use lakegate_formats::{BadRow, Format, Piece, Pieces, ReadError, ReadOptions, Rows};
use lakegate_places::{Opened, PlaceError};

use super::Imports;

/// The columns of documents are found from so many of them.
const SAMPLE_DOCUMENTS: usize = 1000;

/// How a file is read as a table.
#[derive(Debug, Clone, Default)]
pub struct FileOptions {
    /// Its format; none: by its content, then its name.
    pub format: Option<Format>,
    /// Whether a first line names the columns of a text file; none: seen.
    pub header: Option<bool>,
    /// What stands between fields; none: seen.
    pub delimiter: Option<u8>,
    /// The columns, where they are declared: by their names where the file has these, else in their order.
    pub columns: Option<SchemaRef>,
}

/// Why a file cannot be read as a table.
#[derive(Debug, thiserror::Error)]
pub enum FileRowsError {
    /// It is not to be had.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It cannot be read on.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A row of it cannot be read.
    #[error("row {row} of {file}{field}: {reason}", row = .row + 1, field = .field.as_ref().map_or_else(String::new, |f| format!(", column {f}")))]
    Row {
        /// The file.
        file: String,
        /// The row's number, from 0.
        row: u64,
        /// The column at fault.
        field: Option<String>,
        /// What was found, and what would be right.
        reason: String,
    },
    /// It is no table, or not the one that was declared.
    #[error("{file} cannot be read as a table: {reason}")]
    NoTable {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
}

/// A file being read as a table. Blocks.
pub struct FileRows {
    opened: Opened,
    pieces: Box<dyn Pieces>,
    first: Option<Piece>,
    /// The file's own columns.
    own: SchemaRef,
    /// As they are given.
    schema: SchemaRef,
    file: String,
}

impl Imports {
    /// Opens a file as a table. Blocks.
    ///
    /// # Errors
    /// See [`FileRowsError`].
    pub fn open_rows(
        &self,
        place: &str,
        tenant: Option<&str>,
        wanted: &FileOptions,
    ) -> Result<FileRows, FileRowsError> {
        let opened = self.inner.options.places.open(place, tenant)?;
        let file = opened.location.shown();
        let mut options = ReadOptions { format: wanted.format, ..ReadOptions::default() };
        options.csv.header = wanted.header;
        options.csv.delimiter = wanted.delimiter;
        let (mut pieces, mut first) = begin(&opened, &options)?;
        let mut own = schema_of(pieces.as_ref(), first.as_ref(), &file)?;
        if let Some(declared) = &wanted.columns {
            let is_text = first.as_ref().is_none_or(|piece| matches!(piece.rows, Rows::Columns(_)));
            if is_text && own.fields().iter().any(|field| !matches!(field.data_type(), DataType::Utf8)) {
                // What is declared decides on the types of a text file, not a sample.
                options.csv.types = Some(as_texts(&own));
                (pieces, first) = begin(&opened, &options)?;
                own = schema_of(pieces.as_ref(), first.as_ref(), &file)?;
            }
            if first.as_ref().is_some_and(|piece| matches!(piece.rows, Rows::Documents { .. })) {
                own = declared.clone();
            }
            check_declared(declared, &own, &file)?;
        }
        let schema = wanted.columns.clone().unwrap_or_else(|| own.clone());
        Ok(FileRows { opened, pieces, first, own, schema, file })
    }
}

fn begin(opened: &Opened, options: &ReadOptions) -> Result<(Box<dyn Pieces>, Option<Piece>), FileRowsError> {
    let mut pieces = lakegate_formats::open(opened.input.clone(), options, None)?;
    let first = pieces.next()?;
    Ok((pieces, first))
}

fn as_texts(schema: &Schema) -> SchemaRef {
    let text = |field: &Arc<Field>| Field::new(field.name(), DataType::Utf8, true);
    Arc::new(Schema::new(schema.fields().iter().map(text).collect::<Vec<_>>()))
}

fn schema_of(pieces: &dyn Pieces, first: Option<&Piece>, file: &str) -> Result<SchemaRef, FileRowsError> {
    let no_table = |reason: String| FileRowsError::NoTable { file: file.to_owned(), reason };
    if first.is_some_and(|piece| piece.table.is_some()) {
        return Err(no_table("it is a dump of several tables; import it with POST /api/ingest/sql".to_owned()));
    }
    match first.map(|piece| &piece.rows) {
        Some(Rows::Columns(batch)) => Ok(batch.schema()),
        Some(Rows::Documents { body, spans }) => {
            let document = |span: &std::ops::Range<u32>| {
                let bytes = body.get(span.start as usize..span.end as usize).unwrap_or_default();
                serde_json::from_slice::<serde_json::Value>(bytes).map_err(|e| ArrowError::JsonError(e.to_string()))
            };
            let sample = spans.iter().take(SAMPLE_DOCUMENTS).map(document);
            infer_json_schema_from_iterator(sample).map(Arc::new).map_err(|error| no_table(error.to_string()))
        }
        None => pieces.schema().ok_or_else(|| no_table("it is empty, and nothing tells its columns".to_owned())),
    }
}

/// Whether the file's columns are found by the declared names.
fn is_named(declared: &Schema, own: &Schema) -> bool {
    declared.fields().iter().all(|field| own.index_of(field.name()).is_ok())
}

fn check_declared(declared: &Schema, own: &Schema, file: &str) -> Result<(), FileRowsError> {
    if is_named(declared, own) || declared.fields().len() == own.fields().len() {
        return Ok(());
    }
    let names = |schema: &Schema| schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>().join(", ");
    let reason = format!(
        "it has {} columns ({}), and {} are declared ({}); declare as many, or the same names",
        own.fields().len(),
        names(own),
        declared.fields().len(),
        names(declared)
    );
    Err(FileRowsError::NoTable { file: file.to_owned(), reason })
}

impl FileRows {
    /// The columns.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The next rows; none at the end.
    ///
    /// # Errors
    /// See [`FileRowsError`].
    pub fn next_rows(&mut self) -> Result<Option<RecordBatch>, FileRowsError> {
        let piece = match self.first.take() {
            Some(piece) => piece,
            None => match self.pieces.next()? {
                Some(piece) => piece,
                None => {
                    self.opened.check_unchanged()?;
                    return Ok(None);
                }
            },
        };
        if let Some(BadRow { row, field, reason, .. }) = piece.bad.into_iter().next() {
            return Err(FileRowsError::Row { file: self.file.clone(), row, field, reason });
        }
        let batch = match piece.rows {
            Rows::Columns(batch) => batch,
            Rows::Documents { body, spans } => self.documents(&body, &spans, piece.first_row)?,
        };
        self.as_declared(&batch, piece.first_row).map(Some)
    }

    fn documents(
        &self,
        body: &[u8],
        spans: &[std::ops::Range<u32>],
        first_row: u64,
    ) -> Result<RecordBatch, FileRowsError> {
        let bad = |row: u64, reason: String| FileRowsError::Row { file: self.file.clone(), row, field: None, reason };
        let mut decoder = ReaderBuilder::new(self.own.clone())
            .with_batch_size(spans.len().max(1))
            .build_decoder()
            .map_err(|error| bad(first_row, error.to_string()))?;
        for (row, span) in (first_row..).zip(spans) {
            let bytes = body.get(span.start as usize..span.end as usize).unwrap_or_default();
            decoder.decode(bytes).map_err(|error| bad(row, error.to_string()))?;
            decoder.decode(b"\n").map_err(|error| bad(row, error.to_string()))?;
        }
        let rows = decoder.flush().map_err(|error| bad(first_row, error.to_string()))?;
        Ok(rows.unwrap_or_else(|| RecordBatch::new_empty(self.own.clone())))
    }

    fn as_declared(&self, batch: &RecordBatch, first_row: u64) -> Result<RecordBatch, FileRowsError> {
        let named = is_named(&self.schema, batch.schema_ref());
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for (place, field) in self.schema.fields().iter().enumerate() {
            let found = if named { batch.column_by_name(field.name()) } else { batch.columns().get(place) };
            let found = found.ok_or_else(|| FileRowsError::NoTable {
                file: self.file.clone(),
                reason: format!("its later rows have no column {}", field.name()),
            })?;
            columns.push(self.column(found, field, first_row)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
            .map_err(|error| FileRowsError::NoTable { file: self.file.clone(), reason: error.to_string() })
    }

    fn column(&self, found: &ArrayRef, field: &Field, first_row: u64) -> Result<ArrayRef, FileRowsError> {
        if found.data_type() == field.data_type() {
            return Ok(found.clone());
        }
        // What cannot be cast becomes null, which shows where it was.
        let options = CastOptions { safe: true, ..CastOptions::default() };
        let error = |row: u64, reason: String| FileRowsError::Row {
            file: self.file.clone(),
            row,
            field: Some(field.name().clone()),
            reason,
        };
        let cast =
            cast_with_options(found, field.data_type(), &options).map_err(|e| error(first_row, e.to_string()))?;
        if cast.null_count() > found.null_count()
            && let Some(row) = (0..cast.len()).find(|row| cast.is_null(*row) && found.is_valid(*row))
        {
            let shown = ArrayFormatter::try_new(found, &FormatOptions::default())
                .map_or_else(|_| String::new(), |formatter| formatter.value(row).to_string());
            let shown: String = shown.chars().take(80).collect();
            let reason = format!("found {shown:?}, expected {}", told(field.data_type()));
            return Err(error(first_row + row as u64, reason));
        }
        Ok(cast)
    }
}

/// A type in the words of those who write files.
fn told(kind: &DataType) -> String {
    match kind {
        DataType::Date32 => "a date as YYYY-MM-DD".to_owned(),
        DataType::Timestamp(_, None) => "a time as YYYY-MM-DD HH:MM:SS".to_owned(),
        DataType::Timestamp(..) => "a time with its zone, as YYYY-MM-DDTHH:MM:SSZ".to_owned(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => "a whole number".to_owned(),
        DataType::Float32 | DataType::Float64 => "a number".to_owned(),
        DataType::Decimal128(precision, scale) => {
            format!("a number of at most {precision} digits, {scale} of them after the point")
        }
        DataType::Boolean => "true or false".to_owned(),
        other => other.to_string(),
    }
}
