//! Conditions that the lake can use to leave files and row groups unread.
//!
//! Only comparisons whose meaning is the same on both sides are taken, and every one is checked again above the scan.
//! Floating-point columns are left out: the lake's statistics do not know NaN, which SQL orders above all numbers.

use datafusion::arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use crate::lake::{Comparison, Condition, Literal};

/// The condition that says the same as `expr` on the lake's columns, where there is one.
pub(crate) fn condition(expr: &Expr, lake: &Schema) -> Option<Condition> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (left.as_ref(), right.as_ref()) {
            (Expr::Column(column), Expr::Literal(value, _)) => compare(&column.name, comparison(*op)?, value, lake),
            (Expr::Literal(value, _), Expr::Column(column)) => {
                compare(&column.name, comparison(op.swap()?)?, value, lake)
            }
            _ => None,
        },
        Expr::IsNull(inner) => null_check(inner, Comparison::IsNull, lake),
        Expr::IsNotNull(inner) => null_check(inner, Comparison::IsNotNull, lake),
        Expr::Column(column) => truth(&column.name, true, lake),
        Expr::Not(inner) => match inner.as_ref() {
            Expr::Column(column) => truth(&column.name, false, lake),
            _ => None,
        },
        _ => None,
    }
}

fn comparison(op: Operator) -> Option<Comparison> {
    match op {
        Operator::Eq => Some(Comparison::Equal),
        Operator::Lt => Some(Comparison::Less),
        Operator::LtEq => Some(Comparison::LessOrEqual),
        Operator::Gt => Some(Comparison::Greater),
        Operator::GtEq => Some(Comparison::GreaterOrEqual),
        _ => None,
    }
}

fn null_check(inner: &Expr, comparison: Comparison, lake: &Schema) -> Option<Condition> {
    let Expr::Column(column) = inner else { return None };
    // Null checks of nested columns are not among the lake's statistics.
    let field = lake.field_with_name(&column.name).ok().filter(|f| !f.data_type().is_nested())?;
    Some(Condition { column: field.name().clone(), comparison, literal: Literal::None })
}

fn truth(column: &str, value: bool, lake: &Schema) -> Option<Condition> {
    compare(column, Comparison::Equal, &ScalarValue::Boolean(Some(value)), lake)
}

fn compare(column: &str, comparison: Comparison, value: &ScalarValue, lake: &Schema) -> Option<Condition> {
    let field = lake.field_with_name(column).ok()?;
    let literal = literal(value, field.data_type())?;
    Some(Condition { column: column.to_owned(), comparison, literal })
}

/// The value, where it is of the column's own type: then the planner has cast it already.
fn literal(value: &ScalarValue, column: &DataType) -> Option<Literal> {
    match (value, column) {
        (ScalarValue::Boolean(Some(v)), DataType::Boolean) => Some(Literal::Boolean(*v)),
        (ScalarValue::Int32(Some(v)), DataType::Int32) => Some(Literal::Long(i64::from(*v))),
        (ScalarValue::Int64(Some(v)), DataType::Int64) => Some(Literal::Long(*v)),
        (ScalarValue::Utf8(Some(v)), DataType::Utf8) => Some(Literal::Text(v.clone())),
        (ScalarValue::Date32(Some(v)), DataType::Date32) => Some(Literal::Days(*v)),
        (ScalarValue::TimestampMicrosecond(Some(v), zone), DataType::Timestamp(TimeUnit::Microsecond, column_zone))
            if zone.is_some() == column_zone.is_some() =>
        {
            Some(Literal::Micros(*v))
        }
        _ => None,
    }
}
