//! Names of tenants, streams and tables.
//!
//! A name reaches file paths, SQL and metrics, so that only lower-case letters, digits, `_` and `-` are let in; the
//! rule is applied once, here, and nowhere else is a name quoted or cleaned.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The most bytes that a name may have.
const MAX_NAME_BYTES: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} {found:?} is not a valid name: it needs 1 to 63 lower-case letters, digits, '_' or '-', not beginning with '-'"
)]
pub struct NameError {
    /// What was being named, such as `tenant`.
    pub kind: &'static str,
    /// The text that was found, cut to 80 characters.
    pub found: String,
}

fn check(kind: &'static str, text: &str) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let right = !bytes.is_empty()
        && bytes.len() <= MAX_NAME_BYTES
        && bytes.first() != Some(&b'-')
        && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    if right { Ok(()) } else { Err(NameError { kind, found: text.chars().take(80).collect() }) }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the text and makes a name of it.
            ///
            /// # Errors
            /// The text is empty, too long, or holds a character that is not allowed.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check($kind, text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name_type!(
    /// Whose records these are. Comes from the credentials, or from the request while authentication is off.
    TenantId,
    "tenant"
);
name_type!(
    /// The contract of one kind of record; gRPC calls it an endpoint.
    StreamName,
    "stream"
);

/// One tenant's part of one stream: what a memtable and a table belong to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamKey {
    /// Whose records.
    pub tenant: TenantId,
    /// Of which kind.
    pub stream: StreamName,
}

impl fmt::Display for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.tenant, self.stream)
    }
}

/// A table's namespace (one level) and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableName {
    /// The namespace, one level.
    pub namespace: String,
    /// The table's name within it.
    pub name: String,
}

impl TableName {
    /// Checks both parts and makes a table name of them.
    ///
    /// # Errors
    /// Either part is not a valid name.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        check("namespace", namespace)?;
        check("table", name)?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_escape_a_path_or_a_statement_is_refused() {
        for bad in ["", "../x", "a\"; DROP", "a`b", "A", "a b", "é", "-a", &"x".repeat(64), "a.b", "a/b", "a\0"] {
            assert!(TenantId::new(bad).is_err(), "{bad:?} was let in");
        }
        for good in ["a", "default", "pgr-events", "_x9", &"x".repeat(63)] {
            assert!(TenantId::new(good).is_ok(), "{good:?} was refused");
        }
    }
}
