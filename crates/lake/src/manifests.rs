//! Manifests and their lists: read with their places checked, and kept in memory while a table still names them.

use std::collections::HashMap;
use std::sync::Arc;

use iceberg::spec::{Manifest, ManifestFile, ManifestList, Snapshot, TableMetadata};
use parking_lot::Mutex;

use crate::warehouse::{Warehouse, WarehouseError};

/// Reads the list of a snapshot's manifests.
pub(crate) async fn load_manifest_list(
    warehouse: &Warehouse,
    metadata: &TableMetadata,
    snapshot: &Snapshot,
) -> Result<Vec<ManifestFile>, WarehouseError> {
    let location = snapshot.manifest_list();
    let bytes = warehouse.read(location).await?;
    let list =
        ManifestList::parse_with_version(&bytes, metadata.format_version()).map_err(|e| unreadable(location, &e))?;
    Ok(list.consume_entries().into_iter().collect())
}

/// Reads a manifest; entries have what they inherit from the list.
pub(crate) async fn load_manifest(warehouse: &Warehouse, manifest: &ManifestFile) -> Result<Manifest, WarehouseError> {
    let location = &manifest.manifest_path;
    warehouse.check(location)?;
    manifest.load_manifest(warehouse.io()).await.map_err(|e| unreadable(location, &e))
}

fn unreadable(location: &str, error: &iceberg::Error) -> WarehouseError {
    WarehouseError::Store { action: "read", location: location.to_owned(), message: error.to_string() }
}

/// Manifests already read. They never change, so what is here is right.
#[derive(Debug, Default)]
pub(crate) struct ManifestCache(Mutex<HashMap<String, Arc<Manifest>>>);

/// Manifests with more entries than this are not kept.
const MAX_KEPT_ENTRIES: usize = 50_000;

impl ManifestCache {
    pub(crate) async fn load(
        &self,
        warehouse: &Warehouse,
        manifest: &ManifestFile,
    ) -> Result<Arc<Manifest>, WarehouseError> {
        if let Some(known) = self.0.lock().get(&manifest.manifest_path) {
            return Ok(Arc::clone(known));
        }
        let loaded = Arc::new(load_manifest(warehouse, manifest).await?);
        if loaded.entries().len() <= MAX_KEPT_ENTRIES {
            self.0.lock().insert(manifest.manifest_path.clone(), Arc::clone(&loaded));
        }
        Ok(loaded)
    }

    /// Forgets what the newest list does not name.
    pub(crate) fn keep_only(&self, manifests: &[ManifestFile]) {
        let mut kept = self.0.lock();
        if kept.len() > manifests.len().saturating_mul(2).saturating_add(16) {
            let named: std::collections::HashSet<&str> = manifests.iter().map(|m| m.manifest_path.as_str()).collect();
            kept.retain(|path, _| named.contains(path.as_str()));
        }
    }
}
