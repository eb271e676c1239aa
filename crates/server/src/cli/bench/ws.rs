//! Cart events over WebSockets: one that sends without waiting, beside a reader that answers nothing; and many that are
//! idle, by the memory that each takes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::cart::{Ids, Template};
use super::child::Server;
use super::http_floor;
use super::http_load::{self, Load};
use super::load::Numbers;
use super::report::{self, Spread, latencies, real};
use super::{Failure, Place};

/// Messages of one write.
const PER_WRITE: usize = 64;
/// Sockets that are opened at once.
const OPENING: usize = 64;
/// Connections of the load beside idle sockets.
const BESIDE: usize = 64;
/// How long an acknowledgement may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Settings of the load.
#[derive(Debug, Args)]
pub(crate) struct WsArgs {
    #[command(flatten)]
    place: Place,
    /// Events that may wait for their acknowledgement
    #[arg(long, default_value_t = 8192)]
    window: u64,
    /// Open so many sockets that say nothing, and measure the memory of each
    #[arg(long, value_name = "SOCKETS")]
    idle: Option<usize>,
    /// Events a second over HTTP beside idle sockets
    #[arg(long, default_value_t = 10_000.0)]
    beside: f64,
}

/// Runs it.
pub(crate) async fn run(args: WsArgs) -> Result<(), Failure> {
    if let Some(sockets) = args.idle {
        return idle(&args, sockets).await;
    }
    report::heading(&format!("one socket, one event a message, up to {} not acknowledged", args.window));
    let (mut rates, mut floors, mut ratios, mut cpu) = (vec![], vec![], vec![], vec![]);
    for number in 0..args.place.rounds {
        report::progress(&format!("round {} of {}", number + 1, args.place.rounds));
        let seconds = args.place.seconds;
        let floor = || tokio::task::spawn_blocking(move || http_floor::frames_per_second(PER_WRITE, seconds));
        // A B B A: the floor first in one round, last in the next.
        let first = if number % 2 == 0 { Some(floor().await??) } else { None };
        let (rate, cpu_ns) = one_round(&args).await?;
        let floor = match first {
            Some(floor) => floor,
            None => floor().await??,
        };
        rates.push(rate);
        cpu.push(cpu_ns);
        floors.push(floor);
        ratios.push(rate / floor);
    }
    report::line("acknowledged events/s", &Spread::of(&rates).to_string());
    report::line("server CPU, ns an event", &Spread::of(&cpu).to_string());
    report::line("floor (frames read and unmasked), messages/s", &Spread::of(&floors).to_string());
    report::line("R14: events/s / floor", &Spread::of(&ratios).to_string());
    Ok(())
}

/// Acknowledged events a second, and the server's processor time for each.
async fn one_round(args: &WsArgs) -> Result<(f64, f64), Failure> {
    let settings = json!({ "ingestion": { "memory_budget": "8GiB", "flush_interval": "1h", "commit_bytes": "64GiB" } });
    let server = Server::start(&args.place.dir, &settings).await?;
    let (window, seconds) = (args.window.max(1), args.place.seconds);
    let drive =
        async |address: String| tokio::task::spawn_blocking(move || one_socket(&address, window, seconds)).await?;
    let (warm, _) = drive(server.address()).await?;
    server.flush().await?;
    let before = server.cpu_ns()?;
    let (sent, took) = drive(server.address()).await?;
    let cpu = server.cpu_ns()? - before;
    super::http::check(&server, warm + sent).await?;
    server.end().await?;
    Ok((real(sent) / took, real(cpu) / real(sent.max(1))))
}

fn handshake(address: &str) -> String {
    format!(
        "GET /events/stream HTTP/1.1\r\nhost: {address}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Sends for the time given with at most `window` events not acknowledged; the events and the seconds until the last
/// was.
fn one_socket(address: &str, window: u64, seconds: f64) -> Result<(u64, f64), Failure> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(handshake(address).as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.extend_from_slice(&byte);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(String::from_utf8_lossy(&head).into_owned().into());
    }
    let (acked, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (mut numbers, ids, run) = (Numbers(21), Ids::default(), super::unique());
    let mut frames: Vec<Template> = (0..PER_WRITE).map(|_| Template::frame(run, &mut numbers)).collect();
    let reader = {
        let (socket, acked, failed) = (socket.try_clone()?, acked.clone(), failed.clone());
        let writer = std::thread::current();
        std::thread::spawn(move || {
            let read = read_acks(socket, &acked, &writer);
            failed.store(read.is_err(), Ordering::Release);
            writer.unpark();
            read.map_err(|error| error.to_string())
        })
    };
    let (start, mut sent, mut out) = (Instant::now(), 0, Vec::new());
    let end = start + Duration::from_secs_f64(seconds);
    while Instant::now() < end && !failed.load(Ordering::Acquire) {
        if sent + PER_WRITE as u64 > acked.load(Ordering::Acquire) + window.max(PER_WRITE as u64) {
            std::thread::park_timeout(Duration::from_millis(10));
            continue;
        }
        out.clear();
        for frame in &mut frames {
            frame.renew(&ids);
            out.extend_from_slice(&frame.bytes);
        }
        socket.write_all(&out)?;
        sent += PER_WRITE as u64;
    }
    while acked.load(Ordering::Acquire) < sent && !failed.load(Ordering::Acquire) {
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let took = start.elapsed().as_secs_f64();
    // A close frame, masked; the reader ends with the socket.
    socket.write_all(&[0x88, 0x80, 0, 0, 0, 0])?;
    reader.join().map_err(|_| "the reader failed")??;
    Ok((sent, took))
}

/// Counts acknowledgements until the socket ends; anything else is an error.
fn read_acks(mut socket: TcpStream, acked: &AtomicU64, writer: &std::thread::Thread) -> Result<(), Failure> {
    const ACK: &[u8] = b"{\"type\":\"event_ack\"";
    let (mut room, mut filled) = (vec![0; 256 << 10], 0);
    loop {
        let count = socket.read(room.get_mut(filled..).unwrap_or_default())?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let (mut at, mut heard) = (0, 0);
        while let Some((kind, payload)) = server_frame(room.get(at..filled).unwrap_or_default()) {
            match kind {
                1 if payload.1.starts_with(ACK) => heard += 1,
                1 => return Err(String::from_utf8_lossy(payload.1).into_owned().into()),
                8 => return Ok(()),
                _ => {}
            }
            at += payload.0;
        }
        room.copy_within(at..filled, 0);
        filled -= at;
        acked.fetch_add(heard, Ordering::Release);
        writer.unpark();
    }
}

/// A frame of the server, if it has come whole: its kind, its length in all, its payload.
fn server_frame(bytes: &[u8]) -> Option<(u8, (usize, &[u8]))> {
    let (first, second) = (*bytes.first()?, usize::from(*bytes.get(1)?));
    let (length, head) = match second & 127 {
        126 => (usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])), 4),
        127 => (usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?, 10),
        length => (length, 2),
    };
    Some((first & 15, (head + length, bytes.get(head..head + length)?)))
}

async fn idle(args: &WsArgs, sockets: usize) -> Result<(), Failure> {
    super::raise_files();
    report::heading(&format!("{sockets} idle sockets"));
    let server = Server::start(&args.place.dir, &json!({})).await?;
    let load = |run| Load {
        address: server.address(),
        token: None,
        connections: BESIDE,
        events: 1,
        rate: Some(args.beside),
        seconds: args.place.seconds,
        run,
        patience: None,
    };
    // What the first sockets touch is not the idle ones'.
    drop(open_sockets(&server.address(), OPENING).await?);
    let empty = server.memory()?;
    let open = open_sockets(&server.address(), sockets).await?;
    let full = server.memory()?;
    let each = real(full.saturating_sub(empty)) / real(sockets.max(1) as u64);
    report::line("R13: resident bytes of each", &format!("{each:.0} ({:.2} KiB)", each / 1024.0));
    let mut beside = http_load::run(load(super::unique())).await?;
    let (count, memory) = (open.len(), server.memory()?);
    report::line("still open, resident MiB", &format!("{count}, {:.0}", real(memory) / f64::from(1 << 20)));
    drop(open);
    let mut without = http_load::run(load(super::unique())).await?;
    for (name, sent) in [("events/s beside them", &mut beside), ("events/s without them", &mut without)] {
        let (p50, p99, _) = latencies(&mut sent.us);
        report::line(name, &format!("{:.0}, answer p50 {p50} µs, p99 {p99} µs", real(sent.events) / sent.seconds));
    }
    server.end().await
}

/// Opens sockets and hears each welcomed.
async fn open_sockets(address: &str, count: usize) -> Result<Vec<tokio::net::TcpStream>, Failure> {
    let mut open = Vec::with_capacity(count);
    let mut opening = tokio::task::JoinSet::new();
    for number in 0..count {
        let address = address.to_owned();
        opening.spawn(async move {
            let mut socket = tokio::net::TcpStream::connect(&address).await?;
            socket.write_all(handshake(&address).as_bytes()).await?;
            let mut head = [0; 512];
            let heard = socket.read(&mut head).await?;
            let welcomed = head.get(..heard).unwrap_or_default().starts_with(b"HTTP/1.1 101");
            Ok::<_, std::io::Error>((socket, welcomed))
        });
        if opening.len() >= OPENING || number + 1 == count {
            while let Some(done) = opening.join_next().await {
                let (socket, welcomed) = done??;
                if !welcomed {
                    return Err(format!("the server took {} sockets and no more", open.len()).into());
                }
                open.push(socket);
                if opening.len() < OPENING / 2 && number + 1 < count {
                    break;
                }
            }
        }
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_are_found_whole() {
        for (length, head) in
            [(5, vec![0x81, 5]), (300, vec![0x81, 126, 1, 44]), (70_000, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 17, 112])]
        {
            let mut frame = head.clone();
            frame.resize(head.len() + length, b'x');
            assert_eq!(server_frame(&frame), Some((1, (frame.len(), &frame[head.len()..]))));
            assert_eq!(server_frame(&frame[..frame.len() - 1]), None);
        }
    }
}
