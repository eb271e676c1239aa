//! Tokens as issuers and as attackers make them. Signatures are ring's and OpenSSL's, keys those of RFC 8037 and OpenSSL.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lakegate_env::ManualClock;
use ring::rand::SystemRandom;
use ring::signature::{self as rs, KeyPair};
use serde_json::json;

use super::*;

const NOW_S: i64 = 1_800_000_000;
const SECRET: &[u8] = b"an-hmac-secret-of-more-than-32-bytes";

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Keys of each kind, made once.
struct Pairs {
    rsa: rs::RsaKeyPair,
    ec: rs::EcdsaKeyPair,
    ed: rs::Ed25519KeyPair,
}

fn pairs() -> &'static Pairs {
    static PAIRS: OnceLock<Pairs> = OnceLock::new();
    PAIRS.get_or_init(|| {
        let random = SystemRandom::new();
        // ring makes no RSA keys; openssl does.
        let made = std::process::Command::new("openssl")
            .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-outform", "DER"])
            .output()
            .expect("openssl is needed for these tests");
        let ec = rs::EcdsaKeyPair::generate_pkcs8(&rs::ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let ed = rs::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        Pairs {
            // Which of the two encodings it writes depends on its version.
            rsa: rs::RsaKeyPair::from_pkcs8(&made.stdout).or_else(|_| rs::RsaKeyPair::from_der(&made.stdout)).unwrap(),
            ec: rs::EcdsaKeyPair::from_pkcs8(&rs::ECDSA_P256_SHA256_FIXED_SIGNING, ec.as_ref(), &random).unwrap(),
            ed: rs::Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap(),
        }
    })
}

fn sign(algorithm: &str, message: &[u8]) -> Vec<u8> {
    let pairs = pairs();
    match algorithm {
        "HS256" => ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET), message).as_ref().to_vec(),
        "RS256" => {
            let mut signature = vec![0; pairs.rsa.public().modulus_len()];
            pairs.rsa.sign(&rs::RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
            signature
        }
        "ES256" => pairs.ec.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
        "EdDSA" => pairs.ed.sign(message).as_ref().to_vec(),
        _ => Vec::new(),
    }
}

fn rsa_parts() -> rs::RsaPublicKeyComponents<Vec<u8>> {
    pairs().rsa.public().into()
}

fn jwk(algorithm: &str, kid: &str) -> serde_json::Value {
    let pairs = pairs();
    let mut key = match algorithm {
        "HS256" => json!({ "kty": "oct", "k": b64(SECRET) }),
        "RS256" => {
            let rs::RsaPublicKeyComponents { n, e } = rsa_parts();
            json!({ "kty": "RSA", "n": b64(n), "e": b64(e), "use": "sig" })
        }
        "ES256" => {
            let point = pairs.ec.public_key().as_ref();
            json!({ "kty": "EC", "crv": "P-256", "x": b64(&point[1..33]), "y": b64(&point[33..]) })
        }
        _ => json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(pairs.ed.public_key().as_ref()) }),
    };
    key["kid"] = kid.into();
    key
}

fn jwks(algorithm: &str, kids: &[&str]) -> Vec<u8> {
    let keys: Vec<_> = kids.iter().map(|kid| jwk(algorithm, kid)).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

fn algorithm(name: &str) -> TokenAlgorithm {
    match name {
        "HS256" => TokenAlgorithm::Hs256,
        "RS256" => TokenAlgorithm::Rs256,
        "ES256" => TokenAlgorithm::Es256,
        _ => TokenAlgorithm::EdDsa,
    }
}

fn rules() -> ClaimRules {
    ClaimRules {
        issuers: vec!["https://issuer.example".to_owned()],
        audiences: vec!["lakegate".to_owned()],
        leeway_s: 30,
        lifetime_max_s: None,
        tenant_claim: "tenant".to_owned(),
        permissions_claim: "scope".to_owned(),
        permissions: Vec::new(),
    }
}

fn open(name: &str, keys: TokenKeysFrom, clock: Arc<ManualClock>) -> Tokens {
    Tokens::open(TokenOptions { algorithm: algorithm(name), keys, claims: rules() }, clock).unwrap()
}

fn with(name: &str) -> (Tokens, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(NOW_S * 1_000_000));
    (open(name, TokenKeysFrom::Given(jwks(name, &["k1"])), clock.clone()), clock)
}

fn claims() -> serde_json::Value {
    json!({ "iss": "https://issuer.example", "aud": "lakegate", "sub": "alice", "exp": NOW_S + 600, "nbf": NOW_S,
            "tenant": "acme", "scope": "openid write:cart read" })
}

fn token(name: &str, header: serde_json::Value, claims: &str) -> String {
    let message = format!("{}.{}", b64(header.to_string()), b64(claims));
    format!("{message}.{}", b64(sign(name, message.as_bytes())))
}

fn good(name: &str) -> String {
    token(name, json!({ "alg": name, "typ": "JWT", "kid": "k1" }), &claims().to_string())
}

#[tokio::test]
async fn tokens_of_each_algorithm_make_the_principal_that_their_claims_say() {
    for name in ["HS256", "RS256", "ES256", "EdDSA"] {
        let (tokens, clock) = with(name);
        let text = good(name);
        assert!(tokens.known(&text).is_none());
        let principal = tokens.check(&text).await.unwrap();
        assert_eq!((&*principal.id, principal.tenant.as_str()), ("token:alice", "acme"), "{name}");
        assert_eq!(principal.grants.to_string(), "write:cart read");
        assert_eq!(tokens.known(&text), Some(Ok(principal.clone())));
        assert!(tokens.holds(&principal));
        clock.advance_us(631_000_000);
        assert_eq!(tokens.known(&text), Some(Err(TokenError::Expired)));
        assert!(!tokens.holds(&principal));
        assert_eq!(tokens.check(&text).await, Err(TokenError::Expired));
    }
}

#[tokio::test]
async fn s05_a_token_that_chooses_its_own_algorithm_is_refused() {
    for name in ["HS256", "RS256", "ES256", "EdDSA"] {
        let (tokens, _) = with(name);
        for alg in ["none", "None", "nOnE", "", "HS256", "HS512", "RS256", "RS512", "PS256", "ES256", "EdDSA", "dir"] {
            let text = token(alg, json!({ "alg": alg, "kid": "k1" }), &claims().to_string());
            assert_eq!(tokens.check(&text).await.is_ok(), alg == name, "{alg} where {name} is configured");
            let unsigned = format!("{}.", text.rsplit_once('.').unwrap().0);
            assert!(tokens.check(&unsigned).await.is_err(), "{alg} without signature");
        }
    }
}

#[tokio::test]
async fn s05_the_public_key_is_no_secret_to_sign_with() {
    let n = rsa_parts().n;
    let (tokens, _) = with("RS256");
    for secret in [n.clone(), jwks("RS256", &["k1"]), b64(n).into_bytes()] {
        let message =
            format!("{}.{}", b64(json!({ "alg": "HS256", "kid": "k1" }).to_string()), b64(claims().to_string()));
        let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret), message.as_bytes());
        assert_eq!(tokens.check(&format!("{message}.{}", b64(tag))).await, Err(TokenError::Invalid));
    }
}

#[tokio::test]
async fn s05_claims_of_the_wrong_type_or_value_are_refused() {
    let (tokens, _) = with("EdDSA");
    let changed = |name: &str, value: &str| {
        let mut all = claims();
        all.as_object_mut().unwrap().remove(name);
        let rest = all.to_string();
        let claims =
            if value.is_empty() { rest } else { format!("{}, {:?}: {value}}}", &rest[..rest.len() - 1], name) };
        token("EdDSA", json!({ "alg": "EdDSA", "kid": "k1" }), &claims)
    };
    let far = (NOW_S + 600).to_string();
    for (name, value) in [
        ("exp", ""),
        ("exp", "\"9999999999\""),
        ("exp", "-1"),
        ("exp", "1e400"),
        ("exp", "null"),
        ("exp", "[1]"),
        ("exp", "18446744073709551615"),
        ("exp", "1"),
        ("nbf", "\"0\""),
        ("nbf", "-5"),
        ("nbf", &far),
        ("iat", "\"x\""),
        ("iss", ""),
        ("iss", "\"https://evil.example\""),
        ("iss", "[\"https://issuer.example\"]"),
        ("aud", ""),
        ("aud", "\"other\""),
        ("aud", "[\"lakegate\", 1]"),
        ("aud", "{}"),
        ("sub", "7"),
        ("tenant", ""),
        ("tenant", "7"),
        ("tenant", "[\"acme\"]"),
        ("tenant", "\"ACME\""),
        ("tenant", "\"../acme\""),
        ("scope", "7"),
        ("scope", "[1]"),
    ] {
        assert!(tokens.check(&changed(name, value)).await.is_err(), "{name}: {value}");
    }
    for (name, value) in
        [("aud", "[\"x\", \"lakegate\"]"), ("nbf", ""), ("scope", "[\"read\"]"), ("sub", ""), ("exp", "1.8000006e9")]
    {
        assert!(tokens.check(&changed(name, value)).await.is_ok(), "{name}: {value}");
    }
}

#[tokio::test]
async fn s05_s06_strange_headers_and_forms_are_refused_and_lead_nowhere() {
    let (tokens, _) = with("EdDSA");
    let claims = claims().to_string();
    for header in [
        json!({ "alg": "EdDSA", "kid": "../../etc/passwd" }),
        json!({ "alg": "EdDSA", "kid": "' OR 1=1 --" }),
        json!({ "alg": "EdDSA", "kid": "/dev/null" }),
        json!({ "alg": "EdDSA", "kid": 1 }),
        json!({ "alg": "EdDSA", "kid": "k".repeat(1 << 20) }),
        json!({ "alg": "EdDSA", "kid": "k1", "crit": ["exp"] }),
        json!({ "alg": "EdDSA", "kid": "k1", "enc": "A128GCM" }),
        json!({ "alg": "EdDSA", "kid": "k1", "zip": "DEF" }),
        json!({ "alg": ["EdDSA"], "kid": "k1" }),
        json!({ "kid": "k1" }),
    ] {
        assert_eq!(tokens.check(&token("EdDSA", header, &claims)).await, Err(TokenError::Invalid));
    }
    let text = good("EdDSA");
    let parts: Vec<&str> = text.split('.').collect();
    let nested = token("EdDSA", json!({ "alg": "EdDSA", "kid": "k1", "cty": "JWT" }), &text);
    for bad in ["", ".", "..", "a.b.c", "a.b.c.d.e", parts[0], &text[..text.len() - 2], &format!("{text}."), &nested] {
        assert!(tokens.check(bad).await.is_err(), "{bad}");
    }
    let wrong_end = format!("{}.{}.{}", parts[0], parts[1], b64([7; 64]));
    assert_eq!(tokens.check(&wrong_end).await, Err(TokenError::Invalid));
}

#[test]
fn weak_and_foreign_keys_are_refused_when_they_are_read() {
    let pem = |args: &[&str]| std::process::Command::new("sh").args(["-c", &args.join(" ")]).output().unwrap().stdout;
    let rsa = pem(&["openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 2>/dev/null | openssl pkey -pubout"]);
    let short =
        pem(&["openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 2>/dev/null | openssl pkey -pubout"]);
    let ec = pem(&["openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 | openssl pkey -pubout"]);
    let p384 = pem(&["openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 | openssl pkey -pubout"]);
    let ed = pem(&["openssl genpkey -algorithm ed25519 | openssl pkey -pubout"]);
    let private = pem(&["openssl genpkey -algorithm ed25519"]);
    let read = |algorithm, bytes: &[u8]| keys::read_keys(algorithm, bytes).map(|keys| keys.len());
    assert_eq!(read(TokenAlgorithm::Rs256, &rsa), Ok(1));
    assert_eq!(read(TokenAlgorithm::Rs256, &[rsa.clone(), rsa.clone()].concat()), Ok(2));
    assert_eq!(read(TokenAlgorithm::Es256, &ec), Ok(1));
    assert_eq!(read(TokenAlgorithm::EdDsa, &ed), Ok(1));
    for (algorithm, bytes) in [
        (TokenAlgorithm::Rs256, &short[..]),
        (TokenAlgorithm::Rs256, &ec),
        (TokenAlgorithm::Es256, &p384),
        (TokenAlgorithm::Es256, &rsa),
        (TokenAlgorithm::EdDsa, &ec),
        (TokenAlgorithm::EdDsa, &private),
        (TokenAlgorithm::Hs256, b"too short"),
        (TokenAlgorithm::Rs256, b""),
        (TokenAlgorithm::Rs256, b"{\"keys\":[]}"),
        (TokenAlgorithm::Hs256, b"{\"keys\":[{\"kty\":\"oct\",\"k\":\"YQ\"}]}"),
    ] {
        assert!(read(algorithm, bytes).is_err(), "{algorithm:?} {}", String::from_utf8_lossy(bytes));
    }
    assert!(!format!("{:?}", keys::read_keys(TokenAlgorithm::Hs256, SECRET).unwrap()).contains("hmac"));
}

/// An address that answers with what it is given, and counts who comes.
struct Endpoint {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<Vec<u8>>>,
}

impl Endpoint {
    fn start(answer: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(answer)));
        let (count, give) = (asked.clone(), answer.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]);
                let answer = give.lock().unwrap().clone();
                let _ = stream.write_all(&answer);
            }
        });
        Self { address, asked, answer }
    }

    fn ok(body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    fn keys(&self) -> TokenKeysFrom {
        let url = format!("http://{}/jwks", self.address);
        TokenKeysFrom::Url { url, refresh: Duration::from_secs(300), grace: Duration::from_secs(600) }
    }

    fn set(&self, answer: Vec<u8>) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn named(kid: &str) -> String {
    token("EdDSA", json!({ "alg": "EdDSA", "kid": kid }), &claims().to_string())
}

#[tokio::test]
async fn s07_addresses_in_a_token_are_never_asked() {
    let trap = Endpoint::start(Endpoint::ok(&jwks("EdDSA", &["evil"])));
    let (tokens, _) = with("EdDSA");
    let url = format!("http://{}/x", trap.address);
    for header in [
        json!({ "alg": "EdDSA", "kid": "evil", "jku": url }),
        json!({ "alg": "EdDSA", "kid": "evil", "x5u": url }),
        json!({ "alg": "EdDSA", "kid": "evil", "jwk": jwk("EdDSA", "evil") }),
        json!({ "alg": "EdDSA", "kid": url }),
    ] {
        assert_eq!(tokens.check(&token("EdDSA", header, &claims().to_string())).await, Err(TokenError::Invalid));
    }
    assert_eq!(trap.asked(), 0);
}

#[tokio::test]
async fn s08_keys_behind_an_address_are_asked_for_once_and_rotate_with_grace() {
    let endpoint = Endpoint::start(Endpoint::ok(&jwks("EdDSA", &["k1"])));
    let clock = Arc::new(ManualClock::new(NOW_S * 1_000_000));
    let tokens = Arc::new(open("EdDSA", endpoint.keys(), clock.clone()));
    let many = (0..50).map(|_| {
        let tokens = tokens.clone();
        tokio::spawn(async move { tokens.check(&named("k1")).await.is_ok() })
    });
    for one in many.collect::<Vec<_>>() {
        assert!(one.await.unwrap());
    }
    assert_eq!(endpoint.asked(), 1, "one request for all");
    for n in 0..20 {
        assert!(tokens.check(&named(&format!("unknown-{n}"))).await.is_err());
    }
    assert_eq!(endpoint.asked(), 1, "unknown keys make no stampede");
    // The same key under another name would have the same fingerprint: only the name matters here.
    endpoint.set(Endpoint::ok(&jwks("EdDSA", &["k2"])));
    clock.advance_us(jwks::ASK_EVERY.as_micros() as i64);
    assert!(tokens.check(&named("k2")).await.is_ok(), "a new key is asked for at once");
    assert_eq!(endpoint.asked(), 2);
}

#[tokio::test]
async fn s08_a_key_that_is_gone_is_used_for_the_grace_time() {
    let other = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": b64([9; 32]), "kid": "k9" }] }).to_string();
    let endpoint = Endpoint::start(Endpoint::ok(&jwks("EdDSA", &["k1"])));
    let clock = Arc::new(ManualClock::new(NOW_S * 1_000_000));
    let tokens = open("EdDSA", endpoint.keys(), clock.clone());
    let principal = tokens.check(&named("k1")).await.unwrap();
    endpoint.set(Endpoint::ok(other.as_bytes()));
    clock.advance_us(301_000_000);
    tokens.refresh().await;
    assert!(tokens.holds(&principal));
    clock.advance_us(299_000_000);
    clock.jump_wall_us(-600_000_000);
    tokens.refresh().await;
    assert!(tokens.check(&named("k1")).await.is_ok());
    clock.advance_us(302_000_000);
    clock.jump_wall_us(-302_000_000);
    tokens.refresh().await;
    assert!(tokens.check(&named("k1")).await.is_err() && tokens.known(&named("k1")).is_none());
    assert!(!tokens.holds(&principal), "what is open with it ends");
}

#[tokio::test]
async fn s08_redirects_floods_and_failures_change_nothing() {
    let trap = Endpoint::start(Endpoint::ok(&jwks("EdDSA", &["k1"])));
    let elsewhere =
        format!("HTTP/1.1 302 Found\r\nlocation: http://{}/jwks\r\ncontent-length: 0\r\n\r\n", trap.address);
    let mut flood = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"keys\":[".to_vec();
    flood.resize(4 << 20, b' ');
    let good_answer = Endpoint::ok(&jwks("EdDSA", &["k1"]));
    for bad in [
        elsewhere.into_bytes(),
        flood,
        b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_vec(),
        b"junk".to_vec(),
        Endpoint::ok(b"{}"),
    ] {
        let endpoint = Endpoint::start(bad.clone());
        let clock = Arc::new(ManualClock::new(NOW_S * 1_000_000));
        let tokens = open("EdDSA", endpoint.keys(), clock.clone());
        assert_eq!(
            tokens.check(&named("k1")).await,
            Err(TokenError::NoKeys),
            "{}",
            String::from_utf8_lossy(&bad[..20])
        );
        endpoint.set(good_answer.clone());
        clock.advance_us(11_000_000);
        assert!(tokens.check(&named("k1")).await.is_ok());
        endpoint.set(bad);
        clock.advance_us(301_000_000);
        tokens.refresh().await;
        assert!(tokens.check(&named("k1")).await.is_ok(), "what was known stays");
    }
    assert_eq!(trap.asked(), 0);
}

#[tokio::test]
async fn keys_of_a_file_are_read_again_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    std::fs::write(&path, jwks("EdDSA", &["k1"])).unwrap();
    let clock = Arc::new(ManualClock::new(NOW_S * 1_000_000));
    let tokens = open("EdDSA", TokenKeysFrom::File(path.clone()), clock);
    assert!(tokens.check(&named("k1")).await.is_ok());
    std::fs::write(&path, "{").unwrap();
    tokens.refresh().await;
    assert!(tokens.check(&named("k1")).await.is_ok(), "a damaged file changes nothing");
    std::fs::write(&path, json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": b64([9; 32]) }] }).to_string())
        .unwrap();
    tokens.refresh().await;
    assert!(tokens.known(&named("k1")).is_none() && tokens.check(&named("k1")).await.is_err());
}
