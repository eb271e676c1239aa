//! The other end of a connection: its address, and the names in its certificate.

use std::net::IpAddr;
use std::sync::Arc;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::principal::{Principal, Proof};

/// The other end of a connection.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// Its address.
    pub address: Option<IpAddr>,
    /// Its certificate, where TLS asked for one and it was signed as it must be.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// A name that a certificate gives its owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateName {
    /// The common name of its subject.
    CommonName(String),
    /// A DNS name among the alternative names of its subject.
    Dns(String),
    /// An address such as `spiffe://…` among them.
    Uri(String),
    /// A mail address among them.
    Email(String),
}

impl CertificateName {
    /// Reads `cn:edge-1`, `dns:edge-1.example`, `uri:spiffe://…`, `email:…`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once(':').filter(|(_, name)| !name.is_empty())?;
        let name = name.to_owned();
        match kind {
            "cn" => Some(Self::CommonName(name)),
            "dns" => Some(Self::Dns(name.to_ascii_lowercase())),
            "uri" => Some(Self::Uri(name)),
            "email" => Some(Self::Email(name)),
            _ => None,
        }
    }
}

/// What is known of a client's certificate. That its chain is right was checked by TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    names: Vec<CertificateName>,
    expires_us: i64,
}

impl PeerCertificate {
    /// Reads the names in a certificate.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        let mut names: Vec<CertificateName> = common.map(|name| CertificateName::CommonName(name.to_owned())).collect();
        let alternative = certificate.subject_alternative_name().ok().flatten();
        for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
            names.extend(match name {
                GeneralName::DNSName(name) => Some(CertificateName::Dns(name.to_ascii_lowercase())),
                GeneralName::URI(name) => Some(CertificateName::Uri((*name).to_owned())),
                GeneralName::RFC822Name(name) => Some(CertificateName::Email((*name).to_owned())),
                _ => None,
            });
        }
        let expires_us = certificate.validity().not_after.timestamp().saturating_mul(1_000_000);
        Some(Self { names, expires_us })
    }
}

/// Who it is that shows a certificate of that name.
#[derive(Debug, Clone)]
pub struct CertificateRule {
    /// The name.
    pub name: CertificateName,
    /// Who it is. The time at which its certificate ends is put in when it is shown.
    pub principal: Principal,
}

/// Who shows this certificate, by the first rule that fits.
pub(crate) fn principal_of(rules: &[CertificateRule], certificate: &PeerCertificate) -> Option<Arc<Principal>> {
    let rule = rules.iter().find(|rule| certificate.names.contains(&rule.name))?;
    let expires_us = Some(certificate.expires_us);
    Some(Arc::new(Principal { expires_us, proof: Proof::Certificate, ..rule.principal.clone() }))
}
