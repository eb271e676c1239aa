//! Figures: the recorder that all rooms write to, and its text for Prometheus.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of latency buckets, in seconds: from a fifth of a fast sync to the longest that a client waits.
const SECONDS: [f64; 18] =
    [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// The recorder could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("figures cannot be recorded: {0}")]
pub(crate) struct MetricsError(String);

/// Installs the recorder for the whole process.
///
/// # Errors
/// Another recorder is there already.
pub(crate) fn install() -> Result<PrometheusHandle, MetricsError> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
        .map_err(|e| MetricsError(e.to_string()))?;
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|e| MetricsError(e.to_string()))?;
    Ok(handle)
}
