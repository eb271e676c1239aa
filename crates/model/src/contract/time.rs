//! How times are written, and how far from now they may lie.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::is_default;

/// A time's notation in the payload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum TimeFormat {
    /// Text by RFC 3339, or a number whose magnitude tells its unit (seconds, ms, µs or ns).
    #[default]
    Auto,
    /// Text by RFC 3339.
    Rfc3339,
    /// A number of seconds since 1970, fraction allowed.
    EpochS,
    /// A number of milliseconds since 1970.
    EpochMs,
    /// A number of microseconds since 1970.
    EpochUs,
    /// A number of nanoseconds since 1970.
    EpochNs,
    /// `10/Oct/2000:13:55:36 -0700`, as web servers log it.
    Apache,
    /// `2024-12-01 10:00:00`, with a fraction and a zone or without.
    DateTimeSpace,
    /// `Tue, 1 Jul 2003 10:52:37 +0200`.
    Rfc2822,
    /// `2024-12-01`: its midnight.
    Date,
    /// A pattern such as `%d.%m.%Y %H:%M`.
    Pattern(String),
}

/// The named notations.
const NAMED: [(&str, TimeFormat); 10] = [
    ("auto", TimeFormat::Auto),
    ("rfc3339", TimeFormat::Rfc3339),
    ("epoch_s", TimeFormat::EpochS),
    ("epoch_ms", TimeFormat::EpochMs),
    ("epoch_us", TimeFormat::EpochUs),
    ("epoch_ns", TimeFormat::EpochNs),
    ("apache", TimeFormat::Apache),
    ("date_time_space", TimeFormat::DateTimeSpace),
    ("rfc2822", TimeFormat::Rfc2822),
    ("date", TimeFormat::Date),
];
/// The most bytes of a pattern.
const PATTERN_BYTES_MAX: usize = 128;

/// A notation that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a notation of times; use auto, rfc3339, epoch_s, epoch_ms, epoch_us, epoch_ns, apache, date_time_space, rfc2822, date, or a pattern such as \"%d.%m.%Y %H:%M\""
)]
pub struct TimeFormatError(pub String);

impl TimeFormat {
    /// Reads a notation's name, or a pattern in the manner of `strftime`.
    ///
    /// # Errors
    /// The text is neither.
    pub fn parse(text: &str) -> Result<Self, TimeFormatError> {
        if let Some((_, named)) = NAMED.iter().find(|(name, _)| *name == text) {
            return Ok(named.clone());
        }
        let is_pattern = text.contains('%')
            && text.len() <= PATTERN_BYTES_MAX
            && chrono::format::StrftimeItems::new(text).all(|item| item != chrono::format::Item::Error);
        if is_pattern { Ok(Self::Pattern(text.to_owned())) } else { Err(TimeFormatError(text.to_owned())) }
    }

    /// The notation's name, as [`Self::parse`] reads it.
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            Self::Pattern(pattern) => pattern.into(),
            named => NAMED.iter().find(|(_, format)| format == named).map_or("auto", |(name, _)| name).into(),
        }
    }
}

impl Serialize for TimeFormat {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for TimeFormat {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for TimeFormat {
    fn schema_name() -> Cow<'static, str> {
        "TimeFormat".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "x-notation": "time format" })
    }
}

/// The zone that a time without one is in: `UTC`, an offset such as `+05:30`, or a name such as `Europe/Berlin`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(String);

/// A zone that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a zone; use UTC, an offset such as \"+05:30\", or a name such as \"Europe/Berlin\"")]
pub struct ZoneError(pub String);

impl Default for Zone {
    fn default() -> Self {
        Self("UTC".to_owned())
    }
}

/// What a zone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneRule {
    /// So many seconds east of UTC, always.
    Fixed(i32),
    /// By the rules of a place.
    Named(chrono_tz::Tz),
}

impl Zone {
    /// Checks the text and makes a zone of it.
    ///
    /// # Errors
    /// It names no zone.
    pub fn new(text: &str) -> Result<Self, ZoneError> {
        rule_of(text).map(|_| Self(text.to_owned())).ok_or_else(|| ZoneError(text.to_owned()))
    }

    /// The zone's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How far the zone is from UTC.
    #[must_use]
    pub fn rule(&self) -> ZoneRule {
        rule_of(&self.0).unwrap_or(ZoneRule::Fixed(0))
    }
}

fn rule_of(text: &str) -> Option<ZoneRule> {
    if text == "UTC" || text == "Z" {
        return Some(ZoneRule::Fixed(0));
    }
    if let [sign @ (b'+' | b'-'), rest @ ..] = text.as_bytes() {
        let [h1, h2, b':', m1, m2] = rest else { return None };
        let digit = |b: &u8| b.is_ascii_digit().then(|| i32::from(b - b'0'));
        let (hours, minutes) = (digit(h1)? * 10 + digit(h2)?, digit(m1)? * 10 + digit(m2)?);
        let seconds = (hours * 60 + minutes) * 60;
        let fits = hours < 24 && minutes < 60;
        return fits.then_some(ZoneRule::Fixed(if *sign == b'-' { -seconds } else { seconds }));
    }
    text.parse().ok().map(ZoneRule::Named)
}

impl TryFrom<String> for Zone {
    type Error = ZoneError;
    fn try_from(text: String) -> Result<Self, ZoneError> {
        Self::new(&text)
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.0
    }
}

/// How the times of one field are read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TimeNotation {
    /// The notations that are tried, in order.
    #[serde(rename = "format", with = "one_or_many", default = "auto")]
    pub formats: Vec<TimeFormat>,
    /// The zone of a time that names none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub zone: Zone,
}

fn auto() -> Vec<TimeFormat> {
    vec![TimeFormat::Auto]
}

impl Default for TimeNotation {
    fn default() -> Self {
        Self { formats: auto(), zone: Zone::default() }
    }
}

/// The payload's own field for the event's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeField {
    /// Path of member names into the payload.
    pub path: Vec<String>,
    /// Its notation.
    #[serde(flatten)]
    pub notation: TimeNotation,
    /// Further places, looked at in order where the first has no value.
    #[serde(default, skip_serializing_if = "is_default")]
    pub or_paths: Vec<Vec<String>>,
}

/// What is done with an event whose time lies too far from the time of receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClockSkew {
    /// It is taken as it is, and counted.
    Accept,
    /// The time of receipt takes its place; `time_source` says `clamped`.
    Clamp,
    /// The record breaks the contract.
    #[default]
    Reject,
}

/// How far an event's time may lie from the time of receipt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ClockPolicy {
    /// The most milliseconds behind now; none: any.
    pub max_past_ms: Option<u64>,
    /// The most milliseconds ahead of now; none: any.
    pub max_future_ms: Option<u64>,
    /// What is done with others.
    pub skew: ClockSkew,
}

impl ClockPolicy {
    /// What is wrong with a time that lies too far from the time of receipt.
    #[must_use]
    pub fn is_far(&self, time_us: i64, received_us: i64) -> Option<String> {
        let ahead_ms = time_us.saturating_sub(received_us) / 1000;
        let (way, most) = if ahead_ms >= 0 { ("ahead of", self.max_future_ms) } else { ("behind", self.max_past_ms) };
        let (found_ms, most_ms) = (ahead_ms.unsigned_abs(), most?);
        (found_ms > most_ms).then(|| {
            let (found, most) = (found_ms / 1000, most_ms / 1000);
            format!("the event's time lies {found} s {way} the time of receipt; at most {most} s are taken")
        })
    }
}

/// A list of one as its only member: contracts of before there were lists read and write the same.
mod one_or_many {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::TimeFormat;

    pub(super) fn serialize<S: Serializer>(formats: &[TimeFormat], s: S) -> Result<S::Ok, S::Error> {
        match formats {
            [one] => one.serialize(s),
            many => many.serialize(s),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<TimeFormat>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            One(TimeFormat),
            Many(Vec<TimeFormat>),
        }
        Ok(match Written::deserialize(d)? {
            Written::One(one) => vec![one],
            Written::Many(many) => many,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notations_read_back_as_they_are_written_and_nonsense_is_refused() -> Result<(), TimeFormatError> {
        for text in ["auto", "epoch_ns", "apache", "date_time_space", "%d.%m.%Y %H:%M"] {
            assert_eq!(TimeFormat::parse(text)?.name(), text);
        }
        for bad in ["", "iso", "%Q", "%", &"%d".repeat(100)] {
            assert!(TimeFormat::parse(bad).is_err(), "{bad:?} was taken");
        }
        Ok(())
    }

    #[test]
    fn zones_are_offsets_and_names() -> Result<(), ZoneError> {
        assert_eq!(Zone::new("-07:00")?.rule(), ZoneRule::Fixed(-7 * 3600));
        assert_eq!(Zone::new("Europe/Berlin")?.rule(), ZoneRule::Named(chrono_tz::Europe::Berlin));
        for bad in ["", "+5", "+24:00", "Mars/Olympus", "+05-30"] {
            assert!(Zone::new(bad).is_err(), "{bad:?} was taken");
        }
        Ok(())
    }
}
