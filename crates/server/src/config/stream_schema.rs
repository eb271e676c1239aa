//! JSON Schema documents that streams name as files: read once, when the configuration is, and put in the names' places.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::problem::Problem;

/// The most bytes of such a file.
const BYTES_MAX: u64 = 1 << 20;

/// Puts the documents into `tree`. What cannot be read is a problem, and is taken out.
pub(super) fn read_files(tree: &mut Value, folder: &Path, problems: &mut Vec<Problem>) {
    let streams = tree.get_mut("streams").and_then(Value::as_object_mut);
    for (name, stream) in streams.into_iter().flatten() {
        let Some(place) = stream.get_mut("json_schema") else { continue };
        let Some(file) = place.as_str() else { continue };
        match read(&folder.join(file)) {
            Ok(document) => *place = document,
            Err(reason) => {
                problems.push(Problem::new(format!("streams.{name}.json_schema"), format!("{file}: {reason}")));
                *place = Value::Null;
            }
        }
        if place.is_null()
            && let Some(stream) = stream.as_object_mut()
        {
            stream.remove("json_schema");
        }
    }
}

fn read(path: &Path) -> Result<Value, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut text = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut text).map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > BYTES_MAX {
        return Err(format!("has more than {BYTES_MAX} bytes, the most that is taken"));
    }
    let document: Value = serde_json::from_slice(&text).map_err(|error| format!("is not JSON: {error}"))?;
    if document.is_object() { Ok(document) } else { Err("must hold an object".to_owned()) }
}
