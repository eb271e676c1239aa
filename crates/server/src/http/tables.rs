//! `/api/tables`: the tables of the lake, their snapshots, and their care: compacting and expiring.
//!
//! A caller sees the tables of its tenant that it may read; care is the operator's.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use lakegate_access::Action;
use lakegate_lake::{LakeError, LakeTable, RewriteError, TableView};
use lakegate_model::TableName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::identity::Caller;
use super::problem::Problem;

/// One call compacts at most so many groups of files, so that it ends.
const GROUPS_MAX: usize = 100;

/// `GET /api/tables`
pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Value>, Problem> {
    caller.check_some(Action::Read)?;
    let mut tables = Vec::new();
    for name in app.lake.list_tables().await.map_err(|e| failed(&e))? {
        if !caller.may_read(&name.namespace, &name.name) {
            continue;
        }
        // One that cannot be read does not hide the others.
        tables.push(match app.lake.find_table(&name).await {
            Ok(Some(table)) => summary(&table.view()),
            Ok(None) => continue,
            Err(error) => json!({ "table": name.to_string(), "error": error.to_string() }),
        });
    }
    Ok(Json(json!({ "tables": tables })))
}

/// `GET /api/tables/{namespace}/{table}`
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    caller.check_some(Action::Read)?;
    let view = find(&app, &caller, path).await?.view();
    let mut shown = summary(&view);
    if let Value::Object(members) = &mut shown {
        let columns = view.schema();
        let columns = columns
            .fields()
            .iter()
            .map(|f| json!({ "name": f.name(), "type": f.data_type().to_string(), "required": !f.is_nullable() }));
        members.insert("columns".to_owned(), columns.collect());
        members.insert("properties".to_owned(), json!(view.properties()));
        members.insert("metadata_location".to_owned(), view.metadata_location().into());
    }
    Ok(Json(shown))
}

/// `GET /api/tables/{namespace}/{table}/snapshots`
pub(crate) async fn snapshots(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    caller.check_some(Action::Read)?;
    let snapshots = find(&app, &caller, path).await?.view().snapshots();
    let one = |s: &lakegate_lake::SnapshotInfo| {
        json!({
            "snapshot_id": s.snapshot_id.to_string(),
            "sequence_number": s.sequence_number,
            "committed_at": super::time::rfc3339(s.committed_at_us),
            "operation": s.operation,
            "summary": s.summary,
        })
    };
    Ok(Json(json!({ "snapshots": snapshots.iter().map(one).collect::<Vec<_>>() })))
}

/// `POST /api/tables/{namespace}/{table}/compact`
pub(crate) async fn compact(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    caller.check_operator()?;
    let table = find(&app, &caller, path).await?;
    let (mut removed, mut added, mut rows) = (0, 0, 0);
    for _ in 0..GROUPS_MAX {
        let done = table.compact_once().await.map_err(|e| match &e {
            RewriteError::Lake(error) => failed(error),
            RewriteError::Commit(_) => later(&e),
        })?;
        if done.removed == 0 {
            break;
        }
        (removed, added, rows) = (removed + done.removed, added + done.added, rows + done.rows);
    }
    Ok(Json(json!({ "files_removed": removed, "files_added": added, "rows": rows })))
}

/// How many snapshots are to be left.
#[derive(Debug, Deserialize)]
pub(crate) struct Keep {
    keep: Option<usize>,
}

/// `POST /api/tables/{namespace}/{table}/expire?keep=`
pub(crate) async fn expire(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Query(Keep { keep }): Query<Keep>,
) -> Result<Json<Value>, Problem> {
    caller.check_operator()?;
    let table = find(&app, &caller, path).await?;
    let expired = table.expire(keep.unwrap_or(app.lake.care().snapshots_keep)).await.map_err(|e| failed(&e))?;
    Ok(Json(json!({ "expired": expired, "left": table.view().snapshots().len() })))
}

async fn find(app: &App, caller: &Caller, (namespace, name): (String, String)) -> Result<Arc<LakeTable>, Problem> {
    let absent =
        || Problem::new(StatusCode::NOT_FOUND, "unknown_table", format!("there is no table {namespace}.{name}"));
    let table = TableName::new(&namespace, &name).map_err(|_| absent())?;
    if !caller.may_read(&namespace, &name) {
        return Err(absent());
    }
    app.lake.find_table(&table).await.map_err(|e| failed(&e))?.ok_or_else(absent)
}

fn summary(view: &TableView) -> Value {
    json!({
        "table": view.name().to_string(),
        "rows": view.total_records(),
        "files": view.total_data_files(),
        "bytes": view.total_file_bytes(),
        "snapshots": view.snapshots().len(),
        "snapshot_id": view.snapshot_id().map(|id| id.to_string()),
        "committed_at": view.committed_at_us().map(super::time::rfc3339),
    })
}

fn later(error: &dyn std::fmt::Display) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error.to_string()).retry_after(5)
}

fn failed(error: &LakeError) -> Problem {
    if error.is_retryable() {
        return later(error);
    }
    tracing::error!(%error, "a table could not be looked at or after");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "see the server's log")
}
