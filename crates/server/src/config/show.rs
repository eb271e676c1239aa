//! `config show`: the settings as they are, secrets masked.

use serde_json::{Map, Value};

use super::layers::join;
use super::{Config, Origin, sorted};

/// How much is shown.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ShowWhat {
    /// The defaults too.
    pub(crate) effective: bool,
    /// One setting a line, with where it comes from.
    pub(crate) origin: bool,
}

/// The settings as text: a JSON file, or one line for each setting with its origin.
pub(crate) fn show(config: &Config, what: ShowWhat) -> String {
    let whole = sorted(serde_json::to_value(&config.settings).unwrap_or_default());
    let shown = if what.effective { Some(whole) } else { only_set(whole, "", config) };
    let shown = shown.unwrap_or_else(|| Value::Object(Map::new()));
    if !what.origin {
        return serde_json::to_string_pretty(&shown).unwrap_or_default() + "\n";
    }
    let mut lines = Vec::new();
    list(&shown, "", config, &mut lines);
    lines.iter().map(|(path, value, origin)| format!("{path} = {value}  # {origin}\n")).collect()
}

/// Leaves out what nobody set.
fn only_set(value: Value, path: &str, config: &Config) -> Option<Value> {
    match value {
        Value::Object(members) => {
            let kept: Map<String, Value> = members
                .into_iter()
                .filter_map(|(name, member)| {
                    let inner = join(path, &name);
                    Some((name, only_set(member, &inner, config)?))
                })
                .collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        leaf => config.origins.contains_key(path).then_some(leaf),
    }
}

fn list(value: &Value, path: &str, config: &Config, lines: &mut Vec<(String, String, Origin)>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                list(member, &join(path, name), config, lines);
            }
        }
        leaf => {
            let origin = config.origins.get(path).cloned().unwrap_or(Origin::Default);
            lines.push((path.to_owned(), leaf.to_string(), origin));
        }
    }
}
