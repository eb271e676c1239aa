//! Objects of the one object store that the configuration names.
//!
//! Who imports names buckets and keys, never the store or its credentials: these are the operator's.

mod answer;
mod sign;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use url::Url;

use crate::error::PlaceError;
use crate::http::base_client;
use crate::listing::{Chooser, Found, ListOptions, Listing, is_unfinished};
use crate::remote::{Attempts, Endpoint, Failure, Pace, Shared, Tag, first_bytes};
use crate::settings::S3Settings;
use crate::text::{percent_encoded, shown};

pub(crate) use answer::error_code;
pub(crate) use sign::Signer;

/// The most bytes of one page of a listing: 1000 keys of 1 KiB with all that stands around them.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// The object store.
pub(crate) struct Store {
    endpoint: Url,
    path_style: bool,
    signer: Arc<Signer>,
    client: reqwest::Client,
    shared: Arc<Shared>,
}

impl Store {
    pub(crate) fn new(settings: &S3Settings, shared: &Arc<Shared>) -> Result<Self, PlaceError> {
        let invalid = |reason: String| PlaceError::Invalid { place: shown(&settings.endpoint), reason };
        let address = match settings.endpoint.as_str() {
            "" => format!("https://s3.{}.amazonaws.com", settings.region),
            endpoint => endpoint.to_owned(),
        };
        let endpoint = Url::parse(&address).map_err(|e| invalid(format!("storage.s3.endpoint is no address: {e}")))?;
        let client = base_client(shared).build().map_err(|e| invalid(e.to_string()))?;
        Ok(Self {
            endpoint,
            path_style: settings.path_style,
            signer: Arc::new(Signer::new(&settings.access_key, &settings.secret_key, &settings.region)),
            client,
            shared: shared.clone(),
        })
    }

    /// The address of a key, or of the bucket itself. `query` is encoded and in order.
    fn at(&self, bucket: &str, key: &str, query: Option<&str>) -> Result<Endpoint, PlaceError> {
        let place = shown(&format!("s3://{bucket}/{key}"));
        let mut url = self.endpoint.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        let key = percent_encoded(key.as_bytes());
        if self.path_style {
            url.set_path(&format!("{base}/{bucket}/{key}"));
        } else {
            let host = format!("{bucket}.{}", self.endpoint.host_str().unwrap_or_default());
            url.set_host(Some(&host)).map_err(|e| PlaceError::Invalid {
                place: place.clone(),
                reason: format!("the bucket does not fit into a host name ({e}); set storage.s3.path_style to true"),
            })?;
            url.set_path(&format!("{base}/{key}"));
        }
        url.set_query(query);
        Ok(Endpoint::new(self.client.clone(), url, self.shared.clone(), Some(self.signer.clone())).named(place))
    }

    /// Asks for an object's first bytes.
    pub(crate) async fn connect(&self, bucket: &str, key: &str) -> Result<(Endpoint, reqwest::Response), Failure> {
        let endpoint = self.at(bucket, key, None)?;
        let response = first_bytes(&endpoint, &Tag::default()).await?;
        Ok((endpoint, response))
    }

    /// Lists the objects of a folder. A key is listed as itself.
    pub(crate) async fn list(&self, bucket: &str, key: &str, options: &ListOptions) -> Result<Listing, PlaceError> {
        let folder = if key.is_empty() || key.ends_with('/') { key.to_owned() } else { format!("{key}/") };
        let chooser = Chooser::new(options.pattern.as_deref())?;
        let below = options.recursive || chooser.looks_below();
        let listing = self.list_folder(bucket, &folder, below, &chooser).await?;
        if folder == key || !listing.files.is_empty() || listing.passed_over > 0 {
            return Ok(listing);
        }
        let page = self.list_page(bucket, key, false, None).await?;
        let itself = page.objects.into_iter().filter(|object| object.key == key);
        let name = key.rsplit('/').next().unwrap_or(key);
        Ok(Listing { files: itself.map(|object| found(bucket, object, name.to_owned())).collect(), passed_over: 0 })
    }

    async fn list_folder(
        &self,
        bucket: &str,
        folder: &str,
        below: bool,
        chooser: &Chooser,
    ) -> Result<Listing, PlaceError> {
        let mut listing = Listing::default();
        let mut token: Option<String> = None;
        loop {
            let page = self.list_page(bucket, folder, below, token.as_deref()).await?;
            for object in page.objects {
                let relative = object.key.strip_prefix(folder).unwrap_or(&object.key).to_owned();
                let folders = relative.rsplit_once('/').map_or("", |(folders, _)| folders);
                let hidden = !folders.is_empty() && folders.split('/').any(is_unfinished);
                // A key that ends with the separator stands for a folder.
                if object.key.ends_with('/') || hidden || !chooser.wants(&relative) {
                    listing.passed_over += 1;
                    continue;
                }
                if listing.files.len() >= self.shared.limits.files_max {
                    return Err(PlaceError::TooLarge {
                        place: shown(&format!("s3://{bucket}/{folder}")),
                        found: format!("more than {} files", self.shared.limits.files_max),
                        limit: self.shared.limits.files_max as u64,
                        setting: "imports.limits.files_max",
                    });
                }
                listing.files.push(found(bucket, object, relative));
            }
            match page.next {
                Some(next) if token.as_ref() != Some(&next) => token = Some(next),
                _ => return Ok(listing),
            }
        }
    }

    async fn list_page(
        &self,
        bucket: &str,
        prefix: &str,
        below: bool,
        token: Option<&str>,
    ) -> Result<answer::Page, PlaceError> {
        let encoded = |text: &str| percent_encoded(text.as_bytes()).replace('/', "%2F");
        let mut query = String::new();
        if let Some(token) = token {
            query.push_str(&format!("continuation-token={}&", encoded(token)));
        }
        if !below {
            query.push_str("delimiter=%2F&");
        }
        query.push_str(&format!("list-type=2&prefix={}", encoded(prefix)));
        let endpoint = self.at(bucket, "", Some(&query))?.named(shown(&format!("s3://{bucket}/{prefix}")));
        let body = self.send(&endpoint, Method::GET, HeaderMap::new(), Bytes::new()).await?;
        answer::page(&body).map_err(|reason| PlaceError::Denied { place: endpoint.place.clone(), reason })
    }

    /// Copies an object within its bucket and removes it at its old place.
    pub(crate) async fn rename(&self, bucket: &str, from: &str, to: &str) -> Result<(), PlaceError> {
        let mut headers = HeaderMap::new();
        if let Ok(source) = HeaderValue::try_from(format!("/{bucket}/{}", percent_encoded(from.as_bytes()))) {
            headers.insert("x-amz-copy-source", source);
        }
        self.send(&self.at(bucket, to, None)?, Method::PUT, headers, Bytes::new()).await?;
        self.send(&self.at(bucket, from, None)?, Method::DELETE, HeaderMap::new(), Bytes::new()).await?;
        Ok(())
    }

    /// Puts one tag on an object, in place of those it has.
    pub(crate) async fn tag(&self, bucket: &str, key: &str, name: &str, value: &str) -> Result<(), PlaceError> {
        let body = Bytes::from(format!(
            "<Tagging><TagSet><Tag><Key>{name}</Key><Value>{value}</Value></Tag></TagSet></Tagging>"
        ));
        let mut headers = HeaderMap::new();
        let sum = STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, &body));
        if let Ok(sum) = HeaderValue::try_from(sum) {
            headers.insert("x-amz-checksum-sha256", sum);
        }
        self.send(&self.at(bucket, key, Some("tagging="))?, Method::PUT, headers, body).await?;
        Ok(())
    }

    /// Sends a request until it is answered, and reads the answer whole.
    async fn send(
        &self,
        endpoint: &Endpoint,
        method: Method,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Vec<u8>, PlaceError> {
        let mut attempts = Attempts::new(self.shared.clone(), &endpoint.place);
        loop {
            match send_once(endpoint, &method, &headers, &body).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => attempts.failed(failure).await?,
            }
        }
    }
}

async fn send_once(
    endpoint: &Endpoint,
    method: &Method,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Vec<u8>, Failure> {
    let mut response = endpoint.send(method.clone(), headers.clone(), body.clone()).await?;
    if !response.status().is_success() {
        return Err(endpoint.refusal(response).await);
    }
    let mut answer = Vec::new();
    let mut pace = Pace::default();
    while let Some(bytes) = endpoint.next(&mut response, &mut pace).await? {
        if answer.len() + bytes.len() > PAGE_BYTES_MAX {
            let reason = format!("its answer has more than {PAGE_BYTES_MAX} bytes");
            return Err(Failure::Final(PlaceError::Denied { place: endpoint.place.clone(), reason }));
        }
        answer.extend_from_slice(&bytes);
    }
    // A copy can fail after its answer began with 200.
    match error_code(&answer) {
        Some(code) => Err(Failure::again(format!("it answered with the error {}", shown(&code)))),
        None => Ok(answer),
    }
}

fn found(bucket: &str, object: answer::Object, relative: String) -> Found {
    Found {
        uri: format!("s3://{bucket}/{}", object.key),
        relative,
        bytes: object.bytes,
        version: format!("{} {}", object.etag, object.bytes),
        modified_us: object.modified_us,
    }
}
