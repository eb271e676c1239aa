//! A Parquet file taken into the table as it is: its footer says whether it fits, and its bytes are copied, not decoded.
//!
//! Fits: every column of the file is one of the table's, of the same type or one that Iceberg widens when it reads
//! (`int` to `long`, `float` to `double`, a decimal to more digits); required columns have no nulls; all rows are of one
//! partition. Where the file has no field ids, the table gets a name mapping in the same commit.
//!
//! Everything is judged by the footer. What it does not prove does not fit: then an [`Obstacle`] says why, in words for
//! people, and the rows are to be written anew.

mod check;
#[cfg(test)]
mod tests;

use std::io::Read;

use iceberg::spec::{DataFileBuilder, MappedField, NameMapping, Schema, SchemaRef};

use crate::error::LakeError;
use crate::table::LakeTable;
use crate::warehouse::{Sink, WarehouseError};
use crate::write::WrittenFile;

pub use check::Footer;

/// The property that maps names to ids where files have none.
pub(crate) const NAME_MAPPING: &str = iceberg::spec::DEFAULT_SCHEMA_NAME_MAPPING;
/// So many bytes are copied at once.
const COPY_BYTES: usize = 1 << 20;

/// Why a file cannot be taken in as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Obstacle(pub String);

/// A file that fits, described; nothing of it is in the table's folder yet.
#[derive(Clone)]
pub struct AdoptPlan {
    rows: u64,
    bytes: u64,
    /// Everything of it but its location.
    builder: DataFileBuilder,
    schema: SchemaRef,
    spec_id: i32,
    folder: String,
    partition: String,
    /// It has no field ids.
    mapped: bool,
}

impl AdoptPlan {
    /// How many rows it holds.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

/// Where an adopted file is to lie.
pub enum AdoptHow {
    /// In the table's folder: a copy of these bytes, which must be the file that was checked.
    Copy(Box<dyn Read + Send>),
    /// Where it is, which must be in the warehouse. It belongs to the table then: nobody else may change it.
    Reference(String),
}

impl LakeTable {
    /// Whether a file fits, by its footer.
    ///
    /// # Errors
    /// The reason why it does not.
    pub fn adopt_check(&self, footer: &Footer<'_>) -> Result<AdoptPlan, Obstacle> {
        let plan = self.plan_write().map_err(|e| Obstacle(e.to_string()))?;
        let checked = check::check(&plan, self.view().metadata(), footer)?;
        Ok(AdoptPlan {
            partition: crate::write::partition_path(&plan.spec, &plan.schema, &checked.partition),
            rows: u64::try_from(footer.metadata.file_metadata().num_rows()).unwrap_or_default(),
            bytes: footer.bytes,
            builder: checked.builder,
            spec_id: plan.spec.spec_id(),
            schema: plan.schema,
            folder: plan.folder,
            mapped: checked.mapped,
        })
    }

    /// Makes a file that fits durable where it is to lie. No query sees it before a commit names it.
    ///
    /// # Errors
    /// The bytes cannot be read or are not as many as were checked, or the disk refused; then nothing of them is left.
    pub async fn adopt_file(&self, plan: AdoptPlan, how: AdoptHow) -> Result<WrittenFile, LakeError> {
        let AdoptPlan { mut builder, schema, spec_id, folder, partition, mapped, bytes: size, .. } = plan;
        let referenced = matches!(how, AdoptHow::Reference(_));
        let location = match how {
            AdoptHow::Reference(location) => {
                if !self.lake.options.warehouse.exists(&location).await? {
                    return Err(LakeError::Invalid(format!("there is no file {location} to be referenced")));
                }
                location
            }
            AdoptHow::Copy(bytes) => {
                let id = self.lake.options.random.next_u128();
                let slash = if partition.is_empty() { "" } else { "/" };
                let location = format!("{folder}{slash}{partition}/{id:032x}-adopted.parquet");
                self.copy(bytes, &location, size).await?;
                location
            }
        };
        self.live.lock().insert(location.clone());
        let data_file = builder.file_path(location).build().map_err(LakeError::invalid)?;
        let written_us = self.lake.options.clock.monotonic_us();
        Ok(WrittenFile { data_file, spec_id, schema, table_uuid: self.uuid, mapped, referenced, written_us })
    }

    async fn copy(&self, bytes: Box<dyn Read + Send>, location: &str, size: u64) -> Result<(), LakeError> {
        let warehouse = &self.lake.options.warehouse;
        let sink = warehouse.create(location)?;
        let place = location.to_owned();
        let work = move || {
            let copied = copy_exactly(bytes, sink, size, &place);
            if copied.is_err() {
                Sink::abandon(&place);
            }
            copied
        };
        let finished = tokio::task::spawn_blocking(work).await.map_err(LakeError::invalid)??;
        Ok(warehouse.finish(finished).await?)
    }
}

fn copy_exactly(
    mut bytes: Box<dyn Read + Send>,
    mut sink: Sink,
    size: u64,
    location: &str,
) -> Result<crate::warehouse::Finished, LakeError> {
    let wrong = |source| WarehouseError::Io { action: "copy a file to", location: location.to_owned(), source };
    let mut buffer = vec![0; COPY_BYTES];
    let mut copied: u64 = 0;
    loop {
        let read = bytes.read(&mut buffer).map_err(wrong)?;
        if read == 0 {
            break;
        }
        copied = copied.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if copied > size {
            break;
        }
        std::io::Write::write_all(&mut sink, buffer.get(..read).unwrap_or_default()).map_err(wrong)?;
    }
    if copied != size {
        return Err(LakeError::Invalid(format!(
            "the file changed while it was copied: its footer was read of {size} bytes, and {} came",
            if copied > size { "more".to_owned() } else { copied.to_string() }
        )));
    }
    lakegate_env::hit_failpoint("lake.adopt.before_sync").map_err(wrong)?;
    Ok(sink.sync()?)
}

/// The mapping that a table needs for files without ids: what it has, and every column that is missing in it.
///
/// # Errors
/// A column's name is mapped to another column's id.
pub(crate) fn extend_mapping(known: Option<&String>, schema: &Schema) -> Result<String, LakeError> {
    let mut fields: Vec<MappedField> = match known {
        None => Vec::new(),
        Some(text) => serde_json::from_str::<NameMapping>(text)
            .map_err(|e| LakeError::Invalid(format!("the table's property {NAME_MAPPING} cannot be read: {e}")))?
            .fields()
            .to_vec(),
    };
    for field in schema.as_struct().fields() {
        match fields.iter().find(|m| m.names().contains(&field.name)) {
            Some(mapped) if mapped.field_id() == Some(field.id) => {}
            Some(mapped) => {
                return Err(LakeError::Invalid(format!(
                    "the table's property {NAME_MAPPING} gives the name {:?} to the field {:?}, and the column has the id {}",
                    field.name,
                    mapped.field_id(),
                    field.id
                )));
            }
            None => {
                let mut names = vec![field.name.clone()];
                // A renamed column: its old names stay.
                if let Some(at) = fields.iter().position(|m| m.field_id() == Some(field.id)) {
                    names.extend(fields.remove(at).names().iter().cloned());
                }
                fields.push(MappedField::new(Some(field.id), names, Vec::new()));
            }
        }
    }
    serde_json::to_string(&NameMapping::new(fields)).map_err(LakeError::invalid)
}
