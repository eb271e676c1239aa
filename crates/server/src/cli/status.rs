//! `lakegate status`: what a running server has taken, and how far the lake is behind.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::{Client, ClientError, ServerAddress};
use super::exit::Exit;
use super::output::{self, Align, bytes, grouped, note, plain, print, table};

/// What to show.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    address: ServerAddress,
    /// Again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// The answer as it came
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: StatusArgs) -> Exit {
    let client = match Client::new(&args.address) {
        Ok(client) => client,
        Err(e) => return fail(&e),
    };
    loop {
        match client.get("/api/status").await {
            Ok(status) if args.json => print(&format!("{status}\n")),
            Ok(status) => {
                let clear = if args.watch && output::draws() { "\x1b[2J\x1b[H" } else { "" };
                print(&format!("{clear}{}", render(&status)));
            }
            Err(e) if !args.watch => return fail(&e),
            Err(e) => note(&e.to_string()),
        }
        if !args.watch {
            return Exit::Done;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Says why, and ends with the code that fits.
pub(crate) fn fail(error: &ClientError) -> Exit {
    note(&format!("error: {error}"));
    error.exit()
}

fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("-")
}

fn render(status: &Value) -> String {
    let mut out = format!(
        "{} {}, up {} s, {}\n",
        plain(text(status, "/node")),
        text(status, "/version"),
        number(status, "/uptime_seconds"),
        text(status, "/health")
    );
    if status.pointer("/wal/enabled").and_then(Value::as_bool) == Some(false) {
        out += "WARNING: storage.wal_enabled is false: what is acknowledged is lost when the server dies\n";
    }
    out += &format!(
        "wal    {} in {} segments of {} allowed, durable up to {}\n",
        bytes(number(status, "/wal/bytes")),
        number(status, "/wal/segments"),
        bytes(number(status, "/wal/quota_bytes")),
        grouped(number(status, "/wal/durable_offset"))
    );
    out += &format!(
        "memory {} of {} allowed\n\n",
        bytes(number(status, "/memory/memtable_bytes")),
        bytes(number(status, "/memory/budget_bytes"))
    );
    let streams = status.get("streams").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if streams.is_empty() {
        return out + "no records yet\n";
    }
    let headings = [
        ("stream", Align::Left),
        ("table", Align::Left),
        ("accepted", Align::Right),
        ("/s", Align::Right),
        ("duplicate", Align::Right),
        ("rejected", Align::Right),
        ("dead", Align::Right),
        ("in memory", Align::Right),
        ("lag", Align::Right),
        ("committed", Align::Right),
        ("", Align::Left),
    ];
    out + &table(&headings, &streams.iter().map(row).collect::<Vec<_>>())
}

fn row(stream: &Value) -> Vec<String> {
    let count = |path: &str| grouped(number(stream, path));
    let seconds = |path: &str| stream.pointer(path).and_then(Value::as_f64);
    vec![
        plain(&format!("{}.{}", text(stream, "/tenant"), text(stream, "/stream"))),
        plain(text(stream, "/table")),
        count("/accepted"),
        seconds("/rate_1m").map_or_else(|| "-".into(), |r| format!("{r:.0}")),
        count("/duplicates"),
        count("/rejected"),
        count("/dead_lettered"),
        count("/memtable_records"),
        seconds("/lag_seconds").map_or_else(|| "-".into(), |s| format!("{s:.1} s")),
        seconds("/seconds_since_commit").map_or_else(|| "never".into(), |s| format!("{s:.0} s ago")),
        stream.get("last_error").and_then(Value::as_str).map(plain).unwrap_or_default(),
    ]
}
