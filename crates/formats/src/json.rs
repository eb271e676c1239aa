//! JSON that is not one object a line: an array of objects, or objects one after another.
//!
//! Only brackets and quotes are looked at, to find where each object begins and ends; the rest is for shaping to judge.
//! An element that is no object is a bad row, as is one that is longer or deeper than the limits.

use std::ops::Range;

use bytes::Bytes;

use crate::feed::Feed;
use crate::open::Source;
use crate::piece::RAW_BYTES;
use crate::{BadRow, Mark, Piece, Pieces, ReadError, ReadOptions, Rows};

/// In a mark's flags: the place is inside the array.
const IN_ARRAY: u8 = 1;

/// In a mark's flags: the array is closed.
const CLOSED: u8 = 2;

/// Where the scan of one element stands, so that more text does not start it anew.
#[derive(Debug, Clone, Copy, Default)]
struct Scan {
    /// Bytes of the element that are scanned.
    at: usize,
    depth: usize,
    deepest: usize,
    in_text: bool,
}

/// Reads elements.
pub(crate) struct JsonReader {
    source: Source,
    feed: Feed,
    options: ReadOptions,
    row: u64,
    in_array: bool,
    done: bool,
    broken: Option<ReadError>,
}

/// The elements of one piece.
#[derive(Default)]
struct Found {
    spans: Vec<Range<u32>>,
    bad: Vec<BadRow>,
    at: usize,
}

impl JsonReader {
    pub(crate) fn new(mut source: Source, options: &ReadOptions, resume: Option<Mark>) -> Result<Self, ReadError> {
        let in_array = resume.is_some_and(|m| m.flags & IN_ARRAY != 0);
        let (feed, row) = source.feed(resume)?;
        Ok(Self {
            source,
            feed,
            options: options.clone(),
            row,
            in_array,
            done: resume.is_some_and(|m| m.flags & CLOSED != 0),
            broken: None,
        })
    }

    fn find(&mut self) -> Result<Found, ReadError> {
        let mut found = Found::default();
        while found.spans.len() < self.options.batch_rows && found.at < self.options.batch_bytes && !self.done {
            let Some(next) = self.feed.window().get(found.at).copied() else {
                match self.fill(&found)? {
                    true => continue,
                    false => break,
                }
            };
            match next {
                b' ' | b'\t' | b'\n' | b'\r' | b',' => found.at += 1,
                b'[' if !self.in_array && self.row == 0 => {
                    self.in_array = true;
                    found.at += 1;
                }
                b']' if self.in_array => {
                    self.done = true;
                    found.at += 1;
                }
                _ => {
                    if !self.element(&mut found, next == b'{')? {
                        break;
                    }
                }
            }
        }
        if self.feed.ended()
            && self.in_array
            && !self.done
            && found.at == self.feed.window().len()
            && self.broken.is_none()
        {
            self.broken = Some(self.cut(found.at, "the array is not closed"));
        }
        Ok(found)
    }

    fn cut(&self, at: usize, what: &str) -> ReadError {
        let offset = self.feed.offset() + at as u64;
        self.source.damaged(offset, format!("{what}: the file ends too early, it is cut off"))
    }

    /// More text. False: the piece is to be given, or there is no more.
    fn fill(&mut self, found: &Found) -> Result<bool, ReadError> {
        match self.feed.fill().map_err(|e| self.source.io(self.feed.offset(), e)) {
            Ok(more) => Ok(more),
            Err(e) if found.spans.is_empty() && found.bad.is_empty() => Err(e),
            Err(e) => {
                self.broken = Some(e);
                Ok(false)
            }
        }
    }

    /// One element. False: the piece is to be given.
    fn element(&mut self, found: &mut Found, object: bool) -> Result<bool, ReadError> {
        let mut scan = Scan::default();
        loop {
            let rest = self.feed.window().get(found.at..).unwrap_or_default();
            let ended = scan.run(rest, object) || (!object && self.feed.ended() && scan.at >= rest.len());
            if scan.at > self.options.limits.row_bytes {
                return self.skip(found, scan, ended, object);
            }
            if ended {
                break;
            }
            if !self.fill(found)? {
                if self.broken.is_some() || !self.feed.ended() {
                    return Ok(false);
                }
                if !object {
                    continue;
                }
                self.broken = Some(self.cut(found.at, "an object is not closed"));
                self.done = true;
                return Ok(false);
            }
        }
        let raw = self.feed.window().get(found.at..found.at + scan.at).unwrap_or_default();
        if !object {
            found.bad.push(bad(self.row, raw, "not a JSON object".to_owned()));
        } else if scan.deepest > self.options.limits.nesting {
            let reason =
                format!("nested {} deep; at most {} (limit nesting)", scan.deepest, self.options.limits.nesting);
            found.bad.push(bad(self.row, raw, reason));
        } else {
            let place = |p: usize| u32::try_from(p).unwrap_or(u32::MAX);
            found.spans.push(place(found.at)..place(found.at + scan.at));
        }
        self.row += 1;
        found.at += scan.at;
        Ok(true)
    }

    /// Passes over an element that is too long, keeping its head.
    fn skip(&mut self, found: &mut Found, mut scan: Scan, mut ended: bool, object: bool) -> Result<bool, ReadError> {
        if found.at > 0 {
            return Ok(false);
        }
        let reason = format!(
            "a document of more than {} bytes (limit row_bytes); its head is kept",
            self.options.limits.row_bytes
        );
        found.bad.push(bad(self.row, self.feed.window(), reason));
        self.row += 1;
        loop {
            self.feed.consume(scan.at);
            if ended {
                return Ok(false);
            }
            scan.at = 0;
            if !self.fill(found)? {
                self.done = true;
                return Ok(false);
            }
            ended = scan.run(self.feed.window(), object);
        }
    }
}

impl Scan {
    /// Goes on over `text`, the element from its first byte (or from where it was consumed). True: it ended.
    fn run(&mut self, text: &[u8], object: bool) -> bool {
        while let Some(rest) = text.get(self.at..) {
            if self.in_text {
                let Some(found) = memchr::memchr2(b'"', b'\\', rest) else {
                    self.at = text.len();
                    return false;
                };
                if rest.get(found) == Some(&b'"') {
                    self.in_text = false;
                    self.at += found + 1;
                } else if rest.len() > found + 1 {
                    self.at += found + 2;
                } else {
                    // The guarded byte is not here yet.
                    self.at += found;
                    return false;
                }
                continue;
            }
            let Some(byte) = rest.first() else { return false };
            if !object && self.depth == 0 && matches!(byte, b',' | b']' | b'}' | b'\n' | b' ') && self.at > 0 {
                return true;
            }
            self.at += 1;
            match byte {
                b'"' => self.in_text = true,
                b'{' | b'[' => {
                    self.depth += 1;
                    self.deepest = self.deepest.max(self.depth);
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return true;
                    }
                }
                _ => {}
            }
        }
        false
    }
}

/// How long the object at the front is. None: it does not end here.
pub(crate) fn object_len(text: &[u8]) -> Option<usize> {
    let mut scan = Scan::default();
    scan.run(text, true).then_some(scan.at)
}

fn bad(row: u64, raw: &[u8], reason: String) -> BadRow {
    let raw = Bytes::copy_from_slice(raw.get(..raw.len().min(RAW_BYTES)).unwrap_or_default());
    BadRow { row, raw, field: None, reason }
}

impl Pieces for JsonReader {
    fn next(&mut self) -> Result<Option<Piece>, ReadError> {
        if let Some(broken) = self.broken.take() {
            self.done = true;
            return Err(broken);
        }
        let first_row = self.row;
        let mut found = self.find()?;
        while found.spans.is_empty() && found.bad.is_empty() {
            if let Some(broken) = self.broken.take() {
                self.done = true;
                return Err(broken);
            }
            if found.at == 0 {
                return Ok(None);
            }
            self.feed.consume(found.at);
            found = self.find()?;
        }
        let body = Bytes::copy_from_slice(self.feed.window().get(..found.at).unwrap_or_default());
        self.feed.consume(found.at);
        let flags = if self.in_array { IN_ARRAY } else { 0 } | if self.done { CLOSED } else { 0 };
        Ok(Some(Piece {
            member: None,
            table: None,
            first_row,
            next: Mark { row: self.row, at: self.feed.offset(), flags, ..Mark::default() },
            rows: Rows::Documents { body, spans: found.spans },
            bad: found.bad,
        }))
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.source.progress()
    }
}
