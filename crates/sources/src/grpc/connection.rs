//! One connection, from its first byte to its end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use lakegate_access::{Connection, Peer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::intake::Intake;
use super::options::GrpcLimits;
use super::preface::{Sniffed, sniff};
use super::route::{answer, answer_overfull};
use super::shared::Shared;

/// Unread bytes of one call, and of one connection, that a peer may have under way: enough for a fast sender over a
/// long line, small enough that a hundred connections take no more than memory can bear.
const CALL_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// A message that lies in one frame is not copied; larger frames take more memory for each connection.
const FRAME_BYTES: u32 = 256 << 10;
/// Answers are small.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Calls that a peer opens and resets at once (CVE-2023-44487), and calls that it makes us reset (CVE-2025-8671): past
/// so many the connection is closed.
const PENDING_RESETS_MAX: usize = 64;
const LOCAL_RESETS_MAX: usize = 256;
/// An HTTP/1 request is small here.
const HTTP1_BUFFER_BYTES: usize = 16 << 10;
/// A connection that is one too many is told so, and has so long to hear it.
const OVERFULL_LIFE: Duration = Duration::from_secs(2);

/// Whether a connection is served or told that it is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Served,
    Overfull,
}

/// Serves one connection until it ends, or is aborted.
pub(crate) async fn serve_connection<I: Intake>(
    shared: Arc<Shared<I>>,
    stream: TcpStream,
    lane: Lane,
    abort: CancellationToken,
) {
    let serving = async {
        let patience = match lane {
            Lane::Served => shared.limits.header_timeout,
            Lane::Overfull => shared.limits.header_timeout.min(OVERFULL_LIFE),
        };
        let opening = async {
            let (connection, peer) = Connection::open(stream, shared.door.tls.as_ref(), patience).await?;
            Ok::<_, std::io::Error>(sniff(connection).await?.map(|sniffed| (sniffed, peer)))
        };
        let opened = tokio::select! {
            opened = tokio::time::timeout(patience, opening) => opened,
            // Nothing was asked yet, so that nothing is owed.
            () = shared.drain.cancelled() => return,
        };
        let (sniffed, peer) = match opened {
            Ok(Ok(Some(opened))) => opened,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection was not opened");
                return;
            }
            Ok(Ok(None)) | Err(_) => return,
        };
        let result = match lane {
            Lane::Served => serve(shared, sniffed, peer).await,
            Lane::Overfull => tokio::time::timeout(OVERFULL_LIFE, refuse(shared, sniffed)).await.unwrap_or(Ok(())),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection ended");
        }
    };
    tokio::select! {
        () = serving => {}
        () = abort.cancelled() => {}
    }
}

async fn serve<I: Intake>(shared: Arc<Shared<I>>, sniffed: Sniffed, peer: Peer) -> hyper::Result<()> {
    let (drain, limits) = (shared.drain.clone(), shared.limits.clone());
    let is_http2 = sniffed.is_http2;
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, peer) = (shared.clone(), peer.clone());
        async move { Ok::<_, Infallible>(answer(shared, &peer, request).await) }
    });
    // Both kinds of connection have the same methods, but no trait in common.
    macro_rules! until_drained {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            tokio::select! {
                result = connection.as_mut() => return result,
                () = drain.cancelled() => {}
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        }};
    }
    match is_http2 {
        true => until_drained!(http2_builder(&limits).serve_connection(TokioIo::new(sniffed), service)),
        false => until_drained!(http1_builder(&limits).serve_connection(TokioIo::new(sniffed), service)),
    }
}

async fn refuse<I: Intake>(shared: Arc<Shared<I>>, sniffed: Sniffed) -> hyper::Result<()> {
    let limits = shared.limits.clone();
    let is_http2 = sniffed.is_http2;
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer_overfull(shared.limits.max_connections, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    match is_http2 {
        true => http2_builder(&limits).max_concurrent_streams(8).serve_connection(TokioIo::new(sniffed), service).await,
        false => http1_builder(&limits).keep_alive(false).serve_connection(TokioIo::new(sniffed), service).await,
    }
}

fn http2_builder(limits: &GrpcLimits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        // Clients of gRPC look at no date.
        .auto_date_header(false)
        .initial_stream_window_size(CALL_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_concurrent_streams(limits.max_concurrent_calls)
        .max_header_list_size(limits.max_header_bytes)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    builder
}

fn http1_builder(limits: &GrpcLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(HTTP1_BUFFER_BYTES);
    builder
}
