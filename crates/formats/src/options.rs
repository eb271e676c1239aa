//! What the caller may say about a file, and the bounds that hold whatever it says.

use arrow::datatypes::SchemaRef;

/// What the bytes of a file mean, once unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Rows of fields between delimiters: RFC 4180 and its relatives, also with tabs, semicolons or bars.
    Csv,
    /// One JSON object a line.
    JsonLines,
    /// One JSON array of objects, or objects one after another.
    Json,
    /// A dump of a database as SQL statements. Read as data, never executed.
    Sql,
    /// Plain lines, such as a server's log.
    Lines,
    /// Arrow IPC, as a file or a stream.
    Arrow,
}

impl Format {
    /// The name used in messages and settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::JsonLines => "jsonl",
            Self::Json => "json",
            Self::Sql => "sql",
            Self::Lines => "lines",
            Self::Arrow => "arrow",
        }
    }

    /// The format of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "parquet" => Self::Parquet,
            "csv" | "tsv" => Self::Csv,
            "jsonl" | "ndjson" => Self::JsonLines,
            "json" => Self::Json,
            "sql" => Self::Sql,
            "lines" | "log" | "text" => Self::Lines,
            "arrow" => Self::Arrow,
            _ => return None,
        })
    }
}

/// How text is written in bytes. A byte order mark in the file goes before this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// UTF-8, unless a byte order mark says otherwise.
    #[default]
    Utf8,
    /// UTF-16, low byte first.
    Utf16Le,
    /// UTF-16, high byte first.
    Utf16Be,
    /// Windows-1252; ISO 8859-1 is read as this too, as the web does.
    Windows1252,
}

/// How a CSV file is to be read. `None` means: seen in the file's head.
#[derive(Debug, Clone)]
pub struct CsvOptions {
    /// The byte between fields.
    pub delimiter: Option<u8>,
    /// The byte around fields that hold delimiters or newlines.
    pub quote: u8,
    /// Whether the first row names the columns.
    pub header: Option<bool>,
    /// Columns whose types are known, by name; others are found from a sample. Types that the reader cannot build from
    /// text (structs, lists, maps) are given as text.
    pub types: Option<SchemaRef>,
    /// Unquoted spellings of "no value". A quoted field is never one of them.
    pub nulls: Vec<String>,
    /// How the text is written in bytes.
    pub encoding: Encoding,
    /// Rows that begin with this byte are passed over.
    pub comment: Option<u8>,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self {
            delimiter: None,
            quote: b'"',
            header: None,
            types: None,
            nulls: vec![String::new(), "NULL".to_owned()],
            encoding: Encoding::Utf8,
            comment: None,
        }
    }
}

/// How a line of text becomes members of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinePattern {
    /// One member, `line`.
    #[default]
    Whole,
    /// The Common Log Format of web servers: `host`, `ident`, `user`, `time`, `request`, `status`, `bytes`; also with the
    /// combined format's `referer` and `user_agent`. A line that does not fit is a bad row.
    Combined,
}

/// Bounds that hold for any input. Going over one is an error or a bad row, never more memory.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest row, line or JSON document, in bytes.
    pub row_bytes: usize,
    /// The most bytes that one Parquet page may hold, packed or unpacked.
    pub page_bytes: usize,
    /// The most bytes of a row group's column chunks that are fetched at once; larger ones are read page by page.
    pub fetch_bytes: u64,
    /// The largest Parquet footer.
    pub footer_bytes: usize,
    /// The most columns, leaves counted.
    pub columns: usize,
    /// The deepest nesting of JSON documents and of Parquet schemas.
    pub nesting: usize,
    /// The most unpacked bytes for one packed byte, once 16 MiB are unpacked.
    pub ratio: u64,
    /// The most unpacked bytes in all.
    pub unpacked_bytes: u64,
    /// The most members of an archive.
    pub members: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            row_bytes: 16 << 20,
            page_bytes: 256 << 20,
            fetch_bytes: 64 << 20,
            footer_bytes: 64 << 20,
            columns: 10_000,
            nesting: 128,
            ratio: 1_000,
            unpacked_bytes: 1 << 40,
            members: 100_000,
        }
    }
}

/// How a file is to be read.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// The format. None: by its content, then its name.
    pub format: Option<Format>,
    /// For CSV.
    pub csv: CsvOptions,
    /// For lines.
    pub lines: LinePattern,
    /// Top-level columns to read, by name, of Parquet and Arrow files. None: all.
    pub columns: Option<Vec<String>>,
    /// The most rows of one piece.
    pub batch_rows: usize,
    /// About how many bytes one piece of text holds.
    pub batch_bytes: usize,
    /// Bounds.
    pub limits: Limits,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            format: None,
            csv: CsvOptions::default(),
            lines: LinePattern::Whole,
            columns: None,
            batch_rows: 8_192,
            batch_bytes: 4 << 20,
            limits: Limits::default(),
        }
    }
}
