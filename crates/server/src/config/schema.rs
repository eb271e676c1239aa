//! The JSON Schema of the settings.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::settings::Settings;

/// The JSON Schema of a configuration file.
pub(crate) fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    let mut schema = sorted(settings.into_generator().into_root_schema_for::<Settings>().to_value());
    if let Some(members) = schema.as_object_mut() {
        members.insert("title".into(), "Lakegate configuration".into());
        members.remove("default");
    }
    schema
}

/// The JSON Schema as a file.
pub(crate) fn schema_text() -> String {
    serde_json::to_string_pretty(&schema()).unwrap_or_default() + "\n"
}

/// The same value with the members of every object in the order of their names, whichever order the library keeps.
pub(crate) fn sorted(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut members: Vec<(String, Value)> = members.into_iter().collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(members.into_iter().map(|(k, v)| (k, sorted(v))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}
