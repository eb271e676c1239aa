//! One JSON value to one column's value.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lakegate_memtable::{Value, arrow_type, check_nested};
use lakegate_model::{ColumnType, ReasonCode, Refusal, TimeFormat};

use super::payload::is_plain;
use crate::time::{self, TimeError, TimeReader};

/// Microseconds of a day.
pub(crate) const DAY_US: i64 = 86_400_000_000;

/// Reads `raw`, the text of one JSON value, as a value of the column `name`. `times`: how its times are written, where
/// the contract says so.
pub(crate) fn read_leaf<'a>(
    raw: &'a str,
    name: &str,
    column_type: ColumnType,
    times: Option<&TimeReader>,
) -> Result<Value<'a>, Refusal> {
    if raw == "null" {
        return Ok(Value::Null);
    }
    let value = match column_type {
        ColumnType::String => string(raw),
        ColumnType::Json => Some(Value::Text(raw)),
        ColumnType::Long => integer(raw).map(Value::Long),
        ColumnType::Int => {
            let Some(value) = integer(raw) else { return Err(wrong(name, column_type, raw)) };
            if i32::try_from(value).is_err() {
                return Err(out_of_range(name, column_type, raw));
            }
            Some(Value::Long(value))
        }
        ColumnType::Double => return double(raw, name, column_type, f64::MAX),
        ColumnType::Float => return double(raw, name, column_type, f64::from(f32::MAX)),
        ColumnType::Boolean => match raw {
            "true" => Some(Value::Boolean(true)),
            "false" => Some(Value::Boolean(false)),
            _ => None,
        },
        ColumnType::Decimal { precision, scale } => return decimal(raw, name, precision, scale),
        ColumnType::Timestamp | ColumnType::Timestamptz => {
            return timestamp(raw, name, column_type, times).map(Value::Long);
        }
        ColumnType::Date if times.is_some() => {
            let us = timestamp(raw, name, column_type, times)?;
            Some(Value::Long(us.div_euclid(DAY_US)))
        }
        ColumnType::Date => match string(raw) {
            Some(Value::Text(text)) => time::date(text.as_bytes()).ok().map(Value::Long),
            _ => None,
        },
        ColumnType::Binary => match string(raw) {
            Some(Value::Text(text)) => return binary(text, name, raw),
            _ => None,
        },
        ColumnType::StringMap => map(raw),
        ColumnType::Nested(_) => check_nested(raw, &arrow_type(column_type)).is_ok().then_some(Value::Text(raw)),
    };
    value.ok_or_else(|| wrong(name, column_type, raw))
}

/// A time column, or the contract's time field, in microseconds.
pub(crate) fn timestamp(
    raw: &str,
    name: &str,
    column_type: ColumnType,
    times: Option<&TimeReader>,
) -> Result<i64, Refusal> {
    let read = match (string(raw), times) {
        (Some(Value::Text(text)), None) => time::from_text(text),
        (Some(Value::Text(text)), Some(times)) => times.text(text),
        (Some(Value::Owned(text)), Some(times)) => times.text(&text),
        (Some(_), _) => Err(TimeError::Notation),
        (None, None) if is_number(raw) => time::from_number(raw, &TimeFormat::Auto),
        (None, Some(times)) if is_number(raw) => times.number(raw),
        (None, _) => Err(TimeError::Notation),
    };
    read.map_err(|error| match (error, times) {
        (TimeError::Notation, None) => wrong(name, column_type, raw),
        (TimeError::Notation, Some(times)) => must_be(name, &times.shown(), raw),
        (TimeError::Range, _) => out_of_range(name, column_type, raw),
    })
}

fn is_number(raw: &str) -> bool {
    raw.as_bytes().first().is_some_and(|b| b.is_ascii_digit() || *b == b'-')
}

#[inline]
pub(crate) fn string(raw: &str) -> Option<Value<'_>> {
    let [b'"', inner @ .., b'"'] = raw.as_bytes() else { return None };
    let inner = raw.get(1..=inner.len())?;
    if is_plain(inner) {
        return Some(Value::Text(inner));
    }
    serde_json::from_str::<String>(raw).ok().map(|text| Value::Owned(text.into_boxed_str()))
}

/// A whole number; `5.0` and `1e3` are whole numbers too.
#[inline]
pub(super) fn integer(raw: &str) -> Option<i64> {
    if let Ok(value) = raw.parse::<i64>() {
        return Some(value);
    }
    if !is_number(raw) {
        return None;
    }
    let value = unscaled(raw, 0)?;
    i64::try_from(value).ok()
}

fn double<'a>(raw: &str, name: &str, column_type: ColumnType, max: f64) -> Result<Value<'a>, Refusal> {
    match number(raw) {
        Some(value) if value.abs() <= max => Ok(Value::Double(value)),
        Some(_) => Err(out_of_range(name, column_type, raw)),
        None => Err(wrong(name, column_type, raw)),
    }
}

/// The number nearest to what is written; infinite where it is too large.
#[inline]
pub(super) fn number(raw: &str) -> Option<f64> {
    is_number(raw).then(|| raw.parse().ok()).flatten()
}

fn decimal<'a>(raw: &str, name: &str, precision: u8, scale: u8) -> Result<Value<'a>, Refusal> {
    let column_type = ColumnType::Decimal { precision, scale };
    let text = match string(raw) {
        Some(Value::Text(text)) => text,
        Some(_) => return Err(wrong(name, column_type, raw)),
        None => raw,
    };
    if !is_number(text) {
        return Err(wrong(name, column_type, raw));
    }
    let value = unscaled(text, i32::from(scale)).ok_or_else(|| out_of_range(name, column_type, raw))?;
    let limit = 10_i128.checked_pow(u32::from(precision)).unwrap_or(i128::MAX);
    if value.abs() < limit { Ok(Value::Decimal(value)) } else { Err(out_of_range(name, column_type, raw)) }
}

/// The number times ten to the `scale`, exactly; none where a digit would be lost or the result is too large.
fn unscaled(text: &str, scale: i32) -> Option<i128> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (negative, whole) = whole.strip_prefix('-').map_or((false, whole), |rest| (true, rest));
    let fraction = fraction.trim_end_matches('0');
    let mut value = 0_i128;
    for byte in whole.bytes().chain(fraction.bytes()) {
        let digit = byte.is_ascii_digit().then(|| i128::from(byte - b'0'))?;
        value = value.checked_mul(10)?.checked_add(digit)?;
    }
    let shift = exponent.checked_add(scale)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let power = 10_i128.checked_pow(shift.unsigned_abs());
    let value = match power {
        _ if value == 0 => 0,
        Some(power) if shift >= 0 => value.checked_mul(power)?,
        Some(power) if value % power == 0 => value / power,
        _ => return None,
    };
    Some(if negative { -value } else { value })
}

fn binary<'a>(text: &str, name: &str, raw: &str) -> Result<Value<'a>, Refusal> {
    // Bytes are kept as text of the same bytes would not be UTF-8; the value owns what was decoded.
    match STANDARD.decode(text) {
        Ok(bytes) => Ok(Value::OwnedBytes(bytes.into_boxed_slice())),
        Err(_) => Err(wrong(name, ColumnType::Binary, raw)),
    }
}

fn map(raw: &str) -> Option<Value<'_>> {
    if !raw.starts_with('{') {
        return None;
    }
    let entries: std::collections::BTreeMap<String, String> = serde_json::from_str(raw).ok()?;
    Some(Value::OwnedMap(entries.into_iter().collect()))
}

/// The found value, cut so that a message stays short.
pub(crate) fn shown(raw: &str) -> String {
    let mut text: String = raw.chars().take(60).collect();
    if text.len() < raw.len() {
        text.push('…');
    }
    text
}

pub(crate) fn wrong(name: &str, column_type: ColumnType, raw: &str) -> Refusal {
    let right = match column_type {
        ColumnType::Timestamp | ColumnType::Timestamptz => "a time by RFC 3339 or a number since 1970".to_owned(),
        ColumnType::Date => "a date such as \"2026-01-31\"".to_owned(),
        ColumnType::Binary => "text in Base64".to_owned(),
        ColumnType::StringMap => "an object of strings".to_owned(),
        other => format!("a value of type {}", other.name()),
    };
    must_be(name, &right, raw)
}

fn must_be(name: &str, right: &str, raw: &str) -> Refusal {
    let message = format!("{name} must be {right}; found {}", shown(raw));
    Refusal { code: ReasonCode::WrongType, field: Some(name.to_owned()), message }
}

pub(crate) fn out_of_range(name: &str, column_type: ColumnType, raw: &str) -> Refusal {
    let message = format!("{name} holds {}, which does not fit {}", shown(raw), column_type.name());
    Refusal { code: ReasonCode::OutOfRange, field: Some(name.to_owned()), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: &str, column_type: ColumnType) -> Result<Value<'_>, ReasonCode> {
        read_leaf(raw, "c", column_type, None).map_err(|refusal| refusal.code)
    }

    #[test]
    fn numbers_are_kept_exactly_or_refused() {
        let decimal = ColumnType::Decimal { precision: 10, scale: 2 };
        assert_eq!(read("12.34", decimal), Ok(Value::Decimal(1234)));
        assert_eq!(read("\"-0.10\"", decimal), Ok(Value::Decimal(-10)));
        assert_eq!(read("1e3", decimal), Ok(Value::Decimal(100_000)));
        assert_eq!(read("12.345", decimal), Err(ReasonCode::OutOfRange));
        assert_eq!(read("99999999999", decimal), Err(ReasonCode::OutOfRange));
        assert_eq!(read("9223372036854775807", ColumnType::Long), Ok(Value::Long(i64::MAX)));
        assert_eq!(read("9223372036854775808", ColumnType::Long), Err(ReasonCode::WrongType));
        assert_eq!(read("5.0", ColumnType::Long), Ok(Value::Long(5)));
        assert_eq!(read("5.5", ColumnType::Long), Err(ReasonCode::WrongType));
        assert_eq!(read("2147483648", ColumnType::Int), Err(ReasonCode::OutOfRange));
        assert_eq!(read("1e400", ColumnType::Double), Err(ReasonCode::OutOfRange));
        assert_eq!(read("1e39", ColumnType::Float), Err(ReasonCode::OutOfRange));
    }

    #[test]
    fn a_value_of_another_kind_is_refused_and_null_is_null() {
        for (raw, column_type) in [
            ("\"1\"", ColumnType::Long),
            ("1", ColumnType::String),
            ("\"x\"", ColumnType::Boolean),
            ("[1]", ColumnType::Double),
            ("{}", ColumnType::String),
            ("\"2024-99-99\"", ColumnType::Date),
            ("\"*\"", ColumnType::Binary),
            ("{\"a\":1}", ColumnType::StringMap),
            ("true", ColumnType::Timestamptz),
        ] {
            assert_eq!(read(raw, column_type), Err(ReasonCode::WrongType), "{raw} as {}", column_type.name());
        }
        assert_eq!(read("null", ColumnType::Long), Ok(Value::Null));
    }

    #[test]
    fn text_is_unescaped_and_lone_surrogates_are_refused() {
        assert_eq!(read(r#""a\n\u00e9""#, ColumnType::String), Ok(Value::Owned("a\né".into())));
        assert_eq!(read(r#""\ud800""#, ColumnType::String), Err(ReasonCode::WrongType));
    }
}
