//! `lakegate sql`: one query over memtables and lake.

use std::io::{Cursor, IsTerminal, Read};

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use clap::{Args, ValueEnum};

use super::client::{Client, ClientError, ServerAddress};
use super::exit::Exit;
use super::output::{grouped, note, plain, print};
use super::status::fail;

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// With lines, for people
    Table,
    /// One JSON object a line
    Json,
    /// With a line of headings
    Csv,
}

/// What to ask.
#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    /// The query; read from the standard input when it is `-` or not given
    query: Option<String>,
    /// How rows are printed
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    address: ServerAddress,
}

pub(crate) async fn run(args: SqlArgs) -> Exit {
    let query = match args.query.as_deref() {
        None | Some("-") => match read_stdin() {
            Ok(query) => query,
            Err(exit) => return exit,
        },
        Some(query) => query.to_owned(),
    };
    match ask(&args.address, &query, args.output).await {
        Ok(()) => Exit::Done,
        Err(e) => fail(&e),
    }
}

fn read_stdin() -> Result<String, Exit> {
    if std::io::stdin().is_terminal() {
        note("type a query and end it with Ctrl-D");
    }
    let mut query = String::new();
    std::io::stdin().lock().read_to_string(&mut query).map_err(|e| {
        note(&format!("error: the query could not be read: {e}"));
        Exit::Failure
    })?;
    Ok(query)
}

async fn ask(address: &ServerAddress, query: &str, output: Output) -> Result<(), ClientError> {
    let batches = fetch(&Client::new(address)?, query).await?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    print(&render(&batches, output)?);
    if output == Output::Table {
        note(&format!("{} row{}", grouped(rows as u64), if rows == 1 { "" } else { "s" }));
    }
    Ok(())
}

/// Runs a query and reads all of its rows; the server bounds how many there can be.
pub(crate) async fn fetch(client: &Client, query: &str) -> Result<Vec<RecordBatch>, ClientError> {
    let unreadable = |e: &dyn std::fmt::Display| ClientError::Unreadable(e.to_string());
    let response = client.sql(query, "application/vnd.apache.arrow.stream").await?;
    let body = response.bytes().await.map_err(|e| unreadable(&e))?;
    let reader = StreamReader::try_new(Cursor::new(body), None).map_err(|e| unreadable(&e))?;
    let schema = reader.schema();
    let mut batches = reader.collect::<Result<Vec<_>, _>>().map_err(|e| unreadable(&e))?;
    if batches.is_empty() {
        batches.push(RecordBatch::new_empty(schema));
    }
    Ok(batches)
}

/// The rows as text.
pub(crate) fn render(batches: &[RecordBatch], output: Output) -> Result<String, ClientError> {
    let unreadable = |e: arrow::error::ArrowError| ClientError::Unreadable(e.to_string());
    match output {
        Output::Table => {
            let table = arrow::util::pretty::pretty_format_batches(batches).map_err(unreadable)?.to_string();
            // A value may hold control characters; a terminal must not obey them.
            Ok(table.lines().map(plain).collect::<Vec<_>>().join("\n") + "\n")
        }
        Output::Json => {
            let mut text = Vec::new();
            let mut writer = arrow::json::WriterBuilder::new()
                .with_explicit_nulls(true)
                .build::<_, arrow::json::writer::LineDelimited>(&mut text);
            for batch in batches {
                writer.write(batch).map_err(unreadable)?;
            }
            writer.finish().map_err(unreadable)?;
            drop(writer);
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        Output::Csv => {
            let mut text = Vec::new();
            let mut writer = arrow::csv::WriterBuilder::new().with_header(true).build(&mut text);
            for batch in batches {
                writer.write(batch).map_err(unreadable)?;
            }
            drop(writer);
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
    }
}
