//! A principal and its permissions.

use lakegate_model::{StreamName, TenantId};

/// What a request wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Bring records.
    Write,
    /// Read records, figures of streams, tables.
    Read,
    /// Change what is set up: jobs, dead letters, keys.
    Admin,
}

/// A pattern of stream names: `*` stands for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern as it is written.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether the name fits. Time is bounded by the product of both lengths.
    #[must_use]
    pub fn fits(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let parts: Vec<&str> = parts.collect();
        let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
        for part in middle {
            let Some(at) = rest.find(part) else { return false };
            rest = rest.get(at + part.len()..).unwrap_or_default();
        }
        rest.ends_with(last)
    }
}

/// Some actions on some streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Which streams.
    pub streams: Pattern,
    /// What may be done.
    pub actions: Vec<Action>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Its name, for logs and quotas: a key's id, a token's subject, a certificate's name.
    pub id: String,
    /// Its tenant. There is no request beyond it.
    pub tenant: TenantId,
    /// What it may do.
    pub grants: Vec<Grant>,
}

impl Principal {
    /// Whether it may do this with that stream.
    #[must_use]
    pub fn may(&self, action: Action, stream: &StreamName) -> bool {
        self.grants.iter().any(|grant| grant.actions.contains(&action) && grant.streams.fits(stream.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_whole_names_only() {
        for (pattern, name, fits) in [
            ("*", "orders", true),
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("ord*", "orders", true),
            ("*ers", "orders", true),
            ("o*d*s", "orders", true),
            ("o*x*s", "orders", false),
            ("", "orders", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(Pattern::new(pattern).fits(name), fits, "{pattern} on {name}");
        }
    }
}
