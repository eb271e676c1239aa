//! The calls of `storage.IngestionService`: read the message, ask the gate, write the answer.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use lakegate_access::{self as access, Action, Principal};
use lakegate_ingest::{Client, Source, Submission, SubmissionOutcome, Wire};
use lakegate_model::{NameError, StreamName, TenantId};
use prost::Message;
use tonic::{Code, Status};
use tracing::Instrument;

use super::answer;
use super::compression::{ACCEPTED, Encoding};
use super::error;
use super::message::{MessageReader, frame_answer};
use super::observe::{Method, correlation_id};
use super::proto;
use super::reply::{ReplyBody, grpc_reply, refused};
use super::shared::Shared;
use super::stream;
use super::wire;
use crate::intake::{Intake, refuse_early};

/// Who makes a call.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// None while authentication is off, and where credentials are not asked for.
    pub(crate) principal: Option<Arc<Principal>>,
    /// Credentials are needed elsewhere, and this one brought none: details are left out.
    pub(crate) is_unknown: bool,
}

/// One call, from its headers to its answer.
pub(crate) async fn answer_call<I: Intake>(
    shared: &Arc<Shared<I>>,
    method: Method,
    caller: Caller,
    request: Request<Incoming>,
) -> Response<ReplyBody> {
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    let correlation_id = correlation_id(&parts.headers);
    let span = tracing::info_span!("grpc", method = method.name(), correlation_id = correlation_id.as_deref());
    let call = Call { shared, headers: &parts.headers, caller, correlation_id };
    let answered = match method {
        Method::IngestStream => match call.open_stream(body, began, &span) {
            Ok(response) => return response,
            Err(status) => Err(status),
        },
        _ => call.unary(method, body).instrument(span.clone()).await,
    };
    let code = answered.as_ref().map_or_else(Status::code, |_| Code::Ok);
    shared.metrics.note(method, began, code);
    answered.unwrap_or_else(|status| {
        span.in_scope(|| log_refusal(&status));
        let unknown_encoding = status.code() == Code::Unimplemented;
        let mut response = refused(status);
        if unknown_encoding {
            response.headers_mut().insert("grpc-accept-encoding", ACCEPTED);
        }
        response
    })
}

/// What went wrong here is worth a warning; what the client did wrong is not.
pub(crate) fn log_refusal(status: &Status) {
    match status.code() {
        code @ (Code::Unavailable | Code::Internal | Code::Unknown) => {
            tracing::warn!(?code, reason = status.message(), "a call could not be answered");
        }
        code => tracing::debug!(?code, reason = status.message(), "a call was refused"),
    }
}

/// What the gate is given: the bytes as they came. Without a principal the tenant is what the request says.
pub(crate) fn submission(principal: Option<Arc<Principal>>, body: Bytes, correlation_id: Option<String>) -> Submission {
    Submission {
        principal,
        source: Source::Grpc,
        wire: Wire::ProtoBatch,
        body,
        correlation_id,
        client: Client::default(),
        in_order: false,
    }
}

struct Call<'a, I> {
    shared: &'a Arc<Shared<I>>,
    headers: &'a HeaderMap,
    caller: Caller,
    correlation_id: Option<String>,
}

impl<I: Intake> Call<'_, I> {
    /// Refuses before anything of the body is read what the caller may do with no stream at all.
    fn check(&self, action: Action) -> Result<(), Status> {
        access::check_some(self.caller.principal.as_deref(), action).map_err(|error| error::not_let_in(&error))
    }

    async fn unary(self, method: Method, body: Incoming) -> Result<Response<ReplyBody>, Status> {
        match method {
            Method::IngestRecord | Method::IngestBatch | Method::IngestStream => self.check(Action::Write)?,
            Method::GetIngestionStatus => self.check(Action::Read)?,
            Method::HealthCheck => {}
        }
        let reader = MessageReader::new(body, self.shared.read_rules(self.headers)?);
        let encoding = Encoding::for_answers(self.headers);
        let mut received = reader.only().await?;
        if method == Method::IngestBatch {
            let (principal, bytes) = (self.caller.principal.as_deref(), received.bytes.len());
            let held = refuse_early(&self.shared.intake, principal, bytes, received).await;
            received = held.map_err(|error| error::status_of(&error))?;
        }
        let message = match method {
            Method::IngestRecord => self.ingest_record(received.bytes, encoding).await?,
            Method::IngestBatch => self.ingest_batch(received.bytes, encoding).await?,
            Method::GetIngestionStatus => self.ingestion_status(received.bytes, encoding)?,
            Method::HealthCheck => self.health_check(received.bytes, encoding)?,
            Method::IngestStream => return Err(Status::internal("a stream is not a unary call")),
        };
        drop(received.charge);
        Ok(grpc_reply(ReplyBody::Unary { message: Some(message), ended: false }, encoding))
    }

    async fn submit(self, body: Bytes) -> Result<SubmissionOutcome, Status> {
        let submission = submission(self.caller.principal, body, self.correlation_id);
        self.shared.intake.submit(submission).await.map_err(|error| error::status_of(&error))
    }

    async fn ingest_record(self, message: Bytes, encoding: Option<Encoding>) -> Result<Bytes, Status> {
        let unreadable = |error| error::malformed(format!("not a storage.IngestRecordRequest: {error}"));
        match wire::count_records(&message).map_err(unreadable)? {
            1 => {}
            0 => return Err(error::invalid("MISSING_FIELD", "record", "the request brings no record")),
            found => {
                return Err(error::malformed(format!("the request brings {found} records; IngestBatch takes many")));
            }
        }
        Ok(frame_answer(&answer::record_response(self.submit(message).await?)?, encoding))
    }

    async fn ingest_batch(self, message: Bytes, encoding: Option<Encoding>) -> Result<Bytes, Status> {
        Ok(frame_answer(&answer::batch_response(self.submit(message).await?), encoding))
    }

    fn ingestion_status(self, message: Bytes, encoding: Option<Encoding>) -> Result<Bytes, Status> {
        let unreadable = |error| error::malformed(format!("not a storage.IngestionStatusRequest: {error}"));
        let request = proto::IngestionStatusRequest::decode(message).map_err(unreadable)?;
        let wrong =
            |field: &'static str| move |error: NameError| error::invalid("INVALID_NAME", field, error.to_string());
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let tenant =
            given(&request.tenant_id).map(|name| TenantId::new(&name)).transpose().map_err(wrong("tenant_id"))?;
        let stream =
            given(&request.endpoint_id).map(|name| StreamName::new(&name)).transpose().map_err(wrong("endpoint_id"))?;
        let principal = self.caller.principal.as_deref();
        let tenant = access::scope(principal, tenant).map_err(|error| error::not_let_in(&error))?;
        let mut status = self.shared.intake.status(tenant.as_ref(), stream.as_ref());
        if let Some(principal) = principal {
            status.keep_readable(principal);
        }
        Ok(frame_answer(&answer::status_response(&status), encoding))
    }

    fn health_check(self, message: Bytes, encoding: Option<Encoding>) -> Result<Bytes, Status> {
        let unreadable = |error| error::malformed(format!("not a storage.HealthCheckRequest: {error}"));
        proto::HealthCheckRequest::decode(message).map_err(unreadable)?;
        let uptime = self.shared.began.elapsed().as_secs();
        let mut components = self.shared.intake.health();
        if self.caller.is_unknown {
            components.iter_mut().for_each(|component| component.message.clear());
        }
        let response = answer::health_response(&components, &self.shared.version, uptime);
        Ok(frame_answer(&response, encoding))
    }

    fn open_stream(&self, body: Incoming, began: Instant, span: &tracing::Span) -> Result<Response<ReplyBody>, Status> {
        self.check(Action::Write)?;
        let reader = MessageReader::new(body, self.shared.read_rules(self.headers)?);
        let encoding = Encoding::for_answers(self.headers);
        let principal = self.caller.principal.clone();
        let place = self.shared.door.access.open_place(principal.as_deref());
        let place = place.map_err(|error| error::not_let_in(&error))?;
        let template = stream::Template { principal, correlation_id: self.correlation_id.clone(), encoding };
        let (answers, task) = stream::open(self.shared.clone(), reader, template, place, began);
        tokio::spawn(task.instrument(span.clone()));
        Ok(grpc_reply(ReplyBody::Stream(Some(answers)), encoding))
    }
}
