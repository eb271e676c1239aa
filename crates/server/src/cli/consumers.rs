//! `lakegate consumers`: how sinks and routes are, and telling them what to do.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{Client, ClientError, ServerAddress};
use super::exit::Exit;
use super::output::{Align, grouped, plain, print, table};
use super::status::fail;

/// What to do with them.
#[derive(Debug, Subcommand)]
pub(crate) enum ConsumersCommand {
    /// List them: how they are, how far behind, what became of their records
    #[command(
        after_help = "Examples:\n  lakegate consumers ls\n  lakegate consumers ls --json | jq '.consumers[].lag_records'"
    )]
    Ls {
        /// The answer as it came
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        address: ServerAddress,
    },
    /// Show one whole
    #[command(after_help = "Example:\n  lakegate consumers show prediction")]
    Show(Which),
    /// Stop delivering, over restarts too, until it is resumed
    #[command(after_help = "Example:\n  lakegate consumers pause prediction")]
    Pause(Which),
    /// Go on delivering
    #[command(after_help = "Example:\n  lakegate consumers resume prediction")]
    Resume(Which),
    /// Move the position: what lies behind it is delivered again, under the same keys
    #[command(
        after_help = "Examples:\n  lakegate consumers rewind raw --to 120000\n  lakegate consumers rewind raw --to lake"
    )]
    Rewind {
        #[command(flatten)]
        which: Which,
        /// tail, head (of the log), lake (all rows of the tables), or an offset of the log
        #[arg(long)]
        to: String,
    },
    /// Pass over records; they are counted as skipped
    #[command(
        after_help = "Examples:\n  lakegate consumers skip prediction\n  lakegate consumers skip prediction --to 120000"
    )]
    Skip {
        #[command(flatten)]
        which: Which,
        /// Records below this offset of the log; else all that there are now
        #[arg(long, default_value = "tail")]
        to: String,
    },
    /// The records that a service refused for good
    #[command(subcommand)]
    Dead(DeadCommand),
}

/// What to do with records that were given up.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// List them
    #[command(after_help = "Example:\n  lakegate consumers dead ls prediction")]
    Ls {
        #[command(flatten)]
        which: Which,
        /// The answer as it came, with each record whole
        #[arg(long)]
        json: bool,
    },
    /// Send them again; those that are taken are removed
    #[command(after_help = "Example:\n  lakegate consumers dead replay prediction")]
    Replay {
        #[command(flatten)]
        which: Which,
        /// The one of that key
        #[arg(long)]
        key: Option<String>,
    },
    /// Remove them
    #[command(after_help = "Example:\n  lakegate consumers dead purge prediction --key 0f3a…")]
    Purge {
        #[command(flatten)]
        which: Which,
        /// The one of that key
        #[arg(long)]
        key: Option<String>,
    },
}

/// Which consumer.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Its name
    name: String,
    #[command(flatten)]
    address: ServerAddress,
}

impl Which {
    fn path(&self) -> String {
        format!("/api/consumers/{}", escape(&self.name))
    }
}

/// A text for a part of an address (RFC 3986).
fn escape(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

pub(crate) async fn run(command: ConsumersCommand) -> Exit {
    let done = match command {
        ConsumersCommand::Ls { json, address } => list(&address, json).await,
        ConsumersCommand::Show(which) => show(&which).await,
        ConsumersCommand::Pause(which) => tell(&which, "pause").await,
        ConsumersCommand::Resume(which) => tell(&which, "resume").await,
        ConsumersCommand::Rewind { which, to } => tell(&which, &format!("rewind?to={}", escape(&to))).await,
        ConsumersCommand::Skip { which, to } => tell(&which, &format!("skip?to={}", escape(&to))).await,
        ConsumersCommand::Dead(command) => dead(command).await,
    };
    done.map_or_else(|error| fail(&error), |()| Exit::Done)
}

fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) => plain(text),
        Some(Value::Number(number)) if number.is_u64() => grouped(number.as_u64().unwrap_or(0)),
        Some(Value::Number(number)) => format!("{:.1}", number.as_f64().unwrap_or(0.0)),
        _ => "-".to_owned(),
    }
}

const COLUMNS: [(&str, &str, Align); 10] = [
    ("name", "name", Align::Left),
    ("kind", "kind", Align::Left),
    ("state", "state", Align::Left),
    ("breaker", "breaker", Align::Left),
    ("behind", "lag_records", Align::Right),
    ("seconds", "lag_seconds", Align::Right),
    ("delivered", "delivered", Align::Right),
    ("skipped", "skipped", Align::Right),
    ("dead", "dead", Align::Right),
    ("last error", "last_error", Align::Left),
];

fn rows_of(consumers: &[Value]) -> String {
    let rows: Vec<Vec<String>> =
        consumers.iter().map(|one| COLUMNS.iter().map(|(_, name, _)| text(one, name)).collect()).collect();
    table(&COLUMNS.map(|(heading, _, align)| (heading, align)), &rows)
}

async fn list(address: &ServerAddress, json: bool) -> Result<(), ClientError> {
    let answer = Client::new(address)?.get("/api/consumers").await?;
    if json {
        print(&format!("{answer:#}\n"));
        return Ok(());
    }
    let none = Vec::new();
    print(&rows_of(answer.get("consumers").and_then(Value::as_array).unwrap_or(&none)));
    Ok(())
}

async fn show(which: &Which) -> Result<(), ClientError> {
    let answer = Client::new(&which.address)?.get(&which.path()).await?;
    print(&format!("{answer:#}\n"));
    Ok(())
}

async fn tell(which: &Which, what: &str) -> Result<(), ClientError> {
    let answer = Client::new(&which.address)?.post(&format!("{}/{what}", which.path())).await?;
    print(&rows_of(&[answer]));
    Ok(())
}

async fn dead(command: DeadCommand) -> Result<(), ClientError> {
    let query = |key: Option<String>| key.map(|key| format!("?key={}", escape(&key))).unwrap_or_default();
    match command {
        DeadCommand::Ls { which, json } => {
            let answer = Client::new(&which.address)?.get(&format!("{}/dead", which.path())).await?;
            if json {
                print(&format!("{answer:#}\n"));
                return Ok(());
            }
            let columns = [("key", "key"), ("stream", "stream"), ("attempts", "attempts"), ("reason", "reason")];
            let none = Vec::new();
            let records = answer.get("dead").and_then(Value::as_array).unwrap_or(&none);
            let rows: Vec<Vec<String>> =
                records.iter().map(|one| columns.iter().map(|(_, name)| text(one, name)).collect()).collect();
            print(&table(&columns.map(|(heading, _)| (heading, Align::Left)), &rows));
        }
        DeadCommand::Replay { which, key } => {
            let path = format!("{}/dead/replay{}", which.path(), query(key));
            let answer = Client::new(&which.address)?.post(&path).await?;
            let (delivered, refused) = (text(&answer, "delivered"), text(&answer, "refused"));
            print(&format!("{delivered} delivered, {refused} refused again: {}\n", text(&answer, "last_reason")));
        }
        DeadCommand::Purge { which, key } => {
            let path = format!("{}/dead{}", which.path(), query(key));
            let answer = Client::new(&which.address)?.delete(&path).await?;
            print(&format!("{} removed\n", text(&answer, "removed")));
        }
    }
    Ok(())
}
