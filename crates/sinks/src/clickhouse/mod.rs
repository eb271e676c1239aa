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
//!
//! Where the server refuses an insert for what is in it, the insert is halved until the rows are found; these are told,
//! and the others are in. The halves have tokens of their own that follow from the batch's.

mod encode;
mod table;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client, RequestBuilder, StatusCode};
use url::Url;

use crate::record::Rows;
use crate::sink::{Refused, check_some_taken};
use encode::Encoded;
use table::{Features, Table};

/// Of an error's text, so much is shown.
const SHOWN_CHARS_MAX: usize = 500;

/// So much memory is kept from one insert to the next.
const ROOM_BYTES_MAX: usize = 64 << 20;

/// Codes of errors that lie in the rows of an insert (ErrorCodes.cpp): what cannot be parsed or converted (6, 26, 27, 38,
/// 41, 70, 72, 117, 131), what is out of range (69, 321, 407), a null where none may be (349), an element that is not of
/// the enum (691), a constraint (469), `throwIf` of a view (395).
const ROWS_FAULT: [u32; 16] = [6, 26, 27, 38, 41, 69, 70, 72, 117, 131, 321, 349, 395, 407, 469, 691];

/// Rows, and which of the batch the first is.
type Share<'a> = (usize, &'a Rows);

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
    /// Memory of the insert before: memory that is touched for the first time costs more than what is written into it.
    room: Vec<u8>,
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
        Ok(Self { settings, client, features: None, tables: HashMap::new(), room: Vec::new() })
    }

    /// Inserts a batch, of which `token` tells the place. Returns the rows that were refused for themselves.
    pub(crate) async fn deliver(&mut self, batch: &[Rows], token: &str) -> Result<Vec<Refused>, String> {
        let mut shares: Vec<(String, Vec<Share<'_>>)> = Vec::new();
        let mut first = 0;
        for rows in batch {
            let name = self.table_of(rows);
            match shares.iter_mut().find(|(table, _)| *table == name) {
                Some((_, share)) => share.push((first, rows)),
                None => shares.push((name, vec![(first, rows)])),
            }
            first += rows.len();
        }
        let mut refused = Vec::new();
        for (name, share) in shares {
            match self.insert(&name, &share, token).await {
                Ok(some) => refused.extend(some),
                Err(error) => {
                    // Somebody may have changed the table: it is looked at anew.
                    self.tables.remove(&name);
                    return Err(error);
                }
            }
        }
        Ok(refused)
    }

    fn table_of(&self, rows: &Rows) -> String {
        let name = self.settings.table.replace("{tenant}", rows.key.tenant.as_str());
        name.replace("{stream}", rows.key.stream.as_str())
    }

    async fn insert(&mut self, name: &str, share: &[Share<'_>], token: &str) -> Result<Vec<Refused>, String> {
        let features = self.features().await?;
        let mut table = match self.tables.remove(name) {
            Some(table) => table,
            None => Table::look(self, name, features).await?,
        };
        // One statement names one set of columns: rows of contracts that differ go by themselves. Requests of one contract,
        // of which there may be as many as rows, have it and its columns in common, and are told by their addresses.
        let mut alike: Vec<(&Rows, Vec<Share<'_>>)> = Vec::new();
        for (first, rows) in share {
            match alike.iter_mut().find(|(other, _)| is_alike(other, rows)) {
                Some((_, some)) => some.push((*first, rows)),
                None => alike.push((rows, vec![(*first, rows)])),
            }
        }
        for (rows, _) in &alike {
            table.fit(self, &rows.contract, features).await?;
        }
        let mut groups: Vec<(Vec<&str>, Vec<Share<'_>>)> = Vec::new();
        for (rows, some) in alike {
            let columns = table.columns_of(rows);
            match groups.iter_mut().find(|(named, _)| *named == columns) {
                Some((_, group)) => group.extend(some),
                None => groups.push((columns, some)),
            }
        }
        let mut refused = Vec::new();
        for (at, (columns, group)) in groups.iter().enumerate() {
            let mut encoded = Encoded { bytes: std::mem::take(&mut self.room), ..Encoded::default() };
            for (first, rows) in group {
                refused.extend(encode::encode(rows, *first, columns, &table, &mut encoded)?);
            }
            let list: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
            let statement = format!("INSERT INTO {} ({}) FORMAT RowBinary", self.place(name), list.join(", "));
            let token = features.tokens.then(|| format!("{token}-{name}-{at}"));
            let bytes = Bytes::from(std::mem::take(&mut encoded.bytes));
            refused.extend(self.put(&statement, &bytes, &encoded, token.as_deref()).await?);
            self.keep_room(bytes);
        }
        self.tables.insert(name.to_owned(), table);
        Ok(refused)
    }

    /// Keeps the memory of an insert for the next one, if the connection has let it go.
    fn keep_room(&mut self, bytes: Bytes) {
        if let Ok(mut bytes) = bytes.try_into_mut()
            && bytes.capacity() <= ROOM_BYTES_MAX
        {
            bytes.clear();
            self.room = bytes.into();
        }
    }

    /// Inserts rows, and where the server refuses them for what they are, all but those.
    async fn put(
        &self,
        statement: &str,
        bytes: &Bytes,
        rows: &Encoded,
        token: Option<&str>,
    ) -> Result<Vec<Refused>, String> {
        let all = rows.ends.len();
        let end_of = |row: usize| row.checked_sub(1).and_then(|row| rows.ends.get(row)).copied().unwrap_or(0);
        let (mut refused, mut taken) = (Vec::new(), 0);
        // The last is the next: rows go in in their order.
        let mut parts: Vec<Range<usize>> = (all > 0).then_some(0..all).into_iter().collect();
        while let Some(part) = parts.pop() {
            let mut parameters = vec![("query", statement.to_owned())];
            if let Some(token) = token {
                let of_part = if part.len() == all { String::new() } else { format!("-{}-{}", part.start, part.end) };
                parameters.push(("insert_deduplicate", "1".to_owned()));
                parameters.push(("insert_deduplication_token", format!("{token}{of_part}")));
            }
            let body = bytes.slice(end_of(part.start)..end_of(part.end));
            match self.send(self.request().query(&parameters).body(body)).await {
                Ok(_) => taken += part.len(),
                Err(Fault::Away(reason)) => return Err(reason),
                Err(Fault::Refused(reason)) if part.len() == 1 => {
                    let at = rows.places.get(part.start).copied().unwrap_or_default();
                    refused.push(Refused { at, reason });
                    check_some_taken(&refused, taken)?;
                }
                Err(Fault::Refused(_)) => {
                    let middle = part.start + part.len() / 2;
                    parts.push(middle..part.end);
                    parts.push(part.start..middle);
                }
            }
        }
        Ok(refused)
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
        self.send(self.request().body(statement.to_owned())).await.map_err(Fault::reason)
    }

    async fn send(&self, request: RequestBuilder) -> Result<String, Fault> {
        let away = |error: reqwest::Error| {
            let error = error.without_url();
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            Fault::Away(format!("ClickHouse cannot be reached: {error}{cause}"))
        };
        let response = request.send().await.map_err(away)?;
        let (status, named) = (response.status(), response.headers().get("x-clickhouse-exception-code").cloned());
        let text = response.text().await.map_err(away)?;
        if status.is_success() {
            return Ok(text);
        }
        let shown: String = text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect();
        let reason = format!("ClickHouse answered {status}: {shown}");
        // Servers before 20.6 tell the code in the text alone.
        let named = named.as_ref().and_then(|code| code.to_str().ok());
        let code = named.or_else(|| text.strip_prefix("Code: ")?.split([',', '.']).next());
        let of_rows = code.and_then(|code| code.trim().parse().ok()).is_some_and(|code| ROWS_FAULT.contains(&code));
        let too_large = status == StatusCode::PAYLOAD_TOO_LARGE;
        Err(if of_rows || too_large { Fault::Refused(reason) } else { Fault::Away(reason) })
    }
}

/// Why the server did not do it.
enum Fault {
    /// It is not there, or could do it later.
    Away(String),
    /// For what is in the rows.
    Refused(String),
}

impl Fault {
    fn reason(self) -> String {
        match self {
            Self::Away(reason) | Self::Refused(reason) => reason,
        }
    }
}

/// Whether contract and columns are the same, by their addresses alone.
fn is_alike(one: &Rows, other: &Rows) -> bool {
    let columns = (one.batch.schema_ref(), other.batch.schema_ref());
    Arc::ptr_eq(&one.contract, &other.contract) && (Arc::ptr_eq(columns.0, columns.1) || columns.0 == columns.1)
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
