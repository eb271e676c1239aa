//! The layers that settings come from (file, environment, flags), laid over one another, each value with its origin.

use std::collections::BTreeMap;

use jsonc_parser::ast;
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::{Map, Value};

use super::problem::{Origin, Problem};
use super::validate::{accepts, schema_at};

/// What the environment's names begin with; `__` goes one level down: `LAKEGATE__INGESTION__PORT`.
const ENVIRONMENT_PREFIX: &str = "LAKEGATE__";

/// The largest configuration file.
const FILE_BYTES_MAX: usize = 16 << 20;

/// Values and where each comes from, by path.
#[derive(Debug)]
pub(crate) struct Layers {
    pub(crate) tree: Value,
    pub(crate) origins: BTreeMap<String, Origin>,
    pub(crate) problems: Vec<Problem>,
}

impl Layers {
    pub(crate) fn new() -> Self {
        Self { tree: Value::Object(Map::new()), origins: BTreeMap::new(), problems: Vec::new() }
    }

    /// Lays a file over what is there. `file` is its name, for messages.
    pub(crate) fn add_file(&mut self, file: &str, text: &str) {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.len() > FILE_BYTES_MAX {
            let message = format!("the file has {} bytes; a configuration has at most {FILE_BYTES_MAX}", text.len());
            self.problems.push(Problem::at("", message, Origin::File { file: file.to_owned(), line: 1, column: 1 }));
            return;
        }
        let options = ParseOptions {
            allow_comments: true,
            allow_loose_object_property_names: false,
            allow_trailing_commas: true,
        };
        let reader = FileReader { file, lines: LineIndex::new(text) };
        match parse_to_ast(text, &CollectOptions::default(), &options) {
            Ok(parsed) => match parsed.value {
                Some(value @ ast::Value::Object(_)) => {
                    let mut tree = reader.read(&value, "", self);
                    self.tree = tree.take();
                }
                Some(other) => {
                    let origin = reader.origin(other.range().start);
                    self.problems.push(Problem::at(
                        "",
                        "a configuration is one JSON object: { \"ingestion\": { … } }",
                        origin,
                    ));
                }
                None => {}
            },
            Err(e) => {
                let origin = reader.origin(e.range().start);
                let message = format!("not JSON: {}", lower_first(&e.kind().to_string()));
                self.problems.push(Problem::at("", message, origin));
            }
        }
    }

    /// Lays the environment over what is there. A value is read as JSON where that fits the setting, else as text.
    pub(crate) fn add_environment(&mut self, variables: impl Iterator<Item = (String, String)>, schema: &Value) {
        let mut ours: Vec<(String, String)> =
            variables.filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX)).collect();
        ours.sort();
        for (name, text) in ours {
            let path: Vec<String> =
                name.trim_start_matches(ENVIRONMENT_PREFIX).split("__").map(str::to_ascii_lowercase).collect();
            let parsed = serde_json::from_str::<Value>(&text).ok();
            let value = match schema_at(schema, &path) {
                Some(found) => parsed.filter(|json| accepts(json, found)).unwrap_or(Value::String(text)),
                None => parsed.unwrap_or(Value::String(text)),
            };
            self.set(&path, value, &Origin::Environment(name));
        }
    }

    /// Sets one value, making the objects that lead to it.
    pub(crate) fn set(&mut self, path: &[String], value: Value, origin: &Origin) {
        let mut place = &mut self.tree;
        let mut text = String::new();
        for member in path {
            text = join(&text, member);
            self.origins.entry(text.clone()).or_insert_with(|| origin.clone());
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(members) = place else { return };
            place = members.entry(member.clone()).or_insert(Value::Null);
        }
        *place = value;
        let inside = |known: &str| known.starts_with(&format!("{text}.")) || known.starts_with(&format!("{text}["));
        self.origins.retain(|known, _| !inside(known));
        self.mark(&text, place_of(&self.tree, path), origin);
    }

    /// Notes the origin of a value and of all values inside it.
    fn mark(&mut self, path: &str, value: Option<Value>, origin: &Origin) {
        self.origins.insert(path.to_owned(), origin.clone());
        match value {
            Some(Value::Object(members)) => {
                for (name, member) in members {
                    self.mark(&join(path, &name), Some(member), origin);
                }
            }
            Some(Value::Array(items)) => {
                for (i, item) in items.into_iter().enumerate() {
                    self.mark(&format!("{path}[{i}]"), Some(item), origin);
                }
            }
            _ => {}
        }
    }

    /// Where the value at `path`, or the nearest thing around it, comes from.
    pub(crate) fn origin_near(&self, path: &str) -> Option<Origin> {
        let mut path = path;
        loop {
            if let Some(origin) = self.origins.get(path) {
                return Some(origin.clone());
            }
            let cut = path.rfind(['.', '['])?;
            path = path.get(..cut)?;
        }
    }

    /// Whether somebody set the value at exactly `path`.
    pub(crate) fn is_set(&self, path: &str) -> bool {
        self.origins.contains_key(path)
    }
}

fn place_of(tree: &Value, path: &[String]) -> Option<Value> {
    path.iter().try_fold(tree, |place, member| place.get(member)).cloned()
}

/// The path of a member.
pub(crate) fn join(path: &str, member: &str) -> String {
    if path.is_empty() { member.to_owned() } else { format!("{path}.{member}") }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_lowercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

/// Reads the parser's tree into values, noting where each stands.
struct FileReader<'a> {
    file: &'a str,
    lines: LineIndex<'a>,
}

impl FileReader<'_> {
    fn origin(&self, byte: usize) -> Origin {
        let (line, column) = self.lines.place(byte);
        Origin::File { file: self.file.to_owned(), line, column }
    }

    fn read(&self, value: &ast::Value<'_>, path: &str, layers: &mut Layers) -> Value {
        let origin = self.origin(value.range().start);
        match value {
            ast::Value::Object(object) => {
                layers.origins.insert(path.to_owned(), origin);
                let mut members = Map::new();
                for property in &object.properties {
                    let name = property.name.as_str();
                    let inner = join(path, name);
                    let origin = self.origin(property.range.start);
                    if members.contains_key(name) {
                        layers.problems.push(Problem::at(inner, "is set twice; remove one of the two", origin));
                        continue;
                    }
                    let read = self.read(&property.value, &inner, layers);
                    layers.origins.insert(inner, origin);
                    members.insert(name.to_owned(), read);
                }
                return Value::Object(members);
            }
            ast::Value::Array(array) => {
                let read = |(i, item)| self.read(item, &format!("{path}[{i}]"), layers);
                let items = array.elements.iter().enumerate().map(read).collect();
                layers.origins.insert(path.to_owned(), origin);
                return Value::Array(items);
            }
            ast::Value::NumberLit(number) => {
                layers.origins.insert(path.to_owned(), origin.clone());
                if let Ok(number) = number.value.parse() {
                    return Value::Number(number);
                }
                layers.problems.push(Problem::at(path, format!("{:?} is not a number", number.value), origin));
            }
            ast::Value::StringLit(text) => {
                layers.origins.insert(path.to_owned(), origin);
                return Value::String(text.value.to_string());
            }
            ast::Value::BooleanLit(flag) => {
                layers.origins.insert(path.to_owned(), origin);
                return Value::Bool(flag.value);
            }
            ast::Value::NullKeyword(_) => {
                layers.origins.insert(path.to_owned(), origin);
            }
        }
        Value::Null
    }
}

/// Finds line and column of a byte.
struct LineIndex<'a> {
    text: &'a str,
}

impl<'a> LineIndex<'a> {
    fn new(text: &'a str) -> Self {
        Self { text }
    }

    fn place(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        (line, column)
    }
}
