//! The listener: accepts, bounds, drains.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lakegate_access::{Access, Tls};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::connection::{Lane, serve_connection};
use super::intake::Intake;
use super::options::{GrpcLimits, GrpcOptions};
use super::shared::{Shared, TonicService};

/// The services that `grpc.health.v1` tells about; the empty name means the whole server.
const SERVICES: [&str; 2] = ["", "storage.IngestionService"];
/// So many connections past the limit are told so at a time; more are closed at once.
const OVERFULL_AT_ONCE: usize = 16;
/// When accepting fails (no more file descriptors, say), the next try waits, so that the failure does not take a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the listener could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors that are built in cannot be read.
    #[error("the descriptors for server reflection cannot be read: {0}")]
    Reflection(tonic_reflection::server::Error),
}

/// Serves gRPC and `GET /health` until `shutdown` is cancelled; then accepts no more, lets calls under way end within
/// the drain timeout, and closes what is left. The recorder of metrics must be installed before.
///
/// # Errors
/// See [`ServeError`]. A failing connection is no error.
pub async fn serve(options: GrpcOptions, shutdown: CancellationToken) -> Result<(), ServeError> {
    let GrpcOptions { listener, gate, access, tls, flight, version, limits } = options;
    serve_intake(listener, gate, Door { access, tls, flight }, version, limits, shutdown).await
}

/// Who is let in, and how.
pub(crate) struct Door {
    pub(crate) access: Access,
    pub(crate) tls: Option<Tls>,
    /// What is served beside records.
    pub(crate) flight: Option<TonicService>,
}

/// [`serve`], with whatever takes the requests.
pub(crate) async fn serve_intake<I: Intake>(
    listener: TcpListener,
    intake: I,
    door: Door,
    version: String,
    limits: GrpcLimits,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let drain_timeout = limits.drain_timeout;
    let (shared, mut reporter) = Shared::new(intake, door, limits, version, shutdown.clone())?;
    for service in SERVICES {
        reporter.set_service_status(service, ServingStatus::Serving).await;
    }
    let acceptor = Acceptor::new(Arc::new(shared));
    tokio::select! {
        () = acceptor.accept_all(&listener) => {}
        () = shutdown.cancelled() => {}
    }
    drop(listener);
    tell_the_end(&mut reporter).await;
    acceptor.drain(drain_timeout).await;
    Ok(())
}

/// Watchers learn that the server is ending, and are let go.
async fn tell_the_end(reporter: &mut HealthReporter) {
    for service in SERVICES {
        reporter.set_service_status(service, ServingStatus::NotServing).await;
        reporter.clear_service_status(service).await;
    }
}

struct Acceptor<I> {
    shared: Arc<Shared<I>>,
    places: Arc<Semaphore>,
    overfull_places: Arc<Semaphore>,
    connections: TaskTracker,
    abort: CancellationToken,
}

impl<I: Intake> Acceptor<I> {
    fn new(shared: Arc<Shared<I>>) -> Self {
        let places = Arc::new(Semaphore::new(shared.limits.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
        let overfull_places = Arc::new(Semaphore::new(OVERFULL_AT_ONCE));
        Self { shared, places, overfull_places, connections: TaskTracker::new(), abort: CancellationToken::new() }
    }

    async fn accept_all(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if is_of_the_peer(&error) => {
                    tracing::debug!(%error, "a connection was gone before it was accepted")
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream) {
        let (lane, permit) = match self.places.clone().try_acquire_owned() {
            Ok(permit) => (Lane::Served, permit),
            Err(_) => {
                self.shared.metrics.connections_refused.increment(1);
                // The stream closes here if even those who are told are too many.
                let Ok(permit) = self.overfull_places.clone().try_acquire_owned() else { return };
                (Lane::Overfull, permit)
            }
        };
        let (shared, abort) = (self.shared.clone(), self.abort.clone());
        self.connections.spawn(async move {
            let gauge = shared.metrics.connections.clone();
            gauge.increment(1);
            serve_connection(shared, stream, lane, abort).await;
            gauge.decrement(1);
            drop(permit);
        });
    }

    async fn drain(&self, timeout: Duration) {
        self.connections.close();
        if tokio::time::timeout(timeout, self.connections.wait()).await.is_ok() {
            return;
        }
        tracing::warn!(
            connections = self.connections.len(),
            "connections are still open after the drain timeout; closing them"
        );
        self.abort.cancel();
        self.connections.wait().await;
    }
}

/// Whether accepting failed for the one connection, rather than for all.
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
