//! The opening handshake of RFC 6455, section 4, with the extension of RFC 7692.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body_util::Full;
use sha1::{Digest, Sha1};

use crate::rest::{Refusal, Reply};

const MAGIC: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What was agreed on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    accept: String,
    /// The answer to an offer of compression.
    extension: Option<String>,
}

impl Agreed {
    /// Whether the client may pack its messages.
    pub(crate) fn packing(&self) -> bool {
        self.extension.is_some()
    }

    /// Reads the client's part.
    pub(crate) fn read(method: &Method, version: Version, headers: &HeaderMap) -> Result<Self, Refusal> {
        let wrong = |status, detail: &str| Err(Refusal::new(status, "no_websocket", detail));
        if method != Method::GET {
            return wrong(StatusCode::METHOD_NOT_ALLOWED, "this path takes GET that asks for a WebSocket");
        }
        if version != Version::HTTP_11
            || !names(headers, CONNECTION, "upgrade")
            || !names(headers, UPGRADE, "websocket")
        {
            return wrong(StatusCode::UPGRADE_REQUIRED, "this path speaks WebSocket (RFC 6455) over HTTP/1.1");
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return wrong(StatusCode::UPGRADE_REQUIRED, "only version 13 of WebSocket is spoken here");
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
        if STANDARD.decode(key).map_or(0, |key| key.len()) != 16 {
            return wrong(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is not 16 bytes in base64");
        }
        let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(MAGIC).finalize());
        Ok(Self { accept, extension: agree_on_packing(headers) })
    }

    /// The server's part.
    pub(crate) fn reply(&self) -> Reply {
        let mut reply = Reply::new(Full::default());
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = reply.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(extension) = self.extension.as_ref().and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(SEC_WEBSOCKET_EXTENSIONS, extension);
        }
        reply
    }
}

fn names(headers: &HeaderMap, header: http::HeaderName, name: &str) -> bool {
    let values = headers.get_all(header);
    values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .any(|found| found.trim().eq_ignore_ascii_case(name))
}

/// The first offer of `permessage-deflate` that can be kept. No context is kept between messages, on either side: it
/// would take tens of KiB for each socket. The server packs nothing, and so keeps to any window of its own.
fn agree_on_packing(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(SEC_WEBSOCKET_EXTENSIONS);
    let offers = values.iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    for offer in offers {
        let mut parts = offer.split(';').map(str::trim);
        if !parts.next().is_some_and(|name| name.eq_ignore_ascii_case("permessage-deflate")) {
            continue;
        }
        let mut answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover".to_owned();
        let mut kept = true;
        for part in parts {
            let (name, value) = part.split_once('=').map_or((part, None), |(name, value)| (name.trim(), Some(value)));
            let bits = value.and_then(|value| value.trim().trim_matches('"').parse::<u8>().ok());
            match (name, value, bits) {
                ("server_no_context_takeover" | "client_no_context_takeover", None, _) => {}
                ("client_max_window_bits", None, _) | ("client_max_window_bits", _, Some(8..=15)) => {}
                ("server_max_window_bits", _, Some(bits @ 8..=15)) => {
                    answer.push_str(&format!("; server_max_window_bits={bits}"));
                }
                _ => kept = false,
            }
        }
        if kept {
            return Some(answer);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let standard = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let mut headers = HeaderMap::new();
        for (name, value) in standard.iter().chain(pairs) {
            headers.insert(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_accept_key_is_that_of_the_rfcs_example() {
        let agreed = Agreed::read(&Method::GET, Version::HTTP_11, &headers(&[])).unwrap();
        assert_eq!(agreed.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!agreed.packing());
    }

    #[test]
    fn what_is_no_handshake_is_refused() {
        let read = |pairs: &[(&'static str, &str)]| Agreed::read(&Method::GET, Version::HTTP_11, &headers(pairs));
        for (pair, status) in [
            (("connection", "close"), 426),
            (("upgrade", "h2c"), 426),
            (("sec-websocket-version", "8"), 426),
            (("sec-websocket-key", "short"), 400),
        ] {
            assert_eq!(read(&[pair]).unwrap_err().status.as_u16(), status, "{pair:?}");
        }
        assert_eq!(Agreed::read(&Method::POST, Version::HTTP_11, &headers(&[])).unwrap_err().status.as_u16(), 405);
        assert_eq!(Agreed::read(&Method::GET, Version::HTTP_2, &headers(&[])).unwrap_err().status.as_u16(), 426);
    }

    #[test]
    fn compression_is_agreed_on_without_a_context() {
        let answer = |offer: &str| agree_on_packing(&headers(&[("sec-websocket-extensions", offer)]));
        let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert_eq!(answer("permessage-deflate; client_max_window_bits").as_deref(), Some(plain));
        assert_eq!(answer("x-other, permessage-deflate").as_deref(), Some(plain));
        let asked = "permessage-deflate; server_max_window_bits=10";
        assert_eq!(answer(asked), Some(format!("{plain}; server_max_window_bits=10")));
        for none in ["permessage-deflate; what=1", "permessage-deflate; server_max_window_bits=99", "x"] {
            assert_eq!(answer(none), None, "{none}");
        }
    }
}
