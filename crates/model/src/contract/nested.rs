//! Structs, lists and maps: types made of types, written as Spark and Trino's `SHOW` do:
//! `struct<name: string, tags: list<string>>`, `map<string, long>`.
//!
//! A type is kept once for the whole process, so that a column's type stays small to copy; how many there are is bounded.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use super::types::{ColumnType, TypeError};

/// The deepest nesting.
const DEPTH_MAX: usize = 16;
/// The most fields of a struct.
const FIELDS_MAX: usize = 2000;
/// The most different types; a process that has met so many takes no further ones.
const TYPES_MAX: usize = 20_000;

/// A type made of types.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Nested {
    /// Named fields, each of which may be null.
    Struct(Vec<(String, ColumnType)>),
    /// Values of one type, each of which may be null.
    List(ColumnType),
    /// Keys, which are never null, and values.
    Map(ColumnType, ColumnType),
}

impl Nested {
    /// The type as a column's; none where it is nested too deeply, has too many fields or two of one name, or the process
    /// has met too many types.
    #[must_use]
    pub fn column_type(self) -> Option<ColumnType> {
        static KNOWN: Mutex<Option<HashSet<&'static Nested>>> = Mutex::new(None);
        if self.depth() > DEPTH_MAX || !self.has_sound_names() {
            return None;
        }
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        if let Some(found) = known.get(&self) {
            return Some(ColumnType::Nested(found));
        }
        if known.len() >= TYPES_MAX {
            return None;
        }
        let kept: &'static Nested = Box::leak(Box::new(self));
        known.insert(kept);
        Some(ColumnType::Nested(kept))
    }

    fn depth(&self) -> usize {
        let of = |column_type: &ColumnType| if let ColumnType::Nested(inner) = column_type { inner.depth() } else { 0 };
        let inner = match self {
            Self::Struct(fields) => fields.iter().map(|(_, field)| of(field)).max().unwrap_or(0),
            Self::List(element) => of(element),
            Self::Map(key, value) => of(key).max(of(value)),
        };
        inner + 1
    }

    fn has_sound_names(&self) -> bool {
        let Self::Struct(fields) = self else { return true };
        let mut names = HashSet::new();
        let sound = |name: &str| !name.is_empty() && name.len() <= 128 && !name.chars().any(char::is_control);
        (1..=FIELDS_MAX).contains(&fields.len())
            && fields.iter().all(|(name, _)| sound(name) && names.insert(name.to_lowercase()))
    }

    /// The type's name, as [`ColumnType::parse`] reads it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::List(element) => format!("list<{}>", element.name()),
            Self::Map(key, value) => format!("map<{}, {}>", key.name(), value.name()),
            Self::Struct(fields) => {
                let mut text = "struct<".to_owned();
                for (place, (name, field)) in fields.iter().enumerate() {
                    let comma = if place == 0 { "" } else { ", " };
                    let plain = name.chars().all(|c| c.is_alphanumeric() || c == '_');
                    let name = if plain { name.clone() } else { format!("`{}`", name.replace('`', "``")) };
                    let _ = write!(text, "{comma}{name}: {}", field.name());
                }
                text + ">"
            }
        }
    }
}

/// Reads a nested type's name.
pub(super) fn parse(text: &str) -> Result<ColumnType, TypeError> {
    let wrong = || TypeError(text.to_owned());
    let mut reader = Reader { rest: text, depth: 0 };
    let found = reader.column_type().ok_or_else(wrong)?;
    if reader.rest.trim().is_empty() { Ok(found) } else { Err(wrong()) }
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl Reader<'_> {
    fn take(&mut self, word: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(word);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn column_type(&mut self) -> Option<ColumnType> {
        self.depth += 1;
        if self.depth > DEPTH_MAX + 1 {
            return None;
        }
        let found = if self.take("list<") {
            Nested::List(self.column_type()?).column_type()
        } else if self.take("map<") {
            let key = self.column_type()?;
            let value = self.take(",").then(|| self.column_type())??;
            Nested::Map(key, value).column_type()
        } else if self.take("struct<") {
            let mut fields = Vec::new();
            loop {
                let name = self.field_name()?;
                let field = self.take(":").then(|| self.column_type())??;
                fields.push((name, field));
                if !self.take(",") {
                    break;
                }
            }
            Nested::Struct(fields).column_type()
        } else {
            self.depth -= 1;
            return self.plain();
        };
        self.depth -= 1;
        found.filter(|_| self.take(">"))
    }

    fn plain(&mut self) -> Option<ColumnType> {
        self.rest = self.rest.trim_start();
        let word = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let in_parentheses = self.rest.get(word..)?.starts_with('(');
        let end = if in_parentheses { self.rest.find(')')? + 1 } else { word };
        let (name, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        ColumnType::parse(name).ok()
    }

    fn field_name(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        if let Some(quoted) = self.rest.strip_prefix('`') {
            let (mut name, mut rest) = (String::new(), quoted);
            loop {
                let (before, after) = rest.split_once('`')?;
                name.push_str(before);
                rest = after;
                match rest.strip_prefix('`') {
                    Some(further) => (name, rest) = (name + "`", further),
                    None => break,
                }
            }
            self.rest = rest;
            return Some(name);
        }
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || c == '_'))?;
        let (name, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        Some(name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_types_read_back_as_they_are_written() -> Result<(), TypeError> {
        for text in [
            "list<long>",
            "map<string, decimal(10,2)>",
            "struct<a: int, b: list<struct<`x: y`: date, `ti``ck`: map<int, string>>>>",
        ] {
            assert_eq!(ColumnType::parse(text)?.name(), text);
            assert_eq!(ColumnType::parse(text)?, ColumnType::parse(text)?);
        }
        let deep = format!("{}int{}", "list<".repeat(17), ">".repeat(17));
        for bad in [
            "list<",
            "list<>",
            "list<int",
            "list<int>>",
            "struct<>",
            "struct<a int>",
            "map<int>",
            "struct<a: int, A: int>",
            &deep,
        ] {
            assert!(ColumnType::parse(bad).is_err(), "{bad:?} was taken");
        }
        Ok(())
    }
}
