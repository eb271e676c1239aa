//! What a client of any path may rely on.

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use tower::ServiceExt;

use super::problem::{PROBLEM_JSON, Problem};
use super::*;

fn routed(names: &[&str]) -> Router {
    let router = Router::new()
        .route("/ok", get(|| async { "fine" }))
        .route("/echo", post(|body: String| async move { body }))
        .route(
            "/full",
            get(|| async {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "out_of_room", "full").retry_after(3).with("limit", 7)
            }),
        );
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    wrap(router, KnownHosts { checked: true, names: Arc::from(names), origins: Arc::default() }, 16)
}

async fn ask(router: Router, request: Request<Body>) -> (StatusCode, axum::http::HeaderMap, Value) {
    let response = router.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    (parts.status, parts.headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn request(path: &str) -> axum::http::request::Builder {
    Request::builder().uri(path).header("host", "localhost:3001")
}

#[tokio::test]
async fn every_error_is_a_problem_document_with_the_requests_id() {
    let cases = [
        (request("/none").body(Body::empty()).unwrap(), 404, "not_found"),
        (request("/ok").method("DELETE").body(Body::empty()).unwrap(), 405, "method_not_allowed"),
        (request("/echo").method("POST").body(Body::from("x".repeat(17))).unwrap(), 413, "body_too_large"),
        (request("/full").body(Body::empty()).unwrap(), 503, "out_of_room"),
    ];
    for (request, status, code) in cases {
        let path = request.uri().path().to_owned();
        let (found, headers, body) = ask(routed(&[]), request).await;
        assert_eq!(
            (found.as_u16(), body["status"].as_u64(), body["code"].as_str()),
            (status, Some(u64::from(status)), Some(code)),
            "{path}"
        );
        assert_eq!(headers["content-type"], PROBLEM_JSON);
        assert_eq!(headers["x-request-id"], body["correlationId"].as_str().unwrap());
        assert!(!body["detail"].as_str().unwrap().is_empty() && body["title"].is_string() && body["type"].is_string());
    }
    let (_, headers, body) = ask(routed(&[]), request("/full").body(Body::empty()).unwrap()).await;
    assert_eq!((headers["retry-after"].to_str().unwrap(), &body["limit"]), ("3", &json!(7)));
}

#[tokio::test]
async fn a_clients_id_comes_back_unless_it_could_do_harm() {
    let with = |name: &str, value: &str| request("/none").header(name, value).body(Body::empty()).unwrap();
    let (_, headers, body) = ask(routed(&[]), with("x-request-id", "abc-1")).await;
    assert_eq!(
        (headers["x-request-id"].to_str().unwrap(), body["correlationId"].as_str().unwrap()),
        ("abc-1", "abc-1")
    );
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let (_, headers, _) = ask(routed(&[]), with("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"))).await;
    assert_eq!(headers["x-request-id"], trace);
    for bad in ["a b", "a\"}", &"x".repeat(129), ""] {
        let (_, headers, _) = ask(routed(&[]), with("x-request-id", bad)).await;
        assert_ne!(headers["x-request-id"], bad);
    }
}

#[tokio::test]
async fn a_page_cannot_reach_the_server_by_a_name_of_its_own() {
    let from = |host: &str, origin: Option<&str>| {
        let builder = Request::builder().uri("/ok").header("host", host);
        let builder = match origin {
            Some(origin) => builder.header("origin", origin),
            None => builder,
        };
        builder.body(Body::empty()).unwrap()
    };
    for host in ["localhost", "localhost:3001", "127.0.0.1:3001", "[::1]:3001", "gate.example", "GATE.example:1"] {
        assert_eq!(ask(routed(&["gate.example"]), from(host, None)).await.0, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example:3001", "gate.example.evil", ""] {
        let (status, _, body) = ask(routed(&["gate.example"]), from(host, None)).await;
        assert_eq!((status.as_u16(), body["code"].as_str()), (421, Some("unknown_host")), "{host}");
    }
    let nameless = |version| Request::builder().uri("/ok").version(version).body(Body::empty()).unwrap();
    assert_eq!(ask(routed(&[]), nameless(axum::http::Version::HTTP_10)).await.0, 200, "a balancer's look");
    assert_eq!(ask(routed(&[]), nameless(axum::http::Version::HTTP_11)).await.0, 421);
    assert_eq!(ask(routed(&[]), from("localhost", Some("http://localhost:3001"))).await.0, 200);
    for origin in ["https://evil.example", "null", ""] {
        assert_eq!(ask(routed(&[]), from("localhost", Some(origin))).await.0, 403, "{origin}");
    }
}
