//! Names of others in our messages.

/// The most characters of a name that a message shows.
const SHOWN_CHARS_MAX: usize = 400;

/// A name as it may stand in a message, a log line or on a terminal: on one line, with nothing that a terminal obeys or
/// that changes the direction of reading, and not endless.
#[must_use]
pub fn shown(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for (count, c) in name.chars().enumerate() {
        if count == SHOWN_CHARS_MAX {
            text.push('…');
            break;
        }
        if c.is_control() || is_format_character(c) {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    text
}

/// Characters that have no look of their own but change how others look.
fn is_format_character(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// Every byte that is not plain in a path, as `%XX`.
pub(crate) fn percent_encoded(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            text.push(char::from(byte));
        } else {
            // Writing into a text cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Undoes one level of `%XX`. None where a `%` is followed by something else.
pub(crate) fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok()?;
            if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s18_names_with_control_characters_are_escaped_in_messages() {
        assert_eq!(shown("a\nb\u{1b}[31mc;rm"), "a\\nb\\u{1b}[31mc;rm");
        assert_eq!(shown("x\u{202e}fdp.exe"), "x\\u{202e}fdp.exe");
        assert_eq!(shown("API Error/überall"), "API Error/überall");
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), SHOWN_CHARS_MAX + 1);
    }

    #[test]
    fn percent_signs_are_undone_once() {
        assert_eq!(percent_decoded("a%20b%252f").unwrap(), b"a b%2f");
        assert_eq!(percent_decoded("a%2"), None);
        assert_eq!(percent_decoded("a%+1"), None);
        assert_eq!(percent_encoded("API Error/ü".as_bytes()), "API%20Error/%C3%BC");
    }
}
