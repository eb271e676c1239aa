//! A listener over a gate that does what a test says, and clients that may say anything.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use lakegate_access::Access;
use lakegate_ingest::{ComponentHealth, GateStatus, HealthState, Submission, SubmissionOutcome, SubmitError};
use lakegate_model::{ReasonCode, StreamName, Tally, TenantId, Verdict};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::grpc::intake::Intake;
use crate::grpc::options::GrpcLimits;
use crate::grpc::proto;
use crate::grpc::proto::ingestion_service_client::IngestionServiceClient;
use crate::grpc::server::{Door, serve_intake};

/// No wait of a test takes longer, or it failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A gate of the tests' own: counts records, answers from a script, and can be held.
#[derive(Clone)]
pub(crate) struct Double(Arc<State>);

struct State {
    seen: watch::Sender<Vec<Submission>>,
    script: Mutex<VecDeque<Result<SubmissionOutcome, SubmitError>>>,
    /// Batches with such ids wait; ids are numbers where a test holds the gate.
    held: watch::Sender<Range<u64>>,
    at_once: watch::Sender<usize>,
    at_once_max: AtomicUsize,
}

impl Double {
    pub(crate) fn new() -> Self {
        Self(Arc::new(State {
            seen: watch::channel(Vec::new()).0,
            script: Mutex::default(),
            held: watch::channel(0..0).0,
            at_once: watch::channel(0).0,
            at_once_max: AtomicUsize::new(0),
        }))
    }

    /// What the next request is answered.
    pub(crate) fn answer_next(&self, answer: Result<SubmissionOutcome, SubmitError>) {
        self.0.script.lock().unwrap().push_back(answer);
    }

    /// From now on batches with such ids wait, and others do not.
    pub(crate) fn hold(&self, ids: Range<u64>) {
        self.0.held.send_replace(ids);
    }

    /// No batch waits any more.
    pub(crate) fn release(&self) {
        self.hold(0..0);
    }

    pub(crate) fn seen(&self) -> Vec<Submission> {
        self.0.seen.borrow().clone()
    }

    /// Waits until so many requests have come.
    pub(crate) async fn wait_for(&self, requests: usize) {
        let mut seen = self.0.seen.subscribe();
        within(seen.wait_for(|seen| seen.len() >= requests)).await.unwrap();
    }

    /// Waits until so many requests are under way, no more and no less.
    pub(crate) async fn wait_until_under_way(&self, requests: usize) {
        let mut at_once = self.0.at_once.subscribe();
        within(at_once.wait_for(|at_once| *at_once == requests)).await.unwrap();
    }

    pub(crate) fn at_once_max(&self) -> usize {
        self.0.at_once_max.load(Ordering::SeqCst)
    }
}

impl Intake for Double {
    async fn submit(&self, submission: Submission) -> Result<SubmissionOutcome, SubmitError> {
        self.0.at_once.send_modify(|at_once| *at_once += 1);
        self.0.at_once_max.fetch_max(*self.0.at_once.borrow(), Ordering::SeqCst);
        let body = submission.body.clone();
        self.0.seen.send_modify(|seen| seen.push(submission));
        let scripted = self.0.script.lock().unwrap().pop_front();
        let answer = match scripted {
            Some(answer) => answer,
            None => match proto::IngestBatchRequest::decode(body) {
                Err(error) => Err(SubmitError::Invalid {
                    code: ReasonCode::MalformedPayload,
                    field: String::new(),
                    message: error.to_string(),
                    errors: Vec::new(),
                }),
                Ok(batch) => {
                    let id: u64 = batch.batch_id.parse().unwrap_or(0);
                    self.0.held.subscribe().wait_for(|held| !held.contains(&id)).await.unwrap();
                    Ok(accepted(&batch.batch_id, batch.records.len() as u64))
                }
            },
        };
        self.0.at_once.send_modify(|at_once| *at_once -= 1);
        answer
    }

    fn status(&self, tenant: Option<&TenantId>, stream: Option<&StreamName>) -> GateStatus {
        // The double tells what it was asked, in numbers.
        let received = u64::from(tenant.is_some()) * 2 + u64::from(stream.is_some());
        GateStatus {
            totals: Tally { received, rejected: received, ..Tally::default() },
            rate_1m: 0.5,
            streams: Vec::new(),
            memtable_bytes: 1,
            memory_budget: 2,
            inflight_bytes: 3,
            durable_offset: 4,
        }
    }

    fn health(&self) -> Vec<ComponentHealth> {
        let component = |name, state, message: &str| ComponentHealth { name, state, message: message.to_owned() };
        vec![component("wal", HealthState::Healthy, ""), component("lake", HealthState::Degraded, "behind")]
    }
}

/// An outcome in which all is well.
pub(crate) fn accepted(batch_id: &str, records: u64) -> SubmissionOutcome {
    SubmissionOutcome {
        batch_id: batch_id.to_owned(),
        accepted: records,
        duplicates: 0,
        rejected: 0,
        dead_lettered: 0,
        errors: Vec::new(),
        duplicate_indexes: Vec::new(),
        position: 41,
        first_event_id: Some("e1".to_owned()),
        first_verdict: Verdict::Accepted,
    }
}

pub(crate) fn record(id: &str) -> proto::DataRecord {
    proto::DataRecord {
        endpoint_id: "orders".to_owned(),
        event_id: id.to_owned(),
        payload: Bytes::from_static(b"{}"),
        ..Default::default()
    }
}

pub(crate) fn batch(id: &str, records: usize) -> proto::IngestBatchRequest {
    proto::IngestBatchRequest {
        batch_id: id.to_owned(),
        records: (0..records).map(|index| record(&format!("{id}-{index}"))).collect(),
        ..Default::default()
    }
}

/// A listener that runs until it is stopped or dropped.
pub(crate) struct Server<I = Double> {
    pub(crate) addr: SocketAddr,
    pub(crate) gate: I,
    shutdown: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(set: impl FnOnce(&mut GrpcLimits)) -> Self {
        let mut limits = GrpcLimits::default();
        set(&mut limits);
        Self::start_over(Double::new(), limits).await
    }
}

impl<I: Intake> Server<I> {
    pub(crate) async fn start_over(gate: I, limits: GrpcLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = serve_intake(
            listener,
            gate.clone(),
            Door { access: Access::open_to_all(), tls: None, flight: None },
            "1.2.3".to_owned(),
            limits,
            shutdown.clone(),
        );
        let task = Some(tokio::spawn(async move { serving.await.unwrap() }));
        Self { addr, gate, shutdown, task }
    }

    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.addr)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> IngestionServiceClient<Channel> {
        IngestionServiceClient::new(self.channel().await)
    }

    /// Begins the end.
    pub(crate) fn shut_down(&self) {
        self.shutdown.cancel();
    }

    /// Waits until the listener has ended.
    pub(crate) async fn ended(mut self) {
        within(self.task.take().unwrap()).await.unwrap();
    }
}

impl<I> Drop for Server<I> {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it took too long")
}

/// What a raw call was answered.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) http_status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// `grpc-status` of the trailers, or of the headers where there are no trailers.
    pub(crate) status: tonic::Status,
}

/// A gRPC request of bytes that need not be right.
pub(crate) struct RawCall<'a> {
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) parts: Vec<Bytes>,
    /// Whether the client says that it has sent all.
    pub(crate) ends: bool,
}

impl<'a> RawCall<'a> {
    pub(crate) fn new(method: &'a str, parts: Vec<Bytes>) -> Self {
        Self { path: method, headers: &[], parts, ends: true }
    }
}

pub(crate) async fn connect_h2(addr: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(TcpStream::connect(addr).await.unwrap()).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender.ready().await.unwrap()
}

pub(crate) async fn raw_call(addr: SocketAddr, call: RawCall<'_>) -> Raw {
    let mut sender = connect_h2(addr).await;
    let path = if call.path.starts_with('/') {
        call.path.to_owned()
    } else {
        format!("/storage.IngestionService/{}", call.path)
    };
    let mut request = Request::post(format!("http://{addr}{path}")).header("te", "trailers");
    if !call.headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in call.headers {
        request = request.header(*name, *value);
    }
    let (response, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    for part in call.parts {
        // The server may have answered already.
        let _ = body.send_data(part, false);
    }
    if call.ends {
        let _ = body.send_data(Bytes::new(), true);
    }
    let (parts, mut incoming) = within(response).await.unwrap().into_parts();
    let mut bytes = BytesMut::new();
    while let Some(Ok(data)) = within(incoming.data()).await {
        bytes.put(data);
    }
    let trailers = within(incoming.trailers()).await.ok().flatten();
    let status = tonic::Status::from_header_map(trailers.as_ref().unwrap_or(&parts.headers));
    Raw {
        http_status: parts.status,
        headers: parts.headers,
        body: bytes.freeze(),
        status: status.unwrap_or_else(|| tonic::Status::unknown("no grpc-status")),
    }
}

/// A message with its head.
pub(crate) fn framed(flag: u8, message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(flag);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes.freeze()
}
