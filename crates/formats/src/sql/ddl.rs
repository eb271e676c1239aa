//! Declarations: `CREATE TABLE` and the keys that `ALTER TABLE` adds.

use std::io;

use lakegate_model::ColumnType;

use super::lex::{Dialect, Lexer, Token};
use crate::{SqlColumn, SqlTable};

/// The most columns of one table; more than any of the databases allow.
const COLUMNS: usize = 10_000;

/// A table's name, with its schema where that says more than `public`, `main` or `dbo`.
pub(super) fn table_name(lexer: &mut Lexer) -> io::Result<Option<String>> {
    let mut parts: Vec<String> = Vec::new();
    loop {
        match lexer.next()? {
            Token::Word | Token::Name => parts.push(String::from_utf8_lossy(&lexer.text).into_owned()),
            other => {
                lexer.put_back(other);
                return Ok(None);
            }
        }
        match lexer.next()? {
            Token::Sign(b'.') if parts.len() < 3 => {}
            other => {
                lexer.put_back(other);
                break;
            }
        }
    }
    let usual = |s: &String| ["public", "main", "dbo"].contains(&s.as_str());
    if parts.len() > 1 && parts.first().is_some_and(usual) {
        parts.remove(0);
    }
    Ok(Some(parts.join(".")))
}

/// Names in parentheses, the first of which is open. What else stands there (lengths, orders) is passed over.
pub(super) fn names(lexer: &mut Lexer) -> io::Result<Vec<String>> {
    let (mut names, mut depth, mut due) = (Vec::new(), 1_usize, true);
    loop {
        match lexer.next()? {
            Token::Sign(b'(') => depth += 1,
            Token::Sign(b')') => {
                depth -= 1;
                if depth == 0 {
                    return Ok(names);
                }
            }
            Token::Sign(b',') if depth == 1 => due = true,
            Token::Word | Token::Name if depth == 1 && due && names.len() < COLUMNS => {
                names.push(String::from_utf8_lossy(&lexer.text).into_owned());
                due = false;
            }
            Token::End => return Ok(names),
            _ => {}
        }
    }
}

/// The columns and keys between the parentheses of `CREATE TABLE`, the first of which is open.
pub(super) fn columns(lexer: &mut Lexer, table: &mut SqlTable) -> io::Result<()> {
    loop {
        let token = lexer.next()?;
        let name = String::from_utf8_lossy(&lexer.text).into_owned();
        let closed = match token {
            Token::Sign(b')') | Token::End => true,
            Token::Word if is_constraint(&name) => constraint(lexer, table, &name)?,
            Token::Word | Token::Name => column(lexer, table, name)?,
            _ => false,
        };
        if table.columns.len() > COLUMNS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a table of more than {COLUMNS} columns")));
        }
        if closed {
            break;
        }
    }
    for column in &mut table.columns {
        column.nullable &= !table.primary_key.contains(&column.name);
    }
    Ok(())
}

fn is_constraint(word: &str) -> bool {
    const WORDS: [&str; 11] = [
        "CONSTRAINT",
        "PRIMARY",
        "UNIQUE",
        "KEY",
        "INDEX",
        "FOREIGN",
        "CHECK",
        "FULLTEXT",
        "SPATIAL",
        "EXCLUDE",
        "LIKE",
    ];
    WORDS.iter().any(|w| w.eq_ignore_ascii_case(word))
}

/// A constraint of the table. True: the table's parentheses are closed.
fn constraint(lexer: &mut Lexer, table: &mut SqlTable, first: &str) -> io::Result<bool> {
    let mut primary = first.eq_ignore_ascii_case("PRIMARY");
    let mut depth = 0_usize;
    loop {
        let token = lexer.next()?;
        match token {
            Token::Sign(b'(') if primary && depth == 0 => {
                table.primary_key = names(lexer)?;
                primary = false;
            }
            Token::Sign(b'(') => depth += 1,
            Token::Sign(b')') if depth == 0 => return Ok(true),
            Token::Sign(b')') => depth -= 1,
            Token::Sign(b',') if depth == 0 => return Ok(false),
            Token::End => return Ok(true),
            _ if lexer.is_word(token, "PRIMARY") => primary = true,
            _ => {}
        }
    }
}

/// A column. True: the table's parentheses are closed.
fn column(lexer: &mut Lexer, table: &mut SqlTable, name: String) -> io::Result<bool> {
    let (mut words, mut numbers): (Vec<String>, Vec<u32>) = (Vec::new(), Vec::new());
    let (mut nullable, mut depth, mut in_type, mut last) = (true, 0_usize, true, String::new());
    let closed = loop {
        let token = lexer.next()?;
        match token {
            Token::Sign(b'(') => depth += 1,
            Token::Sign(b')') if depth == 0 => break true,
            Token::Sign(b')') => depth -= 1,
            Token::Sign(b',') if depth == 0 => break false,
            Token::Sign(b'[') if in_type => words.push("ARRAY".to_owned()),
            Token::Number if depth == 1 && in_type && numbers.len() < 2 => {
                numbers.extend(std::str::from_utf8(&lexer.text).ok().and_then(|t| t.parse::<u32>().ok()));
            }
            Token::Word if depth == 0 => {
                let word = String::from_utf8_lossy(&lexer.text).to_ascii_uppercase();
                in_type &= !ends_type(&word);
                match word.as_str() {
                    "NULL" if last == "NOT" => nullable = false,
                    "KEY" if last == "PRIMARY" => {
                        table.primary_key = vec![name.clone()];
                        nullable = false;
                    }
                    _ => {}
                }
                if in_type && words.len() < 8 {
                    words.push(word.clone());
                }
                last = word;
            }
            Token::Name if depth == 0 && in_type && words.is_empty() => {
                words.push(String::from_utf8_lossy(&lexer.text).to_ascii_uppercase());
            }
            Token::End => break true,
            _ => {}
        }
    };
    let column_type = column_type(&words, &numbers, lexer.dialect);
    table.columns.push(SqlColumn { name, column_type, nullable });
    Ok(closed)
}

/// What follows a column's type.
fn ends_type(word: &str) -> bool {
    const WORDS: [&str; 17] = [
        "NOT",
        "NULL",
        "DEFAULT",
        "PRIMARY",
        "UNIQUE",
        "REFERENCES",
        "CHECK",
        "COLLATE",
        "AUTO_INCREMENT",
        "COMMENT",
        "CONSTRAINT",
        "GENERATED",
        "CHARSET",
        "CHARACTER_SET",
        "ON",
        "AUTOINCREMENT",
        "AS",
    ];
    WORDS.contains(&word)
}

/// The column type whose values hold all of a database type's.
pub(super) fn column_type(words: &[String], numbers: &[u32], dialect: Dialect) -> ColumnType {
    let has = |word: &str| words.iter().any(|w| w == word);
    let mut first = words.first().map(String::as_str).unwrap_or_default();
    if first == "PG_CATALOG" {
        first = words.get(1).map(String::as_str).unwrap_or_default();
    }
    if has("ARRAY") {
        return ColumnType::String;
    }
    let unsigned = has("UNSIGNED");
    let zoned = has("ZONE") && has("WITH");
    match first {
        "BOOL" | "BOOLEAN" => ColumnType::Boolean,
        "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT2" | "SMALLSERIAL" | "YEAR" => ColumnType::Int,
        // SQLite's integers have 64 bits whatever they are called.
        "INT" | "INTEGER" | "INT4" | "SERIAL" if !unsigned && dialect != Dialect::Sqlite => ColumnType::Int,
        "INT" | "INTEGER" | "INT4" | "SERIAL" | "OID" => ColumnType::Long,
        "BIGINT" | "INT8" if unsigned => ColumnType::Decimal { precision: 20, scale: 0 },
        "BIGINT" | "INT8" | "BIGSERIAL" => ColumnType::Long,
        "DECIMAL" | "NUMERIC" | "DEC" | "FIXED" => decimal(numbers, dialect),
        "FLOAT" if dialect == Dialect::MySql => ColumnType::Float,
        "REAL" | "FLOAT4" if dialect == Dialect::Postgres => ColumnType::Float,
        "FLOAT" | "REAL" | "DOUBLE" | "FLOAT8" => ColumnType::Double,
        "DATE" => ColumnType::Date,
        // MySQL writes its `timestamp`s in UTC.
        "TIMESTAMP" if zoned || dialect == Dialect::MySql => ColumnType::Timestamptz,
        "TIMESTAMPTZ" => ColumnType::Timestamptz,
        "DATETIME" | "TIMESTAMP" => ColumnType::Timestamp,
        "JSON" | "JSONB" => ColumnType::Json,
        "BIT" if dialect == Dialect::MySql && numbers.first().is_none_or(|n| *n == 1) => ColumnType::Boolean,
        "BIT" if dialect == Dialect::MySql => ColumnType::Binary,
        "BLOB" | "TINYBLOB" | "MEDIUMBLOB" | "LONGBLOB" | "BINARY" | "VARBINARY" | "BYTEA" => ColumnType::Binary,
        _ => ColumnType::String,
    }
}

fn decimal(numbers: &[u32], dialect: Dialect) -> ColumnType {
    let number = |at: usize| numbers.get(at).and_then(|n| u8::try_from(*n).ok());
    let (precision, scale) = match (number(0), number(1)) {
        (Some(p), s) => (p, s.unwrap_or(0)),
        (None, _) if dialect == Dialect::MySql => (10, 0),
        // Without bounds a column's numbers can be of any length: as text they stay exact.
        (None, _) => return ColumnType::String,
    };
    if (1..=38).contains(&precision) && scale <= precision {
        ColumnType::Decimal { precision, scale }
    } else {
        ColumnType::String
    }
}
