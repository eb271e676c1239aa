//! Trino's client protocol (its "Client protocol" page): `POST /v1/statement`, then `nextUri` until there is none.
//!
//! So that Trino's command line, its Python and JDBC clients talk to the server itself. A page is asked for, made, and
//! kept until the next one is asked for, so that an answer that was lost is given again; nothing is made ahead. Promises:
//! memory is one page for each open statement, and these are bounded; who asks for pages is who sent the statement.
//! Refuses: transactions of several statements, spooled results.

mod page;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Extension, Path, State};
use axum::http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};
use lakegate_access::Peer;
use lakegate_ingest::Client;
use lakegate_query::QueryResult;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::App;
use super::identity::Caller;
use super::problem::Problem;
use super::request::CorrelationId;
use crate::statements::{Asker, Changed, Done, Run, StatementError};

/// The version that clients are told: that of the protocol's page that this was written by.
const TRINO_VERSION: &str = "476-lakegate";
/// The most statements that are open at once.
const OPEN_MAX: usize = 256;
/// The most of these that are over and kept, in case their last answer was lost.
const OVER_MAX: usize = 32;
/// A statement that nobody asked after for so long is ended.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// How long an answer waits for a page.
const PAGE_WAIT: Duration = Duration::from_secs(1);

/// The statements that clients have open.
#[derive(Default)]
pub(crate) struct TrinoStatements(Mutex<HashMap<Uuid, Arc<Open>>>);

/// One statement.
struct Open {
    id: Uuid,
    /// Who sent it.
    owner: Option<String>,
    progress: tokio::sync::Mutex<Progress>,
    asked: Mutex<Instant>,
    is_over: AtomicBool,
    began: Instant,
    /// `http://host:port`, as the client knows the server.
    base: String,
}

struct Progress {
    /// The page that is asked for next.
    next: u64,
    /// The page that was given last.
    last: Option<(u64, Answer)>,
    state: Running,
}

enum Running {
    Started(JoinHandle<Result<Done, StatementError>>),
    Rows { result: QueryResult, columns: Value, rows: u64 },
    Ended,
}

/// An answer, to be given again if need be.
#[derive(Clone)]
struct Answer {
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (StatusCode::OK, self.body).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

/// The protocol's paths.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/info", routing::get(info))
        .route("/v1/statement", routing::post(begin))
        .route("/v1/statement/executing/{id}/{token}", routing::get(go_on).delete(end))
        .route("/v1/query/{id}", routing::delete(kill))
}

async fn info(State(app): State<Arc<App>>) -> Json<Value> {
    let minutes = app.started.elapsed().as_secs_f64() / 60.0;
    Json(json!({
        "nodeVersion": { "version": TRINO_VERSION },
        "environment": "lakegate",
        "coordinator": true,
        "starting": false,
        "uptime": format!("{minutes:.2}m"),
    }))
}

async fn begin(
    State(app): State<Arc<App>>,
    Extension(id): Extension<CorrelationId>,
    peer: Option<Extension<Peer>>,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    // A page of another origin may send text without asking first, but not this header.
    if !headers.contains_key("x-trino-user") {
        let detail = "a statement of Trino's protocol comes with the header X-Trino-User";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "missing_header", detail));
    }
    let sql = std::str::from_utf8(&body)
        .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "not_utf8", "the statement is not UTF-8"))?;
    let address = peer.and_then(|Extension(peer)| peer.address);
    let asker = Asker {
        principal: caller.principal().cloned(),
        scope: caller.scope(None)?,
        client: Client { address, user_agent: text_of(&headers, USER_AGENT.as_str()).map(str::to_owned) },
        correlation_id: Some(id.as_str().to_owned()),
    };
    let open_id = Uuid::new_v4();
    let run = Run {
        sql: sql.to_owned(),
        namespace: text_of(&headers, "x-trino-schema").filter(|name| !name.is_empty()).map(str::to_owned),
        query_id: Some(open_id.simple().to_string()),
        trino: true,
        prepared: prepared_of(&headers),
        ..Run::default()
    };
    let statements = app.statements.clone();
    let task = tokio::spawn(async move { statements.run(&asker, run).await });
    let open = Arc::new(Open {
        id: open_id,
        owner: owner_of(&caller),
        progress: tokio::sync::Mutex::new(Progress { next: 0, last: None, state: Running::Started(task) }),
        asked: Mutex::new(Instant::now()),
        is_over: AtomicBool::new(false),
        began: Instant::now(),
        base: base_of(&app, &headers),
    });
    app.trino.insert(&open)?;
    Ok(Json(open.envelope("QUEUED", 0, Some(0))).into_response())
}

async fn go_on(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, token)): Path<(Uuid, u64)>,
) -> Result<Response, Problem> {
    let open = app.trino.find(id, &caller)?;
    Ok(open.page(token).await?.into_response())
}

async fn end(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, _)): Path<(Uuid, u64)>,
) -> Result<StatusCode, Problem> {
    let open = app.trino.find(id, &caller)?;
    app.trino.remove(&open);
    let _ = app.engine.cancel(&id.simple().to_string(), None);
    Ok(StatusCode::NO_CONTENT)
}

async fn kill(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let id = Uuid::parse_str(&id).map_err(|_| gone())?;
    end(State(app), caller, Path((id, 0))).await
}

fn gone() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown_query", "there is no such statement (any more)")
}

fn owner_of(caller: &Caller) -> Option<String> {
    caller.principal().map(|principal| principal.id.to_string())
}

fn text_of<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// How the client reaches the server.
fn base_of(app: &App, headers: &HeaderMap) -> String {
    let secure = !app.config.settings.tls.certificate.is_empty();
    let scheme = text_of(headers, "x-forwarded-proto").filter(|scheme| matches!(*scheme, "http" | "https"));
    let scheme = scheme.unwrap_or(if secure { "https" } else { "http" });
    format!("{scheme}://{}", text_of(headers, HOST.as_str()).unwrap_or("localhost"))
}

/// `name=statement, …`, percent-encoded.
fn prepared_of(headers: &HeaderMap) -> BTreeMap<String, String> {
    let values = headers.get_all("x-trino-prepared-statement").into_iter().filter_map(|value| value.to_str().ok());
    let pairs = values.flat_map(|value| value.split(',')).filter_map(|pair| pair.trim().split_once('='));
    pairs.map(|(name, sql)| (decoded(name).to_lowercase(), decoded(sql))).collect()
}

fn decoded(text: &str) -> String {
    let form = format!("x={}", text.replace('&', "%26"));
    let found = url::form_urlencoded::parse(form.as_bytes()).next();
    found.map_or_else(String::new, |(_, value)| value.into_owned())
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

impl TrinoStatements {
    fn insert(&self, open: &Arc<Open>) -> Result<(), Problem> {
        self.sweep();
        let mut all = self.0.lock();
        if all.len() >= OPEN_MAX {
            let detail = format!("{OPEN_MAX} statements are open, which is the most; end one, or ask again shortly");
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).retry_after(1));
        }
        all.insert(open.id, open.clone());
        Ok(())
    }

    fn find(&self, id: Uuid, caller: &Caller) -> Result<Arc<Open>, Problem> {
        let open = self.0.lock().get(&id).filter(|open| open.owner == owner_of(caller)).cloned().ok_or_else(gone)?;
        *open.asked.lock() = Instant::now();
        Ok(open)
    }

    fn remove(&self, open: &Open) {
        self.0.lock().remove(&open.id);
        if let Ok(progress) = open.progress.try_lock()
            && let Running::Started(task) = &progress.state
        {
            task.abort();
        }
    }

    /// Ends what nobody asks after, and forgets what was over longest ago.
    fn sweep(&self) {
        let mut all = self.0.lock();
        all.retain(|_, open| open.asked.lock().elapsed() < IDLE_MAX);
        let mut over: Vec<_> = all.values().filter(|open| open.is_over.load(Ordering::Relaxed)).cloned().collect();
        over.sort_by_key(|open| std::cmp::Reverse(*open.asked.lock()));
        for open in over.iter().skip(OVER_MAX) {
            all.remove(&open.id);
        }
    }
}

impl Open {
    /// What every answer has; `next` is the page to be asked for.
    fn envelope(&self, state: &str, rows: u64, next: Option<u64>) -> Value {
        let id = self.id.simple().to_string();
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut body = json!({
            "id": id,
            "infoUri": format!("{}/api/sql", self.base),
            "stats": {
                "state": state, "queued": state == "QUEUED", "scheduled": state != "QUEUED", "nodes": 1,
                "totalSplits": 1, "queuedSplits": 0, "runningSplits": u8::from(next.is_some()),
                "completedSplits": u8::from(next.is_none()), "cpuTimeMillis": elapsed, "wallTimeMillis": elapsed,
                "queuedTimeMillis": 0, "elapsedTimeMillis": elapsed, "processedRows": rows, "processedBytes": 0,
                "physicalInputBytes": 0, "physicalWrittenBytes": 0, "peakMemoryBytes": 0, "spilledBytes": 0,
            },
            "warnings": [],
        });
        if let (Some(token), Some(members)) = (next, body.as_object_mut()) {
            let uri = format!("{}/v1/statement/executing/{}/{token}", self.base, self.id);
            members.insert("nextUri".to_owned(), uri.into());
            members.insert("partialCancelUri".to_owned(), Value::Null);
        }
        body
    }

    async fn page(&self, token: u64) -> Result<Answer, Problem> {
        let mut progress = self.progress.lock().await;
        if let Some((last, answer)) = &progress.last
            && *last == token
        {
            return Ok(answer.clone());
        }
        if token != progress.next {
            return Err(Problem::new(StatusCode::GONE, "page_gone", "this page was given, and the one after it too"));
        }
        if let Running::Started(task) = &mut progress.state {
            let Ok(done) = tokio::time::timeout(PAGE_WAIT, task).await else {
                return Ok(answer(Vec::new(), &self.envelope("RUNNING", 0, Some(token))));
            };
            let done = done.unwrap_or_else(|error| Err(StatementError::internal(&error)));
            match done {
                Ok(Done::Rows(result)) => {
                    let columns = page::columns(&result.schema);
                    progress.state = Running::Rows { result, columns, rows: 0 };
                }
                Ok(done) => return Ok(self.last(&mut progress, token, changed(done))),
                Err(error) => return Ok(self.last(&mut progress, token, failed(&error))),
            }
        }
        let Running::Rows { result, columns, rows } = &mut progress.state else { return Err(gone()) };
        let taken = match page::take(result).await {
            Ok(taken) => taken,
            Err(error) => return Ok(self.last(&mut progress, token, failed(&StatementError::from(error)))),
        };
        *rows += taken.rows;
        let (columns, rows) = (columns.clone(), *rows);
        let (state, next) = if taken.is_last { ("FINISHED", None) } else { ("RUNNING", Some(token + 1)) };
        let mut body = self.envelope(state, rows, next);
        if let Some(members) = body.as_object_mut() {
            members.insert("columns".to_owned(), columns);
            if taken.rows > 0 {
                members.insert("data".to_owned(), Value::Array(taken.data));
            }
        }
        if taken.is_last {
            progress.state = Running::Ended;
            self.is_over.store(true, Ordering::Relaxed);
        }
        let page = answer(Vec::new(), &body);
        progress.last = Some((token, page.clone()));
        progress.next = token + 1;
        Ok(page)
    }

    /// The one answer of what gives no rows.
    fn last(&self, progress: &mut Progress, token: u64, told: Told) -> Answer {
        let mut body = self.envelope(told.state, 0, None);
        if let Some(members) = body.as_object_mut() {
            members.extend(told.members);
        }
        progress.state = Running::Ended;
        self.is_over.store(true, Ordering::Relaxed);
        progress.next = token + 1;
        let page = answer(told.headers, &body);
        progress.last = Some((token, page.clone()));
        page
    }
}

fn answer(headers: Vec<(HeaderName, HeaderValue)>, body: &Value) -> Answer {
    Answer { headers, body: body.to_string().into() }
}

/// What a statement came to that gives no rows.
struct Told {
    state: &'static str,
    members: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

fn changed(done: Done) -> Told {
    let (mut members, mut headers) = (Map::new(), Vec::new());
    let mut header = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.push((HeaderName::from_static(name), value));
        }
    };
    let (kind, rows) = match done {
        Done::Rows(_) => ("SELECT", None),
        Done::Inserted(inserted) => ("INSERT", Some(inserted.rows)),
        Done::Changed(Changed::Made(inserted)) => ("CREATE TABLE", Some(inserted.rows)),
        Done::Changed(Changed::Done(what)) => {
            if matches!(what, "COMMIT" | "ROLLBACK") {
                header("x-trino-clear-transaction-id", "true".to_owned());
            }
            (what, None)
        }
        Done::Changed(Changed::Use { catalog, namespace }) => {
            header("x-trino-set-catalog", catalog.unwrap_or_else(|| "iceberg".to_owned()));
            header("x-trino-set-schema", namespace);
            ("USE", None)
        }
        Done::Changed(Changed::Prepared { name, sql }) => {
            header("x-trino-added-prepare", format!("{}={}", encoded(&name), encoded(&sql)));
            ("PREPARE", None)
        }
        Done::Changed(Changed::Forgotten { name }) => {
            header("x-trino-deallocated-prepare", encoded(&name));
            ("DEALLOCATE", None)
        }
    };
    members.insert("updateType".to_owned(), kind.into());
    // There is always a column: the JDBC client asks for one of whatever it runs.
    let (name, column_type, value) = match rows {
        Some(rows) => ("rows", "bigint", rows.into()),
        None => ("result", "boolean", Value::Bool(true)),
    };
    let signature = json!({ "rawType": column_type, "arguments": [] });
    members.insert("columns".to_owned(), json!([{ "name": name, "type": column_type, "typeSignature": signature }]));
    members.insert("data".to_owned(), json!([[value]]));
    if let Some(rows) = rows {
        members.insert("updateCount".to_owned(), rows.into());
    }
    Told { state: "FINISHED", members, headers }
}

fn failed(error: &StatementError) -> Told {
    use crate::statements::Kind;
    let (code, name, kind) = match (error.kind, error.code) {
        (_, "syntax") => (1, "SYNTAX_ERROR", "USER_ERROR"),
        (Kind::NotFound, _) => (46, "TABLE_NOT_FOUND", "USER_ERROR"),
        (Kind::Exists, _) => (45, "TABLE_ALREADY_EXISTS", "USER_ERROR"),
        (Kind::Denied, _) => (4, "PERMISSION_DENIED", "USER_ERROR"),
        (Kind::Cancelled, _) => (3, "USER_CANCELED", "USER_ERROR"),
        (Kind::Invalid, _) => (7, "INVALID_ARGUMENTS", "USER_ERROR"),
        (Kind::TooLarge, _) => (131_081, "EXCEEDED_LOCAL_MEMORY_LIMIT", "INSUFFICIENT_RESOURCES"),
        (Kind::Timeout, _) => (131_075, "EXCEEDED_TIME_LIMIT", "INSUFFICIENT_RESOURCES"),
        (Kind::Later, _) => (131_074, "QUERY_QUEUE_FULL", "INSUFFICIENT_RESOURCES"),
        (Kind::Internal, _) => (65_536, "GENERIC_INTERNAL_ERROR", "INTERNAL_ERROR"),
    };
    let mut told = json!({
        "message": error.message,
        "errorCode": code,
        "errorName": name,
        "errorType": kind,
        "failureInfo": { "type": format!("lakegate.{}", error.code), "message": error.message, "suppressed": [], "stack": [] },
    });
    if let (Some((line, column)), Some(members)) = (place_of(&error.message), told.as_object_mut()) {
        let place = json!({ "lineNumber": line, "columnNumber": column });
        members.insert("errorLocation".to_owned(), place);
    }
    let members = Map::from_iter([("error".to_owned(), told)]);
    Told { state: "FAILED", members, headers: Vec::new() }
}

/// The place that a message of the parser names.
fn place_of(message: &str) -> Option<(u64, u64)> {
    let number = |after: &str| {
        let (_, rest) = message.split_once(after)?;
        let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    Some((number("Line:")?, number("Column:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_statements_come_back_as_they_went() {
        let sql = "SELECT 'a b,c=d&e', ? FROM größe";
        let mut headers = HeaderMap::new();
        let value = format!("P1={},q={}", encoded(sql), encoded("SELECT 2"));
        headers.insert("x-trino-prepared-statement", value.parse().unwrap());
        let found = prepared_of(&headers);
        assert_eq!((found["p1"].as_str(), found["q"].as_str()), (sql, "SELECT 2"));
    }

    #[test]
    fn a_message_of_the_parser_tells_its_place() {
        assert_eq!(place_of("Expected: x, found: y at Line: 2, Column: 17"), Some((2, 17)));
        assert_eq!(place_of("no place"), None);
    }
}
