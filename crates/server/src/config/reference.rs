//! The reference of the settings, made from their JSON Schema.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::layers::join;
use super::schema;
use super::units::NOTATION;
use super::validate::{choices_of, types_of};

/// The sections in reading order.
const SECTIONS: [&str; 16] = [
    "node",
    "ingestion",
    "log",
    "storage",
    "catalog",
    "maintenance",
    "auth",
    "tls",
    "streams",
    "duplicates",
    "limits",
    "telemetry",
    "imports",
    "kafka",
    "sinks",
    "routes",
];

const INTRODUCTION: &str = "\
# Configuration reference

Generated from the settings' own definitions; `UPDATE_GENERATED=1 cargo test -p lakegate-server drift` writes it anew.

One JSON file, comments and trailing commas allowed: `lakegate serve --config lakegate.json`. Without a file all the
defaults hold. Durations are written `\"500ms\"`, `\"5s\"`, `\"10m\"`, `\"2h\"`, `\"7d\"`; sizes `\"64MiB\"`, `\"8GiB\"`, or a
whole number of bytes.

Every setting can be overridden by an environment variable: `LAKEGATE__` and the path in capitals, `__` between the
levels, as in `LAKEGATE__INGESTION__PORT=9090`; lists and objects as JSON. A flag of the command line goes before the
environment, the environment before the file, the file before the default.

`lakegate config check FILE` exits with 0, or with 78 after naming everything that is wrong by line and column.
`lakegate config show --effective --origin` prints every setting with where it comes from, secrets masked.
For completion in an editor, point the file at the schema: `\"$schema\": \"config.schema.json\"`.
";

/// The reference as Markdown.
pub(crate) fn reference_markdown() -> String {
    let schema = schema();
    let mut text = INTRODUCTION.to_owned();
    let empty = Map::new();
    let sections = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let others = sections.keys().map(String::as_str).filter(|name| !SECTIONS.contains(name) && !name.starts_with('$'));
    for name in SECTIONS.into_iter().chain(others) {
        if let Some(section) = sections.get(name) {
            write_section(&mut text, name, section);
        }
    }
    text
}

fn write_section(text: &mut String, path: &str, section: &Value) {
    let _ = write!(text, "\n## `{path}`\n\n{}\n", describe(section));
    let mut rows = Vec::new();
    if section.get("properties").is_some() {
        collect_rows(section, path, &mut rows);
    } else if let Some(inner) = section.get("additionalProperties").filter(|a| a.is_object()) {
        let _ = writeln!(text, "\nIn the table, `NAME` stands for the name that is given.");
        collect_rows(inner, &format!("{path}.NAME"), &mut rows);
    } else if let Some(items) = section.get("items") {
        collect_rows(items, &format!("{path}[]"), &mut rows);
    }
    if rows.is_empty() {
        return;
    }
    text.push_str("\n| setting | value | default | |\n|---|---|---|---|\n");
    for row in rows {
        text.push_str(&row);
    }
}

fn collect_rows(section: &Value, path: &str, rows: &mut Vec<String>) {
    let required: Vec<&str> =
        section.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let empty = Map::new();
    for (name, setting) in section.get("properties").and_then(Value::as_object).unwrap_or(&empty) {
        let inner = join(path, name);
        if setting.get("properties").is_some() {
            collect_rows(setting, &inner, rows);
            continue;
        }
        let items = setting.get("items").filter(|i| i.get("properties").is_some());
        let default = if required.contains(&name.as_str()) { "required".to_owned() } else { default_of(setting) };
        rows.push(format!(
            "| `{inner}` | {} | {default} | {} |\n",
            kind(setting),
            describe(setting).replace('|', "\\|")
        ));
        if let Some(items) = items {
            collect_rows(items, &format!("{inner}[]"), rows);
        }
    }
}

/// The description in one line; the meanings of choices follow it.
fn describe(setting: &Value) -> String {
    let mut text = one_line(setting);
    let variants = setting.get("oneOf").and_then(Value::as_array).into_iter().flatten();
    for variant in variants {
        let Some(choice) = variant.get("const").and_then(Value::as_str) else { continue };
        let _ = write!(text, " `{choice}`: {}", one_line(variant));
    }
    text
}

fn one_line(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn kind(setting: &Value) -> String {
    if let Some(choices) = choices_of(setting) {
        return choices.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ");
    }
    if let Some(notation) = setting.get(NOTATION).and_then(Value::as_str) {
        return notation.to_owned();
    }
    let range = match (setting.get("minimum"), setting.get("maximum")) {
        (Some(min), Some(max)) => format!(" {min} to {max}"),
        (Some(min), None) => format!(" from {min}"),
        _ => String::new(),
    };
    let secret = if setting.get("format").and_then(Value::as_str) == Some("password") { ", secret" } else { "" };
    let name = match types_of(setting).first().copied() {
        Some("string") => "text",
        Some("integer") => "whole number",
        Some("number") => "number",
        Some("boolean") => "true or false",
        Some("array") => "list",
        Some("object") => "object",
        _ => "any",
    };
    format!("{name}{range}{secret}")
}

fn default_of(setting: &Value) -> String {
    match setting.get("default") {
        None | Some(Value::Null) => "unset".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "empty".to_owned(),
        Some(Value::Object(members)) if members.is_empty() => "empty".to_owned(),
        Some(Value::Array(items)) if items.is_empty() => "empty".to_owned(),
        Some(value) => format!("`{value}`"),
    }
}
