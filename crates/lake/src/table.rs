//! The handle by which a table is written.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::SortOptions;
use iceberg::spec::{ManifestFile, NullOrder, SchemaRef, SortDirection, TableMetadata, Transform};
use iceberg::{TableIdent, TableRequirement};
use lakegate_model::{Contract, TableName};
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use crate::catalog::LoadedTable;
use crate::commit::Commit;
use crate::error::LakeError;
use crate::lake::Shared;
use crate::ledger::LedgerCache;
use crate::manifests::ManifestCache;
use crate::options::Offload;
use crate::rewrite::RewriteError;
use crate::schema::missing_schema;
use crate::view::TableView;
use crate::write::{EncodedFile, SortKey, WritePlan, WrittenFile, arrow_schema_of, writer_properties, written};

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
    pub(crate) ledger_cache: LedgerCache,
    /// Files that were written here, and neither committed nor discarded yet.
    pub(crate) live: Mutex<HashSet<String>>,
    /// One compaction at a time.
    pub(crate) compacting: tokio::sync::Mutex<()>,
}

/// What commits that failed leave to be found out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doubt {
    /// The known state may be old.
    pub(crate) refresh: bool,
    /// These commits may stand, or may yet come to.
    pub(crate) unknown: Vec<InFlight>,
}

/// A commit's attempts whose outcome is not known.
#[derive(Debug, Clone)]
pub(crate) struct InFlight {
    pub(crate) commit_id: Uuid,
    /// What each of them requires.
    pub(crate) attempts: Vec<Vec<TableRequirement>>,
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
    /// When the metadata folder was last swept.
    pub(crate) swept_us: Option<u64>,
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
            ledger_cache: LedgerCache::default(),
            live: Mutex::default(),
            compacting: tokio::sync::Mutex::new(()),
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
        if loaded.metadata_location == known.metadata_location() {
            return Ok(known);
        }
        if loaded.metadata.uuid() != self.uuid {
            let (warehouse, cache) = (self.lake.options.warehouse.clone(), Arc::clone(&self.manifest_cache));
            return TableView::new(self.name.clone(), loaded, None, warehouse, cache).map(Arc::new);
        }
        self.adopt(loaded, None)
    }

    /// Takes a state in as the known one.
    ///
    /// # Errors
    /// The state cannot be read; the known one stays, and must not be taken for the newest.
    pub(crate) fn adopt(
        &self,
        loaded: LoadedTable,
        manifests: Option<Vec<ManifestFile>>,
    ) -> Result<Arc<TableView>, LakeError> {
        let (warehouse, cache) = (self.lake.options.warehouse.clone(), Arc::clone(&self.manifest_cache));
        if let Some(manifests) = &manifests {
            cache.keep_only(manifests);
        }
        let mut known = self.view.write();
        // A refresh that took long must not put an older state over a newer one.
        let older = loaded.metadata.last_sequence_number() < known.metadata.last_sequence_number();
        if !older {
            *known = Arc::new(TableView::new(self.name.clone(), loaded, manifests, warehouse, cache)?);
        }
        Ok(Arc::clone(&known))
    }

    pub(crate) fn contract(&self) -> Option<Contract> {
        self.contract.read().clone()
    }

    /// Whether the table, as it is known, has a place for the contract's rows, or can be given one.
    ///
    /// # Errors
    /// A column of another type has a column's name.
    pub fn takes(&self, contract: &Contract) -> Result<(), LakeError> {
        missing_schema(&self.view().metadata, contract).map(drop)
    }

    /// Rows are of this contract from now on. What the table lacks of its columns it gets with the next commit.
    ///
    /// # Errors
    /// As [`Self::takes`]; then the contract before it stays.
    pub fn set_contract(&self, contract: &Contract) -> Result<(), LakeError> {
        missing_schema(&self.view().metadata, contract)?;
        *self.contract.write() = Some(contract.clone());
        Ok(())
    }

    /// Gives the table now what it lacks of the contract, in a commit of its own; whether it lacked anything.
    ///
    /// # Errors
    /// A column of another type has a column's name, or the commit did not come to stand.
    pub async fn conform(&self, contract: &Contract) -> Result<bool, RewriteError> {
        let view = self.refresh().await?;
        if missing_schema(&view.metadata, contract)?.is_none() {
            return Ok(false);
        }
        self.set_contract(contract)?;
        let id = uuid::Builder::from_random_bytes(self.lake.options.random.next_u128().to_be_bytes()).into_uuid();
        self.commit(Commit::of_marks(id, Vec::new(), Vec::new())).await?;
        Ok(true)
    }

    pub(crate) fn doubt(&self) -> Doubt {
        self.doubt.lock().clone()
    }

    pub(crate) fn set_doubt(&self, doubt: Doubt) {
        *self.doubt.lock() = doubt;
    }

    /// Writes rows to durable files under the table's folder. No query sees them before a commit names them.
    ///
    /// # Errors
    /// The rows do not fit the table, or the disk refused; then nothing of them is left.
    pub async fn write(&self, batches: Vec<RecordBatch>) -> Result<Vec<WrittenFile>, LakeError> {
        self.write_by(self.plan_write()?, move |plan| plan.run(&batches)).await
    }

    /// Whether rows need neither partitions nor an order, and may be encoded on a thread that waits for them.
    #[must_use]
    pub fn takes_rows_as_they_come(&self) -> bool {
        matches!(self.lake.options.offload, Offload::BlockingThreads)
            && self.plan_write().is_ok_and(|plan| plan.is_plain())
    }

    /// As [`Self::write`], for rows that are still to come: each batch is asked for when the one before it is encoded, on
    /// a thread that may wait.
    ///
    /// # Errors
    /// As those of [`Self::write`]; and where [`Self::takes_rows_as_they_come`] does not hold.
    pub async fn write_as_they_come(
        &self,
        rows: impl Iterator<Item = RecordBatch> + Send + 'static,
    ) -> Result<Vec<WrittenFile>, LakeError> {
        let plan = self.plan_write()?;
        if !plan.is_plain() {
            return Err(
                plan.misfit("it has partitions or an order now, so that rows are not taken as they come; begin again")
            );
        }
        self.write_by(plan, move |plan| plan.run_as_they_come(rows)).await
    }

    async fn write_by(
        &self,
        plan: WritePlan,
        encode: impl FnOnce(&WritePlan) -> Result<Vec<EncodedFile>, LakeError> + Send + 'static,
    ) -> Result<Vec<WrittenFile>, LakeError> {
        let started_us = self.lake.options.clock.monotonic_us();
        let plan = Arc::new(plan);
        let encoding = Arc::clone(&plan);
        let encoded = match self.lake.options.offload {
            Offload::Inline => encode(&encoding)?,
            Offload::BlockingThreads => {
                let task = tokio::task::spawn_blocking(move || encode(&encoding));
                task.await
                    .map_err(|e| LakeError::Invalid(format!("{}: the rows could not be encoded: {e}", self.name)))??
            }
        };
        let (files, sinks): (Vec<_>, Vec<_>) = encoded.into_iter().map(|f| (f.data_file, f.finished)).unzip();
        if let Err(error) = self.lake.options.warehouse.finish_all(sinks).await {
            let locations = files.iter().map(|f| f.file_path().to_owned()).collect();
            if let Err(error) = self.lake.options.warehouse.remove(locations).await {
                tracing::debug!(table = %self.name, %error, "files that no commit will name are left to the sweep");
            }
            return Err(error.into());
        }
        let files = written(&plan, self.uuid, files, started_us);
        self.live.lock().extend(files.iter().map(|f| f.location().to_owned()));
        metrics::histogram!("lakegate_lake_write_seconds").record(self.seconds_since(started_us));
        metrics::counter!("lakegate_lake_files_written_total")
            .increment(u64::try_from(files.len()).unwrap_or_default());
        metrics::counter!("lakegate_lake_rows_written_total").increment(files.iter().map(WrittenFile::rows).sum());
        metrics::counter!("lakegate_lake_bytes_written_total").increment(files.iter().map(WrittenFile::bytes).sum());
        Ok(files)
    }

    pub(crate) fn seconds_since(&self, started_us: u64) -> f64 {
        let passed = self.lake.options.clock.monotonic_us().saturating_sub(started_us);
        std::time::Duration::from_micros(passed).as_secs_f64()
    }

    /// Removes files that were written and never handed to [`LakeTable::commit`]. Files of a commit whose outcome is not
    /// known must never come here.
    pub async fn discard(&self, files: &[WrittenFile]) {
        self.forget_live(files);
        let locations = files.iter().filter(|f| !f.referenced).map(|f| f.location().to_owned()).collect();
        if let Err(error) = self.lake.options.warehouse.remove(locations).await {
            tracing::warn!(table = %self.name, %error, "files that no commit names could not be removed");
        }
    }

    /// The files are committed or given up: no longer held against the sweep.
    pub(crate) fn forget_live(&self, files: &[WrittenFile]) {
        let mut live = self.live.lock();
        files.iter().for_each(|f| {
            live.remove(f.location());
        });
    }

    pub(crate) fn plan_write(&self) -> Result<WritePlan, LakeError> {
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

    /// Whether a sweep is due; then it counts as made.
    pub(crate) fn is_sweep_due(&self, now_us: u64, every_us: u64) -> bool {
        let mut retired = self.retired.lock();
        let due = retired.swept_us.is_none_or(|last| now_us.saturating_sub(last) >= every_us);
        if due {
            retired.swept_us = Some(now_us);
        }
        due
    }

    /// Notes files that need not be kept for long.
    pub(crate) fn retire(&self, retired: Retired, metadata: &TableMetadata) {
        let now = self.lake.options.clock.monotonic_us();
        let oldest = metadata.snapshots().map(|s| s.sequence_number()).min().unwrap_or(i64::MAX);
        let mut waiting = self.retired.lock();
        let RetiredFiles { while_needed, until_us, .. } = &mut *waiting;
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
