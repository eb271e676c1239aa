//! A declared stream's columns, as the configuration writes them: type and place, checks, times, cleaning.

use std::borrow::Cow;

use lakegate_model::{
    Checks, Clean, ClockPolicy, ClockSkew, Column, ColumnRules, ColumnSource, ColumnType, Field, JsonKind, Sanitise,
    TimeField, TimeFormat, TimeNotation, Zone,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Number, Value};

use super::units::Period;

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ColumnSettings {
    /// The column's name.
    pub(crate) name: String,
    /// Its type: `boolean`, `int`, `long`, `float`, `double`, `decimal(P,S)`, `date`, `timestamp`, `timestamptz`,
    /// `string`, `binary`, `json` or `map`.
    #[serde(rename = "type")]
    #[schemars(schema_with = "column_type_schema")]
    pub(crate) column_type: ColumnType,
    /// Where the value is in the JSON payload: `"customer.id"`, or `["customer", "id"]` for names with dots in them.
    /// Without `path` and `envelope`, it is the member of the column's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PathText")]
    pub(crate) path: Option<PathText>,
    /// Further places in the payload, looked at in order where the first has no value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) or_paths: Vec<PathText>,
    /// The part of the record's envelope to take in place of a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Field")]
    pub(crate) envelope: Option<Field>,
    /// The part of the record's envelope to take where the payload has no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Field")]
    pub(crate) or_envelope: Option<Field>,
    /// Whether a record without it breaks the contract.
    #[serde(default)]
    pub(crate) required: bool,
    /// The only values that it may have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) values: Vec<Value>,
    /// A regular expression that its text must match; `^` and `$` anchor it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(crate) pattern: Option<String>,
    /// The least number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Number")]
    pub(crate) minimum: Option<Number>,
    /// The greatest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Number")]
    pub(crate) maximum: Option<Number>,
    /// The number must be greater than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Number")]
    pub(crate) exclusive_minimum: Option<Number>,
    /// The number must be less than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Number")]
    pub(crate) exclusive_maximum: Option<Number>,
    /// The fewest characters of text, or bytes of a binary column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub(crate) min_length: Option<u64>,
    /// The most characters of text, or bytes of a binary column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub(crate) max_length: Option<u64>,
    /// The fewest items of a JSON list, or members of an object or map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub(crate) min_items: Option<u64>,
    /// The most items of a JSON list, or members of an object or map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub(crate) max_items: Option<u64>,
    /// The kinds of value that a `json` column takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) kinds: Vec<JsonKind>,
    /// How its times are written, in the order in which the notations are tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) formats: Vec<TimeFormat>,
    /// The zone of times that name none: `UTC`, `+05:30`, `Europe/Berlin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(crate) zone: Option<Zone>,
    /// The steps by which its text is made harmless.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sanitise: Vec<Clean>,
    /// The parts of a `json` column to which these steps are taken, keys and values; without any, all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sanitise_paths: Vec<PathText>,
    /// A `json` column keeps a text as it is, for what holds JSON already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) json_text: bool,
}

impl ColumnSettings {
    pub(super) fn column(&self) -> Column {
        let source = match (&self.envelope, &self.path) {
            (Some(field), _) => ColumnSource::Envelope(*field),
            (None, Some(path)) => ColumnSource::Path(path.0.clone()),
            (None, None) => ColumnSource::Path(vec![self.name.clone()]),
        };
        Column { name: self.name.clone(), column_type: self.column_type, source, required: self.required }
    }

    /// What holds beyond type and place; none where nothing does.
    pub(super) fn rules(&self) -> Option<ColumnRules> {
        let rules = ColumnRules {
            checks: Checks {
                values: self.values.clone(),
                pattern: self.pattern.clone(),
                minimum: self.minimum.clone(),
                maximum: self.maximum.clone(),
                exclusive_minimum: self.exclusive_minimum.clone(),
                exclusive_maximum: self.exclusive_maximum.clone(),
                min_length: self.min_length,
                max_length: self.max_length,
                min_items: self.min_items,
                max_items: self.max_items,
                kinds: self.kinds.clone(),
            },
            or_paths: paths(&self.or_paths),
            or_envelope: self.or_envelope,
            times: notation(&self.formats, self.zone.as_ref()),
            sanitise: Sanitise { steps: self.sanitise.clone(), paths: paths(&self.sanitise_paths) },
            json_text: self.json_text,
        };
        (rules != ColumnRules::default()).then_some(rules)
    }
}

pub(super) fn paths(texts: &[PathText]) -> Vec<Vec<String>> {
    texts.iter().map(|path| path.0.clone()).collect()
}

fn notation(formats: &[TimeFormat], zone: Option<&Zone>) -> TimeNotation {
    let formats = if formats.is_empty() { vec![TimeFormat::Auto] } else { formats.to_vec() };
    TimeNotation { formats, zone: zone.cloned().unwrap_or_default() }
}

/// The payload's own field for the event's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TimeSettings {
    /// Where it is in the JSON payload.
    pub(crate) path: PathText,
    /// Further places, looked at in order where the first has no value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) or_paths: Vec<PathText>,
    /// Its notation: `auto`, `rfc3339`, `epoch_s`, `epoch_ms`, `epoch_us`, `epoch_ns`, `apache`, `date_time_space`,
    /// `rfc2822`, `date`, or a pattern such as `%d.%m.%Y %H:%M`.
    #[serde(default)]
    pub(crate) format: TimeFormat,
    /// Further notations, tried in order where `format` does not fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) or_formats: Vec<TimeFormat>,
    /// The zone of times that name none: `UTC`, `+05:30`, `Europe/Berlin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(crate) zone: Option<Zone>,
}

impl TimeSettings {
    pub(super) fn field(&self) -> TimeField {
        let formats = std::iter::once(&self.format).chain(&self.or_formats).cloned().collect();
        TimeField {
            path: self.path.0.clone(),
            notation: TimeNotation { formats, zone: self.zone.clone().unwrap_or_default() },
            or_paths: paths(&self.or_paths),
        }
    }
}

/// How far an event's time may lie from the time of receipt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClockSettings {
    /// The most behind it; unset: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Period")]
    pub(crate) max_past: Option<Period>,
    /// The most ahead of it; unset: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Period")]
    pub(crate) max_future: Option<Period>,
    /// What is done with others.
    pub(crate) skew: ClockSkew,
}

impl ClockSettings {
    pub(super) fn policy(&self) -> ClockPolicy {
        let ms = |period: &Option<Period>| period.as_ref().map(|period| period.as_millis());
        ClockPolicy { max_past_ms: ms(&self.max_past), max_future_ms: ms(&self.max_future), skew: self.skew }
    }
}

/// How far a table may grow by what records bring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EvolutionSettings {
    /// The most columns of the table.
    #[schemars(range(min = 1, max = 2000))]
    pub(crate) columns_max: u32,
    /// Whether text that is a time by RFC 3339 makes a column of times.
    pub(crate) times: bool,
}

impl Default for EvolutionSettings {
    fn default() -> Self {
        let evolution = lakegate_model::Evolution::default();
        Self { columns_max: evolution.columns_max, times: evolution.times }
    }
}

fn column_type_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "pattern": "^(boolean|int|long|float|double|date|timestamp|timestamptz|string|binary|json|map|decimal\\([0-9]+, ?[0-9]+\\))$",
        "x-notation": "column type"
    })
}

/// A path into the payload, `"a.b"` or `["a", "b"]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct PathText(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for PathText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Dotted(String),
            Members(Vec<String>),
        }
        Ok(Self(match Written::deserialize(d)? {
            Written::Dotted(text) => text.split('.').map(str::to_owned).collect(),
            Written::Members(members) => members,
        }))
    }
}

impl JsonSchema for PathText {
    fn schema_name() -> Cow<'static, str> {
        "Path".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "array"], "items": { "type": "string" }, "minItems": 1, "x-notation": "path" })
    }
}
