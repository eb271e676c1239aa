//! A contract's rules for rows of a file: the same places, checks, cleaning and policies as for payloads.

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder, TimestampMicrosecondArray};
use arrow::compute::is_null;
use arrow::compute::kernels::zip::zip;
use arrow::datatypes::{
    DataType, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use lakegate_memtable::Value;
use lakegate_model::{ClockPolicy, Column, ColumnSource, ReasonCode, Refusal};

use super::cast::{Refused, Wanted, cast_column};
use super::{Conformer, RowContext, array_at, find_path};
use crate::shape::SlotRules;
use arrow::array::RecordBatch;

/// The rows of a piece, and what holds for all of them.
pub(super) struct Rows<'r> {
    pub(super) rows: &'r RecordBatch,
    pub(super) times: &'r super::envelope::Times,
    pub(super) context: &'r RowContext<'r>,
}

impl Conformer {
    /// One column, with what its rules say: further places, what is taken in their stead, checks, cleaning.
    #[allow(clippy::too_many_arguments, reason = "a column, its rules' surroundings, and where refusals go")]
    pub(super) fn by_rules(
        &self,
        slot: usize,
        column: &Column,
        mut array: ArrayRef,
        piece: &Rows<'_>,
        bad: &mut Refused,
    ) -> Result<ArrayRef, ArrowError> {
        let Rows { rows, times, context } = *piece;
        let Some(rules) = self.shaper.slot_rules(slot) else { return Ok(array) };
        let further = self.shaper.contract.rules_of(&column.name).map(|rules| rules.or_paths.as_slice());
        for path in further.unwrap_or_default() {
            if array.null_count() == 0 {
                break;
            }
            if let Some(place) = find_path(rows.schema_ref().fields(), path) {
                let wanted =
                    Wanted { name: &column.name, column_type: column.column_type, times: rules.times.as_ref() };
                let found = cast_column(&array_at(rows, &place)?, wanted, bad)?;
                array = zip(&is_null(&array)?, &found, &array)?;
            }
        }
        if let Some(field) = rules.or_envelope.filter(|_| array.null_count() > 0) {
            let column = Column { source: ColumnSource::Envelope(field), ..column.clone() };
            let found = match field {
                lakegate_model::Field::EventTime => times.column(column.column_type),
                field => self.envelope_column(field, &column, rows, context, bad)?,
            };
            array = zip(&is_null(&array)?, &found, &array)?;
        }
        check(rules, column, &array, bad);
        if rules.cleans() { clean(rules, column, &array) } else { Ok(array) }
    }

    /// Refuses rows whose event type is not one of those that the contract takes.
    pub(super) fn check_event_types(
        &self,
        rows: &RecordBatch,
        context: &RowContext<'_>,
        bad: &mut Refused,
    ) -> Result<(), ArrowError> {
        let allowed = &self.shaper.contract.event_types;
        if allowed.is_empty() {
            return Ok(());
        }
        let found = self.event_types(rows, context, bad)?;
        let found = found.as_string::<i32>();
        for row in 0..rows.num_rows() {
            let name = if found.is_valid(row) { found.value(row) } else { "" };
            if !allowed.iter().any(|allowed| allowed == name) {
                bad.entry(row).or_insert_with(|| Refusal {
                    code: ReasonCode::NotAllowed,
                    field: Some("event_type".to_owned()),
                    message: format!("the event type must be one of {}; found {name:?}", allowed.join(", ")),
                });
            }
        }
        Ok(())
    }

    /// The event type of each row: the import's, else what the payload's places for it hold.
    pub(super) fn event_types(
        &self,
        rows: &RecordBatch,
        context: &RowContext<'_>,
        bad: &mut Refused,
    ) -> Result<ArrayRef, ArrowError> {
        let own = context.event_type.filter(|text| !text.is_empty());
        let mut array = super::envelope::same_text(own, rows.num_rows());
        for path in &self.shaper.contract.event_type_paths {
            if array.null_count() == 0 {
                break;
            }
            if let Some(place) = find_path(rows.schema_ref().fields(), path) {
                let wanted =
                    Wanted { name: "event_type", column_type: lakegate_model::ColumnType::String, times: None };
                let found = cast_column(&array_at(rows, &place)?, wanted, bad)?;
                array = zip(&is_null(&array)?, &found, &array)?;
            }
        }
        Ok(array)
    }
}

fn check(rules: &SlotRules, column: &Column, array: &ArrayRef, bad: &mut Refused) {
    if !rules.checks() {
        return;
    }
    for row in (0..array.len()).filter(|row| array.is_valid(*row)) {
        if let Err(refusal) = rules.check(&value_at(array, row), column) {
            bad.entry(row).or_insert(refusal);
        }
    }
}

/// Text made harmless. Maps of files stay as they are: their keys and values are cleaned when they are sent as payloads.
fn clean(rules: &SlotRules, column: &Column, array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let Some(texts) = array.as_string_opt::<i32>() else { return Ok(array.clone()) };
    let mut changed = 0_u64;
    let mut builder = StringBuilder::with_capacity(texts.len(), texts.values().len());
    for text in texts {
        let mut value = text.map_or(Value::Null, Value::Text);
        changed += u64::from(rules.clean(&mut value, column));
        match &value {
            Value::Text(text) => builder.append_value(text),
            Value::Owned(text) => builder.append_value(text),
            _ => builder.append_null(),
        }
    }
    if changed > 0 {
        metrics::counter!("lakegate_values_sanitised_total", "stream" => "files", "field" => column.name.clone())
            .increment(changed);
    }
    Ok(std::sync::Arc::new(builder.finish()))
}

/// A value as checks take it.
fn value_at(array: &ArrayRef, row: usize) -> Value<'_> {
    match array.data_type() {
        DataType::Boolean => Value::Boolean(array.as_boolean().value(row)),
        DataType::Int32 => Value::Long(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Value::Long(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => Value::Double(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => Value::Double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(..) => Value::Decimal(array.as_primitive::<Decimal128Type>().value(row)),
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row)),
        DataType::LargeBinary => Value::Bytes(array.as_binary::<i64>().value(row)),
        DataType::Map(..) => Value::Map(vec![("", ""); array.as_map().value(row).len()]),
        _ => Value::Null,
    }
}

/// Rows whose time lies too far from the time of receipt, by the contract's policy: refused, or with that time instead.
pub(super) fn check_clock(
    clock: &ClockPolicy,
    times: TimestampMicrosecondArray,
    source: ArrayRef,
    received_us: i64,
    bad: &mut Refused,
) -> Result<(TimestampMicrosecondArray, ArrayRef), ArrowError> {
    let far: Vec<bool> = times.values().iter().map(|us| clock.is_far(*us, received_us).is_some()).collect();
    if !far.contains(&true) {
        return Ok((times, source));
    }
    match clock.skew {
        lakegate_model::ClockSkew::Accept => Ok((times, source)),
        lakegate_model::ClockSkew::Reject => {
            for (row, us) in times.values().iter().enumerate() {
                if let Some(message) = clock.is_far(*us, received_us) {
                    let (code, field) = (ReasonCode::ClockSkew, Some("event_time".to_owned()));
                    bad.entry(row).or_insert(Refusal { code, field, message });
                }
            }
            Ok((times, source))
        }
        lakegate_model::ClockSkew::Clamp => {
            let zone = times.data_type().clone();
            let clamped = times.values().iter().zip(&far).map(|(us, far)| if *far { received_us } else { *us });
            let clamped = arrow::array::PrimitiveArray::<TimestampMicrosecondType>::from_iter_values(clamped);
            let far = arrow::array::BooleanArray::from(far);
            let source = zip(&far, &super::envelope::same_text(Some("clamped"), far.len()), &source)?;
            Ok((clamped.with_data_type(zone), source))
        }
    }
}
