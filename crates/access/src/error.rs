//! Why a request is not let in, with what each protocol needs to say so.

use std::fmt;

use http::StatusCode;

use crate::jwt::TokenError;
use crate::principal::Action;
use crate::quota::OverQuota;

/// Why a request is not let in. The texts hold nothing of the credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessError {
    /// No credentials.
    Missing,
    /// Credentials in the address, where they would be logged on the way.
    InAddress,
    /// Several that may differ, or of a form that is not known.
    Malformed(&'static str),
    /// An API key that is unknown, wrong, over or revoked: the same answer for all.
    Key,
    /// A token that is not taken.
    Token(TokenError),
    /// A client certificate that nobody is known by.
    Certificate,
    /// Wrong too often.
    TooManyAttempts {
        /// When to come back, in seconds.
        retry_after_s: u64,
    },
    /// Known, but not allowed to do this.
    Denied {
        /// Which permission is lacking.
        action: Option<Action>,
        /// With what: a stream, or what the path is about.
        what: String,
    },
    /// Too much, or too many, of one client or tenant.
    OverQuota(OverQuota),
    /// The credentials of something that is open have ended.
    Ended,
}

impl AccessError {
    /// The status of HTTP.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::TooManyAttempts { .. } | Self::OverQuota(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Denied { .. } => StatusCode::FORBIDDEN,
            Self::Token(TokenError::NoKeys) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// The reason, for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "credentials_missing",
            Self::InAddress => "credentials_in_address",
            Self::Malformed(_) => "credentials_malformed",
            Self::Key | Self::Certificate => "credentials_invalid",
            Self::Token(TokenError::Expired) | Self::Ended => "credentials_expired",
            Self::Token(TokenError::NoKeys) => "unavailable",
            Self::Token(_) => "credentials_invalid",
            Self::TooManyAttempts { .. } => "too_many_attempts",
            Self::Denied { .. } => "forbidden",
            Self::OverQuota(_) => "over_quota",
        }
    }

    /// When to come back, in seconds, where coming back helps.
    #[must_use]
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::TooManyAttempts { retry_after_s } => Some(*retry_after_s),
            Self::OverQuota(over) => Some(over.retry_after_ms.div_ceil(1000)),
            Self::Token(TokenError::NoKeys) => Some(5),
            _ => None,
        }
    }

    /// The header `WWW-Authenticate` of a 401 (RFC 6750, section 3).
    #[must_use]
    pub fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::Missing => Some("Bearer realm=\"lakegate\""),
            _ if self.status() == StatusCode::UNAUTHORIZED => {
                Some("Bearer realm=\"lakegate\", error=\"invalid_token\"")
            }
            _ => None,
        }
    }
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str(
                "credentials are needed: send `authorization: Bearer <token or API key>`, or `x-api-key: <API key>`",
            ),
            Self::InAddress => f.write_str(
                "credentials in the address are refused, for addresses are logged on the way: send them as the header \
                 authorization or x-api-key, and make new ones in the place of these",
            ),
            Self::Malformed(what) => f.write_str(what),
            Self::Key => f.write_str("the API key is not valid"),
            Self::Token(error) => error.fmt(f),
            Self::Certificate => f.write_str("the client certificate is nobody's that is known here (auth.mtls)"),
            Self::TooManyAttempts { retry_after_s } => write!(
                f,
                "too many wrong credentials came from this address; come back in {retry_after_s} s (auth.attempts_per_minute)"
            ),
            Self::Denied { action: Some(action), what } => {
                write!(f, "the credentials do not allow this: the permission {} for {what} is needed", action.as_str())
            }
            Self::Denied { action: None, what } => write!(f, "the credentials do not allow this: {what}"),
            Self::OverQuota(over) => f.write_str(&over.message),
            Self::Ended => f.write_str("the credentials have ended; open a new connection with fresh ones"),
        }
    }
}

impl std::error::Error for AccessError {}
