//! What all connections of a listener share.

use std::convert::Infallible;
use std::time::Instant;

use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::codec::CompressionEncoding;
use tonic_health::server::HealthReporter;
use tower::util::BoxCloneSyncService;

use super::DESCRIPTORS;
use super::compression::Encoding;
use super::message::{Budget, ReadRules};
use super::observe::Metrics;
use super::options::GrpcLimits;
use super::server::{Door, ServeError};

/// The most bytes of a message to the health and reflection services.
const SMALL_MESSAGE_BYTES: usize = 64 << 10;

/// A service that tonic serves.
pub type TonicService = BoxCloneSyncService<Request<Incoming>, Response<tonic::body::Body>, Infallible>;

/// What all connections share.
pub(crate) struct Shared<I> {
    pub(crate) intake: I,
    pub(crate) door: Door,
    pub(crate) limits: GrpcLimits,
    pub(crate) version: String,
    pub(crate) began: Instant,
    pub(crate) metrics: Metrics,
    /// Cancelled when the server is ending: no more is begun.
    pub(crate) drain: CancellationToken,
    pub(crate) health: TonicService,
    pub(crate) reflection: TonicService,
    pub(crate) reflection_alpha: TonicService,
    budget: Budget,
}

impl<I> Shared<I> {
    pub(crate) fn new(
        intake: I,
        door: Door,
        limits: GrpcLimits,
        version: String,
        drain: CancellationToken,
    ) -> Result<(Self, HealthReporter), ServeError> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let v1 = reflection().build_v1().map_err(ServeError::Reflection)?;
        let alpha = reflection().build_v1alpha().map_err(ServeError::Reflection)?;
        macro_rules! boxed {
            ($service:expr) => {{
                let service = $service.max_decoding_message_size(SMALL_MESSAGE_BYTES);
                let service = service.accept_compressed(CompressionEncoding::Gzip);
                BoxCloneSyncService::new(service.accept_compressed(CompressionEncoding::Zstd))
            }};
        }
        let budget = Budget::new(limits.receive_budget_bytes);
        let shared = Self {
            intake,
            door,
            limits,
            version,
            began: Instant::now(),
            metrics: Metrics::new(),
            drain,
            health: boxed!(health),
            reflection: boxed!(v1),
            reflection_alpha: boxed!(alpha),
            budget,
        };
        Ok((shared, reporter))
    }

    /// How the messages of a request are read.
    pub(crate) fn read_rules(&self, headers: &HeaderMap) -> Result<ReadRules, Status> {
        Ok(ReadRules {
            encoding: Encoding::of_request(headers)?,
            max_bytes: self.limits.max_message_bytes,
            grace: self.limits.message_grace,
            bytes_per_second: self.limits.message_bytes_per_second,
            budget: self.budget.clone(),
        })
    }
}
