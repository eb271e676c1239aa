//! `lakegate wal`: looks into a write-ahead log on disk. Works beside a running server; only `set-aside` changes
//! anything, and wants the server stopped.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use lakegate_env::RealDisk;
use lakegate_log::OpenError;
use lakegate_log::inspect::{self, DumpedFrame, LogListing, VerifyReport};
use serde_json::json;

use super::config::load;
use super::exit::Exit;
use super::output::{Align, bytes, grouped, note, print, table};
use crate::config::Flags;

/// `lakegate wal …`
#[derive(Debug, Subcommand)]
pub(crate) enum WalCommand {
    /// List the segments
    #[command(after_help = "Examples:\n  lakegate wal ls\n  lakegate wal ls --dir /srv/lakegate/wal")]
    Ls {
        #[command(flatten)]
        place: Place,
    },
    /// Read and check every frame; exits with 1 where one is damaged
    #[command(after_help = "Example:\n  lakegate wal verify")]
    Verify {
        #[command(flatten)]
        place: Place,
    },
    /// Print frames, one JSON object a line
    #[command(
        after_help = "Examples:\n  lakegate wal dump --limit 10\n  lakegate wal dump --from 120000 --limit 1 --payload"
    )]
    Dump {
        #[command(flatten)]
        place: Place,
        /// The offset to begin at
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// The most frames
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// What the frames hold too, printable characters as they are, other bytes as \xNN
        #[arg(long)]
        payload: bool,
    },
    /// Give up a damaged segment, so that the server starts again; the file is kept beside the log
    #[command(after_help = "Example:\n  lakegate wal set-aside --segment 12 --yes")]
    SetAside {
        #[command(flatten)]
        place: Place,
        /// The segment's number, as `wal ls` shows it
        #[arg(long)]
        segment: u64,
        /// Yes, the records in it are to be given up
        #[arg(long)]
        yes: bool,
    },
}

/// Which log.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The folder of the log; without it, the one of the configuration
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The configuration file
    #[arg(long, env = "LAKEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

impl Place {
    fn find(self) -> Result<PathBuf, Exit> {
        match self.dir {
            Some(dir) => Ok(dir),
            None => load(self.config.as_deref(), Flags::default()).map(|config| config.wal_dir()),
        }
    }
}

pub(crate) fn run(command: WalCommand) -> Exit {
    let disk = RealDisk;
    let done = match command {
        WalCommand::Ls { place } => place.find().and_then(|dir| answer(inspect::list(&disk, &dir), |l| list_text(&l))),
        WalCommand::Verify { place } => {
            place.find().and_then(|dir| answer(inspect::verify(&disk, &dir), |r| verify_text(&r)))
        }
        WalCommand::Dump { place, from, limit, payload } => {
            place.find().and_then(|dir| dump(&disk, &dir, from, limit, payload))
        }
        WalCommand::SetAside { place, segment, yes } => {
            place.find().and_then(|dir| set_aside(&disk, &dir, segment, yes))
        }
    };
    match done {
        Ok(()) => Exit::Done,
        Err(exit) => exit,
    }
}

fn answer<T>(found: Result<T, OpenError>, text: impl FnOnce(T) -> String) -> Result<(), Exit> {
    print(&text(found.map_err(|e| fail(&e))?));
    Ok(())
}

fn fail(error: &dyn std::fmt::Display) -> Exit {
    note(&format!("error: {error}"));
    Exit::Failure
}

fn list_text(log: &LogListing) -> String {
    let rows: Vec<Vec<String>> = log
        .segments
        .iter()
        .map(|s| {
            let state = match (&s.problem, s.is_trimmed) {
                (Some(problem), _) => problem.clone(),
                (None, true) => "trimmed".to_owned(),
                (None, false) => String::new(),
            };
            let first = s.first_offset.map_or_else(|| "-".to_owned(), grouped);
            vec![s.segment.to_string(), first, bytes(s.bytes), s.file.display().to_string(), state]
        })
        .collect();
    let spare_bytes = log.spares.iter().map(|(_, bytes)| bytes).sum();
    format!(
        "log {}, opening {}{}\nfrom offset {}, synced up to {}; {} spare files of {}\n\n{}",
        log.id,
        log.epoch,
        if log.in_use { ", in use" } else { "" },
        grouped(log.first_offset),
        grouped(log.synced_offset),
        log.spares.len(),
        bytes(spare_bytes),
        table(
            &[
                ("segment", Align::Right),
                ("first offset", Align::Right),
                ("size", Align::Right),
                ("file", Align::Left),
                ("", Align::Left)
            ],
            &rows
        )
    )
}

fn verify_text(report: &VerifyReport) -> String {
    let rows: Vec<Vec<String>> = report
        .segments
        .iter()
        .map(|s| {
            vec![
                s.segment.to_string(),
                grouped(s.first_offset),
                grouped(s.next_offset),
                grouped(s.frames),
                s.file.display().to_string(),
            ]
        })
        .collect();
    format!(
        "{}\nlog {}: every frame is whole up to offset {}{}\n",
        table(
            &[
                ("segment", Align::Right),
                ("from", Align::Right),
                ("up to", Align::Right),
                ("frames", Align::Right),
                ("file", Align::Left)
            ],
            &rows
        ),
        report.id,
        grouped(report.next_offset),
        if report.in_use { " (in use: only what was synced was looked at)" } else { "" }
    )
}

fn dump(disk: &RealDisk, dir: &std::path::Path, from: u64, limit: usize, payload: bool) -> Result<(), Exit> {
    let (frames, damage) = inspect::dump(disk, dir, from, limit).map_err(|e| fail(&e))?;
    print(&frames.iter().map(|frame| frame_line(frame, payload)).collect::<String>());
    match damage {
        Some(damage) => Err(fail(&format!(
            "{} is damaged at byte {}: {}; `lakegate wal verify` says what can be done",
            damage.file.display(),
            damage.position,
            damage.found
        ))),
        None => Ok(()),
    }
}

fn frame_line(frame: &DumpedFrame, payload: bool) -> String {
    let mut line = json!({
        "segment": frame.segment,
        "position": frame.position,
        "epoch": frame.epoch,
        "first_offset": frame.first_offset,
        "records": frame.records,
        "durable_offset": frame.durable_offset,
        "gap": frame.is_gap,
        "payload_bytes": frame.payload.len(),
    });
    if let (true, Some(members)) = (payload, line.as_object_mut()) {
        members.insert("payload".into(), frame.payload.escape_ascii().to_string().into());
    }
    format!("{line}\n")
}

fn set_aside(disk: &RealDisk, dir: &std::path::Path, segment: u64, yes: bool) -> Result<(), Exit> {
    if !yes {
        note("the records of this segment would be lost; say --yes if that is what you want");
        return Err(Exit::Failure);
    }
    let outcome = inspect::set_aside(disk, dir, segment).map_err(|e| fail(&e))?;
    for lost in &outcome.lost {
        note(&format!("given up: the records from offset {} up to {}", grouped(lost.start), grouped(lost.end)));
    }
    match outcome.kept_as {
        Some(file) => note(&format!("the damaged file is kept as {}", file.display())),
        None => note("there was no file to keep"),
    }
    Ok(())
}
