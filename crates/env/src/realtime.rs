//! The scheduling class of a thread.

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// Low among the real-time priorities: above every normal thread, below whatever the administrator thinks urgent.
const REALTIME_PRIORITY: u8 = 10;

/// How the operating system schedules a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedulingClass {
    /// Beside all other threads.
    Normal,
    /// Before all normal threads (`SCHED_FIFO`).
    Realtime,
}

impl SchedulingClass {
    /// The word for status and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Realtime => "realtime",
        }
    }
}

/// Puts the calling thread into the real-time class where that is permitted (`CAP_SYS_NICE` or `RLIMIT_RTPRIO`),
/// and says which class it has now. Such a thread must sleep whenever it has nothing to do: it is never interrupted
/// for a normal one.
#[must_use]
pub fn set_realtime() -> SchedulingClass {
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let Ok(value) = ThreadPriorityValue::try_from(REALTIME_PRIORITY) else { return SchedulingClass::Normal };
    match set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(value), policy) {
        Ok(()) => SchedulingClass::Realtime,
        Err(_) => SchedulingClass::Normal,
    }
}

/// How much later than others: a third of a core where both want it, all of it where nobody else does.
const ASIDE_NICE: i32 = 5;

/// Puts the calling thread behind the others: for long work beside which short work must be answered at once.
pub fn set_aside() {
    // Only a system that has no such thing refuses, and then all threads are alike.
    let _ = rustix::process::nice(ASIDE_NICE);
}
