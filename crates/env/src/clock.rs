//! Time as a seam.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Microseconds since 1970-01-01 UTC. May jump, also backwards: never order events by it.
    fn wall_us(&self) -> i64;
    /// Microseconds since an arbitrary instant. Never goes back.
    fn monotonic_us(&self) -> u64;
}

/// The system's clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn wall_us(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
        }
    }

    fn monotonic_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// A clock that stands until it is moved.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall: AtomicI64,
    monotonic: AtomicI64,
}

impl ManualClock {
    /// A clock that shows `wall_us`.
    #[must_use]
    pub fn new(wall_us: i64) -> Self {
        Self { wall: AtomicI64::new(wall_us), monotonic: AtomicI64::new(0) }
    }

    /// Moves both clocks forward.
    pub fn advance_us(&self, us: i64) {
        self.wall.fetch_add(us, Ordering::SeqCst);
        self.monotonic.fetch_add(us.max(0), Ordering::SeqCst);
    }

    /// Moves the wall clock alone, also backwards.
    pub fn jump_wall_us(&self, us: i64) {
        self.wall.fetch_add(us, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall_us(&self) -> i64 {
        self.wall.load(Ordering::SeqCst)
    }

    fn monotonic_us(&self) -> u64 {
        u64::try_from(self.monotonic.load(Ordering::SeqCst)).unwrap_or(0)
    }
}
