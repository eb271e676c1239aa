//! What the planner makes of operators, with the same bounds as functions have: `text || text`, and arrays written out
//! or put together. Each alone makes its arguments at most twice as long, but thirty in a row make gigabytes.

use std::any::Any;
use std::sync::Arc;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::kernels::concat_elements::concat_elements_utf8;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::utils::list_ndims;
use datafusion::common::{DFSchema, Result as EngineResult, ScalarValue};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;

use super::{arrays_of, check, is_constant, joined};

/// Goes before the engine's own planners.
#[derive(Debug)]
pub(crate) struct BoundedOperators {
    text: Arc<ScalarUDF>,
    functions: Vec<Arc<ScalarUDF>>,
}

impl BoundedOperators {
    /// For functions that are bounded already.
    pub(crate) fn new(functions: &[Arc<ScalarUDF>]) -> Self {
        Self { text: Arc::new(ScalarUDF::new_from_impl(TextConcat::new())), functions: functions.to_vec() }
    }

    fn call(&self, name: &str, args: Vec<Expr>) -> Option<Expr> {
        self.functions.iter().find(|f| f.name() == name).map(|f| f.call(args))
    }
}

impl ExprPlanner for BoundedOperators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> EngineResult<PlannerResult<RawBinaryExpr>> {
        if expr.op != BinaryOperator::StringConcat {
            return Ok(PlannerResult::Original(expr));
        }
        let (left, right) = (expr.left.get_type(schema)?, expr.right.get_type(schema)?);
        let args = || vec![expr.left.clone(), expr.right.clone()];
        let planned = match list_ndims(&left).cmp(&list_ndims(&right)) {
            std::cmp::Ordering::Greater => self.call("array_append", args()),
            std::cmp::Ordering::Less => self.call("array_prepend", args()),
            std::cmp::Ordering::Equal if list_ndims(&left) > 0 => self.call("array_concat", args()),
            std::cmp::Ordering::Equal if is_text(&left) || is_text(&right) => Some(self.text.call(args())),
            std::cmp::Ordering::Equal => None,
        };
        Ok(planned.map_or(PlannerResult::Original(expr), PlannerResult::Planned))
    }

    fn plan_array_literal(&self, exprs: Vec<Expr>, _: &DFSchema) -> EngineResult<PlannerResult<Vec<Expr>>> {
        Ok(match self.call("make_array", exprs.clone()) {
            Some(planned) => PlannerResult::Planned(planned),
            None => PlannerResult::Original(exprs),
        })
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// `a || b`: null where either is null.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TextConcat {
    signature: Signature,
}

impl TextConcat {
    fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for TextConcat {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &'static str {
        "||"
    }

    fn schema_name(&self, args: &[Expr]) -> EngineResult<String> {
        Ok(args.iter().map(|arg| arg.schema_name().to_string()).collect::<Vec<_>>().join(" || "))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> EngineResult<Vec<DataType>> {
        Ok(vec![DataType::Utf8; arg_types.len()])
    }

    fn return_type(&self, _: &[DataType]) -> EngineResult<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> EngineResult<ColumnarValue> {
        let is_constant = is_constant(&args.args);
        let rows = if is_constant { 1 } else { args.number_rows };
        check(self.name(), joined(&arrays_of(&args.args)?, rows), is_constant)?;
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [left, right] = arrays.as_slice() else { return Ok(ColumnarValue::Scalar(ScalarValue::Utf8(None))) };
        let joined = concat_elements_utf8(left.as_string::<i32>(), right.as_string::<i32>())?;
        if is_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&joined, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(joined)))
    }
}
