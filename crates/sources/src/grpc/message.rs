//! Messages out of a request's body, by the gRPC wire format:
//!
//! ```text
//!   0      1            5
//!   ├ flag ┼ length BE ─┼ message … ┤   flag: 0 as it is, 1 packed by grpc-encoding
//! ```
//!
//! A message that lies whole in one frame of the connection is sliced out of it; others are gathered. Bytes are
//! counted against the listener's budget as they come, and a message that comes too slowly is given up.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::compression::{self, Encoding};
use super::error;

/// Flag and length.
const HEAD_BYTES: usize = 5;
/// The budget is counted in steps of this size.
const BUDGET_STEP: usize = 1024;
/// When to come back if the budget is taken.
const BUDGET_RETRY: Duration = Duration::from_millis(200);

/// The room for messages of all connections.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / BUDGET_STEP).min(Semaphore::MAX_PERMITS))))
    }
}

/// What one message takes of the budget; given back when it goes.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Budget,
    bytes: usize,
    held: Option<OwnedSemaphorePermit>,
}

impl Charge {
    pub(crate) fn new(budget: &Budget) -> Self {
        Self { budget: budget.clone(), bytes: 0, held: None }
    }

    /// Takes room for so many more bytes.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), Status> {
        self.bytes += bytes;
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(self.bytes.div_ceil(BUDGET_STEP).saturating_sub(held)).unwrap_or(u32::MAX);
        if more == 0 {
            return Ok(());
        }
        let full = |_| error::out_of_room("receive", "too many bytes of requests are being received", BUDGET_RETRY);
        let permit = self.budget.0.clone().try_acquire_many_owned(more).map_err(full)?;
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        Ok(())
    }
}

/// What holds for all messages of a request.
#[derive(Debug, Clone)]
pub(crate) struct ReadRules {
    pub(crate) encoding: Option<Encoding>,
    pub(crate) max_bytes: usize,
    pub(crate) grace: Duration,
    pub(crate) bytes_per_second: u64,
    pub(crate) budget: Budget,
}

/// One message, unpacked.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    /// Held for as long as the bytes are worked on.
    pub(crate) charge: Charge,
}

/// How long the message that is being read may still take.
struct Pace {
    began: Option<Instant>,
    bytes: u64,
}

impl Pace {
    fn deadline(&self, rules: &ReadRules) -> Option<Instant> {
        let at_rate = Duration::from_millis(self.bytes.saturating_mul(1000) / rules.bytes_per_second.max(1));
        self.began.map(|began| began + rules.grace + at_rate)
    }
}

/// Reads the messages of one request.
pub(crate) struct MessageReader<B> {
    body: B,
    rules: ReadRules,
    /// What came and is not yet read.
    chunk: Bytes,
}

impl<B: Body<Data = Bytes> + Unpin> MessageReader<B> {
    pub(crate) fn new(body: B, rules: ReadRules) -> Self {
        Self { body, rules, chunk: Bytes::new() }
    }

    /// The only message of a unary request.
    pub(crate) async fn only(mut self) -> Result<Received, Status> {
        let mut pace = Pace { began: Some(Instant::now()), bytes: 0 };
        let Some(received) = self.read(&mut pace).await? else {
            return Err(error::malformed("the request holds no message"));
        };
        if !self.chunk.is_empty() || (!self.body.is_end_stream() && self.fill(&mut pace).await?) {
            return Err(error::malformed("the request holds more than one message"));
        }
        Ok(received)
    }

    /// The next message of a stream; none at its end. The clock runs from the message's first byte.
    pub(crate) async fn next(&mut self) -> Result<Option<Received>, Status> {
        let mut pace = Pace { began: None, bytes: 0 };
        if self.chunk.is_empty() && !self.fill(&mut pace).await? {
            return Ok(None);
        }
        pace = Pace { began: Some(Instant::now()), bytes: 0 };
        self.read(&mut pace).await
    }

    async fn read(&mut self, pace: &mut Pace) -> Result<Option<Received>, Status> {
        let Some((packed, len)) = self.head(pace).await? else { return Ok(None) };
        if len > self.rules.max_bytes {
            return Err(error::too_large(&len.to_string(), self.rules.max_bytes));
        }
        let encoding = match (packed, self.rules.encoding) {
            (false, _) => None,
            (true, Some(encoding)) => Some(encoding),
            // The compression specification asks for this code.
            (true, None) => {
                return Err(Status::internal("a message is marked as compressed, but grpc-encoding names nothing"));
            }
        };
        let mut charge = Charge::new(&self.rules.budget);
        let bytes = self.body_of(len, pace, &mut charge).await?;
        let Some(encoding) = encoding else { return Ok(Some(Received { bytes, charge })) };
        unpack(encoding, bytes, self.rules.max_bytes, charge).await.map(Some)
    }

    /// Flag and length of the next message.
    async fn head(&mut self, pace: &mut Pace) -> Result<Option<(bool, usize)>, Status> {
        while self.chunk.len() < HEAD_BYTES {
            let begun = std::mem::take(&mut self.chunk);
            if !self.fill(pace).await? {
                return if begun.is_empty() { Ok(None) } else { Err(cut_short()) };
            }
            if !begun.is_empty() {
                self.chunk = [begun, std::mem::take(&mut self.chunk)].concat().into();
            }
        }
        let (flag, len) = (self.chunk.get_u8(), self.chunk.get_u32());
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        match flag {
            0 | 1 => Ok(Some((flag == 1, len))),
            // As above.
            _ => Err(Status::internal(format!("a message begins with {flag}; 0 and 1 are known"))),
        }
    }

    async fn body_of(&mut self, len: usize, pace: &mut Pace, charge: &mut Charge) -> Result<Bytes, Status> {
        if self.chunk.len() >= len {
            charge.add(len)?;
            return Ok(self.chunk.split_to(len));
        }
        let mut gathered = BytesMut::with_capacity(len);
        loop {
            let part = self.chunk.split_to(self.chunk.len().min(len - gathered.len()));
            charge.add(part.len())?;
            gathered.put(part);
            if gathered.len() == len {
                return Ok(gathered.freeze());
            }
            if !self.fill(pace).await? {
                return Err(cut_short());
            }
        }
    }

    /// Waits for more bytes; false at the end.
    async fn fill(&mut self, pace: &mut Pace) -> Result<bool, Status> {
        let gone = |_| Status::cancelled("the client ended the request");
        loop {
            let body = &mut self.body;
            let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
            let frame = match pace.deadline(&self.rules) {
                Some(deadline) => timeout_at(deadline, frame).await.map_err(|_| too_slow(&self.rules))?,
                None => frame.await,
            };
            match frame.transpose().map_err(gone)?.map(hyper::body::Frame::into_data) {
                None => return Ok(false),
                Some(Ok(data)) if !data.is_empty() => {
                    pace.bytes += data.len() as u64;
                    self.chunk = data;
                    return Ok(true);
                }
                Some(_) => {}
            }
        }
    }
}

/// Unpacks on a thread for such work: it may take long, and other calls shall not wait for it.
async fn unpack(encoding: Encoding, packed: Bytes, max_bytes: usize, mut charge: Charge) -> Result<Received, Status> {
    let work = tokio::task::spawn_blocking(move || {
        let bytes = compression::unpack(encoding, &packed, max_bytes, &mut charge)?;
        Ok(Received { bytes, charge })
    });
    work.await.map_err(|error| Status::internal(format!("unpacking a message failed: {error}")))?
}

fn cut_short() -> Status {
    error::malformed("the request ends inside a message")
}

fn too_slow(rules: &ReadRules) -> Status {
    let (grace, rate) = (rules.grace.as_secs_f32(), rules.bytes_per_second);
    Status::deadline_exceeded(format!(
        "the message came too slowly: it has {grace} s and one more for each {rate} bytes"
    ))
}

/// An answer with its head before it.
pub(crate) fn frame_answer(message: &impl prost::Message, encoding: Option<Encoding>) -> Bytes {
    let len = message.encoded_len();
    let mut framed = BytesMut::with_capacity(HEAD_BYTES + len);
    let put_head = |framed: &mut BytesMut, flag: u8, len: usize| {
        framed.put_u8(flag);
        // An answer lists a thousand errors at most; it stays far below 4 GiB.
        framed.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    };
    if encoding.is_some()
        && let Some(packed) = compression::pack(encoding, &message.encode_to_vec())
    {
        put_head(&mut framed, 1, packed.len());
        framed.extend_from_slice(&packed);
        return framed.freeze();
    }
    put_head(&mut framed, 0, len);
    message.encode_raw(&mut framed);
    framed.freeze()
}
