//! Fetches parts of one version of a remote file.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use http::StatusCode;

use super::endpoint::{Pace, content_range};
use super::{Attempts, Endpoint, Failure, Tag};
use crate::error::PlaceError;

/// An attempt that brought so much counts as one that worked.
const PROGRESS_BYTES: usize = 64 << 10;

/// One version of a file whose server serves ranges.
pub(crate) struct Reader {
    pub(crate) endpoint: Endpoint,
    pub(crate) tag: Tag,
    /// The file's size.
    pub(crate) bytes: u64,
}

/// Stops the work when nobody waits for it any more.
pub(crate) struct Task<T>(tokio::task::JoinHandle<T>);

impl<T> Task<T> {
    pub(crate) fn wait(self) -> impl Future<Output = Result<T, PlaceError>> + Send
    where
        T: Send,
    {
        let mut task = self;
        async move {
            (&mut task.0).await.map_err(|_| PlaceError::Unavailable {
                place: "a remote file".into(),
                reason: "its reading was ended".into(),
                attempts: 1,
            })
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reader {
    /// Begins to fetch a part, on a task of its own: it goes on while nobody asks for the result.
    pub(crate) fn begin(self: &Arc<Self>, range: Range<u64>) -> Task<Result<Bytes, PlaceError>> {
        let reader = self.clone();
        Task(self.endpoint.shared.handle.spawn(async move { reader.fetch(range).await }))
    }

    /// Fetches a part, in pieces of which several are under way at once.
    pub(crate) fn begin_wide(self: &Arc<Self>, range: Range<u64>) -> Task<Result<Bytes, PlaceError>> {
        let reader = self.clone();
        Task(self.endpoint.shared.handle.spawn(async move { reader.fetch_wide(range).await }))
    }

    async fn fetch_wide(self: &Arc<Self>, range: Range<u64>) -> Result<Bytes, PlaceError> {
        let limits = &self.endpoint.shared.limits;
        if range.end.saturating_sub(range.start) <= limits.chunk_bytes {
            return self.fetch(range).await;
        }
        let mut whole = BytesMut::with_capacity(length(&range));
        let pieces = pieces(range, limits.chunk_bytes).map(|piece| self.begin(piece).wait());
        let mut pieces = futures::stream::iter(pieces).buffered(limits.in_flight);
        while let Some(piece) = pieces.try_next().await? {
            whole.extend_from_slice(&piece?);
        }
        Ok(whole.freeze())
    }

    /// Fetches a part; what broke off is asked for from there on.
    async fn fetch(&self, range: Range<u64>) -> Result<Bytes, PlaceError> {
        let wanted = length(&range);
        let mut got = BytesMut::with_capacity(wanted);
        let mut attempts = Attempts::new(self.endpoint.shared.clone(), &self.endpoint.place);
        while got.len() < wanted {
            let before = got.len();
            let rest = range.start + before as u64..range.end;
            if let Err(failure) = self.fetch_some(rest, &mut got).await {
                if got.len() - before >= PROGRESS_BYTES {
                    attempts.progressed();
                }
                attempts.failed(failure).await?;
            }
        }
        Ok(got.freeze())
    }

    async fn fetch_some(&self, range: Range<u64>, got: &mut BytesMut) -> Result<(), Failure> {
        let wanted = got.len() + length(&range);
        let mut response = self.endpoint.get(Some(range.clone()), &self.tag).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(self
                .endpoint
                .changed(format!("the server answered {} to a request for a part", response.status())));
        }
        match content_range(response.headers()) {
            Some((_, Some(whole))) if whole != self.bytes => {
                return Err(self.endpoint.changed(format!("it had {} bytes, now it has {whole}", self.bytes)));
            }
            Some((part, _)) if part == range => {}
            _ => {
                let reason = format!("the server answered with another part than bytes {}-{}", range.start, range.end);
                return Err(Failure::again(reason));
            }
        }
        let mut pace = Pace::default();
        while let Some(bytes) = self.endpoint.next(&mut response, &mut pace).await? {
            if got.len() + bytes.len() > wanted {
                return Err(Failure::again("the server sent more than was asked for"));
            }
            got.extend_from_slice(&bytes);
        }
        if got.len() < wanted {
            return Err(Failure::again("the answer ended early"));
        }
        Ok(())
    }
}

/// Cuts a part into pieces of at most so many bytes.
pub(crate) fn pieces(range: Range<u64>, bytes: u64) -> impl Iterator<Item = Range<u64>> + Send {
    let step = usize::try_from(bytes.max(1)).unwrap_or(usize::MAX);
    let end = range.end;
    range.step_by(step).map(move |start| start..start.saturating_add(bytes).min(end))
}

pub(crate) fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX)
}
