//! Compares values with the JSON Schema and finds every place where they differ, not only the first.
//!
//! Knows the part of JSON Schema that our own settings use, and the keyword `x-notation`, which names a text's form.

use lakegate_model::{ColumnType, TimeFormat};
use serde_json::Value;

use super::layers::join;
use super::notation;
use super::problem::Problem;
use super::units::{NOTATION, Period, Size};

/// Finds everything in `value` that the schema does not allow.
pub(crate) fn validate(value: &Value, schema: &Value, path: &str, problems: &mut Vec<Problem>) {
    let secret = schema.get("writeOnly").is_some();
    let found = || if secret { kind_of(value).to_owned() } else { shorten(value) };
    if let Some(choices) = choices_of(schema) {
        if !value.as_str().is_some_and(|text| choices.contains(&text)) {
            problems.push(Problem::new(path, wrong_choice(value, &found(), &choices)));
        }
        return;
    }
    let types = types_of(schema);
    if !types.is_empty() && !types.iter().any(|t| has_type(value, t)) {
        problems.push(Problem::new(path, format!("found {}, expected {}", found(), expected(schema, &types))));
        return;
    }
    if let Some(message) = misnotation(value, schema) {
        problems.push(Problem::new(path, message));
        return;
    }
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member_schema(schema, name) {
                    Member::Known(inner) => validate(member, inner, &join(path, name), problems),
                    Member::Free => {}
                    Member::Unknown => problems.push(Problem::new(join(path, name), unknown(name, schema))),
                }
            }
            for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
            {
                if !members.contains_key(name) {
                    problems.push(Problem::new(path, format!("`{name}` is missing")));
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.get("items") {
                for (i, item) in items.iter().enumerate() {
                    validate(item, inner, &format!("{path}[{i}]"), problems);
                }
            }
        }
        Value::Number(number) => {
            if let Some(message) = out_of_range(number, schema) {
                problems.push(Problem::new(path, message));
            }
        }
        _ => {}
    }
}

/// Whether the schema allows the value.
pub(crate) fn accepts(value: &Value, schema: &Value) -> bool {
    let mut problems = Vec::new();
    validate(value, schema, "", &mut problems);
    problems.is_empty()
}

/// The schema of the setting at `path`.
pub(crate) fn schema_at<'a>(schema: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(schema, |schema, name| match member_schema(schema, name) {
        Member::Known(inner) => Some(inner),
        Member::Free | Member::Unknown => None,
    })
}

enum Member<'a> {
    /// Has a schema.
    Known(&'a Value),
    /// May be anything.
    Free,
    /// May not be there.
    Unknown,
}

fn member_schema<'a>(schema: &'a Value, name: &str) -> Member<'a> {
    if let Some(inner) = schema.get("properties").and_then(|p| p.get(name)) {
        return Member::Known(inner);
    }
    match schema.get("additionalProperties") {
        Some(Value::Bool(false)) => Member::Unknown,
        Some(inner @ Value::Object(_)) => Member::Known(inner),
        _ => Member::Free,
    }
}

fn unknown(name: &str, schema: &Value) -> String {
    let known: Vec<&str> =
        schema.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(k, _)| k.as_str()).collect();
    match nearest(name, &known) {
        Some(near) => format!("unknown setting; did you mean `{near}`?"),
        None => format!("unknown setting; known here: {}", known.join(", ")),
    }
}

/// The name that was most likely meant.
fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let found = found.to_ascii_lowercase().replace('-', "_");
    let score = |name: &str| {
        if name.replace('_', "") == found.replace('_', "") { 1.0 } else { strsim::jaro_winkler(&found, name) }
    };
    let best = known.iter().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(best) >= 0.8).then_some(*best)
}

/// The texts that an enumeration allows.
pub(crate) fn choices_of(schema: &Value) -> Option<Vec<&str>> {
    if let Some(choices) = schema.get("enum").and_then(Value::as_array) {
        return Some(choices.iter().filter_map(Value::as_str).collect());
    }
    let variants = schema.get("oneOf").and_then(Value::as_array)?;
    let mut choices = Vec::new();
    for variant in variants {
        match (variant.get("const").and_then(Value::as_str), variant.get("enum").and_then(Value::as_array)) {
            (Some(one), _) => choices.push(one),
            (None, Some(several)) => choices.extend(several.iter().filter_map(Value::as_str)),
            (None, None) => return None,
        }
    }
    Some(choices)
}

fn wrong_choice(value: &Value, found: &str, choices: &[&str]) -> String {
    let near = value
        .as_str()
        .and_then(|text| nearest(text, choices))
        .map(|near| format!("; did you mean \"{near}\"?"))
        .unwrap_or_default();
    format!("found {found}, expected one of {}{near}", choices.join(", "))
}

pub(crate) fn types_of(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        _ => true,
    }
}

fn expected(schema: &Value, types: &[&str]) -> String {
    match schema.get(NOTATION).and_then(Value::as_str) {
        Some("duration") => return "a duration such as \"5s\" or \"10m\"".into(),
        Some("size") => return "a size such as \"64MiB\" or \"8GiB\"".into(),
        Some("partition") => return "a partition such as \"day(event_time)\" or \"identity region\"".into(),
        Some("sort") => return "a sort field such as \"event_time desc\"".into(),
        Some("time format") => return "a notation of times such as \"rfc3339\" or \"%d.%m.%Y\"".into(),
        Some("column type") => return "a column type such as \"long\" or \"decimal(10,2)\"".into(),
        Some("path") => return "a path such as \"customer.id\" or [\"customer\", \"id\"]".into(),
        _ => {}
    }
    let words: Vec<String> = types.iter().map(|t| type_words(t, schema)).collect();
    words.join(" or ")
}

fn type_words(name: &str, schema: &Value) -> String {
    let bounds = match (schema.get("minimum"), schema.get("maximum")) {
        (Some(min), Some(max)) => format!(" from {min} to {max}"),
        _ => String::new(),
    };
    match name {
        "object" => "an object { … }".into(),
        "array" => "a list [ … ]".into(),
        "string" => "a text in quotes".into(),
        "boolean" => "true or false".into(),
        "integer" => format!("a whole number{bounds}"),
        "number" => format!("a number{bounds}"),
        other => other.to_owned(),
    }
}

fn misnotation(value: &Value, schema: &Value) -> Option<String> {
    let kind = schema.get(NOTATION)?.as_str()?;
    let Some(text) = value.as_str() else {
        let empty = kind == "path" && value.as_array().is_some_and(Vec::is_empty);
        return empty.then(|| "an empty path; write \"customer.id\" or [\"customer\", \"id\"]".into());
    };
    match kind {
        "duration" => Period::parse(text).err().map(|e| e.to_string()),
        "size" => Size::parse(text).err().map(|e| e.to_string()),
        "partition" => notation::parse_partition(text).err().map(|e| e.to_string()),
        "sort" => notation::parse_sort(text).err().map(|e| e.to_string()),
        "column type" => ColumnType::parse(text).err().map(|e| e.to_string()),
        "time format" => TimeFormat::parse(text).err().map(|e| e.to_string()),
        "path" if text.split('.').any(str::is_empty) => Some(format!(
            "{text:?} is not a path; write \"customer.id\", or [\"a.b\", \"c\"] for a member whose name has a dot"
        )),
        _ => None,
    }
}

fn out_of_range(number: &serde_json::Number, schema: &Value) -> Option<String> {
    let found = number.as_f64()?;
    let min = schema.get("minimum").and_then(Value::as_f64);
    let max = schema.get("maximum").and_then(Value::as_f64);
    let fits = min.is_none_or(|min| found >= min) && max.is_none_or(|max| found <= max);
    if fits {
        return None;
    }
    Some(match (schema.get("minimum"), schema.get("maximum")) {
        (Some(min), Some(max)) => format!("found {number}, expected a number from {min} to {max}"),
        (Some(min), None) => format!("found {number}, expected at least {min}"),
        (_, max) => format!("found {number}, expected at most {}", max.cloned().unwrap_or_default()),
    })
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value as JSON, cut where it would fill a line; lists and objects by their kind.
fn shorten(value: &Value) -> String {
    if value.is_array() || value.is_object() {
        return kind_of(value).to_owned();
    }
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain(['…']).collect() }
}
