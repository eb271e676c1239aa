//! From rows to durable Parquet files.
//!
//! Rows are fitted to the table's columns by name ([`align`]), brought into partitions and order ([`arrange`]) and
//! encoded ([`encode`]), one file open at a time. A batch that is of one partition and sorted already is encoded as it
//! lies, without a copy. When [`LakeTable::write`](crate::LakeTable::write) comes back, files and folders are synced;
//! when it errs, nothing of them is left.

mod align;
mod arrange;
mod encode;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef as ArrowSchemaRef;
use iceberg::spec::{DataFile, PartitionSpecRef, SchemaRef, Struct};
use parquet::file::properties::WriterProperties;

use crate::error::LakeError;
use crate::warehouse::{Finished, Sink, Warehouse};

pub(crate) use align::{arrow_schema_of, conform};
pub(crate) use arrange::SortKey;
pub(crate) use encode::{ColumnFacts, bound, partition_path, writer_properties};

/// One durable data file that no commit names yet.
#[derive(Debug, Clone)]
pub struct WrittenFile {
    pub(crate) data_file: DataFile,
    pub(crate) spec_id: i32,
    /// The schema that the file's field ids are of.
    pub(crate) schema: SchemaRef,
    pub(crate) table_uuid: uuid::Uuid,
    /// It has no field ids: the table needs a name mapping.
    pub(crate) mapped: bool,
    /// It lay there before and is not ours to remove.
    pub(crate) referenced: bool,
    /// When it was written, by the monotonic clock.
    pub(crate) written_us: u64,
}

impl WrittenFile {
    /// How many rows it holds.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.data_file.record_count()
    }

    /// How many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.data_file.file_size_in_bytes()
    }

    /// Where it lies.
    #[must_use]
    pub fn location(&self) -> &str {
        self.data_file.file_path()
    }
}

/// Everything that writing needs, so that it can be done on another thread.
pub(crate) struct WritePlan {
    pub(crate) table: String,
    pub(crate) warehouse: Warehouse,
    /// Where data files go, without a slash at the end.
    pub(crate) folder: String,
    /// What this call's files' names begin with; never used before.
    pub(crate) stem: String,
    pub(crate) schema: SchemaRef,
    pub(crate) arrow: ArrowSchemaRef,
    pub(crate) spec: PartitionSpecRef,
    pub(crate) sort: Vec<SortKey>,
    /// The id of the table's sort order, where `sort` is all of it.
    pub(crate) sort_order_id: Option<i32>,
    pub(crate) properties: WriterProperties,
    pub(crate) target_file_bytes: u64,
}

/// A file whose bytes are complete.
pub(crate) struct EncodedFile {
    pub(crate) data_file: DataFile,
    pub(crate) finished: Finished,
}

/// Rows of one partition, in file order.
pub(crate) struct Run<'a> {
    pub(crate) partition: Struct,
    pub(crate) batches: Box<dyn Iterator<Item = Result<RecordBatch, LakeError>> + 'a>,
}

impl WritePlan {
    /// Fits, arranges, encodes and syncs. Removes what it wrote if it errs.
    pub(crate) fn run(&self, batches: &[RecordBatch]) -> Result<Vec<EncodedFile>, LakeError> {
        let mut aligned = Vec::with_capacity(batches.len());
        for batch in batches.iter().filter(|b| b.num_rows() > 0) {
            aligned.push(align::align(batch, &self.arrow).map_err(|message| self.misfit(message))?);
        }
        let mut files: Vec<EncodedFile> = Vec::new();
        let encoded = self.encode_runs(&aligned, &mut files);
        if encoded.is_err() {
            files.iter().for_each(|f| Sink::abandon(f.data_file.file_path()));
        }
        encoded.map(|()| files)
    }

    /// Whether rows need neither partitions nor an order.
    pub(crate) fn is_plain(&self) -> bool {
        self.spec.fields().is_empty() && self.sort.is_empty()
    }

    /// Fits, encodes and syncs rows as they come, for a plan that [is plain](Self::is_plain). Removes what it wrote if
    /// it errs.
    pub(crate) fn run_as_they_come(
        &self,
        rows: impl Iterator<Item = RecordBatch>,
    ) -> Result<Vec<EncodedFile>, LakeError> {
        let fit = |batch: RecordBatch| align::align(&batch, &self.arrow).map_err(|message| self.misfit(message));
        let batches = Box::new(rows.filter(|batch| batch.num_rows() > 0).map(fit));
        let mut files: Vec<EncodedFile> = Vec::new();
        let encoded = encode::encode_run(self, Run { partition: Struct::empty(), batches }, &mut files);
        if encoded.is_err() {
            files.iter().for_each(|f| Sink::abandon(f.data_file.file_path()));
        }
        encoded.map(|()| files)
    }

    fn encode_runs(&self, aligned: &[RecordBatch], files: &mut Vec<EncodedFile>) -> Result<(), LakeError> {
        if aligned.is_empty() {
            return Ok(());
        }
        for run in arrange::arrange(self, aligned)?.runs() {
            encode::encode_run(self, run, files)?;
        }
        Ok(())
    }

    pub(crate) fn misfit(&self, message: impl std::fmt::Display) -> LakeError {
        LakeError::Rows { table: self.table.clone(), message: message.to_string() }
    }

    pub(crate) fn location(&self, partition: &Struct, number: usize) -> String {
        let path = encode::partition_path(&self.spec, &self.schema, partition);
        let Self { folder, stem, .. } = self;
        if path.is_empty() {
            format!("{folder}/{stem}-{number:05}.parquet")
        } else {
            format!("{folder}/{path}/{stem}-{number:05}.parquet")
        }
    }
}

/// Turns files into the form that a commit takes.
pub(crate) fn written(
    plan: &WritePlan,
    table_uuid: uuid::Uuid,
    data_files: Vec<DataFile>,
    written_us: u64,
) -> Vec<WrittenFile> {
    let (spec_id, schema) = (plan.spec.spec_id(), Arc::clone(&plan.schema));
    data_files
        .into_iter()
        .map(|data_file| WrittenFile {
            data_file,
            spec_id,
            schema: Arc::clone(&schema),
            table_uuid,
            mapped: false,
            referenced: false,
            written_us,
        })
        .collect()
}
