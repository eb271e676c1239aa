//! `lakegate audit`: does everything that came in add up to what is there?

use clap::Args;
use serde_json::Value;

use super::client::{Client, ServerAddress};
use super::exit::Exit;
use super::output::{Align, grouped, note, plain, print, table};
use super::status::fail;

/// What to audit.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    address: ServerAddress,
    /// The answer as it came
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: AuditArgs) -> Exit {
    let answer = match Client::new(&args.address) {
        Ok(client) => client.get("/api/audit").await,
        Err(e) => Err(e),
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(e) => return fail(&e),
    };
    print(&if args.json { format!("{answer}\n") } else { render(&answer) });
    match answer.get("closes").and_then(Value::as_bool) {
        Some(true) => {
            note(
                "the balance closes: received = in the lake + removed + in memory and log + duplicate + dead-lettered + rejected",
            );
            Exit::Done
        }
        _ => {
            note("the balance does NOT close; see the column \"finding\"");
            Exit::Failure
        }
    }
}

fn render(answer: &Value) -> String {
    let rows = |name: &str| answer.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |v: &Value, name: &str| v.get(name).and_then(Value::as_str).map(plain).unwrap_or_default();
    let count = |v: &Value, name: &str| v.get(name).and_then(Value::as_u64).map_or_else(|| "?".into(), grouped);
    let headings = [
        ("stream", Align::Left),
        ("received", Align::Right),
        ("accepted", Align::Right),
        ("duplicate", Align::Right),
        ("dead-lettered", Align::Right),
        ("rejected", Align::Right),
        ("finding", Align::Left),
    ];
    let streams: Vec<Vec<String>> = rows("streams")
        .iter()
        .map(|s| {
            let name = format!("{}.{}", text(s, "tenant"), text(s, "stream"));
            let counts = ["received", "accepted", "duplicate", "dead_lettered", "rejected"].map(|n| count(s, n));
            [name].into_iter().chain(counts).chain([text(s, "finding")]).collect()
        })
        .collect();
    let table_headings = [
        ("table", Align::Left),
        ("accepted", Align::Right),
        ("in the lake", Align::Right),
        ("removed", Align::Right),
        ("in memory and log", Align::Right),
        ("finding", Align::Left),
    ];
    let tables: Vec<Vec<String>> = rows("tables")
        .iter()
        .map(|t| {
            let counts = ["accepted", "in_lake", "removed", "in_memory"].map(|n| count(t, n));
            [text(t, "table")].into_iter().chain(counts).chain([text(t, "finding")]).collect()
        })
        .collect();
    format!("{}\n{}", table(&headings, &streams), table(&table_headings, &tables))
}
