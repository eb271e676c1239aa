//! What commands print: data to the standard output, everything else to the standard error.

use std::io::{self, IsTerminal, Write};

/// Writes data. A reader that went away (`lakegate tail … | head`) ends the process quietly, as other tools do.
pub(crate) fn print(text: &str) {
    let mut out = io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        std::process::exit(0);
    }
}

/// Writes a line for people.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether progress may be drawn over itself.
pub(crate) fn draws() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Lays rows out under their headings; without lines, so that other tools can cut it.
pub(crate) fn table(headings: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let width = |i: usize, heading: &str| {
        rows.iter()
            .filter_map(|r| r.get(i))
            .map(|c| c.chars().count())
            .chain([heading.chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = headings.iter().enumerate().map(|(i, (heading, _))| width(i, heading)).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for ((cell, width), (_, align)) in cells.zip(&widths).zip(headings) {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            match align {
                Align::Left => text.extend([cell, &pad, "  "]),
                Align::Right => text.extend([pad.as_str(), cell, "  "]),
            }
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut headings.iter().map(|(heading, _)| *heading));
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A whole number in groups of three: `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes for people: `1.5 MiB`.
pub(crate) fn bytes(number: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
    let mut value = number as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{number} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Text of a client or a file, made safe for a terminal: control characters are shown, not obeyed.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_widest_cells() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "1,000".to_owned()]];
        let text = table(&[("name", Align::Left), ("n", Align::Right)], &rows);
        assert_eq!(text, "name      n\na         1\nbcd   1,000\n");
    }

    #[test]
    fn numbers_are_grouped_and_bytes_have_units() {
        assert_eq!((grouped(0), grouped(999), grouped(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!((bytes(12), bytes(1536), bytes(64 << 20)), ("12 B".into(), "1.5 KiB".into(), "64.0 MiB".into()));
    }

    #[test]
    fn s26_control_characters_are_shown_not_obeyed() {
        assert_eq!(plain("a\x1b[31m\nb"), "a\\u{1b}[31m\\nb");
    }
}
