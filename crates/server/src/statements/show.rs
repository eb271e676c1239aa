//! `SHOW`, `DESCRIBE`: names as rows, through the engine's own tables of names, so that each asker sees its own.

use arrow::datatypes::{DataType, TimeUnit};
use lakegate_query::QueryResult;
use lakegate_query::statement::Show;

use super::{Asker, Run, StatementError, Statements};

/// The catalog's name for clients of Trino.
const CATALOG: &str = "iceberg";

impl Statements {
    pub(super) async fn show(&self, asker: &Asker, run: &Run, show: Show) -> Result<QueryResult, StatementError> {
        let plain = !run.trino;
        let sql = match show {
            // The engine's own answers have more columns, and are there already.
            Show::Tables { namespace: None, like: None } | Show::Columns(_) if plain => run.sql.clone(),
            Show::Catalogs => format!("SELECT '{CATALOG}' AS \"Catalog\""),
            Show::Schemas { like } => format!(
                "SELECT DISTINCT table_schema AS \"Schema\" FROM information_schema.tables WHERE true{} ORDER BY 1",
                like_of("table_schema", like)
            ),
            Show::Tables { namespace, like } => {
                let namespace = namespace.unwrap_or_else(|| self.namespace(asker, run));
                format!(
                    "SELECT table_name AS \"Table\" FROM information_schema.tables WHERE table_schema = {}{} ORDER BY 1",
                    text(&namespace),
                    like_of("table_name", like)
                )
            }
            Show::Columns(table) => {
                let table = table.name(&self.namespace(asker, run))?;
                self.columns(asker, run, &format!("SELECT * FROM \"{}\".\"{}\"", table.namespace, table.name)).await?
            }
            Show::CreateTable(table) => {
                let table = table.name(&self.namespace(asker, run))?;
                let all = format!("SELECT * FROM \"{}\".\"{}\"", table.namespace, table.name);
                let columns = self.schema(asker, run, all).await?;
                let lines: Vec<String> = columns.iter().map(|(name, kind)| format!("   {name} {kind}")).collect();
                let create = format!("CREATE TABLE {CATALOG}.{table} (\n{}\n)", lines.join(",\n"));
                format!("SELECT {} AS \"Create Table\"", text(&create))
            }
            Show::Output(name) => {
                let prepared = run.prepared.get(&name).cloned();
                let sql = prepared
                    .ok_or_else(|| StatementError::not_found(format!("there is no prepared statement {name}")))?;
                self.columns(asker, run, &sql).await?
            }
            Show::Session => "SELECT '' AS \"Name\", '' AS \"Value\" WHERE false".to_owned(),
        };
        self.query(asker, run, sql, false).await
    }

    /// The names and types of a query's columns.
    async fn schema(&self, asker: &Asker, run: &Run, sql: String) -> Result<Vec<(String, String)>, StatementError> {
        let none = Run { row_limit: Some(0), query_id: None, ..run.clone() };
        let result = self.query(asker, &none, sql, false).await?;
        let fields = result.schema.fields().iter();
        Ok(fields.map(|field| (field.name().clone(), trino_type(field.data_type()))).collect())
    }

    /// A statement that gives the columns as Trino does.
    async fn columns(&self, asker: &Asker, run: &Run, sql: &str) -> Result<String, StatementError> {
        let columns = self.schema(asker, run, sql.to_owned()).await?;
        let rows = columns.iter().map(|(name, kind)| format!("({}, {}, '', '')", text(name), text(kind)));
        let rows = rows.collect::<Vec<_>>().join(", ");
        Ok(format!("SELECT * FROM (VALUES {rows}) AS c(\"Column\", \"Type\", \"Extra\", \"Comment\")"))
    }
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

fn like_of(column: &str, like: Option<String>) -> String {
    like.map_or_else(String::new, |like| format!(" AND {column} LIKE {}", text(&like)))
}

/// A type by Trino's name.
pub(crate) fn trino_type(found: &DataType) -> String {
    match found {
        DataType::Null => "unknown".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Int8 => "tinyint".to_owned(),
        DataType::Int16 | DataType::UInt8 => "smallint".to_owned(),
        DataType::Int32 | DataType::UInt16 => "integer".to_owned(),
        DataType::Int64 | DataType::UInt32 => "bigint".to_owned(),
        DataType::UInt64 => "decimal(20,0)".to_owned(),
        DataType::Float16 | DataType::Float32 => "real".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s) => format!("decimal({p},{s})"),
        DataType::Date32 | DataType::Date64 => "date".to_owned(),
        DataType::Timestamp(unit, zone) => {
            let zone = if zone.is_some() { " with time zone" } else { "" };
            format!("timestamp({}){zone}", digits(*unit))
        }
        DataType::Time32(unit) | DataType::Time64(unit) => format!("time({})", digits(*unit)),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "varbinary".to_owned()
        }
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            format!("array({})", trino_type(item.data_type()))
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) => {
                let inner: Vec<String> = fields.iter().map(|field| trino_type(field.data_type())).collect();
                format!("map({})", inner.join(", "))
            }
            _ => "map(varchar, varchar)".to_owned(),
        },
        DataType::Struct(fields) => {
            let field = |field: &arrow::datatypes::FieldRef| {
                format!("\"{}\" {}", field.name().replace('"', "\"\""), trino_type(field.data_type()))
            };
            format!("row({})", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
        DataType::Dictionary(_, values) => trino_type(values),
        _ => "varchar".to_owned(),
    }
}

/// The digits of a second's parts. What the engine counts in nanoseconds is given in microseconds, as tables keep it.
fn digits(unit: TimeUnit) -> u8 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond | TimeUnit::Nanosecond => 6,
    }
}
