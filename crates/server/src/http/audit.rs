//! `GET /api/audit`: the balance of every tenant and stream, checked against the tables.
//!
//! received = in the lake + removed from it for good + in memory and log + duplicate + dead-lettered + rejected; what files brought is counted by
//! the tables themselves, in the commits that added it. What is in the lake and in
//! memory is counted by a query over both at one position; what other writers put into a table is told apart by the
//! rows that our own commits say they brought. Records come in while it counts, so that a table is counted again
//! until nothing moved meanwhile; where something always moves, the count must lie between the sums before and after.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use lakegate_access::Action;
use lakegate_lake::REMOVED_ROWS;
use lakegate_model::{StreamKey, TableName, Tally};
use lakegate_query::{QueryError, QueryRequest};
use serde_json::{Value, json};

use super::App;
use super::identity::Caller;
use super::problem::Problem;

/// How often a table is counted that moves meanwhile.
const ATTEMPTS: usize = 8;

/// Time between two counts.
const BETWEEN: Duration = Duration::from_millis(150);

/// The tables that take what is set aside.
const DEAD_LETTERS: &str = "dead_letters";

pub(crate) async fn get(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Value>, Problem> {
    caller.check_some(Action::Read)?;
    let tenant = caller.scope(None)?;
    app.gate.load_imported().await.map_err(unavailable)?;
    let mine = |key: &StreamKey| caller.may_read(key.tenant.as_str(), key.stream.as_str());
    let gate = app.gate.status(tenant.as_ref(), None);
    let mut streams = Vec::new();
    let mut closes = true;
    for (key, tally) in app.gate.balance().iter().filter(|(key, _)| mine(key)) {
        let right = tally.closes();
        closes &= right;
        streams.push(stream_json(key, tally, right));
    }
    let mut tables: BTreeMap<TableName, ()> = BTreeMap::new();
    for stream in gate.streams.iter().filter(|stream| mine(&stream.key)) {
        tables.insert(stream.table.clone(), ());
    }
    let mut found = Vec::new();
    for table in tables.into_keys() {
        let audited = audit_table(&app, &table).await?;
        closes &= audited.closes;
        found.push(audited.json(&table));
    }
    Ok(Json(json!({ "closes": closes, "streams": streams, "tables": found })))
}

fn stream_json(key: &StreamKey, tally: &Tally, right: bool) -> Value {
    let parts = tally.accepted + tally.duplicate + tally.rejected + tally.dead_lettered;
    let finding = if right { String::new() } else { format!("the parts are {parts}, {} came", tally.received) };
    json!({
        "tenant": key.tenant,
        "stream": key.stream,
        "received": tally.received,
        "accepted": tally.accepted,
        "duplicate": tally.duplicate,
        "dead_lettered": tally.dead_lettered,
        "rejected": tally.rejected,
        "closes": right,
        "finding": finding,
    })
}

/// What was brought to a table, by the balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Brought {
    rows: u64,
    in_memory: u64,
}

/// One table's finding.
#[derive(Debug)]
struct Audited {
    accepted: u64,
    stored: u64,
    in_memory: u64,
    others: i64,
    /// Taken out for good.
    removed: u64,
    closes: bool,
    finding: String,
}

impl Audited {
    fn json(&self, table: &TableName) -> Value {
        json!({
            "table": table.to_string(),
            "accepted": self.accepted,
            "in_lake": self.stored.saturating_sub(self.in_memory),
            "in_memory": self.in_memory,
            "removed": self.removed,
            "other_writers": self.others,
            "closes": self.closes,
            "finding": self.finding,
        })
    }
}

/// What the streams of a table brought to it.
fn brought(app: &App, table: &TableName) -> Brought {
    let gate = app.gate.status(None, None);
    let balance = app.gate.balance();
    let own: Vec<_> = gate.streams.iter().filter(|s| s.table == *table).collect();
    let sum = |key: &StreamKey| {
        let tally = balance.get(key).copied().unwrap_or_default();
        if key.stream.as_str() != DEAD_LETTERS {
            return tally.accepted;
        }
        // Of all the tenant's streams, what was set aside comes here.
        let aside = balance.iter().filter(|(k, _)| k.tenant == key.tenant).map(|(_, t)| t.dead_lettered);
        tally.accepted + aside.sum::<u64>()
    };
    Brought { rows: own.iter().map(|s| sum(&s.key)).sum(), in_memory: own.first().map_or(0, |s| s.memtable_records) }
}

async fn audit_table(app: &App, table: &TableName) -> Result<Audited, Problem> {
    let mut before = brought(app, table);
    for attempt in 1.. {
        let stored = count(app, table).await?;
        let Lake { others, removed } = in_lake(app, table).await?;
        let after = brought(app, table);
        let still = before == after;
        if !still && attempt < ATTEMPTS {
            before = after;
            tokio::time::sleep(BETWEEN).await;
            continue;
        }
        let ours = i64::try_from(stored.saturating_add(removed)).unwrap_or(i64::MAX).saturating_sub(others);
        let least = i64::try_from(before.rows).unwrap_or(i64::MAX);
        let most = i64::try_from(after.rows).unwrap_or(i64::MAX);
        let closes = (least..=most).contains(&ours);
        let finding = match (closes, still, others) {
            (true, true, 0) if removed > 0 => format!("{removed} rows were removed for good"),
            (true, true, 0) => String::new(),
            (true, true, n) => format!("{n} rows by other writers"),
            (true, false, _) => "records come in; counted between two sums".to_owned(),
            (false, _, _) => format!("{ours} rows of ours are stored, {least} to {most} were accepted"),
        };
        return Ok(Audited {
            accepted: after.rows,
            stored,
            in_memory: after.in_memory,
            others,
            removed,
            closes,
            finding,
        });
    }
    Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the audit did not end"))
}

/// Rows of the table, in the lake and in memory, at one position.
async fn count(app: &App, table: &TableName) -> Result<u64, Problem> {
    let sql = format!("SELECT count(*) FROM \"{}\".\"{}\"", table.namespace, table.name);
    let answer = app.engine.sql(QueryRequest { sql, ..QueryRequest::default() }).await;
    let batches = match answer {
        Ok(result) => result.collect().await,
        // A stream whose records were all refused has no table yet.
        Err(QueryError::UnknownTable { .. }) => return Ok(0),
        Err(e) => Err(e),
    };
    let batches = batches.map_err(|e| super::sql::problem_of(&e))?;
    let counts = batches.iter().filter_map(|b| b.columns().first()?.as_primitive_opt::<Int64Type>());
    Ok(counts.filter(|c| !c.is_empty()).map(|c| u64::try_from(c.value(0)).unwrap_or(0)).sum())
}

fn unavailable(error: lakegate_lake::LakeError) -> Problem {
    let message = format!("the catalog cannot be asked: {error}");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message).retry_after(1)
}

/// What the table's newest state says.
#[derive(Debug, Default)]
struct Lake {
    /// Rows that no commit of ours brought; negative where others took rows of ours out.
    others: i64,
    /// Rows that commits of ours took out.
    removed: u64,
}

async fn in_lake(app: &App, table: &TableName) -> Result<Lake, Problem> {
    let Some(found) = app.lake.find_table(table).await.map_err(unavailable)? else { return Ok(Lake::default()) };
    let view = found.view();
    let ours =
        view.properties().get(&format!("lakegate.rows.{}", app.log.id())).and_then(|rows| rows.parse::<i64>().ok());
    let imported = i64::try_from(app.gate.imported_rows(&view)).unwrap_or(i64::MAX);
    let removed = view.counter(REMOVED_ROWS);
    let total = i64::try_from(view.total_records().saturating_add(removed)).unwrap_or(i64::MAX);
    let is_ours = ours.is_some() || imported > 0;
    let others = if is_ours { total.saturating_sub(ours.unwrap_or(0)).saturating_sub(imported) } else { 0 };
    Ok(Lake { others, removed })
}
