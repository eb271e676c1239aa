//! An object written piece by piece: few bytes in one request, many in parts that are uploaded while the next are made.
//!
//! No part is seen before all are there and the upload is completed. An upload that is dropped is aborted; one whose
//! abort does not arrive is for the bucket's own rule for incomplete uploads.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use object_store::{ObjectStoreExt, WriteMultipart};
use tokio::runtime::Handle;

use super::{Bucket, PART_BYTES};
use crate::warehouse::WarehouseError;

/// So many parts are on their way at once; with the one that fills, this bounds an upload's memory.
const PARTS_AT_ONCE: usize = 3;

/// An object being written. [`Write`] blocks, and must not be called on a thread that runs tasks.
pub(crate) struct Upload {
    bucket: Arc<Bucket>,
    location: String,
    handle: Handle,
    /// What is not in a part yet, while there are none.
    held: Vec<u8>,
    parts: Option<WriteMultipart>,
    bytes: u64,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("location", &self.location).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Upload {
    pub(super) fn new(bucket: Arc<Bucket>, location: &str) -> Result<Self, WarehouseError> {
        let handle = Handle::try_current().map_err(|e| WarehouseError::Store {
            action: "write",
            location: location.to_owned(),
            message: e.to_string(),
        })?;
        Ok(Self { bucket, location: location.to_owned(), handle, held: Vec::new(), parts: None, bytes: 0 })
    }

    /// Completes the upload: from now on the object is there.
    pub(crate) async fn finish(mut self) -> Result<(), WarehouseError> {
        match self.parts.take() {
            None => {
                let bytes = Bytes::from(std::mem::take(&mut self.held));
                self.bucket.put_new(&self.location, bytes).await
            }
            Some(parts) => complete(&self.bucket, &self.location, parts, self.bytes).await,
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), WarehouseError> {
        let wrong = |e| self.bucket.wrong("write", &self.location, &e);
        if self.parts.is_none() {
            if self.held.len() + bytes.len() <= PART_BYTES {
                self.held.extend_from_slice(bytes);
                return Ok(());
            }
            let key = self.bucket.key(&self.location)?;
            let begun = self.handle.block_on(self.bucket.store.put_multipart(&key)).map_err(wrong)?;
            let mut parts = WriteMultipart::new_with_chunk_size(begun, PART_BYTES);
            parts.write(&std::mem::take(&mut self.held));
            self.parts = Some(parts);
        }
        let Some(parts) = &mut self.parts else { return Ok(()) };
        self.handle
            .block_on(parts.wait_for_capacity(PARTS_AT_ONCE))
            .map_err(|e| self.bucket.wrong("write", &self.location, &e))?;
        // Parts begin as tasks.
        let _runtime = self.handle.enter();
        parts.write(bytes);
        Ok(())
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Not more than a part at once, so that parts wait for each other.
        let now = bytes.get(..bytes.len().min(PART_BYTES)).unwrap_or_default();
        self.push(now).map_err(|e| io::Error::other(e.to_string()))?;
        self.bytes += u64::try_from(now.len()).unwrap_or_default();
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            let location = std::mem::take(&mut self.location);
            self.handle.spawn(async move {
                if let Err(error) = parts.abort().await {
                    tracing::warn!(%location, %error, "an upload could not be aborted; the bucket's rule for incomplete uploads removes it");
                }
            });
        }
    }
}

/// Completes an upload of that many bytes. When the answer is lost the object is looked for: its name is used once.
async fn complete(bucket: &Bucket, location: &str, parts: WriteMultipart, bytes: u64) -> Result<(), WarehouseError> {
    let Err(error) = parts.finish().await else { return Ok(()) };
    match bucket.size(location).await {
        Ok(Some(size)) if size == bytes => Ok(()),
        _ => Err(bucket.wrong("write", location, &error)),
    }
}

pub(super) async fn put_in_parts(bucket: &Bucket, location: &str, bytes: Bytes) -> Result<(), WarehouseError> {
    let key = bucket.key(location)?;
    let wrong = |e| bucket.wrong("write", location, &e);
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let mut parts =
        WriteMultipart::new_with_chunk_size(bucket.store.put_multipart(&key).await.map_err(wrong)?, PART_BYTES);
    let mut left = bytes;
    while !left.is_empty() {
        let sent = match parts.wait_for_capacity(PARTS_AT_ONCE).await {
            Ok(()) => left.split_to(left.len().min(PART_BYTES)),
            Err(error) => {
                let _ = parts.abort().await;
                return Err(wrong(error));
            }
        };
        parts.put(sent);
    }
    complete(bucket, location, parts, size).await
}
