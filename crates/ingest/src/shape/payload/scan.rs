//! The fast way over a payload: one pass that checks the JSON (RFC 8259) and finds the members that columns take.
//!
//! It takes exactly what the general reader takes, but for what is rare, which it declines: members whose names are
//! escaped, and whatever is wrong. Whoever is declined asks the general reader, whose words tell what is wrong and where.
//! Members mostly come in one order with the same names: the name that should be next is compared where it should lie.

use std::borrow::Cow;

use super::{Found, MAX_DEPTH, Node, Target, UNKNOWN};

/// Finds the members of the object that is all of `payload`. None where it is declined; then `found` may hold a part.
pub(super) fn find_members<'a>(payload: &'a str, node: &Node, found: &mut Found<'a>) -> Option<()> {
    let mut scan = Scan { text: payload, bytes: payload.as_bytes(), at: 0 };
    scan.space();
    scan.object(node, found, 1)?;
    scan.end()
}

/// Whether `payload` is one JSON value; false as well where it is declined.
pub(super) fn is_value(payload: &str) -> bool {
    let mut scan = Scan { text: payload, bytes: payload.as_bytes(), at: 0 };
    scan.space();
    scan.value(0).and_then(|()| scan.end()).is_some()
}

struct Scan<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn end(&mut self) -> Option<()> {
        self.space();
        (self.at == self.bytes.len()).then_some(())
    }

    /// After a member or an item: whether another follows, or else `closing` has been passed.
    #[inline]
    fn goes_on(&mut self, closing: u8) -> Option<bool> {
        self.space();
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            b',' => {
                self.space();
                Some(true)
            }
            _ => (byte == closing).then_some(false),
        }
    }

    fn object(&mut self, node: &Node, found: &mut Found<'a>, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.take(b'{')?;
        self.space();
        if self.take(b'}').is_some() {
            return Some(());
        }
        let is_outermost = depth == 1;
        let mut hint = 0;
        for place in 0.. {
            if is_outermost {
                hint = found.order.get(place).copied().unwrap_or(hint);
            }
            let at = self.member(node, hint, found, depth)?;
            if is_outermost && found.order.get(place) != Some(&at) {
                found.note_order(place, at);
            }
            hint = if at == UNKNOWN { hint } else { at + 1 };
            if !self.goes_on(b'}')? {
                break;
            }
        }
        Some(())
    }

    /// Gives which of the node's members it is, as [`Node::find`] does.
    #[inline]
    fn member(&mut self, node: &Node, hint: usize, found: &mut Found<'a>, depth: usize) -> Option<usize> {
        self.take(b'"')?;
        let (at, name) = self.name(node, hint)?;
        self.space();
        self.take(b':')?;
        self.space();
        let from = self.at;
        match node.members.get(at).map(|(_, target)| target) {
            Some(Target::Slots(slots)) => {
                match self.peek()? {
                    b'"' => {
                        self.at += 1;
                        self.string()?;
                    }
                    b'-' | b'0'..=b'9' => self.number()?,
                    _ => self.value(depth)?,
                }
                found.note(slots, self.text.get(from..self.at)?);
            }
            Some(Target::Object(inner, slots)) => {
                if self.peek() == Some(b'{') {
                    self.object(inner, found, depth + 1)?;
                } else {
                    self.value(depth)?;
                }
                found.note(slots, self.text.get(from..self.at)?);
            }
            None => {
                self.value(depth)?;
                let (name, raw) = (Cow::Borrowed(name), self.text.get(from..self.at)?);
                found.note_other(node, name, raw);
            }
        }
        Some(at)
    }

    /// Which of the node's members it is, and the name, where it is none of them; its opening quote has been passed.
    #[inline]
    fn name(&mut self, node: &Node, hint: usize) -> Option<(usize, &'a str)> {
        if let Some((name, _)) = node.members.get(hint) {
            let end = self.at + name.len();
            if self.bytes.get(self.at..end).is_some_and(|found| is_same(found, name.as_bytes()))
                && self.bytes.get(end) == Some(&b'"')
                && !node.has_strange_names
            {
                self.at = end + 1;
                return Some((hint, ""));
            }
        }
        let from = self.at;
        let end = special(self.bytes, from)?;
        if self.bytes.get(end) != Some(&b'"') {
            return None;
        }
        self.at = end + 1;
        let name = self.text.get(from..end)?;
        Some((node.find(name, hint), name))
    }

    /// Passes a value that lies so many objects and arrays deep.
    fn value(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'"' => {
                self.at += 1;
                self.string()
            }
            b'-' | b'0'..=b'9' => self.number(),
            b'{' => self.nested(b'}', depth + 1),
            b'[' => self.nested(b']', depth + 1),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => None,
        }
    }

    fn nested(&mut self, closing: u8, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.at += 1;
        self.space();
        if self.take(closing).is_some() {
            return Some(());
        }
        loop {
            if closing == b'}' {
                self.take(b'"')?;
                self.string()?;
                self.space();
                self.take(b':')?;
                self.space();
            }
            self.value(depth)?;
            if !self.goes_on(closing)? {
                return Some(());
            }
        }
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        let end = self.at + word.len();
        (self.bytes.get(self.at..end)? == word).then(|| self.at = end)
    }

    #[inline]
    fn string(&mut self) -> Option<()> {
        loop {
            self.at = special(self.bytes, self.at)?;
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                b'\\' => self.escape()?,
                _ => return None,
            }
        }
    }

    fn escape(&mut self) -> Option<()> {
        let escaped = *self.bytes.get(self.at + 1)?;
        self.at += 2;
        match escaped {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => {
                let digits = self.bytes.get(self.at..self.at + 4)?;
                self.at += 4;
                digits.iter().all(u8::is_ascii_hexdigit).then_some(())
            }
            _ => None,
        }
    }

    #[inline]
    fn digits(&mut self) -> Option<()> {
        let from = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > from).then_some(())
    }

    #[inline]
    fn number(&mut self) -> Option<()> {
        let _ = self.take(b'-');
        if self.take(b'0').is_none() {
            self.digits()?;
        }
        if self.take(b'.').is_some() {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }
}

/// Whether two texts of one length are the same; most names are short, and compared here without a call.
#[inline]
fn is_same(one: &[u8], other: &[u8]) -> bool {
    match one.len() {
        0..4 => one.iter().eq(other),
        4..8 => one.first_chunk::<4>() == other.first_chunk() && one.last_chunk::<4>() == other.last_chunk(),
        8..17 => one.first_chunk::<8>() == other.first_chunk() && one.last_chunk::<8>() == other.last_chunk(),
        _ => one == other,
    }
}

/// Whether a text holds nothing that JSON escapes.
#[inline]
pub(crate) fn is_plain(text: &str) -> bool {
    special(text.as_bytes(), 0).is_none()
}

const EACH: u64 = u64::from_ne_bytes([1; 8]);
const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);

/// The first byte from `at` on that ends or interrupts a text: a quote, a backslash, or a control character. Eight bytes
/// are looked at in one step (Lamport, "Multiple byte processing with full-word instructions", 1975).
#[inline]
fn special(bytes: &[u8], mut at: usize) -> Option<usize> {
    while let Some((word, _)) = bytes.get(at..).and_then(<[u8]>::split_first_chunk::<8>) {
        let word = u64::from_le_bytes(*word);
        let zero_in = |word: u64| word.wrapping_sub(EACH) & !word;
        let quotes = zero_in(word ^ (EACH * u64::from(b'"')));
        let backslashes = zero_in(word ^ (EACH * u64::from(b'\\')));
        let controls = word.wrapping_sub(EACH * 0x20) & !word;
        // A step's borrow can mark bytes only behind the first that is meant.
        let marked = (quotes | backslashes | controls) & HIGH;
        if marked != 0 {
            return Some(at + (marked.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    let rest = bytes.get(at..)?;
    rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).map(|found| at + found)
}

#[cfg(test)]
mod tests {
    use lakegate_model::Contract;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use serde_json::{Map, Value, json};

    use super::super::{general, is_json};
    use super::*;

    fn contract(closed: bool) -> Contract {
        let column = |name: &str, path: &[&str]| json!({ "name": name, "column_type": "string", "source": { "path": path }, "required": false });
        let columns = [
            column("a", &["a"]),
            column("b", &["bee"]),
            column("again", &["a"]),
            column("inner", &["o", "x"]),
            column("deep", &["o", "p", "y"]),
            column("whole", &["o"]),
            column("strange", &["q\"uote"]),
        ];
        let contract = json!({
            "columns": columns, "payload": "json", "time": null, "malformed": "skip", "undeclared": "ignore",
            "table": "{tenant}.{endpoint}", "partitions": [], "sort": [], "event_type_paths": [["t"], ["o", "t"]],
            "event_key": [], "duplicate_window_ms": 1000, "objects": [{ "path": ["x"], "closed": closed, "needs": ["y"] }],
        });
        serde_json::from_value(contract).unwrap()
    }

    type Seen = (Vec<Option<String>>, Option<Vec<(usize, String, String)>>, Option<String>, Option<String>);

    fn seen(found: Found<'_>) -> Seen {
        let owned = |text: Option<Cow<'_, str>>| text.map(Cow::into_owned);
        let others = found.others.map(|others| {
            others.into_iter().map(|other| (other.object, other.name.into_owned(), other.raw.to_owned())).collect()
        });
        let slots = found.slots.into_iter().map(|slot| slot.map(str::to_owned)).collect();
        (slots, others, owned(found.first_other), owned(found.forbidden))
    }

    fn document(rng: &mut StdRng, depth: usize) -> Value {
        let text = |rng: &mut StdRng| {
            let of = ['a', 'é', '"', '\\', '\n', '\u{1}', '𝄞', '/', 'x', ' ', '{', ']'];
            (0..rng.random_range(0..20)).map(|_| of[rng.random_range(0..of.len())]).collect::<String>()
        };
        match rng.random_range(0..if depth > 4 { 5 } else { 8 }) {
            0 => json!(null),
            1 => json!(rng.random::<bool>()),
            2 => json!(rng.random::<i64>() >> rng.random_range(0..64)),
            3 => json!(rng.random::<f64>() * 10_f64.powi(rng.random_range(-30..30))),
            4 => json!(text(rng)),
            5 => (0..rng.random_range(0..4)).map(|_| document(rng, depth + 1)).collect(),
            _ => object(rng, depth + 1),
        }
    }

    fn object(rng: &mut StdRng, depth: usize) -> Value {
        let names = ["a", "bee", "o", "x", "p", "y", "t", "other", "ö", "", "q\"uote", "averyveryverylongname"];
        let mut members = Map::new();
        for _ in 0..rng.random_range(0..8) {
            members.insert(names[rng.random_range(0..names.len())].to_owned(), document(rng, depth));
        }
        Value::Object(members)
    }

    /// What the two readers say of a text; none where the fast one declines.
    fn both(
        text: &str,
        node: &Node,
        (slots, keeps): (usize, bool),
        order: &mut Vec<usize>,
    ) -> (Option<Seen>, Option<Seen>) {
        let fresh = || Found { slots: vec![None; slots], others: keeps.then(Vec::new), ..Found::default() };
        let (mut fast, mut slow) = (fresh(), fresh());
        // What was found in the texts before, whatever that was.
        fast.order = std::mem::take(order);
        let (scanned, read) = (find_members(text, node, &mut fast), general(text, node, &mut slow));
        *order = std::mem::take(&mut fast.order);
        (scanned.map(|()| seen(fast)), read.ok().map(|()| seen(slow)))
    }

    #[test]
    fn the_fast_way_finds_what_the_general_reader_finds_and_takes_nothing_that_it_refuses() {
        let mut rng = StdRng::seed_from_u64(11);
        let (mut taken, mut refused, mut order) = (0, 0, Vec::new());
        for round in 0..20_000 {
            let (node, slots) = Node::of(&contract(round % 2 == 0));
            let value = object(&mut rng, 0);
            let mut text =
                if round % 3 == 0 { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }
                    .unwrap();
            let spoilt = round % 4 > 1;
            if spoilt {
                // Anything at any place, where it leaves UTF-8.
                let mut bytes = text.clone().into_bytes();
                for _ in 0..rng.random_range(1..4) {
                    let with = *b"\"\\{}[],:0-.eEu1tn \n\x01\x7f".get(rng.random_range(0..23)).unwrap_or(&b' ');
                    let at = rng.random_range(0..bytes.len());
                    match rng.random_range(0..3) {
                        0 => bytes[at] = with,
                        1 => bytes.insert(at, with),
                        _ => drop(bytes.remove(at)),
                    }
                    if bytes.is_empty() {
                        bytes.push(b'{');
                    }
                }
                text = String::from_utf8_lossy(&bytes).into_owned();
            }
            let (fast, slow) = both(&text, &node, (slots.count, round % 5 == 0), &mut order);
            if let Some(fast) = &fast {
                assert_eq!(Some(fast), slow.as_ref(), "{text}");
                taken += 1;
            } else if !spoilt {
                assert!(text.contains("q\\\"uote"), "declined for nothing: {text}");
            }
            refused += u32::from(slow.is_none());
            assert!(!is_value(&text) || serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{text}");
        }
        assert!(taken > 8_000 && refused > 5_000, "{taken} {refused}");
    }

    #[test]
    fn every_value_is_known_as_one_and_what_is_none_is_not() {
        let deepest = format!("{}1{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        let good = [" 0 ", "-0.0e+12", "\"\\u00e9\\\\\"", "[[],{},[{}]]", "{\"\":{\"a\\n\":null}}", "1E5", &deepest];
        for text in good {
            assert!(is_value(text) && is_json(text).is_ok(), "{text}");
        }
        let bad = [
            "",
            "01",
            "1.",
            ".5",
            "-",
            "1e",
            "+1",
            "nul",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\t\"",
            "[1,]",
            "{\"a\"}",
            "1 1",
            "[1}",
        ];
        for text in bad {
            assert!(!is_value(text) && is_json(text).is_err(), "{text}");
        }
        assert!(!is_value(&format!("[{deepest}]")), "deeper than is taken");
    }

    #[test]
    fn names_are_the_same_where_every_byte_is() {
        let name: Vec<u8> = (0..40).collect();
        for length in 0..name.len() {
            let name = &name[..length];
            assert!(is_same(name, name));
            for at in 0..length {
                let mut other = name.to_vec();
                other[at] ^= 1;
                assert!(!is_same(name, &other));
            }
        }
    }

    #[test]
    fn the_first_special_byte_is_found_wherever_it_lies() {
        for length in 0..40 {
            for at in 0..length {
                for byte in [b'"', b'\\', 0, 0x1f] {
                    for filler in [b' ', b'!', b'#', b'[', b']', 0x7f, 0x80, 0xa2, 0xdc, 0xff] {
                        let mut bytes = vec![filler; length];
                        bytes[at] = byte;
                        assert_eq!(special(&bytes, 0), Some(at));
                        assert_eq!(special(&bytes, at + 1), None);
                    }
                }
            }
        }
    }
}
