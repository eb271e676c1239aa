//! What the gate says, as messages of the service.

use std::collections::BTreeSet;

use lakegate_ingest::{ComponentHealth, GateStatus, HealthState, StreamStatus, SubmissionOutcome, SubmitError};
use lakegate_model::{ReasonCode, RecordError, Tally, Verdict};
use prost_types::Timestamp;
use tonic::Status;

use super::error;
use super::proto;
use super::wire::BatchOutline;

/// The answer to a batch.
pub(crate) fn batch_response(outcome: SubmissionOutcome) -> proto::IngestBatchResponse {
    proto::IngestBatchResponse {
        batch_id: outcome.batch_id,
        accepted: outcome.accepted,
        duplicates: outcome.duplicates,
        rejected: outcome.rejected,
        dead_lettered: outcome.dead_lettered,
        errors: outcome.errors.into_iter().map(record_error).collect(),
        position: outcome.position,
    }
}

/// The answer to a lone record; a status where the request itself was at fault.
pub(crate) fn record_response(outcome: SubmissionOutcome) -> Result<proto::IngestRecordResponse, Status> {
    let (status, message) = match outcome.first_verdict {
        Verdict::Accepted => (proto::RecordStatus::Accepted, String::new()),
        Verdict::Duplicate => (proto::RecordStatus::Duplicate, "seen before; stored once".to_owned()),
        Verdict::DeadLettered(refusal) => (proto::RecordStatus::DeadLettered, refusal.message),
        Verdict::Rejected(refusal) => match error::status_of_record(&refusal) {
            Some(status) => return Err(status),
            None => (proto::RecordStatus::Rejected, refusal.message),
        },
    };
    Ok(proto::IngestRecordResponse {
        event_id: outcome.first_event_id.unwrap_or_default(),
        status: status.into(),
        message,
        position: outcome.position,
    })
}

/// The answer inside a stream to a batch that was refused as a whole; none where the refusal ends the stream.
pub(crate) fn refused_batch(batch: &[u8], error: &SubmitError) -> Option<proto::IngestBatchResponse> {
    let errors = match error {
        SubmitError::Invalid { errors, .. } if !errors.is_empty() => errors.iter().cloned().map(record_error).collect(),
        SubmitError::Invalid { code, .. } => vec![whole_batch_error(code.as_str(), error)],
        SubmitError::BatchTooLarge { .. } => vec![whole_batch_error(ReasonCode::TooLarge.as_str(), error)],
        SubmitError::WrongTenant { .. }
        | SubmitError::Forbidden { .. }
        | SubmitError::OverQuota { .. }
        | SubmitError::OutOfRoom { .. }
        | SubmitError::Unavailable { .. } => return None,
    };
    let outline = BatchOutline::read(batch);
    Some(proto::IngestBatchResponse {
        batch_id: outline.batch_id,
        rejected: outline.records,
        errors,
        ..Default::default()
    })
}

fn whole_batch_error(code: &str, error: &SubmitError) -> proto::RecordError {
    proto::RecordError { index: 0, event_id: String::new(), code: code.to_owned(), message: error.to_string() }
}

fn record_error(error: RecordError) -> proto::RecordError {
    proto::RecordError {
        index: error.index,
        event_id: error.event_id,
        code: error.refusal.code.as_str().to_owned(),
        message: error.refusal.message,
    }
}

/// The answer to `GetIngestionStatus`.
pub(crate) fn status_response(status: &GateStatus) -> proto::IngestionStatusResponse {
    let mut totals = tally_totals(&status.totals, status.rate_1m);
    // Streams may share a table; its rows count once.
    let mut tables = BTreeSet::new();
    for stream in status.streams.iter().filter(|stream| tables.insert(&stream.table)) {
        totals.memtable_records += stream.memtable_records;
        totals.memtable_bytes += stream.memtable_bytes;
        totals.lag_records += stream.lag_records;
        totals.lag_seconds = totals.lag_seconds.max(stream.lag_seconds);
    }
    proto::IngestionStatusResponse {
        totals: Some(totals),
        streams: status.streams.iter().map(stream_status).collect(),
        memtable_bytes: status.memtable_bytes,
        memory_budget_bytes: status.memory_budget,
        inflight_bytes: status.inflight_bytes,
        durable_position: status.durable_offset,
    }
}

fn stream_status(stream: &StreamStatus) -> proto::StreamStatus {
    let totals = proto::IngestionTotals {
        memtable_records: stream.memtable_records,
        memtable_bytes: stream.memtable_bytes,
        lag_records: stream.lag_records,
        lag_seconds: stream.lag_seconds,
        ..tally_totals(&stream.tally, stream.rate_1m)
    };
    proto::StreamStatus {
        tenant_id: stream.key.tenant.as_str().to_owned(),
        endpoint_id: stream.key.stream.as_str().to_owned(),
        table: stream.table.to_string(),
        totals: Some(totals),
        durable_position: stream.durable_offset,
        absorbed_position: stream.absorbed_offset,
        snapshot_id: stream.snapshot_id,
        last_commit_time: stream.last_commit_us.map(timestamp),
        last_error: stream.last_error.clone().unwrap_or_default(),
    }
}

fn tally_totals(tally: &Tally, rate: f64) -> proto::IngestionTotals {
    proto::IngestionTotals {
        received: tally.received,
        accepted: tally.accepted,
        duplicates: tally.duplicate,
        rejected: tally.rejected,
        dead_lettered: tally.dead_lettered,
        accepted_bytes: tally.bytes,
        records_per_second: rate,
        ..Default::default()
    }
}

fn timestamp(us: i64) -> Timestamp {
    let nanos = i32::try_from(us.rem_euclid(1_000_000) * 1000).unwrap_or_default();
    Timestamp { seconds: us.div_euclid(1_000_000), nanos }
}

/// The answer to `HealthCheck`.
pub(crate) fn health_response(
    components: &[ComponentHealth],
    version: &str,
    uptime_seconds: u64,
) -> proto::HealthCheckResponse {
    let worst = components.iter().map(|component| component.state).max().unwrap_or(HealthState::Healthy);
    proto::HealthCheckResponse {
        status: health_status(worst).into(),
        version: version.to_owned(),
        uptime_seconds,
        components: components.iter().map(component_status).collect(),
    }
}

fn component_status(component: &ComponentHealth) -> proto::ComponentStatus {
    proto::ComponentStatus {
        name: component.name.to_owned(),
        status: health_status(component.state).into(),
        message: component.message.clone(),
    }
}

fn health_status(state: HealthState) -> proto::HealthStatus {
    match state {
        HealthState::Healthy => proto::HealthStatus::Healthy,
        HealthState::Degraded => proto::HealthStatus::Degraded,
        HealthState::Unhealthy => proto::HealthStatus::Unhealthy,
    }
}
