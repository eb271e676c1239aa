//! Reads files whole and says how fast: `read_speed FILE…`. Rows by table, bad rows, nanoseconds a row, megabytes a second.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the command line")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lakegate_formats::{BytesInput, ReadError, ReadOptions, open};

fn read(path: &str) -> Result<(), ReadError> {
    let bytes = std::fs::read(path).map_err(|source| ReadError::Io {
        name: path.to_owned(),
        place: "file".to_owned(),
        source,
    })?;
    let len = bytes.len();
    let begun = Instant::now();
    let mut reader = open(Arc::new(BytesInput::new(path, bytes)), &ReadOptions::default(), None)?;
    let (mut rows, mut bad, mut tables) = (0, 0, BTreeMap::new());
    let mut first_bad = None;
    while let Some(piece) = reader.next()? {
        rows += piece.rows.len();
        bad += piece.bad.len();
        if first_bad.is_none() {
            first_bad = piece.bad.into_iter().next();
        }
        let table = piece.table.map(|t| t.name).or(piece.member).unwrap_or_default();
        *tables.entry(table).or_insert(0) += piece.rows.len();
    }
    let seconds = begun.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let (row, megabytes) = (seconds * 1e9 / rows.max(1) as f64, len as f64 / 1e6 / seconds);
    println!("{path}: {rows} rows, {bad} bad, {row:.0} ns/row, {megabytes:.0} MB/s {tables:?}");
    if let Some(bad) = first_bad {
        println!("  first bad: row {} {:?} {}", bad.row, bad.field, bad.reason);
    }
    println!("  {:?} passed over {:?}", reader.schema().map(|s| s.to_string()), reader.passed_over());
    Ok(())
}

fn main() {
    for path in std::env::args().skip(1) {
        if let Err(e) = read(&path) {
            println!("{e}");
        }
    }
}
