//! Where values lie in JSON text: their places, not their meaning.
//!
//! The gate reads every payload and judges it; here only the envelope around payloads is walked, once. Nesting is
//! counted, not recursed into, so that depth costs nothing. A value that is found may still be wrong inside.

use std::borrow::Cow;
use std::ops::Range;

/// Why the text could not be walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub(crate) struct Misplaced {
    what: &'static str,
    at: usize,
}

/// A walk over JSON text.
pub(crate) struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A member of an object.
pub(crate) struct Member<'a> {
    /// Its name as written, without the quotes.
    name: &'a [u8],
    /// Where its value lies.
    pub(crate) value: Range<usize>,
}

impl Member<'_> {
    /// Whether it has this name.
    pub(crate) fn is(&self, name: &str) -> bool {
        if self.name.contains(&b'\\') {
            return text_of(self.name).is_some_and(|own| own == name);
        }
        self.name == name.as_bytes()
    }
}

impl<'a> Walk<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn wrong<T>(&self, what: &'static str) -> Result<T, Misplaced> {
        Err(Misplaced { what, at: self.at })
    }

    #[inline]
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// Goes into the object that comes next.
    pub(crate) fn enter_object(&mut self) -> Result<(), Misplaced> {
        match self.peek() {
            Some(b'{') => self.at += 1,
            _ => return self.wrong("an object { … } is expected"),
        }
        Ok(())
    }

    /// Goes into the list that comes next.
    pub(crate) fn enter_list(&mut self) -> Result<(), Misplaced> {
        match self.peek() {
            Some(b'[') => self.at += 1,
            _ => return self.wrong("a list [ … ] is expected"),
        }
        Ok(())
    }

    /// Whether a list comes next.
    pub(crate) fn is_at_list(&mut self) -> bool {
        self.peek() == Some(b'[')
    }

    /// The next member of the object that was entered; `first` before any was asked for. None: the object has ended.
    pub(crate) fn member(&mut self, first: &mut bool) -> Result<Option<Member<'a>>, Misplaced> {
        if !self.more(b'}', first)? {
            return Ok(None);
        }
        if self.peek() != Some(b'"') {
            return self.wrong("a member's name in quotes is expected");
        }
        let name = self.string()?;
        if self.peek() != Some(b':') {
            return self.wrong("a colon is expected");
        }
        self.at += 1;
        let value = self.value()?;
        let name = self.bytes.get(name.start + 1..name.end - 1).unwrap_or_default();
        Ok(Some(Member { name, value }))
    }

    /// The next value of the list that was entered, as [`Self::member`].
    pub(crate) fn element(&mut self, first: &mut bool) -> Result<Option<Range<usize>>, Misplaced> {
        if !self.more(b']', first)? {
            return Ok(None);
        }
        self.value().map(Some)
    }

    fn more(&mut self, end: u8, first: &mut bool) -> Result<bool, Misplaced> {
        let found = self.peek();
        if found == Some(end) && *first {
            self.at += 1;
            return Ok(false);
        }
        match found {
            Some(found) if *first && found != b',' => {
                *first = false;
                return Ok(true);
            }
            Some(b',') if !*first => self.at += 1,
            Some(found) if found == end => {
                self.at += 1;
                return Ok(false);
            }
            None => return self.wrong("the text ends too early"),
            Some(_) => return self.wrong("a comma is expected"),
        }
        Ok(true)
    }

    /// The value that comes next.
    pub(crate) fn value(&mut self) -> Result<Range<usize>, Misplaced> {
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'"') => return self.string(),
            Some(b'{' | b'[') => self.container()?,
            Some(b',' | b']' | b'}' | b':') => return self.wrong("a value is expected"),
            Some(_) => {
                let rest = self.bytes.get(start..).unwrap_or_default();
                let ends = |byte: &u8| matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n');
                self.at += rest.iter().position(ends).unwrap_or(rest.len());
            }
            None => return self.wrong("the text ends too early"),
        }
        Ok(start..self.at)
    }

    /// Nothing may come any more.
    pub(crate) fn end(&mut self) -> Result<(), Misplaced> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.wrong("nothing more is expected"),
        }
    }

    #[inline]
    fn string(&mut self) -> Result<Range<usize>, Misplaced> {
        let start = self.at;
        self.at += 1;
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let Some(found) = memchr::memchr2(b'"', b'\\', rest) else {
                return self.wrong("a text has no closing quote");
            };
            self.at += found + 1;
            if rest.get(found) == Some(&b'"') {
                return Ok(start..self.at);
            }
            self.at += 1;
        }
    }

    fn container(&mut self) -> Result<(), Misplaced> {
        let mut depth = 0_usize;
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return Ok(());
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        self.wrong("the text ends too early")
    }
}

/// The text of a JSON string given without its quotes; none when it is not one.
pub(crate) fn text_of(raw: &[u8]) -> Option<Cow<'_, str>> {
    if raw.iter().all(|byte| *byte >= b' ' && *byte != b'\\' && *byte != b'"') {
        return std::str::from_utf8(raw).ok().map(Cow::Borrowed);
    }
    let quoted = [b"\"", raw, b"\""].concat();
    serde_json::from_slice::<String>(&quoted).ok().map(Cow::Owned)
}

/// The text of a JSON value that is a string.
pub(crate) fn text_value(value: &[u8]) -> Option<Cow<'_, str>> {
    text_of(value.strip_prefix(b"\"")?.strip_suffix(b"\"")?)
}

/// Writes `text` as a JSON string.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    // Writing text into memory does not fail.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(text: &str) -> Result<Vec<&str>, Misplaced> {
        let mut walk = Walk::new(text.as_bytes());
        walk.enter_list()?;
        let (mut found, mut first) = (Vec::new(), true);
        while let Some(span) = walk.element(&mut first)? {
            found.push(&text[span]);
        }
        walk.end()?;
        Ok(found)
    }

    #[test]
    fn elements_are_found_whatever_they_hold() {
        let text = r#" [ {"a":"]}\"\\"} ,[1,[2]], "x,y" ,null,-1.5e3 ] "#;
        assert_eq!(elements(text).unwrap(), [r#"{"a":"]}\"\\"}"#, "[1,[2]]", "\"x,y\"", "null", "-1.5e3"]);
        assert_eq!(elements("[]").unwrap(), Vec::<&str>::new());
        for wrong in ["", "[", "[1", "[1,]", "[,1]", "[1 2]", "[1]]", "{}", "[\"a]", "[{]", "\u{feff}[]", "[1]x"] {
            assert!(elements(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn s32_depth_costs_no_stack() {
        let deep = format!("[{}{}]", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(elements(&deep).unwrap().len(), 1);
        assert!(elements(&"[".repeat(1_000_000)).is_err());
    }

    #[test]
    fn members_are_known_by_name_however_it_is_written() {
        let text = br#"{"eventId":"a","\u0065ventType": {"b":1} , "n":1}"#;
        let mut walk = Walk::new(text);
        walk.enter_object().unwrap();
        let mut first = true;
        let one = walk.member(&mut first).unwrap().unwrap();
        assert!(one.is("eventId") && !one.is("event") && text_value(&text[one.value]).unwrap() == "a");
        let two = walk.member(&mut first).unwrap().unwrap();
        assert!(two.is("eventType") && &text[two.value] == br#"{"b":1}"#);
        assert!(walk.member(&mut first).unwrap().is_some() && walk.member(&mut first).unwrap().is_none());
        walk.end().unwrap();
    }

    /// Whatever serde_json takes as a list is cut where serde_json cuts it.
    #[test]
    fn lists_are_cut_as_another_reader_cuts_them() {
        let samples = ["1", "\"a\\\\\"", "{\"x\":[1,{\"y\":\"}\"}]}", "[]", "true", "\"\\u00e9\"", "{}", "-0.1"];
        for mask in 0_usize..4096 {
            let picked: Vec<_> = (0..4).map(|at| samples[mask >> (at * 3) & 7]).collect();
            let text = format!("[{}]", picked.join(" ,\n"));
            let theirs: Vec<Box<serde_json::value::RawValue>> = serde_json::from_str(&text).unwrap();
            assert_eq!(elements(&text).unwrap(), theirs.iter().map(|raw| raw.get()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn text_is_written_as_another_writer_writes_it() {
        for text in ["", "plain", "é\"\\\n\u{1}\u{2028}"] {
            let mut out = Vec::new();
            put_text(&mut out, text);
            assert_eq!(out, serde_json::to_vec(text).unwrap());
            assert_eq!(text_value(&out).unwrap(), text);
        }
    }
}
