//! What the demo shows while it runs: one line that is drawn over itself, or plain lines where nothing can be drawn.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::load::Counts;
use crate::cli::client::Client;
use crate::cli::output::{self, bytes, grouped, note};

/// Draws the counts.
#[derive(Debug, Clone)]
pub(super) struct Display {
    bar: Option<ProgressBar>,
}

impl Display {
    pub(super) fn new() -> Self {
        let bar = output::draws().then(|| {
            let style =
                ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar }
    }

    /// A line that stays.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => note(text),
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Shows the counts until it is stopped.
    pub(super) async fn run(self, counts: Arc<Counts>, http: Client) {
        let every = Duration::from_millis(if self.bar.is_some() { 250 } else { 1_000 });
        let (mut before, mut at) = (0, Instant::now());
        loop {
            tokio::time::sleep(every).await;
            let acknowledged = counts.acknowledged();
            let rate = acknowledged.saturating_sub(before) as f64 / at.elapsed().as_secs_f64().max(0.001);
            (before, at) = (acknowledged, Instant::now());
            let (p50, p99) = counts.latency_ms().unwrap_or((0.0, 0.0));
            let status = tokio::time::timeout(every, http.get("/api/status")).await.ok().and_then(Result::ok);
            let line = format!(
                "sent {:>9}   acknowledged {:>9} ({:>7}/s)   ack p50 {p50:.1} ms, p99 {p99:.1} ms   {}",
                grouped(counts.sent.load(Ordering::Relaxed)),
                grouped(acknowledged),
                grouped(rate as u64),
                status.as_ref().map_or_else(|| "server away".to_owned(), server_part)
            );
            match &self.bar {
                Some(bar) => bar.set_message(line),
                None => note(&line),
            }
        }
    }
}

fn server_part(status: &Value) -> String {
    let sum = |name: &str| -> u64 {
        status
            .get("streams")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|s| s.get(name)?.as_u64())
            .sum()
    };
    let wal = status.pointer("/wal/bytes").and_then(Value::as_u64).unwrap_or(0);
    let in_lake = sum("accepted").saturating_sub(sum("memtable_records"));
    format!("wal {}, in lake {}", bytes(wal), grouped(in_lake))
}
