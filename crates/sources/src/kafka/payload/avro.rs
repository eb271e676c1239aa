//! Avro values as JSON.
//!
//! Bytes become Base64; decimals, dates and times become texts that columns of these types read; a union is its value.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use apache_avro::Schema;
use apache_avro::types::Value;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A value that asks for more memory than this is refused.
const ALLOCATION_BYTES: usize = 64 << 20;
const DAY_US: i64 = 86_400_000_000;

/// For the whole process, once.
pub(super) fn bound_allocations() {
    apache_avro::util::max_allocation_bytes(ALLOCATION_BYTES);
}

/// A schema that values were written with, and those that it refers to.
pub(crate) struct AvroSchema {
    schema: Schema,
    others: Vec<Schema>,
}

impl AvroSchema {
    pub(super) fn new(schema: &str, others: &BTreeMap<String, String>) -> Result<Self, String> {
        let (schema, others) =
            Schema::parse_str_with_list(schema, others.values()).map_err(|error| error.to_string())?;
        Ok(Self { schema, others })
    }

    pub(super) fn to_json(&self, mut content: &[u8]) -> Result<String, String> {
        let wrong = |error: apache_avro::Error| format!("the value does not fit its Avro schema: {error}");
        let value = if self.others.is_empty() {
            apache_avro::from_avro_datum(&self.schema, &mut content, None)
        } else {
            let all = self.others.iter().chain([&self.schema]).collect();
            apache_avro::from_avro_datum_schemata(&self.schema, all, &mut content, None)
        };
        let value = value.map_err(wrong)?;
        if !content.is_empty() {
            return Err(format!("{} bytes follow the value", content.len()));
        }
        let mut text = String::new();
        write_value(&mut text, &value, Some(&self.schema))?;
        Ok(text)
    }
}

/// The schema of a member, where it is plain to see.
fn member<'s>(schema: Option<&'s Schema>, name: &str) -> Option<&'s Schema> {
    match schema? {
        Schema::Record(record) => record.fields.iter().find(|field| field.name == name).map(|field| &field.schema),
        _ => None,
    }
}

fn write_value(out: &mut String, value: &Value, schema: Option<&Schema>) -> Result<(), String> {
    match value {
        Value::Null => out.push_str("null"),
        Value::Boolean(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Int(number) => write_number(out, number),
        Value::Long(number) => write_number(out, number),
        Value::Float(number) => write_float(out, f64::from(*number)),
        Value::Double(number) => write_float(out, *number),
        Value::Bytes(bytes) | Value::Fixed(_, bytes) => write_text(out, &STANDARD.encode(bytes)),
        Value::String(text) | Value::Enum(_, text) => write_text(out, text),
        Value::Union(place, inner) => {
            let schema = match schema {
                Some(Schema::Union(union)) => union.variants().get(usize::try_from(*place).unwrap_or(usize::MAX)),
                _ => None,
            };
            write_value(out, inner, schema)?;
        }
        Value::Array(items) => {
            let schema = if let Some(Schema::Array(array)) = schema { Some(array.items.as_ref()) } else { None };
            write_list(out, ['[', ']'], items.iter(), |out, item| write_value(out, item, schema))?;
        }
        Value::Map(members) => {
            let schema = if let Some(Schema::Map(map)) = schema { Some(map.types.as_ref()) } else { None };
            write_list(out, ['{', '}'], members.iter(), |out, (name, inner)| {
                write_text(out, name);
                out.push(':');
                write_value(out, inner, schema)
            })?;
        }
        Value::Record(members) => write_list(out, ['{', '}'], members.iter(), |out, (name, inner)| {
            write_text(out, name);
            out.push(':');
            write_value(out, inner, member(schema, name))
        })?,
        Value::Date(days) => write_date(out, *days),
        Value::TimeMillis(ms) => write_time_of_day(out, i64::from(*ms) * 1000),
        Value::TimeMicros(us) => write_time_of_day(out, *us),
        Value::TimestampMillis(ms) => write_timestamp(out, ms.saturating_mul(1000), "Z"),
        Value::TimestampMicros(us) => write_timestamp(out, *us, "Z"),
        Value::TimestampNanos(ns) => write_timestamp(out, ns.div_euclid(1000), "Z"),
        Value::LocalTimestampMillis(ms) => write_timestamp(out, ms.saturating_mul(1000), ""),
        Value::LocalTimestampMicros(us) => write_timestamp(out, *us, ""),
        Value::LocalTimestampNanos(ns) => write_timestamp(out, ns.div_euclid(1000), ""),
        Value::Decimal(decimal) => {
            let bytes: Vec<u8> = decimal.try_into().map_err(|_| "a decimal cannot be read".to_owned())?;
            let scale = if let Some(Schema::Decimal(schema)) = schema { schema.scale } else { 0 };
            write_decimal(out, &bytes, scale)?;
        }
        Value::BigDecimal(decimal) => write_text(out, &decimal.to_string()),
        Value::Uuid(uuid) => write_text(out, &uuid.hyphenated().to_string()),
        Value::Duration(duration) => {
            let bytes: [u8; 12] = (*duration).into();
            write_text(out, &STANDARD.encode(bytes));
        }
    }
    Ok(())
}

fn write_list<T>(
    out: &mut String,
    [open, close]: [char; 2],
    items: impl Iterator<Item = T>,
    mut write: impl FnMut(&mut String, T) -> Result<(), String>,
) -> Result<(), String> {
    out.push(open);
    for (place, item) in items.enumerate() {
        if place > 0 {
            out.push(',');
        }
        write(out, item)?;
    }
    out.push(close);
    Ok(())
}

fn write_number(out: &mut String, number: &dyn std::fmt::Display) {
    let _ = write!(out, "{number}");
}

/// JSON has no notation for infinities and for what is no number.
fn write_float(out: &mut String, number: f64) {
    if number.is_finite() {
        let _ = write!(out, "{number:?}");
    } else {
        out.push_str("null");
    }
}

fn write_text(out: &mut String, text: &str) {
    out.push_str(&serde_json::Value::String(text.to_owned()).to_string());
}

fn write_date(out: &mut String, days: i32) {
    let (year, month, day) = civil(i64::from(days));
    let _ = write!(out, "\"{year:04}-{month:02}-{day:02}\"");
}

fn write_time_of_day(out: &mut String, us: i64) {
    let seconds = us / 1_000_000;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let _ = write!(out, "\"{hour:02}:{minute:02}:{second:02}.{:06}\"", us % 1_000_000);
}

fn write_timestamp(out: &mut String, us: i64, zone: &str) {
    let (year, month, day) = civil(us.div_euclid(DAY_US));
    let rest = us.rem_euclid(DAY_US);
    let seconds = rest / 1_000_000;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let us = rest % 1_000_000;
    let _ = write!(out, "\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{us:06}{zone}\"");
}

/// Year, month and day of a day since 1970: Howard Hinnant's `civil_from_days`.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

/// A big-endian two's complement number with `scale` digits behind the point.
fn write_decimal(out: &mut String, bytes: &[u8], scale: usize) -> Result<(), String> {
    if bytes.len() > 16 {
        return Err(format!("a decimal of {} bytes; at most 16 are taken", bytes.len()));
    }
    let fill = if bytes.first().is_some_and(|first| first & 0x80 != 0) { 0xff } else { 0 };
    let mut whole = [fill; 16];
    if let Some(place) = whole.get_mut(16 - bytes.len()..) {
        place.copy_from_slice(bytes);
    }
    let unscaled = i128::from_be_bytes(whole);
    let digits = format!("{:0width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (integer, fraction) = digits.split_at_checked(digits.len() - scale).unwrap_or((&digits, ""));
    let point = if fraction.is_empty() { "" } else { "." };
    let sign = if unscaled < 0 { "-" } else { "" };
    let _ = write!(out, "\"{sign}{integer}{point}{fraction}\"");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values, encodings and texts after the Avro specification 1.12, "Binary Encoding" and "Logical Types".
    #[test]
    fn a_record_is_read_as_the_json_of_its_fields() {
        let schema = r#"{"type":"record","name":"r","fields":[
            {"name":"id","type":"string"},{"name":"n","type":["null","long"]},{"name":"ok","type":"boolean"},
            {"name":"day","type":{"type":"int","logicalType":"date"}},
            {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
            {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}},
            {"name":"tags","type":{"type":"array","items":"string"}},
            {"name":"b","type":"bytes"}]}"#;
        let schema = AvroSchema::new(schema, &BTreeMap::new()).unwrap();
        let mut content = vec![0x06, b'f', b'o', b'o']; // "foo"
        content.extend([0x02, 0x80, 0x01]); // the second of the union: 64
        content.push(1);
        content.extend([0x02]); // one day
        content.extend([0xd0, 0x0f]); // 1000 ms
        content.extend([0x04, 0xff, 0x38]); // -200 in two bytes
        content.extend([0x02, 0x02, b'x', 0x00]);
        content.extend([0x04, 0x00, 0xff]);
        let expected = r#"{"id":"foo","n":64,"ok":true,"day":"1970-01-02","at":"1970-01-01T00:00:01.000000Z","price":"-2.00","tags":["x"],"b":"AP8="}"#;
        assert_eq!(schema.to_json(&content).unwrap(), expected);
        assert!(schema.to_json(&content[..5]).is_err());
        content.push(0);
        assert!(schema.to_json(&content).unwrap_err().contains("1 bytes follow"));
    }

    #[test]
    fn a_schema_may_refer_to_another() {
        let inner = r#"{"type":"record","name":"inner","fields":[{"name":"x","type":"int"}]}"#;
        let outer = r#"{"type":"record","name":"outer","fields":[{"name":"i","type":"inner"}]}"#;
        let others = BTreeMap::from([("inner".to_owned(), inner.to_owned())]);
        let schema = AvroSchema::new(outer, &others).unwrap();
        assert_eq!(schema.to_json(&[0x0e]).unwrap(), r#"{"i":{"x":7}}"#);
    }

    #[test]
    fn days_become_dates_as_the_calendar_has_them() {
        assert_eq!(
            [civil(0), civil(-1), civil(11_016), civil(20_074)],
            [(1970, 1, 1), (1969, 12, 31), (2000, 2, 29), (2024, 12, 17)]
        );
    }
}
