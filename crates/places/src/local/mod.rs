//! Files on this machine, strictly beneath the configured folders.
//!
//! A path is resolved with all its links, looked at as a whole, and then opened beneath its root with no link left to
//! follow ([`open`]): whoever swaps a link in between gets a refusal, not another file.

mod open;
mod walk;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::error::PlaceError;
use crate::settings::{PlacesSettings, with_tenant};
use crate::text::shown;

pub(crate) use open::LocalInput;

/// The folders that may be read, for one tenant.
#[derive(Debug)]
pub(crate) struct Folders {
    roots: Vec<Root>,
    kept_out: Vec<PathBuf>,
    let_in: Vec<PathBuf>,
}

#[derive(Debug)]
struct Root {
    /// As configured.
    named: PathBuf,
    /// With its links resolved.
    real: PathBuf,
}

/// A path inside a root, with no link in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) root: PathBuf,
    pub(crate) path: PathBuf,
}

impl Folders {
    /// A root that is not there (yet) allows nothing.
    pub(crate) fn new(settings: &PlacesSettings, tenant: Option<&str>) -> Self {
        let real = |path: &PathBuf| std::fs::canonicalize(path).ok();
        let roots = settings.roots.iter().filter_map(|root| {
            let named = PathBuf::from(with_tenant(root.to_str()?, tenant)?);
            Some(Root { real: real(&named)?, named: std::path::absolute(&named).ok()? })
        });
        Self {
            roots: roots.collect(),
            kept_out: settings.kept_out.iter().filter_map(real).collect(),
            let_in: settings.let_in.iter().filter_map(real).collect(),
        }
    }

    /// Finds the file or folder that a path leads to.
    pub(crate) fn resolve(&self, path: &Path) -> Result<Resolved, PlaceError> {
        let place = || shown(&path.to_string_lossy());
        let absolute = if path.is_absolute() { path.to_owned() } else { self.beneath_a_root(path)? };
        if !self.names_a_root(&absolute) {
            return Err(forbidden(place(), "it lies in none of the folders that may be read"));
        }
        let real = std::fs::canonicalize(&absolute).map_err(|e| io_error(&absolute, &e))?;
        let Some(root) = self.roots.iter().find(|root| real.starts_with(&root.real)) else {
            return Err(forbidden(place(), "a link on its way leads out of the folders that may be read"));
        };
        if self.is_kept_out(&real) {
            return Err(PlaceError::Forbidden {
                place: place(),
                reason: "it belongs to the server's own files".into(),
                remedy: "put files to import into another folder".into(),
                setting: "imports.roots",
            });
        }
        Ok(Resolved { root: root.real.clone(), path: real })
    }

    /// A relative path is looked for in each root.
    fn beneath_a_root(&self, path: &Path) -> Result<PathBuf, PlaceError> {
        let place = || shown(&path.to_string_lossy());
        if self.roots.is_empty() {
            return Err(forbidden(place(), "no folder may be read"));
        }
        let candidates = self.roots.iter().map(|root| root.named.join(path));
        let found = candidates.into_iter().find(|candidate| candidate.symlink_metadata().is_ok());
        found.ok_or_else(|| PlaceError::NotFound {
            place: place(),
            hint: ": a relative path is looked for in the folders of imports.roots; write it from the root on".into(),
        })
    }

    /// Whether the path, as it is written, begins with a root. Decided without looking at the disk, so that the answer
    /// tells nothing about what is outside.
    fn names_a_root(&self, path: &Path) -> bool {
        let mut plain = PathBuf::new();
        for part in path.components() {
            match part {
                Component::ParentDir => {
                    plain.pop();
                }
                Component::CurDir => {}
                other => plain.push(other),
            }
        }
        self.roots.iter().any(|root| plain.starts_with(&root.named) || plain.starts_with(&root.real))
    }

    /// The nearest rule decides: a folder may be let in inside one that is kept out.
    fn is_kept_out(&self, real: &Path) -> bool {
        let depth = |folders: &[PathBuf]| {
            folders.iter().filter(|dir| real.starts_with(dir)).map(|dir| dir.components().count()).max().unwrap_or(0)
        };
        depth(&self.kept_out) > depth(&self.let_in)
    }
}

fn forbidden(place: String, reason: &str) -> PlaceError {
    PlaceError::Forbidden {
        place,
        reason: reason.to_owned(),
        remedy: "add its folder to imports.roots if it is to be imported; what lies in a bucket is named s3://bucket/…"
            .into(),
        setting: "imports.roots",
    }
}

/// What an error of the system means for a path.
pub(crate) fn io_error(path: &Path, error: &io::Error) -> PlaceError {
    let place = shown(&path.to_string_lossy());
    if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
        let reason = "a link on its way changed while it was opened, or leads in a circle".into();
        return PlaceError::Denied { place, reason };
    }
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => PlaceError::NotFound { place, hint: nearest(path) },
        io::ErrorKind::PermissionDenied => PlaceError::Denied {
            place,
            reason: format!("{error}; give the user that runs lakegate the right to read it"),
        },
        io::ErrorKind::CrossesDevices => {
            PlaceError::Denied { place, reason: "it led out of its folder while it was opened".into() }
        }
        io::ErrorKind::InvalidFilename => {
            PlaceError::Invalid { place, reason: "a part of it is longer than names can be".into() }
        }
        _ => PlaceError::Unavailable { place, reason: error.to_string(), attempts: 1 },
    }
}

/// How far the path leads, for who mistyped it.
fn nearest(path: &Path) -> String {
    let there = path.ancestors().skip(1).find(|dir| dir.is_dir());
    match there {
        Some(dir) if dir.components().count() > 1 => {
            format!(": the last folder on its way that is there is {}", shown(&dir.to_string_lossy()))
        }
        _ => String::new(),
    }
}

/// The state of a file: size and time of change.
pub(crate) fn version_of(metadata: &std::fs::Metadata) -> String {
    format!("{}-{}.{:09}", metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

pub(crate) fn modified_us(metadata: &std::fs::Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000).saturating_add(metadata.mtime_nsec() / 1_000)
}

#[cfg(test)]
mod tests;
