//! Prepared statements, as long as their clients use them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use parking_lot::Mutex;
use tonic::Status;
use uuid::Uuid;

/// The most that are kept; past it, the one that was used longest ago goes.
const KEPT_MAX: usize = 1000;
/// One that nobody used for so long is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// All of them.
#[derive(Default)]
pub(super) struct Prepared(Mutex<HashMap<Uuid, One>>);

/// One statement.
#[derive(Clone)]
pub(super) struct One {
    /// Who made it.
    owner: Option<String>,
    pub(super) sql: String,
    /// Values of its parameters; each row is one execution.
    pub(super) values: Vec<RecordBatch>,
    used: Instant,
}

impl Prepared {
    pub(super) fn add(&self, owner: Option<String>, sql: String) -> Uuid {
        let mut all = self.0.lock();
        all.retain(|_, one| one.used.elapsed() < IDLE_MAX);
        if all.len() >= KEPT_MAX
            && let Some(oldest) = all.iter().min_by_key(|(_, one)| one.used).map(|(id, _)| *id)
        {
            all.remove(&oldest);
        }
        let id = Uuid::new_v4();
        all.insert(id, One { owner, sql, values: Vec::new(), used: Instant::now() });
        id
    }

    pub(super) fn get(&self, owner: Option<&str>, handle: &[u8]) -> Result<One, Status> {
        let mut all = self.0.lock();
        let found = Uuid::from_slice(handle).ok().and_then(|id| all.get_mut(&id));
        let found = found.filter(|one| one.owner.as_deref() == owner);
        let found = found.ok_or_else(|| Status::not_found("there is no such prepared statement (any more)"))?;
        found.used = Instant::now();
        Ok(found.clone())
    }

    pub(super) fn bind(&self, owner: Option<&str>, handle: &[u8], values: Vec<RecordBatch>) -> Result<(), Status> {
        self.get(owner, handle)?;
        let mut all = self.0.lock();
        if let Some(one) = Uuid::from_slice(handle).ok().and_then(|id| all.get_mut(&id)) {
            one.values = values;
        }
        Ok(())
    }

    pub(super) fn close(&self, owner: Option<&str>, handle: &[u8]) {
        if self.get(owner, handle).is_ok()
            && let Ok(id) = Uuid::from_slice(handle)
        {
            self.0.lock().remove(&id);
        }
    }
}
