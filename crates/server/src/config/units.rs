//! Durations and sizes as people write them: `"5s"`, `"64MiB"`.
//!
//! A unit is always named; a bare number is taken for bytes where a size is wanted and refused where a duration is,
//! because half of all readers would take it for the other unit.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The schema keyword that names the notation of a setting to the checker.
pub(crate) const NOTATION: &str = "x-notation";

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration; write a number with a unit: \"500ms\", \"5s\", \"10m\", \"2h\", \"7d\"")]
pub(crate) struct PeriodError(String);

/// A length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Period(Duration);

/// Name and length in milliseconds of each unit, longest first, so that a duration is printed in the largest that fits.
const PERIOD_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Period {
    pub(crate) const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    pub(crate) const fn from_secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }

    pub(crate) fn get(self) -> Duration {
        self.0
    }

    pub(crate) fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// Reads `5s`, `1.5h`, `250ms`.
    pub(crate) fn parse(text: &str) -> Result<Self, PeriodError> {
        let wrong = || PeriodError(text.chars().take(40).collect());
        let (number, unit) = split_unit(text).ok_or_else(wrong)?;
        let (_, unit_ms) = PERIOD_UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        scaled(number, unit_ms).map(Self::from_millis).ok_or_else(wrong)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.as_millis();
        let (name, unit) =
            PERIOD_UNITS.into_iter().find(|(_, unit)| ms >= *unit && ms.is_multiple_of(*unit)).unwrap_or(("s", 1_000));
        write!(f, "{}{name}", ms / unit)
    }
}

/// A text or number that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size; write a number with a unit: \"512KiB\", \"64MiB\", \"8GiB\", or a whole number of bytes")]
pub(crate) struct SizeError(String);

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(u64);

/// Binary units first: they are what is printed; the decimal ones are read.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl Size {
    pub(crate) const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    pub(crate) const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    pub(crate) const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    pub(crate) fn bytes(self) -> u64 {
        self.0
    }

    /// As a `usize`, which on the platforms we build for holds any size.
    pub(crate) fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Reads `64MiB`, `1.5GiB`, `4096`.
    pub(crate) fn parse(text: &str) -> Result<Self, SizeError> {
        let wrong = || SizeError(text.chars().take(40).collect());
        if let Ok(bytes) = text.parse::<u64>() {
            return Ok(Self(bytes));
        }
        let (number, unit) = split_unit(text).ok_or_else(wrong)?;
        let (_, unit_bytes) =
            SIZE_UNITS.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?;
        scaled(number, unit_bytes).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SIZE_UNITS.into_iter().take(4).find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        let (name, unit) = binary.unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

/// Splits `12.5 MiB` into its number and its unit.
fn split_unit(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at_checked(end)?;
    Some((number, unit.trim_start()))
}

/// `number` (digits with at most one point) times `unit`, if the result is whole enough and fits.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit);
    }
    let (whole, fraction) = number.split_once('.')?;
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let parts: u64 = fraction.parse().ok()?;
    let divisor = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let rest = u128::from(parts) * u128::from(unit) / u128::from(divisor);
    whole.checked_mul(unit)?.checked_add(u64::try_from(rest).ok()?)
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)? ?(ms|s|m|h|d)$", "x-notation": "duration" })
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(d)? {
            Written::Bytes(bytes) => Ok(Self(bytes)),
            Written::Text(text) => Self::parse(&text).map_err(serde::de::Error::custom),
        }
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "pattern": "^[0-9]+(\\.[0-9]+)? ?([KMGT]i?)?B?$",
            "minimum": 0,
            "x-notation": "size"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_as_written_and_print_as_read() {
        for (text, ms) in
            [("5s", 5_000), ("250ms", 250), ("1.5h", 5_400_000), ("2m", 120_000), ("7d", 604_800_000), ("0s", 0)]
        {
            assert_eq!(Period::parse(text).unwrap().as_millis(), ms, "{text}");
        }
        for text in ["5s", "250ms", "90m", "2h", "7d", "0s"] {
            assert_eq!(Period::parse(text).unwrap().to_string(), text);
        }
        for (text, bytes) in
            [("64MiB", 64 << 20), ("1.5GiB", 3 << 29), ("10 kb", 10_000), ("4096", 4096), ("1TB", 1_000_000_000_000)]
        {
            assert_eq!(Size::parse(text).unwrap().bytes(), bytes, "{text}");
        }
        for text in ["64MiB", "8GiB", "1KiB", "0B"] {
            assert_eq!(Size::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_has_no_unit_or_a_strange_one_is_refused_with_an_example() {
        for text in ["5", "5 parsecs", "", "s", "-1s", "1.s", "1.2.3s", "99999999999999999999d"] {
            assert!(Period::parse(text).unwrap_err().to_string().contains("\"5s\""), "{text}");
        }
        for text in ["", "MiB", "-1MiB", "5 parsecs", "1.MiB", "99999999999TiB"] {
            assert!(Size::parse(text).unwrap_err().to_string().contains("64MiB"), "{text}");
        }
    }
}
