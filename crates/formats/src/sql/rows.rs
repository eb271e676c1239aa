//! Rows of `INSERT` and `COPY` to columns.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use bytes::Bytes;
use lakegate_model::ColumnType;

use super::lex::{Dialect, Lexer, Token, cut_off};
use crate::cells::{Cells, arrow_type};
use crate::piece::RAW_BYTES;
use crate::{BadRow, SqlTable};

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    Text,
    Bytes,
    /// Something that only the database could work out.
    Expression,
}

/// One row's values.
#[derive(Debug, Default)]
pub(super) struct Row {
    text: Vec<u8>,
    values: Vec<(Kind, Range<usize>)>,
    /// It went over the limit of length.
    cut: bool,
}

impl Row {
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    fn push(&mut self, kind: Kind, text: &[u8], most: usize) {
        self.cut |= self.text.len() + text.len() > most;
        let start = self.text.len();
        if !self.cut {
            self.text.extend_from_slice(text);
        }
        if self.values.len() <= 10_000 {
            self.values.push((kind, start..self.text.len()));
        }
    }

    /// Its text, about as it stood.
    fn raw(&self) -> Bytes {
        let mut out = Vec::new();
        for (kind, span) in &self.values {
            if !out.is_empty() {
                out.extend_from_slice(b", ");
            }
            let text = self.text.get(span.clone()).unwrap_or_default();
            out.extend_from_slice(if *kind == Kind::Null { b"NULL" } else { text });
            if out.len() > RAW_BYTES {
                out.truncate(RAW_BYTES);
                break;
            }
        }
        Bytes::from(out)
    }
}

/// The values of one row, whose parenthesis is open.
pub(super) fn values(lexer: &mut Lexer, most: usize) -> io::Result<Row> {
    let mut row = Row::default();
    loop {
        let (kind, end) = value(lexer)?;
        let text = std::mem::take(&mut lexer.text);
        row.cut |= lexer.cut;
        row.push(kind, &text, most);
        lexer.text = text;
        match end.map_or_else(|| lexer.next(), Ok)? {
            Token::Sign(b',') => {}
            Token::Sign(b')') => return Ok(row),
            Token::End => return Err(cut_off("a row")),
            // A cast such as `::text`, or an operator.
            first => {
                let cast = first == Token::Sign(b':');
                if !cast && let Some((kind, _)) = row.values.last_mut() {
                    *kind = Kind::Expression;
                }
                if rest_of_value(lexer, usize::from(first == Token::Sign(b'(')))? {
                    return Ok(row);
                }
            }
        }
    }
}

/// Passes over what follows a value, `depth` parentheses being open. True: the row ended.
fn rest_of_value(lexer: &mut Lexer, mut depth: usize) -> io::Result<bool> {
    loop {
        match lexer.next()? {
            Token::Sign(b'(') => depth += 1,
            Token::Sign(b')') if depth == 0 => return Ok(true),
            Token::Sign(b')') => depth -= 1,
            Token::Sign(b',') if depth == 0 => return Ok(false),
            Token::End => return Err(cut_off("a row")),
            _ => {}
        }
    }
}

/// One value, its text in the lexer; and the token behind it where that was read.
fn value(lexer: &mut Lexer) -> io::Result<(Kind, Option<Token>)> {
    let token = lexer.next()?;
    Ok(match token {
        Token::Text | Token::Number => (Kind::Text, None),
        // A name in a row is a text that MySQL wrote in double quotes.
        Token::Name => (if lexer.dialect == Dialect::MySql { Kind::Text } else { Kind::Expression }, None),
        Token::Bytes => (Kind::Bytes, None),
        Token::Sign(sign @ (b'-' | b'+')) => match lexer.next()? {
            Token::Number => {
                if sign == b'-' {
                    lexer.text.insert(0, b'-');
                }
                (Kind::Text, None)
            }
            other => (Kind::Expression, Some(other)),
        },
        Token::Word if lexer.is_word(token, "NULL") || lexer.is_word(token, "DEFAULT") => {
            lexer.text.clear();
            (Kind::Null, None)
        }
        Token::Word if lexer.is_word(token, "TRUE") || lexer.is_word(token, "FALSE") => (Kind::Text, None),
        Token::Word if lexer.is_word(token, "replace") => (replaced(lexer, 0)?, None),
        Token::Word if lexer.is_word(token, "unistr") => (unistr(lexer)?, None),
        Token::Word => (Kind::Expression, None),
        other => (Kind::Expression, Some(other)),
    })
}

/// `replace(TEXT,'\n',char(10))`, nested, as SQLite's `.dump` writes texts with newlines. The word is read.
fn replaced(lexer: &mut Lexer, depth: usize) -> io::Result<Kind> {
    let open = lexer.next()?;
    let first = lexer.next()?;
    let sound = open == Token::Sign(b'(') && depth < 4;
    let text = match first {
        Token::Text => std::mem::take(&mut lexer.text),
        _ if sound && lexer.is_word(first, "replace") => {
            if replaced(lexer, depth + 1)? != Kind::Text {
                return Ok(Kind::Expression);
            }
            std::mem::take(&mut lexer.text)
        }
        other => {
            lexer.put_back(other);
            return Ok(Kind::Expression);
        }
    };
    let comma = lexer.next()?;
    let from = lexer.next()?;
    let pattern = std::mem::take(&mut lexer.text);
    let comma_again = lexer.next()?;
    let call = lexer.next()?;
    let char_word = lexer.is_word(call, "char");
    let opened = lexer.next()?;
    let number = lexer.next()?;
    let code = std::str::from_utf8(&lexer.text).ok().and_then(|t| t.parse::<u32>().ok()).and_then(char::from_u32);
    let closed = lexer.next()? == Token::Sign(b')') && lexer.next()? == Token::Sign(b')');
    let signs = comma == Token::Sign(b',') && comma_again == comma && opened == Token::Sign(b'(');
    let (true, Some(code)) =
        (sound && signs && char_word && closed && from == Token::Text && number == Token::Number, code)
    else {
        return Ok(Kind::Expression);
    };
    let mut letter = [0; 4];
    let letter = code.encode_utf8(&mut letter).as_bytes();
    lexer.text.clear();
    let mut rest = text.as_slice();
    while let Some(at) = memchr::memmem::find(rest, &pattern).filter(|_| !pattern.is_empty()) {
        lexer.text.extend_from_slice(rest.get(..at).unwrap_or_default());
        lexer.text.extend_from_slice(letter);
        rest = rest.get(at + pattern.len()..).unwrap_or_default();
    }
    lexer.text.extend_from_slice(rest);
    Ok(Kind::Text)
}

/// `unistr('a\u000ab')`, as newer versions of SQLite's `.dump` write control letters. The word is read.
fn unistr(lexer: &mut Lexer) -> io::Result<Kind> {
    let open = lexer.next()?;
    let token = lexer.next()?;
    if open != Token::Sign(b'(') || token != Token::Text {
        lexer.put_back(token);
        return Ok(Kind::Expression);
    }
    let text = String::from_utf8_lossy(&std::mem::take(&mut lexer.text)).into_owned();
    let closed = lexer.next()? == Token::Sign(b')');
    let mut out = String::with_capacity(text.len());
    let mut parts = text.split('\\');
    out.push_str(parts.next().unwrap_or_default());
    while let Some(part) = parts.next() {
        let (digits, rest) = match part.strip_prefix('u') {
            Some(rest) => (rest.get(..4), rest.get(4..)),
            None if part.is_empty() => {
                out.push('\\');
                out.push_str(parts.next().unwrap_or_default());
                continue;
            }
            None => (part.get(..4), part.get(4..)),
        };
        let letter = digits.and_then(|d| u32::from_str_radix(d, 16).ok()).and_then(char::from_u32);
        out.push(letter.unwrap_or(char::REPLACEMENT_CHARACTER));
        out.push_str(rest.unwrap_or_default());
    }
    lexer.text = out.into_bytes();
    Ok(if closed { Kind::Text } else { Kind::Expression })
}

/// One line of `COPY`. None: the rows are over.
pub(super) fn copy_line(lexer: &mut Lexer, most: usize) -> io::Result<Option<Row>> {
    let len = loop {
        let window = lexer.feed.window();
        match memchr::memchr(b'\n', window) {
            Some(at) => break at,
            None if window.len() > most => {
                let mut row = Row { cut: true, ..Row::default() };
                row.text = window.get(..RAW_BYTES).unwrap_or_default().to_vec();
                row.values.push((Kind::Text, 0..row.text.len()));
                lexer.feed.skip_past(b'\n')?;
                return Ok(Some(row));
            }
            None => {
                if !lexer.feed.fill()? {
                    return if lexer.feed.window().is_empty() || lexer.feed.window() == b"\\." {
                        Ok(None)
                    } else {
                        Err(cut_off("the rows of a COPY"))
                    };
                }
            }
        }
    };
    let line = lexer.feed.window().get(..len).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let row = if line == b"\\." { None } else { Some(copy_row(line)) };
    lexer.feed.consume(len + 1);
    Ok(row)
}

fn copy_row(line: &[u8]) -> Row {
    let mut row = Row { text: Vec::with_capacity(line.len()), ..Row::default() };
    for field in line.split(|b| *b == b'\t') {
        let start = row.text.len();
        if field == b"\\N" {
            row.values.push((Kind::Null, start..start));
            continue;
        }
        let mut rest = field;
        while let Some(at) = memchr::memchr(b'\\', rest) {
            row.text.extend_from_slice(rest.get(..at).unwrap_or_default());
            let (byte, used) = copy_escape(rest.get(at + 1..).unwrap_or_default());
            row.text.extend(byte);
            rest = rest.get(at + 1 + used..).unwrap_or_default();
        }
        row.text.extend_from_slice(rest);
        row.values.push((Kind::Text, start..row.text.len()));
    }
    row
}

/// What stands behind a backslash, and how many bytes it takes.
fn copy_escape(rest: &[u8]) -> (Option<u8>, usize) {
    let number = |digits: &[u8], radix: u32| {
        let mut value = 0_u32;
        let mut used = 0;
        while let Some(d) = digits.get(used).and_then(|b| char::from(*b).to_digit(radix)).filter(|_| used < 3) {
            value = value * radix + d;
            used += 1;
        }
        (value.to_le_bytes().first().copied(), used)
    };
    match rest {
        [] => (Some(b'\\'), 0),
        [b'b', ..] => (Some(8), 1),
        [b'f', ..] => (Some(12), 1),
        [b'n', ..] => (Some(b'\n'), 1),
        [b'r', ..] => (Some(b'\r'), 1),
        [b't', ..] => (Some(b'\t'), 1),
        [b'v', ..] => (Some(11), 1),
        [b'0'..=b'7', ..] => number(rest, 8),
        [b'x', digits @ ..] => {
            let (byte, used) = number(digits.get(..digits.len().min(2)).unwrap_or_default(), 16);
            if used == 0 { (Some(b'x'), 1) } else { (byte, used + 1) }
        }
        [other, ..] => (Some(*other), 1),
    }
}

/// Rows of one table, being put into columns.
pub(super) struct Batch {
    table: String,
    columns: Option<Vec<String>>,
    /// For each column of the table, which value of a row it takes.
    places: Vec<Option<usize>>,
    width: usize,
    cells: Vec<Cells>,
    types: Vec<ColumnType>,
    names: Vec<String>,
    good: Vec<bool>,
    bad: Vec<BadRow>,
    numbers: Vec<u64>,
    bytes: usize,
    first_row: u64,
    dialect: Dialect,
}

impl Batch {
    pub(super) fn new(table: &SqlTable, columns: Option<&[String]>, first_row: u64, dialect: Dialect) -> Self {
        let places = match columns {
            None => (0..table.columns.len()).map(Some).collect(),
            Some(names) => table.columns.iter().map(|c| names.iter().position(|n| *n == c.name)).collect(),
        };
        Self {
            table: table.name.clone(),
            columns: columns.map(<[String]>::to_vec),
            places,
            width: columns.map_or(table.columns.len(), <[String]>::len),
            cells: table.columns.iter().map(|c| Cells::new(c.column_type, 1_024)).collect(),
            types: table.columns.iter().map(|c| c.column_type).collect(),
            names: table.columns.iter().map(|c| c.name.clone()).collect(),
            good: Vec::new(),
            bad: Vec::new(),
            numbers: Vec::new(),
            bytes: 0,
            first_row,
            dialect,
        }
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    pub(super) fn first_row(&self) -> u64 {
        self.first_row
    }

    pub(super) fn is_of(&self, table: &str, columns: Option<&[String]>) -> bool {
        self.table == table && self.columns.as_deref() == columns
    }

    pub(super) fn is_full(&self, rows: usize, bytes: usize) -> bool {
        self.good.len() >= rows || self.bytes >= bytes
    }

    pub(super) fn push(&mut self, number: u64, row: &Row) {
        self.bytes += row.text.len() + row.values.len();
        let mut wrong = None;
        if row.cut {
            wrong = Some((None, "longer than the longest row allowed (limit row_bytes); its head is kept".to_owned()));
        } else if row.len() != self.width {
            wrong = Some((None, format!("{} values for {} columns of table {}", row.len(), self.width, self.table)));
        }
        for (at, cells) in self.cells.iter_mut().enumerate() {
            let place = self.places.get(at).copied().flatten();
            let value = place.and_then(|p| row.values.get(p)).filter(|_| wrong.is_none());
            let Some((kind, span)) = value else {
                cells.append_null();
                continue;
            };
            let text = row.text.get(span.clone()).unwrap_or_default();
            let column_type = self.types.get(at).copied().unwrap_or(ColumnType::String);
            if !append(cells, *kind, text, column_type, self.dialect) {
                let shown = String::from_utf8_lossy(text.get(..text.len().min(100)).unwrap_or_default()).into_owned();
                let reason = if *kind == Kind::Expression {
                    "an expression that only the database could work out".to_owned()
                } else {
                    format!("{shown:?} is not a {}", column_type.name())
                };
                wrong = Some((self.names.get(at).cloned(), reason));
            }
        }
        self.good.push(wrong.is_none());
        self.numbers.push(number);
        if let Some((field, reason)) = wrong {
            self.bad.push(BadRow { row: number, raw: row.raw(), field, reason });
        }
    }

    /// The columns of good rows, and the bad ones.
    pub(super) fn finish(mut self, table: &SqlTable) -> Result<(RecordBatch, Vec<BadRow>), ArrowError> {
        let mut arrays = Vec::with_capacity(self.cells.len());
        for (cells, name) in self.cells.into_iter().zip(&self.names) {
            let (array, not_text) = cells.finish();
            for row in not_text {
                if let Some(good) = self.good.get_mut(row).filter(|g| **g) {
                    *good = false;
                    let number = self.numbers.get(row).copied().unwrap_or_default();
                    let reason = "not text in UTF-8".to_owned();
                    self.bad.push(BadRow { row: number, raw: Bytes::new(), field: Some(name.clone()), reason });
                }
            }
            arrays.push(array);
        }
        let fields: Vec<Field> =
            table.columns.iter().map(|c| Field::new(&c.name, arrow_type(c.column_type), true)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.good.len()));
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)?;
        self.bad.sort_by_key(|b| b.row);
        let batch = if self.good.contains(&false) {
            filter_record_batch(&batch, &BooleanArray::from(self.good))?
        } else {
            batch
        };
        Ok((batch, self.bad))
    }
}

/// Appends one value. MySQL's date of zeros is no day: it is given as no value.
fn append(cells: &mut Cells, kind: Kind, text: &[u8], column_type: ColumnType, dialect: Dialect) -> bool {
    let timed = matches!(column_type, ColumnType::Date | ColumnType::Timestamp | ColumnType::Timestamptz);
    match kind {
        Kind::Null => cells.append_null(),
        Kind::Expression => {
            cells.append_null();
            return false;
        }
        Kind::Bytes if column_type == ColumnType::Boolean => {
            return cells.append(if text.iter().any(|b| *b != 0) { b"1" } else { b"0" });
        }
        Kind::Text if timed && dialect == Dialect::MySql && text.starts_with(b"0000-00-00") => cells.append_null(),
        Kind::Text if column_type == ColumnType::Binary && dialect == Dialect::Postgres => {
            let Some(hex) = text.strip_prefix(b"\\x") else { return cells.append(text) };
            let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
            let bytes: Option<Vec<u8>> = hex
                .chunks(2)
                .map(|pair| match pair {
                    [a, b] => Some((digit(a)? << 4) | digit(b)?),
                    _ => None,
                })
                .collect();
            return match bytes {
                Some(bytes) => cells.append(&bytes),
                None => {
                    cells.append_null();
                    false
                }
            };
        }
        Kind::Text | Kind::Bytes => {
            let plain = (dialect == Dialect::Sqlite).then(|| short_decimal(text, column_type)).flatten();
            return cells.append(plain.as_deref().unwrap_or(text));
        }
    }
    true
}

/// SQLite keeps decimals as doubles, and its own tool writes all digits that these have: 0.98999999999999999112 is the
/// double of 0.99. None where the digits of the scale are another double.
fn short_decimal(text: &[u8], column_type: ColumnType) -> Option<Vec<u8>> {
    let ColumnType::Decimal { scale, .. } = column_type else { return None };
    let value = crate::text::double(text).filter(|_| text.len() > 16)?;
    let short = format!("{value:.*}", usize::from(scale));
    (short.parse() == Ok(value)).then(|| short.into_bytes())
}
