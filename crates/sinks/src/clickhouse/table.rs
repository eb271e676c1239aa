//! The table: its columns and types as the server tells them, made and extended where they lack.

use std::collections::HashMap;

use lakegate_model::{Column, ColumnType, Contract};

use super::encode::Type;
use super::{ClickHouse, literal, quoted};
use crate::record::Rows;

/// Our own columns.
pub(super) const KEY: &str = "_key";
pub(super) const TENANT: &str = "_tenant";
pub(super) const STREAM: &str = "_stream";
pub(super) const RECEIVED: &str = "_received_at";

/// What a server knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    /// `DateTime64`, `Bool` and `Date32`.
    pub(super) modern_types: bool,
    /// Tokens of inserts, also for tables of one copy.
    pub(super) tokens: bool,
}

impl Features {
    pub(super) fn of(version: &str) -> Self {
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        Self { modern_types: version >= (22, 3), tokens: version >= (22, 3) }
    }
}

/// A table as the server has it.
pub(super) struct Table {
    name: String,
    types: HashMap<String, Type>,
    /// Of the contracts that it was fitted to.
    fitted: Vec<u64>,
}

impl Table {
    /// Looks at the table; one that is not there has no columns.
    pub(super) async fn look(server: &ClickHouse, name: &str, _: Features) -> Result<Self, String> {
        let statement = format!(
            "SELECT name, type FROM system.columns WHERE database = {} AND table = {} FORMAT TabSeparated",
            literal(&server.settings.database),
            literal(name)
        );
        let answer = server.ask(&statement).await?;
        let pairs = answer.lines().filter_map(|line| line.split_once('\t'));
        // Names and types come escaped as texts of TabSeparated.
        let plain = |text: &str| text.replace("\\'", "'").replace("\\\\", "\\");
        let types = pairs.map(|(name, kind)| (plain(name), Type::parse(&plain(kind)))).collect();
        Ok(Self { name: name.to_owned(), types, fitted: Vec::new() })
    }

    /// Makes or extends it, so that the contract's rows fit in.
    pub(super) async fn fit(
        &mut self,
        server: &ClickHouse,
        contract: &Contract,
        features: Features,
    ) -> Result<(), String> {
        let fingerprint = contract.fingerprint();
        if self.fitted.contains(&fingerprint) {
            return Ok(());
        }
        if self.types.is_empty() {
            let database = quoted(&server.settings.database);
            server.ask(&format!("CREATE DATABASE IF NOT EXISTS {database}")).await?;
            server.ask(&self.creation(server, contract, features)).await?;
        } else {
            for (name, kind) in wanted(contract, features) {
                if self.types.contains_key(&name) {
                    continue;
                }
                let place = server.place(&self.name);
                let added = server.ask(&format!("ALTER TABLE {place} ADD COLUMN {} {kind}", quoted(&name))).await;
                // Another instance may have been faster.
                if let Err(error) = added
                    && !Self::look(server, &self.name, features).await?.types.contains_key(&name)
                {
                    return Err(error);
                }
                tracing::info!(table = %self.name, column = %name, kind, "a column was added in ClickHouse");
            }
        }
        let fitted = std::mem::take(&mut self.fitted);
        *self = Self::look(server, &self.name, features).await?;
        self.fitted = fitted;
        self.fitted.push(fingerprint);
        Ok(())
    }

    fn creation(&self, server: &ClickHouse, contract: &Contract, features: Features) -> String {
        let settings = &server.settings;
        let columns = wanted(contract, features);
        let lines: Vec<String> = columns.iter().map(|(name, kind)| format!("{} {kind}", quoted(name))).collect();
        let ordered = |name: &&String| columns.iter().any(|(own, kind)| own == *name && !kind.starts_with("Nullable"));
        let mut order: Vec<String> = settings.order_by.iter().filter(ordered).map(|name| quoted(name)).collect();
        order.push(quoted(KEY));
        let engine = &settings.engine;
        let tokens = features.tokens && !engine.starts_with("Replicated");
        // So many of the latest blocks are told apart.
        let window = if tokens { " SETTINGS non_replicated_deduplication_window = 10000" } else { "" };
        format!(
            "CREATE TABLE IF NOT EXISTS {} ({}) ENGINE = {engine} ORDER BY ({}){window}",
            server.place(&self.name),
            lines.join(", "),
            order.join(", ")
        )
    }

    /// The table's columns that these rows have something for, in a fixed order.
    pub(super) fn columns_of<'a>(&'a self, rows: &Rows) -> Vec<&'a str> {
        let has =
            |name: &str| matches!(name, KEY | TENANT | STREAM | RECEIVED) || rows.batch.column_by_name(name).is_some();
        let mut columns: Vec<&str> = self.types.keys().map(String::as_str).filter(|name| has(name)).collect();
        columns.sort_unstable();
        columns
    }

    pub(super) fn type_of(&self, column: &str) -> Option<&Type> {
        self.types.get(column)
    }
}

/// The columns that the contract's rows need, with their types.
fn wanted(contract: &Contract, features: Features) -> Vec<(String, String)> {
    let text = |name: &str, kind: &str| (name.to_owned(), kind.to_owned());
    let moment = if features.modern_types { "DateTime64(6, 'UTC')" } else { "Int64" };
    let mut columns = vec![text(KEY, "String"), text(TENANT, "String"), text(STREAM, "String"), text(RECEIVED, moment)];
    for column in &contract.columns {
        if !columns.iter().any(|(name, _)| *name == column.name) {
            columns.push((column.name.clone(), type_text(column, features)));
        }
    }
    columns
}

fn type_text(column: &Column, features: Features) -> String {
    let modern = features.modern_types;
    let kind = match column.column_type {
        ColumnType::Boolean if modern => "Bool".to_owned(),
        ColumnType::Boolean => "UInt8".to_owned(),
        ColumnType::Int => "Int32".to_owned(),
        ColumnType::Long => "Int64".to_owned(),
        ColumnType::Float => "Float32".to_owned(),
        ColumnType::Double => "Float64".to_owned(),
        ColumnType::Decimal { precision, scale } if modern => format!("Decimal({precision}, {scale})"),
        ColumnType::Date if modern => "Date32".to_owned(),
        ColumnType::Date => "Int32".to_owned(),
        ColumnType::Timestamp | ColumnType::Timestamptz if modern => "DateTime64(6, 'UTC')".to_owned(),
        ColumnType::Timestamp | ColumnType::Timestamptz => "Int64".to_owned(),
        ColumnType::Decimal { .. }
        | ColumnType::String
        | ColumnType::Binary
        | ColumnType::Json
        | ColumnType::StringMap => "String".to_owned(),
    };
    if column.required { kind } else { format!("Nullable({kind})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_knows_follows_from_its_version() {
        let old = Features { modern_types: false, tokens: false };
        let new = Features { modern_types: true, tokens: true };
        assert_eq!((Features::of("18.16.1"), Features::of("22.2.9")), (old, old));
        assert_eq!((Features::of("22.3.1.1"), Features::of("26.9.2.1")), (new, new));
    }
}
