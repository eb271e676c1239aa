//! A table at one instant: what it holds, where, and how far it has come.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef as ArrowSchemaRef;
use iceberg::spec::{ManifestFile, TableMetadata};
use lakegate_model::{LogId, TableName};
use uuid::Uuid;

use crate::catalog::LoadedTable;
use crate::commit::{COMMIT_ID, COUNTERS, LogKeys, LogState};
use crate::error::LakeError;
use crate::manifests::{ManifestCache, load_manifest_list};
use crate::warehouse::Warehouse;
use crate::write::arrow_schema_of;

/// A table at one instant. What it shows never changes.
pub struct TableView {
    pub(crate) metadata: Arc<TableMetadata>,
    pub(crate) warehouse: Warehouse,
    pub(crate) manifest_cache: Arc<ManifestCache>,
    name: TableName,
    metadata_location: String,
    schema: ArrowSchemaRef,
    manifests: tokio::sync::OnceCell<Arc<Vec<ManifestFile>>>,
}

impl std::fmt::Debug for TableView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableView")
            .field("name", &self.name)
            .field("metadata_location", &self.metadata_location)
            .finish_non_exhaustive()
    }
}

/// One snapshot of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id.
    pub snapshot_id: i64,
    /// The one before it.
    pub parent_id: Option<i64>,
    /// Its place among the table's commits.
    pub sequence_number: i64,
    /// When it was committed, in microseconds since 1970.
    pub committed_at_us: i64,
    /// `append`, `replace`, `overwrite` or `delete`.
    pub operation: String,
    /// Its summary.
    pub summary: HashMap<String, String>,
}

/// One data file of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// Where it lies.
    pub location: String,
    /// How many rows it has.
    pub rows: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// Its partition's folder name, such as `event_time_day=2026-11-21`; empty without partitions.
    pub partition: String,
    /// Whether its rows are in the table's order.
    pub sorted: bool,
}

impl TableView {
    pub(crate) fn new(
        name: TableName,
        loaded: LoadedTable,
        manifests: Option<Vec<ManifestFile>>,
        warehouse: Warehouse,
        manifest_cache: Arc<ManifestCache>,
    ) -> Result<Self, LakeError> {
        let LoadedTable { metadata_location, metadata } = loaded;
        let schema = arrow_schema_of(metadata.current_schema())?;
        let manifests = tokio::sync::OnceCell::new_with(manifests.map(Arc::new));
        Ok(Self { metadata, warehouse, manifest_cache, name, metadata_location, schema, manifests })
    }

    /// The table's name.
    #[must_use]
    pub fn name(&self) -> &TableName {
        &self.name
    }

    /// The table's identity: another after it was dropped and made anew.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.metadata.uuid()
    }

    /// The rows' Arrow schema, with the columns' Iceberg ids as field metadata.
    #[must_use]
    pub fn schema(&self) -> ArrowSchemaRef {
        Arc::clone(&self.schema)
    }

    /// The snapshot that is read; none before the first commit.
    #[must_use]
    pub fn snapshot_id(&self) -> Option<i64> {
        self.metadata.current_snapshot_id()
    }

    /// When that snapshot was committed, in microseconds since 1970.
    #[must_use]
    pub fn committed_at_us(&self) -> Option<i64> {
        self.metadata.current_snapshot().map(|s| s.timestamp_ms().saturating_mul(1000))
    }

    /// How many rows it has, by the snapshot's summary.
    #[must_use]
    pub fn total_records(&self) -> u64 {
        self.total("total-records")
    }

    /// How many data files it has, by the snapshot's summary.
    #[must_use]
    pub fn total_data_files(&self) -> u64 {
        self.total("total-data-files")
    }

    /// How many bytes its data files have, by the snapshot's summary.
    #[must_use]
    pub fn total_file_bytes(&self) -> u64 {
        self.total("total-files-size")
    }

    fn total(&self, key: &str) -> u64 {
        let summary = self.metadata.current_snapshot().map(|s| &s.summary().additional_properties);
        summary.and_then(|s| s.get(key)).and_then(|v| v.parse().ok()).unwrap_or(0)
    }

    /// The offset below which all of the log's records for this table are in it; 0 when none are.
    #[must_use]
    pub fn absorbed_next_offset(&self, log: LogId) -> u64 {
        self.log_state(log).and_then(|s| s.absorbed).unwrap_or(0)
    }

    /// How many rows that log's commits brought.
    #[must_use]
    pub fn rows_from(&self, log: LogId) -> u64 {
        self.log_state(log).map_or(0, |s| s.rows)
    }

    /// What a counter has come to, see [`Commit::counts`](crate::Commit::counts); 0 where it was never counted.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        self.properties().get(&format!("{COUNTERS}{name}")).and_then(|v| v.parse().ok()).unwrap_or(0)
    }

    fn log_state(&self, log: LogId) -> Option<LogState> {
        LogState::read(self.properties(), &LogKeys::of(log, 0)).ok()
    }

    /// The table's properties.
    #[must_use]
    pub fn properties(&self) -> &HashMap<String, String> {
        self.metadata.properties()
    }

    /// Where the metadata file lies.
    #[must_use]
    pub fn metadata_location(&self) -> &str {
        &self.metadata_location
    }

    pub(crate) fn metadata(&self) -> &TableMetadata {
        &self.metadata
    }

    /// Its snapshots, the newest first.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let info = |s: &iceberg::spec::SnapshotRef| SnapshotInfo {
            snapshot_id: s.snapshot_id(),
            parent_id: s.parent_snapshot_id(),
            sequence_number: s.sequence_number(),
            committed_at_us: s.timestamp_ms().saturating_mul(1000),
            operation: s.summary().operation.as_str().to_owned(),
            summary: s.summary().additional_properties.clone(),
        };
        let mut snapshots: Vec<SnapshotInfo> = self.metadata.snapshots().map(info).collect();
        snapshots.sort_by_key(|s| std::cmp::Reverse(s.sequence_number));
        snapshots
    }

    /// Its data files.
    ///
    /// # Errors
    /// A manifest cannot be read.
    pub async fn files(&self) -> Result<Vec<FileInfo>, LakeError> {
        let mut files = Vec::new();
        for manifest in self.manifests().await?.iter() {
            let spec = self.metadata.partition_spec_by_id(manifest.partition_spec_id);
            let content = self.manifest_cache.load(&self.warehouse, manifest).await?;
            for entry in content.entries().iter().filter(|e| e.is_alive()) {
                let file = entry.data_file();
                let partition =
                    spec.map(|s| crate::write::partition_path(s, self.metadata.current_schema(), file.partition()));
                files.push(FileInfo {
                    location: file.file_path().to_owned(),
                    rows: file.record_count(),
                    bytes: file.file_size_in_bytes(),
                    partition: partition.unwrap_or_default(),
                    sorted: file.sort_order_id().is_some_and(|id| id > 0),
                });
            }
        }
        Ok(files)
    }

    /// The manifests of the current snapshot; read once.
    pub(crate) async fn manifests(&self) -> Result<Arc<Vec<ManifestFile>>, LakeError> {
        let load = || async {
            match self.metadata.current_snapshot() {
                None => Ok(Arc::new(Vec::new())),
                Some(snapshot) => load_manifest_list(&self.warehouse, &self.metadata, snapshot).await.map(Arc::new),
            }
        };
        Ok(Arc::clone(self.manifests.get_or_try_init(load).await?))
    }

    /// Whether one of the current snapshot's ancestors is that commit.
    pub(crate) fn has_commit(&self, commit_id: Uuid) -> bool {
        let wanted = commit_id.to_string();
        self.ancestors().any(|s| s.summary().additional_properties.get(COMMIT_ID).is_some_and(|id| *id == wanted))
    }

    /// Whether one of the current snapshot's ancestors has that key in its summary.
    pub(crate) fn has_snapshot_with(&self, key: &str) -> bool {
        self.ancestors().any(|s| s.summary().additional_properties.contains_key(key))
    }

    fn ancestors(&self) -> impl Iterator<Item = &iceberg::spec::SnapshotRef> {
        std::iter::successors(self.metadata.current_snapshot(), |s| {
            s.parent_snapshot_id().and_then(|id| self.metadata.snapshot_by_id(id))
        })
    }
}
