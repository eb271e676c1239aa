//! A file system in memory that can lose power.
//!
//! It knows two states of everything: what is seen now, and what is durable. [`MemDisk::crash`] gives the disk as it
//! could be found after a power loss: for every file the durable content plus a seeded choice of what was written
//! since (none, all, a prefix, or any set of 512-byte sectors), for every folder the durable names plus a seeded
//! choice of the changes since (none, all, a prefix or any set).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::{DirLock, Disk, DiskFile, parent};
use crate::random::{Random, SeededRandom};

/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;

/// A file system in memory. Clones are the same disk.
#[derive(Clone, Default)]
pub struct MemDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// Names as seen now, and as they are durable.
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Changes of names that are not durable, in order.
    name_changes: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    locked: BTreeSet<PathBuf>,
    capacity_bytes: Option<u64>,
}

#[derive(Default, Clone)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<ContentChange>,
}

#[derive(Clone)]
enum ContentChange {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate { length: usize },
}

/// Several names that change as one: a rename takes one away and gives one.
#[derive(Clone)]
struct NameChange {
    dir: PathBuf,
    sets: Vec<(PathBuf, Option<u64>)>,
}

struct MemFile {
    disk: MemDisk,
    inode: u64,
    writable: bool,
}

struct MemLock {
    disk: MemDisk,
    dir: PathBuf,
}

impl DirLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.disk.0.lock().locked.remove(&self.dir);
    }
}

impl MemDisk {
    /// An empty disk without bounds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bounds what all files together may hold; beyond it writes fail with "no space left on device".
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity_bytes = bytes;
    }

    /// What all files that have a name hold together.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.0.lock().used_bytes()
    }

    /// The disk as it could be found after a power loss now. This one goes on unharmed: handles to it stay with it.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let random = SeededRandom::new(seed);
        let state = self.0.lock();
        let mut after = State {
            dirs: state.dirs.clone(),
            next_inode: state.next_inode,
            capacity_bytes: state.capacity_bytes,
            ..State::default()
        };
        after.names.clone_from(&state.durable_names);
        for change in choose(&state.name_changes, &random) {
            apply_names(&mut after.names, &change);
        }
        after.durable_names.clone_from(&after.names);
        for (number, inode) in &state.inodes {
            let content = inode.after_crash(&random);
            after.inodes.insert(*number, Inode { durable: content.clone(), content, changes: Vec::new() });
        }
        Self(Arc::new(Mutex::new(after)))
    }

    /// The disk as a killed process leaves it: everything written is seen, durable or not. A copy.
    #[must_use]
    pub fn kill(&self) -> Self {
        let state = self.0.lock();
        let after = State {
            inodes: state.inodes.clone(),
            next_inode: state.next_inode,
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            name_changes: state.name_changes.clone(),
            dirs: state.dirs.clone(),
            locked: BTreeSet::new(),
            capacity_bytes: state.capacity_bytes,
        };
        Self(Arc::new(Mutex::new(after)))
    }

    /// Damages a file behind everybody's back: gives its content to `change`; the outcome counts as durable.
    ///
    /// # Errors
    /// `NotFound` if there is no such file.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.0.lock();
        let number = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let inode = state.inodes.get_mut(&number).ok_or(io::ErrorKind::NotFound)?;
        change(&mut inode.content);
        inode.durable.clone_from(&inode.content);
        inode.changes.clear();
        Ok(())
    }

    fn file(&self, path: &Path, writable: bool) -> io::Result<Box<dyn DiskFile>> {
        let inode = *self.0.lock().names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(MemFile { disk: self.clone(), inode, writable }))
    }
}

/// A seeded choice of the changes that survive.
fn choose<T: Clone>(changes: &[T], random: &SeededRandom) -> Vec<T> {
    match random.next_u64() % 4 {
        0 => Vec::new(),
        1 => changes.to_vec(),
        2 => {
            let count = random.next_u64() % (changes.len() as u64 + 1);
            changes.iter().take(usize::try_from(count).unwrap_or(0)).cloned().collect()
        }
        _ => changes.iter().filter(|_| random.next_u64().is_multiple_of(2)).cloned().collect(),
    }
}

fn apply_names(names: &mut BTreeMap<PathBuf, u64>, change: &NameChange) {
    for (path, inode) in &change.sets {
        match inode {
            Some(inode) => names.insert(path.clone(), *inode),
            None => names.remove(path),
        };
    }
}

impl State {
    fn used_bytes(&self) -> u64 {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.inodes
            .iter()
            .filter(|(number, _)| named.contains(number))
            .map(|(_, inode)| inode.content.len() as u64)
            .sum()
    }

    fn change_names(&mut self, path: &Path, sets: Vec<(PathBuf, Option<u64>)>) {
        let change = NameChange { dir: parent(path), sets };
        apply_names(&mut self.names, &change);
        self.name_changes.push(change);
    }

    fn has_room(&self, inode: &Inode, length: usize) -> io::Result<()> {
        let grows = length.saturating_sub(inode.content.len()) as u64;
        match self.capacity_bytes {
            Some(capacity) if grows > 0 && self.used_bytes() + grows > capacity => Err(Errno::NOSPC.into()),
            _ => Ok(()),
        }
    }
}

impl Inode {
    fn apply(content: &mut Vec<u8>, change: &ContentChange) {
        match change {
            ContentChange::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                if let Some(place) = content.get_mut(*offset..end) {
                    place.copy_from_slice(bytes);
                }
            }
            ContentChange::Truncate { length } => content.resize(*length, 0),
        }
    }

    fn after_crash(&self, random: &SeededRandom) -> Vec<u8> {
        let mut content = self.durable.clone();
        let sectors: Vec<ContentChange> = self.changes.iter().flat_map(ContentChange::sectors).collect();
        for change in choose(&sectors, random) {
            Self::apply(&mut content, &change);
        }
        // The new length may have become durable before what fills it.
        if content.len() < self.content.len() && random.next_u64().is_multiple_of(2) {
            content.resize(self.content.len(), 0);
        }
        content
    }
}

impl ContentChange {
    /// The same change in pieces that a disk writes as a whole.
    fn sectors(&self) -> Vec<Self> {
        let Self::Write { offset, bytes } = self else { return vec![self.clone()] };
        let mut pieces = Vec::new();
        let (mut at, mut rest) = (*offset, bytes.as_slice());
        while !rest.is_empty() {
            let count = (SECTOR_BYTES - at % SECTOR_BYTES).min(rest.len());
            let (piece, after) = rest.split_at(count);
            pieces.push(Self::Write { offset: at, bytes: piece.to_vec() });
            at += count;
            rest = after;
        }
        pieces
    }
}

impl Disk for MemDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !state.dirs.contains(&parent(path)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        state.change_names(path, vec![(path.to_path_buf(), Some(inode))]);
        drop(state);
        Ok(Box::new(MemFile { disk: self.clone(), inode, writable: true }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.file(path, true)
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.file(path, false)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        for above in dir.ancestors() {
            state.dirs.insert(above.to_path_buf());
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change_names(to, vec![(from.to_path_buf(), None), (to.to_path_buf(), Some(inode))]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_names(path, vec![(path.to_path_buf(), None)]);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let state = &mut *self.0.lock();
        let (durable, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.name_changes).into_iter().partition(|change| change.dir == dir);
        for change in &durable {
            apply_names(&mut state.durable_names, change);
        }
        state.name_changes = rest;
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.0.lock();
        Ok(state.names.contains_key(path) || state.dirs.contains(path))
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        self.file(path, false)?.len()
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DirLock>> {
        if !self.0.lock().locked.insert(dir.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemLock { disk: self.clone(), dir: dir.to_path_buf() }))
    }
}

impl MemFile {
    fn change(&self, change: ContentChange) -> io::Result<()> {
        if !self.writable {
            return Err(Errno::BADF.into());
        }
        let state = &mut *self.disk.0.lock();
        let inode = state.inodes.get(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let length = match &change {
            ContentChange::Write { offset, bytes } => offset + bytes.len(),
            ContentChange::Truncate { length } => *length,
        };
        state.has_room(inode, length)?;
        let inode = state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        Inode::apply(&mut inode.content, &change);
        inode.changes.push(change);
        Ok(())
    }

    fn with<T>(&self, look: impl FnOnce(&mut Inode) -> T) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        Ok(look(state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?))
    }
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

impl DiskFile for MemFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = place(offset)?;
        self.with(|inode| {
            let rest = inode.content.get(offset..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
                to.copy_from_slice(from);
            }
            count
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(ContentChange::Write { offset: place(offset)?, bytes: bytes.to_vec() })
    }

    fn write_vectored_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(part);
        }
        self.change(ContentChange::Write { offset: place(offset)?, bytes })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|inode| {
            for change in std::mem::take(&mut inode.changes) {
                Inode::apply(&mut inode.durable, &change);
            }
        })
    }

    fn allocate_zeroed(&self, length: u64) -> io::Result<()> {
        let length = place(length)?;
        let now = self.with(|inode| inode.content.len())?;
        if now < length {
            self.change(ContentChange::Write { offset: now, bytes: vec![0; length - now] })?;
            self.sync_data()?;
        }
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.change(ContentChange::Truncate { length: place(length)? })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|inode| inode.content.len() as u64)
    }
}
