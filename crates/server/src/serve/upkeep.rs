//! What has to be done now and then while the server runs.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;

/// Samples of histograms gather until somebody takes them; without a scraper nobody would.
const FIGURES_EVERY: Duration = Duration::from_secs(5);

/// Runs until it is aborted.
pub(super) async fn run(figures: PrometheusHandle) {
    let mut every = tokio::time::interval(FIGURES_EVERY);
    loop {
        every.tick().await;
        figures.run_upkeep();
    }
}
