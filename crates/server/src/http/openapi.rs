//! `GET /openapi.json`: the HTTP interface as an OpenAPI 3.1 document.
//!
//! Promises: every path that is mounted is here, with every status that it answers. Refuses: to repeat what has a
//! specification of its own; the Iceberg REST catalog under `/iceberg` is named, and not described.

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::problem::PROBLEM_JSON;
use crate::cli::VERSION;

const JSON: &str = "application/json";
/// What every path may answer besides its own.
const ANYWHERE: [u16; 6] = [401, 403, 421, 429, 500, 503];
/// What a path that takes records may answer besides these.
const RECORDS: [u16; 6] = [400, 404, 408, 409, 413, 415];
/// Why an import may not begin.
const IMPORTS: [u16; 7] = [400, 404, 409, 413, 415, 422, 502];
const DOCUMENTATION: &str =
    "Records in, tables out. The Iceberg REST catalog under /iceberg follows its own specification, see externalDocs.";
const CATALOG: &str = "https://github.com/apache/iceberg/blob/main/open-api/rest-catalog-open-api.yaml";

static TEXT: LazyLock<String> = LazyLock::new(text);

/// The document.
pub(crate) async fn get() -> Response {
    ([(CONTENT_TYPE, JSON)], TEXT.as_str()).into_response()
}

/// The document as it is served and kept.
fn text() -> String {
    format!("{:#}\n", document())
}

fn document() -> Value {
    let mut paths = Map::new();
    for (path, method, operation) in
        [health(), figures(), records(), imports(), jobs(), letters(), consumers(), tables(), sql()].concat()
    {
        let operations = paths.entry(path).or_insert_with(|| json!({}));
        if let Some(operations) = operations.as_object_mut() {
            operations.insert(method.to_owned(), operation);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Lakegate", "version": VERSION, "description": DOCUMENTATION },
        "externalDocs": { "description": "Iceberg REST catalog", "url": CATALOG },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "responses": responses(),
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
                "apiKey": { "type": "apiKey", "in": "header", "name": "x-api-key" },
            },
        },
    })
}

type Operation = (String, &'static str, Value);

/// One operation: what it answers when all is well, and the statuses of its problems besides those of every path.
fn operation(path: &str, method: &'static str, summary: &str, well: &[(u16, Value)], problems: &[u16]) -> Operation {
    let mut answers = Map::new();
    for status in problems.iter().chain(&ANYWHERE) {
        let name = if matches!(status, 429 | 503) { "Later" } else { "Problem" };
        answers.insert(status.to_string(), json!({ "$ref": format!("#/components/responses/{name}") }));
    }
    answers.extend(well.iter().map(|(status, answer)| (status.to_string(), answer.clone())));
    let mut parameters = Vec::new();
    for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
        parameters.push(json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    }
    let operation = json!({ "summary": summary, "parameters": parameters, "responses": answers });
    (path.to_owned(), method, operation)
}

/// Adds optional parameters, each with its type.
fn asked((path, method, mut operation): Operation, place: &str, names: &[(&str, &str)]) -> Operation {
    if let Some(parameters) = operation.get_mut("parameters").and_then(Value::as_array_mut) {
        let kind = |kind: &str| match kind {
            "count" => json!({ "type": "integer", "minimum": 0 }),
            kind => json!({ "type": kind }),
        };
        parameters.extend(names.iter().map(|(name, of)| json!({ "name": name, "in": place, "schema": kind(of) })));
    }
    (path, method, operation)
}

/// Adds the body that it takes.
fn with_body((path, method, mut operation): Operation, content: Value) -> Operation {
    if let Some(members) = operation.as_object_mut() {
        members.insert("requestBody".to_owned(), json!({ "required": true, "content": content }));
    }
    (path, method, operation)
}

fn schema(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// JSON of a schema.
fn answer(description: &str, schema: &Value) -> Value {
    json!({ "description": description, "content": { JSON: { "schema": schema } } })
}

/// JSON of a schema where the request was understood, else a problem.
fn answer_or_problem(description: &str, of: &Value) -> Value {
    let problem = schema("Problem");
    json!({ "description": description, "content": { JSON: { "schema": of }, PROBLEM_JSON: { "schema": problem } } })
}

/// Text of one of several types.
fn texts(description: &str, kinds: &[&str]) -> Value {
    let content: Map<String, Value> = kinds.iter().map(|kind| ((*kind).to_owned(), json!({}))).collect();
    json!({ "description": description, "content": content })
}

fn object(required: &[&str]) -> Value {
    json!({ "type": "object", "required": required })
}

fn health() -> Vec<Operation> {
    let health = object(&["status", "services", "metrics", "timestamp"]);
    let ready = object(&["ready"]);
    vec![
        operation("/", "get", "What there is", &[(200, answer("Paths", &object(&["name", "version", "paths"])))], &[]),
        operation("/openapi.json", "get", "This document", &[(200, answer("OpenAPI 3.1", &object(&["openapi"])))], &[]),
        operation(
            "/health",
            "get",
            "How it is, part by part",
            &[(200, answer("Healthy or degraded", &health)), (503, answer_or_problem("Unhealthy", &health))],
            &[],
        ),
        operation("/livez", "get", "The process answers", &[(200, answer("It does", &object(&["status"])))], &[]),
        operation(
            "/readyz",
            "get",
            "Whether records may be sent here now",
            &[(200, answer("They may", &ready)), (503, answer_or_problem("Not now, and why", &ready))],
            &[],
        ),
    ]
}

fn figures() -> Vec<Operation> {
    let mut metrics = answer("Figures", &object(&["ingestion", "websocket", "storage"]));
    if let Some(content) = metrics.get_mut("content").and_then(Value::as_object_mut) {
        content.insert("text/plain".to_owned(), json!({ "schema": { "type": "string" } }));
    }
    let status = answer("Figures", &object(&["node", "version", "health", "totals", "streams"]));
    let audit = answer("The balance", &object(&["closes", "streams", "tables"]));
    let feed = texts("Rows as they come, without end", &["application/x-ndjson", "text/event-stream"]);
    let status = operation("/api/status", "get", "What came in, per stream", &[(200, status)], &[400]);
    let feed =
        operation("/api/feeds/{stream}", "get", "Durable records as they come", &[(200, feed)], &[400, 409, 410]);
    let committed = answer("All is in the tables", &object(&["committed_offset"]));
    vec![
        operation("/metrics", "get", "Figures, for Prometheus by Accept: text/plain", &[(200, metrics)], &[]),
        asked(status, "query", &[("tenant", "string"), ("stream", "string")]),
        operation("/api/audit", "get", "Whether all that came is there", &[(200, audit)], &[400, 404, 409, 422, 504]),
        operation("/api/flush", "post", "Brings what is in memory into the tables", &[(200, committed)], &[]),
        asked(feed, "query", &[("from", "string"), ("tenant", "string"), ("limit", "count")]),
    ]
}

/// Paths that take records, of which some answer a refusal with a body of their own.
fn records() -> Vec<Operation> {
    let headers = [("x-tenant-id", "string"), ("idempotency-key", "string")];
    let event = json!({ "eventId": "e-1", "eventType": "ITEM_ADDED", "timestamp": "2026-01-01T00:00:00Z" });
    let json_body = |schema: Value, example: &Value| json!({ JSON: { "schema": schema, "example": example } });
    let lines = json!({ "schema": { "type": "string" }, "example": "{\"a\": 1}\n{\"a\": 2}\n" });
    let documents = json!({ "type": ["object", "array"] });
    let documents = json!({
        JSON: { "schema": documents, "example": { "event_type": "visit", "memberCode": "m-1" } },
        "application/x-ndjson": lines, "application/ndjson": lines, "application/jsonl": lines,
    });
    let batch = json!({ "events": [event], "options": { "maxSize": 100, "failOnError": false } });
    let posts = [
        ("/events", "One cart event", "EventResponse", json_body(object(&[]), &event)),
        ("/events/batch", "Cart events", "BatchEventResponse", json_body(schema("BatchEventRequest"), &batch)),
        ("/batch", "The same as /events/batch", "BatchEventResponse", json_body(schema("BatchEventRequest"), &batch)),
        ("/api/ingest/event", "Documents", "DocumentsResponse", documents.clone()),
        ("/api/ingest/streams/{stream}", "JSON for any stream", "DocumentsResponse", documents),
    ];
    let post = |(path, summary, of, body): (&str, &str, &str, Value)| {
        let of = schema(of);
        let refused = answer_or_problem("Refused, and why", &of);
        let well = [
            (200, answer("Seen before: nothing is stored twice", &of)),
            (202, answer("Durable", &of)),
            (400, refused.clone()),
            (403, refused.clone()),
            (413, refused),
        ];
        with_body(asked(operation(path, "post", summary, &well, &RECORDS), "header", &headers), body)
    };
    let socket = |path: &str| {
        let open = json!({ "description": "A WebSocket is open" });
        let socket = operation(path, "get", "WebSocket: one JSON text a message", &[(101, open)], &[400, 405, 426]);
        asked(asked(socket, "query", &[("tenant", "string")]), "header", &[("x-tenant-id", "string")])
    };
    let sockets = [socket("/events/stream"), socket("/api/ingest/stream")];
    posts.into_iter().map(post).chain(sockets).collect()
}

fn job_answers() -> [(u16, Value); 2] {
    let mut running = answer("It goes on; ask at Location", &schema("Job"));
    if let Some(members) = running.as_object_mut() {
        members.insert("headers".to_owned(), json!({ "Location": { "schema": { "type": "string" } } }));
    }
    [(200, answer("It ended", &schema("Job"))), (202, running)]
}

fn imports() -> Vec<Operation> {
    let body = json!({ JSON: { "schema": schema("ImportRequest"), "example": { "path": "/srv/drop/a.parquet" } } });
    let import = |kind: &str| {
        let path = format!("/api/ingest/{kind}");
        let import = operation(&path, "post", "Imports files", &job_answers(), &IMPORTS);
        with_body(asked(import, "query", &[("wait", "string")]), body.clone())
    };
    let mut all: Vec<Operation> = ["parquet", "csv", "jsonl", "sql", "file", "bulk"].map(import).into();
    let watch = [(201, answer("It is watched", &schema("Job")))];
    all.push(with_body(operation("/api/ingest/watch", "post", "Watches a place from now on", &watch, &IMPORTS), body));
    let upload = [400, 408, 413, 507];
    let upload = operation("/api/ingest/upload/{stream}", "put", "Imports the body, a file", &job_answers(), &upload);
    let texts = ["name", "event_type", "format", "tenant", "wait"].map(|name| (name, "string"));
    let upload = asked(asked(upload, "query", &texts), "query", &[("again", "boolean"), ("rewrite", "boolean")]);
    all.push(with_body(upload, json!({ "application/octet-stream": {} })));
    all
}

fn jobs() -> Vec<Operation> {
    let gone = [(204, json!({ "description": "Ended" }))];
    let watches = [(200, answer("The watches", &object(&["watches"])))];
    let watch = [(200, answer("The watch", &schema("Job")))];
    let one = operation("/api/jobs/{id}", "get", "One job, at its end by ?wait=", &job_answers(), &[400, 404]);
    vec![
        operation("/api/ingest/watches", "get", "The watched places", &watches, &[]),
        operation("/api/ingest/watches/{id}", "get", "One watch", &watch, &[400, 404]),
        operation("/api/ingest/watches/{id}", "delete", "Ends a watch for good", &gone, &[400, 404]),
        operation("/api/jobs", "get", "The imports", &[(200, answer("The jobs", &object(&["jobs"])))], &[]),
        asked(one, "query", &[("wait", "string")]),
        operation("/api/jobs/{id}", "delete", "Ends a job; what it committed stays", &job_answers(), &[400, 404]),
    ]
}

fn letters() -> Vec<Operation> {
    let which = ["tenant", "stream", "reason", "id", "since", "until", "format"].map(|name| (name, "string"));
    let counts = [("limit", "count"), ("dry_run", "boolean"), ("all", "boolean")];
    let problems = [400, 404, 409, 422, 504];
    let mut list = answer("The letters, newest first", &object(&["tenant", "letters", "counts"]));
    if let Some(content) = list.get_mut("content").and_then(Value::as_object_mut) {
        content.insert("text/csv".to_owned(), json!({ "schema": { "type": "string" } }));
    }
    let one = answer("The letter", &object(&["id", "stream", "reason"]));
    let replayed = answer("What came of it", &object(&["tenant"]));
    let purged = replayed.clone();
    let letters = [
        operation("/api/dlq", "get", "Records that were set aside", &[(200, list)], &problems),
        operation("/api/dlq/{id}", "get", "One of them, whole", &[(200, one)], &problems),
        operation("/api/dlq/replay", "post", "Brings them again", &[(200, replayed)], &problems),
        operation("/api/dlq/purge", "post", "Removes them for good", &[(200, purged)], &problems),
    ];
    letters.map(|letters| asked(asked(letters, "query", &which), "query", &counts)).into()
}

fn tables() -> Vec<Operation> {
    let (one, past) = ("/api/tables/{namespace}/{table}", "/api/tables/{namespace}/{table}/snapshots");
    let (compact, expire) = ("/api/tables/{namespace}/{table}/compact", "/api/tables/{namespace}/{table}/expire");
    let found = answer("The tables", &object(&["tables"]));
    let table = answer("The table", &object(&["table", "rows", "files", "columns", "properties"]));
    let compacted = answer("What was done", &object(&["files_removed", "files_added", "rows"]));
    let expired = answer("What was done", &object(&["expired", "left"]));
    vec![
        operation("/api/tables", "get", "The tables", &[(200, found)], &[]),
        operation(one, "get", "One table", &[(200, table)], &[400, 404]),
        operation(past, "get", "Its snapshots", &[(200, answer("Snapshots", &object(&["snapshots"])))], &[400, 404]),
        operation(compact, "post", "Makes larger files of small ones", &[(200, compacted)], &[400, 404]),
        asked(
            operation(expire, "post", "Expires old snapshots", &[(200, expired)], &[400, 404]),
            "query",
            &[("keep", "count")],
        ),
    ]
}

fn consumers() -> Vec<Operation> {
    let one = || [(200, answer("How it is then", &object(&["name", "state", "offset"])))];
    let problems = [400, 404, 409];
    let to = [("to", "string")];
    let key = [("key", "string")];
    let list = [(200, answer("Sinks and routes", &object(&["consumers"])))];
    let dead = [(200, answer("The records", &object(&["total", "dead"])))];
    let revived = [(200, answer("What came of it", &object(&["delivered", "refused"])))];
    let removed = [(200, answer("How many were removed", &object(&["removed"])))];
    let path = |rest: &str| format!("/api/consumers/{{id}}{rest}");
    vec![
        operation("/api/consumers", "get", "How sinks and routes are", &list, &[]),
        operation(&path(""), "get", "How one is", &one(), &problems),
        operation(&path("/pause"), "post", "Stops delivering", &one(), &problems),
        operation(&path("/resume"), "post", "Goes on delivering", &one(), &problems),
        asked(operation(&path("/rewind"), "post", "Moves the position", &one(), &problems), "query", &to),
        asked(operation(&path("/skip"), "post", "Passes over records", &one(), &problems), "query", &to),
        operation(&path("/dead"), "get", "Records that a service refused for good", &dead, &problems),
        asked(operation(&path("/dead"), "delete", "Removes them", &removed, &problems), "query", &key),
        asked(operation(&path("/dead/replay"), "post", "Sends them again", &revived, &problems), "query", &key),
    ]
}

fn sql() -> Vec<Operation> {
    let kinds = [JSON, "application/x-ndjson", "text/csv", "application/vnd.apache.arrow.stream"];
    let body = json!({ JSON: { "schema": schema("SqlRequest"), "example": { "sql": "SELECT 1 AS one" } } });
    let rows = [(200, texts("Rows, by Accept", &kinds))];
    let problems = [400, 404, 406, 409, 413, 415, 422, 504];
    let gone = [(204, json!({ "description": "Ended" }))];
    let page = [(200, answer("The first page, and where the next is", &object(&["id", "stats"])))];
    let text = json!({ "text/plain": { "schema": { "type": "string" }, "example": "SELECT 1" } });
    vec![
        with_body(operation("/api/sql", "post", "Runs a query", &rows, &problems), body),
        operation("/api/sql", "get", "The queries that run", &[(200, answer("Queries", &object(&["queries"])))], &[]),
        operation("/api/sql/{id}", "delete", "Ends a query", &gone, &[400, 404]),
        with_body(
            operation("/v1/statement", "post", "Runs a statement by Trino's client protocol", &page, &[400]),
            text,
        ),
    ]
}

fn responses() -> Value {
    let content = json!({ PROBLEM_JSON: { "schema": schema("Problem") } });
    let later = json!({ "Retry-After": { "schema": { "type": "integer" }, "description": "Seconds" } });
    json!({
        "Problem": { "description": "Refused, and why (RFC 9457)", "content": content },
        "Later": { "description": "Not now; ask again after Retry-After", "content": content, "headers": later },
    })
}

fn schemas() -> Value {
    let (text, count) = (json!({ "type": "string" }), json!({ "type": "integer", "minimum": 0 }));
    let status = json!({ "enum": ["accepted", "rejected"] });
    let errors = json!({ "type": "array", "items": text });
    let flag = json!({ "type": ["boolean", "null"] });
    json!({
        "Problem": {
            "type": "object", "required": ["type", "title", "status", "code", "detail", "correlationId"],
            "properties": { "type": text, "title": text, "status": { "type": "integer" }, "code": text, "detail": text,
                            "correlationId": text, "retryAfter": count },
        },
        "EventResponse": {
            "type": "object", "required": ["eventId", "status", "timestamp"],
            "properties": { "eventId": text, "status": status, "timestamp": text, "message": text },
        },
        "BatchEventRequest": {
            "type": "object", "required": ["events"],
            "properties": {
                "events": { "type": "array", "items": { "type": "object" } },
                "options": { "type": "object", "properties": {
                    "maxSize": { "type": ["integer", "null"], "minimum": 1 }, "failOnError": flag } },
            },
        },
        "BatchEventResponse": {
            "type": "object", "required": ["batchId", "totalEvents", "successful", "failed", "processedAt"],
            "properties": { "batchId": text, "totalEvents": count, "successful": count, "failed": count,
                            "errors": errors, "processedAt": text },
        },
        "DocumentsResponse": {
            "type": "object",
            "required": ["status", "received", "accepted", "duplicates", "skipped", "rejected", "position", "timestamp"],
            "properties": { "status": status, "received": count, "accepted": count, "duplicates": count,
                            "skipped": count, "rejected": count, "position": count, "timestamp": text,
                            "errors": { "type": "array", "items": { "type": "object" } } },
        },
        "ImportRequest": import_request(),
        "Job": {
            "type": "object",
            "required": ["id", "state", "files", "documents", "skipped", "duplicates", "bytes", "rate", "errors"],
        },
        "SqlRequest": {
            "type": "object", "required": ["sql"], "additionalProperties": false,
            "properties": { "sql": text, "parameters": { "type": "array" }, "limit": count,
                            "timeout": { "type": ["string", "integer"] }, "query_id": text },
        },
    })
}

fn import_request() -> Value {
    let (text, flag) = (json!({ "type": "string" }), json!({ "type": "boolean" }));
    json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "path": text, "url": text, "paths": { "type": "array", "items": text }, "stream": text,
            "event_type": text, "format": text, "pattern": text, "tenant": text, "event_type_from_dir": flag,
            "recursive": flag, "parallel_files": { "type": "integer", "minimum": 0 }, "again": flag,
            "rewrite": flag, "dry_run": flag, "after": {},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_of_the_openapi_document_is_seen() {
        crate::config::tests::assert_generated("openapi.json", &text());
    }

    #[tokio::test]
    async fn every_path_that_is_mounted_or_named_by_the_index_is_documented() {
        let document = document();
        let has = |path: &str| document["paths"].get(path).is_some();
        // As the router is written, besides the one pattern whose kinds are documented one by one.
        let mounted = include_str!("mod.rs").split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
        let mounted: Vec<&str> = mounted.filter(|path| *path != "/api/ingest/{kind}").collect();
        assert!(mounted.len() > 15);
        for path in mounted {
            assert!(has(path), "{path} is mounted and not documented");
        }
        let index = super::super::index().await.0;
        for entry in index["paths"].as_object().unwrap().keys().filter(|entry| !entry.starts_with("/iceberg")) {
            let path = entry.split(' ').nth(1).unwrap();
            assert!(has(path), "{path} is in the index and not documented");
        }
    }
}
