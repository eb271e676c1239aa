//! Lists a folder.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::open::same_file;
use super::{Folders, io_error, modified_us, version_of};
use crate::error::PlaceError;
use crate::listing::{Chooser, Found, ListOptions, Listing, is_unfinished};
use crate::location::local_uri;
use crate::text::shown;

/// Folders inside folders, at most.
const DEPTH_MAX: usize = 64;

impl Folders {
    /// Lists the files of a folder. Links to files are listed where they lead into a root; links to folders are not
    /// followed. A file is listed as itself.
    pub(crate) fn list(&self, path: &Path, options: &ListOptions, most: usize) -> Result<Listing, PlaceError> {
        let top = self.resolve(path)?.path;
        let metadata = fs::metadata(&top).map_err(|e| io_error(&top, &e))?;
        let chooser = Chooser::new(options.pattern.as_deref())?;
        let mut walk = Walk { folders: self, chooser, top, most, seen: HashSet::new(), listing: Listing::default() };
        if metadata.is_file() {
            let relative = walk.top.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            walk.listing.files.push(found(&walk.top, relative, &metadata));
            return Ok(walk.listing);
        }
        let below = options.recursive || walk.chooser.looks_below();
        let mut waiting = vec![(walk.top.clone(), 0)];
        while let Some((dir, depth)) = waiting.pop() {
            let inner = walk.list_one(&dir, depth == 0)?;
            if below && depth < DEPTH_MAX {
                waiting.extend(inner.into_iter().map(|dir| (dir, depth + 1)));
            }
        }
        let mut listing = walk.listing;
        listing.files.sort_by(|a, b| a.relative.cmp(&b.relative));
        Ok(listing)
    }
}

struct Walk<'a> {
    folders: &'a Folders,
    chooser: Chooser,
    top: PathBuf,
    most: usize,
    seen: HashSet<(u64, u64)>,
    listing: Listing,
}

impl Walk<'_> {
    /// Lists one folder and returns those in it. A folder below that cannot be read, or is gone by now, is passed over.
    fn list_one(&mut self, dir: &Path, is_top: bool) -> Result<Vec<PathBuf>, PlaceError> {
        let mut inner = Vec::new();
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if is_top => return Err(io_error(dir, &e)),
            Err(_) => {
                self.listing.passed_over += 1;
                return Ok(inner);
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                let wanted = !is_unfinished(&entry.file_name().to_string_lossy()) && !self.folders.is_kept_out(&path);
                if wanted {
                    inner.push(path);
                } else {
                    self.listing.passed_over += 1;
                }
            } else {
                self.look_at(path, kind.is_symlink())?;
            }
        }
        Ok(inner)
    }

    fn look_at(&mut self, path: PathBuf, is_link: bool) -> Result<(), PlaceError> {
        let relative = path.strip_prefix(&self.top).unwrap_or(&path).to_string_lossy().into_owned();
        if !self.chooser.wants(&relative) {
            self.listing.passed_over += 1;
            return Ok(());
        }
        let real = if is_link { self.folders.resolve(&path).map(|found| found.path) } else { Ok(path) };
        let metadata = real.as_ref().ok().and_then(|real| fs::symlink_metadata(real).ok());
        match (real, metadata) {
            (Ok(real), Some(metadata)) if metadata.is_file() && self.seen.insert(same_file(&metadata)) => {
                if self.listing.files.len() >= self.most {
                    return Err(PlaceError::TooLarge {
                        place: shown(&self.top.to_string_lossy()),
                        found: format!("more than {} files", self.most),
                        limit: self.most as u64,
                        setting: "imports.limits.files_max",
                    });
                }
                self.listing.files.push(found(&real, relative, &metadata));
            }
            _ => self.listing.passed_over += 1,
        }
        Ok(())
    }
}

fn found(path: &Path, relative: String, metadata: &fs::Metadata) -> Found {
    Found {
        uri: local_uri(path),
        relative,
        bytes: metadata.len(),
        version: version_of(metadata),
        modified_us: modified_us(metadata),
    }
}
