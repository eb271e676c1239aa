//! `PUT /api/ingest/upload/{stream}`: a file as the body of a request.
//!
//! The body goes to disk as it comes, and is imported once it is whole: what breaks off leaves nothing behind. The same
//! bytes under the same name are the same file, and are imported once.
#![allow(clippy::result_large_err, reason = "a problem is made at most once a request, and then answered")]

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures::StreamExt;
use lakegate_model::StreamName;
use lakegate_places::FileIdentity;
use lakegate_sources::files::ImportRequest;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::App;
use super::imports::{Credentials, answer, bad_request, problem_of, wait_of};
use super::problem::Problem;
use super::request::CorrelationId;

/// How often the room on the disk is looked at.
const LOOK_EVERY_BYTES: u64 = 16 << 20;
/// The longest name of a file.
const NAME_CHARS_MAX: usize = 128;

/// What the address says of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    name: Option<String>,
    event_type: Option<String>,
    format: Option<String>,
    tenant: Option<String>,
    wait: Option<String>,
    #[serde(default)]
    again: bool,
    #[serde(default)]
    rewrite: bool,
}

/// Takes a file and imports it.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Extension(id): Extension<CorrelationId>,
    Path(stream): Path<String>,
    Query(about): Query<About>,
    credentials: Credentials,
    body: Body,
) -> Result<Response, Problem> {
    let stream = StreamName::new(&stream).map_err(|e| bad_request("stream", &e.to_string()))?;
    credentials.check_write(&stream)?;
    let asker = credentials.asker(about.tenant.as_deref(), &id)?;
    let wait = wait_of(about.wait.as_deref())?;
    let name = plain_name(about.name.as_deref().unwrap_or(stream.as_str()));
    let request = ImportRequest {
        paths: vec![name.clone()],
        stream: Some(stream.as_str().to_owned()),
        event_type: about.event_type,
        format: about.format,
        again: about.again,
        rewrite: about.rewrite,
        ..ImportRequest::default()
    };
    request.check().map_err(|e| bad_request(e.field, &e.reason))?;
    let spooled = format!("upload-{}-{name}", Uuid::now_v7());
    let spool = Spool { path: app.imports.spool_dir().join(&spooled), kept: false };
    let version = gather(&app, body, spool).await?;
    let identity = FileIdentity { uri: format!("upload:{stream}/{name}"), version };
    let job = app.imports.start_upload(asker, request, &spooled, identity).map_err(|e| problem_of(&e))?;
    answer(&app.imports, job, wait).await
}

/// A file of the spool; removed, unless it is kept.
struct Spool {
    path: PathBuf,
    kept: bool,
}

impl Drop for Spool {
    fn drop(&mut self) {
        if !self.kept {
            // Left over, it is swept at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes the body to the spool, synced. Returns what tells its contents from others.
async fn gather(app: &App, body: Body, mut spool: Spool) -> Result<String, Problem> {
    let settings = &app.config.settings;
    let most = settings.imports.limits.file_bytes_max.bytes();
    let disk = |e: std::io::Error| {
        let detail = format!("the file could not be written to disk: {e}");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "disk", detail).retry_after(5)
    };
    let mut file = tokio::fs::OpenOptions::new().write(true).create_new(true).open(&spool.path).await.map_err(disk)?;
    let (mut hash, mut bytes, mut looked_at) = (Xxh3::new(), 0_u64, None);
    let mut body = body.into_data_stream();
    let patience = settings.limits.http.request_timeout.get();
    loop {
        if looked_at.is_none_or(|at| bytes >= at + LOOK_EVERY_BYTES) {
            looked_at = Some(bytes);
            check_room(&spool.path, settings.storage.min_free_disk.bytes())?;
        }
        let chunk = match tokio::time::timeout(patience, body.next()).await {
            Ok(None) => break,
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(e))) => return Err(bad_request("body", &format!("it broke off after {bytes} bytes: {e}"))),
            Err(_) => {
                let detail = format!("nothing came for {} s (limits.http.request_timeout)", patience.as_secs());
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", detail));
            }
        };
        bytes += chunk.len() as u64;
        if bytes > most {
            let detail = format!("the file has more than {most} bytes (imports.limits.file_bytes_max)");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail).with("limit", most));
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(disk)?;
    }
    file.sync_all().await.map_err(disk)?;
    spool.kept = true;
    Ok(format!("{:032x} {bytes}", hash.digest128()))
}

fn check_room(path: &FilePath, least: u64) -> Result<(), Problem> {
    let dir = path.parent().unwrap_or(path);
    let Ok(disk) = rustix::fs::statvfs(dir) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= least {
        return Ok(());
    }
    let detail = format!("the disk has {free} bytes left, less than storage.min_free_disk ({least})");
    Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", detail).retry_after(60))
}

/// A name that is one file's name and nothing else, with its ending, which helps to tell the format.
fn plain_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' };
    let from = last.chars().count().saturating_sub(NAME_CHARS_MAX);
    last.chars().skip(from).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s17_a_sent_files_name_is_never_a_path() {
        assert_eq!(plain_name("../../etc/passwd"), "passwd");
        assert_eq!(plain_name("a b\n\u{1b}.csv.gz"), "a_b__.csv.gz");
        assert_eq!(plain_name("C:\\x\\y.parquet"), "y.parquet");
        assert_eq!(plain_name(".."), "..");
        assert_eq!(plain_name(&format!("{}.csv", "x".repeat(500))).len(), NAME_CHARS_MAX);
    }
}
