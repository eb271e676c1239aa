//! The bytes of marks.
//!
//! ```text
//! file    := "LGFILES1" count:u64 entry* crc32c:u32          entries sorted by id, no id twice
//! entry   := id:u128 commit:u128 rows:u64 state
//! state   := 0xFF                                            complete
//!          | length:u8 bytes                                 partial, length <= 64
//! ```
//! Numbers are big-endian; the checksum covers everything before it.

use bytes::Bytes;
use uuid::Uuid;

use super::{Entry, FileMark, FileState, MAX_PARTIAL_BYTES};

const MAGIC: &[u8; 8] = b"LGFILES1";
const COMPLETE: u8 = 0xFF;

pub(super) fn encode_entries<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<u8> {
    let mut out = Vec::new();
    entries.for_each(|e| encode_entry(e, &mut out));
    out
}

fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    out.extend_from_slice(&entry.mark.id.to_be_bytes());
    out.extend_from_slice(entry.commit.as_bytes());
    out.extend_from_slice(&entry.mark.rows.to_be_bytes());
    match &entry.mark.state {
        FileState::Complete => out.push(COMPLETE),
        FileState::Partial(mark) => {
            let mark = mark.get(..mark.len().min(MAX_PARTIAL_BYTES)).unwrap_or_default();
            out.push(u8::try_from(mark.len()).unwrap_or_default());
            out.extend_from_slice(mark);
        }
    }
}

/// None: not what was encoded.
pub(super) fn decode_entries(mut bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let id = u128::from_be_bytes(take(&mut bytes)?);
        let commit = Uuid::from_bytes(take(&mut bytes)?);
        let rows = u64::from_be_bytes(take(&mut bytes)?);
        let [length] = take(&mut bytes)?;
        let state = match length {
            COMPLETE => FileState::Complete,
            length if usize::from(length) <= MAX_PARTIAL_BYTES => {
                let (mark, rest) = bytes.split_at_checked(usize::from(length))?;
                bytes = rest;
                FileState::Partial(mark.to_vec())
            }
            _ => return None,
        };
        entries.push(Entry { mark: FileMark { id, rows, state }, commit });
    }
    Some(entries)
}

pub(super) fn encode_ledger(entries: &[Entry]) -> Bytes {
    let mut out = Vec::with_capacity(entries.len().saturating_mul(41).saturating_add(20));
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&u64::try_from(entries.len()).unwrap_or(u64::MAX).to_be_bytes());
    entries.iter().for_each(|e| encode_entry(e, &mut out));
    out.extend_from_slice(&crc32c::crc32c(&out).to_be_bytes());
    Bytes::from(out)
}

/// None: damaged.
pub(super) fn decode_ledger(bytes: &[u8]) -> Option<Vec<Entry>> {
    let (content, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if crc32c::crc32c(content).to_be_bytes() != crc {
        return None;
    }
    let mut rest = content.strip_prefix(MAGIC)?;
    let count = u64::from_be_bytes(take(&mut rest)?);
    let entries = decode_entries(rest)?;
    let sorted = entries.windows(2).all(|w| matches!(w, [a, b] if a.mark.id < b.mark.id));
    (sorted && u64::try_from(entries.len()).ok() == Some(count)).then_some(entries)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}
