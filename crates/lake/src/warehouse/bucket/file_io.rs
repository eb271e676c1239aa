//! The bucket as the Iceberg library reads it.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage, StorageConfig,
    StorageFactory,
};
use iceberg::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::Bucket;
use crate::warehouse::WarehouseError;

/// A bucket as the library's storage. The library asks that storages can be written down; this one, with its
/// connections and keys, comes back from that without its bucket, and then errs.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct BucketStorage {
    #[serde(skip)]
    bucket: Option<Arc<Bucket>>,
}

/// The library's access to a bucket.
pub(in crate::warehouse) fn file_io(bucket: &Arc<Bucket>) -> FileIO {
    FileIOBuilder::new(Arc::new(BucketStorage { bucket: Some(Arc::clone(bucket)) })).build()
}

fn failed(error: WarehouseError) -> Error {
    Error::new(ErrorKind::Unexpected, error.to_string())
}

impl BucketStorage {
    fn bucket(&self) -> Result<&Arc<Bucket>> {
        self.bucket.as_ref().ok_or_else(|| Error::new(ErrorKind::Unexpected, "this storage has no bucket"))
    }
}

#[typetag::serde(name = "LakegateBucketFactory")]
impl StorageFactory for BucketStorage {
    fn build(&self, _: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.clone()))
    }
}

#[async_trait]
#[typetag::serde(name = "LakegateBucket")]
impl Storage for BucketStorage {
    async fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.bucket()?.size(path).await.map_err(failed)?.is_some())
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        let missing = || Error::new(ErrorKind::DataInvalid, format!("there is no object {path}"));
        let size = self.bucket()?.size(path).await.map_err(failed)?.ok_or_else(missing)?;
        Ok(FileMetadata { size })
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        self.bucket()?.read(path).await.map_err(failed)
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        Ok(Box::new(Reader { bucket: Arc::clone(self.bucket()?), path: path.to_owned() }))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.bucket()?.put_new(path, bytes).await.map_err(failed)
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        Err(Error::new(ErrorKind::FeatureUnsupported, format!("{path} is not written through the library")))
    }

    async fn delete(&self, path: &str) -> Result<()> {
        self.bucket()?.remove(path).await.map_err(failed)
    }

    async fn delete_prefix(&self, path: &str) -> Result<()> {
        Err(Error::new(ErrorKind::FeatureUnsupported, format!("{path} is not removed through the library")))
    }

    async fn delete_stream(&self, mut paths: BoxStream<'static, String>) -> Result<()> {
        while let Some(path) = paths.next().await {
            self.delete(&path).await?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

struct Reader {
    bucket: Arc<Bucket>,
    path: String,
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.bucket.read_range(&self.path, range).await.map_err(failed)
    }
}
