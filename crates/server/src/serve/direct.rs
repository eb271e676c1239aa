//! The rooms without listeners: for a command that works on the data folder itself.

use std::sync::Arc;

use lakegate_access::Access;
use lakegate_env::Clock;
use lakegate_ingest::Gate;
use lakegate_sources::files::Imports;

use super::ServeError;
use super::imports::{self, Also};
use super::open::{Opened, open};
use crate::config::Config;

/// Opens the data folder, runs `work` on its gate, brings everything into the lake and closes the folder.
///
/// # Errors
/// The folder does not open: another process has it, or something in it is wrong.
pub(crate) async fn with_gate<T>(
    config: &Config,
    work: impl AsyncFnOnce(&Gate, Arc<dyn Clock>) -> T,
) -> Result<T, ServeError> {
    let Opened { clock, log, gate, lock, .. } = open(config).await?;
    let flushing = {
        let gate = gate.clone();
        tokio::spawn(async move { gate.run().await })
    };
    let result = work(&gate, clock).await;
    gate.close("the command is ending");
    for (table, error) in gate.flush_all().await {
        tracing::warn!(%table, %error, "could not be committed; it stays in the log and is committed after the next start");
    }
    flushing.abort();
    let _ = tokio::task::spawn_blocking(move || log.close()).await;
    drop(lock);
    Ok(result)
}

/// The same, with the imports of the folder.
///
/// # Errors
/// As [`with_gate`].
pub(crate) async fn with_imports<T>(
    config: &Config,
    also: Also,
    work: impl AsyncFnOnce(&Imports) -> T,
) -> Result<T, ServeError> {
    with_gate(config, async |gate: &Gate, clock| {
        // Who may use the data folder needs no keys.
        let imports = imports::open(config, gate, &Access::open_to_all(), clock, also)?;
        let result = work(&imports).await;
        imports.stop().await;
        Ok(result)
    })
    .await?
}
