//! `CREATE TABLE`, with Trino's table properties.

use datafusion::sql::sqlparser::ast::{
    ColumnOption, CreateTableOptions, DataType, ExactNumberInfo, Expr, SqlOption, Statement as SqlStatement,
    TimezoneInfo, Value,
};
use lakegate_model::ColumnType;

use super::{TableRef, plain, table_ref, unsupported};
use crate::error::QueryError;

/// A table that is to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateTable {
    /// Its name.
    pub table: TableRef,
    /// That there is one already is fine.
    pub if_not_exists: bool,
    /// Its columns; empty: those of `query`.
    pub columns: Vec<NewColumn>,
    /// What stands behind `WITH`, names in lower case.
    pub options: Vec<(String, OptionValue)>,
    /// What gives its first rows.
    pub query: Option<String>,
}

/// A column of a table that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub column_type: ColumnType,
    /// Whether each row needs a value.
    pub required: bool,
}

/// The value of a property.
#[derive(Debug, Clone, PartialEq)]
pub enum OptionValue {
    /// A text.
    Text(String),
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// `ARRAY['…', …]`.
    Texts(Vec<String>),
}

pub(super) fn read(statement: SqlStatement) -> Result<CreateTable, QueryError> {
    let SqlStatement::CreateTable(create) = statement else { return Err(unsupported("this CREATE")) };
    if create.or_replace || create.temporary || create.like.is_some() || create.clone.is_some() {
        return Err(unsupported("CREATE TABLE with OR REPLACE, TEMPORARY, LIKE or CLONE"));
    }
    let mut columns = Vec::with_capacity(create.columns.len());
    for column in &create.columns {
        let required = column.options.iter().any(|option| matches!(option.option, ColumnOption::NotNull));
        let name = plain(&column.name);
        let column_type = column_type(&column.data_type)
            .ok_or_else(|| QueryError::Plan(format!("the column {name} has the type {}; {TYPES}", column.data_type)))?;
        columns.push(NewColumn { name, column_type, required });
    }
    let options = match &create.table_options {
        CreateTableOptions::None => Vec::new(),
        CreateTableOptions::With(options) | CreateTableOptions::Options(options) => {
            options.iter().map(option).collect::<Result<_, _>>()?
        }
        other => return Err(unsupported(&format!("CREATE TABLE with {other}"))),
    };
    let query = create.query.as_ref().map(ToString::to_string);
    if columns.is_empty() && query.is_none() {
        return Err(QueryError::Syntax("CREATE TABLE needs columns, or AS and a SELECT".to_owned()));
    }
    Ok(CreateTable { table: table_ref(&create.name)?, if_not_exists: create.if_not_exists, columns, options, query })
}

const TYPES: &str = "there are boolean, integer, bigint, real, double, decimal(p,s), date, timestamp, timestamp with time zone, \
                     varchar, varbinary, json and map(varchar, varchar)";

fn column_type(found: &DataType) -> Option<ColumnType> {
    Some(match found {
        DataType::Boolean | DataType::Bool => ColumnType::Boolean,
        DataType::TinyInt(_) | DataType::SmallInt(_) | DataType::Int(_) | DataType::Integer(_) => ColumnType::Int,
        DataType::BigInt(_) | DataType::Int64 => ColumnType::Long,
        DataType::Real | DataType::Float4 => ColumnType::Float,
        DataType::Double(_) | DataType::DoublePrecision | DataType::Float(_) | DataType::Float8 => ColumnType::Double,
        DataType::Decimal(info) | DataType::Numeric(info) | DataType::Dec(info) => decimal(*info)?,
        DataType::Date => ColumnType::Date,
        DataType::Timestamp(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => ColumnType::Timestamp,
        DataType::Timestamp(_, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => ColumnType::Timestamptz,
        DataType::Varchar(_) | DataType::String(_) | DataType::Text | DataType::Char(_) | DataType::Uuid => {
            ColumnType::String
        }
        DataType::JSON => ColumnType::Json,
        DataType::Varbinary(_) | DataType::Binary(_) | DataType::Bytea | DataType::Blob(_) => ColumnType::Binary,
        DataType::Map(key, value) => match (column_type(key)?, column_type(value)?) {
            (ColumnType::String, ColumnType::String) => ColumnType::StringMap,
            _ => return None,
        },
        _ => return None,
    })
}

fn decimal(info: ExactNumberInfo) -> Option<ColumnType> {
    let (precision, scale) = match info {
        ExactNumberInfo::None => (38, 0),
        ExactNumberInfo::Precision(precision) => (precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (precision, scale),
    };
    let (precision, scale) = (u8::try_from(precision).ok()?, u8::try_from(scale).ok()?);
    ((1..=38).contains(&precision) && scale <= precision).then_some(ColumnType::Decimal { precision, scale })
}

fn option(option: &SqlOption) -> Result<(String, OptionValue), QueryError> {
    let wrong = || QueryError::Plan(format!("the property {option} is not of the form name = value"));
    let SqlOption::KeyValue { key, value } = option else { return Err(wrong()) };
    let value = match value {
        Expr::Array(array) => {
            let texts = array.elem.iter().map(|item| match value_of(item) {
                Some(OptionValue::Text(text)) => Some(text),
                _ => None,
            });
            OptionValue::Texts(texts.collect::<Option<_>>().ok_or_else(wrong)?)
        }
        other => value_of(other).ok_or_else(wrong)?,
    };
    Ok((key.value.to_lowercase(), value))
}

fn value_of(expr: &Expr) -> Option<OptionValue> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) => Some(OptionValue::Text(text.clone())),
            Value::Number(number, _) => number.parse().ok().map(OptionValue::Number),
            Value::Boolean(flag) => Some(OptionValue::Flag(*flag)),
            _ => None,
        },
        Expr::Identifier(name) => Some(OptionValue::Text(name.value.clone())),
        _ => None,
    }
}
