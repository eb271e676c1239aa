//! The HTTP listener: takes connections up to a limit, gives slow headers a time, and drains on stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use lakegate_access::{Connection as Transport, Tls};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::front::{Connected, Front};

/// The most requests of one HTTP/2 connection at once.
const STREAMS_PER_CONNECTION: u32 = 128;

/// The largest headers of a request.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Bounds of connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// The most at once; further ones wait in the system's queue.
    pub(crate) connections: usize,
    /// How long a client may take to send its headers.
    pub(crate) header_timeout: Duration,
}

/// Serves until `stop`; then takes no more connections and returns when the open ones have ended. `open` shows how many
/// are open.
pub(crate) async fn serve(
    listener: TcpListener,
    front: Arc<Front>,
    tls: Option<Tls>,
    limits: ConnectionLimits,
    open: Arc<AtomicUsize>,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    let http = builder(limits);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let connection = Connection {
                    stream,
                    http: http.clone(),
                    front: front.clone(),
                    tls: tls.clone(),
                    header_timeout: limits.header_timeout,
                };
                let counted = Counted::new(open.clone(), permit);
                let stop = stop.clone();
                connections.spawn(async move {
                    connection.serve(stop).await;
                    drop(counted);
                });
            }
            Err(e) => {
                // Out of file descriptors, most likely. Waiting is all that helps, and trying at once would spin.
                tracing::warn!(error = %e, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
    front.closed().await;
}

async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

fn builder(limits: ConnectionLimits) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(HEADER_BYTES_MAX * 4);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(32)
        .max_local_error_reset_streams(64)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    http
}

/// One connection's place among those that are allowed.
struct Counted {
    open: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Counted {
    fn new(open: Arc<AtomicUsize>, permit: OwnedSemaphorePermit) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self { open, _permit: permit }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Connection {
    stream: TcpStream,
    http: auto::Builder<TokioExecutor>,
    front: Arc<Front>,
    tls: Option<Tls>,
    header_timeout: Duration,
}

impl Connection {
    async fn serve(self, stop: CancellationToken) {
        // The library's time for headers begins with their first byte; a client that sends none must not stay either.
        let opening = async {
            // A byte is looked at: that a socket may be readable is told of new ones too.
            tokio::time::timeout(self.header_timeout, self.stream.peek(&mut [0])).await??;
            Transport::open(self.stream, self.tls.as_ref(), self.header_timeout).await
        };
        let opened = tokio::select! {
            opened = opening => opened,
            () = stop.cancelled() => return,
        };
        let (transport, peer) = match opened {
            Ok(opened) => opened,
            Err(e) => return tracing::debug!(error = %e, "a connection was not opened"),
        };
        let io = TokioIo::new(transport);
        let connection = self.http.serve_connection_with_upgrades(io, Connected { front: self.front, peer });
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(e) = ended {
            tracing::debug!(error = %e, "a connection broke off");
        }
    }
}
