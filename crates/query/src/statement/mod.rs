//! What a statement asks for: rows, which the engine gives, or a change, which others make.
//!
//! The words of Trino's clients are understood beside those of the engine: catalogs in front of names, `SHOW`, `USE`,
//! prepared statements, external tables. Promises: text and nesting are bounded before anything recurses over them;
//! parameters become literals token by token, so that a value never becomes SQL. Refuses: to run anything.

mod create;
mod jdbc;
mod tokens;
mod words;

use datafusion::sql::sqlparser::ast::{
    Expr, Ident, Insert as SqlInsert, ObjectName, ObjectNamePart, ObjectType, SetExpr, Statement as SqlStatement,
    TableObject, Value, ValueWithSpan,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use lakegate_model::TableName;

pub use self::create::{CreateTable, NewColumn, OptionValue};
pub use self::tokens::{bind, literal, literals, parameter_count, prefer_engine_words};
pub use self::words::{Execute, Show};
use crate::error::QueryError;
use crate::guard;

/// The longest text of an `INSERT`, whose values are many.
const INSERT_TEXT_BYTES_MAX: usize = 8 << 20;
/// The most words, numbers and signs of one.
const INSERT_TOKENS_MAX: usize = 1_000_000;

/// A statement, sorted by what it asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// Rows: for the engine as it stands.
    Read,
    /// Rows are to be stored.
    Insert(Insert),
    /// A table is to be made.
    CreateTable(CreateTable),
    /// A table is to go.
    DropTable {
        /// Which.
        table: TableRef,
        /// That there is none is fine.
        if_exists: bool,
    },
    /// A namespace is to be made; namespaces come with their tables.
    CreateSchema,
    /// Names are asked for.
    Show(Show),
    /// From now on names without a namespace are of this one.
    Use {
        /// The catalog, where it is named.
        catalog: Option<String>,
        /// The namespace.
        namespace: String,
    },
    /// A statement is to be remembered.
    Prepare {
        /// Under which name.
        name: String,
        /// Its text.
        sql: String,
    },
    /// A remembered or given statement is to run.
    Execute(Execute),
    /// A remembered statement is to be forgotten.
    Deallocate {
        /// Its name.
        name: String,
    },
    /// A setting of the session or a transaction's bounds: each statement is one transaction, so that there is nothing
    /// to do.
    Nothing(&'static str),
}

/// A table as a statement names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRef {
    /// The namespace, where it is named.
    pub namespace: Option<String>,
    /// The table.
    pub table: String,
}

impl TableRef {
    /// The table's name, in `namespace` where the statement names none.
    ///
    /// # Errors
    /// No table has such a name.
    pub fn name(&self, namespace: &str) -> Result<TableName, QueryError> {
        let namespace = self.namespace.as_deref().unwrap_or(namespace);
        TableName::new(namespace, &self.table).map_err(|error| QueryError::Plan(error.to_string()))
    }
}

impl std::fmt::Display for TableRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}.{}", self.table),
            None => f.write_str(&self.table),
        }
    }
}

/// `INSERT INTO … `.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insert {
    /// Into which table.
    pub table: TableRef,
    /// Of which columns the values are, in their order; empty: of all in the table's order.
    pub columns: Vec<String>,
    /// What gives the rows, as a statement of its own.
    pub source: String,
    /// How many values a row of `VALUES` has; 0 for any other source.
    pub width: usize,
    /// Of the parameters that stand alone in a row of `VALUES`: their number, counted from 1, and the column's, from 0.
    pub parameters: Vec<(usize, usize)>,
}

/// Sorts a statement.
///
/// # Errors
/// The text is too large, cannot be read, or asks for what is not done here.
pub fn read(sql: &str) -> Result<Statement, QueryError> {
    let most = if is_insert(sql) { INSERT_TEXT_BYTES_MAX } else { guard::MAX_TEXT_BYTES };
    if sql.len() > most {
        return Err(QueryError::TooComplex(format!("its text has {} bytes, the most is {most}", sql.len())));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| QueryError::Syntax(error.to_string()))?;
    if let Some(statement) = words::read(sql, &tokens)? {
        return Ok(statement);
    }
    if let Some(why) = table_function(&tokens) {
        return Err(QueryError::Plan(why));
    }
    match first_words(&tokens).as_slice() {
        [first, ..] if first == "INSERT" => read_insert(tokens),
        [first, second, ..] if first == "CREATE" && second == "SCHEMA" => Ok(Statement::CreateSchema),
        [first, second, ..] if first == "CREATE" && second == "TABLE" => {
            create::read(parse(tokens)?).map(Statement::CreateTable)
        }
        [first, second, ..] if first == "DROP" && second == "TABLE" => read_drop(parse(tokens)?),
        _ => Ok(Statement::Read),
    }
}

fn is_insert(sql: &str) -> bool {
    sql.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("insert"))
}

/// `TABLE(name(…))` is not known: what is written instead, where it is about a file.
fn table_function(tokens: &[TokenWithSpan]) -> Option<String> {
    let words: Vec<&Token> = tokens.iter().map(|t| &t.token).filter(|t| !matches!(t, Token::Whitespace(_))).collect();
    words.windows(5).find_map(|window| match window {
        [Token::Word(table), Token::LParen, Token::Word(name), Token::LParen, first]
            if table.quote_style.is_none() && table.value.eq_ignore_ascii_case("table") =>
        {
            let place = match first {
                Token::SingleQuotedString(place) => place.as_str(),
                _ => "s3://bucket/folder/file.csv",
            };
            Some(format!(
                "there is no table function {name}; a file is read by its place: SELECT * FROM '{place}', or with columns of its own \
                 by CREATE TABLE … WITH (external_location = '{place}')"
            ))
        }
        _ => None,
    })
}

/// The first three words, in upper case.
fn first_words(tokens: &[TokenWithSpan]) -> Vec<String> {
    let words = tokens.iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).map_while(|t| match &t.token {
        Token::Word(word) => Some(word.value.to_uppercase()),
        _ => None,
    });
    words.take(3).collect()
}

fn parse(tokens: Vec<TokenWithSpan>) -> Result<SqlStatement, QueryError> {
    guard::check_tokens(&tokens)?;
    if tokens.len() > INSERT_TOKENS_MAX {
        let found = tokens.len();
        return Err(QueryError::TooComplex(format!("it has {found} words, the most is {INSERT_TOKENS_MAX}")));
    }
    let mut parser =
        Parser::new(&GenericDialect {}).with_recursion_limit(guard::MAX_RECURSION).with_tokens_with_locations(tokens);
    let failed = |error: datafusion::sql::sqlparser::parser::ParserError| QueryError::Syntax(error.to_string());
    let statement = parser.parse_statement().map_err(failed)?;
    while parser.consume_token(&Token::SemiColon) {}
    if parser.peek_token_ref().token != Token::EOF {
        let found = parser.peek_token_ref().to_string();
        return Err(QueryError::Syntax(format!("{found:?} is left over; send statements one by one")));
    }
    Ok(statement)
}

fn read_insert(tokens: Vec<TokenWithSpan>) -> Result<Statement, QueryError> {
    let SqlStatement::Insert(insert) = parse(tokens)? else { return Err(unsupported("this INSERT")) };
    let SqlInsert { table, columns, source, overwrite, on, returning, partitioned, ignore, .. } = insert;
    let TableObject::TableName(name) = table else { return Err(unsupported("INSERT into a function")) };
    if overwrite || ignore || on.is_some() || returning.is_some() || partitioned.is_some() {
        return Err(unsupported("INSERT with OVERWRITE, IGNORE, ON CONFLICT, RETURNING or PARTITION"));
    }
    let source = source.ok_or_else(|| QueryError::Syntax("INSERT needs VALUES or a SELECT".to_owned()))?;
    let columns = columns.iter().map(plain).collect();
    let rows = match source.body.as_ref() {
        SetExpr::Values(values) => values.rows.as_slice(),
        _ => &[],
    };
    let placed = rows.iter().flat_map(|row| row.iter().enumerate());
    let parameters = placed.filter_map(|(at, value)| Some((number_of(value)?, at))).collect();
    let width = rows.first().map_or(0, |row| row.len());
    Ok(Statement::Insert(Insert { table: table_ref(&name)?, columns, source: source.to_string(), width, parameters }))
}

/// The number of a parameter that stands alone, where it is written as `$1`, `$2`, ….
fn number_of(value: &Expr) -> Option<usize> {
    match value {
        Expr::Nested(inner) => number_of(inner),
        Expr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) => name.strip_prefix('$')?.parse().ok(),
        _ => None,
    }
}

fn read_drop(statement: SqlStatement) -> Result<Statement, QueryError> {
    let SqlStatement::Drop { object_type: ObjectType::Table, if_exists, names, .. } = statement else {
        return Err(unsupported("this DROP"));
    };
    let [name] = names.as_slice() else { return Err(unsupported("DROP of several tables in one statement")) };
    Ok(Statement::DropTable { table: table_ref(name)?, if_exists })
}

fn unsupported(what: &str) -> QueryError {
    QueryError::NotAllowed(format!("{what} is not done here"))
}

/// A name as it is stored: in lower case unless it is quoted.
fn plain(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// The catalog in front, whichever it is called, is the only one there is.
fn table_ref(name: &ObjectName) -> Result<TableRef, QueryError> {
    let parts: Option<Vec<String>> = name
        .0
        .iter()
        .map(|part| match part {
            ObjectNamePart::Identifier(ident) => Some(plain(ident)),
            ObjectNamePart::Function(_) => None,
        })
        .collect();
    match parts.as_deref() {
        Some([table]) => Ok(TableRef { namespace: None, table: table.clone() }),
        Some([namespace, table] | [_, namespace, table]) => {
            Ok(TableRef { namespace: Some(namespace.clone()), table: table.clone() })
        }
        _ => Err(QueryError::Syntax(format!("{name} is no table's name; write [catalog.][namespace.]table"))),
    }
}

#[cfg(test)]
mod tests;
