//! Sets up who is let in, from the configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lakegate_access::{
    Access, AccessOptions, CertificateName, CertificateRule, ClaimRules, Grants, KEY_FILE, Limits, Principal, Proof,
    QuotaOptions, Quotas, Tls, TlsOptions, TokenAlgorithm, TokenKeysFrom, TokenOptions,
};
use lakegate_env::Clock;
use lakegate_model::TenantId;
use tokio_util::sync::CancellationToken;

use super::ServeError;
use crate::config::{Auth, AuthMode, ClientCertificates, Config, JwtAlgorithm, Rate};

/// How often the certificates are looked at.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(2);

/// A tenant that waits for its turn may take so small a part of the memory budget.
const QUEUE_SHARE: usize = 16;

pub(super) fn open(config: &Config, clock: Arc<dyn Clock>) -> Result<Access, ServeError> {
    let auth = &config.settings.auth;
    let wrong = |message: String| ServeError::Access(message);
    let api_keys: Result<Vec<_>, _> = auth.api_keys.iter().map(|key| key.record()).collect();
    let options = AccessOptions {
        required: auth.mode == AuthMode::Required,
        api_keys: api_keys.map_err(wrong)?,
        key_file: Some(config.data_dir().join(KEY_FILE)),
        tokens: tokens(auth),
        certificates: certificates(auth).map_err(wrong)?,
        attempts_per_minute: auth.attempts_per_minute,
        quotas: quotas(config, clock.clone()),
        clock,
    };
    Access::new(options).map_err(|e| wrong(e.to_string()))
}

fn quotas(config: &Config, clock: Arc<dyn Clock>) -> Quotas {
    let (rates, ingestion) = (&config.settings.limits.rates, &config.settings.ingestion);
    let named = rates.tenants.iter().filter_map(|(name, rate)| Some((TenantId::new(name).ok()?, limits(rate))));
    Quotas::new(QuotaOptions {
        client: limits(&rates.client),
        tenant: limits(&rates.tenant),
        tenants: named.collect(),
        request_records_max: u64::from(ingestion.batch_size_max),
        request_bytes_max: ingestion.message_bytes_max.bytes(),
        window_bytes: rates.share_window.as_usize(),
        queue_bytes: ingestion.memory_budget.as_usize() / QUEUE_SHARE,
        clock,
    })
}

fn limits(rate: &Rate) -> Limits {
    Limits {
        records_per_second: rate.records_per_second,
        bytes_per_second: rate.bytes_per_second.bytes(),
        requests: rate.requests,
        connections: rate.connections,
        weight: rate.weight,
    }
}

fn tokens(auth: &Auth) -> Option<TokenOptions> {
    let jwt = &auth.jwt;
    let keys = match (jwt.secret.is_empty(), jwt.keys_file.as_str(), jwt.jwks_url.as_str()) {
        (false, _, _) => TokenKeysFrom::Given(jwt.secret.reveal().as_bytes().to_vec()),
        (_, "", "") => return None,
        (_, "", url) => TokenKeysFrom::Url { url: url.to_owned(), refresh: jwt.refresh.get(), grace: jwt.grace.get() },
        (_, file, _) => TokenKeysFrom::File(PathBuf::from(file)),
    };
    let algorithm = match jwt.algorithm {
        JwtAlgorithm::Hs256 => TokenAlgorithm::Hs256,
        JwtAlgorithm::Rs256 => TokenAlgorithm::Rs256,
        JwtAlgorithm::Es256 => TokenAlgorithm::Es256,
        JwtAlgorithm::EdDsa => TokenAlgorithm::EdDsa,
    };
    let claims = ClaimRules {
        issuers: jwt.issuers.clone(),
        audiences: jwt.audiences.clone(),
        leeway_s: u32::try_from(jwt.leeway.get().as_secs()).unwrap_or(u32::MAX),
        lifetime_max_s: None,
        tenant_claim: jwt.tenant_claim.clone(),
        permissions_claim: jwt.permissions_claim.clone(),
        permissions: jwt.permissions.clone(),
    };
    Some(TokenOptions { algorithm, keys, claims })
}

fn certificates(auth: &Auth) -> Result<Vec<CertificateRule>, String> {
    let rule = |certificate: &crate::config::Certificate| {
        let name = CertificateName::parse(&certificate.name).ok_or_else(|| certificate.name.clone())?;
        let principal = Principal {
            id: Arc::from(format!("certificate:{}", certificate.name)),
            tenant: TenantId::new(&certificate.tenant).map_err(|e| e.to_string())?,
            grants: Grants::parse(&certificate.permissions).map_err(|e| e.to_string())?,
            expires_us: None,
            proof: Proof::Certificate,
        };
        Ok(CertificateRule { name, principal })
    };
    auth.mtls.iter().map(rule).collect()
}

/// The certificates of the listeners, if there are to be any.
pub(super) fn open_tls(config: &Config) -> Result<Option<Tls>, ServeError> {
    let tls = &config.settings.tls;
    if tls.certificate.is_empty() {
        return Ok(None);
    }
    let options = TlsOptions {
        certificate: PathBuf::from(&tls.certificate),
        key: PathBuf::from(&tls.key),
        client_ca: (!tls.client_ca.is_empty()).then(|| PathBuf::from(&tls.client_ca)),
        client_required: tls.client_certificates == ClientCertificates::Required,
    };
    Tls::open(options).map(Some).map_err(|e| ServeError::Access(e.to_string()))
}

/// Notices keys that are made or revoked and certificates that are replaced, until it is stopped.
pub(super) async fn look_after(access: Access, tls: Option<Tls>, stop: CancellationToken) {
    let certificates = async {
        let Some(tls) = tls else { return std::future::pending().await };
        let mut every = tokio::time::interval(CERTIFICATES_EVERY);
        let mut wrong = None;
        loop {
            every.tick().await;
            match tls.refresh() {
                Ok(true) => tracing::info!("new connections get the certificates that were put in place"),
                Ok(false) => wrong = None,
                Err(error) if wrong.as_ref() == Some(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "the certificates in use stay: those put in place cannot be used");
                    wrong = Some(error);
                }
            }
        }
    };
    tokio::select! {
        () = access.run(stop) => {}
        () = certificates => {}
    }
}
