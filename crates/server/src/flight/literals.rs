//! Values of parameters as literals.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use lakegate_query::QueryError;
use lakegate_query::statement::{self, Statement};

/// The statements that the rows of parameters make of one: an `INSERT` of one row of values becomes one of many.
pub(super) fn bound(sql: &str, values: &[RecordBatch]) -> Result<Vec<String>, QueryError> {
    let failed = |error: ArrowError| QueryError::Plan(format!("the parameters cannot be read: {error}"));
    let mut rows = Vec::new();
    for batch in values {
        for row in 0..batch.num_rows() {
            let row = batch.columns().iter().map(|column| literal(column, row)).collect::<Result<Vec<_>, _>>();
            rows.push(row.map_err(failed)?);
        }
    }
    if rows.is_empty() {
        return Ok(vec![sql.to_owned()]);
    }
    let statements = rows.iter().map(|row| statement::bind(sql, row)).collect::<Result<Vec<_>, _>>()?;
    let (Some(first), true) = (statements.first(), statements.len() > 1) else { return Ok(statements) };
    let Statement::Insert(insert) = statement::read(first)? else { return Ok(statements) };
    if !insert.source.starts_with("VALUES ") {
        return Ok(statements);
    }
    let mut all = first.trim_end().trim_end_matches(';').to_owned();
    for statement in statements.iter().skip(1) {
        let Statement::Insert(insert) = statement::read(statement)? else { return Ok(statements) };
        all.push_str(", ");
        all.push_str(insert.source.trim_start_matches("VALUES "));
    }
    Ok(vec![all])
}

fn literal(column: &ArrayRef, row: usize) -> Result<String, ArrowError> {
    if column.logical_nulls().is_some_and(|nulls| nulls.is_null(row)) {
        return Ok("NULL".to_owned());
    }
    let column = &column.slice(row, 1);
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let text = || -> Result<String, ArrowError> {
        ArrayFormatter::try_new(column, &FormatOptions::default())?.value(0).try_to_string()
    };
    Ok(match column.data_type() {
        kind if kind.is_integer() || *kind == DataType::Boolean => text()?,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => format!("CAST('{}' AS DOUBLE)", text()?),
        DataType::Decimal128(p, s) | DataType::Decimal256(p, s) => format!("CAST('{}' AS DECIMAL({p},{s}))", text()?),
        DataType::Date32 | DataType::Date64 => {
            let days = cast(column, &DataType::Date32)?;
            format!(
                "CAST('{}' AS DATE)",
                ArrayFormatter::try_new(&days, &FormatOptions::default())?.value(0).try_to_string()?
            )
        }
        DataType::Timestamp(_, None) => format!("CAST('{}' AS TIMESTAMP)", text()?),
        DataType::Timestamp(..) => format!("CAST('{}' AS TIMESTAMP WITH TIME ZONE)", text()?),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            let bytes = cast(column, &DataType::LargeBinary)?;
            let hex = bytes.as_binary::<i64>().value(0).iter().map(|byte| format!("{byte:02x}"));
            format!("X'{}'", hex.collect::<String>())
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            let texts = cast(column, &DataType::Utf8)?;
            quoted(texts.as_string::<i32>().value(0))
        }
        _ => quoted(&text()?),
    })
}
