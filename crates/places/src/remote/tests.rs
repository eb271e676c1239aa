use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lakegate_env::{SeededRandom, SystemClock};
use lakegate_formats::Input;
use parking_lot::Mutex;

use crate::http::{Resolver, SystemResolver};
use crate::settings::{HostRule, PlaceLimits, PlacesSettings};
use crate::{PlaceError, Places};

/// What the server was asked.
#[derive(Debug, Clone)]
struct Asked {
    path: String,
    headers: BTreeMap<String, String>,
}

impl Asked {
    fn range(&self) -> Option<(usize, usize)> {
        let (start, last) = self.headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse().unwrap(), last.parse::<usize>().unwrap() + 1))
    }
}

/// What it answers.
struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The connection is cut behind so many bytes of the body.
    cut_after: usize,
    /// Waits so long before each byte.
    byte_delay: Duration,
}

impl Answer {
    fn new(status: &'static str, body: &[u8]) -> Self {
        Self { status, headers: Vec::new(), body: body.to_vec(), cut_after: usize::MAX, byte_delay: Duration::ZERO }
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = bytes;
        self
    }

    /// A part of `data`, as a good server gives it.
    fn part(asked: &Asked, data: &[u8], etag: &str) -> Self {
        match asked.range() {
            None => Self::new("200 OK", data).header("etag", etag),
            Some((start, _)) if start >= data.len() => {
                Self::new("416 Range Not Satisfiable", b"").header("content-range", format!("bytes */{}", data.len()))
            }
            Some(_) if asked.headers.get("if-range").is_some_and(|wanted| wanted != etag) => {
                Self::new("200 OK", data).header("etag", etag)
            }
            Some((start, end)) => {
                let end = end.min(data.len());
                Self::new("206 Partial Content", &data[start..end])
                    .header("etag", etag)
                    .header("content-range", format!("bytes {start}-{}/{}", end - 1, data.len()))
            }
        }
    }
}

/// A server on this machine that answers as a function says.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn start(answer: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (answer, log, count) = (Arc::new(answer), asked.clone(), Arc::new(AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, log, count) = (answer.clone(), log.clone(), count.clone());
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while let Some(asked) = read_request(&mut reader) {
                        log.lock().push(asked.clone());
                        let answer = answer(&asked, count.fetch_add(1, Ordering::SeqCst));
                        if send(&stream, &answer).is_err() {
                            break;
                        }
                    }
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Self { address, asked }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn requests(&self) -> usize {
        self.asked.lock().len()
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => return Some(Asked { path, headers }),
        };
    }
}

fn send(mut stream: &TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {}\r\n", answer.status);
    if !answer.headers.iter().any(|(name, _)| matches!(*name, "content-length" | "transfer-encoding")) {
        head += &format!("content-length: {}\r\n", answer.body.len());
    }
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    let body = &answer.body[..answer.body.len().min(answer.cut_after)];
    if answer.byte_delay.is_zero() {
        stream.write_all(body)?;
    } else {
        for byte in body {
            std::thread::sleep(answer.byte_delay);
            stream.write_all(&[*byte])?;
        }
    }
    if body.len() < answer.body.len() { Err(std::io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
}

/// Bytes that differ everywhere.
fn data(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

struct Client {
    runtime: tokio::runtime::Runtime,
    places: Places,
}

fn limits() -> PlaceLimits {
    PlaceLimits {
        chunk_bytes: 64 << 10,
        first_pause: Duration::from_millis(1),
        answer_timeout: Duration::from_secs(5),
        attempts: 4,
        ..PlaceLimits::default()
    }
}

fn client_with(limits: PlaceLimits, hosts: Vec<HostRule>, resolver: Arc<dyn Resolver>) -> Client {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let settings = PlacesSettings { hosts, limits, spool_dir: std::env::temp_dir(), ..PlacesSettings::default() };
    let (clock, random) = (Arc::new(SystemClock::default()), Arc::new(SeededRandom::new(1)));
    let places = Places::new(settings, runtime.handle().clone(), resolver, clock, random);
    Client { runtime, places }
}

fn rule(address: SocketAddr) -> HostRule {
    HostRule { allow_private: true, ..HostRule::parse(&address.to_string()).unwrap() }
}

fn client(server: &Server) -> Client {
    client_with(limits(), vec![rule(server.address)], Arc::new(SystemResolver))
}

impl Client {
    fn input(&self, url: &str) -> Result<Arc<dyn Input>, PlaceError> {
        Ok(self.places.open(url, None)?.input)
    }

    fn read(&self, url: &str) -> Result<Vec<u8>, String> {
        let input = self.input(url).map_err(|e| e.to_string())?;
        let mut bytes = Vec::new();
        input.stream(0).unwrap().read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }
}

#[test]
fn a_file_is_read_from_front_to_back_and_by_parts() {
    let bytes = data(700_000);
    let served = bytes.clone();
    let server = Server::start(move |asked, _| Answer::part(asked, &served, "\"1\""));
    let client = client(&server);
    assert_eq!(client.read(&server.url("/a")).unwrap(), bytes);
    let input = client.input(&server.url("/a")).unwrap();
    assert_eq!(input.len(), Some(700_000));
    assert_eq!(input.read_at(699_992, 8).unwrap(), bytes[699_992..]);
    let before = server.requests();
    assert_eq!(input.read_at(690_000, 500).unwrap(), bytes[690_000..690_500]);
    assert_eq!(input.read_at(10, 500).unwrap(), bytes[10..510]);
    assert_eq!(server.requests(), before, "footer and head are fetched once");
    let parts = input.read_ranges(&[100_000..100_010, 300_000..430_000, 100_020..100_030]).unwrap();
    assert_eq!(parts[0], bytes[100_000..100_010]);
    assert_eq!(parts[1], bytes[300_000..430_000]);
    assert_eq!(parts[2], bytes[100_020..100_030]);
    assert!(input.read_at(699_999, 2).is_err());
    let mut rest = Vec::new();
    input.stream(123_456).unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(rest, bytes[123_456..]);
    drop(client.runtime);
}

#[test]
fn parts_that_follow_each_other_are_fetched_ahead() {
    let bytes = data(1_000_000);
    let served = bytes.clone();
    let server = Server::start(move |asked, _| Answer::part(asked, &served, "\"1\""));
    let client = client(&server);
    let input = client.input(&server.url("/a")).unwrap();
    for start in (100_000..600_000).step_by(50_000) {
        let parts = input.read_ranges(&[start..start + 20_000, start + 20_000..start + 50_000]).unwrap();
        let from = usize::try_from(start).unwrap();
        assert_eq!(parts.concat(), bytes[from..from + 50_000]);
    }
    let starts: Vec<_> = server.asked.lock().iter().filter_map(|a| a.range().map(|(start, _)| start)).collect();
    assert!(starts.len() <= 12, "one request a part, some of them before they were asked for: {starts:?}");
}

#[test]
fn parts_that_are_expected_are_on_their_way_before_they_are_asked_for_and_nothing_else_is() {
    let bytes = data(2_000_000);
    let served = bytes.clone();
    let server = Server::start(move |asked, _| Answer::part(asked, &served, "\"1\""));
    let client = client(&server);
    let input = client.input(&server.url("/a")).unwrap();
    let group = |n: u64| [n * 400_000 + 100_000..n * 400_000 + 120_000, n * 400_000 + 300_000..n * 400_000 + 350_000];
    for n in 0..4 {
        let parts = input.read_ranges(&group(n)).unwrap();
        for (part, range) in parts.iter().zip(group(n)) {
            assert_eq!(*part, bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]);
        }
        if n < 3 {
            input.expect_ranges(&group(n + 1));
            let next = usize::try_from(group(n + 1)[1].start).unwrap();
            let asked = || server.asked.lock().iter().any(|a| a.range().is_some_and(|(start, _)| start == next));
            let deadline = Instant::now() + Duration::from_secs(60);
            while !asked() {
                assert!(Instant::now() < deadline, "the second part of group {} was not asked for", n + 1);
                std::thread::yield_now();
            }
        }
    }
    let ranges: Vec<_> = server.asked.lock().iter().filter_map(Asked::range).collect();
    let wanted: usize = ranges.iter().skip(1).map(|(start, end)| end - start).sum();
    assert_eq!((ranges.len(), wanted), (9, 4 * 70_000), "the head, and each part once: {ranges:?}");
}

#[test]
fn s16_a_server_without_ranges_is_read_in_one_go_and_copied_for_who_needs_parts() {
    let bytes = data(300_000);
    let served = bytes.clone();
    let server = Server::start(move |_, _| Answer::new("200 OK", &served));
    let client = client(&server);
    assert_eq!(client.read(&server.url("/a")).unwrap(), bytes);
    let input = client.input(&server.url("/a")).unwrap();
    assert_eq!(input.read_at(299_000, 1000).unwrap(), bytes[299_000..]);
    assert_eq!(input.read_ranges(&[5..10, 100_000..100_001]).unwrap()[0], bytes[5..10]);
}

#[test]
fn what_breaks_off_is_taken_up_where_it_stopped() {
    let bytes = data(400_000);
    let served = bytes.clone();
    let server = Server::start(move |asked, n| {
        let answer = Answer::part(asked, &served, "\"1\"");
        if n % 3 == 1 { answer.cut_after(40_000) } else { answer }
    });
    let client = client(&server);
    assert_eq!(client.read(&server.url("/a")).unwrap(), bytes);
    let served = bytes.clone();
    let whole = Server::start(move |_, n| {
        let answer = Answer::new("200 OK", &served).header("etag", "\"1\"");
        if n == 1 { answer.cut_after(100_000) } else { answer }
    });
    assert_eq!(
        client_with(limits(), vec![rule(whole.address)], Arc::new(SystemResolver)).read(&whole.url("/a")).unwrap(),
        bytes
    );
}

#[test]
fn without_an_etag_a_broken_answer_without_ranges_is_given_up() {
    let served = data(300_000);
    let server = Server::start(move |_, n| {
        let answer = Answer::new("200 OK", &served);
        if n == 1 { answer.cut_after(100_000) } else { answer }
    });
    let error = client(&server).read(&server.url("/a")).unwrap_err();
    assert!(error.contains("neither ranges nor an etag"), "{error}");
}

#[test]
fn a_file_that_changes_underneath_is_given_up_with_both_tags() {
    let (old, new) = (data(400_000), vec![7; 400_000]);
    let server = Server::start(move |asked, n| match n {
        0..=2 => Answer::part(asked, &old, "\"old\""),
        _ => Answer::part(asked, &new, "\"new\""),
    });
    let error = client(&server).read(&server.url("/a")).unwrap_err();
    assert!(error.contains("changed while it was read") && error.contains("old") && error.contains("new"), "{error}");
    let shorter = data(100_000);
    let longer = data(400_000);
    let server = Server::start(move |asked, n| Answer::part(asked, if n < 2 { &longer } else { &shorter }, "\"same\""));
    let error = client(&server).read(&server.url("/a")).unwrap_err();
    assert!(error.contains("changed while it was read"), "{error}");
}

#[test]
fn a_file_that_changes_behind_the_last_answer_s_head_is_noticed_at_the_end() {
    // Ranges with a tag; ranges without any; no ranges and no tag, but another size; the same, and other first bytes.
    type Change = fn(&Asked, bool) -> Answer;
    let changes: [(Change, &str); 4] = [
        (|asked, changed| Answer::part(asked, &data(300_000), if changed { "\"new\"" } else { "\"old\"" }), "etag"),
        (
            |asked, changed| {
                let mut answer = Answer::part(asked, &data(if changed { 300_001 } else { 300_000 }), "");
                answer.headers.retain(|(name, _)| *name != "etag");
                answer
            },
            "300001",
        ),
        (|_, changed| Answer::new("200 OK", &data(if changed { 299_999 } else { 300_000 })), "299999"),
        (|_, changed| Answer::new("200 OK", &if changed { vec![7; 300_000] } else { data(300_000) }), "first bytes"),
    ];
    for (answer, told) in changes {
        let changed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = changed.clone();
        let server = Server::start(move |asked, _| answer(asked, seen.load(Ordering::SeqCst)));
        let client = client(&server);
        let opened = client.places.open(&server.url("/a"), None).unwrap();
        let mut bytes = Vec::new();
        opened.input.stream(0).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, data(300_000));
        opened.check_unchanged().unwrap();
        changed.store(true, Ordering::SeqCst);
        let error = opened.check_unchanged().unwrap_err().to_string();
        assert!(error.contains("changed while it was read") && error.contains(told), "{error}");
    }
}

#[test]
fn temporary_errors_are_tried_again_and_others_are_not() {
    let bytes = data(1000);
    let served = bytes.clone();
    let server = Server::start(move |asked, n| match n {
        0 => Answer::new("503 Service Unavailable", b"").header("retry-after", "0"),
        1 => Answer::new("429 Too Many Requests", b""),
        _ => Answer::part(asked, &served, "\"1\""),
    });
    assert_eq!(client(&server).read(&server.url("/a")).unwrap(), bytes);
    let server = Server::start(|_, _| Answer::new("500 Internal Server Error", b""));
    let error = client(&server).input(&server.url("/a")).err().unwrap();
    assert!(matches!(error, PlaceError::Unavailable { attempts: 4, .. }), "{error}");
    assert_eq!(server.requests(), 4);
    for (status, wanted) in [("404 Not Found", "is not there"), ("403 Forbidden", "refuses")] {
        let server = Server::start(move |_, _| Answer::new(status, b""));
        let error = client(&server).input(&server.url("/a")).err().unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
        assert_eq!(server.requests(), 1, "{status} is not asked for again");
    }
    let server = Server::start(|_, _| Answer::new("503 Service Unavailable", b"").header("retry-after", "86400"));
    let error = client(&server).input(&server.url("/a")).err().unwrap().to_string();
    assert!(error.contains("86400 s"), "{error}");
    assert_eq!(server.requests(), 1);
}

#[test]
fn s14_each_redirect_is_checked_like_the_first_address() {
    let served = data(1000);
    let target = Server::start(move |asked, _| Answer::part(asked, &served, "\"1\""));
    let to = target.url("/real");
    let server = Server::start(move |asked, _| match asked.path.as_str() {
        "/round" => Answer::new("302 Found", b"").header("location", "/round"),
        "/file" => Answer::new("302 Found", b"").header("location", "file:///etc/passwd"),
        "/meta" => Answer::new("302 Found", b"").header("location", "http://169.254.169.254/latest/meta-data"),
        "/nowhere" => Answer::new("302 Found", b""),
        _ => Answer::new("307 Temporary Redirect", b"").header("location", to.clone()),
    });
    let one = client(&server);
    for path in ["/away", "/file", "/meta", "/nowhere", "/round"] {
        assert!(one.input(&server.url(path)).is_err(), "{path}");
    }
    assert_eq!(target.requests(), 0, "a host that is not allowed is not asked, whoever sends us there");
    let both = client_with(limits(), vec![rule(server.address), rule(target.address)], Arc::new(SystemResolver));
    assert_eq!(both.read(&server.url("/away")).unwrap(), data(1000));
}

/// Answers with a public address first and with this machine's from then on, as a rebinding attacker's server does.
struct Rebinding(AtomicUsize);

impl Resolver for Rebinding {
    fn resolve(
        &self,
        _: &str,
        port: u16,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>> {
        let ip: std::net::IpAddr =
            if self.0.fetch_add(1, Ordering::SeqCst) == 0 { [203, 0, 114, 1].into() } else { [127, 0, 0, 1].into() };
        Box::pin(async move { Ok(vec![SocketAddr::new(ip, port)]) })
    }
}

#[test]
fn s14_a_name_that_changes_its_address_never_leads_inside() {
    let server = Server::start(|_, _| Answer::new("200 OK", b"inside"));
    let port = server.address.port();
    let limits = PlaceLimits { connect_timeout: Duration::from_millis(200), ..limits() };
    let hosts = vec![HostRule::parse(&format!("rebind.example.com:{port}")).unwrap()];
    let client = client_with(limits, hosts, Arc::new(Rebinding(AtomicUsize::new(0))));
    let error = client.input(&format!("http://rebind.example.com:{port}/")).err().unwrap();
    assert!(matches!(error, PlaceError::Forbidden { .. } | PlaceError::Unavailable { .. }), "{error}");
    assert_eq!(server.requests(), 0);
}

#[test]
fn s16_endless_slow_and_lying_bodies_are_bounded() {
    let bound = |limits: PlaceLimits, server: &Server| {
        let client = client_with(limits, vec![rule(server.address)], Arc::new(SystemResolver));
        let started = Instant::now();
        let error = client.read(&server.url("/a")).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(20), "{error}");
        error
    };
    let endless = Server::start(|_, _| {
        let chunk = format!("10000\r\n{}\r\n", "0".repeat(0x10000)).repeat(64);
        Answer::new("200 OK", chunk.as_bytes()).header("transfer-encoding", "chunked")
    });
    let error = bound(PlaceLimits { file_bytes_max: 1 << 20, ..limits() }, &endless);
    assert!(error.contains("imports.limits.file_bytes_max"), "{error}");
    let declared = Server::start(|_, _| Answer::new("200 OK", b"x").header("content-length", "99999999999999"));
    let error = bound(PlaceLimits { file_bytes_max: 1 << 20, ..limits() }, &declared);
    assert!(error.contains("imports.limits.file_bytes_max"), "{error}");
    let slow =
        Server::start(|_, _| Answer { byte_delay: Duration::from_millis(50), ..Answer::new("200 OK", &[0; 10_000]) });
    let timeout = Duration::from_millis(300);
    let error = bound(PlaceLimits { answer_timeout: timeout, attempts: 2, ..limits() }, &slow);
    assert!(error.contains("bytes a second"), "{error}");
    let silent =
        Server::start(|_, _| Answer { byte_delay: Duration::from_secs(60), ..Answer::new("200 OK", &[0; 10]) });
    let error = bound(PlaceLimits { answer_timeout: timeout, attempts: 2, ..limits() }, &silent);
    assert!(error.contains("said nothing"), "{error}");
    let more = Server::start(|asked, n| {
        let answer = Answer::part(asked, &data(200_000), "\"1\"");
        if n == 0 { answer } else { Answer { body: vec![1; 150_000], ..answer } }
    });
    assert!(bound(limits(), &more).contains("more than was asked for"));
    let short = Server::start(|_, _| Answer::new("200 OK", &[1; 100]).cut_after(1));
    bound(limits(), &short);
}

#[test]
fn an_empty_file_is_empty() {
    let server = Server::start(|asked, _| Answer::part(asked, b"", "\"1\""));
    let client = client(&server);
    assert_eq!(client.input(&server.url("/a")).unwrap().len(), Some(0));
    assert_eq!(client.read(&server.url("/a")).unwrap(), b"");
}

#[test]
fn the_identity_holds_no_secrets_and_tells_versions_apart() {
    let etag = Arc::new(Mutex::new("\"1\""));
    let current = etag.clone();
    let server = Server::start(move |asked, _| Answer::part(asked, b"abc", *current.lock()));
    let client = client(&server);
    let identity = |path: &str| client.places.open(&server.url(path), None).unwrap().identity;
    let plain = identity("/a");
    assert_eq!(plain.uri, server.url("/a"));
    let signed = identity("/a?X-Amz-Signature=hunter2&X-Amz-Expires=1");
    assert_eq!(signed.id(), plain.id(), "how an address is signed does not make it another file");
    let other = identity("/a?page=2");
    assert_ne!(other.id(), plain.id());
    assert!(!format!("{signed:?}{other:?}").contains("hunter2"));
    *etag.lock() = "\"2\"";
    assert_ne!(identity("/a").id(), plain.id());
}
