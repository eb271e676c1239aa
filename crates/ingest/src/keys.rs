//! What frames said about duplicates and was needed past their trimming, in files of their own.
//!
//! ```text
//! <folder>/<number><suffix>, blocks one after the other:
//! u32 entries   u32 CRC-32C of the entries   then the entries
//! entry of keys/<number>.window:      u64 stream hash, u128 key, i64 received_us
//! entry of requests/<number>.answers: u32 length of what follows, u128 key, i64 received_us, u64 position, the answer
//! ```
//! Little-endian. A block is synced before the frames that it stands for are trimmed; a torn last block is one whose
//! frames are still in the log, and is left out. The stream hash is the XXH3-64 of `tenant/stream`. Files named
//! `<number>.keys` are of earlier versions: like `.window`, and nothing is known of the records' content; their stream
//! hash 0 is a request's own id, without its answer.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lakegate_env::{Disk, DiskFile};
use parking_lot::Mutex;

use crate::duplicates::CONTENT_BITS;

const KEY_BYTES: usize = 32;
/// A new file is begun at this size, so that what is over can be removed with its file.
const FILE_BYTES: u64 = 32 << 20;
/// The suffix of files with keys, of earlier versions and of this one.
const KEYS_BEFORE: &str = ".keys";
pub(crate) const KEYS: &str = ".window";
/// The suffix of files with requests.
pub(crate) const ANSWERS: &str = ".answers";

/// One key that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyEntry {
    pub(crate) stream: u64,
    pub(crate) key: u128,
    pub(crate) received_us: i64,
}

impl KeyEntry {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.stream.to_le_bytes());
        out.extend_from_slice(&self.key.to_le_bytes());
        out.extend_from_slice(&self.received_us.to_le_bytes());
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (stream, rest) = bytes.split_first_chunk::<8>()?;
        let (key, time) = rest.split_first_chunk::<16>()?;
        let received_us = i64::from_le_bytes(*time.first_chunk::<8>()?);
        Some(Self { stream: u64::from_le_bytes(*stream), key: u128::from_le_bytes(*key), received_us })
    }

    /// Keeps entries durably.
    pub(crate) fn keep_all(entries: &[Self], files: &BlockFiles) -> io::Result<()> {
        for entries in entries.chunks(1 << 20) {
            let mut body = Vec::with_capacity(entries.len() * KEY_BYTES);
            entries.iter().for_each(|entry| entry.put(&mut body));
            let newest_us = entries.iter().map(|entry| entry.received_us).max().unwrap_or(i64::MIN);
            files.keep(entries.len(), &body, newest_us)?;
        }
        Ok(())
    }

    /// The entries of a block.
    pub(crate) fn all(body: &[u8], suffix: &str) -> impl Iterator<Item = Self> {
        let mask = if suffix == KEYS_BEFORE { !CONTENT_BITS } else { u128::MAX };
        let known = move |entry: Self| if entry.stream == 0 { entry } else { Self { key: entry.key & mask, ..entry } };
        body.chunks_exact(KEY_BYTES).filter_map(Self::read).map(known)
    }
}

struct File {
    name: String,
    bytes: u64,
    newest_us: i64,
}

#[derive(Default)]
struct State {
    open: Option<(Box<dyn DiskFile>, File)>,
    /// Oldest first.
    closed: VecDeque<File>,
    next_number: u64,
}

/// A folder of such files.
pub(crate) struct BlockFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    suffix: &'static str,
    state: Mutex<State>,
}

impl BlockFiles {
    /// Opens the folder and gives `each` every block's entries and its file's suffix, oldest first; `each` says of when
    /// the newest of them is.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        suffix: &'static str,
        mut each: impl FnMut(&[u8], &str) -> i64,
    ) -> io::Result<Self> {
        disk.create_dir_all(&dir)?;
        let mut found: Vec<(u64, String)> = Vec::new();
        for name in disk.list(&dir)? {
            let number = name.strip_suffix(suffix).or_else(|| name.strip_suffix(KEYS_BEFORE));
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                found.push((number, name));
            }
        }
        found.sort();
        let mut state = State { next_number: found.last().map_or(0, |(last, _)| last + 1), ..State::default() };
        for (_, name) in found {
            let content = disk.read(&dir.join(&name))?;
            let kind = if name.ends_with(KEYS_BEFORE) { KEYS_BEFORE } else { suffix };
            let newest_us = blocks(&content).map(|body| each(body, kind)).max().unwrap_or(i64::MIN);
            state.closed.push_back(File { name, bytes: content.len() as u64, newest_us });
        }
        Ok(Self { disk, dir, suffix, state: Mutex::new(state) })
    }

    /// Keeps a block of entries durably.
    pub(crate) fn keep(&self, entries: usize, body: &[u8], newest_us: i64) -> io::Result<()> {
        if body.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(entries).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut block = Vec::with_capacity(body.len() + 8);
        block.extend_from_slice(&count.to_le_bytes());
        block.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
        block.extend_from_slice(body);
        let mut state = self.state.lock();
        if let Some((_, file)) = state.open.take_if(|(_, file)| file.bytes >= FILE_BYTES) {
            state.closed.push_back(file);
        }
        let (handle, mut file) = match state.open.take() {
            Some(open) => open,
            None => self.begin(&mut state)?,
        };
        // A file that could not be written to ends with a torn block; the next one is another file's.
        if let Err(error) = handle.write_all_at(&block, file.bytes).and_then(|()| handle.sync_data()) {
            state.closed.push_back(file);
            return Err(error);
        }
        file.bytes += block.len() as u64;
        file.newest_us = file.newest_us.max(newest_us);
        state.open = Some((handle, file));
        Ok(())
    }

    fn begin(&self, state: &mut State) -> io::Result<(Box<dyn DiskFile>, File)> {
        let name = format!("{:08}{}", state.next_number, self.suffix);
        state.next_number += 1;
        let handle = self.disk.create_new(&self.dir.join(&name))?;
        self.disk.sync_dir(&self.dir)?;
        Ok((handle, File { name, bytes: 0, newest_us: i64::MIN }))
    }

    /// Removes files whose newest entry came before `before_us`.
    pub(crate) fn forget(&self, before_us: i64) -> io::Result<()> {
        let mut state = self.state.lock();
        while let Some(file) = state.closed.iter().position(|file| file.newest_us < before_us) {
            let Some(file) = state.closed.remove(file) else { break };
            remove_if_there(&*self.disk, &self.dir.join(&file.name))?;
        }
        Ok(())
    }

    /// While closed files have more than `bytes_max`, the oldest goes; of its blocks stays what `live` keeps: how many
    /// entries, and their bytes. No file is looked at twice in one call.
    pub(crate) fn shrink(&self, bytes_max: u64, live: impl Fn(&[u8], &str) -> (usize, Vec<u8>)) -> io::Result<()> {
        let rounds = self.state.lock().closed.len();
        for _ in 0..rounds {
            let file = {
                let mut state = self.state.lock();
                let taken: u64 = state.closed.iter().map(|file| file.bytes).sum();
                if taken <= bytes_max {
                    return Ok(());
                }
                let Some(file) = state.closed.pop_front() else { return Ok(()) };
                file
            };
            let path = self.dir.join(&file.name);
            let content = self.disk.read(&path)?;
            let kind = if file.name.ends_with(KEYS_BEFORE) { KEYS_BEFORE } else { self.suffix };
            for body in blocks(&content) {
                let (entries, body) = live(body, kind);
                self.keep(entries, &body, file.newest_us)?;
            }
            remove_if_there(&*self.disk, &path)?;
        }
        Ok(())
    }
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The entries of whole blocks; ends at the first that is torn.
fn blocks(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<8>()?;
        let [a, b, c, d, e, f, g, h] = *head;
        let (count, crc) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let length = lengths(rest, usize::try_from(count).ok()?, crc)?;
        let body = rest.get(..length)?;
        bytes = rest.get(length..)?;
        Some(body)
    })
}

/// How long a block's entries are: keys have one length; answers say it.
fn lengths(rest: &[u8], count: usize, crc: u32) -> Option<usize> {
    let fits = |length: usize| rest.get(..length).is_some_and(|body| !body.is_empty() && crc32c::crc32c(body) == crc);
    let of_keys = count.checked_mul(KEY_BYTES)?;
    if fits(of_keys) {
        return Some(of_keys);
    }
    let mut at = 0_usize;
    for _ in 0..count {
        let length = rest.get(at..)?.first_chunk::<4>()?;
        at = at.checked_add(4)?.checked_add(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    }
    fits(at).then_some(at)
}

#[cfg(test)]
mod tests {
    use lakegate_env::MemDisk;

    use super::*;

    fn entry(n: u64) -> KeyEntry {
        KeyEntry { stream: 1 + n % 3, key: u128::from(n) << 64 | 7, received_us: n.cast_signed() }
    }

    fn body(entries: &[KeyEntry]) -> Vec<u8> {
        let mut out = Vec::new();
        entries.iter().for_each(|entry| entry.put(&mut out));
        out
    }

    fn open(disk: &Arc<MemDisk>) -> (BlockFiles, Vec<KeyEntry>) {
        let mut read = Vec::new();
        let each = |body: &[u8], suffix: &str| {
            read.extend(KeyEntry::all(body, suffix));
            read.last().map_or(0, |entry| entry.received_us)
        };
        let files = BlockFiles::open(disk.clone(), "/keys".into(), KEYS, each).unwrap();
        (files, read)
    }

    #[test]
    fn keys_read_back_after_a_loss_of_power_and_a_torn_block_is_left_out() {
        let disk = Arc::new(MemDisk::new());
        let (files, none) = open(&disk);
        assert!(none.is_empty());
        let first: Vec<_> = (0..100).map(entry).collect();
        files.keep(100, &body(&first), 99).unwrap();
        let disk = Arc::new(disk.crash(1));
        let whole = disk.read(Path::new("/keys/00000000.window")).unwrap();
        for end in 0..whole.len() {
            assert_eq!(blocks(&whole[..end]).count(), 0, "cut at {end}");
        }
        let (files, read) = open(&disk);
        assert_eq!(read, first);
        files.forget(99).unwrap();
        assert_eq!(open(&disk).1, first);
        files.forget(100).unwrap();
        assert!(open(&disk).1.is_empty());
    }

    #[test]
    fn s47_files_over_their_bound_keep_what_is_still_known() {
        let disk = Arc::new(MemDisk::new());
        for from in [0, 100] {
            let (files, _) = open(&disk);
            files.keep(100, &body(&(from..from + 100).map(entry).collect::<Vec<_>>()), 200).unwrap();
        }
        let (files, _) = open(&disk);
        let live = |bytes: &[u8], suffix: &str| {
            let kept: Vec<_> = KeyEntry::all(bytes, suffix).filter(|entry| entry.received_us % 50 == 0).collect();
            (kept.len(), body(&kept))
        };
        files.shrink(5000, live).unwrap();
        let times: Vec<_> = open(&disk).1.iter().map(|entry| entry.received_us).collect();
        assert_eq!(times, (100..200).chain([0, 50]).collect::<Vec<_>>());
    }

    #[test]
    fn f23_keys_of_an_earlier_version_say_nothing_of_the_content() {
        let disk = Arc::new(MemDisk::new());
        let (files, _) = open(&disk);
        files.keep(1, &body(&[entry(5)]), 5).unwrap();
        disk.rename(Path::new("/keys/00000000.window"), Path::new("/keys/00000000.keys")).unwrap();
        assert_eq!(open(&disk).1, [KeyEntry { key: 5 << 64, ..entry(5) }]);
    }
}
