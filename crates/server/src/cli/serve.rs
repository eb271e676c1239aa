//! `lakegate serve`.

use std::path::PathBuf;

use clap::Args;
use lakegate_ingest::GateOpenError;

use super::config::load;
use super::exit::Exit;
use super::output::note;
use crate::config::Flags;
use crate::serve::{self, ServeError};

pub(crate) const EXAMPLES: &str = "\
Examples:
  lakegate serve
  lakegate serve --config lakegate.json
  lakegate serve --data-dir /srv/lakegate --port 8081 --http-port 3001
  LAKEGATE__INGESTION__FLUSH_INTERVAL=1s lakegate serve

Every setting can be set by the environment; see `lakegate config show --effective --origin`.";

/// Where settings come from.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The configuration file; without one all the defaults hold
    #[arg(long, short, env = "LAKEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// The folder of everything that the server keeps (node.data_dir)
    #[arg(long)]
    data_dir: Option<String>,
    /// The address to bind to (ingestion.bind)
    #[arg(long)]
    bind: Option<String>,
    /// The gRPC port (ingestion.port)
    #[arg(long)]
    port: Option<u16>,
    /// The HTTP port (ingestion.http_port)
    #[arg(long)]
    http_port: Option<u16>,
}

pub(crate) fn run(args: &ServeArgs) -> Exit {
    let flags =
        Flags { data_dir: args.data_dir.clone(), bind: args.bind.clone(), port: args.port, http_port: args.http_port };
    let config = match load(args.config.as_deref(), flags) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    match serve::run(config) {
        Ok(()) => Exit::Done,
        Err(e) => {
            note(&format!("error: {e}"));
            match e {
                ServeError::DataDirInUse { .. } | ServeError::Bind { .. } | ServeError::CatalogAway(_) => {
                    Exit::Temporary
                }
                ServeError::Gate(GateOpenError::Lake { .. }) => Exit::Temporary,
                ServeError::Interrupted => Exit::Interrupted,
                _ => Exit::Failure,
            }
        }
    }
}
