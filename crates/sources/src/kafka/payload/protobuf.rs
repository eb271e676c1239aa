//! Protocol Buffers values as JSON, with the names of the fields as the schema has them.

use std::collections::BTreeMap;

use prost_reflect::{DescriptorPool, DynamicMessage, FileDescriptor, MessageDescriptor, SerializeOptions};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

/// The schema's own file.
const MAIN: &str = "registry/schema.proto";

/// A file of messages.
pub(crate) struct ProtobufFile {
    file: FileDescriptor,
}

struct Sources(BTreeMap<String, String>);

impl FileResolver for Sources {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let source = self.0.get(name).ok_or_else(|| protox::Error::file_not_found(name))?;
        File::from_source(name, source)
    }
}

impl ProtobufFile {
    pub(super) fn new(schema: &str, others: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut sources = Sources(others.clone());
        sources.0.insert(MAIN.to_owned(), schema.to_owned());
        let mut resolver = ChainFileResolver::new();
        resolver.add(sources);
        resolver.add(GoogleFileResolver::new());
        let mut compiler = protox::Compiler::with_file_resolver(resolver);
        compiler.include_imports(true).open_file(MAIN).map_err(|error| error.to_string())?;
        let pool = DescriptorPool::from_file_descriptor_set(compiler.file_descriptor_set());
        let pool = pool.map_err(|error| error.to_string())?;
        let file = pool.get_file_by_name(MAIN).ok_or_else(|| "it defines nothing".to_owned())?;
        Ok(Self { file })
    }

    pub(super) fn to_json(&self, mut content: &[u8]) -> Result<String, String> {
        let message = self.message(&mut content)?;
        let value = DynamicMessage::decode(message, content);
        let value = value.map_err(|error| format!("the value does not fit its Protobuf schema: {error}"))?;
        let options = SerializeOptions::new()
            .use_proto_field_name(true)
            .stringify_64_bit_integers(false)
            .skip_default_fields(false);
        let mut text = Vec::new();
        let written = value.serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options);
        written.map_err(|error| format!("the value cannot be written as JSON: {error}"))?;
        String::from_utf8(text).map_err(|error| error.to_string())
    }

    /// Which message of the file it is: the places of the message, of its outer ones first.
    fn message(&self, content: &mut &[u8]) -> Result<MessageDescriptor, String> {
        let short = || "the place of the message in its file is cut off".to_owned();
        let count = zigzag(content).ok_or_else(short)?;
        let mut places = vec![0];
        if count != 0 {
            places = (0..count.min(32)).map(|_| zigzag(content)).collect::<Option<_>>().ok_or_else(short)?;
        }
        let mut found: Option<MessageDescriptor> = None;
        for place in places {
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            found = match &found {
                None => self.file.messages().nth(place),
                Some(outer) => outer.child_messages().nth(place),
            };
            if found.is_none() {
                return Err(format!("the schema has no message at the place {place}"));
            }
        }
        found.ok_or_else(short)
    }
}

/// A signed number in the zigzag notation of Protocol Buffers.
fn zigzag(content: &mut &[u8]) -> Option<i64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = content.split_first()?;
        *content = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = r#"syntax = "proto3"; package p; import "google/protobuf/timestamp.proto"; import "other.proto";
        message First { string a = 1; }
        message Event { string entity_id = 1; int64 n = 2; google.protobuf.Timestamp at = 3; Other o = 4;
            message Inner { bool yes = 1; } }"#;

    fn file() -> ProtobufFile {
        let other = r#"syntax = "proto3"; package p; message Other { int32 x = 1; }"#;
        ProtobufFile::new(SCHEMA, &BTreeMap::from([("other.proto".to_owned(), other.to_owned())])).unwrap()
    }

    /// Encodings after the Protocol Buffers specification; the places before them after Confluent's wire format.
    #[test]
    fn a_message_is_read_as_the_json_of_its_fields() {
        let content = [2, 2, 0x0a, 1, b'x', 0x10, 7, 0x1a, 2, 0x08, 1, 0x22, 2, 0x08, 5];
        let expected = r#"{"entity_id":"x","n":7,"at":"1970-01-01T00:00:01Z","o":{"x":5}}"#;
        assert_eq!(file().to_json(&content).unwrap(), expected);
        assert_eq!(file().to_json(&[0, 0x0a, 1, b'y']).unwrap(), r#"{"a":"y"}"#);
        assert_eq!(file().to_json(&[4, 2, 0, 0x08, 1]).unwrap(), r#"{"yes":true}"#);
    }

    #[test]
    fn a_value_that_does_not_fit_is_refused_with_the_reason() {
        assert!(file().to_json(&[2, 8]).unwrap_err().contains("no message"));
        assert!(file().to_json(&[]).unwrap_err().contains("cut off"));
        assert!(file().to_json(&[0, 0x0a, 9]).unwrap_err().contains("does not fit"));
    }
}
