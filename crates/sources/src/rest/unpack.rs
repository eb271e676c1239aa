//! A packed body, unpacked while it comes.
//!
//! A thread of the blocking pool reads pieces from a channel and gives back blocks through another; both are short, so
//! that neither side runs ahead of the other, and a small body cannot become a large one in memory.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use hyper::body::Body;
use tokio::sync::mpsc;

use super::body::{Incoming, Packing, damaged, unpacker};
use super::refusal::Refusal;

/// Pieces and blocks that wait.
const WAITING: usize = 2;
/// The size of a block.
const BLOCK_BYTES: usize = 64 << 10;
/// Text that packs better than this is no text.
const RATIO_MAX: u64 = 200;

/// The body as it is once unpacked.
pub(crate) struct Unpacked<B> {
    incoming: Incoming<B>,
    work: Option<Work>,
    packed_bytes: u64,
    unpacked_bytes: u64,
    free_bytes: u64,
}

struct Work {
    pieces: Option<mpsc::Sender<Bytes>>,
    /// A piece that is waiting for its place.
    next: Option<Bytes>,
    blocks: mpsc::Receiver<io::Result<Bytes>>,
}

impl<B> Unpacked<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    /// `free_bytes` may come out whatever went in.
    pub(crate) fn new(incoming: Incoming<B>, packing: Packing, free_bytes: usize) -> Self {
        let work = (packing != Packing::Plain).then(|| Work::start(packing));
        Self { incoming, work, packed_bytes: 0, unpacked_bytes: 0, free_bytes: free_bytes as u64 }
    }

    /// The next piece; none at the end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Refusal> {
        let Some(work) = &mut self.work else { return self.incoming.piece().await };
        loop {
            // Whoever waits here may be called away at any point: a piece leaves its place only when it has another.
            let block = match (&work.pieces, &work.next) {
                (None, _) => work.blocks.recv().await,
                (Some(pieces), Some(_)) => tokio::select! {
                    biased;
                    place = pieces.reserve() => {
                        if let (Ok(place), Some(piece)) = (place, work.next.take()) {
                            place.send(piece);
                        }
                        continue;
                    }
                    block = work.blocks.recv() => block,
                },
                (Some(_), None) => tokio::select! {
                    biased;
                    block = work.blocks.recv() => block,
                    piece = self.incoming.piece() => {
                        match piece? {
                            Some(piece) => {
                                self.packed_bytes += piece.len() as u64;
                                work.next = Some(piece);
                            }
                            None => work.pieces = None,
                        }
                        continue;
                    }
                },
            };
            let Some(block) = block.transpose().map_err(damaged)? else { return Ok(None) };
            self.unpacked_bytes += block.len() as u64;
            if self.unpacked_bytes > self.free_bytes.max(self.packed_bytes.saturating_mul(RATIO_MAX)) {
                let detail = format!("the body unpacks to more than {RATIO_MAX} times its size; send it as it is");
                return Err(Refusal::new(http::StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail));
            }
            return Ok(Some(block));
        }
    }
}

impl Work {
    fn start(packing: Packing) -> Self {
        let (pieces, receiver) = mpsc::channel(WAITING);
        let (sender, blocks) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            let reader = Pieces { receiver, current: Bytes::new() };
            let mut reader = match unpacker(packing, reader) {
                Ok(reader) => reader,
                Err(error) => return drop(sender.blocking_send(Err(error))),
            };
            loop {
                let mut block = Vec::with_capacity(BLOCK_BYTES);
                let read = reader.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block);
                let block = match read {
                    Ok(0) => return,
                    Ok(_) => Ok(Bytes::from(block)),
                    Err(error) => Err(error),
                };
                let last = block.is_err();
                if sender.blocking_send(block).is_err() || last {
                    return;
                }
            }
        });
        Self { pieces: Some(pieces), next: None, blocks }
    }
}

/// The pieces, as the unpacking reads them.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let count = from.len().min(into.len());
        if let (Some(into), Some(from)) = (into.get_mut(..count), from.get(..count)) {
            into.copy_from_slice(from);
        }
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() {
            self.current = self.receiver.blocking_recv().unwrap_or_default();
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count.min(self.current.len()));
    }
}
