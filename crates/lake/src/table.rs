//! One table: what is known of it, and the handle by which it is written.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef as ArrowSchemaRef;
use iceberg::TableIdent;
use iceberg::spec::{ManifestFile, NullOrder, SchemaRef, SortDirection, TableMetadata, Transform};
use lakegate_model::{Contract, LogId, TableName};
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use crate::catalog::LoadedTable;
use crate::commit::{COMMIT_ID, LogKeys, LogState};
use crate::error::LakeError;
use crate::lake::Shared;
use crate::manifests::{ManifestCache, load_manifest_list};
use crate::options::Offload;
use crate::schema::missing_schema;
use crate::warehouse::Warehouse;
use crate::write::{SortKey, WritePlan, WrittenFile, arrow_schema_of, writer_properties, written};

/// A table that can be written. There is one handle per table and lake; commits of one handle take turns.
pub struct LakeTable {
    pub(crate) lake: Arc<Shared>,
    pub(crate) uuid: Uuid,
    pub(crate) manifest_cache: Arc<ManifestCache>,
    pub(crate) turn: tokio::sync::Mutex<()>,
    name: TableName,
    ident: TableIdent,
    contract: RwLock<Option<Contract>>,
    view: RwLock<Arc<TableView>>,
    doubt: Mutex<Doubt>,
    pub(crate) retired: Mutex<RetiredFiles>,
}

/// What the last commit that failed leaves to be found out.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Doubt {
    /// The known state may be old.
    pub(crate) refresh: bool,
    /// This commit may stand.
    pub(crate) unknown: Option<Uuid>,
}

/// Files that a commit made needless.
pub(crate) struct Retired {
    /// Named by no snapshot any more.
    pub(crate) now: Vec<String>,
    /// Named by snapshots up to `last_needed_by`.
    pub(crate) replaced: Vec<String>,
    pub(crate) last_needed_by: i64,
}

/// Files that wait for their removal.
#[derive(Debug, Default)]
pub(crate) struct RetiredFiles {
    /// Until no snapshot with a sequence number up to this one is left.
    pub(crate) while_needed: Vec<(i64, String)>,
    /// Until this instant of the monotonic clock: a reader may have the list in hand.
    pub(crate) until_us: Vec<(u64, String)>,
}

/// How long a file is kept after the last snapshot that names it is gone.
const GRACE_US: u64 = 15 * 60 * 1_000_000;
/// How many files may wait; past it, they are forgotten and stay on disk.
const MAX_WAITING: usize = 100_000;

impl std::fmt::Debug for LakeTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LakeTable").field("name", &self.name).field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

impl LakeTable {
    pub(crate) fn new(
        lake: Arc<Shared>,
        name: TableName,
        ident: TableIdent,
        loaded: LoadedTable,
    ) -> Result<Self, LakeError> {
        let manifest_cache = Arc::new(ManifestCache::default());
        let uuid = loaded.metadata.uuid();
        let view =
            TableView::new(name.clone(), loaded, None, lake.options.warehouse.clone(), Arc::clone(&manifest_cache))?;
        Ok(Self {
            lake,
            uuid,
            manifest_cache,
            turn: tokio::sync::Mutex::new(()),
            name,
            ident,
            contract: RwLock::new(None),
            view: RwLock::new(Arc::new(view)),
            doubt: Mutex::default(),
            retired: Mutex::default(),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &TableName {
        &self.name
    }

    pub(crate) fn ident(&self) -> &TableIdent {
        &self.ident
    }

    /// The last known state.
    #[must_use]
    pub fn view(&self) -> Arc<TableView> {
        Arc::clone(&self.view.read())
    }

    /// Asks the catalog for the newest state.
    ///
    /// # Errors
    /// The catalog or its file could not be read; or another table has the name now.
    pub async fn refresh(&self) -> Result<Arc<TableView>, LakeError> {
        let view = self.refresh_inner().await?;
        if view.uuid() != self.uuid {
            return Err(LakeError::Invalid(format!(
                "{} was dropped and made anew: it was {} and is {}",
                self.name,
                self.uuid,
                view.uuid()
            )));
        }
        Ok(view)
    }

    /// The newest state; kept as the known one unless it is another table's.
    pub(crate) async fn refresh_inner(&self) -> Result<Arc<TableView>, LakeError> {
        let known = self.view();
        let loaded = self.lake.options.catalog.load_table(&self.ident).await?;
        if loaded.metadata_location == known.metadata_location {
            return Ok(known);
        }
        if loaded.metadata.uuid() != self.uuid {
            let (warehouse, cache) = (self.lake.options.warehouse.clone(), Arc::clone(&self.manifest_cache));
            return TableView::new(self.name.clone(), loaded, None, warehouse, cache).map(Arc::new);
        }
        Ok(self.adopt(loaded, None))
    }

    /// Takes a state in as the known one.
    pub(crate) fn adopt(&self, loaded: LoadedTable, manifests: Option<Vec<ManifestFile>>) -> Arc<TableView> {
        let (warehouse, cache) = (self.lake.options.warehouse.clone(), Arc::clone(&self.manifest_cache));
        if let Some(manifests) = &manifests {
            cache.keep_only(manifests);
        }
        let mut known = self.view.write();
        // A refresh that took long must not put an older state over a newer one.
        let older = loaded.metadata.last_sequence_number() < known.metadata.last_sequence_number();
        if !older && let Ok(view) = TableView::new(self.name.clone(), loaded, manifests, warehouse, cache) {
            *known = Arc::new(view);
        }
        Arc::clone(&known)
    }

    pub(crate) fn contract(&self) -> Option<Contract> {
        self.contract.read().clone()
    }

    pub(crate) fn set_contract(&self, contract: &Contract) -> Result<(), LakeError> {
        missing_schema(&self.view().metadata, contract)?;
        *self.contract.write() = Some(contract.clone());
        Ok(())
    }

    pub(crate) fn doubt(&self) -> Doubt {
        *self.doubt.lock()
    }

    pub(crate) fn set_doubt(&self, doubt: Doubt) {
        *self.doubt.lock() = doubt;
    }

    /// Writes rows to durable files under the table's folder. No query sees them before a commit names them.
    ///
    /// # Errors
    /// The rows do not fit the table, or the disk refused; then nothing of them is left.
    pub async fn write(&self, batches: Vec<arrow::array::RecordBatch>) -> Result<Vec<WrittenFile>, LakeError> {
        let plan = Arc::new(self.plan_write()?);
        let encoding = Arc::clone(&plan);
        let encoded = match self.lake.options.offload {
            Offload::Inline => encoding.run(&batches)?,
            Offload::BlockingThreads => {
                let task = tokio::task::spawn_blocking(move || encoding.run(&batches));
                task.await
                    .map_err(|e| LakeError::Invalid(format!("{}: the rows could not be encoded: {e}", self.name)))??
            }
        };
        let mut files = Vec::with_capacity(encoded.len());
        for file in encoded {
            self.lake.options.warehouse.finish(file.finished).await?;
            files.push(file.data_file);
        }
        Ok(written(&plan, self.uuid, files))
    }

    /// Removes files that were written and never handed to [`LakeTable::commit`]. Files of a commit whose outcome is not
    /// known must never come here.
    pub async fn discard(&self, files: &[WrittenFile]) {
        let locations = files.iter().map(|f| f.location().to_owned()).collect();
        if let Err(error) = self.lake.options.warehouse.remove(locations).await {
            tracing::warn!(table = %self.name, %error, "files that no commit names could not be removed");
        }
    }

    fn plan_write(&self) -> Result<WritePlan, LakeError> {
        let view = self.view();
        let metadata = &view.metadata;
        let contract = self.contract();
        let schema: SchemaRef = match contract.as_ref().map(|c| missing_schema(metadata, c)).transpose()?.flatten() {
            Some(schema) => Arc::new(schema),
            None => Arc::clone(metadata.current_schema()),
        };
        let options = &self.lake.options;
        let (sort, complete) = sort_keys(metadata, &schema);
        let order = metadata.default_sort_order();
        let target = metadata.properties().get("write.target-file-size-bytes").and_then(|v| v.parse().ok());
        let folder = match metadata.properties().get("write.data.path") {
            Some(path) => path.trim_end_matches('/').to_owned(),
            None => format!("{}/data", metadata.location().trim_end_matches('/')),
        };
        let stem = uuid::Builder::from_random_bytes(options.random.next_u128().to_be_bytes()).into_uuid();
        Ok(WritePlan {
            table: self.name.to_string(),
            warehouse: options.warehouse.clone(),
            folder,
            stem: stem.simple().to_string(),
            arrow: arrow_schema_of(&schema)?,
            properties: writer_properties(metadata, &schema, contract.as_ref(), options.compression),
            spec: Arc::clone(metadata.default_partition_spec()),
            sort_order_id: (complete && !order.is_unsorted()).then(|| i32::try_from(order.order_id).ok()).flatten(),
            sort,
            schema,
            target_file_bytes: target.unwrap_or(options.target_file_bytes).max(1 << 20),
        })
    }

    /// Notes files that need not be kept for long.
    pub(crate) fn retire(&self, retired: Retired, metadata: &TableMetadata) {
        let now = self.lake.options.clock.monotonic_us();
        let oldest = metadata.snapshots().map(|s| s.sequence_number()).min().unwrap_or(i64::MAX);
        let mut waiting = self.retired.lock();
        let RetiredFiles { while_needed, until_us } = &mut *waiting;
        while_needed.extend(retired.replaced.into_iter().map(|path| (retired.last_needed_by, path)));
        let until = now.saturating_add(GRACE_US);
        until_us.extend(retired.now.into_iter().map(|path| (until, path)));
        while_needed.retain(|(needed_by, path)| {
            let free = *needed_by < oldest;
            if free {
                until_us.push((until, path.clone()));
            }
            !free
        });
        while_needed.truncate(MAX_WAITING);
        until_us.truncate(MAX_WAITING);
    }
}

/// The table's sort order as far as it is of plain columns, and whether that is all of it.
fn sort_keys(metadata: &TableMetadata, schema: &SchemaRef) -> (Vec<SortKey>, bool) {
    let mut keys = Vec::new();
    for field in &metadata.default_sort_order().fields {
        let column = schema.as_struct().fields().iter().position(|f| f.id == field.source_id);
        let (Some(column), Transform::Identity) = (column, field.transform) else { return (keys, false) };
        let options = SortOptions {
            descending: field.direction == SortDirection::Descending,
            nulls_first: field.null_order == NullOrder::First,
        };
        keys.push(SortKey { column, options });
    }
    (keys, true)
}

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
    fn new(
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

    /// Whether one of the current snapshot's ancestors is of that log.
    pub(crate) fn has_snapshot_of(&self, keys: &LogKeys) -> bool {
        self.ancestors().any(|s| s.summary().additional_properties.contains_key(&keys.wal))
    }

    fn ancestors(&self) -> impl Iterator<Item = &iceberg::spec::SnapshotRef> {
        std::iter::successors(self.metadata.current_snapshot(), |s| {
            s.parent_snapshot_id().and_then(|id| self.metadata.snapshot_by_id(id))
        })
    }
}
