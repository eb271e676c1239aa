//! When the writer takes the next group.
//!
//! Few callers: as soon as one is there. Many: a sync costs the processor the same for one frame as for fifty, so the
//! writer waits until about as many are there as come in [`GATHER`], or until no more come, or for that long at most;
//! the callers' own work goes on meanwhile, on the core that the syncs would have taken. Who comes alone is never held
//! up: the groups of a caller that waits for its answer before it sends again have one frame.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::shared::Shared;

/// How long the writer looks for the next group before it sleeps. A caller that was just answered often comes back
/// within it, and waking a sleeping thread costs more than this; a longer look would hog a core in the real-time class.
const SPIN: Duration = Duration::from_micros(40);
/// After a group of so many bytes it does not look: what takes long to make and to send is not late by a waking.
const LARGE_BYTES: u64 = 64 * 1024;
/// The longest wait for a group to fill.
const GATHER: Duration = Duration::from_micros(600);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_micros(40);
/// So many frames must come in [`GATHER`] for it to be worth a wait.
const GATHER_FROM: f64 = 12.0;
/// And so many in a group without a wait.
const GROUP_FROM: f64 = 1.5;
/// Nobody comes any more when nobody came for so many times the usual gap.
const SILENT_GAPS: f64 = 5.0;
/// How much of the newest round goes into the average.
const WEIGHT: f64 = 0.2;

/// How fast frames come.
#[derive(Default)]
pub(crate) struct Pace {
    /// When the last group was done, and how many frames there had been.
    last: Option<(Instant, u64)>,
    /// Frames in [`GATHER`], on average.
    rate: f64,
    /// Frames in a group, on average.
    group: f64,
}

impl Pace {
    /// Waits for the next group as long as that pays. To be called after a group was written.
    pub(crate) fn next_group(&mut self, shared: &Shared) {
        let now = Instant::now();
        self.note(now, shared.counters.frames.load(Ordering::Relaxed));
        if !self.pays() {
            let until = now
                + if shared.counters.last_bytes.load(Ordering::Relaxed) < LARGE_BYTES { SPIN } else { Duration::ZERO };
            while !shared.writer_bell.queued.load(Ordering::Relaxed) && Instant::now() < until {
                std::hint::spin_loop();
            }
            return;
        }
        // Of callers that all wait for this group nobody comes any more: silence that is long for their pace says so.
        let silence = GATHER.mul_f64(SILENT_GAPS / self.rate);
        let (mut before, mut came_at) = (0.0, now);
        loop {
            std::thread::sleep(LOOK);
            #[allow(clippy::cast_precision_loss, reason = "some frames more or less")]
            let queued = shared.queue.lock().batch.frames.len() as f64;
            let looked_at = Instant::now();
            let is_silent = queued > 0.0 && queued <= before && looked_at - came_at >= silence;
            let is_over = looked_at - now >= GATHER || shared.closing.load(Ordering::Relaxed);
            if queued >= self.rate || is_silent || is_over {
                return;
            }
            if queued > before {
                (before, came_at) = (queued, looked_at);
            }
        }
    }

    fn pays(&self) -> bool {
        self.rate >= GATHER_FROM && self.group >= GROUP_FROM
    }

    fn note(&mut self, now: Instant, frames: u64) {
        let Some((then, before)) = self.last.replace((now, frames)) else { return };
        #[allow(clippy::cast_precision_loss, reason = "frames of one round")]
        let came = frames.saturating_sub(before) as f64;
        let rounds = now.duration_since(then).as_secs_f64() / GATHER.as_secs_f64();
        let rate = came / rounds.max(f64::EPSILON);
        // Who was silent for long begins anew.
        self.rate = if rounds > 10.0 { rate } else { self.rate + (rate - self.rate) * WEIGHT };
        self.group += (came - self.group) * WEIGHT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace_of(rounds: u64, frames: u64, round: Duration) -> Pace {
        let mut pace = Pace::default();
        let start = Instant::now();
        for n in 0..=rounds {
            pace.note(start + round * u32::try_from(n).unwrap(), n * frames);
        }
        pace
    }

    #[test]
    fn one_caller_that_waits_for_its_answers_is_never_held_up() {
        assert!(!pace_of(1000, 1, Duration::from_micros(80)).pays());
        assert!(!pace_of(1000, 1, Duration::from_micros(20)).pays(), "on a fast disk neither");
    }

    #[test]
    fn many_callers_are_and_only_while_they_come() {
        let mut pace = pace_of(100, 8, Duration::from_micros(150));
        assert!(pace.pays());
        let (then, frames) = pace.last.unwrap();
        pace.note(then + Duration::from_secs(1), frames + 1);
        assert!(!pace.pays());
    }
}
