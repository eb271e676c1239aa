//! `GET /api/dlq`, `GET /api/dlq/{id}`, `POST /api/dlq/replay`, `POST /api/dlq/purge`: the records that were set aside,
//! bringing them again, and removing them for good.
//!
//! Letters are read by queries over a tenant's table of dead letters and its table of marks: a letter that was stored
//! since is not listed. Promises: a letter is brought through the gate under an id of its own, so that it is stored once
//! however often this is asked for. Refuses: to bring more than a bound at once; to remove all because nothing was said.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use lakegate_access::Action;
use lakegate_env::{Clock, SystemClock};
use lakegate_ingest::{DeadLetter, LetterFilter, LetterOutcome, SubmitError};
use lakegate_model::{NameError, StreamName, TableName, TenantId};
use lakegate_query::{QueryError, QueryRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::identity::Caller;
use super::problem::Problem;

/// The table of what became of letters that were brought again.
const MARKS: &str = "dead_letter_marks";
/// The stream of letters, which permissions name.
const LETTERS: &str = "dead_letters";
/// The most letters of one answer, and of one replay.
const LETTERS_MAX: u64 = 10_000;
/// Letters that are marked together.
const MARKED_AT_ONCE: usize = 100;
/// What a cell of a spreadsheet must not begin with.
const FORMULA_PREFIXES: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// Which letters.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Which {
    /// Whose; `default` where nothing is said.
    tenant: Option<String>,
    /// For which stream.
    stream: Option<String>,
    /// For which reason, such as `WRONG_TYPE`.
    reason: Option<String>,
    /// One of that id.
    id: Option<String>,
    /// Received at that time or later, by RFC 3339.
    since: Option<String>,
    /// Received before.
    until: Option<String>,
    /// At most so many.
    limit: Option<u64>,
    /// `csv` for a table.
    format: Option<String>,
    /// Whether to say only what would be done.
    dry_run: bool,
    /// Of a removal without any other condition: that all are meant.
    all: bool,
}

/// The letters that were not stored since, and how many there are of each stream and reason.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<Response, Problem> {
    let tenant = which.tenant(&caller, Action::Read)?;
    let open = Open::of(&app, &tenant, &which).await?;
    if which.format.as_deref() == Some("csv") {
        let rows = open.rows(&app, LISTED).await?;
        return Ok(([(CONTENT_TYPE, "text/csv; charset=utf-8")], csv(&rows)).into_response());
    }
    let letters: Vec<Value> = open.rows(&app, LISTED).await?.iter().map(|row| object(LISTED, row)).collect();
    let counts = "l.endpoint_id, l.reason, count(*), min(l.received_at), max(l.received_at)";
    let sql = open.sql(counts, "GROUP BY l.endpoint_id, l.reason ORDER BY l.endpoint_id, l.reason");
    let counted = texts(&ask(&app, sql, open.parameters.clone()).await?)?;
    let names = ["stream", "reason", "letters", "first", "last"];
    let counts: Vec<Value> = counted.iter().map(|row| object(&names.map(|name| (name, "")), row)).collect();
    Ok(Json(json!({ "tenant": tenant, "letters": letters, "counts": counts })).into_response())
}

/// One letter, whole.
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    caller: Caller,
    Query(mut which): Query<Which>,
) -> Result<Json<Value>, Problem> {
    which.id = Some(id.clone());
    let tenant = which.tenant(&caller, Action::Read)?;
    let open = Open { all: true, ..Open::of(&app, &tenant, &which).await? };
    let rows = open.rows(&app, LISTED).await?;
    let Some(row) = rows.first() else {
        let detail = format!("{tenant} has no dead letter {id:?}; GET /api/dlq lists those that there are");
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown_letter", detail));
    };
    let batches = ask(&app, open.sql("l.payload, l.record", "LIMIT 1"), open.parameters.clone()).await?;
    let (payload, record) = (binary(&batches, 0)?, binary(&batches, 1)?);
    let mut letter = object(LISTED, row);
    let encoded = |bytes: &[Vec<u8>]| bytes.first().map(|b| base64::engine::general_purpose::STANDARD.encode(b));
    if let Some(members) = letter.as_object_mut() {
        let text = payload.first().and_then(|bytes| String::from_utf8(bytes.clone()).ok());
        members.insert("payload".to_owned(), json!(text));
        members.insert("payload_base64".to_owned(), json!(encoded(&payload)));
        members.insert("record_base64".to_owned(), json!(encoded(&record)));
    }
    Ok(Json(letter))
}

/// Brings letters again, oldest first.
pub(crate) async fn replay(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<Json<Value>, Problem> {
    let tenant = which.tenant(&caller, Action::Admin)?;
    let open = Open::of(&app, &tenant, &which).await?;
    let order = format!("ORDER BY l.received_at, l.letter_id LIMIT {}", which.limit());
    let batches = ask(&app, open.sql("l.letter_id, l.endpoint_id, l.record", &order), open.parameters.clone()).await?;
    let (ids, records) = (texts(&batches)?, binary(&batches, 2)?);
    let mut letters = Vec::with_capacity(ids.len());
    for (row, record) in ids.into_iter().zip(records) {
        let [Some(letter_id), Some(stream), ..] = row.as_slice() else { continue };
        let Ok(stream) = StreamName::new(stream) else { continue };
        letters.push(DeadLetter { letter_id: letter_id.clone(), stream, record: record.into() });
    }
    if which.dry_run {
        return Ok(Json(json!({ "tenant": tenant, "would_replay": letters.len() })));
    }
    let mut done = Done::default();
    for some in letters.chunks(MARKED_AT_ONCE) {
        bring(&app, &tenant, some, &mut done).await.map_err(|error| done.broken_off(&error))?;
    }
    Ok(Json(done.json(&tenant)))
}

/// Brings some letters and keeps what became of them.
async fn bring(app: &App, tenant: &TenantId, letters: &[DeadLetter], done: &mut Done) -> Result<(), SubmitError> {
    let mut marks = Vec::with_capacity(letters.len());
    let mut broken_off = Ok(());
    for letter in letters {
        match app.gate.replay_letter(tenant, letter).await {
            Ok(outcome) => {
                done.count(&letter.letter_id, &outcome);
                marks.push((letter.letter_id.clone(), outcome));
            }
            Err(error) => {
                broken_off = Err(error);
                break;
            }
        }
    }
    if !marks.is_empty() {
        app.gate.mark_letters(tenant, &marks).await?;
    }
    broken_off
}

/// Removes letters for good, whether they were stored since or not.
pub(crate) async fn purge(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<Json<Value>, Problem> {
    let tenant = which.tenant(&caller, Action::Admin)?;
    let filter = which.removal()?;
    if which.dry_run {
        let open = Open { all: true, ..Open::of(&app, &tenant, &which).await? };
        let counted = texts(&ask(&app, open.sql("count(*)", ""), open.parameters.clone()).await?)?;
        let count = counted.first().and_then(|row| row.first()?.as_ref()?.parse::<u64>().ok()).unwrap_or(0);
        return Ok(Json(json!({ "tenant": tenant, "would_purge": count })));
    }
    let removed = app.gate.purge_letters(&tenant, &filter).await.map_err(|error| {
        let detail = format!("the letters could not be removed: {error}; ask again");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_purged", detail).retry_after(5)
    })?;
    if removed.rows > 0 {
        let by = caller.principal().map_or("anybody", |principal| &*principal.id);
        tracing::info!(%tenant, by, letters = removed.rows, ?filter, "dead letters were removed for good");
    }
    Ok(Json(json!({ "tenant": tenant, "purged": removed.rows })))
}

/// An instant, as queries read it.
fn micros(name: &str, text: &str) -> Result<i64, Problem> {
    let wrong = || {
        let detail = format!("{name}: {text:?} is not a time; write it as 2026-01-31T00:00:00Z");
        Problem::new(StatusCode::BAD_REQUEST, "invalid_time", detail)
    };
    let read = cast(&StringArray::from(vec![text]), &DataType::Timestamp(TimeUnit::Microsecond, None));
    let read = read.map_err(|_| wrong())?;
    let read = read.as_primitive_opt::<TimestampMicrosecondType>().filter(|read| read.is_valid(0)).ok_or_else(wrong)?;
    Ok(read.value(0))
}

/// What came of a replay.
#[derive(Debug, Default)]
struct Done {
    stored: u64,
    duplicates: u64,
    refused: u64,
    errors: Vec<Value>,
}

impl Done {
    fn count(&mut self, letter_id: &str, outcome: &LetterOutcome) {
        match outcome {
            LetterOutcome::Stored => self.stored += 1,
            LetterOutcome::Duplicate => self.duplicates += 1,
            LetterOutcome::Refused(message) => {
                self.refused += 1;
                if self.errors.len() < 100 {
                    self.errors.push(json!({ "id": letter_id, "message": message }));
                }
            }
        }
    }

    fn json(&self, tenant: &TenantId) -> Value {
        let Self { stored, duplicates, refused, errors } = self;
        json!({ "tenant": tenant, "stored": stored, "duplicates": duplicates, "refused": refused, "errors": errors })
    }

    fn broken_off(&self, error: &SubmitError) -> Problem {
        let detail = format!(
            "{} letters were stored, then: {error}; the others stay as they were, ask again",
            self.stored + self.duplicates
        );
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "replay_broken_off", detail).retry_after(5)
    }
}

/// What is listed of a letter: the name in the answer, and where it comes from.
const LISTED: &[(&str, &str)] = &[
    ("id", "l.letter_id"),
    ("stream", "l.endpoint_id"),
    ("reason", "l.reason"),
    ("field", "l.field"),
    ("message", "l.message"),
    ("event_id", "l.event_id"),
    ("received_at", "l.received_at"),
    ("source", "l.source"),
    ("attempts", "l.attempts + refused"),
];

/// A query for letters.
struct Open {
    tenant: TenantId,
    filter: String,
    parameters: Vec<Value>,
    limit: u64,
    /// Whether there are marks.
    marked: bool,
    /// Those that were stored since, too.
    all: bool,
}

impl Open {
    async fn of(app: &App, tenant: &TenantId, which: &Which) -> Result<Self, Problem> {
        let (mut filter, mut parameters) = (String::new(), Vec::new());
        let conditions = [
            ("l.endpoint_id = ", &which.stream),
            ("l.reason = ", &which.reason),
            ("l.letter_id = ", &which.id),
            ("l.received_at >= CAST(? AS TIMESTAMP)", &which.since),
            ("l.received_at < CAST(? AS TIMESTAMP)", &which.until),
        ];
        for (condition, value) in conditions {
            let Some(value) = value else { continue };
            parameters.push(Value::from(value.as_str()));
            let place = format!("${}", parameters.len());
            let condition =
                if condition.contains('?') { condition.replace('?', &place) } else { format!("{condition}{place}") };
            filter.push_str(" AND ");
            filter.push_str(&condition);
        }
        let there = app.gate.status(Some(tenant), None).streams;
        let marked = there.iter().any(|stream| stream.key.stream.as_str() == MARKS);
        let marked = marked || is_in_lake(app, tenant).await?;
        Ok(Self { tenant: tenant.clone(), filter, parameters, limit: which.limit(), marked, all: false })
    }

    /// `refused` in `columns` is how often a letter was refused again.
    fn sql(&self, columns: &str, end: &str) -> String {
        let Self { tenant, filter, .. } = self;
        let marks = format!("SELECT letter_id, count(*) AS n FROM \"{tenant}\".dead_letter_marks WHERE outcome");
        let (join, refused) = if self.marked {
            let join = format!("LEFT JOIN ({marks} = 'refused' GROUP BY letter_id) r ON r.letter_id = l.letter_id");
            (join, "coalesce(r.n, 0)")
        } else {
            (String::new(), "0")
        };
        let open = if self.marked && !self.all {
            format!("AND l.letter_id NOT IN (SELECT d.letter_id FROM ({marks} <> 'refused' GROUP BY letter_id) d)")
        } else {
            String::new()
        };
        let columns = columns.replace("refused", refused);
        format!(
            "SELECT {columns} FROM \"{tenant}\".dead_letters l {join} WHERE l.letter_id IS NOT NULL{filter} {open} {end}"
        )
    }

    /// The letters, newest first.
    async fn rows(&self, app: &App, columns: &[(&str, &str)]) -> Result<Vec<Vec<Option<String>>>, Problem> {
        let columns: Vec<&str> = columns.iter().map(|(_, column)| *column).collect();
        let end = format!("ORDER BY l.received_at DESC, l.letter_id LIMIT {}", self.limit);
        texts(&ask(app, self.sql(&columns.join(", "), &end), self.parameters.clone()).await?)
    }
}

/// Whether the lake has marks of the tenant; those of this run are among its streams.
async fn is_in_lake(app: &App, tenant: &TenantId) -> Result<bool, Problem> {
    let Ok(table) = TableName::new(tenant.as_str(), MARKS) else { return Ok(false) };
    let found = app.lake.find_table(&table).await.map_err(|error| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", format!("the catalog cannot be asked: {error}"))
            .retry_after(1)
    })?;
    Ok(found.is_some())
}

impl Which {
    /// Whose letters are meant, of those that the caller may see or bring again.
    fn tenant(&self, caller: &Caller, action: Action) -> Result<TenantId, Problem> {
        let wrong =
            |error: NameError| Problem::new(StatusCode::BAD_REQUEST, "invalid_name", format!("tenant: {error}"));
        let asked = self.tenant.as_deref().map(TenantId::new).transpose().map_err(wrong)?;
        caller.check_name(action, LETTERS)?;
        match caller.scope(asked)? {
            Some(tenant) => Ok(tenant),
            None => TenantId::new("default").map_err(wrong),
        }
    }

    /// What a removal is of.
    fn removal(&self) -> Result<LetterFilter, Problem> {
        let wrong = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, "invalid", detail);
        if self.limit.is_some() || self.format.is_some() {
            return Err(wrong("a removal takes all letters of its conditions: it has no limit and no format"));
        }
        let said = [&self.stream, &self.reason, &self.id, &self.since, &self.until].iter().any(|said| said.is_some());
        if said == self.all {
            return Err(wrong(
                "say which letters are to be removed by stream, reason, id, since or until, or all=true for all",
            ));
        }
        let since_us = self.since.as_deref().map(|text| micros("since", text)).transpose()?;
        let until_us = self.until.as_deref().map(|text| micros("until", text)).transpose()?;
        // What comes from now on is not meant.
        let until_us = until_us.unwrap_or_else(|| SystemClock::default().wall_us());
        let (stream, reason, letter_id) = (self.stream.clone(), self.reason.clone(), self.id.clone());
        Ok(LetterFilter { stream, reason, letter_id, since_us, until_us })
    }

    fn limit(&self) -> u64 {
        self.limit.unwrap_or(1000).min(LETTERS_MAX)
    }
}

async fn ask(app: &App, sql: String, parameters: Vec<Value>) -> Result<Vec<RecordBatch>, Problem> {
    let answer = match app.engine.sql(QueryRequest { sql, parameters, ..QueryRequest::default() }).await {
        Ok(result) => result.collect().await,
        // A tenant of whom nothing was set aside has no such table.
        Err(QueryError::UnknownTable { .. }) => return Ok(Vec::new()),
        Err(error) => Err(error),
    };
    answer.map_err(|error| super::sql::problem_of(&error))
}

fn unreadable(error: &arrow::error::ArrowError) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
}

/// The rows as texts; binary columns are left out.
fn texts(batches: &[RecordBatch]) -> Result<Vec<Vec<Option<String>>>, Problem> {
    let mut rows = Vec::new();
    for batch in batches {
        let is_text =
            |kind: &DataType| !matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
        let columns = batch.columns().iter().filter(|column| is_text(column.data_type()));
        let columns = columns.map(|column| cast(column, &DataType::Utf8)).collect::<Result<Vec<_>, _>>();
        let columns = columns.map_err(|error| unreadable(&error))?;
        for row in 0..batch.num_rows() {
            let cell = |column: &arrow::array::ArrayRef| {
                let texts = column.as_string_opt::<i32>()?;
                texts.is_valid(row).then(|| texts.value(row).to_owned())
            };
            rows.push(columns.iter().map(cell).collect());
        }
    }
    Ok(rows)
}

/// One column of bytes.
fn binary(batches: &[RecordBatch], column: usize) -> Result<Vec<Vec<u8>>, Problem> {
    let mut values = Vec::new();
    for batch in batches {
        let Some(column) = batch.columns().get(column) else { continue };
        let column = cast(column, &DataType::LargeBinary).map_err(|error| unreadable(&error))?;
        let bytes = column.as_binary_opt::<i64>();
        values.extend(bytes.into_iter().flatten().map(|value| value.unwrap_or_default().to_vec()));
    }
    Ok(values)
}

fn object(columns: &[(&str, &str)], row: &[Option<String>]) -> Value {
    let member = |((name, _), cell): (&(&str, &str), &Option<String>)| {
        let number = matches!(*name, "attempts" | "letters").then(|| cell.as_ref()?.parse::<u64>().ok()).flatten();
        ((*name).to_owned(), number.map_or_else(|| json!(cell), |number| json!(number)))
    };
    Value::Object(columns.iter().zip(row).map(member).collect())
}

/// The letters as CSV by RFC 4180; a cell that a spreadsheet would take for a formula begins with an apostrophe.
fn csv(rows: &[Vec<Option<String>>]) -> String {
    let cell = |text: &str| {
        let guard = if text.starts_with(FORMULA_PREFIXES) { "'" } else { "" };
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    };
    let line = |cells: Vec<String>| cells.join(",") + "\r\n";
    let mut out = line(LISTED.iter().map(|(name, _)| cell(name)).collect());
    for row in rows {
        out += &line(row.iter().map(|text| text.as_deref().map_or_else(String::new, cell)).collect());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s24_no_cell_of_a_table_begins_a_formula() {
        let texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "plain \"quoted\"", "a,b"];
        let out = csv(&[texts.iter().map(|text| Some((*text).to_owned())).collect()]);
        let row = out.split_once("\r\n").unwrap().1;
        assert_eq!(
            row,
            "\"'=1+1\",\"'+1\",\"'-1\",\"'@SUM(A1)\",\"'\tx\",\"'\rx\",\"plain \"\"quoted\"\"\",\"a,b\"\r\n"
        );
    }
}
