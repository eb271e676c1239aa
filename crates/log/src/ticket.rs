//! Waiting for durability.
//!
//! Everything that is queued between two writes is one group, and shares one list of waiters: when the group's sync
//! has returned, exactly these are woken, once each.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use parking_lot::Mutex;

use crate::error::LogError;

/// Those who wait for one group.
#[derive(Default)]
pub(crate) struct Group(Mutex<GroupState>);

#[derive(Default)]
struct GroupState {
    failed: Option<LogError>,
    waiters: Vec<(u64, Waker)>,
}

impl Group {
    /// Wakes those whose records are below `durable_offset`. To be called after the offset was published.
    pub(crate) fn wake_below(&self, durable_offset: u64) {
        let woken = {
            let waiters = &mut self.0.lock().waiters;
            if waiters.iter().all(|(end, _)| *end <= durable_offset) {
                std::mem::take(waiters)
            } else {
                waiters.extract_if(.., |(end, _)| *end <= durable_offset).collect()
            }
        };
        for (_, waker) in woken {
            waker.wake();
        }
    }

    /// Tells all that wait, and all that will, that their records will not be acknowledged.
    pub(crate) fn fail(&self, error: &LogError) {
        let woken = {
            let state = &mut *self.0.lock();
            state.failed.get_or_insert_with(|| error.clone());
            std::mem::take(&mut state.waiters)
        };
        for (_, waker) in woken {
            waker.wake();
        }
    }
}

/// The receipt of an append: which offsets its records have, and a way to wait until they are durable.
#[derive(Clone)]
pub struct Ticket {
    /// The offset of the first record.
    pub first_offset: u64,
    /// How many records.
    pub records: u32,
    pub(crate) group: Arc<Group>,
    pub(crate) durable: Arc<AtomicU64>,
}

impl Ticket {
    /// The offset after the last record.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.first_offset + u64::from(self.records)
    }

    /// Waits until the records are durable. The error says that they were not acknowledged: whether they survive is
    /// unknown until the log is opened again.
    pub fn durable(&self) -> Durable {
        Durable {
            end: self.next_offset(),
            group: Arc::clone(&self.group),
            durable: Arc::clone(&self.durable),
            registered: None,
        }
    }

    /// As [`Ticket::durable`], for a thread that may block.
    ///
    /// # Errors
    /// The log has stopped before these records were synced.
    pub fn wait_durable(&self) -> Result<(), LogError> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut durable = self.durable();
        loop {
            match Pin::new(&mut durable).poll(&mut context) {
                Poll::Ready(outcome) => return outcome,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("first_offset", &self.first_offset)
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Resolves when the records of a [`Ticket`] are durable, or will never be acknowledged.
#[must_use = "nothing is waited for until this is awaited"]
pub struct Durable {
    end: u64,
    group: Arc<Group>,
    durable: Arc<AtomicU64>,
    /// The waker that is in the group's list.
    registered: Option<Waker>,
}

impl Future for Durable {
    type Output = Result<(), LogError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.durable.load(Ordering::Acquire) >= this.end {
            return Poll::Ready(Ok(()));
        }
        let mut state = this.group.0.lock();
        // Once more under the lock: whoever publishes takes it afterwards, and then finds this waiter.
        if this.durable.load(Ordering::Acquire) >= this.end {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = &state.failed {
            return Poll::Ready(Err(error.clone()));
        }
        if !this.registered.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            this.registered = Some(context.waker().clone());
            state.waiters.push((this.end, context.waker().clone()));
        }
        Poll::Pending
    }
}
