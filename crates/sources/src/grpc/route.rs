//! Which request goes where. gRPC by its content type, everything else is plain HTTP and finds only `GET /health`.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method as HttpMethod, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use lakegate_access::{Peer, take_basic};
use tonic::Status;
use tower::ServiceExt;

use super::calls::{Caller, answer_call};
use super::error;
use super::intake::Intake;
use super::observe::Method;
use super::options::Asking;
use super::reply::{ReplyBody, plain, refused};
use super::shared::{Shared, TonicService};

/// The paths of Arrow Flight.
const FLIGHT: &str = "/arrow.flight.";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// Answers one request.
///
/// Who asks is found before anything of the body is read.
pub(crate) async fn answer<I: Intake>(
    shared: Arc<Shared<I>>,
    peer: &Peer,
    mut request: Request<Incoming>,
) -> Response<ReplyBody> {
    if !is_grpc(request.headers()) {
        return answer_plain(&request);
    }
    if request.version() < Version::HTTP_2 {
        return plain(StatusCode::HTTP_VERSION_NOT_SUPPORTED, TEXT, "gRPC needs HTTP/2\n");
    }
    if request.method() != HttpMethod::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, TEXT, "gRPC calls are POST\n");
    }
    if request.uri().path().starts_with(FLIGHT) {
        take_basic(request.headers_mut());
    }
    let path = request.uri().path();
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return refused(unknown(path));
    };
    let method = Method::named(method).filter(|_| service == "storage.IngestionService");
    let caller = match shared.door.access.authenticate(request.headers(), peer).await {
        Ok(principal) => Caller { principal, is_unknown: false },
        // Whether it is there may be asked by anybody; how it is in detail may not.
        Err(_) if service == "grpc.health.v1.Health" || method == Some(Method::HealthCheck) => {
            Caller { principal: None, is_unknown: true }
        }
        Err(error) => return refused(error::not_let_in(&error)),
    };
    match service {
        "storage.IngestionService" => match method {
            Some(method) => answer_call(&shared, method, caller, request).await,
            None => refused(unknown(path)),
        },
        "grpc.health.v1.Health" => answer_by_tonic(&shared.health, request).await,
        "grpc.reflection.v1.ServerReflection" => answer_by_tonic(&shared.reflection, request).await,
        "grpc.reflection.v1alpha.ServerReflection" => answer_by_tonic(&shared.reflection_alpha, request).await,
        "arrow.flight.protocol.FlightService" => match &shared.door.flight {
            Some(flight) => {
                let user_agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok());
                let user_agent = user_agent.map(str::to_owned);
                let asking = Asking { principal: caller.principal, address: peer.address, user_agent };
                request.extensions_mut().insert(asking);
                answer_by_tonic(flight, request).await
            }
            None => refused(unknown(path)),
        },
        _ => refused(unknown(path)),
    }
}

/// Answers a request of a connection that is one too many.
pub(crate) fn answer_overfull(max_connections: usize, request: &Request<Incoming>) -> Response<ReplyBody> {
    if !is_grpc(request.headers()) {
        return answer_plain(request);
    }
    let message = format!("{max_connections} connections are open, which is the most (ingestion.max_connections)");
    refused(error::unavailable("TOO_MANY_CONNECTIONS", &message, Duration::from_secs(1)))
}

fn unknown(path: &str) -> Status {
    let path: String = path.chars().take(200).collect();
    Status::unimplemented(format!("there is no method {path}"))
}

/// `application/grpc`, alone or with `+proto` or parameters.
fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let Some(rest) = content_type.strip_prefix(b"application/grpc") else { return false };
    let rest = rest.strip_prefix(b"+proto").unwrap_or(rest);
    rest.is_empty() || rest.starts_with(b";")
}

async fn answer_by_tonic(service: &TonicService, request: Request<Incoming>) -> Response<ReplyBody> {
    match service.clone().oneshot(request).await {
        Ok(response) => response.map(ReplyBody::Tonic),
        Err(never) => match never {},
    }
}

fn answer_plain(request: &Request<Incoming>) -> Response<ReplyBody> {
    let is_call = request.uri().path().starts_with("/storage.") || request.uri().path().starts_with("/grpc.");
    match (request.uri().path(), request.method()) {
        ("/health", &HttpMethod::GET | &HttpMethod::HEAD) => plain(StatusCode::OK, JSON, r#"{"status":"ok"}"#),
        ("/health", _) => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
        (_, &HttpMethod::POST) if is_call => {
            plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, TEXT, "the content type of gRPC calls is application/grpc\n")
        }
        _ => plain(StatusCode::NOT_FOUND, TEXT, "this port serves gRPC and GET /health\n"),
    }
}
