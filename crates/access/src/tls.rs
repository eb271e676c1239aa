//! TLS for the listeners: certificates from files that may be replaced while the server runs.
//!
//! Promises: TLS 1.2 or newer, with the suites of rustls; new connections get the newest certificate that could be read,
//! open ones keep theirs; a replacement that cannot be used changes nothing and is said. Refuses: renegotiation and
//! compressed certificates, which rustls does not have or is not built with.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::peer::PeerCertificate;
use crate::secret::{Digest, sha256};

/// Where certificates are, and whether clients must show one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// The server's chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Who signs the certificates of clients, PEM; none: clients are not asked for one.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate is let in at all.
    pub client_required: bool,
}

/// Why TLS cannot be set up. The texts hold nothing of the files but their names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct TlsError {
    path: String,
    message: String,
}

impl TlsError {
    fn at(path: &Path, message: impl fmt::Display) -> Self {
        Self { path: path.display().to_string(), message: message.to_string() }
    }
}

/// The TLS of the listeners. Clones share it.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    options: TlsOptions,
    config: RwLock<Arc<ServerConfig>>,
    seen: Mutex<Digest>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("options", &self.0.options).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the certificates.
    ///
    /// # Errors
    /// A file cannot be read, or does not hold what it must.
    pub fn open(options: TlsOptions) -> Result<Self, TlsError> {
        let files = Files::read(&options)?;
        let config = Arc::new(files.config(&options)?);
        Ok(Self(Arc::new(Inner { config: RwLock::new(config), seen: Mutex::new(files.digest()), options })))
    }

    /// Reads the certificates again if they were replaced. Says whether they were.
    ///
    /// # Errors
    /// They cannot be used; those in use stay.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        let files = Files::read(&self.0.options)?;
        let digest = files.digest();
        let mut seen = self.0.seen.lock();
        if *seen == digest {
            return Ok(false);
        }
        let config = files.config(&self.0.options)?;
        *self.0.config.write() = Arc::new(config);
        *seen = digest;
        Ok(true)
    }

    /// Shakes hands with a client. Who calls bounds the time.
    ///
    /// # Errors
    /// The client speaks no TLS, or shows no right certificate where one is needed.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = self.0.config.read().clone();
        TlsAcceptor::from(config).accept(stream).await
    }
}

/// The names in the certificate that the client has shown.
#[must_use]
pub(crate) fn certificate_of(stream: &TlsStream<TcpStream>) -> Option<Arc<PeerCertificate>> {
    let (_, session) = stream.get_ref();
    PeerCertificate::read(session.peer_certificates()?.first()?).map(Arc::new)
}

struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Files {
    fn read(options: &TlsOptions) -> Result<Self, TlsError> {
        let read = |path: &Path| std::fs::read(path).map_err(|e| TlsError::at(path, e));
        Ok(Self {
            certificate: read(&options.certificate)?,
            key: read(&options.key)?,
            client_ca: options.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn digest(&self) -> Digest {
        let ca = self.client_ca.as_deref().unwrap_or_default();
        sha256(&[sha256(&self.certificate), sha256(&self.key), sha256(ca)].concat())
    }

    fn config(&self, options: &TlsOptions) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&options.certificate, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key);
        let key = key.map_err(|_| TlsError::at(&options.key, "holds no private key in PEM"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::at(&options.certificate, e))?;
        let builder = match (&options.client_ca, &self.client_ca) {
            (Some(path), Some(bytes)) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path, bytes)? {
                    roots.add(root).map_err(|e| TlsError::at(path, e))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if options.client_required { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build().map_err(|e| TlsError::at(path, e))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let unusable =
            |e| TlsError::at(&options.certificate, format!("does not go with {}: {e}", options.key.display()));
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(TlsError::at(path, "holds no certificate in PEM")),
        Err(e) => Err(TlsError::at(path, format!("is not PEM: {e}"))),
    }
}
