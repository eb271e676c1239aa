//! From a request's headers and its connection to a principal.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use lakegate_env::Clock;
use lakegate_model::{StreamName, TenantId};
use metrics::counter;
use tokio_util::sync::CancellationToken;

use crate::api_keys::ApiKeys;
use crate::error::AccessError;
use crate::guard::Guard;
use crate::jwt::{TokenError, TokenKeyError, TokenOptions, Tokens};
use crate::key_file::{KeyFileError, KeyRecord, id_of_key};
use crate::peer::{CertificateRule, Peer, principal_of};
use crate::principal::{Action, Principal, Proof};
use crate::quota::{Opened, Quotas};
use crate::shown::Shown;

/// How often the key file and the keys of tokens are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often something that is open looks whether its credentials still hold.
pub const RECHECK_EVERY: Duration = Duration::from_secs(2);

/// Who is let in.
pub struct AccessOptions {
    /// Whether credentials are needed at all.
    pub required: bool,
    /// API keys of the configuration.
    pub api_keys: Vec<KeyRecord>,
    /// The file of further ones.
    pub key_file: Option<PathBuf>,
    /// How tokens are checked, where they are taken.
    pub tokens: Option<TokenOptions>,
    /// Who shows which certificate.
    pub certificates: Vec<CertificateRule>,
    /// How often an address may be wrong in a minute.
    pub attempts_per_minute: u32,
    /// How much each may send.
    pub quotas: Quotas,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// Why credentials cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum AccessOpenError {
    /// The API keys.
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    /// The keys for tokens.
    #[error("the keys that tokens are checked with (auth.jwt): {0}")]
    Tokens(#[from] TokenKeyError),
}

/// What became of credentials that were shown to an earlier process.
#[derive(Debug, Clone)]
pub enum StillHolds {
    /// Authentication is off: nobody is asked for credentials.
    NotAsked,
    /// They are revoked, over, or not known.
    No,
    /// Whose they are.
    Yes(Arc<Principal>),
}

/// Tells who asks. Clones share it.
#[derive(Clone)]
pub struct Access(Option<Arc<Inner>>);

struct Inner {
    clock: Arc<dyn Clock>,
    keys: ApiKeys,
    tokens: Option<Tokens>,
    certificates: Vec<CertificateRule>,
    guard: Guard,
    quotas: Quotas,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("required", &self.is_required()).finish_non_exhaustive()
    }
}

/// What a request brings. Shown by none of its parts.
enum Credentials<'a> {
    Key { id: &'a str, key: &'a str },
    Token(&'a str),
}

impl Access {
    /// Everybody is let in, and nobody is known.
    #[must_use]
    pub fn open_to_all() -> Self {
        Self(None)
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// Keys of the configuration, of the file or for tokens cannot be used.
    pub fn new(options: AccessOptions) -> Result<Self, AccessOpenError> {
        if !options.required {
            return Ok(Self(None));
        }
        let clock = options.clock;
        let tokens = options.tokens.map(|tokens| Tokens::open(tokens, clock.clone())).transpose()?;
        Ok(Self(Some(Arc::new(Inner {
            keys: ApiKeys::open(clock.clone(), options.api_keys, options.key_file)?,
            tokens,
            certificates: options.certificates,
            guard: Guard::new(clock.clone(), options.attempts_per_minute),
            quotas: options.quotas,
            clock,
        }))))
    }

    /// Whether credentials are needed.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.0.is_some()
    }

    /// How much each may send; none while authentication is off.
    #[must_use]
    pub fn quotas(&self) -> Option<&Quotas> {
        self.0.as_ref().map(|inner| &inner.quotas)
    }

    /// A place for a stream, socket or feed that stays open; held until it is dropped.
    ///
    /// # Errors
    /// [`AccessError::OverQuota`] where the client or its tenant has so many open already.
    pub fn open_place(&self, principal: Option<&Principal>) -> Result<Option<Opened>, AccessError> {
        let (Some(quotas), Some(principal)) = (self.quotas(), principal) else { return Ok(None) };
        quotas.open(principal).map(Some).map_err(AccessError::OverQuota)
    }

    /// Looks after the keys until it is stopped: notices those that are made, revoked or replaced.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(inner) = &self.0 else { return stop.cancelled().await };
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut wrong = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = every.tick() => {}
            }
            let error = inner.keys.refresh().err().map(|error| error.to_string());
            if let Some(text) = error.as_ref().filter(|_| error != wrong) {
                tracing::error!(error = text, "the API keys could not be read again; those known stay valid");
            }
            wrong = error;
            if let Some(tokens) = &inner.tokens {
                tokens.refresh().await;
            }
        }
    }

    /// Who sends a request with these headers over that connection; none while authentication is off.
    ///
    /// Looks at `authorization: Bearer …` (a token or an API key) and `x-api-key`, else at the connection's certificate.
    /// Costs under 2 µs for an API key, and for a token that was checked before.
    ///
    /// # Errors
    /// No credentials, wrong ones, or wrong ones too often.
    pub async fn authenticate(&self, headers: &HeaderMap, peer: &Peer) -> Result<Option<Arc<Principal>>, AccessError> {
        let Some(inner) = &self.0 else { return Ok(None) };
        let found = inner.find(headers, peer).await;
        if let Err(error) = &found {
            counter!("lakegate_access_refused_total", "code" => error.code()).increment(1);
        }
        found.map(Some)
    }

    /// Whether what an open stream or socket began with still holds: not revoked, not over, its permissions the same.
    #[must_use]
    pub fn still_holds(&self, principal: &Principal) -> bool {
        let Some(inner) = &self.0 else { return true };
        match &principal.proof {
            Proof::ApiKey(id) => inner.keys.holds(id, principal),
            Proof::Token(_) => inner.tokens.as_ref().is_some_and(|tokens| tokens.holds(principal)),
            Proof::Certificate => inner.is_in_time(principal),
        }
    }

    /// Whether what was shown to an earlier process still holds: an API key, as it is now; a token whose key is still one
    /// of ours; a certificate whose name the configuration still has, for the same tenant and permissions.
    #[must_use]
    pub fn holds_again(&self, shown: &Shown) -> StillHolds {
        let Some(inner) = &self.0 else { return StillHolds::NotAsked };
        let found = match shown {
            Shown::Key(id) => inner.keys.principal_of(id),
            Shown::Said(said) => said
                .principal()
                .filter(|principal| self.still_holds(principal) && inner.is_known(principal))
                .map(Arc::new),
        };
        found.map_or(StillHolds::No, StillHolds::Yes)
    }

    /// Waits until the credentials no longer hold; forever where there are none.
    pub async fn ended(&self, principal: Option<&Principal>) {
        let Some(principal) = principal else { return std::future::pending().await };
        while self.still_holds(principal) {
            tokio::time::sleep(RECHECK_EVERY).await;
        }
    }
}

/// Whether the principal may do `action` with the stream. Everybody may while authentication is off.
///
/// # Errors
/// [`AccessError::Denied`].
pub fn check(principal: Option<&Principal>, action: Action, stream: &StreamName) -> Result<(), AccessError> {
    match principal {
        Some(principal) if !principal.may(action, stream) => {
            Err(AccessError::Denied { action: Some(action), what: format!("the stream {stream}") })
        }
        _ => Ok(()),
    }
}

/// Whose records are meant where a request asks for those of `asked`: a principal's own and no other's, an operator's
/// and everybody's while authentication is off. None: those of all tenants.
///
/// # Errors
/// [`AccessError::Denied`] where another tenant is asked for: the same answer whether there is one of that name or not.
pub fn scope(principal: Option<&Principal>, asked: Option<TenantId>) -> Result<Option<TenantId>, AccessError> {
    let Some(principal) = principal.filter(|principal| !principal.is_operator()) else { return Ok(asked) };
    match asked {
        Some(other) if other != principal.tenant => {
            Err(AccessError::Denied { action: None, what: "they are for another tenant".to_owned() })
        }
        _ => Ok(Some(principal.tenant.clone())),
    }
}

/// Whether the principal may read what belongs to that stream or table: an operator all.
#[must_use]
pub fn may_read(principal: Option<&Principal>, tenant: &str, name: &str) -> bool {
    principal.is_none_or(|principal| {
        principal.is_operator() || (principal.tenant.as_str() == tenant && principal.may_name(Action::Read, name))
    })
}

/// Whether the principal may do `action` with at least some stream.
///
/// # Errors
/// [`AccessError::Denied`].
pub fn check_some(principal: Option<&Principal>, action: Action) -> Result<(), AccessError> {
    let operates = |principal: &Principal| action == Action::Read && principal.is_operator();
    match principal {
        Some(principal) if !principal.may_some(action) && !operates(principal) => {
            Err(AccessError::Denied { action: Some(action), what: "any stream".to_owned() })
        }
        _ => Ok(()),
    }
}

/// Whether the principal looks after the installation as a whole.
///
/// # Errors
/// [`AccessError::Denied`].
pub fn check_operator(principal: Option<&Principal>) -> Result<(), AccessError> {
    match principal {
        Some(principal) if !principal.is_operator() => {
            Err(AccessError::Denied { action: None, what: "the permission operator is needed".to_owned() })
        }
        _ => Ok(()),
    }
}

/// Refuses addresses that carry credentials: they are logged by everything on the way.
///
/// # Errors
/// [`AccessError::InAddress`].
pub fn check_query(query: Option<&str>) -> Result<(), AccessError> {
    const NAMES: [&str; 9] =
        ["access_token", "api_key", "apikey", "api-key", "x-api-key", "authorization", "token", "jwt", "bearer"];
    let Some(query) = query else { return Ok(()) };
    // Names are compared as a server would read them: decoded.
    let Ok(address) = reqwest::Url::parse(&format!("http://x/?{query}")) else { return Ok(()) };
    let is_credential = |name: &str| NAMES.iter().any(|known| name.eq_ignore_ascii_case(known));
    match address.query_pairs().any(|(name, _)| is_credential(&name)) {
        true => Err(AccessError::InAddress),
        false => Ok(()),
    }
}

impl Inner {
    async fn find(&self, headers: &HeaderMap, peer: &Peer) -> Result<Arc<Principal>, AccessError> {
        let Some(credentials) = credentials(headers)? else {
            let Some(certificate) = &peer.certificate else { return Err(AccessError::Missing) };
            let principal = principal_of(&self.certificates, certificate).ok_or(AccessError::Certificate)?;
            return if self.is_in_time(&principal) { Ok(principal) } else { Err(AccessError::Certificate) };
        };
        let id = match &credentials {
            Credentials::Key { id, .. } => Some(*id),
            Credentials::Token(_) => None,
        };
        if let Some(retry_after_s) = self.guard.must_wait(peer.address, id) {
            return Err(AccessError::TooManyAttempts { retry_after_s });
        }
        let found = match credentials {
            Credentials::Key { id, key } => self.keys.find(id, key).ok_or(AccessError::Key),
            Credentials::Token(token) => self.token(token).await.map_err(AccessError::Token),
        };
        if matches!(found, Err(AccessError::Key | AccessError::Token(TokenError::Invalid))) {
            self.guard.note_failure(peer.address, id);
        }
        found
    }

    async fn token(&self, token: &str) -> Result<Arc<Principal>, TokenError> {
        let tokens = self.tokens.as_ref().ok_or(TokenError::Invalid)?;
        match tokens.known(token) {
            Some(known) => known,
            None => tokens.check(token).await,
        }
    }

    /// Whether a certificate's name is still in the configuration as it was.
    fn is_known(&self, principal: &Principal) -> bool {
        let same = |rule: &CertificateRule| {
            let Principal { id, tenant, grants, .. } = &rule.principal;
            (id, tenant, grants) == (&principal.id, &principal.tenant, &principal.grants)
        };
        principal.proof != Proof::Certificate || self.certificates.iter().any(same)
    }

    fn is_in_time(&self, principal: &Principal) -> bool {
        principal.expires_us.is_none_or(|end| self.clock.wall_us() < end)
    }
}

/// The one credential among the headers.
fn credentials(headers: &HeaderMap) -> Result<Option<Credentials<'_>>, AccessError> {
    let one = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let first = values.next();
        if values.next().is_some() {
            return Err(AccessError::Malformed("credentials came twice; send one"));
        }
        let strange = || AccessError::Malformed("the credentials are not plain text");
        first.map(|value| value.to_str().map(str::trim).map_err(|_| strange())).transpose()
    };
    let of_key = |key| {
        let id = id_of_key(key).ok_or(AccessError::Key)?;
        Ok(Some(Credentials::Key { id, key }))
    };
    match (one("authorization")?, one("x-api-key")?) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(AccessError::Malformed("both authorization and x-api-key came; send one of them")),
        (None, Some(key)) => of_key(key),
        (Some(text), None) => {
            let bearer = text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            let Some((_, token)) = bearer else {
                return Err(AccessError::Malformed(
                    "the header authorization is of the form `Bearer <token or API key>`",
                ));
            };
            let token = token.trim();
            if token.starts_with("lgk_") { of_key(token) } else { Ok(Some(Credentials::Token(token))) }
        }
    }
}
