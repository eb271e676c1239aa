//! `serve`: opens everything in the order that records flow, runs it, and closes it in the same order.
//!
//! disk, clock → log → lake → memtables → gate (replays the log) → queries → gRPC, HTTP. On SIGTERM or Ctrl-C the
//! server says first that it is not ready, then takes no more, answers what is under way, brings memory into the lake
//! as far as `limits.drain_timeout` allows, and closes the log. A second signal ends it at once; nothing that was
//! acknowledged is lost by that, it is replayed at the next start.

mod access;
mod consumers;
mod direct;
mod folder;
pub(crate) mod imports;
mod kafka;
mod open;
mod queries;
mod run;
mod upkeep;

pub(crate) use direct::{with_gate, with_imports};

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::Config;

pub(crate) use folder::make as make_folder;

/// Why the server did not start, or ended otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// No event loop.
    #[error("the system gives no threads: {0}")]
    Runtime(io::Error),
    /// Logs, traces or figures could not be set up.
    #[error("{0}")]
    Telemetry(String),
    /// Another process has the data folder.
    #[error("{dir} is in use by another lakegate; stop it, or choose another folder with --data-dir")]
    DataDirInUse {
        /// The folder.
        dir: PathBuf,
    },
    /// A folder cannot be made or used.
    #[error("{dir} cannot be used: {source}")]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A port is taken.
    #[error("{address} ({setting}) cannot be listened on: {source}; choose another with {flag}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The setting.
        setting: &'static str,
        /// The flag.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The write-ahead log does not open.
    #[error("the write-ahead log does not open: {0}")]
    Log(#[from] lakegate_log::OpenError),
    /// The warehouse does not open.
    #[error("the warehouse does not open: {0}")]
    Warehouse(String),
    /// The catalog cannot be reached.
    #[error("the catalog cannot be reached: {0}; start again when it can")]
    CatalogAway(String),
    /// The catalog does not open.
    #[error("the catalog does not open: {0}")]
    Catalog(String),
    /// The gate does not open.
    #[error("{0}")]
    Gate(#[from] lakegate_ingest::GateOpenError),
    /// The shared window of duplicates.
    #[error("{0}")]
    Redis(String),
    /// Who is let in cannot be told.
    #[error("{0}")]
    Access(String),
    /// Sinks and routes cannot be set up.
    #[error("sinks and routes cannot be set up: {0}")]
    Consumers(String),
    /// The queries cannot be set up.
    #[error("queries cannot be set up: {0}")]
    Query(String),
    /// A part ended by itself.
    #[error("{0}")]
    Broken(String),
    /// A second signal.
    #[error("ended at once by a second signal; what was acknowledged is replayed at the next start")]
    Interrupted,
}

/// Runs the server until it is told to end.
///
/// # Errors
/// It did not start, or a part of it broke.
pub(crate) fn run(config: Config) -> Result<(), ServeError> {
    // A memory image on disk would hold keys and payloads. Where the system refuses, its own limit stands.
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: rustix::process::getrlimit(rustix::process::Resource::Core).maximum,
    };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("lakegate")
        .build()
        .map_err(ServeError::Runtime)?;
    // What takes long lies behind what must be answered at once.
    let aside = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("lakegate-aside")
        .on_thread_start(lakegate_env::set_aside)
        .build()
        .map_err(ServeError::Runtime)?;
    let ended = runtime.block_on(run::run(config, aside.handle().clone()));
    // Threads that hang in a file system must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    aside.shutdown_timeout(std::time::Duration::from_secs(1));
    ended
}
