//! Records a second over the last minute.

use std::collections::VecDeque;

use parking_lot::Mutex;

const SECONDS: usize = 60;

/// Sums by second, the newest last.
#[derive(Debug, Default)]
pub(crate) struct Rate(Mutex<VecDeque<u64>>);

impl Rate {
    /// Notes the total at the end of a second.
    pub(crate) fn tick(&self, total: u64) {
        let mut totals = self.0.lock();
        totals.push_back(total);
        if totals.len() > SECONDS + 1 {
            totals.pop_front();
        }
    }

    /// Records a second, over as many seconds as were seen, at most sixty.
    pub(crate) fn per_second(&self) -> f64 {
        let totals = self.0.lock();
        match (totals.front(), totals.back()) {
            #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
            (Some(first), Some(last)) if totals.len() > 1 => (last - first) as f64 / (totals.len() - 1) as f64,
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let rate = Rate::default();
        for second in 0..200_u64 {
            rate.tick(if second < 100 { 0 } else { (second - 100) * 50 });
        }
        assert!((rate.per_second() - 50.0).abs() < 1e-9);
    }
}
