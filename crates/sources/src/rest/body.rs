//! Reading a body: bounded in bytes, in time, and over all requests; unpacked as it comes.

use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::options::RestLimits;
use super::refusal::Refusal;

/// The budget is counted in such steps.
const BUDGET_STEP: usize = 64 << 10;
/// So much is unpacked at a time between two looks at the limits.
const STEP_BYTES: u64 = 64 << 10;
/// A zstd body that asks for a larger window is refused: 8 MiB is what RFC 8878 asks decoders to support.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How many bytes of large bodies may be in memory at once; small ones are bounded by the number of connections.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / BUDGET_STEP).clamp(1, Semaphore::MAX_PERMITS))))
    }
}

/// What a request takes of the budget.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
}

impl Charge {
    pub(crate) fn new(budget: &Budget) -> Self {
        Self { budget: budget.clone(), held: None }
    }

    /// Takes room for `bytes` in all; the first step is free.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), Refusal> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = (bytes / BUDGET_STEP).saturating_sub(held);
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let full = |_| Refusal::no_room("too many bytes of requests are being received at once");
        let permit = self.budget.0.clone().try_acquire_many_owned(more).map_err(full)?;
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        Ok(())
    }
}

/// How a body is packed (RFC 9110, section 8.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// As the headers say. One packing at most: a chain of them is only good for bombs.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut values = headers.get_all(CONTENT_ENCODING).iter();
        let Some(value) = values.next() else { return Ok(Self::Plain) };
        let name = value.to_str().unwrap_or("?").trim().to_ascii_lowercase();
        match (name.as_str(), values.next()) {
            ("identity" | "", None) => Ok(Self::Plain),
            ("gzip" | "x-gzip", None) => Ok(Self::Gzip),
            ("zstd", None) => Ok(Self::Zstd),
            _ => {
                let name: String = name.chars().take(80).collect();
                let detail = format!("the content encoding is {name:?}; send gzip, zstd or none");
                Err(Refusal::new(http::StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong_content_encoding", detail))
            }
        }
    }
}

/// Whether the content type is one of these; nothing said means the first.
pub(crate) fn content_type<'a>(headers: &HeaderMap, right: &[&'a str]) -> Result<&'a str, Refusal> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(right.first().copied().unwrap_or_default()) };
    let value = value.to_str().unwrap_or("?");
    let found = value.split(';').next().unwrap_or_default().trim();
    let known = right.iter().find(|name| name.eq_ignore_ascii_case(found));
    known.copied().ok_or_else(|| Refusal::wrong_content_type(value, &right.join(" or ")))
}

/// A body that is read in pieces, at no less than the least rate.
pub(crate) struct Incoming<B> {
    body: B,
    deadline: Instant,
    nanos_per_byte: u64,
}

impl<B> Incoming<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    pub(crate) fn new(body: B, limits: &RestLimits) -> Self {
        let nanos_per_byte = 1_000_000_000 / limits.body_bytes_per_second.max(1);
        Self { body, deadline: Instant::now() + limits.body_grace, nanos_per_byte }
    }

    /// How long the body says it is.
    pub(crate) fn declared(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// The next piece as it came; none at the end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            let mut frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            // Most bodies are there with their headers: no timer is made for these.
            let frame = match futures::poll!(&mut frame) {
                std::task::Poll::Ready(frame) => frame,
                std::task::Poll::Pending => {
                    tokio::time::timeout_at(self.deadline, frame).await.map_err(|_| Refusal::slow())?
                }
            };
            let Some(frame) = frame else { return Ok(None) };
            let broken = |error: B::Error| Refusal::invalid("broken_body", format!("the body broke off: {error}"));
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            if data.is_empty() {
                continue;
            }
            let nanos = (data.len() as u64).saturating_mul(self.nanos_per_byte);
            self.deadline += std::time::Duration::from_nanos(nanos);
            return Ok(Some(data));
        }
    }

    /// The whole body, unpacked.
    pub(crate) async fn whole(
        mut self,
        packing: Packing,
        limits: &RestLimits,
        charge: &mut Charge,
    ) -> Result<Bytes, Refusal> {
        let max = limits.body_bytes_max;
        if self.declared().is_some_and(|bytes| bytes > max as u64) {
            return Err(Refusal::too_large("the body", max));
        }
        let first = self.piece().await?.unwrap_or_default();
        charge.hold(first.len())?;
        let mut packed = first;
        if self.declared().is_none_or(|left| left > 0)
            && let Some(second) = self.piece().await?
        {
            let mut all = BytesMut::from(packed);
            let mut next = Some(second);
            while let Some(piece) = next {
                if all.len() + piece.len() > max {
                    return Err(Refusal::too_large("the body", max));
                }
                charge.hold(all.len() + piece.len())?;
                all.extend_from_slice(&piece);
                next = self.piece().await?;
            }
            packed = all.freeze();
        }
        match packing {
            Packing::Plain if packed.len() > max => Err(Refusal::too_large("the body", max)),
            Packing::Plain => Ok(packed),
            // Unpacking takes time in proportion to the limit: not on a thread that others wait for.
            _ => unpack(packing, packed, max, charge).await,
        }
    }
}

async fn unpack(packing: Packing, packed: Bytes, max: usize, charge: &mut Charge) -> Result<Bytes, Refusal> {
    let mut own = Charge::new(&charge.budget);
    let work = move || unpack_now(packing, &packed, max, &mut own).map(|bytes| (bytes, own));
    let done = tokio::task::spawn_blocking(work).await;
    let (bytes, own) = done.map_err(|error| Refusal::no_room(format!("unpacking was ended: {error}")))??;
    *charge = own;
    Ok(bytes)
}

fn unpack_now(packing: Packing, packed: &[u8], max: usize, charge: &mut Charge) -> Result<Bytes, Refusal> {
    let mut reader = unpacker(packing, packed).map_err(damaged)?;
    let mut out = Vec::new();
    loop {
        let read = reader.by_ref().take(STEP_BYTES).read_to_end(&mut out).map_err(damaged)?;
        if out.len() > max {
            return Err(Refusal::too_large("the unpacked body", max));
        }
        if read == 0 {
            return Ok(Bytes::from(out));
        }
        charge.hold(out.len() + packed.len())?;
    }
}

/// Reads what was packed.
pub(crate) fn unpacker<'a, R: io::BufRead + Send + 'a>(
    packing: Packing,
    packed: R,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match packing {
        Packing::Plain => Box::new(packed),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Packing::Zstd => {
            let mut reader = zstd::stream::read::Decoder::with_buffer(packed)?;
            reader.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(reader)
        }
    })
}

/// A body that is not packed as it says.
pub(crate) fn damaged(error: io::Error) -> Refusal {
    Refusal::invalid("broken_body", format!("the body cannot be unpacked: {error}"))
}
