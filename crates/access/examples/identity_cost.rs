//! What it costs to tell who asks, and whether the time to refuse a key tells how much of it was right:
//! `cargo run --release -p lakegate-access --example identity_cost`.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a program that prints figures"
)]

use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use lakegate_access::{
    Access, AccessOptions, ClaimRules, KeyRecord, Limits, NewKey, Peer, QuotaOptions, Quotas, TokenAlgorithm,
    TokenKeysFrom, TokenOptions,
};
use lakegate_env::{Random, SystemClock, SystemRandom};
use lakegate_model::TenantId;

/// Checks that are timed together.
const TOGETHER: u32 = 20;
/// Times of each length of what is right of a key: 100,000 tries in all.
const TIMES: usize = 500;

fn access(keys: Vec<KeyRecord>, secret: &[u8]) -> Access {
    let clock = Arc::new(SystemClock::default());
    let claims = ClaimRules {
        issuers: vec!["i".to_owned()],
        audiences: Vec::new(),
        leeway_s: 0,
        lifetime_max_s: None,
        tenant_claim: "tenant".to_owned(),
        permissions_claim: "scope".to_owned(),
        permissions: Vec::new(),
    };
    let keys_from = TokenKeysFrom::Given(secret.to_vec());
    let options = AccessOptions {
        required: true,
        api_keys: keys,
        key_file: None,
        tokens: Some(TokenOptions { algorithm: TokenAlgorithm::Hs256, keys: keys_from, claims }),
        certificates: Vec::new(),
        attempts_per_minute: u32::MAX,
        quotas: Quotas::new(QuotaOptions {
            client: Limits::default(),
            tenant: Limits::default(),
            tenants: Vec::new(),
            request_records_max: 1,
            request_bytes_max: 1,
            window_bytes: 1,
            queue_bytes: 1,
            clock: clock.clone(),
        }),
        clock,
    };
    Access::new(options).unwrap()
}

fn bearer(text: &str) -> HeaderMap {
    HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {text}")).unwrap())])
}

/// Nanoseconds of each of [`TOGETHER`] checks.
fn time(runtime: &tokio::runtime::Runtime, access: &Access, headers: &HeaderMap, right: bool) -> f64 {
    let peer = Peer { address: Some([127, 0, 0, 1].into()), certificate: None };
    let began = Instant::now();
    for _ in 0..TOGETHER {
        let found = runtime.block_on(access.authenticate(headers, &peer));
        assert_eq!(found.is_ok(), right);
    }
    let took = u32::try_from(began.elapsed().as_nanos()).expect("a short time");
    f64::from(took) / f64::from(TOGETHER)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let keys: Vec<NewKey> = (0..1000).map(|_| NewKey::generate(&SystemRandom)).collect();
    let record =
        |key: &NewKey| KeyRecord::of_key(&key.key, TenantId::new("acme").unwrap(), vec!["write".into()]).unwrap();
    let secret = b"a secret of at least thirty-two bytes";
    let access = access(keys.iter().map(record).collect(), secret);

    let body = r#"{"iss":"i","exp":4000000000,"sub":"s","tenant":"acme","scope":"write"}"#;
    let signed =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#), URL_SAFE_NO_PAD.encode(body));
    let signer = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&signer, signed.as_bytes())));
    let key = keys.first().unwrap();
    for (name, headers) in [("an API key", bearer(&key.key)), ("a token that was checked before", bearer(&token))] {
        time(&runtime, &access, &headers, true);
        let times = (0..2000).map(|_| time(&runtime, &access, &headers, true)).collect();
        println!("{name}: {:.0} ns (median of 2,000 times {TOGETHER})", median(times));
    }

    // Lengths take turns at random, so that what else the machine does meets all of them alike.
    let lengths: Vec<usize> = (key.id.len() + 5..key.key.len()).collect();
    let wrong: Vec<HeaderMap> = lengths.iter().map(|right| bearer(&with_wrong_end(&key.key, *right))).collect();
    let mut times = vec![Vec::new(); lengths.len()];
    for _ in 0..TIMES * lengths.len() {
        let at = usize::try_from(SystemRandom.next_u64() % lengths.len() as u64).unwrap();
        let (Some(headers), Some(times)) = (wrong.get(at), times.get_mut(at)) else { continue };
        times.push(time(&runtime, &access, headers, false));
    }
    let points: Vec<(f64, f64)> = lengths
        .iter()
        .zip(times)
        .map(|(right, times)| (f64::from(u32::try_from(*right).unwrap()), median(times)))
        .collect();
    let (slope, error) = line(&points);
    println!("refusing a key: {:.3} ns for each letter that is right, standard error {error:.3}", slope);
    println!("{}", if slope.abs() < 3.0 * error { "no slope" } else { "A SLOPE" });
}

/// The key with its first letters right and all others wrong.
fn with_wrong_end(key: &str, right: usize) -> String {
    let letter = |(at, letter): (usize, char)| match letter {
        _ if at < right => letter,
        'a' => 'b',
        _ => 'a',
    };
    key.chars().enumerate().map(letter).collect()
}

/// Slope of the line of least squares, and its standard error.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let count = f64::from(u32::try_from(points.len()).unwrap());
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let spread: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    let slope = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum::<f64>() / spread;
    let rest: f64 = points.iter().map(|p| (p.1 - y - slope * (p.0 - x)).powi(2)).sum();
    (slope, (rest / (count - 2.0) / spread).sqrt())
}
