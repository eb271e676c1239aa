//! Namespaces in the database. A namespace is there when it has a row of its own, or a table or namespace in it.

use std::collections::{BTreeSet, HashMap};

use iceberg::{NamespaceIdent, TableIdent};

use super::database::{ChangeError, Step};
use super::{CATALOG, CatalogError, EmbeddedCatalog, NamespaceChange, key_of};

/// The property by which an empty namespace is there; never shown.
const EXISTS: &str = "exists";

impl EmbeddedCatalog {
    async fn all_namespaces(&self) -> Result<Vec<String>, CatalogError> {
        let rows = self
            .shared
            .database
            .rows(
                "SELECT DISTINCT namespace FROM iceberg_namespace_properties WHERE catalog_name = $1 \
             UNION SELECT DISTINCT table_namespace FROM iceberg_tables WHERE catalog_name = $1",
                &[CATALOG],
            )
            .await;
        Ok(rows?.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
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
        let steps: Vec<Step> = properties
            .into_iter()
            .map(|(name, value)| Step {
                sql: "INSERT INTO iceberg_namespace_properties VALUES ($1, $2, $3, $4)",
                values: vec![CATALOG.to_owned(), key.clone(), name, value],
                one_row: true,
            })
            .collect();
        match self.shared.database.change_all(&steps).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(ChangeError::Taken) => Err(CatalogError::AlreadyExists(format!("namespace {namespace}"))),
            Err(ChangeError::Other(error)) => Err(error),
        }
    }

    pub(super) async fn namespace_properties(
        &self,
        namespace: &NamespaceIdent,
    ) -> Result<HashMap<String, String>, CatalogError> {
        self.require_namespace(namespace).await?;
        let key = key_of(namespace)?;
        let rows = self.shared.database.rows(
            "SELECT property_key, property_value FROM iceberg_namespace_properties WHERE catalog_name = $1 AND namespace = $2",
            &[CATALOG, &key],
        ).await;
        let pairs = rows?.into_iter().filter_map(|row| {
            let mut columns = row.into_iter();
            Some((columns.next().flatten()?, columns.next().flatten().unwrap_or_default()))
        });
        Ok(pairs.filter(|(name, _)| name != EXISTS).collect())
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
        let of = |name: &String| vec![CATALOG.to_owned(), key.clone(), name.clone()];
        let mut steps: Vec<Step> = removed
            .iter()
            .map(|name| Step {
                sql: "DELETE FROM iceberg_namespace_properties WHERE catalog_name = $1 AND namespace = $2 AND property_key = $3",
                values: of(name),
                one_row: false,
            })
            .collect();
        steps.extend(updates.iter().map(|(name, value)| Step {
            sql: "INSERT INTO iceberg_namespace_properties VALUES ($1, $2, $3, $4) \
                  ON CONFLICT (catalog_name, namespace, property_key) DO UPDATE SET property_value = excluded.property_value",
            values: of(name).into_iter().chain([value.clone()]).collect(),
            one_row: false,
        }));
        if !self.shared.database.change_all(&steps).await? {
            return Err(CatalogError::Conflict(format!("another changed the namespace {namespace}")));
        }
        Ok(NamespaceChange { updated: updates.into_keys().collect(), removed, missing })
    }

    pub(super) async fn delete_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        self.require_namespace(namespace).await?;
        if !self.tables_in(namespace).await?.is_empty() || !self.children(Some(namespace)).await?.is_empty() {
            return Err(CatalogError::NotEmpty(format!("namespace {namespace}; drop what is in it first")));
        }
        let key = key_of(namespace)?;
        let removed = self
            .shared
            .database
            .change(
                "DELETE FROM iceberg_namespace_properties WHERE catalog_name = $1 AND namespace = $2",
                &[CATALOG, &key],
            )
            .await;
        Ok(removed.map(drop)?)
    }

    pub(super) async fn tables_in(&self, namespace: &NamespaceIdent) -> Result<Vec<TableIdent>, CatalogError> {
        self.require_namespace(namespace).await?;
        let key = key_of(namespace)?;
        let rows = self.shared.database.rows(
            "SELECT table_name FROM iceberg_tables WHERE catalog_name = $1 AND table_namespace = $2 ORDER BY table_name",
            &[CATALOG, &key],
        ).await;
        let names = rows?.into_iter().filter_map(|row| row.into_iter().next().flatten());
        Ok(names.map(|name| TableIdent::new(namespace.clone(), name)).collect())
    }
}
