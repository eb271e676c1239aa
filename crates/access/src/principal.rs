//! Who a request comes from and what that one may do.
//!
//! A permission is one word: `write:orders-*`, `read`, `admin:cart`, `operator`. What stands before the colon is the
//! action, what stands behind it a pattern of stream names in which `*` stands for any characters; without a pattern
//! the action goes for every stream. All of them hold within the principal's tenant, except `operator`, which is about
//! the installation as a whole: its figures, and what all tenants have.

use std::fmt;
use std::sync::Arc;

use lakegate_model::{StreamName, TenantId};

/// What may be done with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send records.
    Write,
    /// Read records, figures and tables.
    Read,
    /// Change tables and contracts, end queries, remove what was set aside.
    Admin,
}

impl Action {
    /// The action's name in a permission.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// A permission that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a permission; write \"write\", \"read\" or \"admin\", alone or with a pattern of stream names as in \
     \"write:orders-*\", or \"operator\""
)]
pub struct PermissionError(pub String);

/// A pattern of stream names; `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Pattern(Box<str>);

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let known = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*');
        let right = !text.is_empty() && text.len() <= 63 && text.bytes().all(known);
        right.then(|| Self(text.into()))
    }

    fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some((_, behind)) = rest.split_once(part) else { return false };
            rest = behind;
        }
        rest.ends_with(last)
    }
}

/// What a principal may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    write: Vec<Pattern>,
    read: Vec<Pattern>,
    admin: Vec<Pattern>,
    operator: bool,
}

impl Grants {
    /// Reads permissions, as the configuration and the key file have them.
    ///
    /// # Errors
    /// One of them is none; it is named.
    pub fn parse<T: AsRef<str>>(permissions: &[T]) -> Result<Self, PermissionError> {
        let mut grants = Self::default();
        for text in permissions.iter().map(AsRef::as_ref) {
            if !grants.add(text) {
                return Err(PermissionError(text.chars().take(80).collect()));
            }
        }
        Ok(grants)
    }

    /// Reads the permissions among other words, as the claims of tokens have them; the rest is passed over.
    #[must_use]
    pub fn among<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        let mut grants = Self::default();
        for word in words {
            grants.add(word);
        }
        grants
    }

    fn add(&mut self, text: &str) -> bool {
        if text == "operator" {
            self.operator = true;
            return true;
        }
        let (action, pattern) = text.split_once(':').unwrap_or((text, "*"));
        let patterns = match action {
            "write" => &mut self.write,
            "read" => &mut self.read,
            "admin" => &mut self.admin,
            _ => return false,
        };
        let Some(pattern) = Pattern::parse(pattern) else { return false };
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
        true
    }

    fn patterns(&self, action: Action) -> &[Pattern] {
        match action {
            Action::Write => &self.write,
            Action::Read => &self.read,
            Action::Admin => &self.admin,
        }
    }
}

impl fmt::Display for Grants {
    /// The permissions, in the notation in which they are read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        for action in [Action::Write, Action::Read, Action::Admin] {
            for Pattern(pattern) in self.patterns(action) {
                words.push(match &**pattern {
                    "*" => action.as_str().to_owned(),
                    pattern => format!("{}:{pattern}", action.as_str()),
                });
            }
        }
        words.extend(self.operator.then(|| "operator".to_owned()));
        f.write_str(&words.join(" "))
    }
}

/// By what a principal has shown who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// An API key, by its id.
    ApiKey(Arc<str>),
    /// A token that was signed with a key, by that key's fingerprint.
    Token([u8; 32]),
    /// A client certificate.
    Certificate,
}

/// Who a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// A name for logs and limits, such as `key:3f9a…`, `token:alice` or `certificate:edge-1`.
    pub id: Arc<str>,
    /// Whose records it may touch.
    pub tenant: TenantId,
    /// What it may do.
    pub grants: Grants,
    /// When its credentials end, in microseconds since 1970.
    pub expires_us: Option<i64>,
    /// By what it has shown who it is.
    pub proof: Proof,
}

impl Principal {
    /// Whether it may do `action` with the stream, in its own tenant.
    #[must_use]
    pub fn may(&self, action: Action, stream: &StreamName) -> bool {
        self.may_name(action, stream.as_str())
    }

    /// [`Self::may`], for a table or a stream by the text of its name.
    #[must_use]
    pub fn may_name(&self, action: Action, name: &str) -> bool {
        self.grants.patterns(action).iter().any(|pattern| pattern.matches(name))
    }

    /// Whether it may do `action` with at least some stream.
    #[must_use]
    pub fn may_some(&self, action: Action) -> bool {
        !self.grants.patterns(action).is_empty()
    }

    /// Whether it may do `action` with every stream of its tenant.
    #[must_use]
    pub fn may_all(&self, action: Action) -> bool {
        self.grants.patterns(action).iter().any(|Pattern(pattern)| &**pattern == "*")
    }

    /// Whether it looks after the installation as a whole.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.grants.operator
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(permissions: &[&str]) -> Principal {
        Principal {
            id: "key:test".into(),
            tenant: TenantId::new("acme").unwrap(),
            grants: Grants::parse(permissions).unwrap(),
            expires_us: None,
            proof: Proof::Certificate,
        }
    }

    #[test]
    fn s04_an_action_is_allowed_by_its_own_permission_alone() {
        let orders = StreamName::new("orders").unwrap();
        for (given, action) in [("write", Action::Write), ("read", Action::Read), ("admin", Action::Admin)] {
            let principal = principal(&[given]);
            for asked in [Action::Write, Action::Read, Action::Admin] {
                assert_eq!(principal.may(asked, &orders), asked == action, "{given} {asked:?}");
            }
            assert!(!principal.is_operator());
        }
        assert!(principal(&["operator"]).is_operator());
        assert!(!principal(&["operator"]).may(Action::Read, &orders));
    }

    #[test]
    fn a_pattern_holds_for_the_names_that_it_describes() {
        for (pattern, name, holds) in [
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("orders-*", "orders-eu", true),
            ("orders-*", "orders", false),
            ("*-raw", "events-raw", true),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c2b", false),
            ("a*a", "a", false),
            ("*", "anything", true),
            ("**", "x", true),
            ("", "x", false),
        ] {
            let held = Pattern::parse(pattern).is_some_and(|pattern| pattern.matches(name));
            assert_eq!(held, holds, "{pattern} {name}");
        }
    }

    #[test]
    fn permissions_print_as_they_are_read_and_others_are_refused() {
        let words = ["write:orders-*", "write:cart", "read", "admin:x", "operator"];
        assert_eq!(Grants::parse(&words).unwrap().to_string(), words.join(" "));
        for bad in ["", "write:", "write:Orders", "writ", "operator:x", "read:a b", "admin:a/b"] {
            assert!(Grants::parse(&[bad]).is_err(), "{bad:?}");
        }
        assert_eq!(Grants::among("openid profile read:orders write:".split(' ')).to_string(), "read:orders");
    }
}
