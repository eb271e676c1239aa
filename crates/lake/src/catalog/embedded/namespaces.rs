//! Namespaces in the database. A namespace is there when it has a row of its own, or a table or namespace in it.

use std::collections::{BTreeSet, HashMap};

use iceberg::{NamespaceIdent, TableIdent};

use super::{CATALOG, CatalogError, EmbeddedCatalog, NamespaceChange, key_of, unavailable};

/// The property by which an empty namespace is there; never shown.
const EXISTS: &str = "exists";

impl EmbeddedCatalog {
    async fn all_namespaces(&self) -> Result<Vec<String>, CatalogError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT DISTINCT namespace FROM iceberg_namespace_properties WHERE catalog_name = ? \
             UNION SELECT DISTINCT table_namespace FROM iceberg_tables WHERE catalog_name = ?",
        )
        .bind(CATALOG)
        .bind(CATALOG)
        .fetch_all(&self.shared.pool)
        .await
        .map_err(unavailable)?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }

    pub(super) async fn children(&self, parent: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>, CatalogError> {
        if let Some(parent) = parent {
            self.require_namespace(parent).await?;
        }
        let above: &[String] = parent.map_or(&[], |p| p.as_ref().as_slice());
        let mut found = BTreeSet::new();
        for name in self.all_namespaces().await? {
            let levels: Vec<String> = name.split('.').map(str::to_owned).collect();
            if let Some((head, rest)) = levels.split_at_checked(above.len())
                && let (true, Some(next)) = (head == above, rest.first())
            {
                found.insert(next.clone());
            }
        }
        let full = |last: String| above.iter().cloned().chain([last]).collect();
        found
            .into_iter()
            .map(|last| NamespaceIdent::from_vec(full(last)).map_err(|e| CatalogError::Rejected(e.to_string())))
            .collect()
    }

    pub(super) async fn namespace_is_there(&self, namespace: &NamespaceIdent) -> Result<bool, CatalogError> {
        let key = key_of(namespace)?;
        let below = format!("{key}.");
        Ok(self.all_namespaces().await?.iter().any(|n| *n == key || n.starts_with(&below)))
    }

    pub(super) async fn require_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        if self.namespace_is_there(namespace).await? {
            Ok(())
        } else {
            Err(CatalogError::NotFound(format!("namespace {namespace}")))
        }
    }

    pub(super) async fn insert_namespace(
        &self,
        namespace: &NamespaceIdent,
        mut properties: HashMap<String, String>,
    ) -> Result<(), CatalogError> {
        let key = key_of(namespace)?;
        if self.namespace_is_there(namespace).await? {
            return Err(CatalogError::AlreadyExists(format!("namespace {namespace}")));
        }
        properties.insert(EXISTS.to_owned(), "true".to_owned());
        let mut tx = self.shared.pool.begin().await.map_err(unavailable)?;
        for (name, value) in properties {
            let done = sqlx::query("INSERT INTO iceberg_namespace_properties VALUES (?, ?, ?, ?)")
                .bind(CATALOG)
                .bind(&key)
                .bind(name)
                .bind(value)
                .execute(&mut *tx)
                .await;
            match done {
                Err(sqlx::Error::Database(e)) if e.is_unique_violation() => {
                    return Err(CatalogError::AlreadyExists(format!("namespace {namespace}")));
                }
                other => other.map_err(unavailable)?,
            };
        }
        tx.commit().await.map_err(|e| CatalogError::Unknown(e.to_string()))
    }

    pub(super) async fn namespace_properties(
        &self,
        namespace: &NamespaceIdent,
    ) -> Result<HashMap<String, String>, CatalogError> {
        self.require_namespace(namespace).await?;
        let rows: Vec<(String, Option<String>)> =
            sqlx::query_as("SELECT property_key, property_value FROM iceberg_namespace_properties WHERE catalog_name = ? AND namespace = ?")
                .bind(CATALOG)
                .bind(key_of(namespace)?)
                .fetch_all(&self.shared.pool)
                .await
                .map_err(unavailable)?;
        Ok(rows.into_iter().filter(|(k, _)| k != EXISTS).map(|(k, v)| (k, v.unwrap_or_default())).collect())
    }

    pub(super) async fn change_namespace(
        &self,
        namespace: &NamespaceIdent,
        removals: Vec<String>,
        updates: HashMap<String, String>,
    ) -> Result<NamespaceChange, CatalogError> {
        let before = self.namespace_properties(namespace).await?;
        let key = key_of(namespace)?;
        if removals.iter().chain(updates.keys()).any(|k| k == EXISTS) {
            return Err(CatalogError::Rejected(format!("the property {EXISTS:?} is the catalog's own")));
        }
        let (removed, missing): (Vec<_>, Vec<_>) = removals.into_iter().partition(|k| before.contains_key(k));
        let mut tx = self.shared.pool.begin().await.map_err(unavailable)?;
        for name in &removed {
            sqlx::query("DELETE FROM iceberg_namespace_properties WHERE catalog_name = ? AND namespace = ? AND property_key = ?")
                .bind(CATALOG)
                .bind(&key)
                .bind(name)
                .execute(&mut *tx)
                .await
                .map_err(unavailable)?;
        }
        for (name, value) in &updates {
            sqlx::query("INSERT OR REPLACE INTO iceberg_namespace_properties VALUES (?, ?, ?, ?)")
                .bind(CATALOG)
                .bind(&key)
                .bind(name)
                .bind(value)
                .execute(&mut *tx)
                .await
                .map_err(unavailable)?;
        }
        tx.commit().await.map_err(|e| CatalogError::Unknown(e.to_string()))?;
        Ok(NamespaceChange { updated: updates.into_keys().collect(), removed, missing })
    }

    pub(super) async fn delete_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        self.require_namespace(namespace).await?;
        if !self.tables_in(namespace).await?.is_empty() || !self.children(Some(namespace)).await?.is_empty() {
            return Err(CatalogError::NotEmpty(format!("namespace {namespace}; drop what is in it first")));
        }
        sqlx::query("DELETE FROM iceberg_namespace_properties WHERE catalog_name = ? AND namespace = ?")
            .bind(CATALOG)
            .bind(key_of(namespace)?)
            .execute(&self.shared.pool)
            .await
            .map_err(unavailable)?;
        Ok(())
    }

    pub(super) async fn tables_in(&self, namespace: &NamespaceIdent) -> Result<Vec<TableIdent>, CatalogError> {
        self.require_namespace(namespace).await?;
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT table_name FROM iceberg_tables WHERE catalog_name = ? AND table_namespace = ? ORDER BY table_name",
        )
        .bind(CATALOG)
        .bind(key_of(namespace)?)
        .fetch_all(&self.shared.pool)
        .await
        .map_err(unavailable)?;
        Ok(rows.into_iter().map(|(name,)| TableIdent::new(namespace.clone(), name)).collect())
    }
}
