//! What a lake is opened with.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use lakegate_env::{Clock, Random};
use lakegate_model::LogId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::catalog::Catalog;
use crate::warehouse::Warehouse;

/// Who writes: one log's one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// Whose positions are committed.
    pub log: LogId,
    /// Which partition of it; 0 for the embedded log.
    pub partition: u32,
    /// Grows each time that the log is opened; a smaller one is fenced off.
    pub epoch: u64,
    /// This run of the process.
    pub instance: Uuid,
    /// The machine's name, for people.
    pub node: String,
}

/// How data files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Snappy.
    Snappy,
    /// Zstandard, level 1.
    #[default]
    Zstd,
    /// LZ4, raw blocks.
    Lz4,
    /// Gzip.
    Gzip,
    /// None.
    None,
}

impl Compression {
    /// The codec's name in `write.parquet.compression-codec`.
    pub(crate) fn table_property(self) -> &'static str {
        match self {
            Self::Snappy => "snappy",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
            Self::None => "uncompressed",
        }
    }
}

/// A compression's name that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a compression; use snappy, zstd, lz4, gzip or none")]
pub struct CompressionError(pub String);

impl std::str::FromStr for Compression {
    type Err = CompressionError;
    fn from_str(text: &str) -> Result<Self, CompressionError> {
        Ok(match text {
            "snappy" => Self::Snappy,
            "zstd" => Self::Zstd,
            "lz4" | "lz4_raw" => Self::Lz4,
            "gzip" => Self::Gzip,
            "none" | "uncompressed" => Self::None,
            other => return Err(CompressionError(other.to_owned())),
        })
    }
}

/// Where rows are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// On a thread that may block.
    #[default]
    BlockingThreads,
    /// On the caller's: for simulations, which have no threads.
    Inline,
}

/// Waits between two attempts, as a seam.
pub trait Pause: Send + Sync + 'static {
    /// Comes back after so long.
    fn pause(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Waits by tokio's timer.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioPause;

impl Pause for TokioPause {
    fn pause(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(time))
    }
}

/// How tables are looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Care {
    /// How many snapshots a new table keeps. At least 2.
    pub snapshots_keep: usize,
    /// Whether small files are made larger ones without being asked.
    pub compact: bool,
    /// How many bytes of small files one compaction takes, at most.
    pub compact_bytes: u64,
}

impl Default for Care {
    fn default() -> Self {
        Self { snapshots_keep: crate::schema::DEFAULT_SNAPSHOTS_KEEP, compact: true, compact_bytes: 64 << 20 }
    }
}

/// What a lake is opened with.
#[derive(Clone)]
pub struct LakeOptions {
    /// Where tables' files lie; the catalog's own.
    pub warehouse: Warehouse,
    /// Who says which state is a table's newest.
    pub catalog: Arc<dyn Catalog>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// The wait between two attempts of a commit.
    pub pause: Arc<dyn Pause>,
    /// Who writes.
    pub writer: Writer,
    /// How new tables' files are compressed.
    pub compression: Compression,
    /// How large a data file is to become before the next is begun.
    pub target_file_bytes: u64,
    /// Where rows are encoded.
    pub offload: Offload,
    /// How often one call of `commit` tries, at most. At least 1.
    pub commit_attempts: u32,
}
