//! Values for `$1`, `$2`, … from JSON.

use datafusion::common::{ParamValues, ScalarValue};
use serde_json::Value;

use crate::error::QueryError;

/// The most parameters.
const MAX_PARAMETERS: usize = 10_000;

/// The parameters as the engine takes them. A text stands for a time or a date too: it is cast where it is compared.
pub(crate) fn bind(values: &[Value]) -> Result<ParamValues, QueryError> {
    if values.len() > MAX_PARAMETERS {
        return Err(QueryError::TooComplex(format!(
            "it has {} parameters, the most is {MAX_PARAMETERS}",
            values.len()
        )));
    }
    let scalars = values.iter().enumerate().map(|(at, value)| scalar(at + 1, value)).collect::<Result<Vec<_>, _>>()?;
    Ok(ParamValues::from(scalars))
}

fn scalar(number: usize, value: &Value) -> Result<ScalarValue, QueryError> {
    match value {
        Value::Null => Ok(ScalarValue::Null),
        Value::Bool(b) => Ok(ScalarValue::Boolean(Some(*b))),
        Value::String(s) => Ok(ScalarValue::Utf8(Some(s.clone()))),
        Value::Number(n) => {
            let whole = n.as_i64().map(|i| ScalarValue::Int64(Some(i)));
            let large = || n.as_u64().map(|u| ScalarValue::UInt64(Some(u)));
            let real = || n.as_f64().map(|f| ScalarValue::Float64(Some(f)));
            whole
                .or_else(large)
                .or_else(real)
                .ok_or_else(|| QueryError::Plan(format!("parameter ${number} is a number that does not fit 64 bits")))
        }
        Value::Array(_) | Value::Object(_) => Err(QueryError::Plan(format!(
            "parameter ${number} is a JSON {}; a parameter is null, true or false, a number or a text",
            if value.is_array() { "array" } else { "object" }
        ))),
    }
}
