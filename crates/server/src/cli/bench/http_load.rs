//! An HTTP/1.1 client for load: requests made ahead, one under way on each connection, all on one thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Failure;
use super::cart::{Ids, Template};
use super::child::thread_cpu_ns;
use super::load::Numbers;
use super::report::real;

/// Different requests of each connection.
const REQUESTS: usize = 8;
/// The largest answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How long a patient client waits after a refusal.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);

/// What is sent.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// `host:port`.
    pub(crate) address: String,
    pub(crate) token: Option<String>,
    pub(crate) connections: usize,
    /// Events of each request.
    pub(crate) events: usize,
    /// Requests a second over all connections; none: as fast as they are answered.
    pub(crate) rate: Option<f64>,
    pub(crate) seconds: f64,
    /// Tells the ids of this load from those of others.
    pub(crate) run: u64,
    /// How long a refusal for rate or room is waited out; none: it is the end.
    pub(crate) patience: Option<Duration>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) requests: u64,
    pub(crate) events: u64,
    pub(crate) refused: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_ns: u64,
    /// Microseconds to the answer of each request, from when it was due.
    pub(crate) us: Vec<u64>,
}

/// Sends from a thread of its own.
pub(crate) async fn run(load: Load) -> Result<Sent, Failure> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = tell.send(run_here(&load));
    });
    told.await?
}

fn run_here(load: &Load) -> Result<Sent, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (ids, before) = (Arc::new(Ids::default()), thread_cpu_ns()?);
        let mut tasks = tokio::task::JoinSet::new();
        let sockets = connect_all(load).await?;
        let start = Instant::now();
        for (number, socket) in sockets.into_iter().enumerate() {
            let (load, ids) = (load.clone(), ids.clone());
            tasks.spawn(one_connection(load, number, socket, ids, start));
        }
        let mut all = Sent::default();
        while let Some(done) = tasks.join_next().await {
            let done = done??;
            all.requests += done.requests;
            all.events += done.events;
            all.refused += done.refused;
            all.us.extend(done.us);
        }
        all.seconds = start.elapsed().as_secs_f64();
        all.cpu_ns = thread_cpu_ns()?.saturating_sub(before);
        Ok(all)
    })
}

async fn connect_all(load: &Load) -> Result<Vec<TcpStream>, Failure> {
    let mut sockets = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        let socket = TcpStream::connect(&load.address).await?;
        socket.set_nodelay(true)?;
        sockets.push(socket);
    }
    Ok(sockets)
}

async fn one_connection(
    load: Load,
    number: usize,
    mut socket: TcpStream,
    ids: Arc<Ids>,
    start: Instant,
) -> Result<Sent, Failure> {
    let mut numbers = Numbers(load.run ^ number as u64);
    let mut templates: Vec<Template> = (0..REQUESTS)
        .map(|_| Template::request(&load.address, load.token.as_deref(), load.events, load.run, &mut numbers))
        .collect();
    let (mut sent, mut answer) = (Sent::default(), Answer::default());
    let end = start + Duration::from_secs_f64(load.seconds);
    let every = load.rate.map(|rate| Duration::from_secs_f64(real(load.connections as u64) / rate.max(0.001)));
    // Connections are not due all at once.
    let mut due = start + every.unwrap_or_default().mul_f64(real(number as u64) / real(load.connections.max(1) as u64));
    let mut at = 0;
    loop {
        let mut began = Instant::now();
        if let Some(every) = every {
            if began < due {
                tokio::time::sleep_until(due.into()).await;
                began = Instant::now();
            } else {
                // The answer before came too late for this one: it has waited since it was due.
                began = due;
            }
            due += every;
        }
        if Instant::now() >= end {
            return Ok(sent);
        }
        at = (at + 1) % REQUESTS;
        let Some(template) = templates.get_mut(at) else { return Ok(sent) };
        template.renew(&ids);
        socket.write_all(&template.bytes).await?;
        let status = answer.read(&mut socket).await?;
        match status {
            200 | 202 => {
                sent.requests += 1;
                sent.events += template.events() as u64;
                sent.us.push(u64::try_from(began.elapsed().as_micros())?);
            }
            status => match load.patience.filter(|_| matches!(status, 429 | 503)) {
                Some(pause) => {
                    sent.refused += 1;
                    tokio::time::sleep(pause).await;
                }
                None => return Err(format!("answered {status}: {}", answer.text()).into()),
            },
        }
    }
}

/// Reads answers, one at a time.
#[derive(Debug, Default)]
struct Answer {
    bytes: Vec<u8>,
    filled: usize,
}

impl Answer {
    /// Reads an answer whole; gives its status.
    async fn read(&mut self, socket: &mut TcpStream) -> Result<u16, Failure> {
        self.filled = 0;
        loop {
            if self.bytes.len() < self.filled + 4096 {
                self.bytes.resize(self.filled + 16384, 0);
            }
            let room = self.bytes.get_mut(self.filled..).unwrap_or_default();
            let count = socket.read(room).await?;
            if count == 0 {
                return Err("the server closed a connection".into());
            }
            self.filled += count;
            if let Some(status) = status_of_whole(self.bytes.get(..self.filled).unwrap_or_default())? {
                return Ok(status);
            }
            if self.filled > ANSWER_BYTES_MAX {
                return Err("an answer has no end".into());
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes.get(..self.filled.min(2000)).unwrap_or_default()).into_owned()
    }
}

/// The status of an answer that has come whole.
fn status_of_whole(bytes: &[u8]) -> Result<Option<u16>, Failure> {
    let Some(head_bytes) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(bytes.get(..head_bytes).unwrap_or_default())?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or("no status line")?.parse()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value.trim())
    });
    let length: usize = length.unwrap_or("0").parse()?;
    Ok((bytes.len() >= head_bytes + 4 + length).then_some(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let whole = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(status_of_whole(whole).unwrap(), Some(202));
        for cut in 0..whole.len() {
            assert_eq!(status_of_whole(&whole[..cut]).unwrap(), None, "{cut}");
        }
    }
}
