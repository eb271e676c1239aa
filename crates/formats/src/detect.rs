//! What a file is: by its first bytes, then by its name.

use crate::{Encoding, Format};

/// How many bytes tell an archive or a codec.
pub(crate) const MAGIC_BYTES: usize = 512;

/// What was found.
pub(crate) enum Kind {
    Known(Format),
    /// Known, and not read: what to say about it.
    Other(&'static str),
}

/// Bytes that say what is in a file that we don't read, and what helps.
const OTHERS: [(&[u8], &str); 8] = [
    (b"SQLite format 3\0", "a SQLite database; give its dump: sqlite3 FILE .dump"),
    (b"PGDMP", "a PostgreSQL dump in the custom format; turn it into SQL: pg_restore -f out.sql FILE"),
    (b"Obj\x01", "an Avro file; Parquet, CSV, JSON, SQL dumps, Arrow and plain lines are read"),
    (b"ORC", "an ORC file; Parquet, CSV, JSON, SQL dumps, Arrow and plain lines are read"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; zip and tar are read"),
    (b"Rar!", "a rar archive; zip and tar are read"),
    (b"%PDF", "a PDF document; Parquet, CSV, JSON, SQL dumps, Arrow and plain lines are read"),
    (b"\x7fELF", "a program; Parquet, CSV, JSON, SQL dumps, Arrow and plain lines are read"),
];

/// A tar archive has its mark inside the first header; a header of zeros is an empty archive.
pub(crate) fn is_tar(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar")
}

/// The encoding that a byte order mark tells, or else the given one; and how long the mark is.
pub(crate) fn encoding(head: &[u8], given: Encoding) -> (Encoding, usize) {
    match head {
        [0xef, 0xbb, 0xbf, ..] => (Encoding::Utf8, 3),
        [0xff, 0xfe, ..] => (Encoding::Utf16Le, 2),
        [0xfe, 0xff, ..] => (Encoding::Utf16Be, 2),
        _ => (given, 0),
    }
}

pub(crate) fn format(head: &[u8], name: &str) -> Kind {
    if head.starts_with(b"PAR1") || head.starts_with(b"PARE") {
        return Kind::Known(Format::Parquet);
    }
    if head.starts_with(b"ARROW1") || head.starts_with(&[0xff; 4]) {
        return Kind::Known(Format::Arrow);
    }
    if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Kind::Other(what);
    }
    let text = head.trim_ascii_start();
    match extension(name).as_str() {
        "csv" | "tsv" | "tab" | "psv" => Kind::Known(Format::Csv),
        "sql" | "dump" if !text.starts_with(b"{") => Kind::Known(Format::Sql),
        "jsonl" | "ndjson" | "json" => Kind::Known(json(text).unwrap_or(Format::JsonLines)),
        "log" | "txt" if !text.starts_with(b"{") => Kind::Known(Format::Lines),
        "parquet" | "pq" => Kind::Other("named as a Parquet file, but it does not begin with PAR1"),
        _ => by_content(text, head),
    }
}

fn by_content(text: &[u8], head: &[u8]) -> Kind {
    if head.contains(&0) {
        return Kind::Other("bytes of no known format; Parquet, CSV, JSON, SQL dumps, Arrow and plain lines are read");
    }
    if let Some(format) = json(text) {
        return Kind::Known(format);
    }
    if is_sql(text) {
        return Kind::Known(Format::Sql);
    }
    let mut lines = head.split(|b| *b == b'\n').filter(|l| !l.is_empty()).take(10);
    let Some(first) = lines.next() else { return Kind::Known(Format::Lines) };
    let count = |line: &[u8], d: u8| line.iter().filter(|b| **b == d).count();
    let rest: Vec<&[u8]> = lines.collect();
    // The last line may be cut.
    let table = [b',', b'\t', b';', b'|'].iter().any(|d| {
        let fields = count(first, *d);
        fields > 0 && !rest.is_empty() && rest.iter().take(rest.len().max(2) - 1).all(|l| count(l, *d) >= fields)
    });
    Kind::Known(if table { Format::Csv } else { Format::Lines })
}

/// Objects one a line, or anything else of JSON.
fn json(text: &[u8]) -> Option<Format> {
    match text.first()? {
        b'[' => Some(Format::Json),
        b'{' => {
            let line = text.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii_end();
            let one = crate::json::object_len(line) == Some(line.len());
            Some(if one { Format::JsonLines } else { Format::Json })
        }
        _ => None,
    }
}

fn is_sql(text: &[u8]) -> bool {
    if text.starts_with(b"/*") || text.starts_with(b"-- ") || text.starts_with(b"--\n") {
        return true;
    }
    let word: Vec<u8> = text.iter().take_while(|b| b.is_ascii_alphabetic()).map(u8::to_ascii_uppercase).collect();
    let known: [&[u8]; 10] =
        [b"CREATE", b"INSERT", b"DROP", b"SET", b"BEGIN", b"PRAGMA", b"USE", b"COPY", b"ALTER", b"START"];
    known.contains(&word.as_slice()) && text.contains(&b';')
}

/// The name's ending, without those of codecs: `csv` of `a.csv.gz`.
fn extension(name: &str) -> String {
    let file = name.split(['?', '#']).next().unwrap_or(name).to_ascii_lowercase();
    let mut parts = file.rsplit('.');
    loop {
        match parts.next() {
            Some("gz" | "gzip" | "zst" | "zstd" | "bz2" | "xz" | "lz4" | "sz" | "snappy") => {}
            Some(part) => return part.to_owned(),
            None => return String::new(),
        }
    }
}
