//! Figures to the terminal.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to the terminal")]

use super::Failure;

/// A line of a table: name, then cells.
pub(crate) fn line(name: &str, text: &str) {
    println!("{name:<44} {text}");
}

/// Text for machines.
pub(crate) fn plain(text: &str) {
    println!("{text}");
}

/// A heading.
pub(crate) fn heading(text: &str) {
    println!("\n{text}\n{}", "-".repeat(text.len()));
}

/// What happens meanwhile.
pub(crate) fn progress(text: &str) {
    eprintln!("{text}");
}

/// What went wrong.
pub(crate) fn complain(error: &Failure) {
    eprintln!("lakegate bench: {error}");
}

/// Median, least and greatest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

impl Spread {
    /// Of at least one value; zeros of none.
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        Self { median: at(sorted.len() / 2), least: at(0), greatest: at(sorted.len().saturating_sub(1)) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} (least {:.2}, greatest {:.2})", self.median, self.least, self.greatest)
    }
}

/// The value below which the given share of the sorted values lies.
pub(crate) fn percentile(sorted_us: &[u64], share: f64) -> u64 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of few millions"
    )]
    let index = (sorted_us.len() as f64 * share) as usize;
    sorted_us.get(index.min(sorted_us.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Median, 99th and 99.9th percentile of latencies in microseconds.
pub(crate) fn latencies(us: &mut [u64]) -> (u64, u64, u64) {
    us.sort_unstable();
    (percentile(us, 0.5), percentile(us, 0.99), percentile(us, 0.999))
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_in_the_middle() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, greatest: 3.0 });
        assert_eq!(percentile(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 100], 0.99), 100);
    }
}
