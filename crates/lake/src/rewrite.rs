//! Rows written anew: small files compacted into larger ones, and rows removed that a condition holds for.
//!
//! Both read files of one state, write others, and exchange them in one commit; a commit of another writer in between
//! is respected, or the work is given up and its files discarded. Memory is bounded by [`HELD_BYTES`] of decoded rows.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, Float64Array, Int64Array, RecordBatch, Scalar as ArrowScalar,
    StringArray, TimestampMicrosecondArray,
};
use arrow::compute::kernels::cmp;
use arrow::compute::{and, cast, filter_record_batch, is_not_null, is_null, not};
use futures::StreamExt;
use iceberg::spec::{DataFile, Operation, Struct};

use crate::commit::{Commit, Exchange, check_exchangeable};
use crate::error::{CommitError, LakeError};
use crate::scan::{Condition, Op, Scalar};
use crate::table::LakeTable;
use crate::view::TableView;
use crate::write::WrittenFile;

/// The table property that says no to compaction.
const COMPACT_ENABLED: &str = "lakegate.compact.enabled";
/// So many bytes of decoded rows are held at once.
const HELD_BYTES: usize = 256 << 20;
/// Files of about one size become one when they are so many.
const COMPACT_FILES: usize = 8;
/// Smaller files count as of one size.
const SMALLEST_BYTES: u64 = 64 << 10;

/// The table's counter of rows that removals took out, see [`TableView::counter`]: kept in the commit that removes them.
pub const REMOVED_ROWS: &str = "removed";

/// A file, with the commit that brought it.
type Aged = (Option<i64>, DataFile);

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactOutcome {
    /// Files that were taken out.
    pub removed: usize,
    /// Files that took their place.
    pub added: usize,
    /// Rows that were moved.
    pub rows: u64,
}

/// What a removal did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemovedOutcome {
    /// Rows that are gone.
    pub rows: u64,
    /// Files that were written anew without them, or dropped as a whole.
    pub files: usize,
}

/// Why rows could not be written anew. Nothing was changed, unless the commit says that it is not known.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// Reading or writing files.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The commit.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl LakeTable {
    /// Makes one larger file of small ones of one partition, if there are enough of about one size; the rows come out in
    /// the table's order. To be called again until nothing was removed. A table whose property `lakegate.compact.enabled` is
    /// `false`, one with another engine's delete files, and one of another format version than 2 are left alone.
    ///
    /// # Errors
    /// See [`RewriteError`].
    pub async fn compact_once(&self) -> Result<CompactOutcome, RewriteError> {
        let Ok(_turn) = self.compacting.try_lock() else { return Ok(CompactOutcome::default()) };
        let view = self.refresh().await?;
        let group = self.small_files(&view).await?;
        if group.len() < COMPACT_FILES {
            return Ok(CompactOutcome::default());
        }
        let mut held: Vec<RecordBatch> = Vec::new();
        let (mut bytes, mut removed) = (0, Vec::new());
        let spec_id = view.metadata().default_partition_spec_id();
        for file in group {
            let mut rows = view.read_file(&file, spec_id)?;
            while let Some(batch) = rows.next().await {
                let batch = batch?;
                bytes += batch.get_array_memory_size();
                held.push(batch);
            }
            removed.push((file, spec_id));
            if bytes >= HELD_BYTES {
                break;
            }
        }
        let files = self.write(held).await?;
        let rows = files.iter().map(WrittenFile::rows).sum();
        let outcome = CompactOutcome { removed: removed.len(), added: files.len(), rows };
        if outcome.added < outcome.removed {
            self.exchange(Exchange { removed, operation: Operation::Replace }, files, 0).await?;
            metrics::counter!("lakegate_lake_files_compacted_total")
                .increment(u64::try_from(outcome.removed).unwrap_or_default());
            return Ok(outcome);
        }
        // Other columns or another partitioning since the files were written: nothing to be gained.
        self.discard(&files).await;
        Ok(CompactOutcome::default())
    }

    /// The largest group of small files of one partition and about one size, the oldest first.
    async fn small_files(&self, view: &TableView) -> Result<Vec<DataFile>, LakeError> {
        let (metadata, most) = (view.metadata(), self.lake.care.compact_bytes);
        let manifests = view.manifests().await?;
        let off = metadata.properties().get(COMPACT_ENABLED).is_some_and(|v| v == "false");
        if off || check_exchangeable(metadata.format_version(), &manifests).is_err() {
            return Ok(Vec::new());
        }
        let mut groups: HashMap<(Struct, u32), Vec<Aged>> = HashMap::new();
        for manifest in manifests.iter().filter(|m| m.partition_spec_id == metadata.default_partition_spec_id()) {
            let content = view.manifest_cache.load(&view.warehouse, manifest).await?;
            for entry in content.entries().iter().filter(|e| e.is_alive()) {
                let file = entry.data_file();
                if file.file_size_in_bytes() <= most / 4 {
                    let tier = file.file_size_in_bytes().max(SMALLEST_BYTES).ilog(8);
                    let group = groups.entry((file.partition().clone(), tier)).or_default();
                    group.push((entry.sequence_number, file.clone()));
                }
            }
        }
        let Some(mut group) = groups.into_values().max_by_key(Vec::len) else { return Ok(Vec::new()) };
        group.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.file_path().cmp(y.file_path())));
        let mut bytes: u64 = 0;
        let fits = |(_, file): &Aged| {
            bytes = bytes.saturating_add(file.file_size_in_bytes());
            bytes <= most
        };
        Ok(group.into_iter().take_while(fits).map(|(_, file)| file).collect())
    }

    /// Removes the rows for which all conditions hold, in one commit: files that hold such rows are written anew without
    /// them. Rows that are committed meanwhile stay.
    ///
    /// # Errors
    /// See [`RewriteError`]; no condition at all is refused.
    pub async fn remove_rows(&self, conditions: &[Condition]) -> Result<RemovedOutcome, RewriteError> {
        if conditions.is_empty() {
            return Err(LakeError::Invalid("a removal needs a condition".to_owned()).into());
        }
        let view = self.refresh().await?;
        check_exchangeable(view.metadata().format_version(), &view.manifests().await?)?;
        let (mut removed, mut files, mut rows) = (Vec::new(), Vec::new(), 0);
        for (file, spec_id) in view.files_that_may_match(conditions).await? {
            match self.write_without(&view, (&file, spec_id), conditions).await {
                Ok((0, kept)) => self.discard(&kept).await,
                Ok((gone, kept)) => {
                    rows += gone;
                    files.extend(kept);
                    removed.push((file, spec_id));
                }
                Err(error) => {
                    self.discard(&files).await;
                    return Err(error.into());
                }
            }
        }
        let outcome = RemovedOutcome { rows, files: removed.len() };
        if outcome.files > 0 {
            let operation = if files.is_empty() { Operation::Delete } else { Operation::Overwrite };
            self.exchange(Exchange { removed, operation }, files, rows).await?;
        }
        Ok(outcome)
    }

    /// Writes a file's rows without those that match; gives how many did.
    async fn write_without(
        &self,
        view: &TableView,
        (file, spec_id): (&DataFile, i32),
        conditions: &[Condition],
    ) -> Result<(u64, Vec<WrittenFile>), LakeError> {
        // Most files that may match hold no such row: they are read once and not written.
        let mut gone: u64 = 0;
        let mut rows = view.read_file(file, spec_id)?;
        while let Some(batch) = rows.next().await {
            gone += u64::try_from(matching(&batch?, conditions)?.true_count()).unwrap_or_default();
        }
        if gone == 0 || gone == file.record_count() {
            return Ok((gone, Vec::new()));
        }
        let mut written = Vec::new();
        let done = self.write_kept(view, (file, spec_id), conditions, &mut written).await;
        match done {
            Ok(()) => Ok((gone, written)),
            Err(error) => {
                self.discard(&written).await;
                Err(error)
            }
        }
    }

    async fn write_kept(
        &self,
        view: &TableView,
        (file, spec_id): (&DataFile, i32),
        conditions: &[Condition],
        written: &mut Vec<WrittenFile>,
    ) -> Result<(), LakeError> {
        let (mut held, mut bytes) = (Vec::new(), 0);
        let mut rows = view.read_file(file, spec_id)?;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let keep = not(&matching(&batch, conditions)?).map_err(LakeError::invalid)?;
            let kept = filter_record_batch(&batch, &keep).map_err(LakeError::invalid)?;
            bytes += kept.get_array_memory_size();
            held.push(kept);
            if bytes >= HELD_BYTES {
                written.extend(self.write(std::mem::take(&mut held)).await?);
                bytes = 0;
            }
        }
        written.extend(self.write(held).await?);
        Ok(())
    }

    /// Exchanges, and discards the new files where that is known not to have happened.
    async fn exchange(
        &self,
        exchange: Exchange,
        files: Vec<WrittenFile>,
        removed_rows: u64,
    ) -> Result<(), CommitError> {
        let id = uuid::Builder::from_random_bytes(self.lake.options.random.next_u128().to_be_bytes()).into_uuid();
        let mut commit = Commit::of_marks(id, files, Vec::new());
        if removed_rows > 0 {
            commit.counts.insert(REMOVED_ROWS.to_owned(), removed_rows);
        }
        let done = self.commit_exchange(&commit, Some(&exchange)).await;
        match done {
            Ok(_) => Ok(()),
            Err(error) => {
                if !matches!(error, CommitError::Unavailable { outcome_unknown: true, .. }) {
                    self.discard(&commit.files).await;
                }
                Err(error)
            }
        }
    }
}

/// For each row, whether all conditions hold; a comparison with no value does not.
fn matching(batch: &RecordBatch, conditions: &[Condition]) -> Result<BooleanArray, LakeError> {
    let mut all = BooleanArray::from(vec![true; batch.num_rows()]);
    for condition in conditions {
        let missing = || LakeError::Invalid(format!("the table has no column {:?}", condition.column));
        let column = batch.column_by_name(&condition.column).ok_or_else(missing)?;
        let one = holds(column, condition).map_err(LakeError::invalid)?;
        let one = match one.nulls() {
            None => one,
            Some(nulls) => BooleanArray::new(one.values() & nulls.inner(), None),
        };
        all = and(&all, &one).map_err(LakeError::invalid)?;
    }
    Ok(all)
}

fn holds(column: &ArrayRef, condition: &Condition) -> Result<BooleanArray, arrow::error::ArrowError> {
    match condition.op {
        Op::IsNull => return is_null(column),
        Op::NotNull => return is_not_null(column),
        _ => {}
    }
    let value: ArrayRef = match &condition.value {
        Scalar::Null => return Ok(BooleanArray::from(vec![false; column.len()])),
        Scalar::Boolean(v) => Arc::new(BooleanArray::from(vec![*v])),
        Scalar::Long(v) => Arc::new(Int64Array::from(vec![*v])),
        Scalar::Double(v) => Arc::new(Float64Array::from(vec![*v])),
        Scalar::Text(v) => Arc::new(StringArray::from(vec![v.as_str()])),
        Scalar::Micros(v) => Arc::new(TimestampMicrosecondArray::from(vec![*v])),
        Scalar::Days(v) => Arc::new(Date32Array::from(vec![*v])),
    };
    let value = cast(&value, column.data_type())?;
    if value.null_count() > 0 {
        let (wrong, name) = (&condition.value, &condition.column);
        let message = format!("the value {wrong:?} does not fit the column {name:?}");
        return Err(arrow::error::ArrowError::CastError(message));
    }
    let value = ArrowScalar::new(value);
    match condition.op {
        Op::Eq => cmp::eq(column, &value),
        Op::NotEq => cmp::neq(column, &value),
        Op::Less => cmp::lt(column, &value),
        Op::LessEq => cmp::lt_eq(column, &value),
        Op::Greater => cmp::gt(column, &value),
        Op::GreaterEq => cmp::gt_eq(column, &value),
        Op::IsNull | Op::NotNull => Ok(BooleanArray::from(vec![false; column.len()])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Bench, append, event_ids, ids, name, rows};
    use crate::testing::Fault;

    fn event_id(id: &str) -> Condition {
        Condition { column: "event_id".to_owned(), op: Op::Eq, value: Scalar::Text(id.to_owned()) }
    }

    #[tokio::test]
    async fn small_files_become_one_and_rows_position_and_marks_stay() {
        let bench = Bench::new();
        let table = bench.table().await;
        for n in 0..20 {
            append(&table, n, n + 1).await;
        }
        let before = table.view().properties().clone();
        let outcome = table.compact_once().await.unwrap();
        assert_eq!(outcome, CompactOutcome { removed: 20, added: 1, rows: 20 });
        assert_eq!(table.compact_once().await.unwrap(), CompactOutcome::default());
        let view = bench.rival(9, 9).find_table(&name()).await.unwrap().unwrap().view();
        assert_eq!(event_ids(&view).await, ids(0..20));
        assert_eq!((view.total_data_files(), view.total_records()), (1, 20));
        assert_eq!(*view.properties(), before);
        assert_eq!(view.snapshots()[0].operation, "replace");
        append(&table, 20, 22).await;
        assert_eq!(event_ids(&table.view()).await, ids(0..22));
    }

    #[tokio::test]
    async fn f34_a_flush_between_reading_and_committing_is_kept() {
        let bench = Bench::new();
        let table = bench.table().await;
        for n in 0..10 {
            append(&table, n, n + 1).await;
        }
        let rival = bench.rival(1, 1).find_table(&name()).await.unwrap().unwrap();
        // The compaction's first attempt meets a commit that came first.
        bench.faulty.script_commits([Fault::Conflict]);
        append(&rival, 10, 11).await;
        assert_eq!(table.compact_once().await.unwrap().removed, 11);
        assert_eq!(event_ids(&table.view()).await, ids(0..11));
    }

    #[tokio::test]
    async fn of_two_compactions_of_the_same_files_one_gives_up_and_no_row_is_doubled() {
        let bench = Bench::new();
        let table = bench.table().await;
        for n in 0..10 {
            append(&table, n, n + 1).await;
        }
        let rival = bench.rival(1, 1).find_table(&name()).await.unwrap().unwrap();
        let view = table.view();
        let group = table.small_files(&view).await.unwrap();
        let removed: Vec<(DataFile, i32)> = group.into_iter().map(|f| (f, 0)).collect();
        rival.compact_once().await.unwrap();
        let files = table.write(vec![rows(0, 10)]).await.unwrap();
        let location = files[0].location().to_owned();
        let error = table.exchange(Exchange { removed, operation: Operation::Replace }, files, 0).await.unwrap_err();
        assert!(matches!(error, CommitError::StaleFiles { .. }), "{error}");
        assert!(!bench.warehouse.exists(&location).await.unwrap());
        assert_eq!(event_ids(&table.refresh().await.unwrap()).await, ids(0..10));
    }

    #[tokio::test]
    async fn f30_a_compaction_whose_answer_is_lost_is_done_once() {
        let bench = Bench::new();
        let table = bench.table().await;
        for n in 0..10 {
            append(&table, n, n + 1).await;
        }
        bench.faulty.script_commits([Fault::DoneThenLost]);
        table.compact_once().await.unwrap();
        assert_eq!(event_ids(&table.view()).await, ids(0..10));
        assert_eq!(table.view().total_data_files(), 1);
    }

    #[tokio::test]
    async fn rows_that_match_are_removed_and_all_others_stay() {
        let bench = Bench::new();
        let table = bench.table().await;
        append(&table, 0, 10).await;
        append(&table, 10, 20).await;
        append(&table, 20, 21).await;
        let outcome = table.remove_rows(&[event_id("e-00000004")]).await.unwrap();
        assert_eq!(outcome, RemovedOutcome { rows: 1, files: 1 });
        let outcome = table.remove_rows(&[event_id("e-00000020")]).await.unwrap();
        assert_eq!(outcome, RemovedOutcome { rows: 1, files: 1 });
        assert_eq!(table.view().snapshots()[0].operation, "delete");
        assert_eq!(table.remove_rows(&[event_id("nobody")]).await.unwrap(), RemovedOutcome::default());
        table.remove_rows(&[]).await.unwrap_err();
        let expected: Vec<String> = ids(0..20).into_iter().filter(|id| id != "e-00000004").collect();
        let view = bench.rival(9, 9).find_table(&name()).await.unwrap().unwrap().view();
        assert_eq!(event_ids(&view).await, expected);
        assert_eq!((view.total_records(), view.total_data_files()), (19, 2));
        assert_eq!(view.counter(REMOVED_ROWS), 2);
        append(&table, 21, 22).await;
        assert_eq!(event_ids(&table.view()).await.len(), 20);
    }
}
