//! Fail points: named instants at which a test makes the process die, err or wait.
//!
//! They exist in builds with debug assertions only; in a release build a hit is nothing. Armed by
//! `LAKEGATE_FAILPOINTS=name=action[@nth],…` in the environment, or by [`arm_failpoint`]. Actions: `kill` (the process
//! sends itself SIGKILL), `eio`, `enospc` (the hit returns that error), `sleep:MS`.

use std::io;

/// What a fail point does when it is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailAction {
    /// The process is killed at once, as by `kill -9`.
    Kill,
    /// The hit returns an I/O error.
    Eio,
    /// The hit returns "no space left on device".
    Enospc,
    /// The hit takes so many milliseconds.
    Sleep(u64),
}

/// Declares that the named instant has come.
///
/// # Errors
/// The one that a test has armed here; none in a release build.
#[inline]
pub fn hit_failpoint(name: &str) -> io::Result<()> {
    #[cfg(debug_assertions)]
    return armed::hit(name);
    #[cfg(not(debug_assertions))]
    {
        let _ = name;
        Ok(())
    }
}

/// Arms a fail point to act at its `nth` hit from now (1 is the next).
pub fn arm_failpoint(name: &str, action: FailAction, nth: u64) {
    #[cfg(debug_assertions)]
    armed::arm(name, action, nth);
    #[cfg(not(debug_assertions))]
    let _ = (name, action, nth);
}

/// Disarms all fail points.
pub fn disarm_failpoints() {
    #[cfg(debug_assertions)]
    armed::disarm();
}

#[cfg(debug_assertions)]
mod armed {
    use std::collections::HashMap;
    use std::io;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use parking_lot::Mutex;

    use super::FailAction;

    struct Arming {
        action: FailAction,
        hits_left: u64,
    }

    static ANY: AtomicBool = AtomicBool::new(false);
    static POINTS: LazyLock<Mutex<HashMap<String, Arming>>> = LazyLock::new(|| Mutex::new(from_environment()));
    static READ: LazyLock<()> = LazyLock::new(|| {
        let armed = !POINTS.lock().is_empty();
        ANY.store(armed, Ordering::SeqCst);
    });

    fn from_environment() -> HashMap<String, Arming> {
        let text = std::env::var("LAKEGATE_FAILPOINTS").unwrap_or_default();
        text.split(',').filter_map(parse).collect()
    }

    fn parse(text: &str) -> Option<(String, Arming)> {
        let (name, rest) = text.split_once('=')?;
        let (action, nth) = rest.split_once('@').unwrap_or((rest, "1"));
        let action = match action {
            "kill" => FailAction::Kill,
            "eio" => FailAction::Eio,
            "enospc" => FailAction::Enospc,
            other => FailAction::Sleep(other.strip_prefix("sleep:")?.parse().ok()?),
        };
        Some((name.to_owned(), Arming { action, hits_left: nth.parse().ok()? }))
    }

    pub(super) fn arm(name: &str, action: FailAction, nth: u64) {
        POINTS.lock().insert(name.to_owned(), Arming { action, hits_left: nth });
        LazyLock::force(&READ);
        ANY.store(true, Ordering::SeqCst);
    }

    pub(super) fn disarm() {
        POINTS.lock().clear();
        LazyLock::force(&READ);
        ANY.store(false, Ordering::SeqCst);
    }

    pub(super) fn hit(name: &str) -> io::Result<()> {
        LazyLock::force(&READ);
        if !ANY.load(Ordering::Relaxed) {
            return Ok(());
        }
        let action = {
            let mut points = POINTS.lock();
            let Some(arming) = points.get_mut(name) else { return Ok(()) };
            arming.hits_left = arming.hits_left.saturating_sub(1);
            if arming.hits_left > 0 {
                return Ok(());
            }
            let action = arming.action;
            points.remove(name);
            action
        };
        match action {
            FailAction::Kill => {
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                loop {
                    std::thread::park();
                }
            }
            FailAction::Eio => Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())),
            FailAction::Enospc => Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())),
            FailAction::Sleep(ms) => {
                std::thread::sleep(std::time::Duration::from_millis(ms));
                Ok(())
            }
        }
    }
}
