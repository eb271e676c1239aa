//! Clock, randomness, disk and fail points as seams: each real, and each replaceable by one that a test or a
//! simulation commands. No word of the domain lives here.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        reason = "a failed test is a panic"
    )
)]

mod clock;
pub mod disk;
mod failpoint;
mod random;
mod realtime;

pub use clock::{Clock, ManualClock, SystemClock};
pub use disk::{DirLock, Disk, DiskFile, Fault, FaultyDisk, MemDisk, OpKind, RealDisk};
pub use failpoint::{FailAction, arm_failpoint, disarm_failpoints, hit_failpoint};
pub use random::{Random, SeededRandom, SystemRandom};
pub use realtime::{SchedulingClass, set_aside, set_realtime};
