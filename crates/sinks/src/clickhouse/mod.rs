//! A table of a ClickHouse server, fed over its HTTP interface in large inserts.
//!
//! The table is made with the stream's columns and those of ours (`_key`, `_tenant`, `_stream`, `_received_at`); columns
//! that a contract gains are added, columns that a table of somebody else's making lacks too. Rows are sent as RowBinary,
//! in the types that the table has.
//!
//! A batch that is sent again counts once: servers that know insert tokens for tables of one copy (22.3 and later) drop
//! a block whose token they have seen, and the token follows from the batch's place in the log. A batch is written down
//! before it is sent, so that it is formed again as it was. Older servers have no such token: there the engine
//! `ReplacingMergeTree` leaves one row of each key when it merges, and `SELECT … FINAL` at once.

mod encode;
mod table;

use std::collections::HashMap;
use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use url::Url;

use crate::record::Rows;
use table::{Features, Table};

/// Of an error's text, so much is shown.
const SHOWN_CHARS_MAX: usize = 500;

/// A table of a server.
#[derive(Clone)]
pub struct ClickHouseSettings {
    /// Its HTTP interface.
    pub url: Url,
    /// The database; made where it is not there.
    pub database: String,
    /// The table; `{tenant}` and `{stream}` stand for those of the records.
    pub table: String,
    /// Who asks.
    pub user: String,
    /// Empty: none.
    pub password: String,
    /// The table's engine, where it is made.
    pub engine: String,
    /// The columns that its rows are ordered by; `_key` follows.
    pub order_by: Vec<String>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long an insert may take.
    pub timeout: Duration,
}

impl std::fmt::Debug for ClickHouseSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClickHouseSettings")
            .field("url", &self.url.as_str())
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

/// Feeds one server.
pub(crate) struct ClickHouse {
    settings: ClickHouseSettings,
    client: Client,
    features: Option<Features>,
    tables: HashMap<String, Table>,
}

impl ClickHouse {
    pub(crate) fn open(settings: ClickHouseSettings) -> Result<Self, String> {
        let client = Client::builder()
            .no_proxy()
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.timeout)
            .user_agent(concat!("lakegate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { settings, client, features: None, tables: HashMap::new() })
    }

    /// Inserts a batch, of which `token` tells the place.
    pub(crate) async fn deliver(&mut self, batch: &[Rows], token: &str) -> Result<(), String> {
        let mut shares: Vec<(String, Vec<&Rows>)> = Vec::new();
        for rows in batch {
            let name = self.table_of(rows);
            match shares.iter_mut().find(|(table, _)| *table == name) {
                Some((_, share)) => share.push(rows),
                None => shares.push((name, vec![rows])),
            }
        }
        for (name, rows) in shares {
            if let Err(error) = self.insert(&name, &rows, token).await {
                // Somebody may have changed the table: it is looked at anew.
                self.tables.remove(&name);
                return Err(error);
            }
        }
        Ok(())
    }

    fn table_of(&self, rows: &Rows) -> String {
        let name = self.settings.table.replace("{tenant}", rows.key.tenant.as_str());
        name.replace("{stream}", rows.key.stream.as_str())
    }

    async fn insert(&mut self, name: &str, share: &[&Rows], token: &str) -> Result<(), String> {
        let features = self.features().await?;
        let mut table = match self.tables.remove(name) {
            Some(table) => table,
            None => Table::look(self, name, features).await?,
        };
        for rows in share {
            table.fit(self, &rows.contract, features).await?;
        }
        // One statement names one set of columns: rows of contracts that differ go by themselves.
        let mut groups: Vec<(Vec<&str>, Vec<&Rows>)> = Vec::new();
        for rows in share {
            let columns = table.columns_of(rows);
            match groups.iter_mut().find(|(named, _)| *named == columns) {
                Some((_, group)) => group.push(rows),
                None => groups.push((columns, vec![rows])),
            }
        }
        for (at, (columns, group)) in groups.iter().enumerate() {
            let mut body = Vec::new();
            for rows in group {
                encode::encode(rows, columns, &table, &mut body)?;
            }
            let list: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
            let statement = format!("INSERT INTO {} ({}) FORMAT RowBinary", self.place(name), list.join(", "));
            let mut parameters = vec![("query", statement)];
            if features.tokens {
                parameters.push(("insert_deduplicate", "1".to_owned()));
                parameters.push(("insert_deduplication_token", format!("{token}-{name}-{at}")));
            }
            self.send(self.request().query(&parameters).body(body)).await?;
        }
        self.tables.insert(name.to_owned(), table);
        Ok(())
    }

    /// Whether a batch must be formed again as it was.
    pub(crate) fn needs_same_batches(&self) -> bool {
        self.features.is_none_or(|features| features.tokens)
    }

    async fn features(&mut self) -> Result<Features, String> {
        if let Some(features) = self.features {
            return Ok(features);
        }
        let version = self.ask("SELECT version()").await?;
        let features = Features::of(version.trim());
        tracing::info!(version = version.trim(), tokens = features.tokens, "ClickHouse was reached");
        self.features = Some(features);
        Ok(features)
    }

    fn place(&self, table: &str) -> String {
        format!("{}.{}", quoted(&self.settings.database), quoted(table))
    }

    fn request(&self) -> RequestBuilder {
        let settings = &self.settings;
        let mut request = self.client.post(settings.url.clone());
        if !settings.user.is_empty() {
            request = request.header("x-clickhouse-user", &settings.user);
        }
        if !settings.password.is_empty() {
            request = request.header("x-clickhouse-key", &settings.password);
        }
        request
    }

    /// Runs a statement; the answer's text.
    async fn ask(&self, statement: &str) -> Result<String, String> {
        self.send(self.request().body(statement.to_owned())).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<String, String> {
        let away = |error: reqwest::Error| {
            let error = error.without_url();
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("ClickHouse cannot be reached: {error}{cause}")
        };
        let response = request.send().await.map_err(away)?;
        let status = response.status();
        let text = response.text().await.map_err(away)?;
        if status.is_success() {
            return Ok(text);
        }
        let shown: String = text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect();
        Err(format!("ClickHouse answered {status}: {shown}"))
    }
}

/// A name in back quotes.
fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// A text in quotes.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s22_names_and_texts_cannot_leave_their_quotes() {
        assert_eq!(quoted("a`; DROP TABLE x; --"), "`a\\`; DROP TABLE x; --`");
        assert_eq!(quoted("a\\`"), "`a\\\\\\``");
        assert_eq!(literal("a'b\\"), "'a\\'b\\\\'");
    }
}
