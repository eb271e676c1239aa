//! What embedded and in-memory catalogs share: a table's metadata made, changed, named, written and read.

use std::sync::Arc;

use bytes::Bytes;
use iceberg::spec::{MetadataLog, TableMetadata, TableMetadataBuilder};
use iceberg::{TableCreation, TableRequirement, TableUpdate};
use lakegate_env::Random;
use uuid::Uuid;

use super::CatalogError;
use crate::warehouse::Warehouse;

/// Larger metadata files are not read: no table of ours comes near it.
const MAX_METADATA_BYTES: usize = 512 << 20;

/// The metadata of a new table. `creation.location` must be set.
pub(crate) fn create_metadata(creation: TableCreation, uuid: Uuid) -> Result<TableMetadata, CatalogError> {
    let rejected = |e: iceberg::Error| CatalogError::Rejected(e.to_string());
    let builder = TableMetadataBuilder::from_table_creation(creation).map_err(rejected)?.assign_uuid(uuid);
    Ok(builder.build().map_err(rejected)?.metadata)
}

/// What a commit makes of a table, if its requirements hold. `base` is none while the table does not exist.
pub(crate) fn apply_commit(
    base: &TableMetadata,
    base_location: &str,
    requirements: &[TableRequirement],
    updates: Vec<TableUpdate>,
) -> Result<(TableMetadata, Vec<MetadataLog>), CatalogError> {
    for requirement in requirements {
        requirement.check(Some(base)).map_err(|e| CatalogError::Conflict(e.to_string()))?;
    }
    let mut builder = base.clone().into_builder(Some(base_location.to_owned()));
    for update in updates {
        builder = update.apply(builder).map_err(|e| CatalogError::Rejected(e.to_string()))?;
    }
    let built = builder.build().map_err(|e| CatalogError::Rejected(e.to_string()))?;
    Ok((built.metadata, built.expired_metadata_logs))
}

/// The old metadata files that may be removed once the commit stands; none unless the table's property asks for it.
pub(crate) fn expired_locations(metadata: &TableMetadata, expired: Vec<MetadataLog>) -> Vec<String> {
    let asked = metadata
        .properties()
        .get("write.metadata.delete-after-commit.enabled")
        .is_some_and(|v| v.eq_ignore_ascii_case("true"));
    if asked { expired.into_iter().map(|log| log.metadata_file).collect() } else { Vec::new() }
}

/// A name for the metadata file that follows `previous`, never used before: `<table>/metadata/00042-<uuid>.metadata.json`.
pub(crate) fn next_location(metadata: &TableMetadata, previous: Option<&str>, random: &dyn Random) -> String {
    let version = previous.and_then(version_of).map_or(0, |v| v.saturating_add(1));
    let folder = match metadata.properties().get("write.metadata.path") {
        Some(path) => path.trim_end_matches('/').to_owned(),
        None => format!("{}/metadata", metadata.location().trim_end_matches('/')),
    };
    let id = uuid::Builder::from_random_bytes(random.next_u128().to_be_bytes()).into_uuid();
    format!("{folder}/{version:05}-{id}.metadata.json")
}

fn version_of(location: &str) -> Option<u32> {
    location.rsplit('/').next()?.split_once('-')?.0.trim_start_matches('v').parse().ok()
}

pub(crate) fn encode_metadata(metadata: &TableMetadata) -> Result<Bytes, CatalogError> {
    serde_json::to_vec(metadata)
        .map(Bytes::from)
        .map_err(|e| CatalogError::Rejected(format!("the table's metadata cannot be written as JSON: {e}")))
}

pub(crate) async fn read_metadata(warehouse: &Warehouse, location: &str) -> Result<Arc<TableMetadata>, CatalogError> {
    warehouse.check(location)?;
    let wrong = |e: iceberg::Error| CatalogError::Unavailable(format!("cannot read the metadata file {location}: {e}"));
    let size = warehouse.io().new_input(location).map_err(wrong)?.metadata().await.map_err(wrong)?.size;
    if usize::try_from(size).map_or(true, |s| s > MAX_METADATA_BYTES) {
        return Err(CatalogError::Rejected(format!(
            "the metadata file {location} has {size} bytes; at most {MAX_METADATA_BYTES} are read"
        )));
    }
    TableMetadata::read_from(warehouse.io(), location).await.map(Arc::new).map_err(wrong)
}
