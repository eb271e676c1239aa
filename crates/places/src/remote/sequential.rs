//! Reads a remote file from front to back, ahead of who reads it.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use tokio::sync::mpsc;

use super::endpoint::Pace;
use super::reader::{Reader, pieces};
use super::{Attempts, Endpoint, Failure, Tag};
use crate::error::PlaceError;

/// What a task read ahead, as a reader. At most `in_flight + 2` pieces of `chunk_bytes` are in memory.
pub(crate) struct Sequential {
    pieces: mpsc::Receiver<Result<Bytes, PlaceError>>,
    current: Bytes,
    task: tokio::task::AbortHandle,
}

impl Drop for Sequential {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Read for Sequential {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let taken = buffer.len().min(self.current.len());
        if let Some(room) = buffer.get_mut(..taken) {
            self.current.copy_to_slice(room);
        }
        Ok(taken)
    }
}

/// Reads by ranges, several under way at once. `head` is what is known of the beginning.
pub(crate) fn by_ranges(reader: &Arc<Reader>, head: &Bytes, from: u64) -> Sequential {
    let (send, receive) = mpsc::channel(1);
    let reader = reader.clone();
    let known = usize::try_from(from).ok().filter(|from| *from < head.len());
    let current = known.map(|from| head.slice(from..)).unwrap_or_default();
    let from = if known.is_some() { head.len() as u64 } else { from };
    let handle = reader.endpoint.shared.handle.clone();
    let task = handle.spawn(async move {
        let limits = &reader.endpoint.shared.limits;
        let wanted = pieces(from..reader.bytes, limits.chunk_bytes).map(|piece| reader.begin(piece).wait());
        let mut fetched = futures::stream::iter(wanted).buffered(limits.in_flight);
        while let Some(piece) = fetched.next().await {
            let piece = piece.and_then(|piece| piece);
            let is_last = piece.is_err();
            if send.send(piece).await.is_err() || is_last {
                break;
            }
        }
    });
    Sequential { pieces: receive, current, task: task.abort_handle() }
}

/// Reads one answer from front to back, for servers that serve no ranges. One that breaks off is asked for again and
/// read over what is there already, if the server tells versions apart.
pub(crate) fn by_one_answer(endpoint: &Arc<Endpoint>, tag: &Tag, from: u64) -> Sequential {
    let (send, receive) = mpsc::channel(2);
    let (endpoint, tag) = (endpoint.clone(), tag.clone());
    let handle = endpoint.shared.handle.clone();
    let task = handle.spawn(async move {
        if let Err(error) = pump(&endpoint, &tag, from, &send).await {
            // Nobody listens any more: then nobody needs to know.
            let _ = send.send(Err(error)).await;
        }
    });
    Sequential { pieces: receive, current: Bytes::new(), task: task.abort_handle() }
}

type Sender = mpsc::Sender<Result<Bytes, PlaceError>>;

async fn pump(endpoint: &Endpoint, tag: &Tag, from: u64, send: &Sender) -> Result<(), PlaceError> {
    let mut attempts = Attempts::new(endpoint.shared.clone(), &endpoint.place);
    let mut at = from;
    loop {
        let before = at;
        match pump_once(endpoint, tag, &mut at, send).await {
            Ok(()) => return Ok(()),
            Err(Failure::Again { reason, .. }) if at > before && !tag.is_known() => {
                let reason = format!(
                    "{reason}; the server serves neither ranges nor an etag, so that it cannot be taken up again"
                );
                return Err(PlaceError::Unavailable { place: endpoint.place.clone(), reason, attempts: 1 });
            }
            // No reset of the count by progress: each attempt reads everything again.
            Err(failure) => attempts.failed(failure).await?,
        }
    }
}

/// One answer, from its beginning; what lies before `at` is read over.
async fn pump_once(endpoint: &Endpoint, tag: &Tag, at: &mut u64, send: &Sender) -> Result<(), Failure> {
    let mut response = endpoint.get(None, tag).await?;
    let most = endpoint.shared.limits.file_bytes_max;
    let (mut pace, mut position) = (Pace::default(), 0_u64);
    while let Some(mut bytes) = endpoint.next(&mut response, &mut pace).await? {
        let over = usize::try_from(at.saturating_sub(position)).unwrap_or(usize::MAX).min(bytes.len());
        position += bytes.len() as u64;
        if position > most {
            return Err(Failure::Final(too_large(endpoint, format!("more than {most} bytes"))));
        }
        bytes.advance(over);
        if bytes.is_empty() {
            continue;
        }
        if send.send(Ok(bytes)).await.is_err() {
            return Ok(());
        }
        *at = position;
    }
    Ok(())
}

pub(crate) fn too_large(endpoint: &Endpoint, found: String) -> PlaceError {
    PlaceError::TooLarge {
        place: endpoint.place.clone(),
        found,
        limit: endpoint.shared.limits.file_bytes_max,
        setting: "imports.limits.file_bytes_max",
    }
}
