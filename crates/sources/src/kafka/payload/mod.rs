//! What the values of records are, and what is read of them: JSON as it is, Avro and Protobuf as the JSON of their
//! fields, anything else as bytes.
//!
//! Avro and Protobuf come as the schema registries of this field frame them: a zero byte, the schema's number in four
//! bytes, for Protobuf the place of the message in its file, then the value. Values of JSON may have the same five bytes
//! before them. What cannot be decoded is a refused record; a registry that is away is waited for.

mod avro;
mod protobuf;
mod registry;

use lakegate_ingest::{UpstreamPayload, UpstreamRecord};
use tokio::runtime::Handle;

pub use self::registry::RegistrySettings;
use self::registry::{Found, Registry};

/// What values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// JSON objects.
    #[default]
    Json,
    /// Avro, with a schema registry.
    Avro,
    /// Protocol Buffers, with a schema registry.
    Protobuf,
    /// Bytes, not looked into.
    Raw,
}

/// The content type under which a stream is given such values.
pub(super) fn content_type(format: Format) -> &'static str {
    match format {
        Format::Json | Format::Avro | Format::Protobuf => "",
        Format::Raw => "application/octet-stream",
    }
}

/// Why values could not be decoded now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Undecoded {
    /// The registry does not answer.
    Away(String),
}

/// A value's framing.
const MAGIC: u8 = 0;
const HEADER_BYTES: usize = 5;

/// Decodes the values of one source.
pub(super) struct Decoder {
    format: Format,
    registry: Option<Registry>,
}

impl Decoder {
    pub(super) fn new(format: Format, registry: Option<&RegistrySettings>, runtime: &Handle) -> Self {
        if format == Format::Avro {
            avro::bound_allocations();
        }
        Self { format, registry: registry.map(|settings| Registry::new(settings, runtime.clone())) }
    }

    /// Decodes what was not decoded yet. What is made of values is put behind them in `body`.
    pub(super) fn decode(&mut self, body: &mut Vec<u8>, records: &mut [UpstreamRecord]) -> Result<(), Undecoded> {
        let Some(registry) = &mut self.registry else { return Ok(()) };
        if self.format == Format::Raw {
            return Ok(());
        }
        for record in records.iter_mut().filter(|record| record.payload == UpstreamPayload::Raw) {
            let (start, end) = (record.raw.start as usize, record.raw.end as usize);
            let value = body.get(start..end).unwrap_or_default();
            let Some((number, content)) = header(value) else {
                if self.format != Format::Json {
                    let why =
                        "the value does not begin with a schema's number, as a schema registry's serializer writes it";
                    record.payload = UpstreamPayload::Refused(why.to_owned());
                }
                continue;
            };
            let decoded = match (self.format, registry.schema(number, self.format)?) {
                (Format::Json | Format::Raw, _) => {
                    record.payload = UpstreamPayload::Decoded(record.raw.start + 5..record.raw.end);
                    continue;
                }
                (_, Found::Refused(why)) => Err(why),
                (_, Found::Avro(schema)) => schema.to_json(content),
                (_, Found::Protobuf(file)) => file.to_json(content),
            };
            record.payload = match decoded {
                Ok(text) => {
                    let start = body.len();
                    body.extend_from_slice(text.as_bytes());
                    UpstreamPayload::Decoded(number_of(start)..number_of(body.len()))
                }
                Err(why) => UpstreamPayload::Refused(why),
            };
        }
        Ok(())
    }
}

fn number_of(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

/// The schema's number and what follows; none: the value is not framed.
fn header(value: &[u8]) -> Option<(u32, &[u8])> {
    let (head, content) = value.split_at_checked(HEADER_BYTES)?;
    let (magic, number) = head.split_first()?;
    (*magic == MAGIC).then_some((u32::from_be_bytes(number.try_into().ok()?), content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_framed_by_a_zero_and_a_number_of_four_bytes() {
        assert_eq!(header(&[0, 0, 0, 1, 2, 7, 8]), Some((258, &[7, 8][..])));
        assert_eq!(header(&[0, 0, 0, 1]), None);
        assert_eq!(header(b"{\"a\":1}"), None);
    }
}
