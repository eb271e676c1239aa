//! What was noticed about a stream's records: nothing is changed or put aside silently.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use lakegate_model::Contract;
use parking_lot::Mutex;

use crate::shape::Marks;

/// Counts since the process began.
#[derive(Debug, Default)]
pub(crate) struct Noticed {
    sanitised: Mutex<BTreeMap<String, u64>>,
    rescued: AtomicU64,
    skewed: AtomicU64,
}

/// The same of one request, until it is known to be stored.
#[derive(Debug, Default)]
pub(crate) struct RequestNotes {
    sanitised: BTreeMap<usize, u64>,
    rescued: u64,
    skewed: u64,
}

impl RequestNotes {
    pub(crate) fn add(&mut self, marks: &Marks) {
        for column in &marks.sanitised {
            *self.sanitised.entry(*column).or_default() += 1;
        }
        self.rescued += u64::from(marks.rescued);
        self.skewed += u64::from(marks.skewed);
    }

    fn is_empty(&self) -> bool {
        self.sanitised.is_empty() && self.rescued == 0 && self.skewed == 0
    }
}

impl Noticed {
    /// Counts what one request brought.
    pub(crate) fn count(&self, notes: &RequestNotes, contract: &Contract, stream: &str) {
        if notes.is_empty() {
            return;
        }
        let counter = |kind: &'static str, count: u64| {
            metrics::counter!("lakegate_values_changed_total", "stream" => stream.to_owned(), "change" => kind)
                .increment(count);
        };
        let mut sanitised = self.sanitised.lock();
        for (column, count) in &notes.sanitised {
            let Some(column) = contract.columns.get(*column) else { continue };
            *sanitised.entry(column.name.clone()).or_default() += count;
            let (stream, field) = (stream.to_owned(), column.name.clone());
            metrics::counter!("lakegate_values_sanitised_total", "stream" => stream, "field" => field)
                .increment(*count);
        }
        drop(sanitised);
        self.rescued.fetch_add(notes.rescued, Ordering::Relaxed);
        self.skewed.fetch_add(notes.skewed, Ordering::Relaxed);
        counter("rescued", notes.rescued);
        counter("clock_skew", notes.skewed);
    }

    /// How many values of each column were made harmless.
    pub(crate) fn sanitised(&self) -> BTreeMap<String, u64> {
        self.sanitised.lock().clone()
    }

    /// How many values did not fit their columns and were kept beside the row.
    pub(crate) fn rescued(&self) -> u64 {
        self.rescued.load(Ordering::Relaxed)
    }

    /// How many events' times lay too far from the time of receipt.
    pub(crate) fn skewed(&self) -> u64 {
        self.skewed.load(Ordering::Relaxed)
    }
}
