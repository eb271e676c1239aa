//! What is counted of requests.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use metrics::{Counter, Histogram, counter, histogram};

use super::route::Route;

/// The statuses that are answered here; others are counted together.
const STATUSES: [u16; 14] = [200, 202, 400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 503, 0];

/// Requests answered so far, and the time that they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// How many.
    pub count: u64,
    /// All their time together, in microseconds.
    pub micros: u64,
}

/// Figures of the HTTP way in.
#[derive(Debug)]
pub struct Figures {
    paths: [PathFigures; 4],
    count: AtomicU64,
    micros: AtomicU64,
}

/// The handles of one path; made once, so that a request looks nothing up.
#[derive(Debug)]
struct PathFigures {
    path: &'static str,
    seconds: Histogram,
    /// By status; made when it is first seen.
    requests: [OnceLock<Counter>; STATUSES.len()],
}

impl PathFigures {
    fn new(route: &Route) -> Self {
        let path = route.pattern();
        let seconds = histogram!("lakegate_rest_request_seconds", "path" => path);
        Self { path, seconds, requests: [const { OnceLock::new() }; STATUSES.len()] }
    }

    fn note(&self, status: StatusCode, took: Duration) {
        self.seconds.record(took);
        let at = STATUSES.iter().position(|known| *known == status.as_u16()).unwrap_or(STATUSES.len() - 1);
        let Some(place) = self.requests.get(at) else { return };
        let make =
            || counter!("lakegate_rest_requests_total", "path" => self.path, "status" => status.as_u16().to_string());
        place.get_or_init(make).increment(1);
    }
}

impl Figures {
    pub(crate) fn new() -> Self {
        let stream = Route::Stream(String::new());
        let paths = [&Route::Event, &Route::EventBatch, &Route::Document, &stream].map(PathFigures::new);
        Self { paths, count: AtomicU64::new(0), micros: AtomicU64::new(0) }
    }

    pub(crate) fn note(&self, route: &Route, status: StatusCode, took: Duration) {
        let at = match route {
            Route::Event => 0,
            Route::EventBatch => 1,
            Route::Document => 2,
            Route::Stream(_) => 3,
        };
        if let Some(path) = self.paths.get(at) {
            path.note(status, took);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(0), Ordering::Relaxed);
    }

    /// Requests answered so far.
    #[must_use]
    pub fn requests(&self) -> Requests {
        Requests { count: self.count.load(Ordering::Relaxed), micros: self.micros.load(Ordering::Relaxed) }
    }
}
