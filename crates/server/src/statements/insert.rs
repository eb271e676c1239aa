//! `INSERT`: rows of a query through the gate, as one Arrow IPC stream each part.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field as ArrowField, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use futures::TryStreamExt;
use lakegate_access::Action;
use lakegate_ingest::{ArrowRows, Source, Submission, SubmitError, Wire};
use lakegate_model::{Column, ColumnSource, Contract, Field, StreamKey, TableName, TenantId};
use lakegate_query::QueryResult;
use lakegate_query::statement::Insert;

use super::{Asker, Inserted, Run, StatementError, Statements};

/// A part's most bytes: far below what a frame of the log may have.
const PART_BYTES: usize = 16 << 20;
/// How often a later part is brought again where there is no room for it yet.
const ROOM_TRIES: u32 = 60;

/// Where rows go.
pub(super) struct Target {
    pub(super) key: StreamKey,
    pub(super) contract: Arc<Contract>,
}

impl Statements {
    pub(super) async fn insert(&self, asker: &Asker, run: &Run, insert: Insert) -> Result<Inserted, StatementError> {
        let table = insert.table.name(&self.namespace(asker, run))?;
        if self.inner.external.get(&table).is_some() {
            return Err(StatementError::denied(format!("{table} is a file; rows cannot be inserted into it")));
        }
        let target = self.target(asker, &table).await?;
        let result = self.query(asker, run, insert.source, true).await?;
        let names = names_for(&table, &target.contract, &insert.columns, result.schema.fields().len())?;
        self.store(asker, &target.key, &names, result).await
    }

    /// The stream of a table, which the asker may write to.
    pub(super) async fn target(&self, asker: &Asker, table: &TableName) -> Result<Target, StatementError> {
        let tenant = self.tenant_of(asker, table)?;
        // Whether it may write to a stream of its own, the gate decides by the stream's name.
        if !self.inner.gate.leads_to(&tenant, table) {
            asker.check(Action::Write, table)?;
        }
        let (key, contract) = self.inner.gate.stream_of_table(&tenant, table).await?;
        Ok(Target { key, contract })
    }

    /// Whose the stream of a table is. While nobody is known, a namespace is the tenant of its name.
    pub(super) fn tenant_of(&self, asker: &Asker, table: &TableName) -> Result<TenantId, StatementError> {
        let tenant = asker.tenant()?;
        if asker.principal.is_some() || self.inner.gate.leads_to(&tenant, table) {
            return Ok(tenant);
        }
        Ok(TenantId::new(&table.namespace).unwrap_or(tenant))
    }

    /// Stores all rows of a result, under these names.
    pub(super) async fn store(
        &self,
        asker: &Asker,
        key: &StreamKey,
        names: &[String],
        mut result: QueryResult,
    ) -> Result<Inserted, StatementError> {
        let fields = names.iter().zip(result.schema.fields());
        let fields = fields.map(|(name, field)| ArrowField::new(name, field.data_type().clone(), true));
        let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let mut part = Part { schema, batches: Vec::new(), rows: 0, bytes: 0 };
        let mut done = Inserted::default();
        let rows_max = self.inner.batch_rows_max.max(1);
        while let Some(batch) = result.stream.try_next().await.map_err(|e| StatementError::from(e).after(done.rows))? {
            let mut from = 0;
            while from < batch.num_rows() {
                let count = (batch.num_rows() - from).min(rows_max - part.rows);
                part.push(&batch.slice(from, count)).map_err(|error| StatementError::internal(&error))?;
                from += count;
                if part.rows >= rows_max || part.bytes >= PART_BYTES {
                    self.submit(asker, key, &mut part, &mut done).await?;
                }
            }
        }
        self.submit(asker, key, &mut part, &mut done).await?;
        Ok(done)
    }

    async fn submit(
        &self,
        asker: &Asker,
        key: &StreamKey,
        part: &mut Part,
        done: &mut Inserted,
    ) -> Result<(), StatementError> {
        if part.rows == 0 {
            return Ok(());
        }
        let rows = ArrowRows {
            tenant: Some(key.tenant.clone()),
            stream: key.stream.clone(),
            atomic: true,
            batch_id: String::new(),
            by_name: true,
            declares: false,
        };
        let submission = Submission {
            principal: asker.principal.clone(),
            source: Source::Sql,
            wire: Wire::Arrow(rows),
            body: part.take().map_err(|error| StatementError::internal(&error))?,
            correlation_id: asker.correlation_id.clone(),
            client: asker.client.clone(),
            in_order: false,
        };
        let mut patience = ROOM_TRIES;
        let outcome = loop {
            match self.inner.gate.submit(submission.clone()).await {
                // Rows of earlier parts are on their way into the lake.
                Err(SubmitError::OutOfRoom { retry_after_ms, .. }) if patience > 0 && done.rows > 0 => {
                    patience -= 1;
                    tokio::time::sleep(Duration::from_millis(retry_after_ms)).await;
                }
                outcome => break outcome.map_err(|error| StatementError::from(error).after(done.rows))?,
            }
        };
        done.rows += outcome.accepted;
        done.duplicates += outcome.duplicates;
        done.position = outcome.position;
        Ok(())
    }
}

/// Rows that go to the gate together.
struct Part {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

impl Part {
    fn push(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let batch = RecordBatch::try_new(self.schema.clone(), batch.columns().to_vec())?;
        self.rows += batch.num_rows();
        let slice = |column: &arrow::array::ArrayRef| column.to_data().get_slice_memory_size().unwrap_or(0);
        self.bytes += batch.columns().iter().map(slice).sum::<usize>();
        self.batches.push(batch);
        Ok(())
    }

    /// The part's bytes; it is empty afterwards.
    fn take(&mut self) -> Result<Bytes, ArrowError> {
        let mut writer = StreamWriter::try_new(Vec::with_capacity(self.bytes + 4096), &self.schema)?;
        for batch in self.batches.drain(..) {
            writer.write(&batch)?;
        }
        writer.finish()?;
        (self.rows, self.bytes) = (0, 0);
        Ok(writer.into_inner()?.into())
    }
}

/// Whether a statement may bring the column's values; the others the server fills.
fn is_brought(column: &Column) -> bool {
    use Field as F;
    !matches!(
        column.source,
        ColumnSource::Envelope(
            F::TenantId
                | F::EndpointId
                | F::ReceivedAt
                | F::TimeSource
                | F::Undeclared
                | F::Rescued
                | F::Source
                | F::UserAgent
                | F::ClientAddress
                | F::CorrelationId
        )
    )
}

/// The names of the columns that `count` values a row are for.
pub(super) fn names_for(
    table: &TableName,
    contract: &Contract,
    asked: &[String],
    count: usize,
) -> Result<Vec<String>, StatementError> {
    let brought = || contract.columns.iter().filter(|column| is_brought(column)).map(|column| column.name.clone());
    let invalid = |message: String| Err(StatementError::invalid(message));
    if asked.is_empty() {
        let names: Vec<String> = brought().collect();
        if names.len() == count {
            return Ok(names);
        }
        return invalid(format!(
            "{count} values a row, and {table} takes {}: {}; give as many, or name the columns: INSERT INTO {table} (…); DESCRIBE {table} tells their types",
            names.len(),
            names.join(", ")
        ));
    }
    let mut seen = BTreeSet::new();
    for name in asked {
        let found = contract.columns.iter().find(|column| column.name == *name);
        let Some(found) = found else {
            let names = brought().collect::<Vec<_>>().join(", ");
            return invalid(format!(
                "{table} has no column {name}; it takes {names}; DESCRIBE {table} tells their types"
            ));
        };
        if !is_brought(found) {
            return invalid(format!("the column {name} of {table} is filled by the server; leave it out"));
        }
        if !seen.insert(name) {
            return invalid(format!("the column {name} is named twice"));
        }
    }
    if asked.len() != count {
        return invalid(format!("{} columns are named, and {count} values a row are given", asked.len()));
    }
    Ok(asked.to_vec())
}
