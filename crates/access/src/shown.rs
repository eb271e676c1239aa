//! What a principal showed, as it is kept with work that goes on over restarts.
//!
//! Of an API key its id: what the key may do is looked up again. A token and a certificate are not kept; what they said is:
//! who it was, what that one may do, until when, and by which of our keys or names we knew.

use std::sync::Arc;

use lakegate_model::TenantId;
use serde::{Deserialize, Serialize};

use crate::principal::{Grants, Principal, Proof};

/// What a principal showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Shown {
    /// An API key, by its id.
    Key(Box<str>),
    /// A token or a certificate.
    Said(Said),
}

/// What a token or a certificate said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    pub(crate) id: String,
    tenant: String,
    /// Permissions, with spaces between them.
    permissions: String,
    expires_us: Option<i64>,
    /// The fingerprint of the key that a token was signed with; none of a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signed_with: Option<[u8; 32]>,
}

impl Shown {
    /// What this principal showed.
    #[must_use]
    pub fn by(principal: &Principal) -> Self {
        let signed_with = match &principal.proof {
            Proof::ApiKey(id) => return Self::Key(Box::from(&**id)),
            Proof::Token(fingerprint) => Some(*fingerprint),
            Proof::Certificate => None,
        };
        let (id, tenant) = (principal.id.to_string(), principal.tenant.as_str().to_owned());
        let (permissions, expires_us) = (principal.grants.to_string(), principal.expires_us);
        Self::Said(Said { id, tenant, permissions, expires_us, signed_with })
    }
}

impl Said {
    /// The principal of whom that was said. None: the text was damaged.
    pub(crate) fn principal(&self) -> Option<Principal> {
        let permissions: Vec<&str> = self.permissions.split_whitespace().collect();
        Some(Principal {
            id: Arc::from(self.id.as_str()),
            tenant: TenantId::new(&self.tenant).ok()?,
            grants: Grants::parse(&permissions).ok()?,
            expires_us: self.expires_us,
            proof: self.signed_with.map_or(Proof::Certificate, Proof::Token),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_reads_back_and_an_api_key_s_id_is_a_text() {
        let principal = |proof, permissions: &[&str]| Principal {
            id: "token:alice".into(),
            tenant: TenantId::new("acme").unwrap(),
            grants: Grants::parse(permissions).unwrap(),
            expires_us: Some(17),
            proof,
        };
        for principal in [
            principal(Proof::Token([7; 32]), &["write:orders-*", "read", "operator"]),
            principal(Proof::Certificate, &[]),
        ] {
            let text = serde_json::to_string(&Shown::by(&principal)).unwrap();
            let Ok(Shown::Said(said)) = serde_json::from_str(&text) else { panic!("{text}") };
            assert_eq!(said.principal(), Some(principal));
        }
        let key = Shown::by(&principal(Proof::ApiKey("3f9a".into()), &["write"]));
        assert_eq!(serde_json::to_string(&key).unwrap(), "\"3f9a\"");
        assert_eq!(serde_json::from_str::<Shown>("\"3f9a\"").unwrap(), key);
    }
}
