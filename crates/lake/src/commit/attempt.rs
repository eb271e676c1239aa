//! One attempt of a commit: its manifests and list written, its requirements and updates put together.
//!
//! The manifest that names the new files is written once and serves every attempt; the list, and manifests merged on
//! the way, belong to the base they were built on and are written anew for each.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use iceberg::io::{MemoryStorage, OutputFile, Storage};
use iceberg::spec::{
    FormatVersion, MAIN_BRANCH, ManifestFile, ManifestListWriter, ManifestWriter, ManifestWriterBuilder, Operation,
    PartitionSpecRef, Schema, SchemaRef, Snapshot, SnapshotReference, SnapshotRetention, SnapshotSummaryCollector,
    Summary, TableMetadata, UNASSIGNED_SEQUENCE_NUMBER,
};
use iceberg::{TableRequirement, TableUpdate};
use uuid::Uuid;

use super::exchange::{self, Exchange};
use super::state::{COUNTERS, LogKeys};
use super::{BaseState, COMMIT_ID, Commit, LogStep, merge, snapshot_id_of};
use crate::adopt::{NAME_MAPPING, extend_mapping};
use crate::error::LakeError;
use crate::ledger::{self, NextLedger};
use crate::schema::missing_schema;
use crate::table::{LakeTable, Retired};
use crate::view::TableView;
use crate::warehouse::Warehouse;

/// One attempt after another of one commit.
pub(super) struct Attempt {
    snapshot_id: i64,
    commit_id: Uuid,
    warehouse: Warehouse,
    /// Manifests of the commit's own files, once written.
    own: Option<Vec<ManifestFile>>,
    requirements: Vec<TableRequirement>,
    updates: Vec<TableUpdate>,
    /// What the snapshot's list names.
    manifests: Vec<ManifestFile>,
    sequence_number: i64,
    /// Files of this attempt alone.
    own_files: Vec<String>,
    /// Files of attempts that did not stand, or may yet.
    left_over: Vec<String>,
    /// Manifests that this attempt's merged ones replace.
    replaced: Vec<String>,
    /// Snapshots that this attempt expires.
    expired: Vec<i64>,
    expired_lists: Vec<String>,
    ledger: Option<NextLedger>,
    exchange: Option<Exchange>,
}

impl Attempt {
    pub(super) fn new(table: &LakeTable, commit: &Commit, exchange: Option<Exchange>) -> Self {
        Self {
            snapshot_id: snapshot_id_of(commit.commit_id),
            commit_id: commit.commit_id,
            warehouse: table.lake.options.warehouse.clone(),
            own: None,
            requirements: Vec::new(),
            updates: Vec::new(),
            manifests: Vec::new(),
            sequence_number: 0,
            own_files: Vec::new(),
            left_over: Vec::new(),
            replaced: Vec::new(),
            expired: Vec::new(),
            expired_lists: Vec::new(),
            ledger: None,
            exchange,
        }
    }

    pub(super) fn value(&self) -> (Vec<TableRequirement>, Vec<TableUpdate>) {
        (self.requirements.clone(), self.updates.clone())
    }

    pub(super) fn sequence_number(&self) -> i64 {
        self.sequence_number
    }

    pub(super) fn take_manifests(&mut self) -> Vec<ManifestFile> {
        std::mem::take(&mut self.manifests)
    }

    pub(super) fn take_ledger(&mut self) -> Option<NextLedger> {
        self.ledger.take()
    }

    /// The attempt may stand: its files are not touched until it is known.
    pub(super) fn keep_files(&mut self) {
        self.left_over.append(&mut self.own_files);
    }

    /// After a success: what no snapshot will need.
    pub(super) fn take_retired(&mut self) -> Retired {
        Retired {
            now: self.left_over.drain(..).chain(self.expired_lists.drain(..)).collect(),
            replaced: std::mem::take(&mut self.replaced),
            last_needed_by: self.sequence_number.saturating_sub(1),
        }
    }

    /// Builds and uploads everything for a commit on `base`.
    pub(super) async fn prepare(
        &mut self,
        table: &LakeTable,
        commit: &Commit,
        base: &TableView,
        state: BaseState,
    ) -> Result<(), LakeError> {
        self.left_over.append(&mut self.own_files);
        let metadata = base.metadata();
        let schema = target_schema(table, commit, metadata)?;
        let mut files = Vec::new();
        let stem = format!("{}/metadata/{}", metadata.location().trim_end_matches('/'), self.commit_id.simple());
        let unique = format!("{:012x}", table.lake.options.random.next_u64() >> 16);
        self.replaced.clear();
        let properties = self.properties(table, commit, (metadata, &schema), state, &format!("{stem}-{unique}"))?;
        files.extend(self.ledger.as_ref().and_then(|l| l.written.clone()));
        let warehouse = self.warehouse.clone();
        let manifests = Manifests {
            io: scratch(),
            warehouse: &warehouse,
            metadata,
            schema: &schema.schema,
            snapshot_id: self.snapshot_id,
        };
        let own = match &self.own {
            Some(own) => own.clone(),
            None => manifests.of_files(commit, &format!("{stem}-{unique}"), &mut files).await?,
        };
        let mut list = own.clone();
        let before = base.manifests().await?;
        let (cache, unique_stem) = (&table.manifest_cache, format!("{stem}-{unique}"));
        let merged = match &self.exchange {
            None => merge::merge(&manifests, cache, &before, &unique_stem, &mut files).await?,
            Some(e) => exchange::take_out(&manifests, cache, &before, e, &unique_stem, &mut files).await?,
        };
        self.own_files.extend(merged.written.iter().cloned());
        self.replaced.extend(merged.replaced);
        let removed = self.exchange.iter().flat_map(|e| &e.removed).map(|(file, _)| file.file_path().to_owned());
        self.replaced.extend(removed.filter(|path| is_own_data(metadata, path)));
        list.extend(merged.manifests);
        self.sequence_number = metadata.next_sequence_number();
        let list_location = format!(
            "{}/metadata/snap-{}-{}-{unique}.avro",
            metadata.location().trim_end_matches('/'),
            self.snapshot_id,
            self.commit_id.simple()
        );
        let (bytes, next_row_id) = manifests.encode_list(&list, self.sequence_number).await?;
        files.push((list_location.clone(), bytes));
        self.own_files.push(list_location.clone());
        self.manifests = list.into_iter().map(|m| with_sequence(m, self.sequence_number)).collect();
        let added_rows = next_row_id.map(|next| (metadata.next_row_id(), next.saturating_sub(metadata.next_row_id())));
        let snapshot = self.snapshot(table, commit, base, &schema, list_location, added_rows);
        self.put_together(metadata, properties, &schema, snapshot);
        self.warehouse.save(files).await?;
        self.own = Some(own);
        Ok(())
    }

    /// The properties that the commit sets, and the ledger file that goes with them.
    fn properties(
        &mut self,
        table: &LakeTable,
        commit: &Commit,
        (metadata, schema): (&TableMetadata, &TargetSchema),
        state: BaseState,
        stem: &str,
    ) -> Result<HashMap<String, String>, LakeError> {
        let mut properties: HashMap<String, String> = commit.properties.clone().into_iter().collect();
        if commit.files.iter().any(|f| f.mapped) {
            let known = metadata.properties().get(NAME_MAPPING);
            properties.insert(NAME_MAPPING.to_owned(), extend_mapping(known, &schema.schema)?);
        }
        if let Some(LogStep { position, .. }) = &commit.log {
            let writer = &table.lake.options.writer;
            let keys = LogKeys::new(writer);
            let rows: u64 = commit.files.iter().map(super::WrittenFile::rows).sum();
            properties.insert(keys.wal, position.next_offset.to_string());
            properties.insert(keys.epoch, format!("{}:{}", writer.epoch, writer.instance));
            properties.insert(keys.rows, state.log.rows.saturating_add(rows).to_string());
            properties.insert(keys.commit, commit.commit_id.to_string());
        }
        for (name, added) in &commit.counts {
            let key = format!("{COUNTERS}{name}");
            let before = match metadata.properties().get(&key) {
                None => 0,
                Some(text) => text.parse::<u64>().map_err(|_| {
                    LakeError::Invalid(format!("the table's property {key} is {text:?}, not a number; restore it"))
                })?,
            };
            properties.insert(key, before.saturating_add(*added).to_string());
        }
        self.ledger = None;
        if !commit.marks.is_empty() {
            let location = format!("{stem}{}", ledger::SUFFIX);
            let next = ledger::advance(state.ledger, &commit.marks, commit.commit_id, location)?;
            properties.extend(next.properties.iter().cloned());
            self.own_files.extend(next.written.iter().map(|(location, _)| location.clone()));
            self.replaced.extend(next.replaced.iter().cloned());
            self.ledger = Some(next);
        }
        Ok(properties)
    }

    fn snapshot(
        &self,
        table: &LakeTable,
        commit: &Commit,
        base: &TableView,
        schema: &TargetSchema,
        list_location: String,
        added_rows: Option<(u64, u64)>,
    ) -> Snapshot {
        let metadata = base.metadata();
        let wall_ms = table.lake.options.clock.wall_us() / 1000;
        let builder = Snapshot::builder()
            .with_snapshot_id(self.snapshot_id)
            .with_parent_snapshot_id(metadata.current_snapshot_id())
            .with_sequence_number(self.sequence_number)
            // Clocks jump; a table's time does not go back.
            .with_timestamp_ms(wall_ms.max(metadata.last_updated_ms()))
            .with_manifest_list(list_location)
            .with_schema_id(schema.id)
            .with_summary(summary(table, commit, self.exchange.as_ref(), metadata, &schema.schema));
        match added_rows {
            Some((first, added)) => builder.with_row_range(first, added).build(),
            None => builder.build(),
        }
    }

    fn put_together(
        &mut self,
        metadata: &TableMetadata,
        properties: HashMap<String, String>,
        schema: &TargetSchema,
        snapshot: Snapshot,
    ) {
        self.requirements = vec![
            TableRequirement::UuidMatch { uuid: metadata.uuid() },
            TableRequirement::RefSnapshotIdMatch {
                r#ref: MAIN_BRANCH.to_owned(),
                snapshot_id: metadata.current_snapshot_id(),
            },
        ];
        self.updates.clear();
        if schema.is_new {
            self.requirements
                .push(TableRequirement::CurrentSchemaIdMatch { current_schema_id: metadata.current_schema_id() });
            self.requirements
                .push(TableRequirement::LastAssignedFieldIdMatch { last_assigned_field_id: metadata.last_column_id() });
            self.updates.push(TableUpdate::AddSchema { schema: schema.schema.as_ref().clone() });
            self.updates.push(TableUpdate::SetCurrentSchema { schema_id: -1 });
        }
        self.updates.push(TableUpdate::AddSnapshot { snapshot });
        let retention =
            SnapshotRetention::Branch { min_snapshots_to_keep: None, max_snapshot_age_ms: None, max_ref_age_ms: None };
        let reference = SnapshotReference { snapshot_id: self.snapshot_id, retention };
        self.updates.push(TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.to_owned(), reference });
        self.updates.push(TableUpdate::SetProperties { updates: properties });
        self.expired = merge::expired_snapshots(metadata);
        self.expired_lists = self
            .expired
            .iter()
            .filter_map(|id| metadata.snapshot_by_id(*id))
            .map(|s| s.manifest_list().to_owned())
            .collect();
        if !self.expired.is_empty() {
            self.updates.push(TableUpdate::RemoveSnapshots { snapshot_ids: self.expired.clone() });
        }
    }
}

/// The schema that the table has after the commit.
pub(super) struct TargetSchema {
    schema: SchemaRef,
    id: i32,
    is_new: bool,
}

fn target_schema(table: &LakeTable, commit: &Commit, metadata: &TableMetadata) -> Result<TargetSchema, LakeError> {
    let known = |schema: &Schema| metadata.schemas_iter().any(|s| s.as_struct() == schema.as_struct());
    let missing = match table.contract() {
        Some(contract) => missing_schema(metadata, &contract)?,
        None => None,
    };
    for file in &commit.files {
        let fits = known(&file.schema) || missing.as_ref().is_some_and(|m| m.as_struct() == file.schema.as_struct());
        if !fits {
            return Err(LakeError::Contract(
                "columns were added to it by another writer under the same ids".to_owned(),
            ));
        }
    }
    match missing {
        None => Ok(TargetSchema {
            schema: Arc::clone(metadata.current_schema()),
            id: metadata.current_schema_id(),
            is_new: false,
        }),
        Some(schema) => {
            // As the table's builder numbers it: a schema that was there before keeps its id.
            let same = metadata.schemas_iter().find(|s| s.as_struct() == schema.as_struct()).map(|s| s.schema_id());
            let id = same
                .unwrap_or_else(|| metadata.schemas_iter().map(|s| s.schema_id()).max().unwrap_or(0).saturating_add(1));
            let schema = schema.into_builder().with_schema_id(id).build().map_err(LakeError::invalid)?;
            Ok(TargetSchema { schema: Arc::new(schema), id, is_new: true })
        }
    }
}

const TOTALS: [(&str, &str, &str); 6] = [
    ("total-data-files", "added-data-files", "deleted-data-files"),
    ("total-delete-files", "added-delete-files", "removed-delete-files"),
    ("total-records", "added-records", "deleted-records"),
    ("total-files-size", "added-files-size", "removed-files-size"),
    ("total-position-deletes", "added-position-deletes", "removed-position-deletes"),
    ("total-equality-deletes", "added-equality-deletes", "removed-equality-deletes"),
];

fn summary(
    table: &LakeTable,
    commit: &Commit,
    exchange: Option<&Exchange>,
    metadata: &TableMetadata,
    schema: &SchemaRef,
) -> Summary {
    let mut collector = SnapshotSummaryCollector::default();
    for file in &commit.files {
        if let Some(spec) = metadata.partition_spec_by_id(file.spec_id) {
            collector.add_file(&file.data_file, Arc::clone(schema), Arc::clone(spec));
        }
    }
    for (file, spec_id) in exchange.iter().flat_map(|e| &e.removed) {
        if let Some(spec) = metadata.partition_spec_by_id(*spec_id) {
            collector.remove_file(file, Arc::clone(schema), Arc::clone(spec));
        }
    }
    let mut entries = collector.build();
    let previous = metadata.current_snapshot().map(|s| &s.summary().additional_properties);
    for (total, added, removed) in TOTALS {
        // A total that the snapshot before does not have cannot be known.
        let before = match previous {
            None => Some(0),
            Some(summary) => summary.get(total).and_then(|v| v.parse::<u64>().ok()),
        };
        let [added, removed] =
            [added, removed].map(|key| entries.get(key).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0));
        if let Some(before) = before {
            entries.insert(total.to_owned(), before.saturating_add(added).saturating_sub(removed).to_string());
        }
    }
    let writer = &table.lake.options.writer;
    let keys = LogKeys::new(writer);
    entries.insert("engine-name".to_owned(), "lakegate".to_owned());
    entries.insert("engine-version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    entries.insert(COMMIT_ID.to_owned(), commit.commit_id.to_string());
    entries.insert("lakegate.writer".to_owned(), format!("{} {}:{}", writer.node, writer.epoch, writer.instance));
    if let Some(LogStep { position, .. }) = &commit.log {
        entries.insert(keys.wal, position.next_offset.to_string());
    }
    // A witness for as long as snapshots are kept: whoever loses the property is told so.
    if !commit.marks.is_empty() || metadata.properties().contains_key(ledger::COUNT) {
        entries.insert(ledger::COUNT.to_owned(), "kept".to_owned());
    }
    let operation = exchange.map_or(Operation::Append, |e| e.operation.clone());
    Summary { operation, additional_properties: entries }
}

/// Whether a data file lies in the table's own folder: any other is never removed.
pub(crate) fn is_own_data(metadata: &TableMetadata, path: &str) -> bool {
    let own = format!("{}/", metadata.location().trim_end_matches('/'));
    path.starts_with(&own)
}

fn with_sequence(mut manifest: ManifestFile, sequence_number: i64) -> ManifestFile {
    if manifest.sequence_number == UNASSIGNED_SEQUENCE_NUMBER {
        manifest.sequence_number = sequence_number;
    }
    if manifest.min_sequence_number == UNASSIGNED_SEQUENCE_NUMBER {
        manifest.min_sequence_number = sequence_number;
    }
    manifest
}

/// A store of its own in memory: the library's writers write there, and the bytes go from there to the warehouse, which
/// syncs them.
fn scratch() -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new())
}

/// Encodes manifests and lists.
pub(super) struct Manifests<'a> {
    io: Arc<MemoryStorage>,
    pub(super) warehouse: &'a Warehouse,
    pub(super) metadata: &'a TableMetadata,
    schema: &'a SchemaRef,
    snapshot_id: i64,
}

impl Manifests<'_> {
    fn output(&self, location: &str) -> OutputFile {
        OutputFile::new(Arc::clone(&self.io) as Arc<dyn Storage>, location.to_owned())
    }

    pub(super) fn writer(&self, location: &str, spec: &PartitionSpecRef) -> ManifestWriter {
        let schema = Arc::clone(self.schema);
        let builder =
            ManifestWriterBuilder::new(self.output(location), Some(self.snapshot_id), schema, spec.as_ref().clone());
        match self.metadata.format_version() {
            FormatVersion::V1 => builder.build_v1(),
            FormatVersion::V2 => builder.build_v2_data(),
            FormatVersion::V3 => builder.build_v3_data(),
        }
    }

    /// Closes a writer and gives the bytes out.
    pub(super) async fn finish(
        &self,
        writer: ManifestWriter,
        files: &mut Vec<(String, Bytes)>,
    ) -> Result<ManifestFile, LakeError> {
        let manifest = writer.write_manifest_file().await.map_err(LakeError::invalid)?;
        let bytes = self.io.read(&manifest.manifest_path).await.map_err(LakeError::invalid)?;
        files.push((manifest.manifest_path.clone(), bytes));
        Ok(manifest)
    }

    /// One manifest for each partitioning that the files were written under.
    async fn of_files(
        &self,
        commit: &Commit,
        stem: &str,
        files: &mut Vec<(String, Bytes)>,
    ) -> Result<Vec<ManifestFile>, LakeError> {
        let mut by_spec: BTreeMap<i32, ManifestWriter> = BTreeMap::new();
        for file in &commit.files {
            if let std::collections::btree_map::Entry::Vacant(e) = by_spec.entry(file.spec_id) {
                let gone = || LakeError::Contract(format!("the partitioning {} is no longer there", file.spec_id));
                let spec = self.metadata.partition_spec_by_id(file.spec_id).ok_or_else(gone)?;
                e.insert(self.writer(&format!("{stem}-m{}.avro", file.spec_id), spec));
            }
            if let Some(writer) = by_spec.get_mut(&file.spec_id) {
                writer.add_file(file.data_file.clone(), UNASSIGNED_SEQUENCE_NUMBER).map_err(LakeError::invalid)?;
            }
        }
        let mut manifests = Vec::with_capacity(by_spec.len());
        for writer in by_spec.into_values() {
            manifests.push(self.finish(writer, files).await?);
        }
        Ok(manifests)
    }

    /// The list's bytes, and for a table with row ids the next free one.
    async fn encode_list(
        &self,
        list: &[ManifestFile],
        sequence_number: i64,
    ) -> Result<(Bytes, Option<u64>), LakeError> {
        let location = "list";
        let output = self.output(location).writer().await.map_err(LakeError::invalid)?;
        let parent = self.metadata.current_snapshot_id();
        let mut writer = match self.metadata.format_version() {
            FormatVersion::V1 => ManifestListWriter::v1(output, self.snapshot_id, parent),
            FormatVersion::V2 => ManifestListWriter::v2(output, self.snapshot_id, parent, sequence_number),
            FormatVersion::V3 => ManifestListWriter::v3(
                output,
                self.snapshot_id,
                parent,
                sequence_number,
                Some(self.metadata.next_row_id()),
            ),
        };
        writer.add_manifests(list.iter().cloned()).map_err(LakeError::invalid)?;
        let next_row_id = writer.next_row_id();
        writer.close().await.map_err(LakeError::invalid)?;
        let bytes = self.io.read(location).await.map_err(LakeError::invalid)?;
        Ok((bytes, next_row_id))
    }
}
