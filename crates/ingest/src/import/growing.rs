//! Tables that grow by what a file brings, by the same policies as by what records bring: columns that the contract does
//! not have, where it says `evolve`, and wider ones, where it says `widen`.
//!
//! Columns of a file are known before its first row, so that the table grows before anything is read; documents tell
//! theirs as they are read, and the piece that wants more is read once more when the table has it.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use lakegate_memtable::arrow_type;
use lakegate_model::{Conflicts, Undeclared};

use super::conform::{Conformer, Names};
use super::own_columns::{OwnColumns, column_type};
use super::{Import, ImportError, ImportTarget, part_for};
use crate::gate::{Gate, Inner};
use crate::growth::Wishes;
use crate::shape::Wanted;
use crate::streams::Stream;

impl Gate {
    /// The stream, with its table grown by what it lacks of the file's columns.
    pub(super) async fn grown_for(
        &self,
        stream: Arc<Stream>,
        target: &ImportTarget,
    ) -> Result<Arc<Stream>, ImportError> {
        let Some(columns) = target.columns.as_ref().filter(|_| may_grow(&stream)) else { return Ok(stream) };
        let Ok(conformer) = Conformer::new(&stream.shaper, &schema_of(columns), Names::Payload) else {
            // That the columns do not fit is said where the rows are read.
            return Ok(stream);
        };
        let mut wishes = Wishes::default();
        wishes.add(conformer.wanted(), &stream, &self.inner.streams.growth);
        grow(&self.inner, stream, wishes, target).await
    }
}

impl Import {
    /// The table grows by what documents want. Whether it did.
    pub(super) async fn grow(&mut self, wishes: Wishes) -> Result<bool, ImportError> {
        let grown = grow(&self.gate.inner, self.stream.clone(), wishes, &self.target).await?;
        let did = grown.fingerprint != self.stream.fingerprint;
        self.stream = grown;
        self.conformer = None;
        Ok(did)
    }
}

/// Whether the stream's contract lets its table grow.
pub(super) fn may_grow(stream: &Stream) -> bool {
    let contract = &stream.shaper.contract;
    contract.undeclared == Undeclared::Evolve || contract.conflicts == Conflicts::Widen
}

async fn grow(
    inner: &Inner,
    stream: Arc<Stream>,
    wishes: Wishes,
    target: &ImportTarget,
) -> Result<Arc<Stream>, ImportError> {
    if wishes.is_empty() {
        return Ok(stream);
    }
    let grown = inner.streams.grow(&stream, wishes, &inner.lake).await;
    grown.map_err(|error| ImportError::Closed(format!("the table cannot grow by what the file brings: {error}")))?;
    let stream = inner.streams.resolve(target.tenant.as_str(), target.stream.as_str());
    part_for(inner, stream.map_err(|refusal| ImportError::Stream(refusal.message))?, target)
}

fn schema_of(columns: &OwnColumns) -> SchemaRef {
    match columns {
        OwnColumns::Schema(schema) => schema.clone(),
        OwnColumns::Table { table, .. } => {
            let fields = table.columns.iter().map(|c| Field::new(&c.name, arrow_type(c.column_type), c.nullable));
            Arc::new(Schema::new(fields.collect::<Vec<_>>()))
        }
    }
}

impl Conformer {
    /// What the contract would have to be given, so that all of the file's columns are kept as they are.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let contract = self.contract();
        let mut wanted = Vec::new();
        if contract.undeclared == Undeclared::Evolve {
            for (path, found) in self.untaken() {
                if *found != arrow::datatypes::DataType::Null {
                    wanted.push(Wanted::Column { path: path.into(), column_type: column_type(found) });
                }
            }
        }
        if contract.conflicts == Conflicts::Widen {
            for (column, (declared, found)) in contract.columns.iter().zip(self.found_types()).enumerate() {
                let found = found.map(column_type).filter(|found| declared.column_type.is_wider(*found));
                wanted.extend(found.map(|column_type| Wanted::Wider { column, column_type }));
            }
        }
        wanted
    }
}
