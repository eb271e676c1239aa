//! What values a column may hold: declared in [`Checks`], made ready once in [`ColumnCheck`], applied to each value.
//!
//! Cost is bounded by the contract, never by the value's content: patterns run in linear time and within a fixed size
//! (crate `regex`), enumerations are looked up in a set.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Number;

use super::is_default;
use super::types::ColumnType;
use crate::outcome::ReasonCode;

/// The most bytes of a pattern.
pub const PATTERN_BYTES_MAX: usize = 4096;
/// The most memory that a pattern may take when made ready.
const PATTERN_MEMORY_MAX: usize = 1 << 20;
/// The most values of an enumeration.
pub const VALUES_MAX: usize = 10_000;
/// The most characters of a found value in a message.
const SHOWN_CHARS: usize = 60;

/// The kinds of JSON values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JsonKind {
    /// `{…}`.
    Object,
    /// `[…]`.
    Array,
    /// Text.
    String,
    /// A number.
    Number,
    /// true or false.
    Boolean,
}

/// What a column's values must be, beyond their type. Null is not looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Checks {
    /// The only values, as JSON.
    #[serde(skip_serializing_if = "is_default")]
    pub values: Vec<serde_json::Value>,
    /// A regular expression that the text must hold.
    #[serde(skip_serializing_if = "is_default")]
    pub pattern: Option<String>,
    /// The least number.
    #[serde(skip_serializing_if = "is_default")]
    pub minimum: Option<Number>,
    /// The greatest number.
    #[serde(skip_serializing_if = "is_default")]
    pub maximum: Option<Number>,
    /// The number must be greater than this.
    #[serde(skip_serializing_if = "is_default")]
    pub exclusive_minimum: Option<Number>,
    /// The number must be less than this.
    #[serde(skip_serializing_if = "is_default")]
    pub exclusive_maximum: Option<Number>,
    /// The fewest characters of text, or bytes of a binary column.
    #[serde(skip_serializing_if = "is_default")]
    pub min_length: Option<u64>,
    /// The most characters of text, or bytes of a binary column.
    #[serde(skip_serializing_if = "is_default")]
    pub max_length: Option<u64>,
    /// The fewest items of a JSON list, or members of an object or map.
    #[serde(skip_serializing_if = "is_default")]
    pub min_items: Option<u64>,
    /// The most items of a JSON list, or members of an object or map.
    #[serde(skip_serializing_if = "is_default")]
    pub max_items: Option<u64>,
    /// The kinds of value that a JSON column takes; empty: any.
    #[serde(skip_serializing_if = "is_default")]
    pub kinds: Vec<JsonKind>,
}

/// Checks that do not fit their column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The check means nothing for the type.
    #[error("`{check}` does not go with the type {column_type}; it needs {right}")]
    Misplaced {
        /// The check.
        check: &'static str,
        /// The column's type.
        column_type: String,
        /// The types that it goes with.
        right: &'static str,
    },
    /// The pattern cannot be used.
    #[error("the pattern {pattern:?} cannot be used: {reason}")]
    Pattern {
        /// The pattern, cut.
        pattern: String,
        /// Why.
        reason: String,
    },
    /// An enumerated value is not of the column's type.
    #[error("the value {value} of `values` is not of the type {column_type}")]
    Value {
        /// The value.
        value: String,
        /// The column's type.
        column_type: String,
    },
    /// Too many values.
    #[error("`values` has {0} members; at most {VALUES_MAX} are taken")]
    TooMany(usize),
    /// No value can pass.
    #[error("no value can be {low} or more and {high} or less")]
    Empty {
        /// The lower bound.
        low: String,
        /// The upper bound.
        high: String,
    },
}

/// One value, as a check looks at it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalar<'a> {
    /// Of boolean columns.
    Boolean(bool),
    /// Of int and long columns, and of dates and times in their units.
    Long(i64),
    /// Of float and double columns.
    Double(f64),
    /// Of decimal columns: the unscaled value and its scale.
    Decimal(i128, u8),
    /// Of string columns.
    Text(&'a str),
    /// Of binary columns: how many bytes.
    Bytes(usize),
    /// Of JSON columns: the value's text.
    Json(&'a str),
    /// Of map columns: how many entries.
    Entries(usize),
}

/// A value that does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// The reason, for machines.
    pub code: ReasonCode,
    /// What is wrong and what would be right, to be put behind the field's name.
    pub message: String,
}

/// Checks made ready.
#[derive(Debug)]
pub struct ColumnCheck {
    texts: Option<BTreeSet<Box<str>>>,
    numbers: Vec<Number>,
    booleans: Vec<bool>,
    has_values: bool,
    shown_values: String,
    pattern: Option<regex::Regex>,
    checks: Checks,
}

impl Checks {
    /// Whether there is nothing to check.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl ColumnCheck {
    /// Makes the checks of a column ready.
    ///
    /// # Errors
    /// A check does not go with the type, or cannot be used.
    pub fn compile(checks: &Checks, column_type: ColumnType) -> Result<Self, CheckError> {
        check_places(checks, column_type)?;
        check_bounds(checks)?;
        let mut ready = Self {
            texts: None,
            numbers: Vec::new(),
            booleans: Vec::new(),
            has_values: !checks.values.is_empty(),
            shown_values: shown_values(&checks.values),
            pattern: checks.pattern.as_deref().map(compile_pattern).transpose()?,
            checks: checks.clone(),
        };
        ready.add_values(&checks.values, column_type)?;
        Ok(ready)
    }

    fn add_values(&mut self, values: &[serde_json::Value], column_type: ColumnType) -> Result<(), CheckError> {
        use serde_json::Value as V;
        if values.len() > VALUES_MAX {
            return Err(CheckError::TooMany(values.len()));
        }
        let mut texts = BTreeSet::new();
        for value in values {
            let wrong = || CheckError::Value { value: value.to_string(), column_type: column_type.name() };
            match (value, column_type) {
                (V::String(text), ColumnType::String) => drop(texts.insert(text.as_str().into())),
                (V::Number(number), _) if is_numeric(column_type) => self.numbers.push(number.clone()),
                (V::Bool(value), ColumnType::Boolean) => self.booleans.push(*value),
                (V::Null, _) => {}
                _ => return Err(wrong()),
            }
        }
        self.texts = (!texts.is_empty()).then_some(texts);
        Ok(())
    }

    /// Looks at one value.
    ///
    /// # Errors
    /// It does not pass; the first check that says so.
    pub fn check(&self, value: Scalar<'_>) -> Result<(), Breach> {
        match value {
            Scalar::Boolean(found) => self.among(|s| s.booleans.contains(&found), || found.to_string()),
            Scalar::Text(text) => {
                self.length(text.len(), || text.chars().count(), "characters")?;
                self.among(|s| s.texts.as_ref().is_some_and(|t| t.contains(text)), || shown(text))?;
                self.matches(text)
            }
            Scalar::Bytes(bytes) => self.length(bytes, || bytes, "bytes"),
            Scalar::Entries(entries) => self.items(entries),
            Scalar::Json(raw) => self.json(raw),
            number @ (Scalar::Long(_) | Scalar::Double(_) | Scalar::Decimal(..)) => self.number(number),
        }
    }

    fn among(&self, is_in: impl FnOnce(&Self) -> bool, found: impl FnOnce() -> String) -> Result<(), Breach> {
        if !self.has_values || is_in(self) {
            return Ok(());
        }
        let message = format!("must be one of {}; found {}", self.shown_values, found());
        Err(Breach { code: ReasonCode::NotAllowed, message })
    }

    fn matches(&self, text: &str) -> Result<(), Breach> {
        match &self.pattern {
            Some(pattern) if !pattern.is_match(text) => {
                let message = format!("must match the pattern {}; found {}", shown(pattern.as_str()), shown(text));
                Err(Breach { code: ReasonCode::PatternMismatch, message })
            }
            _ => Ok(()),
        }
    }

    /// `bytes` is at least the count, so that most texts need not be counted.
    fn length(&self, bytes: usize, count: impl Fn() -> usize, unit: &str) -> Result<(), Breach> {
        let (min, max) = (self.checks.min_length, self.checks.max_length);
        let breach = |right: String| {
            let message = format!("must have {right} {unit}; found {}", count());
            Err(Breach { code: ReasonCode::WrongLength, message })
        };
        if let Some(max) = max
            && bytes as u64 > max
            && count() as u64 > max
        {
            return breach(format!("at most {max}"));
        }
        match min {
            Some(min) if (bytes as u64) < min || (count() as u64) < min => breach(format!("at least {min}")),
            _ => Ok(()),
        }
    }

    fn items(&self, found: usize) -> Result<(), Breach> {
        let breach = |right: String| {
            Err(Breach { code: ReasonCode::WrongLength, message: format!("must have {right} items; found {found}") })
        };
        match (self.checks.min_items, self.checks.max_items) {
            (Some(min), _) if (found as u64) < min => breach(format!("at least {min}")),
            (_, Some(max)) if found as u64 > max => breach(format!("at most {max}")),
            _ => Ok(()),
        }
    }

    fn json(&self, raw: &str) -> Result<(), Breach> {
        let kind = kind_of(raw);
        if !self.checks.kinds.is_empty() && kind.is_none_or(|kind| !self.checks.kinds.contains(&kind)) {
            let right: Vec<String> = self.checks.kinds.iter().map(|kind| format!("{kind:?}").to_lowercase()).collect();
            let message = format!("must be of the kind {}; found {}", right.join(" or "), shown(raw));
            return Err(Breach { code: ReasonCode::WrongType, message });
        }
        if self.checks.min_items.is_some() || self.checks.max_items.is_some() {
            return match kind {
                Some(JsonKind::Array | JsonKind::Object) => self.items(count_items(raw)),
                _ => Ok(()),
            };
        }
        Ok(())
    }

    fn number(&self, found: Scalar<'_>) -> Result<(), Breach> {
        let text = || match found {
            Scalar::Long(value) => value.to_string(),
            Scalar::Double(value) => value.to_string(),
            Scalar::Decimal(value, scale) => format!("{value}e-{scale}"),
            _ => String::new(),
        };
        let bounds = [
            (&self.checks.minimum, "at least", [Ordering::Greater, Ordering::Equal]),
            (&self.checks.maximum, "at most", [Ordering::Less, Ordering::Equal]),
            (&self.checks.exclusive_minimum, "greater than", [Ordering::Greater; 2]),
            (&self.checks.exclusive_maximum, "less than", [Ordering::Less; 2]),
        ];
        for (bound, words, right) in bounds {
            let Some(bound) = bound else { continue };
            if compare(found, bound).is_none_or(|order| !right.contains(&order)) {
                let message = format!("must be {words} {bound}; found {}", text());
                return Err(Breach { code: ReasonCode::OutOfRange, message });
            }
        }
        self.among(|s| s.numbers.iter().any(|n| compare(found, n) == Some(Ordering::Equal)), text)
    }
}

/// Compares exactly where both are whole, else as floating point.
#[allow(clippy::cast_precision_loss, reason = "a bound with a fraction is a floating point number itself")]
fn compare(found: Scalar<'_>, bound: &Number) -> Option<Ordering> {
    let whole = bound.as_i64().map(i128::from).or_else(|| bound.as_u64().map(i128::from));
    match (found, whole) {
        (Scalar::Long(value), Some(bound)) => Some(i128::from(value).cmp(&bound)),
        (Scalar::Long(value), None) => (value as f64).partial_cmp(&bound.as_f64()?),
        (Scalar::Double(value), _) => value.partial_cmp(&bound.as_f64()?),
        (Scalar::Decimal(value, scale), Some(bound)) => {
            let scaled = 10_i128.checked_pow(u32::from(scale)).and_then(|p| bound.checked_mul(p));
            Some(scaled.map_or_else(|| 0.cmp(&bound.signum()), |bound| value.cmp(&bound)))
        }
        (Scalar::Decimal(value, scale), None) => {
            (value as f64 / 10_f64.powi(scale.into())).partial_cmp(&bound.as_f64()?)
        }
        _ => None,
    }
}

fn compile_pattern(pattern: &str) -> Result<regex::Regex, CheckError> {
    let wrong = |reason: String| CheckError::Pattern { pattern: shown(pattern), reason };
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(wrong(format!("it has {} bytes; at most {PATTERN_BYTES_MAX} are taken", pattern.len())));
    }
    regex::RegexBuilder::new(pattern)
        .size_limit(PATTERN_MEMORY_MAX)
        .dfa_size_limit(PATTERN_MEMORY_MAX)
        .nest_limit(50)
        .build()
        .map_err(|error| wrong(error.to_string().lines().last().unwrap_or_default().trim().to_owned()))
}

fn is_numeric(column_type: ColumnType) -> bool {
    use ColumnType as T;
    matches!(column_type, T::Int | T::Long | T::Float | T::Double | T::Decimal { .. })
}

fn check_places(checks: &Checks, column_type: ColumnType) -> Result<(), CheckError> {
    use ColumnType as T;
    let number = is_numeric(column_type);
    let (text, json) = (column_type == T::String, column_type == T::Json);
    let ranged = |bound: &Option<Number>| bound.is_some() && !number;
    let right = "int, long, float, double or decimal";
    let table = [
        ("minimum", ranged(&checks.minimum), right),
        ("maximum", ranged(&checks.maximum), right),
        ("exclusive_minimum", ranged(&checks.exclusive_minimum), right),
        ("exclusive_maximum", ranged(&checks.exclusive_maximum), right),
        ("pattern", checks.pattern.is_some() && !text, "string"),
        ("min_length", checks.min_length.is_some() && !(text || column_type == T::Binary), "string or binary"),
        ("max_length", checks.max_length.is_some() && !(text || column_type == T::Binary), "string or binary"),
        ("min_items", checks.min_items.is_some() && !(json || column_type == T::StringMap), "json or map"),
        ("max_items", checks.max_items.is_some() && !(json || column_type == T::StringMap), "json or map"),
        ("kinds", !checks.kinds.is_empty() && !json, "json"),
        (
            "values",
            !(checks.values.is_empty() || text || number || column_type == T::Boolean),
            "string, boolean or a number",
        ),
    ];
    match table.into_iter().find(|(_, wrong, _)| *wrong) {
        Some((check, _, right)) => Err(CheckError::Misplaced { check, column_type: column_type.name(), right }),
        None => Ok(()),
    }
}

fn check_bounds(checks: &Checks) -> Result<(), CheckError> {
    let empty = |low: String, high: String| Err(CheckError::Empty { low, high });
    if let (Some(low), Some(high)) = (&checks.minimum, &checks.maximum)
        && low.as_f64() > high.as_f64()
    {
        return empty(low.to_string(), high.to_string());
    }
    for (low, high) in [(checks.min_length, checks.max_length), (checks.min_items, checks.max_items)] {
        if let (Some(low), Some(high)) = (low, high)
            && low > high
        {
            return empty(low.to_string(), high.to_string());
        }
    }
    Ok(())
}

fn kind_of(raw: &str) -> Option<JsonKind> {
    Some(match raw.as_bytes().first()? {
        b'{' => JsonKind::Object,
        b'[' => JsonKind::Array,
        b'"' => JsonKind::String,
        b't' | b'f' => JsonKind::Boolean,
        b'-' | b'0'..=b'9' => JsonKind::Number,
        _ => return None,
    })
}

/// How many items or members the outermost list or object has. `raw` is JSON.
fn count_items(raw: &str) -> usize {
    let (mut depth, mut in_text, mut escaped, mut commas, mut any) = (0_usize, false, false, 0, false);
    for byte in raw.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 1 => commas += 1,
            _ => {}
        }
        any |= depth > 1 || (depth == 1 && !byte.is_ascii_whitespace() && !matches!(byte, b'{' | b'[' | b']' | b'}'));
    }
    if any { commas + 1 } else { 0 }
}

fn shown_values(values: &[serde_json::Value]) -> String {
    let first: Vec<String> = values.iter().take(10).map(ToString::to_string).collect();
    let more = values.len().saturating_sub(first.len());
    if more == 0 { first.join(", ") } else { format!("{} and {more} more", first.join(", ")) }
}

/// The found text, quoted and cut so that a message stays short.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_CHARS).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{more}")
}

#[cfg(test)]
#[path = "check_tests.rs"]
#[allow(clippy::unwrap_used, reason = "a failed test is a panic")]
mod tests;
