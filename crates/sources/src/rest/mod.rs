//! The HTTP way in: cart events (`POST /events`, `/events/batch`, `/batch`), documents (`POST /api/ingest/event`) and
//! JSON of any stream (`POST /api/ingest/streams/{stream}`).
//!
//! A body goes to the gate as the bytes that came: only the envelope around payloads is walked, to tell the gate where
//! each payload lies. Whoever serves HTTP asks [`Rest::route`] first, and hands over what is ours with [`Rest::answer`];
//! credentials, host names, origins and correlation ids are the caller's.
//!
//! Promises: an answer of success comes after the gate's, that is, after the disk's; what is read into memory is bounded
//! for each request and over all, counted after decompression; NDJSON is worked on as it comes. Refuses: rules about
//! records, identity, storage.

mod answer;
mod body;
mod documents;
mod events;
mod figures;
mod lines;
mod options;
mod refusal;
mod route;
#[cfg(test)]
mod tests;
mod unpack;

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::body::Body;
use lakegate_access::Principal;
use lakegate_ingest::{Client, Gate, Payloads, Source, Submission, SubmissionOutcome, SubmitError, Wire};
use lakegate_model::{RecordError, StreamName, TenantId};

use crate::intake::Intake;
use crate::time::now_ms;
use crate::websocket::{Bus, Told, tenant_told};
use body::Budget;

pub(crate) use answer::{DUPLICATE, message_of};
pub(crate) use events::tenant_of;
pub use figures::{Figures, Requests};
pub use options::RestLimits;
pub use refusal::Refusal;
pub use route::Route;

/// An answer of this room.
pub type Reply = http::Response<Full<Bytes>>;

/// What is known of a request before its body is read.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Who asks; none while authentication is off.
    pub principal: Option<Arc<Principal>>,
    /// What ties the request to others.
    pub correlation_id: Option<String>,
    /// Where it came from.
    pub client: Client,
}

/// The HTTP way in, over one gate.
#[derive(Debug)]
pub struct Rest<I = Gate> {
    intake: I,
    limits: RestLimits,
    budget: Budget,
    figures: Arc<Figures>,
    bus: Arc<Bus>,
    events: StreamName,
    documents: StreamName,
}

impl Rest {
    /// The way in to `gate`. The recorder of metrics must be installed before.
    ///
    /// # Errors
    /// A stream's name is not one.
    pub fn new(gate: Gate, limits: RestLimits, bus: Arc<Bus>) -> Result<Self, lakegate_model::NameError> {
        Self::over(gate, limits, bus)
    }
}

impl<I: Intake> Rest<I> {
    /// [`Rest::new`], with whatever takes the requests.
    pub(crate) fn over(intake: I, limits: RestLimits, bus: Arc<Bus>) -> Result<Self, lakegate_model::NameError> {
        let budget = Budget::new(limits.receive_budget_bytes);
        let events = StreamName::new(&limits.events_stream)?;
        let documents = StreamName::new(&limits.documents_stream)?;
        Ok(Self { intake, limits, budget, figures: Arc::new(Figures::new()), bus, events, documents })
    }

    /// What came in and what became of it.
    #[must_use]
    pub fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }

    /// Answers a request for what [`Route::of`] found.
    ///
    /// # Errors
    /// What is to be answered outside the documented bodies.
    pub async fn answer<B>(&self, route: &Route, request: Request<B>, caller: Caller) -> Result<Reply, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let began = std::time::Instant::now();
        let answered = self.answer_route(route, request, caller).await;
        let status = answered.as_ref().map_or_else(|refusal| refusal.status, |reply| reply.status());
        self.figures.note(route, status, began.elapsed());
        answered
    }

    async fn answer_route<B>(&self, route: &Route, request: Request<B>, caller: Caller) -> Result<Reply, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        if request.method() != http::Method::POST {
            return Err(Refusal::wrong_method());
        }
        match route {
            Route::Event => events::one(self, request, caller).await,
            Route::EventBatch => events::batch(self, request, caller).await,
            Route::Document => documents::take(self, self.documents.clone(), request, caller).await,
            Route::Stream(name) => {
                let stream = StreamName::new(name).map_err(|error| Refusal::not_found(error.to_string()))?;
                documents::take(self, stream, request, caller).await
            }
        }
    }

    /// Tells the tenant's subscribers of an event that is durable.
    fn tell(&self, tenant: Option<&TenantId>, event: &[u8]) {
        if let Some(told) = Told::of(event) {
            self.bus.tell(0, Some(tenant_told(tenant)), &told, now_ms());
        }
    }

    /// Gives payloads to the gate.
    async fn submit(&self, sent: Sent, caller: &Caller) -> Result<SubmissionOutcome, Refusal> {
        self.ask_gate(sent, caller).await?.map_err(Refusal::of)
    }

    /// Gives payloads to the gate; the inner error are the records at fault where all or nothing was asked for.
    async fn submit_all(
        &self,
        sent: Sent,
        caller: &Caller,
    ) -> Result<Result<SubmissionOutcome, Vec<RecordError>>, Refusal> {
        match self.ask_gate(sent, caller).await? {
            Ok(outcome) => Ok(Ok(outcome)),
            Err(SubmitError::Invalid { errors, .. }) if !errors.is_empty() => Ok(Err(errors)),
            Err(error) => Err(Refusal::of(error)),
        }
    }

    async fn ask_gate(&self, sent: Sent, caller: &Caller) -> Result<Result<SubmissionOutcome, SubmitError>, Refusal> {
        let Sent { body, spans, stream, tenant, atomic, batch_id, in_order } = sent;
        let submission = Submission {
            principal: caller.principal.clone(),
            source: Source::Rest,
            wire: Wire::Payloads(Payloads { tenant, stream, spans, atomic, batch_id }),
            body,
            correlation_id: caller.correlation_id.clone(),
            client: caller.client.clone(),
            in_order,
        };
        let limit = self.limits.answer_timeout;
        tokio::time::timeout(limit, self.intake.submit(submission)).await.map_err(|_| Refusal::late(limit))
    }
}

/// Payloads on their way to the gate.
struct Sent {
    body: Bytes,
    spans: Vec<std::ops::Range<u32>>,
    stream: StreamName,
    tenant: Option<TenantId>,
    atomic: bool,
    batch_id: String,
    in_order: bool,
}
