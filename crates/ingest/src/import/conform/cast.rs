//! One column of a file as a column of the contract.
//!
//! A value is taken over where nothing of it is lost, else its row is refused: with the reason that the same value would
//! get in a JSON payload. Types of one kind are cast whole columns at a time; text is read as the type that is wanted;
//! whatever else there is goes value by value through JSON text and the reader of payloads, so that there is one set of
//! rules. A pair of types of which no value could pass is an error of the whole file.

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, PrimitiveArray, StringArray, TimestampMicrosecondArray,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use arrow::error::ArrowError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lakegate_memtable::{ColumnBuilder, Value, arrow_type};
use lakegate_model::{ColumnType, Refusal, TimeFormat};
use std::sync::Arc;

use super::json::{ColumnTexts, JsonOptions, field_of};
use crate::import::own_columns::is_within;
use crate::shape::leaf::{out_of_range, read_leaf, wrong};
use crate::time::{self, TimeError, TimeReader};

/// Rows that were refused, each with the first reason found.
pub(crate) type Refused = std::collections::BTreeMap<usize, Refusal>;

/// What a column is to become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'c> {
    pub(crate) name: &'c str,
    pub(crate) column_type: ColumnType,
    /// How its times are written, where the contract says so.
    pub(crate) times: Option<&'c TimeReader>,
}

const SAFE: CastOptions<'static> =
    CastOptions { safe: true, format_options: arrow::util::display::FormatOptions::new() };

/// The column without dictionaries, runs and views.
pub(crate) fn plain(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let wanted = match array.data_type() {
        DataType::Dictionary(_, values) => values.as_ref().clone(),
        DataType::RunEndEncoded(_, values) => values.data_type().clone(),
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::Binary | DataType::FixedSizeBinary(_) => DataType::LargeBinary,
        _ => return Ok(Arc::clone(array)),
    };
    let cast = cast_with_options(array, &wanted, &CastOptions { safe: false, ..SAFE })?;
    // A dictionary's values may be large texts.
    if matches!(wanted, DataType::Utf8 | DataType::LargeBinary) { Ok(cast) } else { plain(&cast) }
}

/// Whether any value of the file's type could be one of the contract's.
pub(crate) fn may_fit(source: &DataType, wanted: ColumnType) -> bool {
    use ColumnType as C;
    match source {
        DataType::Dictionary(_, values) => return may_fit(values, wanted),
        DataType::RunEndEncoded(_, values) => return may_fit(values.data_type(), wanted),
        _ => {}
    }
    if matches!(wanted, C::String | C::Json) || matches!(source, DataType::Null) {
        return true;
    }
    if matches!(wanted, C::Nested(_)) {
        return is_within(source, wanted);
    }
    match source {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Boolean => matches!(wanted, C::Boolean),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            matches!(wanted, C::Binary)
        }
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => {
            matches!(wanted, C::Timestamp | C::Timestamptz | C::Date)
        }
        DataType::Map(..) | DataType::Struct(_) => matches!(wanted, C::StringMap),
        source if source.is_integer() => !matches!(wanted, C::Binary | C::StringMap | C::Date),
        source if source.is_numeric() => !matches!(wanted, C::Binary | C::StringMap | C::Date | C::Boolean),
        _ => false,
    }
}

/// Casts a column. Rows that do not fit are null in the result and stand in `refused`.
pub(crate) fn cast_column(
    source: &ArrayRef,
    wanted: Wanted<'_>,
    refused: &mut Refused,
) -> Result<ArrayRef, ArrowError> {
    let source = plain(source)?;
    let target = arrow_type(wanted.column_type);
    if matches!(source.data_type(), DataType::Null) {
        return Ok(arrow::array::new_null_array(&target, source.len()));
    }
    match (source.data_type(), wanted.column_type) {
        (
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64,
            ColumnType::Timestamp | ColumnType::Timestamptz,
        ) => {
            let micros = timestamps(&source, wanted, refused)?;
            Ok(Arc::new(micros.with_data_type(target)))
        }
        (DataType::Timestamp(..) | DataType::Date64, ColumnType::Date) => through_json(&source, wanted, refused),
        (_, ColumnType::Json) => through_json(&source, wanted, refused),
        (found, _) if *found == target => Ok(source),
        (_, ColumnType::Nested(_)) => cast_with_options(&source, &target, &CastOptions { safe: false, ..SAFE }),
        (DataType::Utf8, _) => texts(source.as_string::<i32>(), wanted, refused),
        (found, ColumnType::Timestamp | ColumnType::Timestamptz) if found.is_integer() => {
            epochs(&source, wanted, refused)
        }
        (found, ColumnType::Boolean) if found.is_integer() => booleans(&source, wanted, refused),
        (found, ColumnType::Long | ColumnType::Int | ColumnType::Float | ColumnType::Double)
            if found.is_integer() || found.is_floating() =>
        {
            numbers(&source, &target, wanted, refused)
        }
        (found, ColumnType::Decimal { .. }) if found.is_integer() => {
            checked(&source, &target, wanted, refused, |row| value_text(&source, row))
        }
        (DataType::Decimal128(p, s), ColumnType::Decimal { precision, scale })
            if *s <= scale.cast_signed()
                && i16::from(*p) - i16::from(*s) <= i16::from(precision) - i16::from(scale) =>
        {
            cast_with_options(&source, &target, &SAFE)
        }
        (found, ColumnType::String) if !found.is_nested() && !found.is_binary() => {
            cast_with_options(&source, &target, &SAFE)
        }
        (DataType::LargeBinary, ColumnType::String) => checked(&source, &target, wanted, refused, |row| {
            format!("{} bytes that are not UTF-8", source.as_binary::<i64>().value(row).len())
        }),
        _ => through_json(&source, wanted, refused),
    }
}

/// A cast whose failures are the nulls that it adds.
fn checked(
    source: &ArrayRef,
    target: &DataType,
    wanted: Wanted<'_>,
    refused: &mut Refused,
    show: impl Fn(usize) -> String,
) -> Result<ArrayRef, ArrowError> {
    let cast = cast_with_options(source, target, &SAFE)?;
    if cast.null_count() > source.null_count() {
        for row in (0..source.len()).filter(|row| cast.is_null(*row) && source.is_valid(*row)) {
            let refusal = || out_of_range(wanted.name, wanted.column_type, &show(row));
            refused.entry(row).or_insert_with(refusal);
        }
    }
    Ok(cast)
}

/// Whole numbers and fractions among each other: a fraction is no whole number, and nothing wraps.
fn numbers(
    source: &ArrayRef,
    target: &DataType,
    wanted: Wanted<'_>,
    refused: &mut Refused,
) -> Result<ArrayRef, ArrowError> {
    let source = match source.data_type() {
        DataType::Float16 => cast_with_options(source, &DataType::Float32, &SAFE)?,
        _ => Arc::clone(source),
    };
    let shown = |row: usize| value_text(&source, row);
    if source.data_type().is_floating() && target.is_integer() {
        let doubles = cast_with_options(&source, &DataType::Float64, &SAFE)?;
        let doubles = doubles.as_primitive::<Float64Type>();
        for (row, value) in doubles.iter().enumerate() {
            if value.is_some_and(|value| value.fract() != 0.0) {
                refused.entry(row).or_insert_with(|| wrong(wanted.name, wanted.column_type, &shown(row)));
            }
        }
        let whole: PrimitiveArray<Float64Type> = doubles.unary_opt(|value| (value.fract() == 0.0).then_some(value));
        let whole: ArrayRef = Arc::new(whole);
        return checked(&whole, target, wanted, refused, shown);
    }
    if let (DataType::Float64, DataType::Float32) = (source.data_type(), target) {
        let doubles = source.as_primitive::<Float64Type>();
        #[allow(clippy::cast_possible_truncation, reason = "a float column holds the nearest float, by declaration")]
        let narrow: PrimitiveArray<Float32Type> = doubles
            .unary_opt(|value| (!value.is_finite() || value.abs() <= f64::from(f32::MAX)).then_some(value as f32));
        for row in (0..narrow.len()).filter(|row| narrow.is_null(*row) && doubles.is_valid(*row)) {
            refused.entry(row).or_insert_with(|| out_of_range(wanted.name, wanted.column_type, &shown(row)));
        }
        return Ok(Arc::new(narrow));
    }
    checked(&source, target, wanted, refused, shown)
}

/// 0 and 1, as databases keep truth values.
fn booleans(source: &ArrayRef, wanted: Wanted<'_>, refused: &mut Refused) -> Result<ArrayRef, ArrowError> {
    let longs = cast_with_options(source, &DataType::Int64, &SAFE)?;
    let longs = longs.as_primitive::<Int64Type>();
    let read = |(row, value): (usize, Option<i64>)| match value {
        Some(0) => Some(false),
        Some(1) => Some(true),
        None if source.is_null(row) => None,
        _ => {
            refused.entry(row).or_insert_with(|| wrong(wanted.name, wanted.column_type, &value_text(source, row)));
            None
        }
    };
    Ok(Arc::new(longs.iter().enumerate().map(read).collect::<BooleanArray>()))
}

/// Numbers since 1970.
fn epochs(source: &ArrayRef, wanted: Wanted<'_>, refused: &mut Refused) -> Result<ArrayRef, ArrowError> {
    let longs = checked(source, &DataType::Int64, wanted, refused, |row| value_text(source, row))?;
    let read = |units: i64| {
        wanted.times.map_or_else(|| time::from_whole(units, &TimeFormat::Auto), |times| times.whole(units))
    };
    let micros = times(longs.as_primitive::<Int64Type>(), read, wanted, refused);
    Ok(Arc::new(micros.with_data_type(arrow_type(wanted.column_type))))
}

/// Times of any unit in microseconds, rounded towards the past, inside the years 1 to 9999.
fn timestamps(
    source: &ArrayRef,
    wanted: Wanted<'_>,
    refused: &mut Refused,
) -> Result<TimestampMicrosecondArray, ArrowError> {
    let scaled = |factor: i64| move |value: i64| time::in_range(i128::from(value) * i128::from(factor));
    let array = match source.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let micros = source.as_primitive::<TimestampMicrosecondType>();
            let ends = (arrow::compute::min(micros), arrow::compute::max(micros));
            if ends.0.is_none_or(|least| least >= time::MIN_US) && ends.1.is_none_or(|most| most <= time::MAX_US) {
                return Ok(micros.clone());
            }
            times(&micros.reinterpret_cast::<Int64Type>(), scaled(1), wanted, refused)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            let nanos = source.as_primitive::<TimestampNanosecondType>();
            nanos.unary::<_, TimestampMicrosecondType>(|value| value.div_euclid(1000))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            let millis = source.as_primitive::<TimestampMillisecondType>().reinterpret_cast::<Int64Type>();
            times(&millis, scaled(1_000), wanted, refused)
        }
        DataType::Timestamp(TimeUnit::Second, _) => {
            let seconds = source.as_primitive::<TimestampSecondType>().reinterpret_cast::<Int64Type>();
            times(&seconds, scaled(1_000_000), wanted, refused)
        }
        DataType::Date64 => {
            let millis = cast_with_options(source, &DataType::Int64, &SAFE)?;
            times(millis.as_primitive::<Int64Type>(), scaled(1_000), wanted, refused)
        }
        _ => {
            let days =
                cast_with_options(&cast_with_options(source, &DataType::Int32, &SAFE)?, &DataType::Int64, &SAFE)?;
            times(days.as_primitive::<Int64Type>(), scaled(86_400_000_000), wanted, refused)
        }
    };
    Ok(array)
}

fn times(
    source: &Int64Array,
    read: impl Fn(i64) -> Result<i64, TimeError>,
    wanted: Wanted<'_>,
    refused: &mut Refused,
) -> TimestampMicrosecondArray {
    let micros: TimestampMicrosecondArray = source.unary_opt(|value| read(value).ok());
    if micros.null_count() > source.null_count() {
        for row in (0..source.len()).filter(|row| micros.is_null(*row) && source.is_valid(*row)) {
            let refusal = || match read(source.value(row)) {
                Err(TimeError::Notation) => wrong(wanted.name, wanted.column_type, &source.value(row).to_string()),
                _ => out_of_range(wanted.name, wanted.column_type, &source.value(row).to_string()),
            };
            refused.entry(row).or_insert_with(refusal);
        }
    }
    micros
}

/// Text as the type that is wanted.
fn texts(source: &StringArray, wanted: Wanted<'_>, refused: &mut Refused) -> Result<ArrayRef, ArrowError> {
    let mut builder = ColumnBuilder::new(wanted.column_type, source.len(), 0);
    for (row, text) in source.iter().enumerate() {
        let value = match text.map(|text| read_text(text, wanted)) {
            None => Value::Null,
            Some(Ok(value)) => value,
            Some(Err(refusal)) => {
                refused.entry(row).or_insert(refusal);
                Value::Null
            }
        };
        builder.push(&value)?;
    }
    Ok(builder.finish())
}

fn read_text<'a>(text: &'a str, wanted: Wanted<'_>) -> Result<Value<'a>, Refusal> {
    let Wanted { name, column_type, times } = wanted;
    let timely = |read: Result<i64, TimeError>| match read {
        Ok(value) => Ok(Value::Long(value)),
        Err(TimeError::Range) => Err(out_of_range(name, column_type, text)),
        Err(TimeError::Notation) => Err(wrong(name, column_type, text)),
    };
    match column_type {
        ColumnType::String => Ok(Value::Text(text)),
        ColumnType::Timestamp | ColumnType::Timestamptz => timely(read_time(text, times)),
        ColumnType::Date => timely(time::date(text.as_bytes())),
        ColumnType::Binary => match STANDARD.decode(text) {
            Ok(bytes) => Ok(Value::OwnedBytes(bytes.into_boxed_slice())),
            Err(_) => Err(wrong(name, column_type, text)),
        },
        ColumnType::Boolean => match text {
            "1" => Ok(Value::Boolean(true)),
            "0" => Ok(Value::Boolean(false)),
            text if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("t") => Ok(Value::Boolean(true)),
            text if text.eq_ignore_ascii_case("false") || text.eq_ignore_ascii_case("f") => Ok(Value::Boolean(false)),
            _ => Err(wrong(name, column_type, text)),
        },
        _ if text == "null" => Err(wrong(name, column_type, text)),
        _ => read_leaf(text.trim(), name, column_type, times),
    }
}

/// A time in text: as the contract says, else RFC 3339 or a number since 1970.
pub(crate) fn read_time(text: &str, times: Option<&TimeReader>) -> Result<i64, TimeError> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-'));
    let is_date = text.len() == 10 && text.as_bytes().get(4) == Some(&b'-');
    match times {
        Some(times) => times.text(text),
        None if is_date => time::date(text.as_bytes()).map(|days| days * 86_400_000_000),
        None if is_number => time::from_number(text, &TimeFormat::Auto),
        None => time::from_text(text),
    }
}

/// Value by value, as a payload's member of the same text is read.
fn through_json(source: &ArrayRef, wanted: Wanted<'_>, refused: &mut Refused) -> Result<ArrayRef, ArrowError> {
    let mut builder = ColumnBuilder::new(wanted.column_type, source.len(), 0);
    let (field, options) = (field_of(source), JsonOptions::default());
    let mut json = ColumnTexts::new(&field, source, &options)?;
    let documents = (wanted.column_type == ColumnType::Json).then(|| source.as_string_opt::<i32>()).flatten();
    for row in 0..source.len() {
        if let Some(text) = documents.filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row))
            && is_document(text)
        {
            builder.push(&Value::Text(text))?;
            continue;
        }
        let Some(text) = json.text(row) else {
            builder.push(&Value::Null)?;
            continue;
        };
        let read = match (wanted.column_type, source.data_type()) {
            (ColumnType::String, _) => Ok(Value::Text(text)),
            (ColumnType::Date, DataType::Timestamp(..) | DataType::Date64) => midnight(text, wanted),
            _ => read_leaf(text, wanted.name, wanted.column_type, wanted.times),
        };
        match read {
            Ok(value) => builder.push(&value)?,
            Err(refusal) => {
                refused.entry(row).or_insert(refusal);
                builder.push(&Value::Null)?;
            }
        }
    }
    Ok(builder.finish())
}

/// The day of a time at its very beginning; any other time would lose its hour.
fn midnight<'a>(text: &str, wanted: Wanted<'_>) -> Result<Value<'a>, Refusal> {
    const DAY_US: i64 = 86_400_000_000;
    let micros = time::from_text(text.trim_matches('"'));
    match micros.ok().filter(|micros| micros.rem_euclid(DAY_US) == 0) {
        Some(micros) => Ok(Value::Long(micros.div_euclid(DAY_US))),
        None => Err(wrong(wanted.name, wanted.column_type, text)),
    }
}

/// Whether text is a JSON object or array: then it is kept as that, and not as a JSON string.
fn is_document(text: &str) -> bool {
    text.trim_start().starts_with(['{', '[']) && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// A value, for messages.
fn value_text(array: &ArrayRef, row: usize) -> String {
    arrow::util::display::array_value_to_string(array, row).unwrap_or_default()
}

/// Days as Iceberg counts them, of times that were cast before.
pub(crate) fn days_of(times: &TimestampMicrosecondArray) -> PrimitiveArray<arrow::datatypes::Date32Type> {
    let days: PrimitiveArray<Int32Type> =
        times.unary(|micros| i32::try_from(micros.div_euclid(86_400_000_000)).unwrap_or_default());
    days.reinterpret_cast()
}
