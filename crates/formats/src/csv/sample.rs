//! What a CSV file's head tells: delimiter, header, types.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use lakegate_model::ColumnType;

use super::split::{Cell, Split, Splitter};
use crate::cells::arrow_type;
use crate::{CsvOptions, text};

/// The most rows of the head that are looked at.
const ROWS: usize = 10_000;

/// What was found out, or given.
pub(super) struct Shape {
    pub(super) splitter: Splitter,
    pub(super) header: bool,
    pub(super) schema: SchemaRef,
    pub(super) types: Vec<ColumnType>,
    /// Which types are given, not found.
    pub(super) given: Vec<bool>,
}

impl Shape {
    /// From the file's head; `whole`: there is nothing after it.
    pub(super) fn find(head: &[u8], whole: bool, options: &CsvOptions) -> Self {
        let delimiter = options.delimiter.unwrap_or_else(|| find_delimiter(head, whole, options));
        let splitter = Splitter::new(delimiter, options.quote);
        let rows = rows(head, whole, splitter, options, ROWS);
        let first = rows.first().map(Vec::as_slice).unwrap_or_default();
        let header = options.header.unwrap_or_else(|| is_header(head, first, options));
        let names = names(head, first, header);
        let mut types = Vec::with_capacity(names.len());
        let mut given = Vec::with_capacity(names.len());
        for (column, name) in names.iter().enumerate() {
            let known = options.types.as_ref().and_then(|s| s.field_with_name(name).ok());
            given.push(known.is_some());
            types.push(match known {
                Some(field) => crate::cells::column_type(field.data_type()),
                None => find_type(head, rows.iter().skip(usize::from(header)).filter_map(|r| r.get(column)), options),
            });
        }
        let fields: Vec<Field> =
            names.iter().zip(&types).map(|(name, t)| Field::new(name, arrow_type(*t), true)).collect();
        Self { splitter, header, schema: Arc::new(Schema::new(fields)), types, given }
    }
}

/// The head's whole rows. A row that breaks the rules of quotes is passed over.
fn rows(head: &[u8], whole: bool, splitter: Splitter, options: &CsvOptions, most: usize) -> Vec<Vec<Cell>> {
    let (mut at, mut out) = (0, Vec::new());
    while at < head.len() && out.len() < most {
        let mut cells = Vec::new();
        let next = match splitter.split(head, at, whole, &mut cells) {
            Split::Row(next) => {
                let comment = options.comment.is_some() && head.get(at) == options.comment.as_ref();
                if !comment && !cells.iter().all(|c| c.raw(head).is_empty()) {
                    out.push(cells);
                }
                next
            }
            Split::More => break,
            Split::Quote(_) => {
                memchr::memchr(b'\n', head.get(at..).unwrap_or_default()).map_or(head.len(), |n| at + n + 1)
            }
        };
        at = next;
    }
    out
}

/// The delimiter that gives the same number of fields, more than one, on most of the first rows.
fn find_delimiter(head: &[u8], whole: bool, options: &CsvOptions) -> u8 {
    let mut best = (0, b',');
    for delimiter in [b',', b'\t', b';', b'|'] {
        let rows = rows(head, whole, Splitter::new(delimiter, options.quote), options, 100);
        let fields = rows.first().map_or(0, Vec::len);
        let same = rows.iter().filter(|r| r.len() == fields).count();
        let score = if fields > 1 { same * 1_000 / rows.len().max(1) + fields.min(400) } else { 0 };
        if score > best.0 {
            best = (score, delimiter);
        }
    }
    best.1
}

/// A first row is a header when every field of it is a word of its own: none empty, a number, a date or a repetition.
fn is_header(head: &[u8], first: &[Cell], options: &CsvOptions) -> bool {
    let mut seen = std::collections::HashSet::new();
    first.iter().all(|cell| {
        let raw = cell.raw(head);
        let value = !raw.is_empty()
            && !options.nulls.iter().any(|n| n.as_bytes() == raw)
            && text::double(raw).is_none()
            && text::timestamp_parts(raw).is_none()
            && !raw.eq_ignore_ascii_case(b"true")
            && !raw.eq_ignore_ascii_case(b"false");
        value && seen.insert(raw.to_vec())
    })
}

fn names(head: &[u8], first: &[Cell], header: bool) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(first.len());
    let mut seen = std::collections::HashSet::new();
    for (at, cell) in first.iter().enumerate() {
        let raw = String::from_utf8_lossy(cell.raw(head));
        let text = if cell.doubled() { raw.replace("\"\"", "\"") } else { raw.into_owned() };
        let text = text.trim();
        let base = if header && !text.is_empty() { text.to_owned() } else { format!("column_{}", at + 1) };
        let (mut name, mut again) = (base.clone(), 2);
        while !seen.insert(name.clone()) {
            name = format!("{base}_{again}");
            again += 1;
        }
        names.push(name);
    }
    names
}

/// The narrowest type that all values of the sample fit. Numbers with leading zeros are text: they are codes.
fn find_type<'a>(head: &[u8], cells: impl Iterator<Item = &'a Cell>, options: &CsvOptions) -> ColumnType {
    type Fits = fn(&[u8]) -> bool;
    const TYPES: [(ColumnType, Fits); 6] = [
        (ColumnType::Long, |r| plain_number(r) && text::long(r).is_some()),
        (ColumnType::Double, |r| plain_number(r) && text::double(r).is_some()),
        (ColumnType::Boolean, |r| r.eq_ignore_ascii_case(b"true") || r.eq_ignore_ascii_case(b"false")),
        (ColumnType::Date, |r| r.len() == 10 && text::date(r).is_some()),
        (ColumnType::Timestamp, |r| text::timestamp(r, false).is_some()),
        (ColumnType::Timestamptz, |r| matches!(text::timestamp_parts(r), Some((_, Some(_))))),
    ];
    let mut open = [true; TYPES.len()];
    let mut any = false;
    for cell in cells {
        let raw = cell.raw(head);
        if !cell.quoted() && options.nulls.iter().any(|n| n.as_bytes() == raw) {
            continue;
        }
        any = true;
        for (open, (_, fits)) in open.iter_mut().zip(TYPES) {
            *open = *open && fits(raw);
        }
        if !open.contains(&true) {
            return ColumnType::String;
        }
    }
    let found = open.iter().zip(TYPES).find(|(open, _)| **open).map(|(_, (t, _))| t);
    if any { found.unwrap_or(ColumnType::String) } else { ColumnType::String }
}

fn plain_number(raw: &[u8]) -> bool {
    let digits = raw.strip_prefix(b"-").unwrap_or(raw);
    match digits {
        [b'0', b'0'..=b'9', ..] => false,
        // Words such as `nan` and `inf` are no numbers here.
        [b'0'..=b'9' | b'.', ..] => {
            digits.iter().filter(|b| b.is_ascii_digit()).count() <= 17 || text::long(raw).is_some()
        }
        _ => false,
    }
}

pub(super) const fn type_name(arrow: &DataType) -> &'static str {
    match arrow {
        DataType::Boolean => "boolean",
        DataType::Int32 => "int",
        DataType::Int64 => "long",
        DataType::Float32 | DataType::Float64 => "double",
        DataType::Decimal128(..) => "decimal of this precision and scale",
        DataType::Date32 => "date (YYYY-MM-DD)",
        DataType::Timestamp(_, None) => "timestamp (YYYY-MM-DD HH:MM:SS)",
        DataType::Timestamp(..) => "timestamptz (YYYY-MM-DDTHH:MM:SSZ)",
        _ => "text in UTF-8",
    }
}
