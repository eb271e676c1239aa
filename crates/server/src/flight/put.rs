//! `DoPut`: columns to streams, batch by batch, each acknowledged when it is durable.
//!
//! The descriptor's path is `[stream]` or `[tenant, stream]`. What a client puts beside a batch (`app_metadata`) is the
//! batch's id: sending the same one again changes nothing. The answer beside each acknowledgement is JSON with the counts,
//! the position in the log and the first errors.

use arrow::ipc::{MessageHeader, root_as_message};
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::sql::server::PeekableFlightDataStream;
use arrow_flight::{FlightData, FlightDescriptor, PutResult};
use bytes::Bytes;
use futures::stream::{self, TryStreamExt};
use lakegate_ingest::{ArrowRows, Source, Submission, SubmissionOutcome, Wire};
use lakegate_model::{StreamKey, StreamName, TenantId};
use serde_json::json;
use tonic::Status;

use super::{Flight, Out, put_message, status_of};
use crate::statements::{Asker, StatementError};

/// Batches of a stream that are on their way to the disk while more is read.
const ON_THEIR_WAY: usize = 4;
/// The most bytes of the dictionaries that a stream has open.
const DICTIONARY_BYTES_MAX: usize = 8 << 20;
/// Errors that an answer lists.
const ERRORS_MAX: usize = 10;

/// Where a stream of columns goes.
#[derive(Clone)]
pub(super) struct Lane {
    pub(super) asker: Asker,
    pub(super) tenant: Option<TenantId>,
    pub(super) stream: StreamName,
    /// The columns are named as the table's are.
    pub(super) by_name: bool,
    /// A row that is refused refuses its batch.
    pub(super) atomic: bool,
    /// A stream that is new gets these columns.
    pub(super) declares: bool,
}

impl Lane {
    /// Where a descriptor's path leads.
    pub(super) fn of_path(asker: Asker, descriptor: &FlightDescriptor) -> Result<Self, Status> {
        let wrong = |error: lakegate_model::NameError| Status::invalid_argument(error.to_string());
        let (tenant, stream) = match descriptor.path.as_slice() {
            [stream] if descriptor.r#type() == DescriptorType::Path => (None, stream),
            [tenant, stream] if descriptor.r#type() == DescriptorType::Path => (Some(tenant), stream),
            _ => {
                let message = "columns are put under the path [stream] or [tenant, stream]";
                return Err(Status::invalid_argument(message));
            }
        };
        let tenant = tenant.map(|name| TenantId::new(name)).transpose().map_err(wrong)?;
        let stream = StreamName::new(stream).map_err(wrong)?;
        Ok(Self { asker, tenant, stream, by_name: false, atomic: false, declares: true })
    }

    /// To a table's stream.
    pub(super) fn of_table(asker: Asker, key: StreamKey) -> Self {
        let (tenant, stream) = (Some(key.tenant), key.stream);
        Self { asker, tenant, stream, by_name: true, atomic: true, declares: false }
    }
}

/// The messages of one stream, made into requests.
struct Gathering {
    lane: Lane,
    schema: Vec<u8>,
    dictionaries: Vec<u8>,
}

impl Gathering {
    /// The request that a message completes.
    fn take(&mut self, data: &FlightData) -> Result<Option<Submission>, Status> {
        if data.data_header.is_empty() {
            return Ok(None);
        }
        let head = root_as_message(&data.data_header);
        let head =
            head.map_err(|error| Status::invalid_argument(format!("a message's head cannot be read: {error}")))?;
        match head.header_type() {
            MessageHeader::Schema => {
                self.schema.clear();
                self.dictionaries.clear();
                put_message(&mut self.schema, data);
                Ok(None)
            }
            MessageHeader::DictionaryBatch => {
                put_message(&mut self.dictionaries, data);
                if self.dictionaries.len() > DICTIONARY_BYTES_MAX {
                    let message = format!("the dictionaries have more than {DICTIONARY_BYTES_MAX} bytes");
                    return Err(Status::invalid_argument(message));
                }
                Ok(None)
            }
            MessageHeader::RecordBatch => Ok(Some(self.submission(data))),
            other => Err(Status::invalid_argument(format!("a message of the kind {other:?}"))),
        }
    }

    fn submission(&self, data: &FlightData) -> Submission {
        let bytes = self.schema.len() + self.dictionaries.len() + data.data_header.len() + data.data_body.len() + 32;
        let mut body = Vec::with_capacity(bytes);
        body.extend_from_slice(&self.schema);
        body.extend_from_slice(&self.dictionaries);
        put_message(&mut body, data);
        let Lane { asker, tenant, stream, by_name, atomic, declares } = self.lane.clone();
        let batch_id = String::from_utf8_lossy(&data.app_metadata).into_owned();
        Submission {
            principal: asker.principal,
            source: Source::Flight,
            wire: Wire::Arrow(ArrowRows { tenant, stream, atomic, batch_id, by_name, declares }),
            body: body.into(),
            correlation_id: asker.correlation_id,
            client: asker.client,
            in_order: true,
        }
    }
}

impl Flight {
    /// What became of each batch of a stream, in the order of sending.
    pub(super) fn put(&self, lane: Lane, messages: PeekableFlightDataStream) -> Out<SubmissionOutcome> {
        let gathering = Gathering { lane, schema: Vec::new(), dictionaries: Vec::new() };
        let requests = stream::try_unfold((gathering, messages), |(mut gathering, mut messages)| async move {
            while let Some(data) = messages.try_next().await? {
                if let Some(submission) = gathering.take(&data)? {
                    return Ok(Some((submission, (gathering, messages))));
                }
            }
            Ok::<_, Status>(None)
        });
        let gate = self.gate.clone();
        let done = requests.map_ok(move |submission| {
            let gate = gate.clone();
            async move { gate.submit(submission).await.map_err(|error| status_of(&StatementError::from(error))) }
        });
        Box::pin(done.try_buffered(ON_THEIR_WAY))
    }

    /// The answers to a `DoPut` of columns.
    pub(super) fn put_answers(&self, lane: Lane, messages: PeekableFlightDataStream) -> Out<PutResult> {
        let answers = self.put(lane, messages);
        Box::pin(answers.map_ok(|outcome| PutResult { app_metadata: told(&outcome) }))
    }
}

fn told(outcome: &SubmissionOutcome) -> Bytes {
    let errors: Vec<_> = outcome
        .errors
        .iter()
        .take(ERRORS_MAX)
        .map(|error| json!({ "row": error.index, "field": error.refusal.field, "code": error.refusal.code.as_str(), "message": error.refusal.message }))
        .collect();
    let answer = json!({
        "accepted": outcome.accepted,
        "duplicates": outcome.duplicates,
        "rejected": outcome.rejected,
        "dead_lettered": outcome.dead_lettered,
        "position": outcome.position,
        "errors": errors,
    });
    answer.to_string().into()
}

/// All of a small stream's bytes, for values of parameters.
pub(super) async fn gather(mut messages: PeekableFlightDataStream, bytes_max: usize) -> Result<Bytes, Status> {
    let mut body = Vec::new();
    while let Some(data) = messages.try_next().await? {
        if data.data_header.is_empty() {
            continue;
        }
        put_message(&mut body, &data);
        if body.len() > bytes_max {
            return Err(Status::out_of_range(format!("the parameters have more than {bytes_max} bytes")));
        }
    }
    Ok(body.into())
}
