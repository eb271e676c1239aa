//! What readers give: pieces of rows, each with the mark from which reading can go on.

use std::ops::Range;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use lakegate_model::ColumnType;

use crate::{ParquetFile, ReadError};

/// The most bytes of a bad row's text that are kept.
pub const RAW_BYTES: usize = 64 << 10;

/// A place between two pieces of one file. Opaque; valid for the same bytes and the same options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Which member of an archive, from 0.
    pub(crate) member: u32,
    /// The row that comes next, from 0, counted within the member, bad rows included.
    pub(crate) row: u64,
    /// Text: the offset of that row in the unpacked bytes. Parquet: the row group.
    pub(crate) at: u64,
    /// The format's own word.
    pub(crate) flags: u8,
}

const MARK_VERSION: u8 = 1;
const MARK_BYTES: usize = 22;

impl Mark {
    /// As bytes, to be stored: version (1), flags (1), member (4), row (8), place (8); integers little-endian.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MARK_BYTES);
        out.extend([MARK_VERSION, self.flags]);
        out.extend(self.member.to_le_bytes());
        out.extend(self.row.to_le_bytes());
        out.extend(self.at.to_le_bytes());
        out
    }

    /// From stored bytes. None: not a mark of this version.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; MARK_BYTES] = bytes.try_into().ok()?;
        let [version, flags, rest @ ..] = bytes;
        let (member, rest) = rest.split_first_chunk()?;
        let (row, rest) = rest.split_first_chunk()?;
        let (at, _) = rest.split_first_chunk()?;
        (*version == MARK_VERSION).then(|| Self {
            member: u32::from_le_bytes(*member),
            row: u64::from_le_bytes(*row),
            at: u64::from_le_bytes(*at),
            flags: *flags,
        })
    }
}

/// A column of a table that a dump declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlColumn {
    /// Its name, without quotes.
    pub name: String,
    /// The type that its values are given in.
    pub column_type: ColumnType,
    /// Whether it may be without a value.
    pub nullable: bool,
}

/// A table that a dump declares, as far as the file has been read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SqlTable {
    /// Its name, with its schema where the dump gives one other than `public`: `sales.orders`.
    pub name: String,
    /// Its columns, in order.
    pub columns: Vec<SqlColumn>,
    /// The columns of its primary key. Some dumps say so only after the rows.
    pub primary_key: Vec<String>,
}

/// The rows of a piece.
#[derive(Debug, Clone)]
pub enum Rows {
    /// As columns.
    Columns(RecordBatch),
    /// JSON objects, each at its span in `body`. They are split, not checked: shaping reads them.
    Documents {
        /// The text.
        body: Bytes,
        /// Where each object lies.
        spans: Vec<Range<u32>>,
    },
}

impl Rows {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Columns(batch) => batch.num_rows(),
            Self::Documents { spans, .. } => spans.len(),
        }
    }

    /// None at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A row that could not be read. Its neighbours are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Its number within the member, from 0, counted with all other rows (a CSV header is none).
    pub row: u64,
    /// Its text as it stands in the file, or the head of it: at most [`RAW_BYTES`].
    pub raw: Bytes,
    /// The field that is at fault, where one is.
    pub field: Option<String>,
    /// What is wrong, for people.
    pub reason: String,
}

/// Some consecutive rows of a file.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The member of the archive they are from. A label, never a path to write to.
    pub member: Option<String>,
    /// The table they belong to, of a dump. A piece without rows then tells of the table alone.
    pub table: Option<SqlTable>,
    /// The number of the first row, bad ones counted.
    pub first_row: u64,
    /// Where reading goes on after this piece.
    pub next: Mark,
    /// Its good rows.
    pub rows: Rows,
    /// Its bad ones.
    pub bad: Vec<BadRow>,
}

/// A file being read, piece by piece.
pub trait Pieces: Send {
    /// The next piece. None: the file is at its end.
    ///
    /// # Errors
    /// The file cannot be read any further. What was given before stands.
    fn next(&mut self) -> Result<Option<Piece>, ReadError>;

    /// Bytes taken from the input, and how many there are where that is known.
    fn progress(&self) -> (u64, Option<u64>);

    /// The columns, where the format tells them before the first piece.
    fn schema(&self) -> Option<SchemaRef> {
        None
    }

    /// The file as it is, where it is a Parquet file of its own.
    fn parquet(&self) -> Option<ParquetFile> {
        None
    }

    /// What holds no rows and was passed over, by kind, such as SQL statements or an archive's other members.
    fn passed_over(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}
