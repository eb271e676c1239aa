//! What has to be done now and then while the server runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::http::App;

/// Samples of histograms gather until somebody takes them; without a scraper nobody would.
const FIGURES_EVERY: Duration = Duration::from_secs(5);

/// Files whose time has come are removed this often.
const TABLES_EVERY: Duration = Duration::from_secs(60);

/// Runs until it is aborted.
pub(super) async fn run(app: Arc<App>) {
    let mut figures = tokio::time::interval(FIGURES_EVERY);
    let mut tables = tokio::time::interval_at(tokio::time::Instant::now() + TABLES_EVERY, TABLES_EVERY);
    tables.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = figures.tick() => app.metrics.run_upkeep(),
            _ = tables.tick() => maintain_tables(&app).await,
        }
    }
}

/// Looks after the tables that this server writes.
async fn maintain_tables(app: &App) {
    let tables: BTreeSet<_> = app.gate.status(None, None).streams.into_iter().map(|s| s.table).collect();
    for name in tables {
        let done = match app.lake.find_table(&name).await {
            Ok(Some(table)) => app
                .lake
                .maintain(&table)
                .await
                .map(|outcome| tracing::debug!(table = %name, ?outcome, "a table was maintained")),
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            tracing::warn!(table = %name, error = %e, "a table could not be maintained; it is tried again in a minute");
        }
    }
}
