//! A bucket of an S3 store, or of one that speaks its protocol (MinIO, R2, Ceph, …).
//!
//! Promises: an object is there whole or not at all; a new object never takes another's place, by `If-None-Match: *`
//! where the store knows it. An answer that was lost is looked up, never guessed: names are used once, so that an
//! object of our name and content is ours. Requests are repeated with growing waits while the store does not answer or
//! fails, for [`RETRY_SECONDS`] at most; then the caller is told what was wanted, what was met, and what to do.

mod explain;
mod file_io;
#[cfg(test)]
mod tests;
mod upload;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ClientOptions, Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    RetryConfig,
};

use super::WarehouseError;
use super::disk::uniform;
use explain::explain;
pub(super) use file_io::file_io;
pub(crate) use upload::Upload;

/// How long a request is repeated.
const RETRY_SECONDS: u64 = 8;
/// How long one request may take, its body included.
const REQUEST_SECONDS: u64 = 60;
const CONNECT_SECONDS: u64 = 5;
/// Objects of more bytes are uploaded in parts of so many.
const PART_BYTES: usize = 8 << 20;

/// What a bucket is opened with.
#[derive(Clone, Default)]
pub struct BucketOptions {
    /// `s3://bucket/prefix`.
    pub location: String,
    /// The store's address; empty: the provider's.
    pub endpoint: String,
    /// The region.
    pub region: String,
    /// The access key; empty: from the environment, or from the machine's role.
    pub access_key: String,
    /// The secret key.
    pub secret_key: String,
    /// Whether the bucket is named in the path rather than in the host's name.
    pub path_style: bool,
}

impl std::fmt::Debug for BucketOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketOptions")
            .field("location", &self.location)
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// A bucket, and the prefix in it below which everything lies.
#[derive(Debug)]
pub(crate) struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// `s3://bucket/prefix`, without a slash at the end.
    root: String,
    name: String,
    /// The store's address, for messages.
    endpoint: String,
    /// The store was found not to know conditional writes.
    is_unconditional: AtomicBool,
}

impl Bucket {
    pub(super) fn open(options: BucketOptions) -> Result<Self, WarehouseError> {
        let location = options.location.trim_end_matches('/');
        let wrong = |message: String| WarehouseError::Store {
            action: "open the warehouse",
            location: location.to_owned(),
            message,
        };
        let name = bucket_of(location).ok_or_else(|| wrong("it is not of the form s3://bucket/prefix".to_owned()))?;
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(3),
                base: 2.0,
            },
            max_retries: 10,
            retry_timeout: Duration::from_secs(RETRY_SECONDS),
        };
        let client = ClientOptions::new()
            .with_connect_timeout(Duration::from_secs(CONNECT_SECONDS))
            .with_timeout(Duration::from_secs(REQUEST_SECONDS))
            .with_allow_http(options.endpoint.starts_with("http://"));
        let mut builder = if options.access_key.is_empty() {
            AmazonS3Builder::from_env()
        } else {
            AmazonS3Builder::new()
                .with_access_key_id(options.access_key.clone())
                .with_secret_access_key(options.secret_key.clone())
        };
        builder = builder
            .with_bucket_name(name)
            .with_region(options.region.clone())
            .with_virtual_hosted_style_request(!options.path_style)
            .with_retry(retry)
            .with_client_options(client);
        if !options.endpoint.is_empty() {
            builder = builder.with_endpoint(options.endpoint.trim_end_matches('/'));
        }
        let store = builder.build().map_err(|e| wrong(e.to_string()))?;
        Ok(Self::over(Arc::new(store), location, &options.endpoint))
    }

    pub(super) fn over(store: Arc<dyn ObjectStore>, root: &str, endpoint: &str) -> Self {
        let name = bucket_of(root).unwrap_or_default().to_owned();
        let endpoint = if endpoint.is_empty() { "the provider's address" } else { endpoint }.to_owned();
        Self { store, root: root.to_owned(), name, endpoint, is_unconditional: AtomicBool::new(false) }
    }

    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// The object's name in the bucket.
    fn key(&self, location: &str) -> Result<Key, WarehouseError> {
        let outside = || WarehouseError::Outside { location: location.to_owned(), root: self.root.clone() };
        let whole = uniform(location);
        let rest = whole.strip_prefix("s3://").and_then(|r| r.strip_prefix(self.name.as_str())).ok_or_else(outside)?;
        let name = rest.strip_prefix('/').ok_or_else(outside)?;
        Key::parse(name).map_err(|_| outside())
    }

    fn wrong(&self, action: &'static str, location: &str, error: &StoreError) -> WarehouseError {
        let message = explain(error, &self.name, &self.endpoint);
        WarehouseError::Store { action, location: location.to_owned(), message }
    }

    pub(super) async fn read(&self, location: &str) -> Result<Bytes, WarehouseError> {
        let key = self.key(location)?;
        let got = async { self.store.get(&key).await?.bytes().await };
        got.await.map_err(|e| self.wrong("read", location, &e))
    }

    async fn read_range(&self, location: &str, range: std::ops::Range<u64>) -> Result<Bytes, WarehouseError> {
        let key = self.key(location)?;
        self.store.get_range(&key, range).await.map_err(|e| self.wrong("read", location, &e))
    }

    /// The object's size; none where it is not there.
    async fn size(&self, location: &str) -> Result<Option<u64>, WarehouseError> {
        match self.store.head(&self.key(location)?).await {
            Ok(found) => Ok(Some(found.size)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.wrong("look for", location, &error)),
        }
    }

    /// Writes an object that must not be there yet.
    pub(super) async fn put_new(&self, location: &str, bytes: Bytes) -> Result<(), WarehouseError> {
        if bytes.len() > PART_BYTES {
            return upload::put_in_parts(self, location, bytes).await;
        }
        let key = self.key(location)?;
        if !self.is_unconditional.load(Ordering::Relaxed) {
            let mode = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.store.put_opts(&key, PutPayload::from(bytes.clone()), mode).await {
                Ok(_) => return Ok(()),
                Err(error) if explain::is_not_implemented(&error) => {
                    tracing::info!(bucket = %self.name, "the store knows no conditional writes; names that are used once must do");
                    self.is_unconditional.store(true, Ordering::Relaxed);
                }
                // Ours, if the first answer was lost on the way; or a conflict that means nothing by itself.
                Err(error) => return self.settle_put(location, &bytes, error).await,
            }
        }
        if self.size(location).await?.is_some() {
            return self.same_or_taken(location, &bytes).await;
        }
        let put = self.store.put(&key, PutPayload::from(bytes)).await;
        put.map(drop).map_err(|e| self.wrong("write", location, &e))
    }

    async fn settle_put(&self, location: &str, bytes: &Bytes, error: StoreError) -> Result<(), WarehouseError> {
        match error {
            StoreError::AlreadyExists { .. } if self.size(location).await?.is_some() => {
                self.same_or_taken(location, bytes).await
            }
            other => Err(self.wrong("write", location, &other)),
        }
    }

    async fn same_or_taken(&self, location: &str, bytes: &Bytes) -> Result<(), WarehouseError> {
        if self.read(location).await? == *bytes {
            return Ok(());
        }
        let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        Err(WarehouseError::Io { action: "create", location: location.to_owned(), source })
    }

    pub(super) async fn remove(&self, location: &str) -> Result<(), WarehouseError> {
        match self.store.delete(&self.key(location)?).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.wrong("remove", location, &error)),
        }
    }

    /// The objects below a folder, named as the folder is, with their age in seconds.
    pub(super) async fn list(&self, folder: &str) -> Result<Vec<(String, u64)>, WarehouseError> {
        let folder = folder.trim_end_matches('/');
        let prefix = self.key(folder)?;
        let found: Vec<_> =
            self.store.list(Some(&prefix)).try_collect().await.map_err(|e| self.wrong("list", folder, &e))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let entries = found.into_iter().filter_map(|object| {
            let rest = object.location.as_ref().strip_prefix(prefix.as_ref())?.to_owned();
            let written = u64::try_from(object.last_modified.timestamp()).unwrap_or_default();
            Some((format!("{folder}{rest}"), now.saturating_sub(written)))
        });
        Ok(entries.collect())
    }

    pub(super) fn upload(self: &Arc<Self>, location: &str) -> Result<Upload, WarehouseError> {
        Upload::new(Arc::clone(self), location)
    }
}

/// The bucket's name in `s3://bucket/prefix`.
fn bucket_of(location: &str) -> Option<&str> {
    let name = location.strip_prefix("s3://")?.split('/').next()?;
    (!name.is_empty()).then_some(name)
}
