//! Tables that come to be: created, staged, registered, and created by a commit.

use iceberg::spec::{FormatVersion, SortOrder, TableMetadata, UnboundPartitionSpec};
use iceberg::{NamespaceIdent, TableCreation, TableIdent, TableRequirement, TableUpdate};

use super::database::ChangeError;
use super::{CATALOG, CatalogError, EmbeddedCatalog, LoadedTable, is_plain_name, key_of};
use crate::catalog::{create_metadata, encode_metadata, next_location, read_metadata};

impl EmbeddedCatalog {
    /// Where a new table's files go: `<root>/<namespace>/<table>`, with a suffix where that folder is in use already.
    async fn default_location(&self, namespace: &NamespaceIdent, name: &str) -> Result<String, CatalogError> {
        let plain = format!("{}/{}/{name}", self.warehouse().root(), namespace.join("/"));
        if self.warehouse().list(&format!("{plain}/metadata")).await?.is_empty() {
            return Ok(plain);
        }
        Ok(format!("{plain}-{:08x}", self.shared.random.next_u64() >> 32))
    }

    pub(super) async fn stage(
        &self,
        namespace: &NamespaceIdent,
        mut creation: TableCreation,
    ) -> Result<LoadedTable, CatalogError> {
        self.require_namespace(namespace).await?;
        let table = TableIdent::new(namespace.clone(), creation.name.clone());
        if !is_plain_name(&creation.name) {
            return Err(CatalogError::Rejected(format!(
                "{:?} is not a table's name: it needs 1 to 255 characters other than '.', '/' and control characters",
                creation.name
            )));
        }
        if self.pointer(&table).await?.is_some() {
            return Err(CatalogError::AlreadyExists(format!("table {table}")));
        }
        if creation.location.is_none() {
            creation.location = Some(self.default_location(namespace, &creation.name).await?);
        }
        let uuid = uuid::Builder::from_random_bytes(self.shared.random.next_u128().to_be_bytes()).into_uuid();
        let metadata = create_metadata(creation, uuid)?;
        self.check_places(&metadata)?;
        let metadata_location = next_location(&metadata, None, self.shared.random.as_ref());
        let place = metadata.location().trim_end_matches('/');
        self.warehouse().make_folders(vec![format!("{place}/metadata"), format!("{place}/data")]).await?;
        Ok(LoadedTable { metadata_location, metadata: metadata.into() })
    }

    /// All places that the table may write to lie in the warehouse.
    pub(super) fn check_places(&self, metadata: &TableMetadata) -> Result<(), CatalogError> {
        self.warehouse().check(metadata.location())?;
        for key in ["write.data.path", "write.metadata.path", "write.object-storage.path"] {
            if let Some(path) = metadata.properties().get(key) {
                self.warehouse().check(path)?;
            }
        }
        Ok(())
    }

    /// Writes the staged metadata and makes the row.
    pub(super) async fn insert_table(
        &self,
        table: &TableIdent,
        staged: LoadedTable,
    ) -> Result<LoadedTable, CatalogError> {
        let bytes = encode_metadata(&staged.metadata)?;
        self.warehouse().save(vec![(staged.metadata_location.clone(), bytes)]).await?;
        if let Err(error) = self.insert_row(table, &staged.metadata_location).await {
            if matches!(error, CatalogError::AlreadyExists(_)) {
                self.clear_away(table, &staged).await;
            }
            return Err(error);
        }
        self.remember(table, &staged.metadata_location, &staged.metadata);
        Ok(staged)
    }

    /// Another came first with a table of the name: what was made for ours goes. Left over, it harms nobody.
    async fn clear_away(&self, table: &TableIdent, staged: &LoadedTable) {
        let Ok(Some(first)) = self.pointer(table).await else { return };
        if first == staged.metadata_location {
            return;
        }
        let cleared = self.warehouse().remove(vec![staged.metadata_location.clone()]).await;
        let place = staged.metadata.location().trim_end_matches('/');
        if cleared.is_ok() && !first.starts_with(&format!("{place}/")) {
            let folders = vec![format!("{place}/metadata"), format!("{place}/data"), place.to_owned()];
            self.warehouse().remove_empty_folders(folders).await;
        }
    }

    async fn insert_row(&self, table: &TableIdent, location: &str) -> Result<(), CatalogError> {
        let key = key_of(table.namespace())?;
        let done = self.shared.database.change(
            "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, metadata_location, iceberg_type) VALUES ($1, $2, $3, $4, 'TABLE')",
            &[CATALOG, &key, table.name(), location],
        ).await;
        match done {
            Ok(_) => Ok(()),
            Err(ChangeError::Taken) => Err(CatalogError::AlreadyExists(format!("table {table}"))),
            Err(ChangeError::Other(error)) => Err(error),
        }
    }

    pub(super) async fn take_in(
        &self,
        table: &TableIdent,
        location: &str,
        overwrite: bool,
    ) -> Result<LoadedTable, CatalogError> {
        self.require_namespace(table.namespace()).await?;
        let metadata = read_metadata(self.warehouse(), location).await?;
        self.check_places(&metadata)?;
        let inserted = self.insert_row(table, location).await;
        match inserted {
            Err(CatalogError::AlreadyExists(_)) if overwrite => {
                let key = key_of(table.namespace())?;
                let moved = self.shared.database.change(
                    "UPDATE iceberg_tables SET previous_metadata_location = metadata_location, metadata_location = $1 \
                     WHERE catalog_name = $2 AND table_namespace = $3 AND table_name = $4",
                    &[location, CATALOG, &key, table.name()],
                ).await;
                moved?;
            }
            other => other?,
        }
        self.remember(table, location, &metadata);
        Ok(LoadedTable { metadata_location: location.to_owned(), metadata })
    }

    /// The table that a create transaction's commit makes: its updates say everything.
    pub(super) async fn build_from_updates(
        &self,
        table: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<LoadedTable, CatalogError> {
        if !requirements.contains(&TableRequirement::NotExist) {
            return Err(CatalogError::NotFound(format!("table {table}")));
        }
        self.require_namespace(table.namespace()).await?;
        let (creation, uuid, rest) = split_creation(table, updates)?;
        let mut staged = self.stage(table.namespace(), creation).await?;
        let mut builder = staged.metadata.as_ref().clone().into_builder(None);
        if let Some(uuid) = uuid {
            builder = builder.assign_uuid(uuid);
        }
        for update in rest {
            builder = update.apply(builder).map_err(|e| CatalogError::Rejected(e.to_string()))?;
        }
        let metadata = builder.build().map_err(|e| CatalogError::Rejected(e.to_string()))?.metadata;
        self.check_places(&metadata)?;
        staged.metadata_location = next_location(&metadata, None, self.shared.random.as_ref());
        staged.metadata = metadata.into();
        Ok(staged)
    }
}

/// What of a create transaction's updates makes the table, and what comes after.
fn split_creation(
    table: &TableIdent,
    updates: Vec<TableUpdate>,
) -> Result<(TableCreation, Option<uuid::Uuid>, Vec<TableUpdate>), CatalogError> {
    let (mut schema, mut spec, mut order, mut location, mut uuid) =
        (None, UnboundPartitionSpec::default(), None, None, None);
    let (mut format_version, mut rest) = (FormatVersion::V2, Vec::new());
    for update in updates {
        match update {
            TableUpdate::AddSchema { schema: added } if schema.is_none() => schema = Some(added),
            TableUpdate::AddSpec { spec: added } => spec = added,
            TableUpdate::AddSortOrder { sort_order } => order = Some(sort_order),
            TableUpdate::SetLocation { location: set } => location = Some(set),
            TableUpdate::AssignUuid { uuid: set } => uuid = Some(set),
            TableUpdate::UpgradeFormatVersion { format_version: set } => format_version = set.max(FormatVersion::V2),
            TableUpdate::SetProperties { updates: mut properties } => {
                // Set by its own update; as a property it is reserved.
                properties.remove("format-version");
                rest.push(TableUpdate::SetProperties { updates: properties });
            }
            TableUpdate::SetCurrentSchema { .. }
            | TableUpdate::SetDefaultSpec { .. }
            | TableUpdate::SetDefaultSortOrder { .. } => {}
            other => rest.push(other),
        }
    }
    let schema =
        schema.ok_or_else(|| CatalogError::Rejected("a table cannot be created without a schema".to_owned()))?;
    let creation = TableCreation::builder()
        .name(table.name().to_owned())
        .location_opt(location)
        .schema(schema)
        .partition_spec(spec)
        .sort_order_opt(order.filter(|o: &SortOrder| !o.is_unsorted()))
        .format_version(format_version)
        .build();
    Ok((creation, uuid, rest))
}
