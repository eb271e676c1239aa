//! Text made harmless, by the steps that a contract names for a column: [`Clean`].
//!
//! Promises: what no step is about stays byte for byte as it came, numbers and the order of members among it; cost is
//! linear; a JSON value is cleaned at every depth, keys and values, whatever escapes its text is written with. Refuses:
//! to guess at other encodings inside text, such as Base64.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use lakegate_memtable::Value;
use lakegate_model::{Clean, ColumnType, Sanitise};
use serde::de::{Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Text with more tags than this is escaped in place of being parsed: a parser's time may grow with their square.
const TAGS_PARSED_MAX: usize = 512;

/// Characters that turn the direction of text or take no room, by which text is made to look like another. The joiners
/// U+200C and U+200D stay: scripts and emoji need them.
const INVISIBLE: [RangeInclusive<char>; 9] = [
    '\u{61c}'..='\u{61c}',
    '\u{180e}'..='\u{180e}',
    '\u{200b}'..='\u{200b}',
    '\u{200e}'..='\u{200f}',
    '\u{202a}'..='\u{202e}',
    '\u{2060}'..='\u{2064}',
    '\u{2066}'..='\u{206f}',
    '\u{feff}'..='\u{feff}',
    '\u{e0000}'..='\u{e007f}',
];

/// A column's steps, made ready.
#[derive(Debug)]
pub(crate) struct Cleaner {
    steps: Vec<Clean>,
    paths: Vec<Vec<String>>,
}

impl Cleaner {
    /// None where the contract names no steps.
    pub(crate) fn new(sanitise: &Sanitise) -> Option<Self> {
        let mut steps = sanitise.steps.clone();
        steps.sort_unstable();
        steps.dedup();
        (!steps.is_empty()).then(|| Self { steps, paths: sanitise.paths.clone() })
    }

    /// The value made harmless; none where it is so already.
    pub(crate) fn value<'a>(&self, value: &Value<'a>, column_type: ColumnType) -> Option<Value<'a>> {
        let entries = |entries: Vec<(&str, &str)>| {
            let clean = |text: &str| self.text(text).into_owned();
            let harmless: Vec<_> = entries.iter().map(|(key, value)| (clean(key), clean(value))).collect();
            let changed = harmless.iter().zip(&entries).any(|((k, v), (key, value))| k != key || v != value);
            changed.then_some(Value::OwnedMap(harmless))
        };
        let json = column_type == ColumnType::Json;
        match value {
            Value::Text(text) if json => self.json(text).map(owned),
            Value::Owned(text) if json => self.json(text).map(owned),
            Value::Text(text) => changed(self.text(text)).map(owned),
            Value::Owned(text) => changed(self.text(text)).map(owned),
            Value::Map(map) => entries(map.clone()),
            Value::OwnedMap(map) => entries(map.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()),
            _ => None,
        }
    }

    /// The text made harmless.
    pub(crate) fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut clean = Cow::Borrowed(text);
        for step in &self.steps {
            let changed = match step {
                Clean::Control => without(&clean, is_control),
                Clean::Unicode => without(&clean, is_deceptive),
                Clean::StripHtml => strip_html(&clean),
                Clean::EscapeHtml => escape_html(&clean),
                Clean::Formula => defuse_formula(&clean),
            };
            if let Some(changed) = changed {
                clean = Cow::Owned(changed);
            }
        }
        clean
    }

    /// A JSON value, or the parts of it that the contract names; none where there is nothing to change.
    fn json(&self, raw: &str) -> Option<String> {
        let mut found = None;
        if self.paths.is_empty() {
            return self.strings(raw);
        }
        for path in &self.paths {
            let from = found.as_deref().unwrap_or(raw);
            let mut out = String::with_capacity(from.len() + 16);
            if self.part(from, path, &mut out) {
                found = Some(out);
            }
        }
        found
    }

    /// Writes `raw` with the part at `path` made harmless; items of lists on the way are each looked into.
    fn part(&self, raw: &str, path: &[String], out: &mut String) -> bool {
        let Some((first, rest)) = path.split_first() else {
            let clean = self.strings(raw);
            out.push_str(clean.as_deref().unwrap_or(raw));
            return clean.is_some();
        };
        let (mut written, mut changed) = (0, false);
        for (name, value) in members(raw) {
            let rest = match name {
                Some(name) if name == *first => rest,
                Some(_) => continue,
                None => path,
            };
            let start = (value.as_ptr() as usize).saturating_sub(raw.as_ptr() as usize);
            out.push_str(raw.get(written..start).unwrap_or_default());
            changed |= self.part(value, rest, out);
            written = start + value.len();
        }
        out.push_str(raw.get(written..).unwrap_or_default());
        changed
    }

    /// A JSON value with each of its strings made harmless, keys too; all else stays byte for byte.
    fn strings(&self, raw: &str) -> Option<String> {
        let mut out: Option<String> = None;
        let (mut copied, mut at) = (0, 0);
        while let Some(open) = raw.get(at..).and_then(|rest| rest.find('"')) {
            let start = at + open;
            let end = string_end(raw, start);
            let inner = raw.get(start + 1..end).unwrap_or_default();
            at = end + 1;
            let (text, exact) = unescape(inner);
            let clean = self.text(&text);
            if exact && clean == text {
                continue;
            }
            let out = out.get_or_insert_with(|| String::with_capacity(raw.len() + 64));
            out.push_str(raw.get(copied..start).unwrap_or_default());
            out.push_str(&serde_json::Value::String(clean.into_owned()).to_string());
            copied = at;
        }
        let mut out = out?;
        out.push_str(raw.get(copied..).unwrap_or_default());
        Some(out)
    }
}

fn owned<'a>(text: String) -> Value<'a> {
    Value::Owned(text.into_boxed_str())
}

fn changed(text: Cow<'_, str>) -> Option<String> {
    match text {
        Cow::Owned(text) => Some(text),
        Cow::Borrowed(_) => None,
    }
}

fn without(text: &str, unwanted: fn(char) -> bool) -> Option<String> {
    text.contains(unwanted).then(|| text.chars().filter(|c| !unwanted(*c)).collect())
}

fn is_control(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r')
}

fn is_deceptive(c: char) -> bool {
    let code = u32::from(c);
    let none = code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code);
    !c.is_ascii() && (none || INVISIBLE.iter().any(|range| range.contains(&c)))
}

fn strip_html(text: &str) -> Option<String> {
    if !text.contains(['<', '>', '&']) {
        return None;
    }
    if text.bytes().filter(|byte| *byte == b'<').take(TAGS_PARSED_MAX + 1).count() > TAGS_PARSED_MAX {
        return escape_html(text);
    }
    let clean = ammonia::Builder::empty().clean_content_tags(["script", "style"].into()).clean(text).to_string();
    (clean != text).then_some(clean)
}

/// The five characters of "Output encoding for HTML contexts" (OWASP, Cross-Site Scripting Prevention).
fn escape_html(text: &str) -> Option<String> {
    if !text.contains(['<', '>', '&', '"', '\'']) {
        return None;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    Some(out)
}

/// Text that a spreadsheet would compute. A number with its sign stays a number.
fn defuse_formula(text: &str) -> Option<String> {
    let seen = text.trim_start_matches(|c: char| (is_control(c) || is_deceptive(c)) && !matches!(c, '\t' | '\r'));
    let first = seen.chars().next()?;
    let begins = matches!(first, '=' | '+' | '-' | '@' | '\t' | '\r' | '＝' | '＋' | '－' | '＠');
    let number = || seen.get(1..).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    (begins && !(matches!(first, '+' | '-') && number() && seen.len() > 1)).then(|| format!("'{text}"))
}

/// Where the string ends that opens at `start`: its closing quote, or the end.
fn string_end(raw: &str, start: usize) -> usize {
    let bytes = raw.as_bytes();
    let mut at = start + 1;
    loop {
        match bytes.get(at) {
            Some(b'\\') => at += 2,
            Some(b'"') | None => return at.min(raw.len()),
            Some(_) => at += 1,
        }
    }
}

/// A JSON string's text, and whether it is exactly what was written: half of a surrogate pair is not a character.
fn unescape(inner: &str) -> (Cow<'_, str>, bool) {
    if !inner.contains('\\') {
        return (Cow::Borrowed(inner), true);
    }
    let (mut out, mut exact) = (String::with_capacity(inner.len()), true);
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        let (plain, escape) = rest.split_at(at);
        out.push_str(plain);
        let kind = escape.as_bytes().get(1).copied().unwrap_or(b'\\');
        let mut taken = 2;
        match kind {
            b'n' => out.push('\n'),
            b't' => out.push('\t'),
            b'r' => out.push('\r'),
            b'b' => out.push('\u{8}'),
            b'f' => out.push('\u{c}'),
            b'u' => {
                let (found, len) = unicode_escape(escape);
                out.push(found.unwrap_or(char::REPLACEMENT_CHARACTER));
                exact &= found.is_some();
                taken = len;
            }
            other => out.push(char::from(other)),
        }
        rest = escape.get(taken..).unwrap_or_default();
    }
    out.push_str(rest);
    (Cow::Owned(out), exact)
}

/// The character of `\uHHHH`, or of two of them that are a surrogate pair, and how many bytes they take.
fn unicode_escape(escape: &str) -> (Option<char>, usize) {
    let unit = |at: usize| {
        let digits = escape.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u32::from_str_radix(digits, 16).ok()
    };
    match (unit(0), unit(6)) {
        (Some(high @ 0xd800..=0xdbff), Some(low @ 0xdc00..=0xdfff)) => {
            (char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)), 12)
        }
        (Some(code), _) => (char::from_u32(code), 6),
        (None, _) => (None, 2),
    }
}

/// The members of an object with their names, the items of a list without, each as its text within `raw`.
fn members(raw: &str) -> Vec<(Option<Cow<'_, str>>, &str)> {
    let mut json = serde_json::Deserializer::from_str(raw);
    match raw.as_bytes().first() {
        Some(b'{') => json.deserialize_map(Members),
        Some(b'[') => json.deserialize_seq(Members),
        _ => Ok(Vec::new()),
    }
    .unwrap_or_default()
}

struct Members;

impl<'a> Visitor<'a> for Members {
    type Value = Vec<(Option<Cow<'a, str>>, &'a str)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some((key, value)) = map.next_entry::<&'a RawValue, &'a RawValue>()? {
            let inner = key.get().trim_matches('"');
            found.push((Some(unescape(inner).0), value.get()));
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(value) = items.next_element::<&'a RawValue>()? {
            found.push((None, value.get()));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn cleaner(steps: &[Clean], paths: &[&[&str]]) -> Cleaner {
        let paths = paths.iter().map(|path| path.iter().map(|&name| name.to_owned()).collect()).collect();
        Cleaner::new(&Sanitise { steps: steps.to_vec(), paths }).unwrap()
    }

    fn all() -> Cleaner {
        cleaner(&[Clean::Formula, Clean::EscapeHtml, Clean::Unicode, Clean::Control], &[])
    }

    #[test]
    fn s24_text_that_a_spreadsheet_would_compute_is_quoted_and_numbers_stay() {
        let cleaner = cleaner(&[Clean::Formula], &[]);
        for formula in
            ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "＝1", "\u{200b}=1", "\0=1", "-", "+"]
        {
            assert_eq!(cleaner.text(formula), format!("'{formula}"), "{formula:?}");
        }
        for plain in ["", "a=1", "-5", "+4930123", "-0.5", "1-2", "'=1"] {
            assert_eq!(cleaner.text(plain), plain);
        }
    }

    #[test]
    fn s25_markup_scripts_and_turned_text_reach_no_page() {
        let escaped = all();
        for (found, clean) in [
            ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
            ("a\u{202e}txt.exe", "atxt.exe"),
            ("\u{1b}[31mred", "[31mred"),
            ("<svg/onload=x>", "&lt;svg/onload=x&gt;"),
            ("Größe & <b>", "Größe &amp; &lt;b&gt;"),
            ("family 👨\u{200d}👩\u{200d}👧", "family 👨\u{200d}👩\u{200d}👧"),
        ] {
            assert_eq!(escaped.text(found), clean);
        }
        let stripped = cleaner(&[Clean::StripHtml], &[]);
        assert_eq!(stripped.text("a<script>alert(1)</script>b<b>c</b>"), "abc");
        assert_eq!(stripped.text("<img src=x onerror=alert(1)>x"), "x");
        assert_eq!(stripped.text("plain"), "plain");
        let many = "<b>".repeat(100_000);
        assert!(!stripped.text(&many).contains('<'), "what is not parsed is escaped");
    }

    #[test]
    fn s48_nested_values_keys_and_escapes_are_made_harmless_and_all_else_stays() {
        let raw =
            r#"{ "a\u003cb" : [1.50, "\u003Cscript>", {"x":"ok \u00e9"}, 12345678901234567890], "\ud800":"\u202e" }"#;
        let clean = all().json(raw).unwrap();
        let expected = "{ \"a&lt;b\" : [1.50, \"&lt;script&gt;\", {\"x\":\"ok \\u00e9\"}, 12345678901234567890], \"\u{fffd}\":\"\" }";
        assert_eq!(clean, expected);
        assert_eq!(all().json(r#"{"a":"é","b":-0.0}"#), None);
    }

    #[test]
    fn only_the_named_parts_of_a_json_column_change() {
        let cleaner = cleaner(&[Clean::EscapeHtml], &[&["items", "name"], &["note"]]);
        let raw = r#"{"items":[{"name":"<a>","sku":"<1>"},{"name":"b"}],"note":"<n>","note":"<m>","raw":"<keep>"}"#;
        let expected = r#"{"items":[{"name":"&lt;a&gt;","sku":"<1>"},{"name":"b"}],"note":"&lt;n&gt;","note":"&lt;m&gt;","raw":"<keep>"}"#;
        assert_eq!(cleaner.json(raw).unwrap(), expected);
        assert_eq!(cleaner.json(r#"{"raw":"<keep>"}"#), None);
    }

    /// Whatever comes: what leaves has none of the characters that the steps are about, is JSON where it was, says the
    /// same number of things, and is left alone by a second pass over the steps that only take out.
    #[test]
    fn s48_no_text_gets_past_the_steps() {
        const ALPHABET: [&str; 22] = [
            "<", ">", "&", "\"", "'", "=", "script", "\u{202e}", "\u{200b}", "\u{feff}", "\0", "\u{7f}", "\u{85}", "é",
            "👩", "\\", "/", "{", "[", ",", "a", " ",
        ];
        let (cleaner, removing) = (all(), cleaner(&[Clean::Control, Clean::Unicode], &[]));
        for seed in 0..2000 {
            let mut random = StdRng::seed_from_u64(seed);
            let text: String = (0..random.random_range(0..40)).map(|_| ALPHABET[random.random_range(0..22)]).collect();
            let clean = cleaner.text(&text);
            assert!(!clean.contains(['<', '>', '"', '\u{202e}', '\0', '\u{7f}']), "seed {seed}: {clean:?}");
            assert!(!clean.starts_with(['=', '+', '@']), "seed {seed}: {clean:?}");
            let removed = removing.text(&text);
            assert_eq!(removing.text(&removed), removed, "seed {seed}");
            let nested = serde_json::json!({ text.clone(): [text.clone(), { "n": text.clone() }, 1.5] });
            let raw: String = nested.to_string().chars().map(|c| escaped(c, &mut random)).collect();
            let json = cleaner.json(&raw).unwrap_or_else(|| raw.clone());
            let value: serde_json::Value =
                serde_json::from_str(&json).unwrap_or_else(|e| panic!("seed {seed}: {e}: {json}"));
            let expected = serde_json::json!({ &*clean: [&*clean, { "n": &*clean }, 1.5] });
            assert_eq!(value, expected, "seed {seed}");
        }
    }

    /// Characters beyond ASCII, and some letters, as escapes: JSON allows both ways.
    fn escaped(c: char, random: &mut StdRng) -> String {
        let may = !c.is_ascii() || c == '<' || c == '\'';
        if !may || random.random_bool(0.5) {
            return c.to_string();
        }
        let mut units = [0_u16; 2];
        c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
    }
}
