//! `lakegate flush`: brings what is in memory into the lake now.

use clap::Args;

use super::client::{Client, ClientError, ServerAddress};
use super::exit::Exit;
use super::output::print;
use super::status::fail;

/// Which server.
#[derive(Debug, Args)]
pub(crate) struct FlushArgs {
    #[command(flatten)]
    address: ServerAddress,
}

pub(crate) async fn run(args: FlushArgs) -> Exit {
    match flush(&args).await {
        Ok(offset) => {
            print(&format!("everything below offset {offset} is in its tables\n"));
            Exit::Done
        }
        Err(e) => fail(&e),
    }
}

async fn flush(args: &FlushArgs) -> Result<u64, ClientError> {
    let answer = Client::new(&args.address)?.post("/api/flush").await?;
    answer
        .get("committed_offset")
        .and_then(serde_json::Value::as_u64)
        .ok_or_else(|| ClientError::Unreadable("no committed_offset".to_owned()))
}
