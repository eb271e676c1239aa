//! `lakegate table`: the tables of a running server, their past, and their care.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{Client, ClientError, ServerAddress};
use super::exit::Exit;
use super::output::{Align, bytes, grouped, plain, print, table};
use super::status::fail;

/// What to do with them.
#[derive(Debug, Subcommand)]
pub(crate) enum TableCommand {
    /// List the tables: rows, files, bytes, snapshots
    #[command(after_help = "Examples:\n  lakegate table ls\n  lakegate table ls --json | jq '.tables[].table'")]
    Ls {
        #[command(flatten)]
        address: ServerAddress,
        /// The answer as it came
        #[arg(long)]
        json: bool,
    },
    /// Show one: columns and properties too
    #[command(after_help = "Example:\n  lakegate table show default.events")]
    Show(Which),
    /// List its snapshots, the newest first
    #[command(after_help = "Example:\n  lakegate table snapshots default.events")]
    Snapshots(Which),
    /// Make larger files of its small ones now
    #[command(after_help = "Example:\n  lakegate table compact default.events")]
    Compact(Which),
    /// Expire its old snapshots now; their files are removed later
    #[command(after_help = "Example:\n  lakegate table expire default.events --keep 5")]
    Expire {
        #[command(flatten)]
        which: Which,
        /// How many of the newest are left; without it, as many as the server's maintenance.snapshots_keep
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
    },
}

/// Which table.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Namespace and name, such as default.events
    table: String,
    #[command(flatten)]
    address: ServerAddress,
    /// The answer as it came
    #[arg(long)]
    json: bool,
}

impl Which {
    /// The path of the table, and what comes behind it.
    fn path(&self, rest: &str) -> Result<String, ClientError> {
        let plain = |part: &str| !part.is_empty() && !part.contains(['/', '?', '#', '%', '.']);
        match self.table.split_once('.') {
            Some((namespace, name)) if plain(namespace) && plain(name) => {
                Ok(format!("/api/tables/{namespace}/{name}{rest}"))
            }
            _ => Err(ClientError::File(format!("{:?} is not a table; write namespace.name", self.table))),
        }
    }
}

pub(crate) async fn run(command: TableCommand) -> Exit {
    let done = match &command {
        TableCommand::Ls { address, json } => list(address, *json).await,
        TableCommand::Show(which) => show(which).await,
        TableCommand::Snapshots(which) => snapshots(which).await,
        TableCommand::Compact(which) => compact(which).await,
        TableCommand::Expire { which, keep } => expire(which, *keep).await,
    };
    match done {
        Ok(text) => {
            print(&text);
            Exit::Done
        }
        Err(e) => fail(&e),
    }
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn text(value: &Value, name: &str) -> String {
    plain(value.get(name).and_then(Value::as_str).unwrap_or("-"))
}

fn items<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

async fn list(address: &ServerAddress, json: bool) -> Result<String, ClientError> {
    let answer = Client::new(address)?.get("/api/tables").await?;
    if json {
        return Ok(format!("{answer}\n"));
    }
    let row = |one: &Value| match one.get("error").and_then(Value::as_str) {
        Some(error) => vec![text(one, "table"), plain(error)],
        None => vec![
            text(one, "table"),
            grouped(number(one, "rows")),
            grouped(number(one, "files")),
            bytes(number(one, "bytes")),
            grouped(number(one, "snapshots")),
            text(one, "committed_at"),
        ],
    };
    let rows: Vec<Vec<String>> = items(&answer, "tables").iter().map(row).collect();
    let (left, right) = (Align::Left, Align::Right);
    let headings = [
        ("table", left),
        ("rows", right),
        ("files", right),
        ("size", right),
        ("snapshots", right),
        ("committed", left),
    ];
    Ok(table(&headings, &rows))
}

async fn show(which: &Which) -> Result<String, ClientError> {
    let answer = Client::new(&which.address)?.get(&which.path("")?).await?;
    if which.json {
        return Ok(format!("{answer}\n"));
    }
    let mut shown = format!(
        "{}: {} rows in {} files ({}), {} snapshots, the newest of {}\n{}\n\n",
        text(&answer, "table"),
        grouped(number(&answer, "rows")),
        grouped(number(&answer, "files")),
        bytes(number(&answer, "bytes")),
        grouped(number(&answer, "snapshots")),
        text(&answer, "committed_at"),
        text(&answer, "metadata_location"),
    );
    let column = |one: &Value| {
        let required = one.get("required").and_then(Value::as_bool).unwrap_or(false);
        vec![text(one, "name"), text(one, "type"), if required { "required" } else { "" }.to_owned()]
    };
    let rows: Vec<Vec<String>> = items(&answer, "columns").iter().map(column).collect();
    shown.push_str(&table(&[("column", Align::Left), ("type", Align::Left), ("", Align::Left)], &rows));
    shown.push('\n');
    let properties = answer.get("properties").and_then(Value::as_object);
    let mut lines: Vec<String> = properties
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{} = {}\n", plain(name), plain(value.as_str().unwrap_or_default())))
        .collect();
    lines.sort();
    shown.push_str(&lines.concat());
    Ok(shown)
}

async fn snapshots(which: &Which) -> Result<String, ClientError> {
    let answer = Client::new(&which.address)?.get(&which.path("/snapshots")?).await?;
    if which.json {
        return Ok(format!("{answer}\n"));
    }
    let of_summary = |one: &Value, name: &str| {
        let found = one.pointer(&format!("/summary/{name}")).and_then(Value::as_str).unwrap_or("0");
        grouped(found.parse().unwrap_or(0))
    };
    let row = |one: &Value| {
        vec![
            text(one, "snapshot_id"),
            text(one, "committed_at"),
            text(one, "operation"),
            of_summary(one, "added-records"),
            of_summary(one, "deleted-records"),
            of_summary(one, "total-records"),
            of_summary(one, "total-data-files"),
        ]
    };
    let rows: Vec<Vec<String>> = items(&answer, "snapshots").iter().map(row).collect();
    let (left, right) = (Align::Left, Align::Right);
    let headings = [
        ("snapshot", left),
        ("committed", left),
        ("operation", left),
        ("added", right),
        ("removed", right),
        ("rows", right),
        ("files", right),
    ];
    Ok(table(&headings, &rows))
}

async fn compact(which: &Which) -> Result<String, ClientError> {
    let answer = Client::new(&which.address)?.post(&which.path("/compact")?).await?;
    if which.json {
        return Ok(format!("{answer}\n"));
    }
    let (removed, added) = (number(&answer, "files_removed"), number(&answer, "files_added"));
    Ok(match removed {
        0 => "there are too few small files of about one size in any partition\n".to_owned(),
        _ => {
            format!("{} files became {}, {} rows\n", grouped(removed), grouped(added), grouped(number(&answer, "rows")))
        }
    })
}

async fn expire(which: &Which, keep: Option<u32>) -> Result<String, ClientError> {
    let rest = keep.map_or("/expire".to_owned(), |keep| format!("/expire?keep={keep}"));
    let answer = Client::new(&which.address)?.post(&which.path(&rest)?).await?;
    if which.json {
        return Ok(format!("{answer}\n"));
    }
    Ok(format!("{} snapshots expired, {} are left\n", number(&answer, "expired"), number(&answer, "left")))
}
