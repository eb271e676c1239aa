//! Bounds.

use std::time::Duration;

/// Bounds of the HTTP way in.
#[derive(Debug, Clone)]
pub struct RestLimits {
    /// The largest body, after decompression, except for NDJSON, which is worked on as it comes.
    pub body_bytes_max: usize,
    /// The largest line of NDJSON.
    pub line_bytes_max: usize,
    /// The most bytes of large bodies that are in memory at once.
    pub receive_budget_bytes: usize,
    /// The most events of one batch.
    pub batch_events_max: usize,
    /// How long a body may take besides the time that its bytes take at `body_bytes_per_second`.
    pub body_grace: Duration,
    /// The least rate of a body.
    pub body_bytes_per_second: u64,
    /// How long the gate may take for one answer.
    pub answer_timeout: Duration,
    /// The stream of cart events.
    pub events_stream: String,
    /// The stream of documents.
    pub documents_stream: String,
}

impl Default for RestLimits {
    fn default() -> Self {
        Self {
            body_bytes_max: 16 << 20,
            line_bytes_max: 4 << 20,
            receive_budget_bytes: 256 << 20,
            batch_events_max: 1000,
            body_grace: Duration::from_secs(10),
            body_bytes_per_second: 1024,
            answer_timeout: Duration::from_secs(60),
            events_stream: "events".to_owned(),
            documents_stream: "documents".to_owned(),
        }
    }
}
