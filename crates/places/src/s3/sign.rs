//! Signs requests to an object store (AWS Signature Version 4, one chunk).

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use ring::{digest, hmac};
use url::Url;

/// The credentials, and the region that they are used in.
pub(crate) struct Signer {
    access_key: String,
    secret_key: String,
    region: String,
}

impl Signer {
    pub(crate) fn new(access_key: &str, secret_key: &str, region: &str) -> Self {
        Self { access_key: access_key.to_owned(), secret_key: secret_key.to_owned(), region: region.to_owned() }
    }

    /// Adds what tells the store who asks. The path and query of `url` are as the store sees them: encoded once, the
    /// query's parts in order of their names. Without a key nothing is signed: the bucket is one for everybody.
    pub(crate) fn sign(&self, method: &Method, url: &Url, headers: &mut HeaderMap, body: &Bytes, now_us: i64) {
        let (date, time) = date_and_time(now_us);
        let payload = hex(digest::digest(&digest::SHA256, body).as_ref());
        put(headers, "x-amz-content-sha256", &payload);
        put(headers, "x-amz-date", &time);
        put(headers, "host", &host_of(url));
        if self.access_key.is_empty() {
            return;
        }
        let mut signed: Vec<(&str, &str)> =
            headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?.trim()))).collect();
        // Headers that the way there may change.
        signed.retain(|(name, _)| !matches!(*name, "accept-encoding" | "user-agent"));
        signed.sort_unstable();
        let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let mut request = format!("{method}\n{}\n{}\n", url.path(), url.query().unwrap_or_default());
        for (name, value) in &signed {
            // Writing into a text cannot fail.
            let _ = writeln!(request, "{name}:{value}");
        }
        let _ = write!(request, "\n{names}\n{payload}");
        let scope = format!("{date}/{}/s3/aws4_request", self.region);
        let hashed = hex(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashed}");
        let start = format!("AWS4{}", self.secret_key).into_bytes();
        let key = [date.as_str(), &self.region, "s3", "aws4_request"]
            .into_iter()
            .fold(start, |key, part| hmac_sha256(&key, part).as_ref().to_vec());
        let signature = hex(hmac_sha256(&key, &to_sign).as_ref());
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.access_key
        );
        if let Ok(mut value) = HeaderValue::try_from(authorization) {
            value.set_sensitive(true);
            headers.insert(http::header::AUTHORIZATION, value);
        }
    }
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn hmac_sha256(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `20130524` and `20130524T000000Z`.
fn date_and_time(now_us: i64) -> (String, String) {
    let seconds = now_us.div_euclid(1_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date of the Gregorian calendar, with years that begin in March (H. Hinnant, "chrono-compatible date
    // algorithms").
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_of_year = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_of_year + 2) / 5 + 1;
    let month = if month_of_year < 10 { month_of_year + 3 } else { month_of_year - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let date = format!("{year:04}{month:02}{day:02}");
    let time = format!("{date}T{:02}{:02}{:02}Z", second / 3_600, second / 60 % 60, second % 60);
    (date, time)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2013-05-24T00:00:00Z
    const DAY: i64 = 1_369_353_600_000_000;

    fn signature(url: &str, extra: &[(&'static str, &str)]) -> String {
        let signer = Signer::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1");
        let mut headers = HeaderMap::new();
        for (name, value) in extra {
            put(&mut headers, name, value);
        }
        signer.sign(&Method::GET, &Url::parse(url).unwrap(), &mut headers, &Bytes::new(), DAY);
        let text = headers["authorization"].to_str().unwrap().to_owned();
        text.rsplit('=').next().unwrap().to_owned()
    }

    /// The signatures are those of the examples in the Amazon S3 API reference, "Authenticating Requests (AWS
    /// Signature Version 4): Examples".
    #[test]
    fn signatures_are_those_of_the_published_examples() {
        assert_eq!(
            signature("https://examplebucket.s3.amazonaws.com/test.txt", &[("range", "bytes=0-9")]),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert_eq!(
            signature("https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J", &[]),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (us, expected) in [
            (DAY, "20130524T000000Z"),
            (0, "19700101T000000Z"),
            (951_782_400_000_000, "20000229T000000Z"),
            (4_107_542_399_000_000, "21000228T235959Z"),
        ] {
            assert_eq!(date_and_time(us).1, expected);
        }
    }
}
