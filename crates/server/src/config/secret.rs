//! Values that are never printed: a password shows as `********` wherever it is shown at all.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

/// What is shown in a secret's place.
pub(crate) const MASK: &str = "********";

/// A text that only [`Secret::reveal`] gives away.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    /// The text itself, for the one place that needs it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "\"\"" } else { MASK })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(if self.is_empty() { "" } else { MASK })
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "password", "writeOnly": true })
    }
}

/// The address of a database. Shown without its password.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The whole address, for the one place that needs it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    fn shown(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else { return self.0.clone() };
        // The last one: a password may hold another.
        let Some((user, host)) = rest.rsplit_once('@') else { return shown_options(&self.0) };
        let user = user.split(':').next().unwrap_or_default();
        shown_options(&format!("{scheme}://{user}:{MASK}@{host}"))
    }
}

/// The address without a password among its options.
fn shown_options(url: &str) -> String {
    let Some((address, options)) = url.split_once('?') else { return url.to_owned() };
    let hidden = |option: &str| match option.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}={MASK}"),
        _ => option.to_owned(),
    };
    format!("{address}?{}", options.split('&').map(hidden).collect::<Vec<_>>().join("&"))
}

impl From<&str> for DatabaseUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shown())
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.shown())
    }
}

impl JsonSchema for DatabaseUrl {
    fn schema_name() -> Cow<'static, str> {
        "DatabaseUrl".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s27_a_databases_address_is_shown_without_its_password() {
        for (url, shown) in [
            ("sqlite:///srv/x.db", "sqlite:///srv/x.db"),
            ("postgres://me:hunter2@db:5432/lake", "postgres://me:********@db:5432/lake"),
            ("postgres://me:hun@ter2@db/lake?sslmode=require", "postgres://me:********@db/lake?sslmode=require"),
            ("postgres://db/lake?password=hunter2", "postgres://db/lake?password=********"),
        ] {
            let address = DatabaseUrl::from(url);
            assert_eq!(serde_json::to_string(&address).unwrap(), format!("{shown:?}"));
            assert_eq!(format!("{address:?}"), format!("{shown:?}"));
            assert_eq!(address.reveal(), url);
        }
    }

    #[test]
    fn s27_a_secret_shows_neither_when_debugged_nor_when_printed_as_json() {
        let secret: Secret = serde_json::from_str("\"hunter2\"").unwrap();
        assert_eq!(secret.reveal(), "hunter2");
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&secret).unwrap().contains("hunter2"));
    }
}
