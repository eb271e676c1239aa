//! The log's way out: one event, one line, whatever text a client has put into it.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// The longest log line; what is longer is cut, because a client chooses some of the text.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Writes lines to the standard error, control characters escaped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OneLine;

impl<'a> MakeWriter<'a> for OneLine {
    type Writer = OneLine;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine
    }
}

impl Write for OneLine {
    /// Takes one event: the formatter hands each over in a single call.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(one_line(event).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

/// The event as one line: every control character but the last line feed escaped (as JSON does, so that JSON stays
/// JSON), cut where it is too long.
fn one_line(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    if text.len() > LINE_BYTES_MAX {
        let begins: String = text.chars().filter(|c| !c.is_control()).take(1_000).collect();
        let cut = serde_json::json!({ "level": "WARN", "message": "a log line was cut", "bytes": text.len(), "begins": begins });
        return format!("{cut}\n");
    }
    let mut line = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            line.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s26_an_event_is_one_line_whatever_a_client_puts_into_it() {
        let line = one_line("a\r\n{\"level\":\"ERROR\"}\x1b[2J\u{202e}\n".as_bytes());
        assert_eq!(line, "a\\u000d\\u000a{\"level\":\"ERROR\"}\\u001b[2J\\u202e\n");
        assert!(one_line(&vec![b'x'; 1 << 20]).len() < LINE_BYTES_MAX);
    }
}
