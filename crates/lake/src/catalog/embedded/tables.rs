//! Commits, renames and drops of tables in the database.

use std::sync::Arc;

use iceberg::TableIdent;

use super::database::{ChangeError, Step};
use super::{CATALOG, CatalogError, EmbeddedCatalog, LoadedTable, SWAP_ATTEMPTS, TableChange, key_of};
use crate::catalog::{apply_commit, encode_metadata, expired_locations, next_location};

/// One table's next state, written and not yet pointed to.
struct Prepared {
    table: TableIdent,
    /// The pointer that must still stand; none for a table that must not be there.
    base_location: Option<String>,
    next: LoadedTable,
    expired: Vec<String>,
}

impl EmbeddedCatalog {
    pub(super) async fn commit_all(&self, mut changes: Vec<TableChange>) -> Result<Vec<LoadedTable>, CatalogError> {
        changes.sort_by(|a, b| a.table.cmp(&b.table));
        if changes.is_empty() || changes.windows(2).any(|w| matches!(w, [a, b] if a.table == b.table)) {
            return Err(CatalogError::Rejected("a commit needs at least one table, and each table once".to_owned()));
        }
        let mut turns = Vec::new();
        for change in &changes {
            turns.push(self.turn(&change.table).lock_owned().await);
        }
        for _ in 0..SWAP_ATTEMPTS {
            let prepared = self.prepare_all(&changes).await?;
            let files = encode_all(&prepared)?;
            self.warehouse().save(files).await?;
            if self.swap_all(&prepared).await? {
                return Ok(self.settle(prepared).await);
            }
            let written = prepared.into_iter().map(|p| p.next.metadata_location).collect();
            self.remove_quietly(written).await;
        }
        Err(CatalogError::Conflict(format!(
            "the table's pointer moved {SWAP_ATTEMPTS} times while the commit was being written"
        )))
    }

    async fn prepare_all(&self, changes: &[TableChange]) -> Result<Vec<Prepared>, CatalogError> {
        let mut prepared = Vec::with_capacity(changes.len());
        for change in changes {
            prepared.push(self.prepare(change).await?);
        }
        Ok(prepared)
    }

    async fn prepare(&self, change: &TableChange) -> Result<Prepared, CatalogError> {
        let TableChange { table, requirements, updates } = change;
        let Some(base) = self.load_if_there(table).await? else {
            let next = self.build_from_updates(table, requirements, updates.clone()).await?;
            return Ok(Prepared { table: table.clone(), base_location: None, next, expired: Vec::new() });
        };
        let (metadata, logs) = apply_commit(&base.metadata, &base.metadata_location, requirements, updates.clone())?;
        self.check_places(&metadata)?;
        let metadata_location = next_location(&metadata, Some(&base.metadata_location), self.shared.random.as_ref());
        let expired = expired_locations(&metadata, logs);
        let next = LoadedTable { metadata_location, metadata: Arc::new(metadata) };
        Ok(Prepared { table: table.clone(), base_location: Some(base.metadata_location), next, expired })
    }

    /// Moves all pointers in one transaction; false: one of them had moved.
    async fn swap_all(&self, prepared: &[Prepared]) -> Result<bool, CatalogError> {
        let steps = prepared.iter().map(step_of).collect::<Result<Vec<_>, _>>()?;
        Ok(self.shared.database.change_all(&steps).await?)
    }

    async fn settle(&self, prepared: Vec<Prepared>) -> Vec<LoadedTable> {
        let mut done = Vec::with_capacity(prepared.len());
        for one in prepared {
            self.remember(&one.table, &one.next.metadata_location, &one.next.metadata);
            self.remove_quietly(one.expired).await;
            done.push(one.next);
        }
        done
    }

    /// Files that nothing names any more; one that stays costs room only.
    pub(super) async fn remove_quietly(&self, locations: Vec<String>) {
        for location in locations {
            if let Err(error) = self.warehouse().remove(vec![location]).await {
                tracing::warn!(%error, "a file that no table needs any more could not be removed");
            }
        }
    }

    pub(super) async fn delete_table(&self, table: &TableIdent, purge: bool) -> Result<(), CatalogError> {
        let files = if purge { self.files_of(table).await? } else { Vec::new() };
        let key = key_of(table.namespace())?;
        let done = self
            .shared
            .database
            .change(
                "DELETE FROM iceberg_tables WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3",
                &[CATALOG, &key, table.name()],
            )
            .await;
        if done? == 0 {
            return Err(CatalogError::NotFound(format!("table {table}")));
        }
        self.shared.newest.lock().remove(table);
        self.remove_quietly(files).await;
        Ok(())
    }

    pub(super) async fn move_table(&self, from: &TableIdent, to: &TableIdent) -> Result<(), CatalogError> {
        self.require_namespace(to.namespace()).await?;
        if !super::is_plain_name(to.name()) {
            return Err(CatalogError::Rejected(format!("{:?} is not a table's name", to.name())));
        }
        let (to_key, from_key) = (key_of(to.namespace())?, key_of(from.namespace())?);
        let done = self.shared.database.change(
            "UPDATE iceberg_tables SET table_namespace = $1, table_name = $2 WHERE catalog_name = $3 AND table_namespace = $4 AND table_name = $5",
            &[&to_key, to.name(), CATALOG, &from_key, from.name()],
        ).await;
        let mut newest = self.shared.newest.lock();
        newest.remove(from);
        newest.remove(to);
        match done {
            Ok(0) => Err(CatalogError::NotFound(format!("table {from}"))),
            Ok(_) => Ok(()),
            Err(ChangeError::Taken) => Err(CatalogError::AlreadyExists(format!("table {to}"))),
            Err(ChangeError::Other(error)) => Err(error),
        }
    }
}

/// The change that moves one table's pointer, if it still stands where it was read.
fn step_of(one: &Prepared) -> Result<Step, CatalogError> {
    let (catalog, key, name) = (CATALOG.to_owned(), key_of(one.table.namespace())?, one.table.name().to_owned());
    let location = one.next.metadata_location.clone();
    let (sql, values) = match &one.base_location {
        Some(base) => (
            "UPDATE iceberg_tables SET metadata_location = $1, previous_metadata_location = $2 \
             WHERE catalog_name = $3 AND table_namespace = $4 AND table_name = $5 AND metadata_location = $6",
            vec![location, base.clone(), catalog, key, name, base.clone()],
        ),
        None => (
            "INSERT INTO iceberg_tables (metadata_location, catalog_name, table_namespace, table_name, iceberg_type) \
             VALUES ($1, $2, $3, $4, 'TABLE') ON CONFLICT DO NOTHING",
            vec![location, catalog, key, name],
        ),
    };
    Ok(Step { sql, values, one_row: true })
}

fn encode_all(prepared: &[Prepared]) -> Result<Vec<(String, bytes::Bytes)>, CatalogError> {
    prepared.iter().map(|p| Ok((p.next.metadata_location.clone(), encode_metadata(&p.next.metadata)?))).collect()
}
