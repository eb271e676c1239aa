//! A small language for picking records: `data.total >= 100 and store_id in ('a', 'b') and not (user_id is null)`.
//!
//! Names are columns, with the members of JSON columns behind a dot; a part in double quotes may hold any characters.
//! Values are texts in single quotes (`''` for a quote), numbers, `true`, `false`, `null`. Comparisons are `=`, `!=`,
//! `<`, `<=`, `>`, `>=`, `in (…)`, `not in (…)`, `is null`, `is not null`; they are joined by `and`, `or`, `not` and
//! parentheses. As in SQL, a comparison with what is not there, or with a value of another kind, is neither true nor
//! false, and a record is picked only where the whole is true.
//!
//! Refuses: functions, regular expressions, anything whose cost does not follow from the record's size.

use std::cmp::Ordering;

use serde_json::{Map, Value};

/// Parentheses and `not` may nest so deep.
const DEPTH_MAX: usize = 32;
/// The longest text.
const TEXT_BYTES_MAX: usize = 4096;

/// What is wrong with a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at character {at} of {text:?}; write such as \"data.total >= 100 and store_id in ('a', 'b')\"")]
pub struct ConditionError {
    text: String,
    at: usize,
    reason: String,
}

/// A condition on a record's columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition(Node);

#[derive(Debug, Clone, PartialEq)]
enum Node {
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
    IsNull(Vec<String>),
    Compare(Vec<String>, Comparison, Value),
    In(Vec<String>, Vec<Value>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Eq,
    NotEq,
    Less,
    LessEq,
    Greater,
    GreaterEq,
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Eq => order.is_eq(),
            Self::NotEq => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessEq => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterEq => order.is_ge(),
        }
    }
}

impl Condition {
    /// Reads a condition.
    ///
    /// # Errors
    /// It is none; the error says where.
    pub fn parse(text: &str) -> Result<Self, ConditionError> {
        let mut parser = Parser { text, at: 0 };
        if text.len() > TEXT_BYTES_MAX {
            return Err(parser.wrong(format!("a condition has at most {TEXT_BYTES_MAX} bytes")));
        }
        let node = parser.either(0)?;
        match parser.token()? {
            None => Ok(Self(node)),
            Some(_) => Err(parser.wrong("`and` or `or` was expected")),
        }
    }

    /// Whether it holds for a record.
    #[must_use]
    pub fn holds(&self, row: &Map<String, Value>) -> bool {
        evaluate(&self.0, row) == Some(true)
    }
}

fn evaluate(node: &Node, row: &Map<String, Value>) -> Option<bool> {
    match node {
        Node::And(a, b) => match (evaluate(a, row), evaluate(b, row)) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        },
        Node::Or(a, b) => match (evaluate(a, row), evaluate(b, row)) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), Some(false)) => Some(false),
            _ => None,
        },
        Node::Not(inner) => evaluate(inner, row).map(|holds| !holds),
        Node::IsNull(path) => Some(find(row, path).is_none()),
        Node::Compare(path, comparison, value) => Some(comparison.holds(compare(find(row, path)?, value)?)),
        Node::In(path, values) => {
            let found = find(row, path)?;
            let orders: Vec<Option<Ordering>> = values.iter().map(|value| compare(found, value)).collect();
            if orders.contains(&Some(Ordering::Equal)) {
                return Some(true);
            }
            (!orders.contains(&None)).then_some(false)
        }
    }
}

/// The value at a path, if it is there and not null.
pub(crate) fn find<'a>(row: &'a Map<String, Value>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = rest.iter().try_fold(row.get(first)?, |value, name| value.get(name))?;
    (!value.is_null()).then_some(value)
}

fn compare(found: &Value, with: &Value) -> Option<Ordering> {
    match (found, with) {
        (Value::String(a), Value::String(b)) => Some(a.as_str().cmp(b.as_str())),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
        _ => None,
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(Vec<String>),
    Word(String),
    Value(Value),
    Sign(&'static str),
}

const WORDS: [&str; 6] = ["and", "or", "not", "in", "is", "null"];
const SIGNS: [&str; 12] = ["<=", ">=", "!=", "<>", "==", "=", "<", ">", "(", ")", ",", "."];

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn wrong(&self, reason: impl Into<String>) -> ConditionError {
        let shown: String = self.text.chars().take(200).collect();
        let at = self.text.get(..self.at).map_or(0, |before| before.chars().count()) + 1;
        ConditionError { text: shown, at, reason: reason.into() }
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Result<Option<Token>, ConditionError> {
        Parser { text: self.text, at: self.at }.token()
    }

    fn takes(&mut self, wanted: &Token) -> Result<bool, ConditionError> {
        let before = self.at;
        if self.token()?.as_ref() == Some(wanted) {
            return Ok(true);
        }
        self.at = before;
        Ok(false)
    }

    fn takes_word(&mut self, word: &str) -> Result<bool, ConditionError> {
        self.takes(&Token::Word(word.to_owned()))
    }

    fn token(&mut self) -> Result<Option<Token>, ConditionError> {
        let blank = self.rest().len() - self.rest().trim_start().len();
        self.at += blank;
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(None) };
        if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            self.at += sign.len();
            return Ok(Some(Token::Sign(sign)));
        }
        match first {
            '\'' => self.quoted('\'').map(|text| Some(Token::Value(Value::String(text)))),
            '0'..='9' | '-' => self.number().map(Some),
            '"' => self.name().map(Some),
            first if is_of_name(first) => self.name().map(Some),
            _ => Err(self.wrong(format!("{first:?} was not expected"))),
        }
    }

    fn number(&mut self) -> Result<Token, ConditionError> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+')));
        let text = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let number: Value = serde_json::from_str(text).map_err(|_| self.wrong("a number was expected"))?;
        self.at += text.len();
        Ok(Token::Value(number))
    }

    /// A text in quotes; the quote itself is written twice.
    fn quoted(&mut self, quote: char) -> Result<String, ConditionError> {
        let mut text = String::new();
        let mut chars = self.rest().char_indices().skip(1).peekable();
        while let Some((at, c)) = chars.next() {
            if c != quote {
                text.push(c);
            } else if chars.next_if(|(_, next)| *next == quote).is_some() {
                text.push(quote);
            } else {
                self.at += at + 1;
                return Ok(text);
            }
        }
        Err(self.wrong("a text is not closed"))
    }

    fn name(&mut self) -> Result<Token, ConditionError> {
        let mut path = Vec::new();
        let mut was_quoted = false;
        loop {
            if self.rest().starts_with('"') {
                was_quoted = true;
                path.push(self.quoted('"')?);
            } else {
                let rest = self.rest();
                let end = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
                let part = rest.get(..end).unwrap_or_default().to_owned();
                if part.is_empty() {
                    return Err(self.wrong("a name was expected"));
                }
                self.at += end;
                path.push(part);
            }
            if !self.rest().starts_with('.') {
                break;
            }
            self.at += 1;
        }
        let lower = path.first().map(|part| part.to_ascii_lowercase()).unwrap_or_default();
        if was_quoted || path.len() > 1 {
            return Ok(Token::Name(path));
        }
        Ok(match lower.as_str() {
            "true" => Token::Value(Value::Bool(true)),
            "false" => Token::Value(Value::Bool(false)),
            word if WORDS.contains(&word) => Token::Word(lower),
            _ => Token::Name(path),
        })
    }

    fn either(&mut self, depth: usize) -> Result<Node, ConditionError> {
        let mut node = self.both(depth)?;
        while self.takes_word("or")? {
            node = Node::Or(Box::new(node), Box::new(self.both(depth)?));
        }
        Ok(node)
    }

    fn both(&mut self, depth: usize) -> Result<Node, ConditionError> {
        let mut node = self.one(depth)?;
        while self.takes_word("and")? {
            node = Node::And(Box::new(node), Box::new(self.one(depth)?));
        }
        Ok(node)
    }

    fn one(&mut self, depth: usize) -> Result<Node, ConditionError> {
        if depth > DEPTH_MAX {
            return Err(self.wrong(format!("conditions nest at most {DEPTH_MAX} deep")));
        }
        if self.takes_word("not")? {
            return Ok(Node::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.takes(&Token::Sign("("))? {
            let node = self.either(depth + 1)?;
            return if self.takes(&Token::Sign(")"))? { Ok(node) } else { Err(self.wrong("`)` was expected")) };
        }
        match self.token()? {
            Some(Token::Name(path)) => self.comparison(path),
            _ => Err(self.wrong("the name of a column was expected")),
        }
    }

    fn comparison(&mut self, path: Vec<String>) -> Result<Node, ConditionError> {
        if self.takes_word("is")? {
            let not = self.takes_word("not")?;
            if !self.takes_word("null")? {
                return Err(self.wrong("`null` was expected"));
            }
            let node = Node::IsNull(path);
            return Ok(if not { Node::Not(Box::new(node)) } else { node });
        }
        let not = self.takes_word("not")?;
        if self.takes_word("in")? {
            let node = Node::In(path, self.list()?);
            return Ok(if not { Node::Not(Box::new(node)) } else { node });
        }
        let comparison = match self.peek()? {
            Some(Token::Sign("=" | "==")) => Comparison::Eq,
            Some(Token::Sign("!=" | "<>")) => Comparison::NotEq,
            Some(Token::Sign("<")) => Comparison::Less,
            Some(Token::Sign("<=")) => Comparison::LessEq,
            Some(Token::Sign(">")) => Comparison::Greater,
            Some(Token::Sign(">=")) => Comparison::GreaterEq,
            _ => return Err(self.wrong("`=`, `<`, `in` or `is` was expected")),
        };
        self.token()?;
        Ok(Node::Compare(path, comparison, self.value()?))
    }

    fn list(&mut self) -> Result<Vec<Value>, ConditionError> {
        if !self.takes(&Token::Sign("("))? {
            return Err(self.wrong("`(` was expected"));
        }
        let mut values = vec![self.value()?];
        while self.takes(&Token::Sign(","))? {
            values.push(self.value()?);
        }
        if self.takes(&Token::Sign(")"))? { Ok(values) } else { Err(self.wrong("`)` was expected")) }
    }

    fn value(&mut self) -> Result<Value, ConditionError> {
        match self.token()? {
            Some(Token::Value(value)) => Ok(value),
            Some(Token::Word(word)) if word == "null" => Err(self.wrong("nothing equals null; write `is null`")),
            _ => Err(self.wrong("a value was expected: 'text', a number, true or false")),
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '@' | '$')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row() -> Map<String, Value> {
        let row = json!({"store_id": "a", "n": 5, "x": 1.5, "ok": true, "gone": null,
            "data": {"total": 120.5, "deep": {"it's": "y"}, "a.b": 1}, "@timestamp": "2026-01-01"});
        row.as_object().unwrap().clone()
    }

    #[test]
    fn records_are_picked_as_sql_would_pick_them() {
        for (text, picked) in [
            ("store_id = 'a'", true),
            ("store_id != 'a'", false),
            ("data.total >= 100 and store_id in ('b', 'a')", true),
            ("data.total > 200 or n < 6", true),
            ("not (n = 5)", false),
            ("n = 5.0 AND x < 2", true),
            ("n not in (1, 2)", true),
            ("gone is null and missing.deep is null and n is not null", true),
            // Neither true nor false, so neither is picked.
            ("gone = 'x'", false),
            ("not (gone = 'x')", false),
            ("n = '5'", false),
            ("not (n = '5')", false),
            ("ok = true", true),
            ("data.\"a.b\" = 1", true),
            ("data.deep.\"it's\" = 'y' and store_id = 'it''s' or @timestamp > '2025'", true),
            ("n = -5 or n >= 5e0", true),
            ("n = 1 or n = 5 and ok = false", false),
        ] {
            assert_eq!(Condition::parse(text).unwrap().holds(&row()), picked, "{text}");
        }
    }

    #[test]
    fn what_is_no_condition_is_refused_with_its_place() {
        for (text, at) in [
            ("", 1),
            ("n", 2),
            ("n =", 4),
            ("n = null", 9),
            ("n = 'x", 5),
            ("(n = 1", 7),
            ("n = 1 n = 2", 8),
            ("n in ()", 8),
            ("n ~ 1", 3),
            ("= 1", 2),
        ] {
            let error = Condition::parse(text).unwrap_err();
            assert_eq!(error.at, at, "{error}");
        }
        let deep = format!("{}n = 1{}", "(".repeat(100), ")".repeat(100));
        assert!(Condition::parse(&deep).unwrap_err().to_string().contains("deep"));
    }
}
