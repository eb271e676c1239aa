//! Logs, traces and figures: set up once, at start.
//!
//! Log lines go to the standard error, one event a line. Traces go to a collector when one is configured. Figures
//! have no listener of their own; the HTTP listener shows them at `/metrics`.

pub(crate) mod metrics;
mod writer;

use std::io::IsTerminal;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::cli::VERSION;
use crate::config::{LogFormat, LogLevel, Telemetry};
use writer::OneLine;

/// Keeps traces going; sends the last of them when it is closed.
#[derive(Debug)]
pub(crate) struct TelemetryGuard {
    traces: Option<SdkTracerProvider>,
}

impl TelemetryGuard {
    /// Sends what is left. Blocks for a bounded time.
    pub(crate) fn close(self) {
        if let Some(traces) = self.traces {
            // The collector may be away; the process ends all the same.
            let _ = traces.shutdown_with_timeout(std::time::Duration::from_secs(2));
        }
    }
}

/// The logs or traces could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("logs and traces could not be set up: {0}")]
pub(crate) struct TelemetryError(String);

/// Starts logs and, where a collector is configured, traces. Must be called inside the runtime.
///
/// # Errors
/// Called twice, or the collector's address cannot be used.
pub(crate) fn start(settings: &Telemetry, node: &str) -> Result<TelemetryGuard, TelemetryError> {
    let broken = |e: &dyn std::fmt::Display| TelemetryError(e.to_string());
    // One filter before all layers: a filter of a layer forgets to forget what it kept out, and the next event is lost
    // where that came from the `log` crate or from a look whether it would be taken.
    let filter = EnvFilter::try_new(directives(settings.log_level)).map_err(|e| broken(&e))?;
    let json = match settings.log_format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let lines = fmt::layer().with_writer(OneLine).with_ansi(false).with_target(true);
    let lines = if json {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        lines.boxed()
    };
    let traces = match settings.otlp_endpoint.as_str() {
        "" => None,
        endpoint => Some(tracer_provider(settings, endpoint, node).map_err(|e| broken(&e))?),
    };
    let spans = traces.as_ref().map(|t| tracing_opentelemetry::layer().with_tracer(t.tracer("lakegate")));
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    tracing_subscriber::registry().with(filter).with(spans).with(lines).try_init().map_err(|e| broken(&e))?;
    Ok(TelemetryGuard { traces })
}

fn tracer_provider(
    settings: &Telemetry,
    endpoint: &str,
    node: &str,
) -> Result<SdkTracerProvider, opentelemetry_otlp::ExporterBuildError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let resource = Resource::builder()
        .with_service_name(settings.service_name.clone())
        .with_attribute(KeyValue::new("service.version", VERSION))
        .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.trace_ratio)));
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).with_sampler(sampler).build())
}

/// Our own events from the chosen level on, those of libraries when they are warnings.
fn directives(level: LogLevel) -> String {
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let libraries = if level == "error" { "error" } else { "warn" };
    let rooms = ["", "_env", "_log", "_memtable", "_lake", "_ingest", "_sources", "_query"];
    let ours: Vec<String> = rooms.iter().map(|room| format!("lakegate{room}={level}")).collect();
    format!("{libraries},{}", ours.join(","))
}
