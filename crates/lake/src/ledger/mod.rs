//! Which files a table has absorbed, and how far: changed in the same commit as the rows, so that a file is absorbed once.
//!
//! | property | value |
//! |---|---|
//! | `lakegate.files` | how many files are marked |
//! | `lakegate.files.recent` | the newest marks, in base64 |
//! | `lakegate.files.ledger` | where the file of all others lies |
//!
//! The newest marks lie in the property; when they become too many, the commit writes them and all older ones to a new
//! file, sorted by id, and points to it. Files never change, so what was read of one stays right; each is durable before
//! the commit that names it. Where both have a mark, the newest counts. See [`encoding`] for the bytes.
//!
//! Refuses: a ledger that is damaged or lost. It is never taken for empty, which would absorb files twice.

mod encoding;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use uuid::Uuid;

use crate::error::LakeError;
use crate::table::LakeTable;
use crate::view::TableView;

pub(crate) const COUNT: &str = "lakegate.files";
pub(crate) const RECENT: &str = "lakegate.files.recent";
pub(crate) const LEDGER: &str = "lakegate.files.ledger";

/// How the names of ledger files end.
pub(crate) const SUFFIX: &str = "-files.lgl";

/// So many bytes of marks the property holds; each commit writes them again.
const MAX_RECENT_BYTES: usize = 3 << 10;
/// What says how far a file was read has so many bytes, at most.
pub(crate) const MAX_PARTIAL_BYTES: usize = 64;
/// A ledger is kept in memory while its table is; past this size a commit is refused. About six million files.
const MAX_LEDGER_BYTES: usize = 256 << 20;

/// How far a table has absorbed a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMark {
    /// The file's identity.
    pub id: u128,
    /// How many of its rows are in the table.
    pub rows: u64,
    /// Whether that is all of it.
    pub state: FileState,
}

/// Whether a file is absorbed as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// Up to this mark, in the reader's own words; at most 64 bytes.
    Partial(Vec<u8>),
    /// To its end.
    Complete,
}

/// A file's mark, replaced in a commit if it still is what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// What the table must say of the file before; none: nothing.
    pub from: Option<FileMark>,
    /// What it says after.
    pub to: FileMark,
}

/// A mark, and the commit that set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mark: FileMark,
    pub(crate) commit: Uuid,
}

/// Marks of one ledger file, sorted by id.
pub(crate) type Folded = Arc<Vec<Entry>>;

/// The ledger file that was read or written last, under its location.
pub(crate) type LedgerCache = parking_lot::Mutex<Option<(String, Folded)>>;

/// All marks of one state of a table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    location: Option<String>,
    folded: Folded,
    recent: BTreeMap<u128, Entry>,
    count: u64,
}

impl Ledger {
    pub(crate) fn get(&self, id: u128) -> Option<&Entry> {
        let folded = || self.folded.binary_search_by_key(&id, |e| e.mark.id).ok().and_then(|at| self.folded.get(at));
        self.recent.get(&id).or_else(folded)
    }

    /// The first change whose file is not as it must be.
    pub(crate) fn misfit<'a>(&self, changes: &'a [FileChange]) -> Option<&'a FileChange> {
        changes.iter().find(|c| self.get(c.to.id).map(|e| &e.mark) != c.from.as_ref())
    }

    /// Whether that commit set all these marks.
    pub(crate) fn has_done(&self, changes: &[FileChange], commit: Uuid) -> bool {
        !changes.is_empty() && changes.iter().all(|c| self.get(c.to.id).is_some_and(|e| e.commit == commit))
    }

    fn apply(&mut self, changes: &[FileChange], commit: Uuid) {
        for change in changes {
            let id = change.to.id;
            self.count = self.count.saturating_add(u64::from(self.get(id).is_none()));
            self.recent.insert(id, Entry { mark: change.to.clone(), commit });
        }
    }

    fn fold(&mut self, location: String) {
        let mut all = Vec::with_capacity(self.folded.len().saturating_add(self.recent.len()));
        let mut recent = std::mem::take(&mut self.recent).into_values().peekable();
        for entry in self.folded.iter() {
            while let Some(before) = recent.next_if(|r| r.mark.id < entry.mark.id) {
                all.push(before);
            }
            let newer = recent.next_if(|r| r.mark.id == entry.mark.id);
            all.push(newer.unwrap_or_else(|| entry.clone()));
        }
        all.extend(recent);
        self.folded = Arc::new(all);
        self.location = Some(location);
    }
}

/// What a commit's changes make of a ledger.
pub(crate) struct NextLedger {
    pub(crate) properties: Vec<(String, String)>,
    /// A ledger file to be written before the commit.
    pub(crate) written: Option<(String, Bytes)>,
    /// The one whose place it takes.
    pub(crate) replaced: Option<String>,
    folded: Folded,
}

/// Applies changes; `new_location` is where a ledger file would go.
///
/// # Errors
/// The ledger would become too large.
pub(crate) fn advance(
    mut ledger: Ledger,
    changes: &[FileChange],
    commit: Uuid,
    new_location: String,
) -> Result<NextLedger, LakeError> {
    ledger.apply(changes, commit);
    let mut recent = encoding::encode_entries(ledger.recent.values());
    let (mut written, mut replaced) = (None, None);
    let mut properties = vec![(COUNT.to_owned(), ledger.count.to_string())];
    if recent.len() > MAX_RECENT_BYTES {
        replaced = ledger.location.take();
        ledger.fold(new_location.clone());
        let bytes = encoding::encode_ledger(&ledger.folded);
        if bytes.len() > MAX_LEDGER_BYTES {
            return Err(LakeError::Invalid(format!(
                "the table has marks of {} files, which take {} bytes; at most {MAX_LEDGER_BYTES} are kept: import into a new table",
                ledger.count,
                bytes.len()
            )));
        }
        properties.push((LEDGER.to_owned(), new_location.clone()));
        written = Some((new_location, bytes));
        recent.clear();
    }
    properties.push((RECENT.to_owned(), STANDARD_NO_PAD.encode(recent)));
    Ok(NextLedger { properties, written, replaced, folded: ledger.folded })
}

impl LakeTable {
    /// How far a file is absorbed, by the table's newest state; none if nothing of it is.
    ///
    /// # Errors
    /// The catalog or the ledger cannot be read.
    pub async fn absorbed_file(&self, id: u128) -> Result<Option<FileMark>, LakeError> {
        let view = self.refresh().await?;
        Ok(self.ledger_of(&view).await?.get(id).map(|e| e.mark.clone()))
    }

    /// The same for many at once, in their order.
    ///
    /// # Errors
    /// The catalog or the ledger cannot be read.
    pub async fn absorbed_files(&self, ids: &[u128]) -> Result<Vec<Option<FileMark>>, LakeError> {
        let view = self.refresh().await?;
        let ledger = self.ledger_of(&view).await?;
        Ok(ids.iter().map(|id| ledger.get(*id).map(|e| e.mark.clone())).collect())
    }

    /// All marks of a state.
    pub(crate) async fn ledger_of(&self, view: &TableView) -> Result<Ledger, LakeError> {
        let properties = view.properties();
        let Some(count) = properties.get(COUNT) else {
            if view.has_snapshot_with(COUNT) || properties.contains_key(LEDGER) || properties.contains_key(RECENT) {
                return Err(self.lost(COUNT));
            }
            return Ok(Ledger::default());
        };
        let count = count.parse().map_err(|_| self.lost(COUNT))?;
        let recent = self.recent_of(properties)?;
        let location = properties.get(LEDGER).cloned();
        let folded = match &location {
            None => Folded::default(),
            Some(location) => self.folded_at(location).await?,
        };
        let ledger = Ledger { location, folded, recent, count };
        let there = ledger.folded.len().saturating_add(ledger.recent.len());
        // Marks in both places count once; fewer than the count means that some were lost.
        if u64::try_from(there).unwrap_or(u64::MAX) < ledger.count {
            return Err(self.lost(LEDGER));
        }
        Ok(ledger)
    }

    fn recent_of(&self, properties: &HashMap<String, String>) -> Result<BTreeMap<u128, Entry>, LakeError> {
        let text = properties.get(RECENT).ok_or_else(|| self.lost(RECENT))?;
        let bytes = STANDARD_NO_PAD.decode(text).map_err(|_| self.lost(RECENT))?;
        let entries = encoding::decode_entries(&bytes).ok_or_else(|| self.lost(RECENT))?;
        Ok(entries.into_iter().map(|e| (e.mark.id, e)).collect())
    }

    async fn folded_at(&self, location: &str) -> Result<Folded, LakeError> {
        if let Some((_, known)) = self.ledger_cache.lock().as_ref().filter(|(l, _)| l == location) {
            return Ok(Arc::clone(known));
        }
        let bytes = self.lake.options.warehouse.read(location).await?;
        let folded = Arc::new(encoding::decode_ledger(&bytes).ok_or_else(|| {
            LakeError::Invalid(format!(
                "{}: the ledger of absorbed files {location} is damaged; restore the file: without it files would be absorbed twice",
                self.name()
            ))
        })?);
        self.keep_ledger(location, &folded);
        Ok(folded)
    }

    fn keep_ledger(&self, location: &str, folded: &Folded) {
        *self.ledger_cache.lock() = Some((location.to_owned(), Arc::clone(folded)));
    }

    /// After a commit: what it wrote need not be read again.
    pub(crate) fn keep_next_ledger(&self, next: &NextLedger) {
        if let Some((location, _)) = &next.written {
            self.keep_ledger(location, &next.folded);
        }
    }

    fn lost(&self, property: &str) -> LakeError {
        LakeError::Invalid(format!(
            "{}: the property {property} was lost or changed; restore it: it says which files the table has absorbed",
            self.name()
        ))
    }
}
