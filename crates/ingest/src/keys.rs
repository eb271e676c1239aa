//! The event keys of frames that were trimmed from the log, in files of their own until their window is over.
//!
//! ```text
//! keys/<number>.keys, blocks one after the other:
//! u32 entries   u32 CRC-32C of the entries   then for each: u64 stream hash, u128 key, i64 received_us
//! ```
//! Little-endian. A block is synced before the frames that it stands for are trimmed; a torn last block is one whose
//! frames are still in the log, and is left out. The stream hash is the XXH3-64 of `tenant/stream`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lakegate_env::{Disk, DiskFile};
use lakegate_model::StreamKey;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

const ENTRY_BYTES: usize = 32;
/// A new file is begun at this size, so that old keys can be removed with their file.
const FILE_BYTES: u64 = 32 << 20;

/// One key that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyEntry {
    pub(crate) stream: u64,
    pub(crate) key: u128,
    pub(crate) received_us: i64,
}

struct OpenFile {
    file: Box<dyn DiskFile>,
    bytes: u64,
    number: u64,
    /// The newest time of each closed file, by number.
    closed: Vec<(u64, i64)>,
    newest_us: i64,
}

/// The folder of such files.
pub(crate) struct KeyFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    open: Mutex<Option<OpenFile>>,
    next_number: Mutex<u64>,
}

/// The hash that stands for a stream in the files.
pub(crate) fn stream_hash(key: &StreamKey) -> u64 {
    xxh3_64(format!("{}/{}", key.tenant, key.stream).as_bytes())
}

impl KeyFiles {
    /// Opens the folder and reads all keys, oldest first.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: PathBuf) -> io::Result<(Self, Vec<KeyEntry>)> {
        disk.create_dir_all(&dir)?;
        let mut entries = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        for name in disk.list(&dir)? {
            if let Some(number) = name.strip_suffix(".keys").and_then(|number| number.parse().ok()) {
                read_blocks(&disk.read(&dir.join(&name))?, &mut entries);
                numbers.push(number);
            }
        }
        let next = numbers.iter().max().map_or(0, |last| last + 1);
        Ok((Self { disk, dir, open: Mutex::default(), next_number: Mutex::new(next) }, entries))
    }

    /// Keeps keys durably.
    pub(crate) fn keep(&self, entries: &[KeyEntry]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut body = Vec::with_capacity(entries.len() * ENTRY_BYTES);
        for entry in entries {
            body.extend_from_slice(&entry.stream.to_le_bytes());
            body.extend_from_slice(&entry.key.to_le_bytes());
            body.extend_from_slice(&entry.received_us.to_le_bytes());
        }
        let count = u32::try_from(entries.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut block = Vec::with_capacity(body.len() + 8);
        block.extend_from_slice(&count.to_le_bytes());
        block.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        block.extend_from_slice(&body);
        let mut place = self.open.lock();
        if place.as_ref().is_none_or(|open| open.bytes >= FILE_BYTES) {
            let closed = place.take().map_or_else(Vec::new, |mut open| {
                open.closed.push((open.number, open.newest_us));
                open.closed
            });
            *place = Some(self.begin(closed)?);
        }
        let Some(open) = place.as_mut() else { return Ok(()) };
        open.file.write_all_at(&block, open.bytes)?;
        open.file.sync_data()?;
        open.bytes += block.len() as u64;
        open.newest_us = entries.iter().map(|entry| entry.received_us).fold(open.newest_us, i64::max);
        Ok(())
    }

    fn begin(&self, closed: Vec<(u64, i64)>) -> io::Result<OpenFile> {
        let number = {
            let mut next = self.next_number.lock();
            *next += 1;
            *next - 1
        };
        let file = self.disk.create_new(&self.path(number))?;
        self.disk.sync_dir(&self.dir)?;
        Ok(OpenFile { file, bytes: 0, number, closed, newest_us: i64::MIN })
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:08}.keys"))
    }

    /// Removes files whose newest key came before `before_us`.
    pub(crate) fn forget(&self, before_us: i64) -> io::Result<()> {
        let mut place = self.open.lock();
        let Some(open) = place.as_mut() else { return Ok(()) };
        let mut kept = Vec::new();
        for (number, newest_us) in std::mem::take(&mut open.closed) {
            if newest_us >= before_us {
                kept.push((number, newest_us));
                continue;
            }
            remove_if_there(&*self.disk, &self.path(number))?;
        }
        open.closed = kept;
        Ok(())
    }

    /// Removes the files that were there at the opening, once their keys are kept again or over.
    pub(crate) fn replace_all(&self, entries: &[KeyEntry]) -> io::Result<()> {
        let old: Vec<u64> = (0..*self.next_number.lock()).collect();
        for block in entries.chunks(1 << 20) {
            self.keep(block)?;
        }
        for number in old {
            remove_if_there(&*self.disk, &self.path(number))?;
        }
        self.disk.sync_dir(&self.dir)
    }
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads whole blocks; stops at the first that is torn.
fn read_blocks(mut bytes: &[u8], entries: &mut Vec<KeyEntry>) {
    while let Some((head, rest)) = bytes.split_first_chunk::<8>() {
        let [a, b, c, d, e, f, g, h] = *head;
        let (count, crc) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(ENTRY_BYTES));
        let Some(body) = length.and_then(|length| rest.get(..length)) else { return };
        if crc32c::crc32c(body) != crc || body.is_empty() {
            return;
        }
        entries.extend(body.chunks_exact(ENTRY_BYTES).filter_map(read_entry));
        bytes = rest.get(body.len()..).unwrap_or_default();
    }
}

fn read_entry(bytes: &[u8]) -> Option<KeyEntry> {
    let (stream, rest) = bytes.split_first_chunk::<8>()?;
    let (key, time) = rest.split_first_chunk::<16>()?;
    let received_us = i64::from_le_bytes(*time.first_chunk::<8>()?);
    Some(KeyEntry { stream: u64::from_le_bytes(*stream), key: u128::from_le_bytes(*key), received_us })
}

#[cfg(test)]
mod tests {
    use lakegate_env::MemDisk;

    use super::*;

    fn entry(n: u64) -> KeyEntry {
        KeyEntry { stream: n % 3, key: u128::from(n) << 64 | 7, received_us: n.cast_signed() }
    }

    #[test]
    fn keys_read_back_after_a_loss_of_power_and_a_torn_block_is_left_out() {
        let disk = Arc::new(MemDisk::new());
        let (files, none) = KeyFiles::open(disk.clone(), "/keys".into()).unwrap();
        assert!(none.is_empty());
        let first: Vec<_> = (0..100).map(entry).collect();
        files.keep(&first).unwrap();
        let disk = Arc::new(disk.crash(1));
        let torn = disk.read(Path::new("/keys/00000000.keys")).unwrap();
        for end in 0..torn.len() {
            let mut read = Vec::new();
            read_blocks(&torn[..end], &mut read);
            assert!(read.is_empty(), "cut at {end}");
        }
        let (files, read) = KeyFiles::open(disk.clone(), "/keys".into()).unwrap();
        assert_eq!(read, first);
        files.replace_all(&first[50..]).unwrap();
        let (_, read) = KeyFiles::open(disk, "/keys".into()).unwrap();
        assert_eq!(read, first[50..]);
    }
}
