//! Lines of NDJSON as they come, in groups for the gate.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Lines that go to the gate together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) body: Bytes,
    pub(crate) spans: Vec<Range<u32>>,
}

/// Cuts bytes into lines. Empty lines are no records; a line over the limit is passed over and counted.
#[derive(Debug)]
pub(crate) struct Lines {
    waiting: BytesMut,
    /// Of `waiting`, looked through for line ends.
    seen: usize,
    /// Inside a line that is too long.
    skipping: bool,
    line_bytes_max: usize,
    /// Lines that were too long.
    pub(crate) too_long: u64,
}

impl Lines {
    pub(crate) fn new(line_bytes_max: usize) -> Self {
        Self { waiting: BytesMut::new(), seen: 0, skipping: false, line_bytes_max, too_long: 0 }
    }

    /// Bytes that are held.
    pub(crate) fn held(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// The whole lines that are there, up to `most`; all of the rest too where nothing more comes.
    pub(crate) fn take(&mut self, most: usize, ended: bool) -> Group {
        let mut spans = Vec::new();
        let mut start = 0;
        while spans.len() < most {
            let rest = self.waiting.get(self.seen.max(start)..).unwrap_or_default();
            let end = match memchr::memchr(b'\n', rest) {
                Some(found) => self.seen.max(start) + found,
                None if ended && start < self.waiting.len() => self.waiting.len(),
                None => {
                    self.seen = self.waiting.len();
                    break;
                }
            };
            self.take_line(start, end, &mut spans);
            start = (end + 1).min(self.waiting.len());
            self.seen = start;
        }
        if ended && self.waiting.len() == start && std::mem::take(&mut self.skipping) {
            self.too_long += 1;
        }
        let body = self.waiting.split_to(start).freeze();
        self.seen = self.seen.saturating_sub(start);
        // All of it was looked through: it is the beginning of one line.
        if self.seen == self.waiting.len() && self.waiting.len() > self.line_bytes_max {
            self.waiting.clear();
            (self.seen, self.skipping) = (0, true);
        }
        Group { body, spans }
    }

    fn take_line(&mut self, start: usize, end: usize, spans: &mut Vec<Range<u32>>) {
        if std::mem::take(&mut self.skipping) || end - start > self.line_bytes_max {
            self.too_long += 1;
            return;
        }
        let line = self.waiting.get(start..end).unwrap_or_default();
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r');
        let Some(first) = line.iter().position(|byte| !is_space(byte)) else { return };
        let last = line.iter().rposition(|byte| !is_space(byte)).unwrap_or(first);
        if let (Ok(from), Ok(to)) = (u32::try_from(start + first), u32::try_from(start + last + 1)) {
            spans.push(from..to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, piece: usize, most: usize) -> (Vec<String>, u64) {
        let mut lines = Lines::new(8);
        let mut found = Vec::new();
        let mut collect =
            |group: Group| {
                found.extend(group.spans.iter().map(|span| {
                    String::from_utf8(group.body[span.start as usize..span.end as usize].to_vec()).unwrap()
                }));
                !group.spans.is_empty()
            };
        for bytes in text.as_bytes().chunks(piece) {
            lines.push(bytes);
            while collect(lines.take(most, false)) {}
        }
        while collect(lines.take(most, true)) {}
        (found, lines.too_long)
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_come() {
        let text = "{\"a\":1}\r\n\n  2\n123456789\n3\n12345678901234567890\n4";
        for piece in 1..text.len() {
            for most in 1..5 {
                let (found, too_long) = cut(text, piece, most);
                assert_eq!(found, ["{\"a\":1}", "2", "3", "4"], "pieces of {piece}, groups of {most}");
                assert_eq!(too_long, 2);
            }
        }
        assert_eq!(cut("1\n1234567890", 3, 9), (vec!["1".to_owned()], 1));
        assert_eq!(cut("", 1, 1), (vec![], 0));
        assert_eq!(cut("\n\n", 1, 1), (vec![], 0));
    }
}
