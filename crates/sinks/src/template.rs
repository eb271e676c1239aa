//! Templates: a JSON value or a text with places such as `{{event_id}}` or `{{data.total}}`.
//!
//! A text of a body that is one place and nothing else becomes the value itself, a number or an object too; within a
//! longer text a place becomes its text, and what is not there nothing. In an address a place becomes one percent-encoded
//! part, so that a record cannot lead a request elsewhere.

use serde_json::{Map, Value};

use crate::condition::find;

/// A text with places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Plain(String),
    Place(Vec<String>),
}

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{{{{ is not closed or names nothing; write such as \"{{{{event_id}}}}\" or \"{{{{data.total}}}}\"")]
pub struct TemplateError;

impl Text {
    /// Reads a text.
    ///
    /// # Errors
    /// A place is not closed, or names nothing.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, next) = after.split_once("}}").ok_or(TemplateError)?;
            let path: Vec<String> = name.trim().split('.').map(str::to_owned).collect();
            if path.iter().any(String::is_empty) {
                return Err(TemplateError);
            }
            if !before.is_empty() {
                parts.push(Part::Plain(before.to_owned()));
            }
            parts.push(Part::Place(path));
            rest = next;
        }
        if !rest.is_empty() || parts.is_empty() {
            parts.push(Part::Plain(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Whether it is the same for all records.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.0.iter().all(|part| matches!(part, Part::Plain(_)))
    }

    /// What stands before the first place.
    #[must_use]
    pub fn head(&self) -> &str {
        match self.0.first() {
            Some(Part::Plain(text)) => text,
            _ => "",
        }
    }

    /// The text for a record, each place passed through `escape`.
    pub(crate) fn fill(&self, row: &Map<String, Value>, escape: fn(&str) -> String) -> String {
        let part = |part: &Part| match part {
            Part::Plain(text) => text.clone(),
            Part::Place(path) => find(row, path).map(|value| escape(&text_of(value))).unwrap_or_default(),
        };
        self.0.iter().map(part).collect()
    }

    fn value(&self, row: &Map<String, Value>) -> Value {
        match self.0.as_slice() {
            [Part::Place(path)] => find(row, path).cloned().unwrap_or(Value::Null),
            _ => Value::String(self.fill(row, str::to_owned)),
        }
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One part of an address (RFC 3986): everything but unreserved characters is encoded. A part of dots alone would be a
/// step upwards, which servers resolve also when encoded; it becomes an underscore.
pub(crate) fn encode_part(text: &str) -> String {
    if !text.is_empty() && text.bytes().all(|byte| byte == b'.') {
        return "_".to_owned();
    }
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// A JSON value with places.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// A text.
    Text(Text),
    /// An object.
    Object(Vec<(String, Json)>),
    /// A list.
    List(Vec<Json>),
    /// Anything else, as it is.
    Plain(Value),
}

impl Json {
    /// Reads a value.
    ///
    /// # Errors
    /// See [`Text::parse`].
    pub fn parse(value: &Value) -> Result<Self, TemplateError> {
        Ok(match value {
            Value::String(text) => Self::Text(Text::parse(text)?),
            Value::Array(items) => Self::List(items.iter().map(Self::parse).collect::<Result<_, _>>()?),
            Value::Object(members) => {
                let member = |(name, value): (&String, &Value)| Ok((name.clone(), Self::parse(value)?));
                Self::Object(members.iter().map(member).collect::<Result<_, _>>()?)
            }
            other => Self::Plain(other.clone()),
        })
    }

    pub(crate) fn fill(&self, row: &Map<String, Value>) -> Value {
        match self {
            Self::Text(text) => text.value(row),
            Self::List(items) => items.iter().map(|item| item.fill(row)).collect(),
            Self::Object(members) => {
                Value::Object(members.iter().map(|(name, value)| (name.clone(), value.fill(row))).collect())
            }
            Self::Plain(value) => value.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_are_filled_with_values_in_bodies_and_with_encoded_parts_in_addresses() {
        let row = json!({"id": "a/b?c#d", "n": 5, "data": {"items": [1]}, "up": ".."});
        let row = row.as_object().unwrap();
        let body = json!({"id": "{{id}}", "n": "{{ n }}", "say": "n={{n}}!", "items": "{{data.items}}", "no": "{{x.y}}", "v": [1]});
        assert_eq!(
            Json::parse(&body).unwrap().fill(row),
            json!({"id": "a/b?c#d", "n": 5, "say": "n=5!", "items": [1], "no": null, "v": [1]})
        );
        let address = Text::parse("http://h/carts/{{id}}/{{up}}").unwrap();
        assert_eq!(address.fill(row, encode_part), "http://h/carts/a%2Fb%3Fc%23d/_");
        assert_eq!((address.head(), address.is_plain()), ("http://h/carts/", false));
        for wrong in ["{{", "{{}}", "{{a", "{{a..b}}"] {
            assert!(Text::parse(wrong).is_err(), "{wrong}");
        }
    }
}
