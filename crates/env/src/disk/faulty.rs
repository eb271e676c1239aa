//! A disk that fails at a chosen operation, and counts them all.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::{DirLock, Disk, DiskFile};

/// The kinds of operation that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// Making a file.
    Create,
    /// Opening a file.
    Open,
    /// Listing a folder.
    List,
    /// Making a folder.
    CreateDir,
    /// Renaming a file.
    Rename,
    /// Removing a file.
    Remove,
    /// Syncing a folder.
    SyncDir,
    /// Asking for a length, or whether something is there.
    Stat,
    /// Reading from a file.
    Read,
    /// Writing to a file, vectored or not.
    Write,
    /// Syncing a file.
    SyncData,
    /// Allocating zeroed room.
    Allocate,
    /// Cutting a file off.
    Truncate,
    /// Locking a folder.
    Lock,
}

impl OpKind {
    /// Every kind, for tests that go through them.
    pub const ALL: [Self; 14] = [
        Self::Create,
        Self::Open,
        Self::List,
        Self::CreateDir,
        Self::Rename,
        Self::Remove,
        Self::SyncDir,
        Self::Stat,
        Self::Read,
        Self::Write,
        Self::SyncData,
        Self::Allocate,
        Self::Truncate,
        Self::Lock,
    ];
}

/// What a failing operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done; an I/O error is returned.
    Eio,
    /// Nothing is done; "no space left on device" is returned.
    Enospc,
    /// Of a write the first half is done, then an I/O error is returned. Other operations: as [`Fault::Eio`].
    ShortWrite,
    /// All is done, and yet an I/O error is returned.
    EioAfter,
    /// Of a sync nothing is done, and yet success is returned: to prove that a test would notice. Other operations
    /// are done.
    Lie,
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::Enospc => Errno::NOSPC.into(),
            Self::Eio | Self::ShortWrite | Self::EioAfter | Self::Lie => Errno::IO.into(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    kind: OpKind,
    /// Operations of the kind until it acts; 0 acts on every one from now on.
    left: u64,
    fault: Fault,
    from_then_on: bool,
}

#[derive(Default)]
struct Faults {
    counts: BTreeMap<OpKind, u64>,
    plans: Vec<Plan>,
    acted: u64,
}

/// A disk that fails at a chosen operation, and counts them all. Clones are the same disk.
#[derive(Clone)]
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    faults: Arc<Mutex<Faults>>,
}

struct FaultyFile {
    inner: Box<dyn DiskFile>,
    faults: Arc<Mutex<Faults>>,
}

impl FaultyDisk {
    /// A disk that does as `inner` does until it is told to fail.
    #[must_use]
    pub fn new(inner: Arc<dyn Disk>) -> Self {
        Self { inner, faults: Arc::default() }
    }

    /// Makes the `nth` operation of a kind from now (1 is the next) fail, once.
    pub fn fail_once(&self, kind: OpKind, nth: u64, fault: Fault) {
        self.faults.lock().plans.push(Plan { kind, left: nth.max(1), fault, from_then_on: false });
    }

    /// Makes the `nth` operation of a kind from now (1 is the next) fail, and every later one of it.
    pub fn fail_from(&self, kind: OpKind, nth: u64, fault: Fault) {
        self.faults.lock().plans.push(Plan { kind, left: nth.max(1), fault, from_then_on: true });
    }

    /// Ends all failing.
    pub fn heal(&self) {
        self.faults.lock().plans.clear();
    }

    /// How many operations of a kind there were, failed ones included.
    #[must_use]
    pub fn count(&self, kind: OpKind) -> u64 {
        self.faults.lock().counts.get(&kind).copied().unwrap_or(0)
    }

    /// How many operations were made to fail.
    #[must_use]
    pub fn faults_acted(&self) -> u64 {
        self.faults.lock().acted
    }
}

/// Counts an operation and says whether it is to fail.
fn meet(faults: &Mutex<Faults>, kind: OpKind) -> Option<Fault> {
    let faults = &mut *faults.lock();
    *faults.counts.entry(kind).or_default() += 1;
    let mut met = None;
    faults.plans.retain_mut(|plan| {
        if plan.kind != kind || met.is_some() {
            return true;
        }
        plan.left = plan.left.saturating_sub(1);
        if plan.left > 0 {
            return true;
        }
        met = Some(plan.fault);
        plan.from_then_on
    });
    faults.acted += u64::from(met.is_some());
    met
}

fn run<T>(faults: &Mutex<Faults>, kind: OpKind, operate: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    act(meet(faults, kind), operate)
}

fn act<T>(met: Option<Fault>, operate: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match met {
        None | Some(Fault::Lie) => operate(),
        Some(Fault::EioAfter) => operate().and_then(|_| Err(Fault::EioAfter.error())),
        Some(fault) => Err(fault.error()),
    }
}

impl FaultyDisk {
    fn wrap(
        &self,
        kind: OpKind,
        open: impl FnOnce() -> io::Result<Box<dyn DiskFile>>,
    ) -> io::Result<Box<dyn DiskFile>> {
        let inner = run(&self.faults, kind, open)?;
        Ok(Box::new(FaultyFile { inner, faults: Arc::clone(&self.faults) }))
    }
}

impl Disk for FaultyDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.wrap(OpKind::Create, || self.inner.create_new(path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.wrap(OpKind::Open, || self.inner.open(path))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.wrap(OpKind::Open, || self.inner.open_read(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        run(&self.faults, OpKind::List, || self.inner.list(dir))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        run(&self.faults, OpKind::CreateDir, || self.inner.create_dir_all(dir))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        run(&self.faults, OpKind::Rename, || self.inner.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        run(&self.faults, OpKind::Remove, || self.inner.remove(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match meet(&self.faults, OpKind::SyncDir) {
            Some(Fault::Lie) => Ok(()),
            met => act(met, || self.inner.sync_dir(dir)),
        }
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        run(&self.faults, OpKind::Stat, || self.inner.exists(path))
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        run(&self.faults, OpKind::Stat, || self.inner.len(path))
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DirLock>> {
        run(&self.faults, OpKind::Lock, || self.inner.lock_dir(dir))
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        run(&self.faults, OpKind::Read, || self.inner.read_at(buffer, offset))
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_vectored_at(&[IoSlice::new(bytes)], offset)
    }

    fn write_vectored_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        match meet(&self.faults, OpKind::Write) {
            None | Some(Fault::Lie) => self.inner.write_vectored_at(parts, offset),
            Some(Fault::EioAfter) => {
                self.inner.write_vectored_at(parts, offset).and_then(|()| Err(Fault::EioAfter.error()))
            }
            Some(Fault::ShortWrite) => {
                let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
                let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
                self.inner.write_all_at(half, offset).and_then(|()| Err(Fault::ShortWrite.error()))
            }
            Some(fault) => Err(fault.error()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match meet(&self.faults, OpKind::SyncData) {
            Some(Fault::Lie) => Ok(()),
            met => act(met, || self.inner.sync_data()),
        }
    }

    fn allocate_zeroed(&self, length: u64) -> io::Result<()> {
        run(&self.faults, OpKind::Allocate, || self.inner.allocate_zeroed(length))
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        run(&self.faults, OpKind::Truncate, || self.inner.truncate(length))
    }

    fn len(&self) -> io::Result<u64> {
        run(&self.faults, OpKind::Stat, || self.inner.len())
    }
}
