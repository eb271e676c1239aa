//! Answers that are lost, cut or late, over a store in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::{Bucket, PART_BYTES};
use crate::lake::Lake;
use crate::options::Offload;
use crate::test_support::{append, contract, event_ids, ids, name, options, writer};
use crate::testing::MemoryCatalog;
use crate::warehouse::{Warehouse, WarehouseError};
use lakegate_env::SeededRandom;

/// What happens to the next write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It is done and its answer lost.
    DoneThenLost,
    /// It is done, and the repetition that nobody sees meets the first one.
    DoneThenTaken,
    /// The store does not know conditions.
    NotImplemented,
    /// It is denied.
    Denied,
}

#[derive(Debug, Default)]
struct Shaky {
    inner: InMemory,
    script: parking_lot::Mutex<Vec<Next>>,
    aborted: Arc<AtomicU32>,
}

impl std::fmt::Display for Shaky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("shaky")
    }
}

fn lost() -> StoreError {
    StoreError::Generic { store: "S3", source: "connection closed before message completed".into() }
}

#[async_trait]
impl ObjectStore for Shaky {
    async fn put_opts(&self, key: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let next = self.script.lock().pop();
        let body = |code: &str| {
            format!(
                "Server returned non-2xx status code: <Error><Code>{code}</Code><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>"
            )
        };
        let path = key.to_string();
        match next {
            None => self.inner.put_opts(key, payload, options).await,
            Some(Next::DoneThenLost) => {
                self.inner.put_opts(key, payload, options).await?;
                Err(lost())
            }
            Some(Next::DoneThenTaken) => {
                self.inner.put_opts(key, payload, options).await?;
                Err(StoreError::AlreadyExists { path, source: "412".into() })
            }
            Some(Next::NotImplemented) => {
                Err(StoreError::Generic { store: "S3", source: body("NotImplemented").into() })
            }
            Some(Next::Denied) => Err(StoreError::PermissionDenied { path, source: body("InvalidAccessKeyId").into() }),
        }
    }

    async fn put_multipart_opts(&self, key: &Key, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(key, options).await?;
        Ok(Box::new(ShakyUpload { inner, next: self.script.lock().pop(), aborted: Arc::clone(&self.aborted) }))
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(key, options).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct ShakyUpload {
    inner: Box<dyn MultipartUpload>,
    next: Option<Next>,
    aborted: Arc<AtomicU32>,
}

#[async_trait]
impl MultipartUpload for ShakyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        if self.next == Some(Next::Denied) {
            return Box::pin(async { Err(lost()) });
        }
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let done = self.inner.complete().await?;
        if self.next == Some(Next::DoneThenLost) { Err(lost()) } else { Ok(done) }
    }

    async fn abort(&mut self) -> Result<()> {
        self.aborted.fetch_add(1, Ordering::SeqCst);
        if self.next == Some(Next::DoneThenLost) { Ok(()) } else { self.inner.abort().await }
    }
}

const ROOT: &str = "s3://lake/tables";

fn bucket(script: &[Next]) -> (Arc<Shaky>, Arc<Bucket>) {
    let store = Arc::new(Shaky::default());
    store.script.lock().extend(script.iter().rev());
    let bucket = Arc::new(Bucket::over(store.clone(), ROOT, "http://127.0.0.1:9000"));
    (store, bucket)
}

#[tokio::test]
async fn f37_a_write_whose_answer_was_lost_is_ours_when_it_is_met_again() {
    let (_, bucket) = bucket(&[Next::DoneThenTaken]);
    bucket.put_new("s3://lake/tables/a", Bytes::from_static(b"one")).await.unwrap();
    // Another content under the name is another's.
    let error = bucket.put_new("s3://lake/tables/a", Bytes::from_static(b"two")).await.unwrap_err();
    assert!(
        matches!(error, WarehouseError::Io { ref source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists)
    );
    assert_eq!(bucket.read("s3a://lake/tables/a").await.unwrap(), Bytes::from_static(b"one"));
}

#[tokio::test]
async fn f37_a_store_without_conditional_writes_is_written_to_all_the_same() {
    let (_, bucket) = bucket(&[Next::NotImplemented]);
    bucket.put_new("s3://lake/tables/a", Bytes::from_static(b"one")).await.unwrap();
    bucket.put_new("s3://lake/tables/a", Bytes::from_static(b"one")).await.unwrap();
    bucket.put_new("s3://lake/tables/a", Bytes::from_static(b"two")).await.unwrap_err();
}

#[tokio::test]
async fn f38_parts_completed_with_a_lost_answer_are_an_object_and_lost_parts_are_none() {
    let (_, bucket) = bucket(&[Next::DoneThenLost, Next::Denied]);
    let large = Bytes::from(vec![7; PART_BYTES * 2 + 5]);
    bucket.put_new("s3://lake/tables/large", large.clone()).await.unwrap();
    assert_eq!(bucket.read("s3://lake/tables/large").await.unwrap(), large);
    bucket.put_new("s3://lake/tables/other", large).await.unwrap_err();
    assert_eq!(bucket.size("s3://lake/tables/other").await.unwrap(), None);
}

#[tokio::test]
async fn f38_an_upload_that_is_dropped_is_aborted_and_nothing_of_it_is_seen() {
    let (store, bucket) = bucket(&[]);
    let mut upload = bucket.upload("s3://lake/tables/large").unwrap();
    let work = tokio::task::spawn_blocking(move || {
        std::io::Write::write_all(&mut upload, &vec![1; PART_BYTES * 2]).unwrap();
    });
    work.await.unwrap();
    while store.aborted.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bucket.size("s3://lake/tables/large").await.unwrap(), None);
}

#[tokio::test]
async fn f40_a_refusal_says_what_to_do_and_never_the_key() {
    let (_, bucket) = bucket(&[Next::Denied]);
    let error = bucket.put_new("s3://lake/tables/a", Bytes::from_static(b"one")).await.unwrap_err().to_string();
    assert!(error.contains("storage.s3.access_key") && error.contains("s3://lake/tables/a"), "{error}");
    assert!(!error.contains("AKIA"), "{error}");
}

#[tokio::test]
async fn a_location_in_another_bucket_or_above_the_prefix_is_refused() {
    let (_, bucket) = bucket(&[]);
    let warehouse = Warehouse::of_bucket(Arc::try_unwrap(bucket).unwrap());
    for outside in [
        "s3://other/tables/a",
        "s3://lake/elsewhere/a",
        "s3://lake/tables/../a",
        "file:///tables/a",
        "s3://lake/tables",
    ] {
        assert!(matches!(warehouse.check(outside), Err(WarehouseError::Outside { .. })), "{outside}");
    }
    warehouse.check("s3a://lake/tables/a/b").unwrap();
}

#[tokio::test]
async fn a_table_in_a_bucket_is_written_listed_and_read() {
    let store = Arc::new(Shaky::default());
    let warehouse = Warehouse::of_bucket(Bucket::over(store.clone(), ROOT, ""));
    let catalog = MemoryCatalog::new(warehouse.clone(), Arc::new(SeededRandom::new(3)));
    let mut settings = options(&warehouse, Arc::new(catalog), writer(1, 1), 1);
    settings.offload = Offload::BlockingThreads;
    let lake = Lake::open(settings);
    let table = lake.open_table(&name(), &contract()).await.unwrap();
    append(&table, 0, 3).await;
    append(&table, 3, 5).await;
    assert_eq!(event_ids(&table.view()).await, ids(0..5));
    let location = table.view().metadata().location().to_owned();
    assert!(location.starts_with("s3://lake/tables/acme/orders"), "{location}");
    let listed = warehouse.list(&location).await.unwrap();
    assert!(listed.iter().filter(|(l, age)| l.ends_with(".parquet") && *age < 60).count() == 2, "{listed:?}");
    for (location, _) in &listed {
        assert!(warehouse.exists(location).await.unwrap(), "{location}");
    }
    // A write that fails leaves no file that a commit could name.
    store.script.lock().push(Next::Denied);
    table.write(vec![crate::test_support::rows(5, 2)]).await.unwrap_err();
    assert_eq!(warehouse.list(&location).await.unwrap().len(), listed.len());
    let key = Key::from("tables/none");
    assert!(matches!(store.head(&key).await, Err(StoreError::NotFound { .. })));
}
