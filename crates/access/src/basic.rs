//! Clients that know names and passwords alone: the password is the key or the token.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Puts the password of `Authorization: Basic`, or a bearer that is no token, where keys and tokens are looked for. The
/// name beside it says nothing: the key tells who asks.
pub fn take_basic(headers: &mut HeaderMap) {
    let Some(secret) = headers.get(AUTHORIZATION).and_then(secret_of) else { return };
    let is_token = secret.matches('.').count() == 2;
    let (name, value) = if is_token {
        (AUTHORIZATION, format!("Bearer {secret}"))
    } else {
        (HeaderName::from_static("x-api-key"), secret)
    };
    if let Ok(mut value) = HeaderValue::try_from(value) {
        value.set_sensitive(true);
        headers.remove(AUTHORIZATION);
        headers.insert(name, value);
    }
}

fn secret_of(sent: &HeaderValue) -> Option<String> {
    let (scheme, rest) = sent.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    decoded.split_once(':').map(|(_, password)| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(sent: &str) -> (Option<String>, Option<String>) {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, sent.parse().unwrap());
        take_basic(&mut headers);
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        (text("authorization"), text("x-api-key"))
    }

    #[test]
    fn a_password_is_a_key_or_a_token_by_its_form() {
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        assert_eq!(taken(&basic("anyone:lk_x:y")), (None, Some("lk_x:y".to_owned())));
        assert_eq!(taken(&basic("anyone:a.b.c")), (Some("Bearer a.b.c".to_owned()), None));
        assert_eq!(taken("Bearer lk_x"), (None, Some("lk_x".to_owned())));
        assert_eq!(taken("Bearer a.b.c"), (Some("Bearer a.b.c".to_owned()), None));
        assert_eq!(taken("Basic ???"), (Some("Basic ???".to_owned()), None));
    }
}
