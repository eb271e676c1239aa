//! Sets the queries up over lake and memtables.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use lakegate_lake::Lake;
use lakegate_memtable::Memtables;
use lakegate_query::{QueryEngine, QueryLimits, QueryOptions};

use super::{ServeError, folder};
use crate::config::Config;

/// Makes the engine, with an empty folder for what its sorts and joins cannot hold in memory.
pub(super) fn open(config: &Config, lake: &Lake, memtables: Arc<Memtables>) -> Result<QueryEngine, ServeError> {
    let limits = &config.settings.limits.sql;
    let spill = config.data_dir().join("query-spill");
    empty(&spill)?;
    QueryEngine::new(QueryOptions {
        lake: Arc::new(lake.clone()),
        memtables,
        memory_limit_bytes: limits.memory.as_usize(),
        default_limits: QueryLimits {
            timeout: limits.timeout.get(),
            max_rows: limits.rows,
            max_result_bytes: limits.result_bytes_max.bytes(),
        },
        concurrent: usize::try_from(limits.concurrent).unwrap_or(usize::MAX),
        target_partitions: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        spill_dir: Some(spill),
    })
    .map_err(|e| ServeError::Query(e.to_string()))
}

/// Removes what a process left behind that was killed in the middle of a query.
fn empty(dir: &Path) -> Result<(), ServeError> {
    match std::fs::remove_dir_all(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(ServeError::Folder { dir: dir.to_owned(), source });
        }
        _ => {}
    }
    folder::make(dir)
}
