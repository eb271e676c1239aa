//! A JSON Schema document (draft 2020-12 and those before it) as columns and rules.
//!
//! What has no counterpart is refused with its place and the reason, never passed over: a contract checks all that its
//! schema says. Nothing is fetched; references lead to places in the document alone; depth and size are bounded.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::check::{Checks, JsonKind};
use super::column::Column;
use super::rules::{ColumnRules, ObjectRule};
use super::time::{TimeFormat, TimeNotation};
use super::types::ColumnType;

/// The deepest that properties may nest, references followed.
const DEPTH_MAX: usize = 16;
/// The most properties.
const COLUMNS_MAX: usize = 1000;

/// Keywords that say nothing about values.
const ANNOTATIONS: [&str; 12] = [
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "examples",
    "default",
    "deprecated",
    "readOnly",
    "writeOnly",
];

/// What a schema says, as parts of a contract.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SchemaParts {
    /// A column for each property; those of nested objects are named `object_property`.
    pub columns: Vec<Column>,
    /// Their rules.
    pub rules: BTreeMap<String, ColumnRules>,
    /// The nested objects.
    pub objects: Vec<ObjectRule>,
    /// Whether there may be no other properties at the top.
    pub closed: bool,
}

/// What of a schema cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {reason}")]
pub struct SchemaProblem {
    /// Where, as a JSON pointer; `#` is the whole.
    pub pointer: String,
    /// Why, and what would be right.
    pub reason: String,
}

/// Reads a schema.
///
/// # Errors
/// Everything in it that has no counterpart.
pub fn read_json_schema(schema: &Value) -> Result<SchemaParts, Vec<SchemaProblem>> {
    let mut reader = Reader { root: schema, parts: SchemaParts::default(), problems: Vec::new() };
    let at = At { pointer: "#".to_owned(), path: Vec::new(), required: true };
    if let Some(top) = reader.resolve(schema, &at) {
        let is_object = top.get("type").is_none_or(|found| found == "object") && top.contains_key("properties");
        if !is_object {
            reader.refuse(&at, "the document must describe an object with `properties`");
        }
        reader.object(top, &at);
    }
    if reader.problems.is_empty() { Ok(reader.parts) } else { Err(reader.problems) }
}

struct Reader<'s> {
    root: &'s Value,
    parts: SchemaParts,
    problems: Vec<SchemaProblem>,
}

/// A place in the schema, and where its values are in a payload.
struct At {
    pointer: String,
    path: Vec<String>,
    /// A record must have it.
    required: bool,
}

impl<'s> Reader<'s> {
    fn refuse(&mut self, at: &At, reason: impl Into<String>) {
        self.problems.push(SchemaProblem { pointer: at.pointer.clone(), reason: reason.into() });
    }

    /// The schema that is meant: references followed.
    fn resolve(&mut self, mut schema: &'s Value, at: &At) -> Option<&'s Map<String, Value>> {
        for _ in 0..DEPTH_MAX {
            let Some(object) = schema.as_object() else {
                self.refuse(at, "must be a schema in braces");
                return None;
            };
            let Some(reference) = object.get("$ref") else { return Some(object) };
            let place = reference.as_str().and_then(|text| text.strip_prefix('#'));
            let Some(place) = place else {
                self.refuse(at, format!("{reference} leads out of the document; copy what it names into `$defs`"));
                return None;
            };
            match self.root.pointer(place) {
                Some(found) => schema = found,
                None => {
                    self.refuse(at, format!("{reference} leads nowhere"));
                    return None;
                }
            }
        }
        self.refuse(at, "references lead to references without end");
        None
    }

    fn object(&mut self, schema: &'s Map<String, Value>, at: &At) {
        self.known_keywords(schema, at, &["type", "properties", "required", "additionalProperties"]);
        let closed = match schema.get("additionalProperties") {
            None | Some(Value::Bool(true)) => false,
            Some(Value::Bool(false)) => true,
            Some(_) => {
                self.refuse(at, "`additionalProperties` must be true or false");
                false
            }
        };
        let needs: Vec<&str> =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let properties = schema.get("properties").and_then(Value::as_object);
        let known = |name: &&str| properties.is_some_and(|properties| properties.contains_key(*name));
        if let Some(unknown) = needs.iter().find(|name| !known(name)) {
            self.refuse(at, format!("`required` names {unknown:?}, which is not among the properties"));
        }
        if at.path.is_empty() {
            self.parts.closed = closed;
        } else {
            let needs = if at.required { Vec::new() } else { needs.iter().map(|&name| name.to_owned()).collect() };
            let rule = ObjectRule { path: at.path.clone(), required: at.required, closed, needs, lifted: false };
            self.parts.objects.push(rule);
        }
        for (name, property) in properties.into_iter().flatten() {
            let mut path = at.path.clone();
            path.push(name.clone());
            let escaped = name.replace('~', "~0").replace('/', "~1");
            let required = at.required && needs.contains(&name.as_str());
            self.property(property, &At { pointer: format!("{}/properties/{escaped}", at.pointer), path, required });
        }
    }

    fn property(&mut self, schema: &'s Value, at: &At) {
        if at.path.len() > DEPTH_MAX || self.parts.columns.len() >= COLUMNS_MAX {
            let limits = format!("more than {DEPTH_MAX} levels or {COLUMNS_MAX} properties");
            return self.refuse(at, limits);
        }
        let always = Map::new();
        let schema = match schema {
            Value::Bool(true) => return self.column(&always, at, ColumnType::Json, Checks::default()),
            other => match self.resolve(other, at) {
                Some(schema) => schema,
                None => return,
            },
        };
        let Some((kind, nullable)) = self.kind_of(schema, at) else { return };
        if nullable && at.required {
            return self
                .refuse(at, "is required and may be null at once; take it out of `required`, or null out of `type`");
        }
        match kind {
            Some("object") if schema.contains_key("properties") => self.object(schema, at),
            Some("object") => {
                self.known_keywords(schema, at, &["type", "minProperties", "maxProperties", "additionalProperties"]);
                self.json(schema, at, JsonKind::Object, "minProperties", "maxProperties");
            }
            Some("array") => {
                self.known_keywords(schema, at, &["type", "minItems", "maxItems", "items"]);
                if schema
                    .get("items")
                    .is_some_and(|items| *items != Value::Bool(true) && *items != Value::Object(Map::new()))
                {
                    self.refuse(at, "the items of a list are kept as JSON and not looked into; leave `items` out");
                }
                self.json(schema, at, JsonKind::Array, "minItems", "maxItems");
            }
            Some("string") => self.string(schema, at),
            Some(number @ ("integer" | "number")) => self.number(schema, at, number),
            Some("boolean") => {
                self.known_keywords(schema, at, &["type", "enum", "const"]);
                let checks = Checks { values: values_of(schema), ..Checks::default() };
                self.column(schema, at, ColumnType::Boolean, checks);
            }
            Some(other) => self.refuse(at, format!("the type {other:?} is not one of JSON Schema")),
            None => {
                self.known_keywords(schema, at, &[]);
                self.column(schema, at, ColumnType::Json, Checks::default());
            }
        }
    }

    /// The one type besides null, and whether null is allowed.
    fn kind_of(&mut self, schema: &'s Map<String, Value>, at: &At) -> Option<(Option<&'s str>, bool)> {
        let kinds: Vec<&str> = match schema.get("type") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            Some(_) => {
                self.refuse(at, "`type` must be a text or a list of texts");
                return None;
            }
            None => {
                let mut kinds: Vec<&str> = values_of(schema).iter().map(kind_of_value).collect();
                kinds.sort_unstable();
                kinds.dedup();
                kinds
            }
        };
        let nullable = kinds.contains(&"null");
        match kinds.into_iter().filter(|kind| *kind != "null").collect::<Vec<_>>().as_slice() {
            [] if nullable => {
                self.refuse(at, "only null fits; leave the property out");
                None
            }
            [] => Some((None, true)),
            [one] => Some((Some(one), nullable)),
            ["integer", "number"] | ["number", "integer"] => Some((Some("number"), nullable)),
            _ => {
                self.refuse(at, "a column has one type besides null");
                None
            }
        }
    }

    fn string(&mut self, schema: &'s Map<String, Value>, at: &At) {
        self.known_keywords(schema, at, &["type", "enum", "const", "pattern", "minLength", "maxLength", "format"]);
        let mut checks = Checks {
            values: values_of(schema),
            pattern: schema.get("pattern").and_then(Value::as_str).map(str::to_owned),
            min_length: self.count(schema, at, "minLength"),
            max_length: self.count(schema, at, "maxLength"),
            ..Checks::default()
        };
        let pattern = match schema.get("format").and_then(Value::as_str) {
            None => None,
            Some(time @ ("date-time" | "date")) => {
                let column_type = if time == "date" { ColumnType::Date } else { ColumnType::Timestamptz };
                return self.column(schema, at, column_type, checks);
            }
            Some("uuid") => Some("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"),
            Some("email") => Some(r"^[^@\s]+@[^@\s]+$"),
            Some("uri") => Some("^[A-Za-z][A-Za-z0-9+.-]*:"),
            Some("ipv4") => Some(r"^((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\.|$)){4}$"),
            Some(other) => {
                let known = "date-time, date, uuid, email, uri, ipv4";
                return self
                    .refuse(at, format!("the format {other:?} is not checked; known are {known}; write a `pattern`"));
            }
        };
        match (pattern, &checks.pattern) {
            (Some(_), Some(_)) => self.refuse(at, "has both `format` and `pattern`; keep one of them"),
            (Some(pattern), None) => checks.pattern = Some(pattern.to_owned()),
            (None, _) => {}
        }
        self.column(schema, at, ColumnType::String, checks);
    }

    fn number(&mut self, schema: &'s Map<String, Value>, at: &At, kind: &str) {
        let bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
        self.known_keywords(schema, at, &[&["type", "enum", "const"][..], &bounds[..]].concat());
        let [minimum, maximum, exclusive_minimum, exclusive_maximum] = bounds.map(|name| match schema.get(name) {
            Some(Value::Number(number)) => Some(number.clone()),
            Some(_) => {
                self.refuse(at, format!("`{name}` must be a number"));
                None
            }
            None => None,
        });
        let values = values_of(schema);
        let checks = Checks { values, minimum, maximum, exclusive_minimum, exclusive_maximum, ..Checks::default() };
        let column_type = if kind == "integer" { ColumnType::Long } else { ColumnType::Double };
        self.column(schema, at, column_type, checks);
    }

    fn json(&mut self, schema: &'s Map<String, Value>, at: &At, kind: JsonKind, min: &str, max: &str) {
        let (min_items, max_items) = (self.count(schema, at, min), self.count(schema, at, max));
        self.column(
            schema,
            at,
            ColumnType::Json,
            Checks { kinds: vec![kind], min_items, max_items, ..Checks::default() },
        );
    }

    fn count(&mut self, schema: &Map<String, Value>, at: &At, name: &str) -> Option<u64> {
        let found = schema.get(name)?;
        if found.as_u64().is_none() {
            self.refuse(at, format!("`{name}` must be a whole number"));
        }
        found.as_u64()
    }

    fn column(&mut self, schema: &Map<String, Value>, at: &At, column_type: ColumnType, checks: Checks) {
        let name = at.path.join("_");
        let path: Vec<&str> = at.path.iter().map(String::as_str).collect();
        if self.parts.columns.iter().any(|column| column.name == name) {
            return self.refuse(at, format!("another property makes the column {name:?} too; rename one of them"));
        }
        let mut rules = ColumnRules { checks, ..ColumnRules::default() };
        if schema.get("format").is_some_and(|format| format == "date-time") {
            rules.times = TimeNotation { formats: vec![TimeFormat::Rfc3339], ..TimeNotation::default() };
        }
        if let Err(error) = super::check::ColumnCheck::compile(&rules.checks, column_type) {
            self.refuse(at, error.to_string());
        }
        if rules != ColumnRules::default() {
            self.parts.rules.insert(name.clone(), rules);
        }
        self.parts.columns.push(Column::at(&name, column_type, &path, at.required));
    }

    fn known_keywords(&mut self, schema: &Map<String, Value>, at: &At, known: &[&str]) {
        for name in schema.keys() {
            if !known.contains(&name.as_str()) && !ANNOTATIONS.contains(&name.as_str()) {
                self.refuse(at, format!("`{name}` has no counterpart in a contract here; take it out"));
            }
        }
    }
}

fn values_of(schema: &Map<String, Value>) -> Vec<Value> {
    let listed = schema.get("enum").and_then(Value::as_array).cloned().unwrap_or_default();
    listed.into_iter().chain(schema.get("const").cloned()).collect()
}

fn kind_of_value(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test is a panic")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_becomes_columns_with_their_checks() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": false,
            "$defs": { "money": { "type": "number", "minimum": 0 } },
            "required": ["id", "at"],
            "properties": {
                "id": { "type": "string", "format": "uuid" }, "at": { "type": "string", "format": "date-time" },
                "kind": { "enum": ["a", "b"] }, "n": { "type": ["integer", "null"], "maximum": 9 },
                "total": { "$ref": "#/$defs/money" }, "tags": { "type": "array", "maxItems": 3 },
                "who": { "type": "object", "required": ["name"], "properties": { "name": { "type": "string" } } },
            },
        });
        let parts = read_json_schema(&schema).unwrap();
        let columns: Vec<String> =
            parts.columns.iter().map(|c| format!("{} {} {}", c.name, c.column_type.name(), c.required)).collect();
        let expected = [
            "at timestamptz true",
            "id string true",
            "kind string false",
            "n long false",
            "tags json false",
            "total double false",
            "who_name string false",
        ];
        assert_eq!(columns, expected);
        assert!(parts.closed);
        let who = ObjectRule { path: vec!["who".into()], needs: vec!["name".into()], ..ObjectRule::default() };
        assert_eq!(parts.objects, [who]);
        assert_eq!(parts.rules["total"].checks.minimum.as_ref().unwrap().as_f64(), Some(0.0));
    }

    #[test]
    fn s45_nothing_is_fetched_followed_without_end_or_passed_over() {
        let of = |property: Value| {
            read_json_schema(&json!({ "properties": { "a": property }, "$defs": {
            "loop": { "$ref": "#/$defs/loop" },
            "deep": { "type": "object", "properties": { "x": { "$ref": "#/$defs/deep" } } } } }))
        };
        for (property, says) in [
            (json!({ "$ref": "http://169.254.169.254/x" }), "leads out of the document"),
            (json!({ "$ref": "file:///etc/passwd" }), "leads out of the document"),
            (json!({ "$ref": "#/$defs/none" }), "leads nowhere"),
            (json!({ "$ref": "#/$defs/loop" }), "without end"),
            (json!({ "$ref": "#/$defs/deep" }), "levels"),
            (json!({ "type": "string", "pattern": "(a{1000}){1000}" }), "cannot be used"),
            (json!({ "anyOf": [{ "type": "string" }] }), "`anyOf` has no counterpart"),
            (json!({ "type": ["string", "integer"] }), "one type besides null"),
            (json!({ "type": "array", "items": { "type": "string" } }), "not looked into"),
            (json!({ "type": "string", "format": "hostname" }), "not checked"),
            (json!(false), "must be a schema"),
        ] {
            let problems = of(property.clone()).unwrap_err();
            assert!(problems.iter().any(|p| p.to_string().contains(says)), "{property}: {problems:?}");
            assert!(problems[0].pointer.starts_with("#/properties/a"), "{problems:?}");
        }
        assert!(read_json_schema(&json!([])).is_err());
        assert!(read_json_schema(&json!({ "type": "string" })).is_err());
    }
}
