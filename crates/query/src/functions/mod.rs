//! Functions whose result or work can be far larger than what they are given, with a bound.
//!
//! The engine counts the memory of sorts, joins and groups, not that of one call: `repeat('x', 2000000000)` takes its
//! gigabytes, even while planning, before any limit is asked. Here such a call is refused from its arguments alone.

mod concat;

use std::any::Any;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::compute::kernels::length::length;
use datafusion::arrow::datatypes::{DataType, FieldRef, Int64Type, IntervalMonthDayNanoType, IntervalUnit};
use datafusion::common::{ExprSchema, Result as EngineResult};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

use crate::error::QueryError;

pub(crate) use concat::BoundedOperators;

/// The most bytes that one call may make for one batch.
const MAX_RESULT_BYTES: u128 = 64 * 1024 * 1024;
/// The same for a call of constants, whose result becomes part of the plan and is copied with it.
const MAX_CONSTANT_BYTES: u128 = 8 * 1024 * 1024;
/// The bytes of one value of an array, where it is not known.
const VALUE_BYTES: u128 = 16;
const DAY_NS: i64 = 86_400_000_000_000;

/// The functions, with those that can blow up bounded.
pub(crate) fn bounded(functions: Vec<Arc<ScalarUDF>>) -> Vec<Arc<ScalarUDF>> {
    functions
        .into_iter()
        .map(|f| if estimate_for(f.name()).is_some() { Arc::new(ScalarUDF::new_from_impl(Bounded(f))) } else { f })
        .collect()
}

/// From the arguments (a constant has one row) and the count of rows.
type Estimate = fn(&[ArrayRef], usize) -> Option<u128>;

fn estimate_for(name: &str) -> Option<Estimate> {
    match name {
        "repeat" => Some(|args, rows| {
            total(&lengths(args.first()?)?, &numbers(args.get(1)?)?, rows, |bytes, times| bytes * times)
        }),
        "lpad" | "rpad" => {
            Some(|args, rows| total(&numbers(args.get(1)?)?, &lengths(args.first()?)?, rows, |chars, _| chars * 4))
        }
        "concat" | "concat_ws" | "make_array" | "array_concat" | "array_append" | "array_prepend" => {
            Some(|args, rows| Some(joined(args, rows)))
        }
        "replace" => Some(replaced),
        // Not its result is large but its work: each byte of the one with each of the other.
        "levenshtein" => Some(|args, rows| {
            total(&lengths(args.first()?)?, &lengths(args.get(1)?)?, rows, |left, right| left * right / 16)
        }),
        "array_repeat" => Some(|args, rows| {
            let each = (bytes_of(args.first()?) / (args.first()?.len().max(1) as u128)).max(VALUE_BYTES);
            let times = numbers(args.get(1)?)?;
            Some((0..rows).map(|row| amount(at(&times, row).unwrap_or(0)).saturating_mul(each)).sum())
        }),
        "array_resize" => Some(|args, rows| {
            let times = numbers(args.get(1)?)?;
            Some((0..rows).map(|row| amount(at(&times, row).unwrap_or(0)).saturating_mul(VALUE_BYTES)).sum())
        }),
        "range" | "generate_series" => Some(series),
        _ => None,
    }
}

/// The value of a row; a constant is that of every row.
fn at(array: &Int64Array, row: usize) -> Option<i64> {
    let row = if array.len() == 1 { 0 } else { row };
    (row < array.len() && array.is_valid(row)).then(|| array.value(row))
}

/// All arguments behind one another.
fn joined(args: &[ArrayRef], rows: usize) -> u128 {
    let bytes = |array: &ArrayRef| bytes_of(array) * if array.len() == 1 { rows as u128 } else { 1 };
    args.iter().map(bytes).sum()
}

/// The arguments as arrays, constants with one row.
fn arrays_of(args: &[ColumnarValue]) -> EngineResult<Vec<ArrayRef>> {
    let array = |arg: &ColumnarValue| match arg {
        ColumnarValue::Array(array) => Ok(array.clone()),
        ColumnarValue::Scalar(value) => value.to_array(),
    };
    args.iter().map(array).collect()
}

fn is_constant(args: &[ColumnarValue]) -> bool {
    args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)))
}

/// The bytes of these values, without what lies in the same buffers beside them.
fn bytes_of(array: &ArrayRef) -> u128 {
    array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size()) as u128
}

fn check(name: &str, bytes: u128, is_constant: bool) -> Result<(), QueryError> {
    let most = if is_constant { MAX_CONSTANT_BYTES } else { MAX_RESULT_BYTES };
    if bytes <= most {
        return Ok(());
    }
    let of = if is_constant { "a constant" } else { "one batch of rows" };
    Err(QueryError::TooComplex(format!("{name} would make about {bytes} bytes for {of}, the most is {most}")))
}

fn amount(value: i64) -> u128 {
    u128::from(value.max(0).unsigned_abs())
}

fn numbers(array: &ArrayRef) -> Option<Int64Array> {
    Some(cast(array, &DataType::Int64).ok()?.as_primitive_opt::<Int64Type>()?.clone())
}

fn lengths(array: &ArrayRef) -> Option<Int64Array> {
    numbers(&length(array).ok()?)
}

fn total(left: &Int64Array, right: &Int64Array, rows: usize, each: fn(u128, u128) -> u128) -> Option<u128> {
    Some((0..rows).map(|row| each(amount(at(left, row).unwrap_or(0)), amount(at(right, row).unwrap_or(0)))).sum())
}

/// As if every byte of the text began a match of the searched text.
fn replaced(args: &[ArrayRef], rows: usize) -> Option<u128> {
    let (texts, from, to) = (lengths(args.first()?)?, lengths(args.get(1)?)?, lengths(args.get(2)?)?);
    let each = (0..rows).map(|row| {
        let [text, from, to] = [&texts, &from, &to].map(|lengths| amount(at(lengths, row).unwrap_or(0)));
        text + (text / from.max(1) + 1) * to
    });
    Some(each.sum())
}

/// The values between start and stop in steps.
fn series(args: &[ArrayRef], rows: usize) -> Option<u128> {
    let (start, stop) = match args {
        [stop] => (None, ticks(stop)?),
        [start, stop, ..] => (Some(ticks(start)?), ticks(stop)?),
        [] => return None,
    };
    let step = match args.get(2) {
        Some(step) => Some(ticks(step)?),
        None => None,
    };
    let values = (0..rows).filter_map(|row| {
        let from = start.as_ref().map_or(Some(0), |start| at(start, row))?;
        let step = step.as_ref().map_or(Some(1), |step| at(step, row))?;
        Some(u128::from(from.abs_diff(at(&stop, row)?)) / u128::from(step.unsigned_abs().max(1)) + 1)
    });
    Some(values.sum::<u128>().saturating_mul(VALUE_BYTES))
}

/// Whole numbers as they are; dates, times and intervals in nanoseconds.
fn ticks(array: &ArrayRef) -> Option<Int64Array> {
    match array.data_type() {
        DataType::Date32 => {
            Some(numbers(&cast(array, &DataType::Int32).ok()?)?.unary(|days| days.saturating_mul(DAY_NS)))
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let steps = array.as_primitive_opt::<IntervalMonthDayNanoType>()?;
            let step = |s: datafusion::arrow::datatypes::IntervalMonthDayNano| {
                let days = i64::from(s.months).saturating_mul(28).saturating_add(i64::from(s.days));
                days.saturating_mul(DAY_NS).saturating_add(s.nanoseconds)
            };
            Some(steps.unary(step))
        }
        _ => numbers(array),
    }
}

/// A function that looks at its arguments first; in all else it is the function within.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded(Arc<ScalarUDF>);

impl ScalarUDFImpl for Bounded {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn aliases(&self) -> &[String] {
        self.0.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> EngineResult<String> {
        self.0.inner().schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> EngineResult<DataType> {
        self.0.inner().return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> EngineResult<FieldRef> {
        self.0.inner().return_field_from_args(args)
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let updated = self.0.inner().with_updated_config(config)?;
        Some(ScalarUDF::new_from_impl(Self(Arc::new(updated))))
    }

    #[allow(deprecated, reason = "the function within may still answer by it")]
    fn is_nullable(&self, args: &[Expr], schema: &dyn ExprSchema) -> bool {
        self.0.inner().is_nullable(args, schema)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> EngineResult<ExprSimplifyResult> {
        self.0.inner().simplify(args, info)
    }

    fn short_circuits(&self) -> bool {
        self.0.inner().short_circuits()
    }

    fn evaluate_bounds(&self, input: &[&Interval]) -> EngineResult<Interval> {
        self.0.inner().evaluate_bounds(input)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> EngineResult<SortProperties> {
        self.0.inner().output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> EngineResult<bool> {
        self.0.inner().preserves_lex_ordering(inputs)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> EngineResult<Vec<DataType>> {
        self.0.inner().coerce_types(arg_types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> EngineResult<ColumnarValue> {
        let is_constant = is_constant(&args.args);
        let rows = if is_constant { 1 } else { args.number_rows };
        let arrays = arrays_of(&args.args)?;
        let bytes = estimate_for(self.name()).and_then(|estimate| estimate(&arrays, rows)).unwrap_or(0);
        check(self.name(), bytes, is_constant)?;
        self.0.inner().invoke_with_args(args)
    }
}
