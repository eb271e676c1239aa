//! What is kept of a job or a watch, so that it goes on after a crash.
//!
//! One file of JSON lines each: the first says what was asked, the next ones what happened, the last one how it ended.
//! The first is synced before the request is answered; the others need not be: a file whose line is lost is looked up
//! in its table, which knows what it absorbed. A torn last line is left out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lakegate_access::Shown;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::job::{Counts, JobKind, JobProblem, JobState};
use super::request::ImportRequest;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// What was asked. The first line.
    Asked(Asked),
    /// A file was begun.
    Begun(Id128),
    /// A file was done with.
    Ended(Ended),
    /// A file of a watched place was taken.
    Taken(Taken),
    /// The end.
    State(JobState),
}

/// What was asked, by whom, when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) kind: JobKind,
    pub(super) tenant: String,
    /// The credentials that it was asked with.
    #[serde(default, alias = "key", skip_serializing_if = "Option::is_none")]
    pub(super) shown: Option<Box<Shown>>,
    pub(super) request: ImportRequest,
    pub(super) created_us: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) upload: Option<Upload>,
}

/// A file that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Upload {
    /// Its name in the spool.
    pub(super) spooled: String,
    /// Its identity.
    pub(super) uri: String,
    pub(super) version: String,
}

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) file: Id128,
    pub(super) counts: Counts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) problem: Option<JobProblem>,
}

/// A file of a watched place, in the state in which it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Taken {
    pub(super) uri: String,
    pub(super) version: String,
    /// What it held, where that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<Id128>,
}

/// A 128-bit number, as text: JSON's numbers are not so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Id128(pub(super) u128);

impl TryFrom<String> for Id128 {
    type Error = std::num::ParseIntError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        u128::from_str_radix(&text, 16).map(Self)
    }
}

impl From<Id128> for String {
    fn from(number: Id128) -> Self {
        format!("{:032x}", number.0)
    }
}

/// The file of one job or watch.
pub(super) struct Journal {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl Journal {
    /// Makes the file, with its first line on disk.
    pub(super) fn create(dir: &Path, id: Uuid, asked: &Asked) -> io::Result<Self> {
        let path = dir.join(format!("{id}.jsonl"));
        let mut file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        file.write_all(&line_bytes(&Line::Asked(asked.clone()))?)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(Self { path, file: Mutex::new(Some(file)) })
    }

    /// Opens the file of an earlier process.
    pub(super) fn reopen(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().append(true).open(path)?;
        // A torn last line must not swallow the next one.
        file.write_all(b"\n")?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(Some(file)) })
    }

    /// A journal of nothing, for what needs not go on.
    pub(super) fn none() -> Self {
        Self { path: PathBuf::new(), file: Mutex::new(None) }
    }

    /// Adds a line. One that cannot be written is missed at most by the figures after a restart.
    pub(super) fn add(&self, line: &Line) {
        let Some(file) = &mut *self.file.lock() else { return };
        let written = line_bytes(line).and_then(|bytes| file.write_all(&bytes));
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "the progress of an import could not be noted");
        }
    }

    /// Removes the file, once what it is about is over for good.
    pub(super) fn remove(&self) -> io::Result<()> {
        if self.file.lock().take().is_some() { fs::remove_file(&self.path) } else { Ok(()) }
    }
}

fn line_bytes(line: &Line) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line).map_err(io::Error::other)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// All lines of a file that can be read.
pub(super) fn read(path: &Path) -> io::Result<Vec<Line>> {
    let bytes = fs::read(path)?;
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// The journals of a folder, oldest first, with their ids.
pub(super) fn list(dir: &Path) -> io::Result<Vec<(Uuid, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jsonl"));
        if let Some(id) = name.and_then(|name| Uuid::parse_str(name).ok()) {
            found.push((id, path));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_left_out_and_harms_no_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let asked = Asked {
            kind: JobKind::Import,
            tenant: "t".into(),
            shown: Some(Box::new(Shown::Key("k".into()))),
            request: ImportRequest::default(),
            created_us: 1,
            upload: None,
        };
        let id = Uuid::from_u128(7);
        let journal = Journal::create(dir.path(), id, &asked).unwrap();
        journal.add(&Line::Begun(Id128(u128::MAX)));
        drop(journal);
        let path = dir.path().join(format!("{id}.jsonl"));
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"begun\":\"00ab");
        fs::write(&path, bytes).unwrap();
        Journal::reopen(&path).unwrap().add(&Line::State(JobState::Done));
        let lines = read(&path).unwrap();
        assert_eq!(lines, [Line::Asked(asked), Line::Begun(Id128(u128::MAX)), Line::State(JobState::Done)]);
        assert_eq!(list(dir.path()).unwrap(), [(id, path)]);
    }
}
