//! Which files of a watched place were taken.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use lakegate_places::{Found, Location, Places};
use xxhash_rust::xxh3::Xxh3;

use crate::files::job::Job;
use crate::files::journal::{Id128, Taken};

/// What was taken: in which state, and with which contents.
#[derive(Debug, Default)]
pub(super) struct TakenFiles {
    versions: HashMap<String, String>,
    contents: HashSet<Id128>,
}

impl TakenFiles {
    pub(super) fn insert(&mut self, taken: Taken) {
        self.contents.extend(taken.content);
        self.versions.insert(taken.uri, taken.version);
    }

    pub(super) fn has(&self, uri: &str, version: &str) -> bool {
        self.versions.get(uri).is_some_and(|known| known == version)
    }

    pub(super) fn has_content(&self, content: Id128) -> bool {
        self.contents.contains(&content)
    }
}

/// What a local file holds and what becomes of it: XXH3 of its bytes, its size, and its event type. A renamed file has
/// the same. None: not local, or it cannot be read.
pub(super) fn content_of(places: &Places, job: &Job, file: &Found) -> Option<u128> {
    if !file.uri.starts_with("file:") || job.request.again {
        return None;
    }
    let opened = places.open(&file.uri, Some(job.asker.tenant.as_str())).ok()?;
    let location: &Location = &opened.location;
    let mut hash = Xxh3::new();
    let mut reader = opened.input.stream(0).ok()?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer).ok()? {
            0 => break,
            read => hash.update(buffer.get(..read)?),
        }
    }
    hash.update(&opened.input.len().unwrap_or(0).to_le_bytes());
    hash.update(job.request.event_type_of(location).unwrap_or_default().as_bytes());
    if let Some(staging) = &job.staging {
        hash.update(staging.stream_of(location).as_str().as_bytes());
    } else if job.request.stream.is_none() && job.request.event_type_of(location).is_none() {
        // The stream is the file's name: under another name it is meant for another table.
        hash.update(location.file_name().unwrap_or_default().as_bytes());
    }
    Some(hash.digest128())
}
