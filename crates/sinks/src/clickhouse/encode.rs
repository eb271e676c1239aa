//! Rows as RowBinary: each value in the type of its column, little-endian, one row after the other; a nullable one with
//! a byte before it that says whether it is null.
//!
//! A row with a value that its column has no room for is left out and told; where a column's type takes no such values
//! at all, it is the table that does not fit, and nothing is written.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};

use super::table::{KEY, RECEIVED, STREAM, TENANT, Table};
use crate::record::Rows;
use crate::sink::Refused;

/// A column's type on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Type {
    nullable: bool,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Text,
    /// A signed or unsigned integer of so many bytes.
    Int {
        bytes: usize,
        signed: bool,
    },
    Float32,
    Float64,
    /// Of so many bytes and figures behind the point.
    Decimal {
        bytes: usize,
        scale: u32,
    },
    /// Days since 1970, in so many bytes.
    Date {
        bytes: usize,
    },
    /// Seconds since 1970.
    DateTime,
    /// Since 1970, with so many figures behind the second.
    DateTime64 {
        precision: u32,
    },
    Other(String),
}

impl Type {
    /// Reads a type's name.
    pub(super) fn parse(text: &str) -> Self {
        let within = |text: &str, name: &str| -> Option<String> {
            Some(text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')?.to_owned())
        };
        let text = text.trim();
        if let Some(inner) = within(text, "LowCardinality") {
            return Self::parse(&inner);
        }
        if let Some(inner) = within(text, "Nullable") {
            return Self { nullable: true, ..Self::parse(&inner) };
        }
        let (name, arguments) = match text.split_once('(') {
            Some((name, rest)) => (name, rest.trim_end_matches(')')),
            None => (text, ""),
        };
        let numbers: Vec<u32> = arguments.split(',').filter_map(|n| n.trim().parse().ok()).collect();
        let (first, second) = (numbers.first().copied(), numbers.get(1).copied());
        let int = |bytes, signed| Kind::Int { bytes, signed };
        let decimal = |precision: u32, scale| {
            let bytes = match precision {
                0..=9 => 4,
                10..=18 => 8,
                _ => 16,
            };
            Kind::Decimal { bytes, scale }
        };
        let kind = match name {
            "String" => Kind::Text,
            "Int8" => int(1, true),
            "Int16" => int(2, true),
            "Int32" => int(4, true),
            "Int64" => int(8, true),
            "UInt8" | "Bool" => int(1, false),
            "UInt16" => int(2, false),
            "UInt32" => int(4, false),
            "UInt64" => int(8, false),
            "Float32" => Kind::Float32,
            "Float64" => Kind::Float64,
            "Decimal" if first.is_some_and(|p| p <= 38) => decimal(first.unwrap_or(38), second.unwrap_or(0)),
            "Decimal32" => decimal(9, first.unwrap_or(0)),
            "Decimal64" => decimal(18, first.unwrap_or(0)),
            "Decimal128" => decimal(38, first.unwrap_or(0)),
            "Date" => Kind::Date { bytes: 2 },
            "Date32" => Kind::Date { bytes: 4 },
            "DateTime" => Kind::DateTime,
            "DateTime64" => Kind::DateTime64 { precision: first.unwrap_or(3).min(9) },
            _ => Kind::Other(text.to_owned()),
        };
        Self { nullable: false, kind }
    }
}

/// Why a value was not written.
#[derive(Debug, PartialEq, Eq)]
enum Misfit {
    /// The column takes no values of this kind.
    Kind(String),
    /// The column takes such values, and not this one.
    Value(String),
}

fn kind_of(what: &str) -> Misfit {
    Misfit::Kind(what.to_owned())
}

/// Rows, written one after the other.
#[derive(Default)]
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    /// Where each row ends.
    pub(super) ends: Vec<usize>,
    /// Which of the batch it is.
    pub(super) places: Vec<usize>,
}

/// What a row gives for a column.
enum Source<'a> {
    Keys(Vec<String>),
    Same(&'a str),
    Received,
    Column(&'a ArrayRef),
}

/// Adds rows to `out`, in the order of `columns`; the first is row `first` of the batch. Returns those that do not fit.
pub(super) fn encode(
    rows: &Rows,
    first: usize,
    columns: &[&str],
    table: &Table,
    out: &mut Encoded,
) -> Result<Vec<Refused>, String> {
    let mut sources = Vec::with_capacity(columns.len());
    for name in columns {
        let kind = table.type_of(name).ok_or_else(|| format!("the table has no column {name:?} any more"))?;
        let source = match *name {
            KEY => Source::Keys(rows.keys()),
            TENANT => Source::Same(rows.key.tenant.as_str()),
            STREAM => Source::Same(rows.key.stream.as_str()),
            RECEIVED => Source::Received,
            name => Source::Column(
                rows.batch.column_by_name(name).ok_or_else(|| format!("the rows have no column {name:?}"))?,
            ),
        };
        sources.push((*name, kind, source));
    }
    let mut refused = Vec::new();
    for row in 0..rows.len() {
        let begun = out.bytes.len();
        match put_row(rows, row, &sources, &mut out.bytes) {
            Ok(()) => {
                out.ends.push(out.bytes.len());
                out.places.push(first + row);
            }
            Err((name, kind, Misfit::Value(found))) => {
                out.bytes.truncate(begun);
                let reason = format!("the column {name:?} of ClickHouse ({:?}) has no room for {found}", kind.kind);
                refused.push(Refused { at: first + row, reason });
            }
            Err((name, kind, Misfit::Kind(found))) => {
                return Err(format!(
                    "the column {name:?} is of a type in ClickHouse ({:?}) that {found} does not go into",
                    kind.kind
                ));
            }
        }
    }
    Ok(refused)
}

fn put_row<'a>(
    rows: &Rows,
    row: usize,
    sources: &'a [(&'a str, &'a Type, Source<'a>)],
    out: &mut Vec<u8>,
) -> Result<(), (&'a str, &'a Type, Misfit)> {
    for (name, kind, source) in sources {
        let done = match source {
            Source::Keys(keys) => put_text(kind, keys.get(row).map(String::as_bytes).unwrap_or_default(), out),
            Source::Same(text) => put_text(kind, text.as_bytes(), out),
            Source::Received => put_long(kind, rows.received_us(row), Some(6), out),
            Source::Column(column) => put_cell(kind, column, row, out),
        };
        done.map_err(|misfit| (*name, *kind, misfit))?;
    }
    Ok(())
}

fn put_cell(kind: &Type, column: &ArrayRef, row: usize, out: &mut Vec<u8>) -> Result<(), Misfit> {
    if column.is_null(row) {
        return put_null(kind, out);
    }
    match column.data_type() {
        DataType::Utf8 => put_text(kind, column.as_string::<i32>().value(row).as_bytes(), out),
        DataType::LargeBinary => put_text(kind, column.as_binary::<i64>().value(row), out),
        DataType::Boolean => put_long(kind, i64::from(column.as_boolean().value(row)), None, out),
        DataType::Int32 => put_long(kind, column.as_primitive::<Int32Type>().value(row).into(), None, out),
        DataType::Int64 => put_long(kind, column.as_primitive::<Int64Type>().value(row), None, out),
        DataType::Date32 => put_days(kind, column.as_primitive::<Date32Type>().value(row), out),
        DataType::Timestamp(..) => {
            put_long(kind, column.as_primitive::<TimestampMicrosecondType>().value(row), Some(6), out)
        }
        DataType::Float32 => put_float(kind, column.as_primitive::<Float32Type>().value(row).into(), out),
        DataType::Float64 => put_float(kind, column.as_primitive::<Float64Type>().value(row), out),
        DataType::Decimal128(_, scale) => {
            put_decimal(kind, column.as_primitive::<Decimal128Type>().value(row), scale.unsigned_abs().into(), out)
        }
        DataType::Map(..) => {
            let entries = column.as_map().value(row);
            let (names, values) = (entries.column(0).as_string_opt::<i32>(), entries.column(1).as_string_opt::<i32>());
            let pairs = names.into_iter().flatten().zip(values.into_iter().flatten());
            let map: serde_json::Map<_, _> =
                pairs.filter_map(|(name, value)| Some((name?.to_owned(), value.into()))).collect();
            put_text(kind, serde_json::Value::Object(map).to_string().as_bytes(), out)
        }
        other => Err(Misfit::Kind(format!("a value of type {other}"))),
    }
}

fn present(kind: &Type, out: &mut Vec<u8>) {
    if kind.nullable {
        out.push(0);
    }
}

/// Null; in a column that has no nulls, the empty value, as the server itself would take it.
fn put_null(kind: &Type, out: &mut Vec<u8>) -> Result<(), Misfit> {
    if kind.nullable {
        out.push(1);
        return Ok(());
    }
    let bytes = match &kind.kind {
        Kind::Text => 1,
        Kind::Int { bytes, .. } | Kind::Decimal { bytes, .. } | Kind::Date { bytes } => *bytes,
        Kind::Float32 | Kind::DateTime => 4,
        Kind::Float64 | Kind::DateTime64 { .. } => 8,
        Kind::Other(_) => return Err(kind_of("a null")),
    };
    out.resize(out.len() + bytes, 0);
    Ok(())
}

fn put_text(kind: &Type, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Misfit> {
    if kind.kind != Kind::Text {
        return Err(kind_of("a text"));
    }
    present(kind, out);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap_or_default());
    out.extend_from_slice(bytes);
    Ok(())
}

/// An integer; with `figures`, an instant with so many behind the second.
fn put_long(kind: &Type, value: i64, figures: Option<u32>, out: &mut Vec<u8>) -> Result<(), Misfit> {
    let wide = i128::from(value);
    match (&kind.kind, figures) {
        (Kind::Int { bytes, signed }, _) => {
            let bits = u32::try_from(bytes * 8).unwrap_or(64);
            let (least, most) =
                if *signed { (-(1_i128 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
            if wide < least || wide > most {
                return Err(Misfit::Value(format!("the number {value}")));
            }
            present(kind, out);
            out.extend_from_slice(wide.to_le_bytes().get(..*bytes).unwrap_or_default());
        }
        (Kind::DateTime, Some(figures)) => {
            let seconds = value.div_euclid(10_i64.pow(figures));
            let seconds =
                u32::try_from(seconds).map_err(|_| Misfit::Value(format!("the second {seconds} since 1970")))?;
            present(kind, out);
            out.extend_from_slice(&seconds.to_le_bytes());
        }
        (Kind::DateTime64 { precision }, Some(figures)) => {
            let scaled = if precision >= &figures {
                wide * 10_i128.pow(precision - figures)
            } else {
                wide.div_euclid(10_i128.pow(figures - precision))
            };
            let scaled = i64::try_from(scaled).map_err(|_| Misfit::Value(format!("the instant {value}")))?;
            present(kind, out);
            out.extend_from_slice(&scaled.to_le_bytes());
        }
        (Kind::Float64, None) => {
            #[allow(clippy::cast_precision_loss, reason = "the table's owner chose a floating-point column")]
            return put_float(kind, value as f64, out);
        }
        (Kind::Decimal { .. }, None) => return put_decimal(kind, wide, 0, out),
        (Kind::Text, None) => return put_text(kind, value.to_string().as_bytes(), out),
        _ => return Err(kind_of(if figures.is_some() { "a time" } else { "a whole number" })),
    }
    Ok(())
}

fn put_days(kind: &Type, days: i32, out: &mut Vec<u8>) -> Result<(), Misfit> {
    match kind.kind {
        Kind::Date { bytes: 2 } => {
            let days = u16::try_from(days).map_err(|_| Misfit::Value(format!("the day {days} since 1970")))?;
            present(kind, out);
            out.extend_from_slice(&days.to_le_bytes());
        }
        Kind::Date { .. } => {
            present(kind, out);
            out.extend_from_slice(&days.to_le_bytes());
        }
        _ => return put_long(kind, days.into(), None, out),
    }
    Ok(())
}

fn put_float(kind: &Type, value: f64, out: &mut Vec<u8>) -> Result<(), Misfit> {
    match kind.kind {
        Kind::Float64 => {
            present(kind, out);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Kind::Float32 => {
            present(kind, out);
            #[allow(clippy::cast_possible_truncation, reason = "the column is that narrow")]
            out.extend_from_slice(&(value as f32).to_le_bytes());
        }
        Kind::Text => return put_text(kind, value.to_string().as_bytes(), out),
        _ => return Err(kind_of("a floating-point number")),
    }
    Ok(())
}

fn put_decimal(kind: &Type, unscaled: i128, figures: u32, out: &mut Vec<u8>) -> Result<(), Misfit> {
    match kind.kind {
        Kind::Decimal { bytes, scale } => {
            let scaled = if scale >= figures {
                10_i128.checked_pow(scale - figures).and_then(|factor| unscaled.checked_mul(factor))
            } else {
                let divisor = 10_i128.pow((figures - scale).min(38));
                (unscaled % divisor == 0).then_some(unscaled / divisor)
            };
            let room = 1_i128.checked_shl(u32::try_from(bytes * 8 - 1).unwrap_or(127)).unwrap_or(i128::MAX);
            let fits = |value: &i128| bytes == 16 || (*value < room && *value >= -room);
            let scaled =
                scaled.filter(fits).ok_or_else(|| Misfit::Value(format!("the number {unscaled}e-{figures}")))?;
            present(kind, out);
            out.extend_from_slice(scaled.to_le_bytes().get(..bytes).unwrap_or_default());
            Ok(())
        }
        Kind::Text => {
            let scale = usize::try_from(figures).unwrap_or(0);
            let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
            let (whole, rest) = digits.split_at(digits.len() - scale);
            let sign = if unscaled < 0 { "-" } else { "" };
            let text = if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{rest}") };
            put_text(kind, text.as_bytes(), out)
        }
        _ => Err(kind_of("a decimal number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kind: &str, value: impl Fn(&Type, &mut Vec<u8>) -> Result<(), Misfit>) -> Result<Vec<u8>, Misfit> {
        let mut out = Vec::new();
        value(&Type::parse(kind), &mut out).map(|()| out)
    }

    #[test]
    fn types_are_read_with_their_wrappings() {
        let nullable = |kind| Type { nullable: true, kind };
        assert_eq!(Type::parse("LowCardinality(Nullable(String))"), nullable(Kind::Text));
        assert_eq!(Type::parse("Nullable(DateTime64(6, 'UTC'))"), nullable(Kind::DateTime64 { precision: 6 }));
        assert_eq!(Type::parse("Decimal(18, 2)").kind, Kind::Decimal { bytes: 8, scale: 2 });
        assert_eq!(Type::parse("Enum8('a' = 1)").kind, Kind::Other("Enum8('a' = 1)".to_owned()));
    }

    #[test]
    fn values_are_written_in_the_type_that_the_column_has() {
        // The bytes are those of ClickHouse's description of RowBinary.
        assert_eq!(put("String", |k, o| put_text(k, b"ab", o)), Ok(vec![2, b'a', b'b']));
        assert_eq!(put("Nullable(String)", |k, o| put_text(k, b"", o)), Ok(vec![0, 0]));
        assert_eq!(put("Nullable(Int32)", put_null), Ok(vec![1]));
        assert_eq!(put("Int32", put_null), Ok(vec![0; 4]));
        assert_eq!(put("Int16", |k, o| put_long(k, -2, None, o)), Ok(vec![0xfe, 0xff]));
        assert!(put("UInt8", |k, o| put_long(k, 256, None, o)).is_err());
        assert_eq!(put("DateTime", |k, o| put_long(k, 1_500_000, Some(6), o)), Ok(vec![1, 0, 0, 0]));
        assert_eq!(put("DateTime64(3)", |k, o| put_long(k, 1_500_000, Some(6), o)).unwrap()[..2], [0xdc, 0x05]);
        assert_eq!(put("Int64", |k, o| put_long(k, 7, Some(6), o)).unwrap()[0], 7);
        assert_eq!(put("Decimal(9, 3)", |k, o| put_decimal(k, 15, 1, o)), Ok(vec![0xdc, 0x05, 0, 0]));
        assert!(put("Decimal(9, 0)", |k, o| put_decimal(k, 15, 1, o)).is_err(), "nothing is rounded");
        assert_eq!(put("String", |k, o| put_decimal(k, -15, 1, o)), Ok(b"\x04-1.5".to_vec()));
        assert_eq!(put("String", |k, o| put_text(k, &[b'x'; 300], o)).unwrap()[..2], [0xac, 0x02]);
        assert!(put("UUID", |k, o| put_text(k, b"x", o)).is_err());
    }
}
