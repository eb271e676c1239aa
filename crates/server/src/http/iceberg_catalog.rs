//! `/iceberg/v1`: the embedded catalog for every other engine, by the Iceberg REST catalog specification.
//!
//! Paths and status codes only; what they mean is the lake's [`RestService`]. A caller sees the namespace of its tenant,
//! and in it the tables that it may read; what is not its own is answered as if it were not there. Changes are for
//! operators: a commit or a registration may name any file of the warehouse, also another tenant's.

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, RawPathParams, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use bytes::Bytes;
use lakegate_access::Action;
use lakegate_lake::{RestAnswer, RestService};
use serde::Deserialize;
use serde_json::Value;

use super::identity::Caller;

/// A commit names its snapshot and properties, never rows: this is far more than any needs.
const MAX_BODY_BYTES: usize = 16 << 20;

type Service = State<RestService>;
type TablePath = Path<(String, String)>;

/// The routes, under their full paths.
pub(crate) fn router(service: RestService) -> Router {
    let routes = Router::new()
        .route("/v1/config", get(config))
        .route("/v1/namespaces", get(list_namespaces).post(create_namespace))
        .route("/v1/namespaces/{namespace}", get(load_namespace).head(namespace_exists).delete(drop_namespace))
        .route("/v1/namespaces/{namespace}/properties", post(update_namespace))
        .route("/v1/namespaces/{namespace}/tables", get(list_tables).post(create_table))
        .route("/v1/namespaces/{namespace}/register", post(register_table))
        .route(
            "/v1/namespaces/{namespace}/tables/{table}",
            get(load_table).head(table_exists).post(commit_table).delete(drop_table),
        )
        .route("/v1/namespaces/{namespace}/tables/{table}/metrics", post(report_metrics))
        .route("/v1/namespaces/{namespace}/views", get(list_views).post(create_view))
        .route("/v1/namespaces/{namespace}/views/{view}", get(view).head(view).post(view).delete(view))
        .route("/v1/tables/rename", post(rename_table))
        .route("/v1/views/rename", post(create_view))
        .route("/v1/transactions/commit", post(commit_transaction))
        .fallback(unknown)
        .layer(middleware::from_fn(limit_to_own))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(service);
    Router::new().nest("/iceberg", routes)
}

struct Answer(RestAnswer);

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let RestAnswer { status, body } = self.0;
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let Some(json) = body.and_then(|b| serde_json::to_vec(&b).ok()) else { return status.into_response() };
        let mut response = Response::new(Body::from(json));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

#[derive(Deserialize)]
struct ListQuery {
    parent: Option<String>,
}

#[derive(Deserialize)]
struct DropQuery {
    #[serde(rename = "purgeRequested")]
    purge_requested: Option<String>,
}

/// The tenant that the caller is limited to; none: an operator, or authentication is off.
fn own_tenant(caller: &Caller) -> Option<&str> {
    if caller.is_operator() {
        return None;
    }
    Some(caller.principal().map_or("", |principal| principal.tenant.as_str()))
}

/// Middleware: what is not the caller's is as if it were not there, and only operators change anything.
async fn limit_to_own(caller: Caller, request: Request, next: Next) -> Response {
    let Some(own) = own_tenant(&caller) else { return next.run(request).await };
    let (mut parts, body) = request.into_parts();
    // A path that there is not has none.
    let places = RawPathParams::from_request_parts(&mut parts, &()).await.ok();
    let request = Request::from_parts(parts, body);
    let reports = request.uri().path().ends_with("/metrics");
    if !matches!(*request.method(), Method::GET | Method::HEAD) && !reports {
        let message = "changes through the catalog need the permission operator";
        return Answer(RestAnswer::error(403, "ForbiddenException", message)).into_response();
    }
    if let Err(problem) = caller.check_some(Action::Read) {
        return problem.into_response();
    }
    let place = |name: &str| places.as_ref()?.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
    let absent = match (place("namespace"), place("table")) {
        (Some(namespace), _) if namespace != own => Some(("NoSuchNamespaceException", namespace)),
        (Some(namespace), Some(table)) if !caller.may_read(namespace, table) => Some(("NoSuchTableException", table)),
        _ => None,
    };
    match absent {
        Some((kind, name)) => Answer(RestAnswer::error(404, kind, &format!("{name} does not exist"))).into_response(),
        None => next.run(request).await,
    }
}

async fn unknown() -> Answer {
    Answer(RestAnswer::error(404, "NotFoundException", "no such path in the catalog"))
}

async fn config(State(service): Service) -> Answer {
    Answer(service.config())
}

async fn list_namespaces(State(service): Service, caller: Caller, Query(query): Query<ListQuery>) -> Answer {
    let mut answer = service.list_namespaces(query.parent.as_deref()).await;
    if let Some(own) = own_tenant(&caller) {
        answer.keep("namespaces", |namespace| namespace.get(0).and_then(Value::as_str) == Some(own));
    }
    Answer(answer)
}

async fn create_namespace(State(service): Service, body: Bytes) -> Answer {
    Answer(service.create_namespace(&body).await)
}

async fn load_namespace(State(service): Service, Path(namespace): Path<String>) -> Answer {
    Answer(service.load_namespace(&namespace).await)
}

async fn namespace_exists(State(service): Service, Path(namespace): Path<String>) -> Answer {
    Answer(service.namespace_exists(&namespace).await)
}

async fn drop_namespace(State(service): Service, Path(namespace): Path<String>) -> Answer {
    Answer(service.drop_namespace(&namespace).await)
}

async fn update_namespace(State(service): Service, Path(namespace): Path<String>, body: Bytes) -> Answer {
    Answer(service.update_namespace(&namespace, &body).await)
}

async fn list_tables(State(service): Service, caller: Caller, Path(namespace): Path<String>) -> Answer {
    let mut answer = service.list_tables(&namespace).await;
    answer.keep("identifiers", |table| {
        let name = table.get("name").and_then(Value::as_str);
        name.is_some_and(|name| caller.may_read(&namespace, name))
    });
    Answer(answer)
}

async fn create_table(State(service): Service, Path(namespace): Path<String>, body: Bytes) -> Answer {
    Answer(service.create_table(&namespace, &body).await)
}

async fn register_table(State(service): Service, Path(namespace): Path<String>, body: Bytes) -> Answer {
    Answer(service.register_table(&namespace, &body).await)
}

async fn load_table(State(service): Service, Path((namespace, table)): TablePath) -> Answer {
    Answer(service.load_table(&namespace, &table).await)
}

async fn table_exists(State(service): Service, Path((namespace, table)): TablePath) -> Answer {
    Answer(service.table_exists(&namespace, &table).await)
}

async fn commit_table(State(service): Service, Path((namespace, table)): TablePath, body: Bytes) -> Answer {
    Answer(service.commit_table(&namespace, &table, &body).await)
}

async fn drop_table(
    State(service): Service,
    Path((namespace, table)): TablePath,
    Query(query): Query<DropQuery>,
) -> Answer {
    let purge = query.purge_requested.is_some_and(|v| v.eq_ignore_ascii_case("true"));
    Answer(service.drop_table(&namespace, &table, purge).await)
}

async fn report_metrics(State(service): Service) -> Answer {
    Answer(service.report_metrics())
}

async fn rename_table(State(service): Service, body: Bytes) -> Answer {
    Answer(service.rename_table(&body).await)
}

async fn commit_transaction(State(service): Service, body: Bytes) -> Answer {
    Answer(service.commit_transaction(&body).await)
}

async fn list_views(State(service): Service, Path(namespace): Path<String>) -> Answer {
    Answer(service.list_views(&namespace).await)
}

async fn create_view(State(service): Service) -> Answer {
    Answer(service.create_view())
}

async fn view(State(service): Service, Path((_, view)): TablePath) -> Answer {
    Answer(service.view(&view))
}
