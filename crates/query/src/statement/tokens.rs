//! Statements token by token: parameters put in, and words of other dialects made the engine's.
//!
//! Tokens are kept as they were written, so that nothing but what is meant changes.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use serde_json::Value;

use crate::error::QueryError;

/// The statement's tokens as written.
pub(super) fn written(sql: &str) -> Result<Vec<Token>, QueryError> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).with_unescape(false).tokenize();
    tokens.map_err(|error| QueryError::Syntax(error.to_string()))
}

fn joined(tokens: &[Token]) -> String {
    tokens.iter().map(ToString::to_string).collect()
}

/// A JSON value as a literal.
///
/// # Errors
/// It is an array or an object.
pub fn literal(number: usize, value: &Value) -> Result<String, QueryError> {
    Ok(match value {
        Value::Null => "NULL".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Array(_) | Value::Object(_) => {
            let kind = if value.is_array() { "array" } else { "object" };
            return Err(QueryError::Plan(format!(
                "parameter {number} is a JSON {kind}; a parameter is null, true or false, a number or a text"
            )));
        }
    })
}

/// All of them.
///
/// # Errors
/// One is an array or an object.
pub fn literals(values: &[Value]) -> Result<Vec<String>, QueryError> {
    values.iter().enumerate().map(|(at, value)| literal(at + 1, value)).collect()
}

/// How many parameters a statement has.
///
/// # Errors
/// The text cannot be read.
pub fn parameter_count(sql: &str) -> Result<usize, QueryError> {
    let (mut next, mut highest) = (0, 0);
    for token in written(sql)? {
        match token {
            Token::Question => next += 1,
            Token::Placeholder(name) if name == "?" => next += 1,
            Token::Placeholder(name) => {
                let number = name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok());
                highest = highest.max(number.unwrap_or(0));
            }
            _ => {}
        }
    }
    Ok(highest.max(next))
}

/// The statement with `?`, in their order, and `$1`, `$2`, … replaced by these expressions.
///
/// # Errors
/// There are more or fewer than the statement asks for.
pub fn bind(sql: &str, values: &[String]) -> Result<String, QueryError> {
    let mut tokens = written(sql)?;
    let (mut next, mut highest) = (0, 0);
    let missing = |at: usize| {
        QueryError::Plan(format!("the statement has a parameter {at}, and {} values were given", values.len()))
    };
    for token in &mut tokens {
        let at = match &*token {
            Token::Question => None,
            Token::Placeholder(name) if name == "?" => None,
            Token::Placeholder(name) => match name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()) {
                Some(at) if at > 0 => Some(at),
                _ => continue,
            },
            _ => continue,
        };
        let at = at.unwrap_or_else(|| {
            next += 1;
            next
        });
        highest = highest.max(at);
        let value = values.get(at - 1).ok_or_else(|| missing(at))?;
        let is_plain = value.starts_with(|c: char| c.is_alphanumeric() || c == '\'') && !value.contains(' ');
        *token = Token::make_word(&if is_plain { value.clone() } else { format!("({value})") }, None);
    }
    if highest < values.len() {
        return Err(QueryError::Plan(format!(
            "{} values were given, and the statement has {highest} parameters",
            values.len()
        )));
    }
    Ok(joined(&tokens))
}

/// The statement with the literals of Trino that the engine lacks as those that it has.
///
/// # Errors
/// The text cannot be read.
pub fn prefer_engine_words(sql: &str) -> Result<String, QueryError> {
    let mut tokens = written(sql)?;
    let (mut before, mut changed) = (None, super::jdbc::name_tables(&mut tokens));
    for at in 0..tokens.len() {
        let (word, text) = match tokens.get(at) {
            Some(Token::Whitespace(_)) => continue,
            Some(Token::Word(word)) if word.quote_style.is_none() => {
                before = Some((at, word.value.to_uppercase(), word.keyword));
                continue;
            }
            Some(Token::SingleQuotedString(text)) => (before.take(), text.clone()),
            _ => {
                before = None;
                continue;
            }
        };
        let Some((place, word, keyword)) = word else { continue };
        let made = match word.as_str() {
            "UUID" | "IPADDRESS" | "VARCHAR" | "CHAR" => Some(format!("'{text}'")),
            "JSON" => Some(format!("'{text}'")),
            _ if keyword == Keyword::TIMESTAMP => zoned(&text),
            "REAL" => Some(format!("CAST('{text}' AS REAL)")),
            "DOUBLE" => Some(format!("CAST('{text}' AS DOUBLE)")),
            "DECIMAL" => decimal(&text),
            "TINYINT" | "SMALLINT" | "INTEGER" | "BIGINT" => Some(format!("CAST('{text}' AS {word})")),
            _ => None,
        };
        if let Some(made) = made {
            replace(&mut tokens, place, at, &made);
            changed = true;
        }
    }
    Ok(if changed { joined(&tokens) } else { sql.to_owned() })
}

/// Puts `text` in the place of a word and the literal behind it.
fn replace(tokens: &mut [Token], word: usize, literal: usize, text: &str) {
    if let Some(token) = tokens.get_mut(word) {
        *token = Token::make_word(text, None);
    }
    if let Some(token) = tokens.get_mut(literal) {
        *token = Token::make_word("", None);
    }
}

/// A time with a zone at its end, such as `2024-12-01 10:00:00.000 UTC` or `… +05:30`.
fn zoned(text: &str) -> Option<String> {
    let (time, zone) = text.trim().rsplit_once(' ')?;
    let zone = match zone {
        "UTC" | "Z" | "GMT" => "+00:00".to_owned(),
        offset if offset.starts_with(['+', '-']) => offset.to_owned(),
        _ => return None,
    };
    let time = time.trim().replacen(' ', "T", 1);
    Some(format!("CAST('{time}{zone}' AS TIMESTAMP WITH TIME ZONE)"))
}

fn decimal(text: &str) -> Option<String> {
    let digits = text.trim().trim_start_matches(['-', '+']);
    let scale = digits.split_once('.').map_or(0, |(_, behind)| behind.len());
    let precision = digits.chars().filter(char::is_ascii_digit).count().max(1);
    let is_plain = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    (is_plain && precision <= 38).then(|| format!("CAST('{}' AS DECIMAL({precision},{scale}))", text.trim()))
}
