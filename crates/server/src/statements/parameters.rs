//! What kinds of values a statement's parameters take, for clients that ask before they send any.

use arrow::datatypes::{DataType, TimeUnit};
use lakegate_query::QueryRequest;
use lakegate_query::statement::{self, Insert, Statement};

use super::insert::names_for;
use super::{Asker, StatementError, Statements};

impl Statements {
    /// The type of each parameter, in their order; text where the statement does not tell.
    ///
    /// # Errors
    /// The statement cannot be read. What its execution would refuse is no error here.
    pub(crate) async fn parameter_types(&self, asker: &Asker, sql: &str) -> Result<Vec<DataType>, StatementError> {
        let count = statement::parameter_count(sql)?;
        let mut types = vec![DataType::Utf8; count];
        if count == 0 {
            return Ok(types);
        }
        let names: Vec<String> = (1..=count).map(|number| format!("${number}")).collect();
        let sql = statement::bind(sql, &names)?;
        let found = match statement::read(&sql)? {
            Statement::Insert(insert) => self.inserted(asker, &insert).await.unwrap_or_default(),
            Statement::Read => self.compared(asker, sql).await,
            _ => Vec::new(),
        };
        for (number, kind) in found {
            if let Some(place) = number.checked_sub(1).and_then(|at| types.get_mut(at)) {
                *place = plain(kind);
            }
        }
        Ok(types)
    }

    /// Those that stand for a column's value.
    async fn inserted(&self, asker: &Asker, insert: &Insert) -> Result<Vec<(usize, DataType)>, StatementError> {
        let table = insert.table.name(&self.own_namespace(asker))?;
        let contract = self.target(asker, &table).await?.contract;
        let names = names_for(&table, &contract, &insert.columns, insert.width)?;
        let kind = |(number, at): &(usize, usize)| {
            let name = names.get(*at)?;
            let column = contract.columns.iter().find(|column| column.name == *name)?;
            Some((*number, lakegate_memtable::arrow_type(column.column_type)))
        };
        Ok(insert.parameters.iter().filter_map(kind).collect())
    }

    /// Those of a query.
    async fn compared(&self, asker: &Asker, sql: String) -> Vec<(usize, DataType)> {
        let request = QueryRequest {
            sql,
            tenant: asker.scope.clone(),
            readable: asker.readable(),
            beside: Some(self.beside(asker)),
            ..QueryRequest::default()
        };
        let types = self.inner.engine.parameter_types(request).await.unwrap_or_default();
        let known = types.into_iter().filter_map(|(name, kind)| Some((name.strip_prefix('$')?.parse().ok()?, kind?)));
        known.collect()
    }

    /// The statement with nothing for each parameter, which has the same columns.
    ///
    /// # Errors
    /// The statement cannot be read.
    pub(crate) fn without_values(sql: &str) -> Result<String, StatementError> {
        let nothing = vec!["NULL".to_owned(); statement::parameter_count(sql)?];
        Ok(statement::bind(sql, &nothing)?)
    }
}

/// Texts of every form are texts to clients; and the JDBC driver of Flight SQL gives times in milliseconds, whatever it is asked for.
fn plain(kind: DataType) -> DataType {
    match kind {
        DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Millisecond, zone),
        kind => kind,
    }
}
