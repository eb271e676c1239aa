//! Every file that a table's metadata reaches, for a drop that takes them along.

use std::collections::BTreeSet;

use iceberg::TableIdent;

use super::{CatalogError, EmbeddedCatalog};
use crate::manifests::{load_manifest, load_manifest_list};

impl EmbeddedCatalog {
    /// Data, manifests, lists, metadata files and ledger of the table, those outside the warehouse left out. A manifest that
    /// cannot be read is left, with what it names: better a forgotten file than a wrong one removed.
    pub(super) async fn files_of(&self, table: &TableIdent) -> Result<Vec<String>, CatalogError> {
        let Some(loaded) = self.load_if_there(table).await? else {
            return Err(CatalogError::NotFound(format!("table {table}")));
        };
        let mut files = BTreeSet::from([loaded.metadata_location]);
        files.extend(loaded.metadata.metadata_log().iter().map(|log| log.metadata_file.clone()));
        files.extend(loaded.metadata.properties().get(crate::ledger::LEDGER).cloned());
        let mut manifests = BTreeSet::new();
        for snapshot in loaded.metadata.snapshots() {
            let Ok(list) = load_manifest_list(self.warehouse(), &loaded.metadata, snapshot).await else { continue };
            files.insert(snapshot.manifest_list().to_owned());
            for manifest in list {
                if !manifests.insert(manifest.manifest_path.clone()) {
                    continue;
                }
                if let Ok(content) = load_manifest(self.warehouse(), &manifest).await {
                    files.extend(content.entries().iter().map(|e| e.file_path().to_owned()));
                    files.insert(manifest.manifest_path);
                }
            }
        }
        Ok(files.into_iter().filter(|f| self.warehouse().check(f).is_ok()).collect())
    }
}
