//! `CREATE TABLE`, `DROP TABLE`: tables of the lake, and names for files.

use arrow::datatypes::SchemaRef;
use lakegate_access::Action;
use lakegate_formats::Format;
use lakegate_ingest::{OwnColumns, TableError};
use lakegate_model::{
    Column, ColumnSource, Contract, PartitionField, PayloadFormat, SortField, TableName, Transform, Undeclared,
};
use lakegate_query::QueryError;
use lakegate_query::statement::{CreateTable, OptionValue};

use super::beside::sorted;
use super::external::{ExternalColumn, ExternalTable};
use super::{Asker, Changed, Inserted, Run, StatementError, Statements};

const PROPERTIES: &str = "partitioning, sorted_by, event_key, format, format_version; of a file's table external_location, \
                          format, skip_header_line_count, csv_separator";

impl Statements {
    pub(super) async fn create_table(
        &self,
        asker: &Asker,
        run: &Run,
        create: CreateTable,
    ) -> Result<Changed, StatementError> {
        let table = create.table.name(&self.namespace(asker, run))?;
        asker.check(Action::Admin, &table)?;
        let properties = Properties::read(&create.options)?;
        let made = match (&properties.location, create.query) {
            (Some(_), Some(_)) => {
                Err(StatementError::invalid("a table of a file has no AS; its rows are the file's".to_owned()))
            }
            (Some(location), None) => {
                let columns = create.columns.into_iter();
                let columns = columns.map(|c| ExternalColumn { name: c.name, column_type: c.column_type }).collect();
                let external = properties.external(location, columns);
                self.create_external(asker, &table, external).await
            }
            (None, Some(query)) => self.create_as(asker, run, &table, query, &properties).await,
            (None, None) => {
                let column = |c: lakegate_query::statement::NewColumn| Column {
                    source: ColumnSource::Path(vec![c.name.clone()]),
                    name: c.name,
                    column_type: c.column_type,
                    required: c.required,
                };
                let columns = create.columns.into_iter().map(column).collect();
                let tenant = asker.tenant()?;
                let contract = properties.contract(Contract { columns, ..own_contract() });
                let made = self.inner.gate.create_table(&tenant, &table, contract).await;
                made.map(|_| Changed::Done("CREATE TABLE")).map_err(StatementError::from)
            }
        };
        match made {
            Err(error) if create.if_not_exists && error.kind == super::Kind::Exists => {
                Ok(Changed::Done("CREATE TABLE"))
            }
            made => made,
        }
    }

    async fn create_as(
        &self,
        asker: &Asker,
        run: &Run,
        table: &TableName,
        query: String,
        properties: &Properties,
    ) -> Result<Changed, StatementError> {
        let result = self.query(asker, run, query, true).await?;
        let contract = OwnColumns::Schema(result.schema.clone()).contract().map_err(StatementError::invalid)?;
        let contract = properties.contract(contract);
        let names: Vec<String> = contract.columns.iter().map(|column| column.name.clone()).collect();
        let key = self.inner.gate.create_table(&asker.tenant()?, table, contract).await?;
        let stored: Inserted = self.store(asker, &key, &names, result).await?;
        Ok(Changed::Made(stored))
    }

    async fn create_external(
        &self,
        asker: &Asker,
        table: &TableName,
        external: ExternalTable,
    ) -> Result<Changed, StatementError> {
        let exists = self.inner.external.get(table).is_some() || self.target(asker, table).await.is_ok();
        if exists {
            return Err(TableError::Exists(table.clone()).into());
        }
        let (inner, scope, table) = (self.inner.clone(), asker.scope.clone(), table.clone());
        let kept = tokio::task::spawn_blocking(move || {
            // What cannot be read now is better told now.
            let tenant = scope.as_ref().map(lakegate_model::TenantId::as_str);
            let opened = inner.imports.open_rows(&external.location, tenant, &external.options());
            opened.map_err(|error| StatementError::from(sorted(&error)))?;
            inner.external.set(&table, Some(external)).map_err(StatementError::from)
        });
        kept.await.map_err(|error| StatementError::internal(&error))??;
        Ok(Changed::Done("CREATE TABLE"))
    }

    pub(super) async fn drop_table(
        &self,
        asker: &Asker,
        table: &TableName,
        if_exists: bool,
    ) -> Result<Changed, StatementError> {
        asker.check(Action::Admin, table)?;
        if self.inner.external.get(table).is_some() {
            let (inner, table) = (self.inner.clone(), table.clone());
            let gone = tokio::task::spawn_blocking(move || inner.external.set(&table, None));
            gone.await.map_err(|error| StatementError::internal(&error))??;
            return Ok(Changed::Done("DROP TABLE"));
        }
        match self.inner.gate.drop_table(&self.tenant_of(asker, table)?, table).await {
            Err(TableError::Unknown(_)) if if_exists => Ok(Changed::Done("DROP TABLE")),
            dropped => dropped.map(|()| Changed::Done("DROP TABLE")).map_err(StatementError::from),
        }
    }

    /// Makes the table of these columns where there is none. Says whether it did.
    pub(crate) async fn make_table(
        &self,
        asker: &Asker,
        table: &TableName,
        schema: SchemaRef,
    ) -> Result<bool, StatementError> {
        asker.check(Action::Admin, table)?;
        let contract = OwnColumns::Schema(schema).contract().map_err(StatementError::invalid)?;
        match self.inner.gate.create_table(&asker.tenant()?, table, contract).await {
            Err(TableError::Exists(_)) => Ok(false),
            made => made.map(|_| true).map_err(StatementError::from),
        }
    }
}

fn own_contract() -> Contract {
    Contract {
        payload: PayloadFormat::Json,
        undeclared: Undeclared::Reject,
        partitions: Vec::new(),
        sort: Vec::new(),
        ..Contract::undeclared_default()
    }
}

/// What stands behind `WITH`.
#[derive(Debug, Default)]
struct Properties {
    location: Option<String>,
    format: Option<String>,
    header: Option<bool>,
    delimiter: Option<char>,
    partitions: Vec<PartitionField>,
    sort: Vec<SortField>,
    event_key: Vec<String>,
}

impl Properties {
    fn read(options: &[(String, OptionValue)]) -> Result<Self, StatementError> {
        let mut found = Self::default();
        for (name, value) in options {
            let wrong =
                || StatementError::invalid(format!("the property {name} cannot be {value:?}; there are {PROPERTIES}"));
            match (name.as_str(), value) {
                ("external_location", OptionValue::Text(text)) => found.location = Some(text.clone()),
                ("format", OptionValue::Text(text)) => found.format = Some(text.to_lowercase()),
                ("skip_header_line_count", OptionValue::Number(count)) => match *count {
                    0.0 => found.header = Some(false),
                    1.0 => found.header = Some(true),
                    _ => return Err(wrong()),
                },
                ("csv_separator", OptionValue::Text(text)) => {
                    let mut letters = text.chars().filter(char::is_ascii);
                    found.delimiter = Some(letters.next().ok_or_else(wrong)?);
                }
                ("csv_quote" | "csv_escape" | "format_version", _) => {}
                ("partitioning", OptionValue::Texts(texts)) => {
                    found.partitions = texts.iter().map(|t| partition(t)).collect::<Option<_>>().ok_or_else(wrong)?;
                }
                ("sorted_by", OptionValue::Texts(texts)) => found.sort = texts.iter().map(|t| sort(t)).collect(),
                ("event_key", OptionValue::Texts(texts)) => found.event_key.clone_from(texts),
                _ => return Err(wrong()),
            }
        }
        let format = found.format.as_deref();
        let takes = match &found.location {
            Some(_) => format.is_none_or(|name| Format::parse(name).is_some()),
            None => format.is_none_or(|name| name == "parquet"),
        };
        if takes {
            return Ok(found);
        }
        let format = format.unwrap_or_default();
        Err(StatementError::invalid(format!(
            "the format {format} is not written here: tables are Parquet; a file that is read may be csv, parquet, json, jsonl or arrow"
        )))
    }

    fn external(&self, location: &str, columns: Vec<ExternalColumn>) -> ExternalTable {
        // What Trino calls JSON has one object a line; the reader takes both by itself.
        let format = self.format.clone().filter(|format| format != "json");
        let is_csv = format.as_deref() == Some("csv");
        ExternalTable {
            location: location.to_owned(),
            format,
            header: self.header.or_else(|| is_csv.then_some(false)),
            delimiter: self.delimiter,
            columns,
        }
    }

    fn contract(&self, contract: Contract) -> Contract {
        let (partitions, sort, event_key) = (self.partitions.clone(), self.sort.clone(), self.event_key.clone());
        Contract { partitions, sort, event_key, ..contract }
    }
}

/// `column`, or `day(column)`, `bucket(column, 16)` and the like.
fn partition(text: &str) -> Option<PartitionField> {
    let text = text.trim();
    let Some((transform, rest)) = text.split_once('(') else {
        return Some(PartitionField { column: unquoted(text), transform: Transform::Identity });
    };
    let mut arguments = rest.strip_suffix(')')?.split(',').map(str::trim);
    let column = unquoted(arguments.next()?);
    let number = arguments.next().map(str::parse::<u32>);
    let transform = match (transform.trim().to_lowercase().as_str(), number) {
        ("year" | "years", None) => Transform::Year,
        ("month" | "months", None) => Transform::Month,
        ("day" | "days", None) => Transform::Day,
        ("hour" | "hours", None) => Transform::Hour,
        ("bucket", Some(Ok(count))) => Transform::Bucket(count),
        ("truncate", Some(Ok(width))) => Transform::Truncate(width),
        _ => return None,
    };
    Some(PartitionField { column, transform })
}

fn sort(text: &str) -> SortField {
    let mut words = text.split_whitespace();
    let column = unquoted(words.next().unwrap_or_default());
    let descending = words.next().is_some_and(|word| word.eq_ignore_ascii_case("desc"));
    SortField { column, descending }
}

fn unquoted(name: &str) -> String {
    name.trim_matches('"').to_owned()
}

impl From<StatementError> for QueryError {
    fn from(error: StatementError) -> Self {
        error.query.unwrap_or(Self::Failed(error.message))
    }
}
