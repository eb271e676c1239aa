//! `lakegate schema`: what a configuration would do to the tables, and what was done to them before.
//!
//! Showing reads the data folder alone; the server may run. A change takes hold when the server starts with the configuration:
//! each table gets it in the commit of the first rows that need it. Applying brings it to the tables before: it works in the
//! data folder itself, and refuses to while a server has it, or while something cannot be.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use lakegate_env::RealDisk;
use lakegate_ingest::Gate;
use lakegate_model::{Column, Contract, Growth};

use super::exit::Exit;
use super::output::{Align, note, print, table};
use crate::config::{Config, Flags};
use crate::http::rfc3339;
use crate::serve;

/// `lakegate schema …`
#[derive(Debug, Subcommand)]
pub(crate) enum SchemaCommand {
    /// Show what the configuration would change of the tables that are there
    #[command(
        long_about = "Show what the configuration would change of the tables that are there: `+` a new column, `~` a \
                      wider or optional one, `-` one that rows no longer fill, `!` what cannot be. Exits with 1 where \
                      something cannot be, and with --check also where anything changes.",
        after_help = "Example:\n  lakegate schema plan --config lakegate.json --check"
    )]
    Plan(PlanArgs),
    /// Make the changes to the tables now, rather than with their first rows
    #[command(
        long_about = "Show what the configuration would change of the tables that are there, and make the changes. Works in \
                      the data folder itself, so that no server may run on it. Changes nothing where something cannot be, \
                      and nothing before the changes were agreed to: at the terminal, or by --yes.",
        after_help = "Example:\n  lakegate schema apply --config lakegate.json --yes"
    )]
    Apply(ApplyArgs),
    /// List the versions of each table's contract
    #[command(after_help = "Example:\n  lakegate schema history --config lakegate.json --table shop.orders")]
    History(HistoryArgs),
}

/// What to compare.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The configuration file
    #[arg(long, env = "LAKEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Exit with 1 where anything changes
    #[arg(long)]
    check: bool,
}

/// What to make.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// The configuration file
    #[arg(long, env = "LAKEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The configuration file
    #[arg(long, env = "LAKEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Only this table
    #[arg(long)]
    table: Option<String>,
}

pub(crate) async fn run(command: SchemaCommand) -> Exit {
    let file = match &command {
        SchemaCommand::Plan(args) => args.config.as_deref(),
        SchemaCommand::Apply(args) => args.config.as_deref(),
        SchemaCommand::History(args) => args.config.as_deref(),
    };
    let config = match super::config::load(file, Flags::default()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let tables = match lakegate_ingest::read_growth(&RealDisk, &config.data_dir()) {
        Ok(tables) => tables,
        Err(error) => {
            note(&error.to_string());
            return Exit::Failure;
        }
    };
    match command {
        SchemaCommand::Plan(args) => plan(&config, &tables, args.check),
        SchemaCommand::Apply(args) => apply(&config, &tables, args.yes).await,
        SchemaCommand::History(args) => history(&tables, args.table.as_deref()),
    }
}

/// Shows all changes; how many they are, and how many of them cannot be.
fn show(config: &Config, tables: &BTreeMap<String, Growth>) -> (usize, usize) {
    let (mut changes, mut impossible) = (0, 0);
    for (name, growth) in tables {
        for line in plan_table(config, name, growth) {
            impossible += usize::from(line.starts_with("  !"));
            changes += usize::from(line.starts_with("  "));
            print(&format!("{line}\n"));
        }
    }
    (changes, impossible)
}

async fn apply(config: &Config, tables: &BTreeMap<String, Growth>, yes: bool) -> Exit {
    match show(config, tables) {
        (0, _) => {
            note("nothing changes");
            return Exit::Done;
        }
        (changes, 0) if yes || agreed(changes) => {}
        (changes, 0) => {
            note(&format!("{changes} to change; nothing was, for nobody agreed: use --yes where nobody can be asked"));
            return Exit::Failure;
        }
        (changes, impossible) => {
            note(&format!("nothing was changed: of {changes} to change {impossible} cannot be"));
            return Exit::Failure;
        }
    }
    let applied = serve::with_gate(config, async |gate: &Gate, _| gate.apply_contracts().await).await;
    match applied {
        Ok(Ok(tables)) => {
            for (table, changed) in tables {
                note(&format!("{table}: {}", if changed { "changed" } else { "has all of it" }));
            }
            Exit::Done
        }
        Ok(Err(error)) => {
            note(&format!("error: {error}"));
            Exit::Failure
        }
        Err(error) => {
            note(&format!("error: {error}"));
            Exit::Temporary
        }
    }
}

/// Asks at the terminal, if there is one.
fn agreed(changes: usize) -> bool {
    if !std::io::stdin().is_terminal() {
        return false;
    }
    note(&format!("make these {changes} changes? (yes/no)"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && answer.trim() == "yes"
}

fn plan(config: &Config, tables: &BTreeMap<String, Growth>, check: bool) -> Exit {
    let (changes, impossible) = show(config, tables);
    let said = match (changes, impossible) {
        (0, _) => "nothing changes".to_owned(),
        (changes, 0) => format!(
            "{changes} to change; it takes hold when the server starts with this configuration, or now by `lakegate schema apply`"
        ),
        (changes, impossible) => format!("{changes} to change, of which {impossible} cannot be"),
    };
    note(&said);
    if impossible > 0 || (check && changes > 0) { Exit::Failure } else { Exit::Done }
}

/// The table's name and its changes; nothing where there are none.
fn plan_table(config: &Config, name: &str, growth: &Growth) -> Vec<String> {
    let mut lines = Vec::new();
    let newest: BTreeMap<&str, &str> =
        growth.versions.iter().map(|version| (version.stream.as_str(), version.fingerprint.as_str())).collect();
    for (stream, fingerprint) in newest {
        let stream = stream.split_once('.').map_or(stream, |(_, stream)| stream);
        let Some((_, declared)) = config.streams.iter().find(|(name, _)| name.as_str() == stream) else { continue };
        let before = match read_contract(&config.data_dir(), fingerprint) {
            Ok(before) => before,
            Err(error) => {
                lines.push(format!("  ! {stream}: {error}"));
                continue;
            }
        };
        let mut after = Contract { part: before.part.clone(), ..declared.clone() };
        after.add_policy_columns();
        lines.extend(compare(&before, &after.grown(growth)));
    }
    if !lines.is_empty() {
        lines.insert(0, name.to_owned());
    }
    lines
}

fn read_contract(data_dir: &Path, fingerprint: &str) -> Result<Contract, String> {
    let path = data_dir.join("contracts").join(format!("{fingerprint}.json"));
    let json = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&json).map_err(|error| format!("{}: {error}", path.display()))
}

fn compare(before: &Contract, after: &Contract) -> Vec<String> {
    let mut lines = Vec::new();
    for column in &after.columns {
        match before.column(&column.name) {
            None => lines.push(format!("  + {} {}", column.name, column.column_type.name())),
            Some(old) => lines.extend(compare_column(old, column)),
        }
    }
    for column in before.columns.iter().filter(|column| after.column(&column.name).is_none()) {
        lines.push(format!("  - {} {} stays in the table, null in new rows", column.name, column.column_type.name()));
    }
    if before.partitions != after.partitions {
        lines.push("  ! partitions: a table keeps those that it was made with".to_owned());
    }
    lines
}

fn compare_column(old: &Column, new: &Column) -> Option<String> {
    let (name, from, to) = (&new.name, old.column_type, new.column_type);
    if from != to && !from.is_wider(to) {
        let (from, to) = (from.name(), to.name());
        return Some(format!("  ! {name} {from} cannot become {to}; use another name, or {from}"));
    }
    match (from != to, old.required && !new.required) {
        (false, false) => None,
        (false, true) => Some(format!("  ~ {name} {} becomes optional", to.name())),
        (true, _) => Some(format!("  ~ {name} {} becomes {}", from.name(), to.name())),
    }
}

fn history(tables: &BTreeMap<String, Growth>, only: Option<&str>) -> Exit {
    let mut rows = Vec::new();
    for (name, growth) in tables.iter().filter(|(name, _)| only.is_none_or(|only| only == name.as_str())) {
        for version in &growth.versions {
            let changes = if version.changes.is_empty() { "declared".to_owned() } else { version.changes.join(", ") };
            let stream = version.stream.clone();
            rows.push(vec![name.clone(), stream, rfc3339(version.since_us), version.fingerprint.clone(), changes]);
        }
    }
    if rows.is_empty() {
        note("no versions are kept; a declared stream has its first one with its first record");
        return if only.is_some() { Exit::Failure } else { Exit::Done };
    }
    let headings = ["TABLE", "STREAM", "SINCE", "CONTRACT", "CHANGES"].map(|heading| (heading, Align::Left));
    print(&table(&headings, &rows));
    Exit::Done
}

#[cfg(test)]
mod tests {
    use lakegate_model::ColumnType;

    use super::*;

    #[test]
    fn a_plan_tells_what_is_added_what_widens_and_what_cannot_be() {
        let contract = |columns: &[(&str, ColumnType)]| Contract {
            columns: columns.iter().map(|(name, column_type)| Column::at(name, *column_type, &[name], false)).collect(),
            partitions: Vec::new(),
            sort: Vec::new(),
            ..Contract::undeclared_default()
        };
        use ColumnType::{Int, Long, String};
        let before = contract(&[("a", Int), ("b", Int), ("gone", Long), ("same", Long)]);
        let after = contract(&[("a", Long), ("b", String), ("same", Long), ("new", String)]);
        assert_eq!(
            compare(&before, &after),
            [
                "  ~ a int becomes long",
                "  ! b int cannot become string; use another name, or int",
                "  + new string",
                "  - gone long stays in the table, null in new rows",
            ]
        );
        assert!(compare(&before, &before).is_empty());
    }
}
