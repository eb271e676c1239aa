//! Statements that are told by their first words: `SHOW`, `DESCRIBE`, `USE`, prepared statements, sessions.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::tokens::written;
use super::{Statement, TableRef};
use crate::error::QueryError;

/// Names that are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Show {
    /// `SHOW CATALOGS`.
    Catalogs,
    /// `SHOW SCHEMAS`.
    Schemas {
        /// Only names like this.
        like: Option<String>,
    },
    /// `SHOW TABLES`.
    Tables {
        /// Of that namespace.
        namespace: Option<String>,
        /// Only names like this.
        like: Option<String>,
    },
    /// `SHOW COLUMNS`, `DESCRIBE`.
    Columns(TableRef),
    /// `SHOW CREATE TABLE`.
    CreateTable(TableRef),
    /// `DESCRIBE OUTPUT`: the columns of a remembered statement.
    Output(String),
    /// `SHOW SESSION`.
    Session,
}

/// `EXECUTE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execute {
    /// The remembered statement's name, or the statement itself.
    pub what: Result<String, String>,
    /// The values, as expressions.
    pub values: Vec<String>,
}

/// The statement, if its first words tell it.
pub(super) fn read(sql: &str, tokens: &[TokenWithSpan]) -> Result<Option<Statement>, QueryError> {
    let mut words = Words { tokens, at: 0 };
    let Some(first) = words.word() else { return Ok(None) };
    let statement = match first.as_str() {
        "SHOW" => return show(&mut words),
        "DESCRIBE" | "DESC" => {
            if words.take("OUTPUT") {
                return Ok(words.name().map(|name| Statement::Show(Show::Output(name))));
            }
            match words.table() {
                Some(table) if words.is_at_end() => Statement::Show(Show::Columns(table)),
                _ => return Ok(None),
            }
        }
        "USE" => match (words.table(), words.is_at_end()) {
            (Some(TableRef { namespace, table }), true) => Statement::Use { catalog: namespace, namespace: table },
            _ => return Err(QueryError::Syntax("USE names a namespace: USE [catalog.]namespace".to_owned())),
        },
        "PREPARE" => prepare(sql, &mut words)?,
        "EXECUTE" => execute(sql, &mut words)?,
        "DEALLOCATE" => {
            words.take("PREPARE");
            let name = words.name().ok_or_else(|| wrong("DEALLOCATE PREPARE name"))?;
            Statement::Deallocate { name }
        }
        "SET" if words.take("SESSION") || words.take("TIME") => Statement::Nothing("SET SESSION"),
        "RESET" => Statement::Nothing("RESET SESSION"),
        "START" => Statement::Nothing("START TRANSACTION"),
        "COMMIT" => Statement::Nothing("COMMIT"),
        "ROLLBACK" => Statement::Nothing("ROLLBACK"),
        _ => return Ok(None),
    };
    Ok(Some(statement))
}

fn wrong(form: &str) -> QueryError {
    QueryError::Syntax(format!("it is not of the form {form}"))
}

fn show(words: &mut Words<'_>) -> Result<Option<Statement>, QueryError> {
    let Some(kind) = words.word() else { return Ok(None) };
    let source = |words: &mut Words<'_>| {
        if words.take("FROM") || words.take("IN") { words.table() } else { None }
    };
    let show = match kind.as_str() {
        "CATALOGS" => Show::Catalogs,
        "SCHEMAS" | "DATABASES" => {
            let _ = source(words);
            Show::Schemas { like: words.like() }
        }
        "TABLES" => {
            let namespace = source(words).map(|found| found.table);
            Show::Tables { namespace, like: words.like() }
        }
        "COLUMNS" => match source(words) {
            Some(table) => Show::Columns(table),
            None => return Err(wrong("SHOW COLUMNS FROM table")),
        },
        "CREATE" if words.take("TABLE") => match words.table() {
            Some(table) => Show::CreateTable(table),
            None => return Err(wrong("SHOW CREATE TABLE table")),
        },
        "SESSION" => Show::Session,
        _ => return Ok(None),
    };
    Ok(words.is_at_end().then_some(Statement::Show(show)))
}

fn prepare(sql: &str, words: &mut Words<'_>) -> Result<Statement, QueryError> {
    let form = "PREPARE name FROM statement";
    let name = words.name().ok_or_else(|| wrong(form))?;
    // The statement itself is taken as it was written.
    let tokens = written(sql)?;
    let from = tokens.iter().position(|token| is_word(token, "FROM")).ok_or_else(|| wrong(form))?;
    let sql: String = tokens.iter().skip(from + 1).map(ToString::to_string).collect();
    Ok(Statement::Prepare { name, sql: sql.trim().to_owned() })
}

fn execute(sql: &str, words: &mut Words<'_>) -> Result<Statement, QueryError> {
    let what = if words.take("IMMEDIATE") {
        Err(words.text().ok_or_else(|| wrong("EXECUTE IMMEDIATE 'statement' [USING value, …]"))?)
    } else {
        Ok(words.name().ok_or_else(|| wrong("EXECUTE name [USING value, …]"))?)
    };
    let tokens = written(sql)?;
    let using = tokens.iter().position(|token| is_word(token, "USING"));
    let values = using.map_or_else(Vec::new, |at| split(tokens.get(at + 1..).unwrap_or_default()));
    Ok(Statement::Execute(Execute { what, values }))
}

/// The expressions between commas.
fn split(tokens: &[Token]) -> Vec<String> {
    let (mut depth, mut values, mut value) = (0_i32, Vec::new(), String::new());
    for token in tokens {
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth -= 1,
            Token::Comma if depth == 0 => {
                values.push(std::mem::take(&mut value).trim().to_owned());
                continue;
            }
            Token::SemiColon => continue,
            _ => {}
        }
        value.push_str(&token.to_string());
    }
    values.push(value.trim().to_owned());
    values
}

fn is_word(token: &Token, wanted: &str) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted))
}

/// Tokens without what is between them.
struct Words<'t> {
    tokens: &'t [TokenWithSpan],
    at: usize,
}

impl Words<'_> {
    fn peek(&mut self) -> Option<&Token> {
        while let Some(TokenWithSpan { token: Token::Whitespace(_), .. }) = self.tokens.get(self.at) {
            self.at += 1;
        }
        self.tokens.get(self.at).map(|found| &found.token)
    }

    /// The next word, in upper case.
    fn word(&mut self) -> Option<String> {
        let found = match self.peek()? {
            Token::Word(word) if word.quote_style.is_none() => word.value.to_uppercase(),
            _ => return None,
        };
        self.at += 1;
        Some(found)
    }

    fn take(&mut self, wanted: &str) -> bool {
        let found = self.peek().is_some_and(|token| is_word(token, wanted));
        self.at += usize::from(found);
        found
    }

    fn name(&mut self) -> Option<String> {
        let found = match self.peek()? {
            Token::Word(word) if word.quote_style.is_none() => word.value.to_lowercase(),
            Token::Word(word) => word.value.clone(),
            Token::DoubleQuotedString(text) => text.clone(),
            _ => return None,
        };
        self.at += 1;
        Some(found)
    }

    fn text(&mut self) -> Option<String> {
        let Token::SingleQuotedString(text) = self.peek()? else { return None };
        let text = text.clone();
        self.at += 1;
        Some(text)
    }

    fn table(&mut self) -> Option<TableRef> {
        let mut parts = vec![self.name()?];
        while self.peek() == Some(&Token::Period) {
            self.at += 1;
            parts.push(self.name()?);
        }
        let table = parts.pop()?;
        (parts.len() <= 2).then(|| TableRef { namespace: parts.pop(), table })
    }

    fn like(&mut self) -> Option<String> {
        let like = if self.take("LIKE") { self.text() } else { None };
        if self.take("ESCAPE") {
            let _ = self.text();
        }
        like
    }

    fn is_at_end(&mut self) -> bool {
        while self.peek() == Some(&Token::SemiColon) {
            self.at += 1;
        }
        matches!(self.peek(), None | Some(Token::EOF))
    }
}
