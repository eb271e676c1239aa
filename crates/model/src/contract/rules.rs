//! What holds for single columns beyond type and place.

use serde::{Deserialize, Serialize};

use super::check::Checks;
use super::column::Field;
use super::is_default;
use super::time::TimeNotation;

/// One step by which text is made harmless. Steps are taken in the order of this list, whatever order they are named in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clean {
    /// Control characters other than tab and line ends are taken out.
    Control,
    /// Characters that are none (lone surrogates, noncharacters), and those that turn the direction of text or have no
    /// width, are taken out.
    Unicode,
    /// HTML is taken out; what remains is text, with `<`, `>` and `&` as entities.
    StripHtml,
    /// Characters that mean something in HTML become entities.
    EscapeHtml,
    /// Text that a spreadsheet would take for a formula (it begins with `=`, `+`, `-`, `@`, tab or carriage return) gets
    /// an apostrophe before it.
    Formula,
}

/// How a column's text is made harmless.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sanitise {
    /// The steps; none: nothing is done.
    pub steps: Vec<Clean>,
    /// The parts of a JSON column that are made harmless, keys and values; none: all of it.
    #[serde(skip_serializing_if = "is_default")]
    pub paths: Vec<Vec<String>>,
}

/// What holds for one column.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ColumnRules {
    /// What its values must be.
    #[serde(skip_serializing_if = "is_default")]
    pub checks: Checks,
    /// Further places in the payload, looked at in order where the first has no value.
    #[serde(skip_serializing_if = "is_default")]
    pub or_paths: Vec<Vec<String>>,
    /// The part of the envelope to take where the payload has no value.
    #[serde(skip_serializing_if = "is_default")]
    pub or_envelope: Option<Field>,
    /// How its times are written.
    #[serde(skip_serializing_if = "is_default")]
    pub times: TimeNotation,
    /// How its text is made harmless.
    #[serde(skip_serializing_if = "is_default")]
    pub sanitise: Sanitise,
    /// A JSON column also takes text that holds JSON, and keeps what it holds.
    #[serde(skip_serializing_if = "is_default")]
    pub json_text: bool,
}

/// What holds for an object inside the payload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectRule {
    /// Where it is.
    pub path: Vec<String>,
    /// A record without it breaks the contract.
    #[serde(skip_serializing_if = "is_default")]
    pub required: bool,
    /// The members that it has where it is there at all.
    #[serde(skip_serializing_if = "is_default")]
    pub needs: Vec<String>,
    /// It has no members but those that columns take.
    #[serde(skip_serializing_if = "is_default")]
    pub closed: bool,
    /// Members that no column takes count as the payload's own, under their own names.
    #[serde(skip_serializing_if = "is_default")]
    pub lifted: bool,
}
