//! What keeps commits cheap however many came before: manifests merged in tiers, old snapshots expired.
//!
//! Each commit adds one small manifest. As soon as [`FAN`] manifests of one tier lie side by side they become one of the
//! next tier (a tier holds [`FAN`] times the files of the one below), so that a list has at most some dozens of
//! entries, and a file's entry is rewritten once per tier.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use iceberg::spec::{FormatVersion, MAIN_BRANCH, ManifestContentType, ManifestFile, TableMetadata};

use super::attempt::Manifests;
use crate::error::LakeError;
use crate::manifests::ManifestCache;
use crate::schema::{DEFAULT_SNAPSHOTS_KEEP, SNAPSHOTS_KEEP};

/// How many manifests of one tier become one of the next.
const FAN: usize = 32;
/// A manifest of this size is merged no more (Iceberg's own default target).
const FULL_BYTES: i64 = 8 << 20;

/// A list after merging.
pub(super) struct Merged {
    pub(super) manifests: Vec<ManifestFile>,
    /// The merged manifests' locations.
    pub(super) written: Vec<String>,
    /// The manifests that they take the place of.
    pub(super) replaced: Vec<String>,
}

/// Merges one full tier of `before`, if there is one.
pub(super) async fn merge(
    manifests: &Manifests<'_>,
    cache: &ManifestCache,
    before: &[ManifestFile],
    stem: &str,
    files: &mut Vec<(String, Bytes)>,
) -> Result<Merged, LakeError> {
    let unchanged = || Merged { manifests: before.to_vec(), written: Vec::new(), replaced: Vec::new() };
    let Some(group) = full_tier(manifests.metadata, before) else { return Ok(unchanged()) };
    let spec_id = group.first().map_or(0, |m| m.partition_spec_id);
    let Some(spec) = manifests.metadata.partition_spec_by_id(spec_id) else { return Ok(unchanged()) };
    let mut writer = manifests.writer(&format!("{stem}-merged.avro"), spec);
    for manifest in &group {
        let content = cache.load(manifests.warehouse, manifest).await?;
        for entry in content.entries().iter().filter(|e| e.is_alive()) {
            let (Some(snapshot_id), Some(sequence)) = (entry.snapshot_id, entry.sequence_number) else {
                return Ok(unchanged());
            };
            writer
                .add_existing_file(entry.data_file.clone(), snapshot_id, sequence, entry.file_sequence_number)
                .map_err(LakeError::invalid)?;
        }
    }
    let merged = manifests.finish(writer, files).await?;
    let replaced: HashSet<&str> = group.iter().map(|m| m.manifest_path.as_str()).collect();
    let written = vec![merged.manifest_path.clone()];
    let kept = before.iter().filter(|m| !replaced.contains(m.manifest_path.as_str())).cloned();
    let list = std::iter::once(merged).chain(kept).collect();
    Ok(Merged { manifests: list, written, replaced: replaced.into_iter().map(str::to_owned).collect() })
}

/// The manifests of a tier that is full, the lowest first.
fn full_tier(metadata: &TableMetadata, before: &[ManifestFile]) -> Option<Vec<ManifestFile>> {
    // Row ids of merged entries would have to be spelt out; tables that have them keep their manifests.
    if metadata.format_version() != FormatVersion::V2
        || metadata.properties().get("commit.manifest-merge.enabled").is_some_and(|v| v == "false")
    {
        return None;
    }
    let mut tiers: BTreeMap<(u32, i32), Vec<&ManifestFile>> = BTreeMap::new();
    for manifest in before {
        let mergeable = manifest.content == ManifestContentType::Data
            && manifest.key_metadata.is_none()
            && manifest.manifest_length < FULL_BYTES;
        if mergeable {
            tiers.entry((tier_of(manifest), manifest.partition_spec_id)).or_default().push(manifest);
        }
    }
    let full = tiers.into_values().find(|group| group.len() >= FAN)?;
    Some(full.into_iter().cloned().collect())
}

fn tier_of(manifest: &ManifestFile) -> u32 {
    let files = [manifest.added_files_count, manifest.existing_files_count]
        .into_iter()
        .flatten()
        .fold(0_u32, u32::saturating_add);
    files.max(1).ilog(u32::try_from(FAN).unwrap_or(32))
}

/// The snapshots to be expired with the next commit: the oldest, once there are a fifth more than the table is to keep.
pub(super) fn expired_snapshots(metadata: &TableMetadata) -> Vec<i64> {
    let keep =
        metadata.properties().get(SNAPSHOTS_KEEP).and_then(|v| v.parse().ok()).unwrap_or(DEFAULT_SNAPSHOTS_KEEP).max(2);
    if metadata.snapshots().len() <= keep + keep / 5 { Vec::new() } else { snapshots_beyond(metadata, keep) }
}

/// The snapshots of the main branch beyond its newest `keep`, but for those that another branch or a tag still reaches.
pub(crate) fn snapshots_beyond(metadata: &TableMetadata, keep: usize) -> Vec<i64> {
    if metadata.properties().get("gc.enabled").is_some_and(|v| v == "false") {
        return Vec::new();
    }
    let Some(refs) = refs_of(metadata) else { return Vec::new() };
    let mut kept: HashSet<i64> = HashSet::new();
    for (name, head) in refs {
        let limit = if name == MAIN_BRANCH { keep } else { usize::MAX };
        let mut next = Some(head);
        for _ in 0..limit {
            let Some(snapshot) = next.and_then(|id| metadata.snapshot_by_id(id)) else { break };
            kept.insert(snapshot.snapshot_id());
            next = snapshot.parent_snapshot_id();
        }
    }
    let mut expired: Vec<i64> = metadata.snapshots().map(|s| s.snapshot_id()).filter(|id| !kept.contains(id)).collect();
    expired.sort_unstable();
    expired
}

/// Branches and tags; the library does not give them out, the metadata's JSON does.
fn refs_of(metadata: &TableMetadata) -> Option<HashMap<String, i64>> {
    let json = serde_json::to_value(metadata).ok()?;
    let refs = json.get("refs")?.as_object()?;
    refs.iter().map(|(name, value)| Some((name.clone(), value.get("snapshot-id")?.as_i64()?))).collect()
}
