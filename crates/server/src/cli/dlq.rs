//! `lakegate dlq`: the records that were set aside, bringing them again after a fix, and removing them for good.

use clap::{Args, Subcommand};
use lakegate_env::{Clock, SystemClock};
use serde_json::Value;

use super::client::{Client, ClientError, ServerAddress};
use super::exit::Exit;
use super::output::{Align, grouped, note, plain, print, table};
use super::status::fail;
use crate::config::Period;
use crate::http::rfc3339;

/// What to do with them.
#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// List what was set aside and not stored since
    #[command(after_help = "Examples:\n  lakegate dlq ls\n  lakegate dlq ls --stream orders --reason WRONG_TYPE")]
    Ls {
        #[command(flatten)]
        which: WhichArgs,
        /// As CSV; cells that a spreadsheet would take for formulas begin with an apostrophe
        #[arg(long, conflicts_with = "json")]
        csv: bool,
        /// The answer as it came
        #[arg(long)]
        json: bool,
    },
    /// Show one whole: raw bytes and reason
    #[command(after_help = "Example:\n  lakegate dlq show 0199a1f0-1111-7222-8333-444455556666")]
    Show {
        /// Its id, as `ls` shows it
        id: String,
        /// Whose
        #[arg(long, default_value = "default")]
        tenant: String,
        #[command(flatten)]
        address: ServerAddress,
    },
    /// Bring them again, through the same checks, each stored once
    #[command(
        after_help = "Examples:\n  lakegate dlq replay --stream orders --dry-run\n  lakegate dlq replay --stream orders --reason WRONG_TYPE"
    )]
    Replay {
        #[command(flatten)]
        which: WhichArgs,
        /// Say only how many would be brought
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove them for good, whether they were stored since or not
    #[command(
        long_about = "Remove them for good, whether they were stored since or not. Say which by stream, reason, id or \
                      time, or --all. Earlier snapshots of the table hold them until they expire.",
        after_help = "Examples:\n  lakegate dlq purge --older-than 30d --dry-run\n  lakegate dlq purge --stream orders --reason WRONG_TYPE"
    )]
    Purge(PurgeArgs),
}

/// Which letters of a list or a replay.
#[derive(Debug, Args)]
pub(crate) struct WhichArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// At most so many
    #[arg(long)]
    limit: Option<u64>,
}

/// Which letters of a removal.
#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Received longer ago than that, such as 30d
    #[arg(long, conflicts_with = "until", value_parser = Period::parse)]
    older_than: Option<Period>,
    /// All of the tenant, where nothing else says which
    #[arg(long)]
    all: bool,
    /// Say only how many would be removed
    #[arg(long)]
    dry_run: bool,
}

/// What letters must be.
#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// Whose
    #[arg(long, default_value = "default")]
    tenant: String,
    /// For which stream
    #[arg(long)]
    stream: Option<String>,
    /// For which reason, such as WRONG_TYPE
    #[arg(long)]
    reason: Option<String>,
    /// The one of that id
    #[arg(long)]
    id: Option<String>,
    /// Received at that time or later, such as 2026-01-31T00:00:00Z
    #[arg(long)]
    since: Option<String>,
    /// Received before that time
    #[arg(long)]
    until: Option<String>,
    #[command(flatten)]
    address: ServerAddress,
}

impl WhichArgs {
    fn query(&self) -> String {
        let limit = self.limit.map_or_else(String::new, |limit| format!("&limit={limit}"));
        self.filter.query(self.filter.until.clone()) + &limit
    }
}

impl PurgeArgs {
    fn query(&self) -> String {
        let until_us = |age: Period| {
            let age_us = i64::try_from(age.get().as_micros()).unwrap_or(i64::MAX);
            rfc3339(SystemClock::default().wall_us().saturating_sub(age_us))
        };
        let until = self.older_than.map(until_us).or_else(|| self.filter.until.clone());
        format!("{}&all={}&dry_run={}", self.filter.query(until), self.all, self.dry_run)
    }
}

impl FilterArgs {
    fn query(&self, until: Option<String>) -> String {
        let given = [
            ("tenant", Some(&self.tenant)),
            ("stream", self.stream.as_ref()),
            ("reason", self.reason.as_ref()),
            ("id", self.id.as_ref()),
            ("since", self.since.as_ref()),
            ("until", until.as_ref()),
        ];
        let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
        given.map(|(name, value)| format!("{name}={}", escape(value))).collect::<Vec<_>>().join("&")
    }
}

/// A text for the query of an address (RFC 3986).
fn escape(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

pub(crate) async fn run(command: DlqCommand) -> Exit {
    let done = match command {
        DlqCommand::Ls { which, csv, json } => list(&which, csv, json).await,
        DlqCommand::Show { id, tenant, address } => show(&address, &id, &tenant).await,
        DlqCommand::Replay { which, dry_run } => replay(&which, dry_run).await,
        DlqCommand::Purge(args) => purge(&args).await,
    };
    done.unwrap_or_else(|error| fail(&error))
}

async fn list(which: &WhichArgs, csv: bool, json: bool) -> Result<Exit, ClientError> {
    let client = Client::new(&which.filter.address)?;
    let path = format!("/api/dlq?{}", which.query());
    if csv {
        let answer = client.stream(&format!("{path}&format=csv"), "text/csv").await?;
        print(&answer.text().await.map_err(|error| ClientError::Unreadable(error.to_string()))?);
        return Ok(Exit::Done);
    }
    let answer = client.get(&path).await?;
    print(&if json { format!("{answer}\n") } else { render(&answer) });
    Ok(Exit::Done)
}

async fn show(address: &ServerAddress, id: &str, tenant: &str) -> Result<Exit, ClientError> {
    let answer = Client::new(address)?.get(&format!("/api/dlq/{}?tenant={}", escape(id), escape(tenant))).await?;
    for (name, value) in answer.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), plain);
        print(&format!("{name:15} {text}\n"));
    }
    Ok(Exit::Done)
}

async fn replay(which: &WhichArgs, dry_run: bool) -> Result<Exit, ClientError> {
    let client = Client::new(&which.filter.address)?;
    let answer = client.post(&format!("/api/dlq/replay?{}&dry_run={dry_run}", which.query())).await?;
    let count = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    if dry_run {
        print(&format!("{} would be brought again\n", grouped(count("would_replay"))));
        return Ok(Exit::Done);
    }
    let (stored, there, refused) = (count("stored"), count("duplicates"), count("refused"));
    print(&format!(
        "{} stored, {} were there already, {} refused again\n",
        grouped(stored),
        grouped(there),
        grouped(refused)
    ));
    for error in answer.get("errors").and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| error.get(name).and_then(Value::as_str).map(plain).unwrap_or_default();
        note(&format!("{}: {}", text("id"), text("message")));
    }
    Ok(if refused == 0 { Exit::Done } else { Exit::Failure })
}

async fn purge(args: &PurgeArgs) -> Result<Exit, ClientError> {
    let answer = Client::new(&args.filter.address)?.post(&format!("/api/dlq/purge?{}", args.query())).await?;
    let count = |name: &str| grouped(answer.get(name).and_then(Value::as_u64).unwrap_or(0));
    print(&match args.dry_run {
        true => format!("{} would be removed\n", count("would_purge")),
        false => format!("{} removed\n", count("purged")),
    });
    Ok(Exit::Done)
}

fn render(answer: &Value) -> String {
    let rows = |name: &str| answer.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let cell = |row: &Value, name: &str| match row.get(name) {
        Some(Value::String(text)) => plain(text),
        Some(Value::Number(number)) => number.as_u64().map_or_else(String::new, grouped),
        _ => String::new(),
    };
    let cells = |rows: Vec<Value>, names: &[&str]| -> Vec<Vec<String>> {
        rows.iter().map(|row| names.iter().map(|name| cell(row, name)).collect()).collect()
    };
    let counts = [
        ("stream", Align::Left),
        ("reason", Align::Left),
        ("letters", Align::Right),
        ("first", Align::Left),
        ("last", Align::Left),
    ];
    let letters = [
        ("id", Align::Left),
        ("stream", Align::Left),
        ("reason", Align::Left),
        ("field", Align::Left),
        ("attempts", Align::Right),
        ("received_at", Align::Left),
        ("message", Align::Left),
    ];
    let counted = cells(rows("counts"), &counts.map(|(name, _)| name));
    let listed = cells(rows("letters"), &letters.map(|(name, _)| name));
    format!("{}\n{}", table(&counts, &counted), table(&letters, &listed))
}
