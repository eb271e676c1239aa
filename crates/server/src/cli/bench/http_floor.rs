//! The floors of HTTP and WebSocket: an empty hyper server, the reading of JSON from a socket by one thread, and the
//! reading of WebSocket frames that nobody answers.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;

use super::Failure;
use super::cart::{Ids, Template};
use super::child::thread_cpu_ns;
use super::load::Numbers;
use super::report::real;

/// Requests of one round of the sender.
const BODIES: usize = 16;

/// A server that reads a request's body and says that it is well.
pub(crate) struct Empty {
    pub(crate) address: String,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Empty {
    /// Starts it, on threads of its own.
    pub(crate) fn start() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        runtime.spawn(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), service_fn(say_ok));
                tokio::spawn(async move {
                    let _ = served.await;
                });
            }
        });
        Ok(Self { address, runtime: Some(runtime) })
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn say_ok(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes().len()).unwrap_or_default();
    std::hint::black_box(body);
    Ok(Response::new(Full::new(Bytes::from_static(b"200 OK"))))
}

/// An event, as far as its columns need it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    event_id: &'a str,
    event_type: &'a str,
    timestamp: &'a str,
    #[serde(default)]
    user_id: Option<&'a str>,
    session_id: &'a str,
    store_id: &'a str,
    data: Data<'a>,
    metadata: Metadata<'a>,
}

#[derive(Debug, Deserialize)]
struct Data<'a> {
    sku: &'a str,
    quantity: u64,
    price: f64,
    currency: &'a str,
}

#[derive(Debug, Deserialize)]
struct Metadata<'a> {
    referrer: &'a str,
}

#[derive(Debug, Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    events: Vec<Event<'a>>,
}

/// Nanoseconds of one thread's processor time for an event of a batch: bytes over loopback, read as typed JSON.
pub(crate) fn json_ns(events: usize, seconds: f64) -> Result<f64, Failure> {
    let mut numbers = Numbers(11);
    let bodies: Vec<Vec<u8>> =
        (0..BODIES).map(|_| Template::request("floor", None, events.max(2), 1, &mut numbers).bytes).collect();
    let (mut socket, sender) = send_forever(bodies, seconds, true)?;
    let (mut count, mut sum, before) = (0_u64, 0_u64, thread_cpu_ns()?);
    let mut length = [0; 4];
    while socket.read_exact(&mut length).is_ok() {
        let mut bytes = vec![0; usize::try_from(u32::from_le_bytes(length))?];
        socket.read_exact(&mut bytes)?;
        let body = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or("no head")? + 4;
        let batch: Batch<'_> = serde_json::from_slice(bytes.get(body..).unwrap_or_default())?;
        for event in &batch.events {
            let Event { event_id, event_type, timestamp, user_id, session_id, store_id, data, metadata } = event;
            let texts =
                [event_id, event_type, timestamp, session_id, store_id, &data.sku, &data.currency, &metadata.referrer];
            let bytes: usize = texts.iter().map(|text| text.len()).sum();
            let users = user_id.map_or(0, str::len);
            sum ^= (bytes + users) as u64 ^ data.quantity ^ data.price.to_bits();
        }
        count += batch.events.len() as u64;
    }
    let cost = thread_cpu_ns()? - before;
    std::hint::black_box(sum);
    sender.join().map_err(|_| "the floor's sender failed")??;
    Ok(real(cost) / real(count.max(1)))
}

/// WebSocket messages a second that one thread reads and unmasks, with a sender beside it as the product has.
pub(crate) fn frames_per_second(per_write: usize, seconds: f64) -> Result<f64, Failure> {
    let (mut numbers, ids) = (Numbers(12), Ids::default());
    let mut frames: Vec<Template> = (0..per_write.max(1)).map(|_| Template::frame(1, &mut numbers)).collect();
    frames.iter_mut().for_each(|frame| frame.renew(&ids));
    let whole: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes.iter().copied()).collect();
    let (mut socket, sender) = send_forever(vec![whole], seconds, false)?;
    let (start, mut messages, mut sum) = (Instant::now(), 0_u64, 0_u64);
    let (mut room, mut filled) = (vec![0; 64 << 10], 0);
    loop {
        let count = socket.read(room.get_mut(filled..).unwrap_or_default())?;
        if count == 0 {
            break;
        }
        filled += count;
        let mut at = 0;
        while let Some((payload, end)) = frame_at(&mut room, at, filled) {
            sum += u64::from(payload);
            messages += 1;
            at = end;
        }
        room.copy_within(at..filled, 0);
        filled -= at;
    }
    std::hint::black_box(sum);
    let rate = real(messages) / start.elapsed().as_secs_f64();
    sender.join().map_err(|_| "the floor's sender failed")??;
    Ok(rate)
}

/// Unmasks the frame that begins there, if it has come whole: one byte of it, and where the next begins.
fn frame_at(room: &mut [u8], at: usize, filled: usize) -> Option<(u8, usize)> {
    let head = room.get(at..filled)?.get(..8)?;
    let length = usize::from(u16::from_be_bytes([*head.get(2)?, *head.get(3)?]));
    let mask: [u8; 4] = head.get(4..8)?.try_into().ok()?;
    let end = at + 8 + length;
    let payload = room.get_mut(at + 8..end).filter(|_| end <= filled)?;
    for (byte, key) in payload.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= key;
    }
    Some((payload.first().copied().unwrap_or_default(), end))
}

type Sender = std::thread::JoinHandle<std::io::Result<()>>;

/// A socket on which the parts come again and again, each with its length before it where that is asked for.
fn send_forever(parts: Vec<Vec<u8>>, seconds: f64, with_length: bool) -> Result<(TcpStream, Sender), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn(move || {
        let mut socket = TcpStream::connect(address)?;
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end {
            for part in &parts {
                if with_length {
                    socket.write_all(&u32::try_from(part.len()).unwrap_or_default().to_le_bytes())?;
                }
                socket.write_all(part)?;
            }
        }
        Ok(())
    });
    Ok((listener.accept()?.0, sender))
}
