//! Rows on their way into the memtables.

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::error::ArrowError;
use lakegate_memtable::{MemtableGuard, RowBuilder, Value};

use crate::batch::{Group, RowKey};
use crate::flush::TableUnit;
use crate::follow::StreamRows;
use crate::streams::Stream;

/// The offsets of a request, and when it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) first_offset: u64,
    pub(crate) next_offset: u64,
    pub(crate) now_us: i64,
}

/// One group's rows, finished as far as can be before the log has them.
pub(crate) struct ReadyRows<'a> {
    pub(crate) stream: Arc<Stream>,
    few: Vec<Vec<Value<'a>>>,
    many: Option<RecordBatch>,
    pub(crate) keys: Vec<RowKey>,
}

impl<'a> Group<'a> {
    /// Finishes the rows; the group has none afterwards.
    ///
    /// # Errors
    /// A required column holds a null; the shaper lets none in.
    pub(crate) fn take_rows(&mut self) -> Result<ReadyRows<'a>, ArrowError> {
        let finish = |mut rows: RowBuilder| {
            self.stream.shaper.learn(&rows);
            rows.finish()
        };
        let many = self.many.take().filter(|rows| rows.rows() > 0).map(finish).transpose()?;
        let many = many.or_else(|| self.columns.take());
        Ok(ReadyRows {
            stream: self.stream.clone(),
            few: std::mem::take(&mut self.few),
            many,
            keys: std::mem::take(&mut self.keys),
        })
    }
}

/// The tables of some rows, each once, in the order in which they are locked.
pub(crate) fn tables_of(rows: &[ReadyRows<'_>]) -> Vec<Arc<TableUnit>> {
    let mut units: Vec<_> = rows.iter().map(|group| group.stream.unit.clone()).collect();
    units.sort_by(|a, b| a.table.cmp(&b.table));
    units.dedup_by(|a, b| Arc::ptr_eq(a, b));
    units
}

fn stream_rows(stream: &Stream, batch: RecordBatch) -> StreamRows {
    let (key, table) = (stream.key.clone(), stream.unit.table.clone());
    StreamRows { key, table, contract: stream.shaper.contract.clone(), batch }
}

impl ReadyRows<'_> {
    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        self.few.is_empty() && self.many.is_none()
    }

    /// Takes out the rows for which `is_duplicate` is set; there is one flag for each row.
    ///
    /// # Errors
    /// The flags are not as many as the rows.
    pub(crate) fn take_out(&mut self, is_duplicate: &[bool]) -> Result<(), ArrowError> {
        if let Some(batch) = &self.many {
            let keep: BooleanArray = is_duplicate.iter().map(|duplicate| Some(!duplicate)).collect();
            self.many = Some(filter_record_batch(batch, &keep)?).filter(|batch| batch.num_rows() > 0);
        }
        let mut flags = is_duplicate.iter();
        self.few.retain(|_| !flags.next().copied().unwrap_or_default());
        let mut flags = is_duplicate.iter();
        self.keys.retain(|_| !flags.next().copied().unwrap_or_default());
        Ok(())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.few.len() + self.many.as_ref().map_or(0, RecordBatch::num_rows)
    }

    /// Whether the rows are a batch already.
    pub(crate) fn are_batch(&self) -> bool {
        self.many.is_some()
    }

    /// Whether some of them are a batch already, and some are not.
    pub(crate) fn are_mixed(&self) -> bool {
        self.many.is_some() && !self.few.is_empty()
    }

    /// The rows for those who follow the log: a batch is shared, a few rows are copied.
    ///
    /// # Errors
    /// As those of [`Self::into_batch`].
    pub(crate) fn shared(&self) -> Result<StreamRows, ArrowError> {
        let batch = self.many.clone().map_or_else(|| self.few_as_batch(), Ok)?;
        Ok(stream_rows(&self.stream, batch))
    }

    fn few_as_batch(&self) -> Result<RecordBatch, ArrowError> {
        let mut rows = self.stream.shaper.rows(self.few.len());
        for row in &self.few {
            rows.push(row)?;
        }
        rows.finish()
    }

    /// The rows for those who follow the log.
    ///
    /// # Errors
    /// As those of [`Self::into_batch`].
    pub(crate) fn into_stream_rows(self) -> Result<StreamRows, ArrowError> {
        let stream = self.stream.clone();
        self.into_batch().map(|batch| stream_rows(&stream, batch))
    }

    /// The rows as one batch of their contract's columns.
    ///
    /// # Errors
    /// A required column holds a null; the shaper lets none in.
    pub(crate) fn into_batch(self) -> Result<RecordBatch, ArrowError> {
        match self.many {
            Some(batch) => Ok(batch),
            None => self.few_as_batch(),
        }
    }

    /// Puts the rows into the memtable, whose guard was held while the log gave the offsets.
    ///
    /// # Errors
    /// A required column holds a null; the shaper lets none in.
    pub(crate) fn push(self, guard: &mut MemtableGuard<'_>, span: Span) -> Result<(), ArrowError> {
        let Span { first_offset, next_offset, now_us } = span;
        if let Some(batch) = &self.many {
            guard.push_batch(batch.clone(), first_offset, next_offset, now_us)?;
        }
        if self.few.is_empty() {
            return Ok(());
        }
        let shaper = &self.stream.shaper;
        if self.stream.unit.is_of(self.stream.fingerprint) {
            let open = guard.open_rows(|| shaper.rows(256));
            for row in &self.few {
                open.push(row)?;
            }
            return guard.seal_run(first_offset, next_offset, now_us);
        }
        // Another contract than the one that the open rows have: a batch of its own.
        guard.push_batch(self.few_as_batch()?, first_offset, next_offset, now_us)
    }
}
