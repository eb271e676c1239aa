//! Where a file is put that is done with.

use lakegate_places::Location;

/// Where a file goes that is done with: a hidden folder beside it, which no listing looks into.
pub(super) fn aside(location: &Location) -> Option<Location> {
    const FOLDER: &str = ".imported";
    match location {
        Location::Local(path) => {
            let (dir, name) = (path.parent()?.join(FOLDER), path.file_name()?);
            let free = dir.join(name);
            if !free.exists() {
                return Some(Location::Local(free));
            }
            // An earlier file of this name keeps its place.
            let numbered = (1..10_000).map(|n| dir.join(format!("{n}-{}", name.to_string_lossy())));
            numbered.into_iter().find(|path| !path.exists()).map(Location::Local)
        }
        Location::S3 { bucket, key } => {
            let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
            let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
            Some(Location::S3 { bucket: bucket.clone(), key: format!("{folder}{FOLDER}/{name}") })
        }
        Location::Http(_) => None,
    }
}
