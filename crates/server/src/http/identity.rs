//! Who sends a request: found before anything of its body is read, kept beside it for the handlers.
//!
//! `/health`, `/livez` and `/readyz` are answered to everybody, without details to those that are not known; every other
//! path, also one that there is not, needs credentials while `auth.mode` is `required`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use lakegate_access::{self as access, Access, AccessError, Action, Peer, Principal};
use lakegate_model::{StreamName, TenantId};

use super::problem::Problem;

/// What everybody may ask.
const OPEN: [&str; 3] = ["/health", "/livez", "/readyz"];

/// Who is let in, and where without credentials.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    pub(crate) access: Access,
    pub(crate) open_metrics: bool,
}

/// Who sends the request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    principal: Option<Arc<Principal>>,
    is_unknown: bool,
}

impl Caller {
    /// None while authentication is off, and for those that need none.
    pub(crate) fn principal(&self) -> Option<&Arc<Principal>> {
        self.principal.as_ref()
    }

    /// Credentials are needed elsewhere, and this one has none.
    pub(crate) fn is_unknown(&self) -> bool {
        self.is_unknown
    }

    /// Whether it sees what is of the whole server.
    pub(crate) fn is_operator(&self) -> bool {
        !self.is_unknown && self.principal.as_ref().is_none_or(|principal| principal.is_operator())
    }

    /// Whose records are meant where those of `asked` are asked for; none: those of all.
    pub(crate) fn scope(&self, asked: Option<TenantId>) -> Result<Option<TenantId>, Problem> {
        Ok(access::scope(self.principal.as_deref(), asked)?)
    }

    /// Whether it may do this with some stream at least.
    pub(crate) fn check_some(&self, action: Action) -> Result<(), Problem> {
        Ok(access::check_some(self.principal.as_deref(), action)?)
    }

    /// Whether it may read that stream.
    pub(crate) fn check_read(&self, stream: &StreamName) -> Result<(), Problem> {
        let principal = self.principal.as_deref().filter(|principal| !principal.is_operator());
        Ok(access::check(principal, Action::Read, stream)?)
    }

    /// Whether it may do this with the stream or table of that name.
    pub(crate) fn check_name(&self, action: Action, name: &str) -> Result<(), Problem> {
        let principal = self.principal.as_deref().filter(|principal| !principal.is_operator());
        match principal {
            Some(principal) if !principal.may_name(action, name) => {
                Err(AccessError::Denied { action: Some(action), what: name.to_owned() }.into())
            }
            _ => Ok(()),
        }
    }

    /// Whether it looks after the whole.
    pub(crate) fn check_operator(&self) -> Result<(), Problem> {
        Ok(access::check_operator(self.principal.as_deref())?)
    }

    /// Whether it may read what belongs to that stream or table.
    pub(crate) fn may_read(&self, tenant: &str, name: &str) -> bool {
        access::may_read(self.principal.as_deref(), tenant, name)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // Without the middleware nobody is known, and nothing of the whole is shown.
        let unknown = || Self { principal: None, is_unknown: true };
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_else(unknown))
    }
}

/// Middleware: finds who sends the request, or refuses it.
pub(crate) async fn authenticate(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    if request.uri().path().starts_with("/v1/") {
        access::take_basic(request.headers_mut());
    }
    let found = match access::check_query(request.uri().query()) {
        Ok(()) => door.access.authenticate(request.headers(), &peer).await,
        Err(error) if door.access.is_required() => Err(error),
        Err(_) => Ok(None),
    };
    let path = request.uri().path();
    let is_open = OPEN.contains(&path) || (door.open_metrics && path == "/metrics");
    let caller = match found {
        Ok(principal) => Caller { principal, is_unknown: false },
        Err(_) if is_open => Caller { principal: None, is_unknown: true },
        Err(error) => return Problem::from(error).into_response(),
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        let mut problem = Self::new(error.status(), error.code(), error.to_string());
        if let AccessError::OverQuota(over) = &error {
            problem = problem.with("limit", over.limit).with("setting", over.setting.clone());
        }
        let problem = match error.retry_after_s() {
            Some(seconds) => problem.retry_after(seconds),
            None => problem,
        };
        match error.challenge().filter(|_| error.status() == StatusCode::UNAUTHORIZED) {
            Some(challenge) => problem.with_header(WWW_AUTHENTICATE, HeaderValue::from_static(challenge)),
            None => problem,
        }
    }
}
