//! `lakegate import`: files into tables, by a running server or, where there is none, in the data folder itself.

mod progress;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use lakegate_model::TenantId;
use lakegate_places::Location;
use lakegate_sources::files::{Asker, ImportRequest, Imports};
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Client, ClientError, ServerAddress};
use super::config::load;
use super::exit::Exit;
use super::output::{note, plain};
use crate::config::{Config, Flags};
use crate::serve::{self, imports::Also};
use progress::Progress;

pub(crate) const EXAMPLES: &str = "\
Examples:
  lakegate import earthquakes.csv --stream earthquakes
  lakegate import '/srv/drop/**/*.parquet' --event-type-from-dir --parallel 4
  lakegate import s3://lake/in/ --recursive --stream orders --dry-run
  lakegate import dump.sql.gz
  lakegate import /srv/drop --watch --event-type-from-dir

A running server reads the files itself, inside imports.roots, imports.hosts and imports.buckets; a file that it may
not read but you can is sent to it. Without a server the command works in the data folder itself, and reads every
local file that you name. A file that was imported before is not imported again, unless --again is given.";

/// How often a job is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// What to import.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Files, folders, patterns, addresses (https://…), objects (s3://…)
    #[arg(required = true)]
    places: Vec<String>,
    /// The stream that takes the rows; without one, the files' names are the streams
    #[arg(long)]
    stream: Option<String>,
    /// The event type of all rows
    #[arg(long, conflicts_with = "event_type_from_dir")]
    event_type: Option<String>,
    /// Take the event type from the name of the folder that a file lies in
    #[arg(long)]
    event_type_from_dir: bool,
    /// Import folders below, too
    #[arg(long, short)]
    recursive: bool,
    /// Which files of a folder, such as '*.parquet'
    #[arg(long)]
    pattern: Option<String>,
    /// What the files hold: parquet, csv, jsonl, json, sql, lines, arrow; found out where not given
    #[arg(long)]
    format: Option<String>,
    /// Import what is there, and from now on what comes
    #[arg(long)]
    watch: bool,
    /// How many files are read at once
    #[arg(long)]
    parallel: Option<usize>,
    /// Read and count, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Import files that were imported before
    #[arg(long)]
    again: bool,
    /// Write files anew that could be taken as they are
    #[arg(long)]
    rewrite: bool,
    /// The tenant, while authentication is off
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    address: ServerAddress,
    /// The configuration file, for work without a server
    #[arg(long, short, env = "LAKEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// The data folder, for work without a server
    #[arg(long)]
    data_dir: Option<String>,
}

impl ImportArgs {
    fn request(&self) -> Result<ImportRequest, String> {
        let request = ImportRequest {
            paths: self.places.iter().map(|place| whole(place)).collect::<Result<_, _>>()?,
            stream: self.stream.clone(),
            event_type: self.event_type.clone(),
            event_type_from_dir: self.event_type_from_dir,
            recursive: self.recursive || self.watch,
            pattern: self.pattern.clone(),
            parallel_files: self.parallel,
            format: self.format.clone(),
            again: self.again,
            rewrite: self.rewrite,
            dry_run: self.dry_run,
            tenant: self.tenant.clone(),
            ..ImportRequest::default()
        };
        request.check().map_err(|e| e.to_string())?;
        Ok(request)
    }
}

/// A path from / on: the server's folder is another than ours.
fn whole(place: &str) -> Result<String, String> {
    match Location::parse(place).map_err(|e| e.to_string())? {
        Location::Local(path) => {
            let whole = std::path::absolute(&path).map_err(|e| format!("{}: {e}", plain(place)))?;
            whole
                .into_os_string()
                .into_string()
                .map_err(|_| format!("{}: not text; write it as file:///…%XX", plain(place)))
        }
        _ => Ok(place.to_owned()),
    }
}

pub(crate) async fn run(args: ImportArgs) -> Exit {
    let request = match args.request() {
        Ok(request) => request,
        Err(reason) => {
            note(&format!("error: {reason}"));
            return Exit::Failure;
        }
    };
    let client = match Client::new(&args.address) {
        Ok(client) => client,
        Err(e) => return super::status::fail(&e),
    };
    match client.get("/livez").await {
        Ok(_) => by_server(&client, &request, args.watch).await,
        Err(ClientError::Away { .. }) => by_itself(&args, request).await,
        // It answers, if not with JSON.
        Err(ClientError::Unreadable(_)) => by_server(&client, &request, args.watch).await,
        Err(e) => super::status::fail(&e),
    }
}

async fn by_server(client: &Client, request: &ImportRequest, watch: bool) -> Exit {
    let body = json!(request);
    if watch {
        return match client.post_json("/api/ingest/watch", &body).await {
            Ok(view) => {
                let id = view.get("id").and_then(Value::as_str).unwrap_or_default();
                note(&format!("watching, also after restarts, until DELETE /api/ingest/watches/{}", plain(id)));
                Exit::Done
            }
            Err(e) => super::status::fail(&e),
        };
    }
    let jobs = match client.post_json("/api/ingest/file?wait=0", &body).await {
        Ok(job) => vec![job],
        Err(ClientError::Refused { status: 403, message }) => match send_files(client, request).await {
            Some(Ok(jobs)) => jobs,
            Some(Err(e)) => return super::status::fail(&e),
            None => return super::status::fail(&ClientError::Refused { status: 403, message }),
        },
        Err(e) => return super::status::fail(&e),
    };
    let mut exit = Exit::Done;
    for job in jobs {
        let mut progress = Progress::new();
        let mut view = job;
        while view.get("state").and_then(Value::as_str) == Some("running") {
            progress.show(&view);
            let id = view.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
            view = match client.get(&format!("/api/jobs/{id}?wait=300ms")).await {
                Ok(view) => view,
                Err(e) => return super::status::fail(&e),
            };
        }
        exit = worst(exit, progress.end(&view));
    }
    exit
}

/// Sends local files to a server that may not read them itself. None: some are no files of ours, or rules of folders
/// would be lost on the way.
async fn send_files(client: &Client, request: &ImportRequest) -> Option<Result<Vec<Value>, ClientError>> {
    let files: Vec<PathBuf> = request.paths.iter().map(PathBuf::from).collect();
    if request.dry_run || request.event_type_from_dir || !files.iter().all(|file| file.is_file()) {
        return None;
    }
    let mut jobs = Vec::new();
    for file in files {
        note(&format!("sending {}: the server may not read it itself (imports.roots)", plain(&file.to_string_lossy())));
        match client.upload(&upload_path(request, &file), &file).await {
            Ok(job) => jobs.push(job),
            Err(e) => return Some(Err(e)),
        }
    }
    Some(Ok(jobs))
}

fn upload_path(request: &ImportRequest, file: &Path) -> String {
    let location = Location::Local(file.to_owned());
    let stream = lakegate_sources::files::stream_for(request, &location, request.event_type.as_deref(), None);
    let mut query = form_urlencoded(&[
        ("name", file.file_name().map(|name| name.to_string_lossy().into_owned())),
        ("event_type", request.event_type.clone()),
        ("format", request.format.clone()),
        ("tenant", request.tenant.clone()),
        ("again", request.again.then(|| "true".to_owned())),
        ("rewrite", request.rewrite.then(|| "true".to_owned())),
    ]);
    query.push_str("wait=0");
    format!("/api/ingest/upload/{stream}?{query}")
}

fn form_urlencoded(pairs: &[(&str, Option<String>)]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for (name, value) in pairs {
        let Some(value) = value else { continue };
        let _ = write!(text, "{name}=");
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => text.push(char::from(byte)),
                _ => {
                    let _ = write!(text, "%{byte:02X}");
                }
            }
        }
        text.push('&');
    }
    text
}

/// Works in the data folder itself.
async fn by_itself(args: &ImportArgs, request: ImportRequest) -> Exit {
    let flags = Flags { data_dir: args.data_dir.clone(), ..Flags::default() };
    let config: Config = match load(args.config.as_deref(), flags) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    note(&format!("no server at {}: working in {} itself", plain(&args.address.url), config.settings.node.data_dir));
    let also = Also { roots: roots(&request), alone: true };
    let watch = args.watch;
    let worked =
        serve::with_imports(&config, also, async move |imports: &Imports| import_here(imports, request, watch).await)
            .await;
    match worked {
        Ok(exit) => exit,
        Err(e) => {
            note(&format!("error: {e}"));
            Exit::Temporary
        }
    }
}

/// The folders of the files that were named: who may use the data folder may read them without being allowed to.
fn roots(request: &ImportRequest) -> Vec<PathBuf> {
    let folder = |place: &String| match Location::parse(place).ok()? {
        location @ Location::Local(_) => match location.split_glob().map_or(location, |(base, _)| base) {
            Location::Local(path) if path.is_dir() => Some(path),
            Location::Local(path) => path.parent().map(Path::to_owned),
            _ => None,
        },
        _ => None,
    };
    request.paths.iter().filter_map(folder).collect()
}

async fn import_here(imports: &Imports, request: ImportRequest, watch: bool) -> Exit {
    let tenant = request.tenant.clone().unwrap_or_else(|| "default".into());
    let tenant = match TenantId::new(&tenant) {
        Ok(tenant) => tenant,
        Err(e) => {
            note(&format!("error: {e}"));
            return Exit::Failure;
        }
    };
    let asker = Asker::nobody(tenant);
    let started = if watch { imports.watch(asker, request).await } else { imports.start(asker, request).await };
    let id = match started {
        Ok(id) => id,
        Err(e) => {
            note(&format!("error: {e}"));
            return Exit::Failure;
        }
    };
    if watch {
        note("watching until Ctrl-C");
        let _ = tokio::signal::ctrl_c().await;
        let _ = imports.unwatch(id);
        return Exit::Interrupted;
    }
    tokio::select! {
        exit = follow(imports, id) => exit,
        _ = tokio::signal::ctrl_c() => {
            let _ = imports.cancel(id);
            let _ = imports.wait(id, Duration::from_secs(10)).await;
            note("ended; the same command goes on where this one was");
            Exit::Interrupted
        }
    }
}

async fn follow(imports: &Imports, id: Uuid) -> Exit {
    let mut progress = Progress::new();
    loop {
        let Some(view) = imports.wait(id, ASK_EVERY).await else { return Exit::Failure };
        let view = json!(view);
        if view.get("state").and_then(Value::as_str) != Some("running") {
            return progress.end(&view);
        }
        progress.show(&view);
    }
}

fn worst(a: Exit, b: Exit) -> Exit {
    if a == Exit::Done { b } else { a }
}
