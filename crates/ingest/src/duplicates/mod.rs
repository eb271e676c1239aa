//! Which events were seen before.
//!
//! A stream with an event key remembers the keys of its accepted records for a window of time, as hashes (XXH3, by Yann
//! Collet). A key is claimed before the request is appended, under the lock of the stream's table, and given up if the
//! append fails: there is no instant between the check and the set, and no key of a record that was not stored.
//! Keys are part of the frame; those of trimmed frames are kept in files ([`crate::keys`]): the window survives a restart.

mod shared;
mod window;
mod windows;

use lakegate_memtable::Value;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

pub(crate) use shared::{Claim, ClaimError, Doubt, Importer, SharedWindow};
pub use shared::{SharedSettings, SharedUrlError, WhenAway};
pub(crate) use window::{Met, Window};
pub(crate) use windows::{Windows, stream_hash};

/// The bits of a key that a hash of the record's content takes; the others tell records apart.
pub(crate) const CONTENT_BITS: u128 = u32::MAX as u128;

/// The key of a row: a hash of the values of the key's columns, each with its length before it; its content is not known.
pub(crate) fn key_of(row: &[Value<'_>], columns: &[usize], scratch: &mut Vec<u8>) -> Option<u128> {
    scratch.clear();
    let mut any = false;
    for column in columns {
        let value = row.get(*column)?;
        any |= *value != Value::Null;
        put_value(value, scratch);
    }
    any.then(|| xxh3_128(scratch) & !CONTENT_BITS)
}

/// The same key, of a record with that payload.
pub(crate) fn with_content(key: u128, payload: &[u8]) -> u128 {
    key | (u128::from(xxh3_64(payload)) & CONTENT_BITS).max(1)
}

fn put_value(value: &Value<'_>, out: &mut Vec<u8>) {
    let mut put = |tag: u8, bytes: &[u8]| {
        out.push(tag);
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    match value {
        Value::Null => put(0, &[]),
        Value::Boolean(value) => put(1, &[u8::from(*value)]),
        Value::Long(value) => put(2, &value.to_le_bytes()),
        Value::Double(value) => put(3, &value.to_bits().to_le_bytes()),
        Value::Decimal(value) => put(4, &value.to_le_bytes()),
        Value::Text(text) => put(5, text.as_bytes()),
        Value::Owned(text) => put(5, text.as_bytes()),
        Value::Id(id) => put(5, id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).as_bytes()),
        Value::Bytes(bytes) => put(6, bytes),
        Value::OwnedBytes(bytes) => put(6, bytes),
        Value::Map(entries) => entries.iter().for_each(|(key, value)| {
            put(7, key.as_bytes());
            put(8, value.as_bytes());
        }),
        Value::OwnedMap(entries) => entries.iter().for_each(|(key, value)| {
            put(7, key.as_bytes());
            put(8, value.as_bytes());
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_neighbouring_columns_do_not_run_into_each_other() {
        let mut scratch = Vec::new();
        let mut key = |a, b| key_of(&[Value::Text(a), Value::Text(b)], &[0, 1], &mut scratch);
        assert_ne!(key("ab", "c"), key("a", "bc"));
        assert_eq!(key("ab", "c"), key("ab", "c"));
        assert_eq!(key_of(&[Value::Null], &[0], &mut Vec::new()), None);
        let id = uuid::Uuid::from_u128(7);
        let mut own = |value| key_of(&[value], &[0], &mut scratch);
        assert_eq!(own(Value::Id(id)), own(Value::Owned(id.to_string().into())));
    }
}
