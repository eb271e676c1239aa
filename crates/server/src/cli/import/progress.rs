//! How far an import is: a bar on a terminal, a line now and then elsewhere, a table at the end.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::cli::exit::Exit;
use crate::cli::output::{bytes, draws, grouped, note, plain, print};

/// How often a line is written where nothing can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// The most problems that are printed.
const PROBLEMS_SHOWN: usize = 10;

/// What is shown of one job.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = draws().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {msg}");
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, said: Instant::now() }
    }

    /// Shows a job that runs.
    pub(super) fn show(&mut self, view: &Value) {
        let left =
            view.get("eta").and_then(Value::as_f64).map_or_else(String::new, |s| format!(", {} left", period(s)));
        let line = format!(
            "{} of {} files, {} rows, {} rows/s{left}",
            grouped(number(view, "files")),
            grouped(number(view, "files_total")),
            grouped(number(view, "documents")),
            grouped(rate(view)),
        );
        match &self.bar {
            Some(bar) => {
                bar.set_length(number(view, "bytes_total"));
                bar.set_position(number(view, "bytes"));
                bar.set_message(line);
            }
            None if self.said.elapsed() >= LINE_EVERY => {
                self.said = Instant::now();
                note(&line);
            }
            None => {}
        }
    }

    /// Shows how a job ended.
    pub(super) fn end(self, view: &Value) -> Exit {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        let text = |name: &str| view.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let list = |name: &str| view.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
        let streams: Vec<String> = list("streams").iter().filter_map(Value::as_str).map(plain).collect();
        let elapsed = view.get("elapsed").and_then(Value::as_f64).unwrap_or_default();
        let rows = [
            ("state", text("state")),
            ("files", grouped(number(view, "files"))),
            ("  imported before", grouped(number(view, "files_unchanged"))),
            ("  taken as is", grouped(number(view, "files_adopted"))),
            ("  not read whole", grouped(number(view, "files_failed"))),
            ("rows", grouped(number(view, "documents"))),
            ("  duplicates", grouped(number(view, "duplicates"))),
            ("  set aside", grouped(number(view, "skipped"))),
            ("bytes", bytes(number(view, "bytes"))),
            ("time", period(elapsed)),
            ("rows/s", grouped(rate(view))),
            ("streams", streams.join(", ")),
        ];
        let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:<18} {value}\n")).collect();
        print(&lines.concat());
        for choice in list("choices").iter().take(PROBLEMS_SHOWN) {
            let part = |name: &str| choice.get(name).and_then(Value::as_str).map(plain).unwrap_or_default();
            let adopted = choice.get("adopted").and_then(Value::as_bool).unwrap_or_default();
            let how = if adopted { "taken as it is" } else { "written anew" };
            note(&format!("{}: {how}: {}", part("file"), part("reason")));
        }
        let problems = list("errors");
        for problem in problems.iter().take(PROBLEMS_SHOWN) {
            let part = |name: &str| problem.get(name).and_then(Value::as_str).map(plain).unwrap_or_default();
            let row = problem.get("row").and_then(Value::as_u64).map_or_else(String::new, |row| format!(" row {row}"));
            note(&format!("{}{row}: {}", part("file"), part("reason")));
        }
        if problems.len() > PROBLEMS_SHOWN {
            note(&format!("and {} more", problems.len() - PROBLEMS_SHOWN));
        }
        if text("state") == "done" { Exit::Done } else { Exit::Failure }
    }
}

fn number(view: &Value, name: &str) -> u64 {
    view.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn rate(view: &Value) -> u64 {
    let rate = view.get("rate").and_then(Value::as_f64).unwrap_or(0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, to be read by people")]
    let rate = rate.max(0.0) as u64;
    rate
}

/// Seconds for people: `3.2 s`, `4 min 10 s`, `2 h 5 min`.
fn period(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time, to be read by people")]
    let whole = seconds as u64;
    if whole < 3600 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{} h {} min", whole / 3600, whole / 60 % 60)
    }
}
