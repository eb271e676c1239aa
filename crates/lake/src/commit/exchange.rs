//! Files of a table exchanged for others in one commit: compaction and row removal.
//!
//! Every attempt looks for the old files in the table as it then is. If one is no longer there, or another engine has
//! delete files in the table, nothing is committed: what was read may not be what the rows are now.

use std::collections::HashSet;

use bytes::Bytes;
use iceberg::spec::{DataFile, FormatVersion, ManifestContentType, ManifestFile, Operation};

use super::attempt::Manifests;
use super::merge::Merged;
use crate::error::LakeError;
use crate::manifests::ManifestCache;

/// Files that a commit takes out of the table.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    /// Each with its partitioning.
    pub(crate) removed: Vec<(DataFile, i32)>,
    /// What the snapshot is called.
    pub(crate) operation: Operation,
}

/// Whether files of the table may be exchanged at all.
///
/// # Errors
/// Why not.
pub(crate) fn check_exchangeable(version: FormatVersion, manifests: &[ManifestFile]) -> Result<(), LakeError> {
    if version != FormatVersion::V2 {
        return Err(LakeError::Contract(format!(
            "its format version is {version}; files are exchanged in version 2 alone"
        )));
    }
    let has_deletes = manifests
        .iter()
        .any(|m| m.content == ManifestContentType::Deletes && (m.has_added_files() || m.has_existing_files()));
    if has_deletes {
        return Err(LakeError::Contract(
            "another engine keeps delete files in it; compact it with that engine".to_owned(),
        ));
    }
    Ok(())
}

/// The list without the removed files: manifests that name them are written anew.
pub(super) async fn take_out(
    manifests: &Manifests<'_>,
    cache: &ManifestCache,
    before: &[ManifestFile],
    exchange: &Exchange,
    stem: &str,
    files: &mut Vec<(String, Bytes)>,
) -> Result<Merged, LakeError> {
    check_exchangeable(manifests.metadata.format_version(), before)?;
    let mut wanted: HashSet<&str> = exchange.removed.iter().map(|(file, _)| file.file_path()).collect();
    let mut merged = Merged { manifests: Vec::with_capacity(before.len()), written: Vec::new(), replaced: Vec::new() };
    for (number, manifest) in before.iter().enumerate() {
        let content = cache.load(manifests.warehouse, manifest).await?;
        let alive = || content.entries().iter().filter(|e| e.is_alive());
        if !alive().any(|e| wanted.contains(e.file_path())) {
            merged.manifests.push(manifest.clone());
            continue;
        }
        let gone =
            || LakeError::Contract(format!("the partitioning {} is no longer there", manifest.partition_spec_id));
        let spec = manifests.metadata.partition_spec_by_id(manifest.partition_spec_id).ok_or_else(gone)?;
        let mut writer = manifests.writer(&format!("{stem}-merged{number}.avro"), spec);
        for entry in alive() {
            let (Some(snapshot_id), Some(sequence)) = (entry.snapshot_id, entry.sequence_number) else {
                return Err(LakeError::Invalid(format!("an entry of {} has no number", manifest.manifest_path)));
            };
            let file = entry.data_file.clone();
            let done = if wanted.remove(entry.file_path()) {
                writer.add_delete_file(file, sequence, entry.file_sequence_number)
            } else {
                writer.add_existing_file(file, snapshot_id, sequence, entry.file_sequence_number)
            };
            done.map_err(LakeError::invalid)?;
        }
        let written = manifests.finish(writer, files).await?;
        merged.written.push(written.manifest_path.clone());
        merged.replaced.push(manifest.manifest_path.clone());
        merged.manifests.push(written);
    }
    match wanted.into_iter().next() {
        None => Ok(merged),
        Some(missing) => Err(LakeError::Contract(format!("{missing} was removed by another writer"))),
    }
}
