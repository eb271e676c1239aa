//! Commits, renames and drops of tables in the database.

use std::sync::Arc;

use iceberg::TableIdent;

use super::{CATALOG, CatalogError, EmbeddedCatalog, LoadedTable, SWAP_ATTEMPTS, TableChange, key_of, unavailable};
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
        let mut tx = self.shared.pool.begin_with("BEGIN IMMEDIATE").await.map_err(unavailable)?;
        for one in prepared {
            let key = key_of(one.table.namespace())?;
            let query = match &one.base_location {
                Some(base) => sqlx::query(
                    "UPDATE iceberg_tables SET metadata_location = ?, previous_metadata_location = ? \
                     WHERE catalog_name = ? AND table_namespace = ? AND table_name = ? AND metadata_location = ?",
                )
                .bind(&one.next.metadata_location)
                .bind(base)
                .bind(CATALOG)
                .bind(key)
                .bind(one.table.name())
                .bind(base),
                None => sqlx::query(
                    "INSERT OR IGNORE INTO iceberg_tables (metadata_location, catalog_name, table_namespace, table_name, iceberg_type) \
                     VALUES (?, ?, ?, ?, 'TABLE')",
                )
                .bind(&one.next.metadata_location)
                .bind(CATALOG)
                .bind(key)
                .bind(one.table.name()),
            };
            if query.execute(&mut *tx).await.map_err(unavailable)?.rows_affected() != 1 {
                return Ok(false);
            }
        }
        // A commit that errs may have reached the disk all the same.
        tx.commit()
            .await
            .map_err(|e| CatalogError::Unknown(format!("the catalog's database did not confirm the commit: {e}")))?;
        Ok(true)
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
        let done =
            sqlx::query("DELETE FROM iceberg_tables WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?")
                .bind(CATALOG)
                .bind(key_of(table.namespace())?)
                .bind(table.name())
                .execute(&self.shared.pool)
                .await
                .map_err(unavailable)?;
        if done.rows_affected() == 0 {
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
        let done = sqlx::query(
            "UPDATE iceberg_tables SET table_namespace = ?, table_name = ? WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?",
        )
        .bind(key_of(to.namespace())?)
        .bind(to.name())
        .bind(CATALOG)
        .bind(key_of(from.namespace())?)
        .bind(from.name())
        .execute(&self.shared.pool)
        .await;
        let mut newest = self.shared.newest.lock();
        newest.remove(from);
        newest.remove(to);
        match done {
            Ok(done) if done.rows_affected() == 0 => Err(CatalogError::NotFound(format!("table {from}"))),
            Ok(_) => Ok(()),
            Err(sqlx::Error::Database(e)) if e.is_unique_violation() => {
                Err(CatalogError::AlreadyExists(format!("table {to}")))
            }
            Err(e) => Err(unavailable(e)),
        }
    }
}

fn encode_all(prepared: &[Prepared]) -> Result<Vec<(String, bytes::Bytes)>, CatalogError> {
    prepared.iter().map(|p| Ok((p.next.metadata_location.clone(), encode_metadata(&p.next.metadata)?))).collect()
}
