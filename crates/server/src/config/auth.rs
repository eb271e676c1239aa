//! The settings of who is let in, by what certificates connections are secret, and how much each may send.

use std::collections::BTreeMap;

use lakegate_access::{CertificateName, Grants, KeyRecord};
use lakegate_model::TenantId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::secret::Secret;
use super::settings::Settings;
use super::units::{Period, Size};

/// Whether requests need credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AuthMode {
    /// Anyone who reaches the port may write and read; the tenant is what the request says.
    None,
    /// Every request needs credentials, and the tenant is theirs.
    Required,
}

/// Who may do what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Auth {
    /// Whether requests need credentials. API keys of `lakegate key create` are taken then without further settings.
    pub(crate) mode: AuthMode,
    /// Whether a listener may bind to an address that other machines reach while `mode` is `none`.
    pub(crate) allow_anonymous_remote: bool,
    /// API keys besides those that `lakegate key` keeps in the data folder.
    #[schemars(extend("writeOnly" = true))]
    pub(crate) api_keys: Vec<ApiKey>,
    /// How bearer tokens (JWT) are checked. Without keys they are not taken.
    pub(crate) jwt: Jwt,
    /// Who shows which client certificate; needs `tls.client_ca`. The first entry that fits counts.
    pub(crate) mtls: Vec<Certificate>,
    /// How often credentials from one address may be wrong in a minute; past that the address is told to wait.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) attempts_per_minute: u32,
    /// Whether `GET /metrics` needs no credentials. The figures name all tenants and streams.
    pub(crate) open_metrics: bool,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            mode: AuthMode::None,
            allow_anonymous_remote: false,
            api_keys: Vec::new(),
            jwt: Jwt::default(),
            mtls: Vec::new(),
            attempts_per_minute: 30,
            open_metrics: false,
        }
    }
}

/// An API key of the configuration: by its hash, or by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("writeOnly" = true))]
pub(crate) struct ApiKey {
    /// The key itself, where it comes from a secret store by `LAKEGATE__AUTH__API_KEYS`. In a file prefer `id` and `hash`.
    #[serde(default)]
    pub(crate) key: Secret,
    /// The key's id: what stands between the first and the second `_`.
    #[serde(default)]
    pub(crate) id: String,
    /// The SHA-256 of the whole key, in hexadecimal digits.
    #[serde(default)]
    pub(crate) hash: Secret,
    /// Whose records it may touch.
    pub(crate) tenant: String,
    /// What it may do: `write`, `read`, `admin`, each alone or with a pattern of stream names as in `write:orders-*`;
    /// `operator`.
    pub(crate) permissions: Vec<String>,
}

impl ApiKey {
    pub(crate) fn record(&self) -> Result<KeyRecord, String> {
        let tenant = TenantId::new(&self.tenant).map_err(|e| e.to_string())?;
        let permissions = self.permissions.clone();
        Grants::parse(&permissions).map_err(|e| e.to_string())?;
        if !self.key.is_empty() {
            return KeyRecord::of_key(self.key.reveal(), tenant, permissions).map_err(|e| e.to_string());
        }
        let hash = self.hash.reveal();
        if self.id.is_empty() || hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(
                "needs `key`, or `id` and `hash` (64 hexadecimal digits); `lakegate key create` prints both".to_owned()
            );
        }
        Ok(KeyRecord {
            id: self.id.clone(),
            hash: hash.to_ascii_lowercase(),
            tenant,
            name: String::new(),
            permissions,
            created_us: 0,
            expires_us: None,
            revoked_us: None,
        })
    }
}

/// How tokens are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum JwtAlgorithm {
    /// HMAC with SHA-256: a secret that the issuer shares.
    #[serde(rename = "HS256")]
    Hs256,
    /// RSA with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// How bearer tokens are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Jwt {
    /// How tokens are signed. A token that says otherwise is refused.
    pub(crate) algorithm: JwtAlgorithm,
    /// A file with the keys: PEM blocks of public keys or certificates, a JWKS, or for HS256 the secret. It is read
    /// again when it changes.
    pub(crate) keys_file: String,
    /// The address of a JWKS, `https://…` unless it is on this machine.
    pub(crate) jwks_url: String,
    /// For HS256: the secret, at least 32 bytes.
    pub(crate) secret: Secret,
    /// How long the keys of `jwks_url` are used before they are asked for again.
    pub(crate) refresh: Period,
    /// How long a key is still taken that `jwks_url` no longer has.
    pub(crate) grace: Period,
    /// The claim `iss` must be one of these; empty: any.
    pub(crate) issuers: Vec<String>,
    /// The claim `aud` must name one of these; empty: any.
    pub(crate) audiences: Vec<String>,
    /// How far the issuer's clock may differ.
    pub(crate) leeway: Period,
    /// The claim that names the tenant.
    pub(crate) tenant_claim: String,
    /// The claim that holds permissions, as a list or as words with spaces between; words that are no permissions are
    /// passed over.
    pub(crate) permissions_claim: String,
    /// What every token may do besides.
    pub(crate) permissions: Vec<String>,
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            algorithm: JwtAlgorithm::Rs256,
            keys_file: String::new(),
            jwks_url: String::new(),
            secret: Secret::default(),
            refresh: Period::from_secs(300),
            grace: Period::from_secs(600),
            issuers: Vec::new(),
            audiences: Vec::new(),
            leeway: Period::from_secs(30),
            tenant_claim: "tenant".into(),
            permissions_claim: "scope".into(),
            permissions: Vec::new(),
        }
    }
}

impl Jwt {
    /// Whether tokens are taken.
    pub(crate) fn is_set(&self) -> bool {
        !self.keys_file.is_empty() || !self.jwks_url.is_empty() || !self.secret.is_empty()
    }
}

/// Who shows a client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Certificate {
    /// A name in the certificate: `cn:edge-1`, `dns:edge-1.example`, `uri:spiffe://…` or `email:…`.
    pub(crate) name: String,
    /// Whose records it may touch.
    pub(crate) tenant: String,
    /// What it may do, as for API keys.
    pub(crate) permissions: Vec<String>,
}

/// Whether clients must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClientCertificates {
    /// They may; who shows none needs other credentials.
    Optional,
    /// A connection without one is refused.
    Required,
}

/// TLS for both listeners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TlsSettings {
    /// The file of the server's certificate chain (PEM); empty: no TLS. It is read again when it changes.
    pub(crate) certificate: String,
    /// The file of its private key (PEM).
    pub(crate) key: String,
    /// The file of the certificates that sign those of clients (PEM); empty: clients are not asked for one.
    pub(crate) client_ca: String,
    /// Whether clients must show a certificate, where `client_ca` is set.
    pub(crate) client_certificates: ClientCertificates,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            certificate: String::new(),
            key: String::new(),
            client_ca: String::new(),
            client_certificates: ClientCertificates::Optional,
        }
    }
}

/// How much may be sent. 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rate {
    /// Records a second, over a few seconds. A request may bring a second's worth at once, and at least
    /// `ingestion.batch_size_max`.
    #[schemars(range(max = 1_000_000_000))]
    pub(crate) records_per_second: u64,
    /// Bytes of requests a second, likewise; at least one of `ingestion.message_bytes_max` is always taken.
    pub(crate) bytes_per_second: Size,
    /// Requests under way at once.
    pub(crate) requests: u32,
    /// Streams, sockets and feeds open at once.
    pub(crate) connections: u32,
    /// A tenant's share where several want more than there is: one of weight 2 gets twice what one of weight 1 gets.
    /// Of no effect for clients.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) weight: u32,
}

impl Default for Rate {
    fn default() -> Self {
        Self { records_per_second: 0, bytes_per_second: Size::mib(0), requests: 0, connections: 0, weight: 1 }
    }
}

/// How much each client and each tenant may send. They hold while `auth.mode` is `required`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rates {
    /// Of each client: an API key, a token's subject, a certificate.
    pub(crate) client: Rate,
    /// Of each tenant, all its clients together.
    pub(crate) tenant: Rate,
    /// Of tenants by name, in the place of `tenant`.
    pub(crate) tenants: BTreeMap<String, Rate>,
    /// What all tenants together may have under way, from reading until durable, while several send at once: divided by
    /// their weights. Smaller keeps those that send little faster beside one that floods; a lone tenant is not held up.
    pub(crate) share_window: Size,
}

impl Default for Rates {
    fn default() -> Self {
        let (client, tenant) = (Rate::default(), Rate::default());
        Self { client, tenant, tenants: BTreeMap::new(), share_window: Size::mib(1) }
    }
}

/// What does not go together.
pub(super) fn check(settings: &Settings, problems: &mut Vec<Problem>) {
    let auth = &settings.auth;
    for (at, key) in auth.api_keys.iter().enumerate() {
        problems.extend(key.record().err().map(|message| Problem::new(format!("auth.api_keys[{at}]"), message)));
    }
    for (at, certificate) in auth.mtls.iter().enumerate() {
        let path = format!("auth.mtls[{at}]");
        if CertificateName::parse(&certificate.name).is_none() {
            let message =
                format!("{:?} is not a name; write \"cn:…\", \"dns:…\", \"uri:…\" or \"email:…\"", certificate.name);
            problems.push(Problem::new(format!("{path}.name"), message));
        }
        let tenant = TenantId::new(&certificate.tenant).err().map(|e| e.to_string());
        let grants = Grants::parse(&certificate.permissions).err().map(|e| e.to_string());
        problems.extend([tenant, grants].into_iter().flatten().map(|message| Problem::new(path.clone(), message)));
    }
    if !auth.mtls.is_empty() && settings.tls.client_ca.is_empty() {
        problems.push(Problem::new("auth.mtls", "needs tls.client_ca: who signs the certificates of clients"));
    }
    check_jwt(&auth.jwt, problems);
    let tls = &settings.tls;
    if tls.certificate.is_empty() != tls.key.is_empty() {
        problems.push(Problem::new("tls", "`certificate` and `key` go together; set both or neither"));
    }
    if !tls.client_ca.is_empty() && tls.certificate.is_empty() {
        problems.push(Problem::new("tls.client_ca", "needs tls.certificate and tls.key"));
    }
    for name in settings.limits.rates.tenants.keys() {
        let wrong = TenantId::new(name).err().map(|e| e.to_string());
        problems.extend(wrong.map(|message| Problem::new(format!("limits.rates.tenants.{name}"), message)));
    }
}

fn check_jwt(jwt: &Jwt, problems: &mut Vec<Problem>) {
    let sources = [!jwt.keys_file.is_empty(), !jwt.jwks_url.is_empty(), !jwt.secret.is_empty()];
    if sources.iter().filter(|set| **set).count() > 1 {
        problems.push(Problem::new("auth.jwt", "set one of `keys_file`, `jwks_url` and `secret`"));
    }
    if !jwt.secret.is_empty() && jwt.algorithm != JwtAlgorithm::Hs256 {
        problems
            .push(Problem::new("auth.jwt.secret", "is for the algorithm HS256; others need `keys_file` or `jwks_url`"));
    }
    if !jwt.secret.is_empty() && jwt.secret.reveal().len() < 32 {
        problems.push(Problem::new("auth.jwt.secret", "is shorter than 32 bytes, the least for HS256 (RFC 7518)"));
    }
    if !jwt.jwks_url.is_empty() && !is_safe(&jwt.jwks_url) {
        let message =
            "is not an address that keys may come from; write \"https://host/path\", or \"http://127.0.0.1…\"";
        problems.push(Problem::new("auth.jwt.jwks_url", message));
    }
    if let Err(error) = Grants::parse(&jwt.permissions) {
        problems.push(Problem::new("auth.jwt.permissions", error.to_string()));
    }
    if jwt.is_set() && jwt.issuers.is_empty() && jwt.audiences.is_empty() {
        let message =
            "set `issuers` or `audiences`: else a token that the issuer made for another service is taken too";
        problems.push(Problem::new("auth.jwt", message));
    }
    for (path, period) in [("auth.jwt.refresh", jwt.refresh), ("auth.jwt.leeway", jwt.leeway)] {
        let (least, most) = if path.ends_with("refresh") { (10, 86_400) } else { (0, 600) };
        let seconds = period.get().as_secs();
        if seconds < least || seconds > most {
            problems.push(Problem::new(path, format!("found {period}, expected {least}s to {most}s")));
        }
    }
}

fn is_safe(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let local = matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
    let named = url.username().is_empty() && url.password().is_none() && url.host_str().is_some();
    named && (url.scheme() == "https" || (url.scheme() == "http" && local))
}
