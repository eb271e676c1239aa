//! A remote file as an input.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use lakegate_formats::Input;
use parking_lot::Mutex;
use reqwest::Response;

use super::endpoint::{HEAD_BYTES, Pace, Tag, content_range};
use super::reader::{Reader, Task, length};
use super::sequential::{by_one_answer, by_ranges, too_large};
use super::{Attempts, Endpoint, Failure};
use crate::error::PlaceError;

/// Small reads near the end (footers) are answered from so many last bytes, fetched once.
const TAIL_BYTES: u64 = 256 << 10;
/// Parts with less than this between them are fetched as one.
const GAP_BYTES: u64 = 64 << 10;
/// Parts are joined up to this size.
const JOINED_BYTES_MAX: u64 = 16 << 20;
/// How many of these are under way at once, each in pieces of its own.
const JOINED_IN_FLIGHT: usize = 2;
/// What is fetched ahead of who reads part after part.
const AHEAD_BYTES_MAX: u64 = 32 << 20;

/// A part that is on its way.
type Fetching = Task<Result<Bytes, PlaceError>>;
/// A part, and the how many-th of those asked for it is.
type Wanted = (usize, Range<u64>);

/// A remote file, pinned to one version.
pub(crate) struct RemoteInput {
    name: String,
    tag: Tag,
    head: Bytes,
    bytes: Option<u64>,
    way: Way,
}

enum Way {
    /// The server serves ranges.
    Ranges { reader: Arc<Reader>, tail: Mutex<Option<(u64, Bytes)>>, ahead: Mutex<Ahead> },
    /// It serves the whole only. Who needs parts gets them from a copy on disk.
    Whole { endpoint: Arc<Endpoint>, copy: Mutex<Option<Arc<File>>> },
}

/// What is fetched before it is asked for: because it was told that it will be, or by the guess.
#[derive(Default)]
struct Ahead {
    last_end: u64,
    in_order: u32,
    parts: Vec<(Range<u64>, Fetching)>,
}

/// Makes an input of the first answer of a server.
pub(crate) async fn open(endpoint: Endpoint, mut response: Response) -> Result<RemoteInput, Failure> {
    let tag = Tag::of(response.headers());
    let part = content_range(response.headers());
    let declared = response.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let (ranges, bytes) = match response.status() {
        StatusCode::PARTIAL_CONTENT => match part {
            Some((part, Some(whole))) if part.start == 0 => (true, Some(whole)),
            _ => (false, None),
        },
        // Nothing at the first byte: an empty file.
        StatusCode::RANGE_NOT_SATISFIABLE => (true, Some(part.and_then(|(_, whole)| whole).unwrap_or(0))),
        _ => (false, declared),
    };
    if let Some(bytes) = bytes.filter(|bytes| *bytes > endpoint.shared.limits.file_bytes_max) {
        return Err(Failure::Final(too_large(&endpoint, format!("{bytes} bytes"))));
    }
    let mut head = Vec::new();
    let mut pace = Pace::default();
    let wanted = bytes.unwrap_or(HEAD_BYTES).min(HEAD_BYTES);
    while response.status().is_success() && (head.len() as u64) < wanted {
        match endpoint.next(&mut response, &mut pace).await? {
            Some(bytes) => head.extend_from_slice(&bytes),
            None if bytes.is_some() => return Err(Failure::again("the answer ended early")),
            None => break,
        }
    }
    head.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
    let name = endpoint.place.clone();
    let way = match bytes {
        Some(bytes) if ranges => Way::Ranges {
            reader: Arc::new(Reader { endpoint, tag: tag.clone(), bytes }),
            tail: Mutex::default(),
            ahead: Mutex::default(),
        },
        _ => Way::Whole { endpoint: Arc::new(endpoint), copy: Mutex::default() },
    };
    Ok(RemoteInput { name, tag, head: head.into(), bytes, way })
}

impl RemoteInput {
    /// What tells this version from others: the server's tag, else time and size, else the first bytes and the size.
    pub(crate) fn version(&self) -> String {
        let size = self.bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
        match (&self.tag.etag, &self.tag.modified) {
            (Some(etag), _) => format!("{etag} {size}"),
            (None, Some(modified)) => format!("{modified} {size}"),
            (None, None) => format!("{:032x} {size}", xxhash_rust::xxh3::xxh3_128(&self.head)),
        }
    }

    /// Asks once more whether the file is the one that was opened: its tag, its size and its first bytes. What one answer
    /// brought whole is of one version.
    pub(crate) fn check_unchanged(&self) -> Result<(), PlaceError> {
        if self.bytes.is_some_and(|bytes| bytes <= self.head.len() as u64) {
            return Ok(());
        }
        let endpoint = match &self.way {
            Way::Ranges { reader, .. } => &reader.endpoint,
            Way::Whole { endpoint, .. } => endpoint,
        };
        endpoint.shared.handle.block_on(async {
            let mut attempts = Attempts::new(endpoint.shared.clone(), &endpoint.place);
            loop {
                match self.compare(endpoint).await {
                    Ok(()) => return Ok(()),
                    Err(failure) => attempts.failed(failure).await?,
                }
            }
        })
    }

    async fn compare(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        let head = self.head.len() as u64;
        let range = matches!(self.way, Way::Ranges { .. }).then_some(0..head);
        let mut response = endpoint.get(range, &self.tag).await?;
        let size = match content_range(response.headers()) {
            Some((_, whole)) => whole,
            None => response.content_length(),
        };
        if let (Some(was), Some(now)) = (self.bytes, size)
            && was != now
        {
            return Err(endpoint.changed(format!("it had {was} bytes, now it has {now}")));
        }
        let (mut pace, mut same) = (Pace::default(), 0);
        while same < self.head.len() {
            let Some(bytes) = endpoint.next(&mut response, &mut pace).await? else {
                return Err(Failure::again("the answer ended early"));
            };
            let first = self.head.get(same..).unwrap_or_default();
            let compared = first.len().min(bytes.len());
            if first.get(..compared) != bytes.get(..compared) {
                return Err(endpoint.changed("its first bytes are others now".to_owned()));
            }
            same += compared;
        }
        Ok(())
    }

    /// A part that is known already.
    fn known(&self, range: &Range<u64>) -> Option<Bytes> {
        let within = |start: u64, bytes: &Bytes| {
            let from = usize::try_from(range.start.checked_sub(start)?).ok()?;
            let to = from.checked_add(length(range))?;
            (to <= bytes.len()).then(|| bytes.slice(from..to))
        };
        within(0, &self.head).or_else(|| match &self.way {
            Way::Ranges { tail, .. } => tail.lock().as_ref().and_then(|(start, bytes)| within(*start, bytes)),
            Way::Whole { .. } => None,
        })
    }

    fn check_range(&self, range: &Range<u64>) -> io::Result<()> {
        let inside = range.start <= range.end && self.bytes.is_none_or(|bytes| range.end <= bytes);
        if inside { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// The copy on disk of a file whose server serves no ranges; made on first need, and gone with this input.
    fn copy(&self, endpoint: &Arc<Endpoint>, copy: &Mutex<Option<Arc<File>>>) -> io::Result<Arc<File>> {
        let mut copy = copy.lock();
        if let Some(file) = &*copy {
            return Ok(file.clone());
        }
        let dir = &endpoint.shared.spool_dir;
        std::fs::create_dir_all(dir)?;
        let mut file = tempfile::tempfile_in(dir)?;
        let mut body = by_one_answer(endpoint, &self.tag, 0);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = body.read(&mut buffer)?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
            file.write_all(bytes)?;
        }
        Ok(copy.insert(Arc::new(file)).clone())
    }
}

impl Input for RemoteInput {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Option<u64> {
        self.bytes
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let range = offset..offset.checked_add(len as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.check_range(&range)?;
        if let Some(bytes) = self.known(&range) {
            return Ok(bytes);
        }
        if let Way::Ranges { reader, tail, .. } = &self.way {
            let tail_start = reader.bytes.saturating_sub(TAIL_BYTES);
            if range.start >= tail_start {
                let part = reader.begin(tail_start..reader.bytes).wait();
                let bytes = reader.endpoint.shared.handle.block_on(part)??;
                *tail.lock() = Some((tail_start, bytes));
                return self.known(&range).ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.read_ranges(&[range])?.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn read_ranges(&self, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
        ranges.iter().try_for_each(|range| self.check_range(range))?;
        match &self.way {
            Way::Whole { endpoint, copy } => {
                let file = self.copy(endpoint, copy)?;
                let read = |range: &Range<u64>| {
                    let mut buffer = vec![0; length(range)];
                    file.read_exact_at(&mut buffer, range.start).map(|()| buffer.into())
                };
                ranges.iter().map(read).collect()
            }
            Way::Ranges { reader, ahead, .. } => {
                let mut known: Vec<Option<Bytes>> = ranges.iter().map(|range| self.known(range)).collect();
                let mut ahead = ahead.lock();
                ahead.fill(reader, ranges, &mut known)?;
                fetch_rest(reader, ranges, &mut known)?;
                ahead.guess(reader, ranges);
                known.into_iter().map(|bytes| bytes.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())).collect()
            }
        }
    }

    fn expect_ranges(&self, ranges: &[Range<u64>]) {
        if let Way::Ranges { reader, ahead, .. } = &self.way
            && ranges.iter().all(|range| self.check_range(range).is_ok())
        {
            ahead.lock().fetch_expected(reader, ranges);
        }
    }

    fn stream(&self, from: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(match &self.way {
            Way::Ranges { reader, .. } => by_ranges(reader, &self.head, from),
            Way::Whole { endpoint, .. } => by_one_answer(endpoint, &self.tag, from),
        }))
    }
}

impl Ahead {
    /// Takes from what was fetched ahead.
    fn fill(&mut self, reader: &Reader, ranges: &[Range<u64>], known: &mut [Option<Bytes>]) -> io::Result<()> {
        let inside = |range: &Range<u64>, part: &Range<u64>| range.start >= part.start && range.end <= part.end;
        // Others may want other parts, or this one reads elsewhere; whoever comes here next decides anew.
        let wanted = |(part, _): &mut (Range<u64>, Fetching)| ranges.iter().any(|range| inside(range, part));
        for (part, task) in self.parts.extract_if(.., wanted).collect::<Vec<_>>() {
            let bytes = reader.endpoint.shared.handle.block_on(task.wait())??;
            for (range, known) in
                ranges.iter().zip(&mut *known).filter(|(range, known)| known.is_none() && inside(range, &part))
            {
                let from = usize::try_from(range.start - part.start).unwrap_or(usize::MAX);
                *known = Some(bytes.slice(from..from + length(range)));
            }
        }
        Ok(())
    }

    /// Begins to fetch what was told to be wanted next, up to a bound; what was fetched for nothing is dropped.
    fn fetch_expected(&mut self, reader: &Arc<Reader>, ranges: &[Range<u64>]) {
        let mut wanted: Vec<Wanted> = ranges.iter().cloned().enumerate().collect();
        let joined = join_neighbours(&mut wanted);
        self.parts.clear();
        let mut bytes = 0;
        for (whole, _) in joined {
            bytes += whole.end - whole.start;
            if bytes > AHEAD_BYTES_MAX {
                break;
            }
            self.parts.push((whole.clone(), reader.begin_wide(whole)));
        }
        // No guess beside what is known.
        self.in_order = 0;
    }

    /// Whoever reads part after part will want the next one, of about the same size.
    fn guess(&mut self, reader: &Arc<Reader>, ranges: &[Range<u64>]) {
        let (Some(start), Some(end)) = (ranges.iter().map(|r| r.start).min(), ranges.iter().map(|r| r.end).max())
        else {
            return;
        };
        self.in_order = if start >= self.last_end { self.in_order + 1 } else { 0 };
        self.last_end = end;
        let wanted = (end - start) + (end - start) / 4;
        let next = end..end.saturating_add(wanted).min(reader.bytes);
        if self.in_order >= 2 && wanted <= AHEAD_BYTES_MAX && next.start < next.end && self.parts.is_empty() {
            self.parts.push((next.clone(), reader.begin_wide(next)));
        }
    }
}

/// Parts with little between them as one, in order.
fn join_neighbours(parts: &mut Vec<Wanted>) -> Vec<(Range<u64>, Vec<Wanted>)> {
    parts.sort_by_key(|(_, range)| range.start);
    let mut joined: Vec<(Range<u64>, Vec<Wanted>)> = Vec::new();
    for (index, range) in parts.drain(..) {
        match joined.last_mut() {
            Some((whole, parts))
                if range.start <= whole.end.saturating_add(GAP_BYTES)
                    && range.end.max(whole.end) - whole.start <= JOINED_BYTES_MAX =>
            {
                whole.end = whole.end.max(range.end);
                parts.push((index, range));
            }
            _ => joined.push((range.clone(), vec![(index, range)])),
        }
    }
    joined
}

/// Fetches what is not known yet: neighbours as one request, all of them under way together.
fn fetch_rest(reader: &Arc<Reader>, ranges: &[Range<u64>], known: &mut [Option<Bytes>]) -> io::Result<()> {
    let mut missing: Vec<Wanted> =
        ranges.iter().cloned().enumerate().filter(|(i, _)| known.get(*i).is_some_and(Option::is_none)).collect();
    let joined = join_neighbours(&mut missing);
    // Several begin at once; each in turn is taken.
    let handle = &reader.endpoint.shared.handle;
    let begin = |(whole, parts): (Range<u64>, Vec<Wanted>)| {
        let task = reader.begin_wide(whole.clone()).wait();
        async move { Ok::<_, PlaceError>((whole, parts, task.await??)) }
    };
    let mut fetched = futures::stream::iter(joined).map(begin).buffered(JOINED_IN_FLIGHT);
    while let Some((whole, parts, bytes)) = handle.block_on(fetched.try_next())? {
        for (index, range) in parts {
            let from = usize::try_from(range.start - whole.start).unwrap_or(usize::MAX);
            if let Some(known) = known.get_mut(index) {
                *known = Some(bytes.slice(from..from + length(&range)));
            }
        }
    }
    Ok(())
}
