//! `lakegate tail`: a stream's durable records as they come.

use clap::Args;

use super::client::{Client, ClientError, ServerAddress};
use super::exit::Exit;
use super::output::print;
use super::status::fail;

/// What to follow.
#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    /// The stream
    stream: String,
    /// Where to begin: `latest`, `earliest` (the oldest that the log has), or at an offset of the log; older records are in
    /// the tables, and SQL reads them
    #[arg(long, default_value = "latest", value_parser = parse_from)]
    from: String,
    /// Of one tenant only
    #[arg(long)]
    tenant: Option<String>,
    /// End when so many records were printed
    #[arg(long, short = 'n')]
    limit: Option<u64>,
    #[command(flatten)]
    address: ServerAddress,
}

fn parse_from(text: &str) -> Result<String, String> {
    let known = text == "latest" || text == "earliest" || text.parse::<u64>().is_ok();
    if known { Ok(text.to_owned()) } else { Err("write an offset, `earliest` or `latest`".to_owned()) }
}

pub(crate) async fn run(args: TailArgs) -> Exit {
    match follow(&args).await {
        Ok(()) => Exit::Done,
        Err(e) => fail(&e),
    }
}

async fn follow(args: &TailArgs) -> Result<(), ClientError> {
    let encode = |text: &str| {
        text.bytes()
            .map(|b| {
                if b.is_ascii_alphanumeric() || b == b'-' || b == b'_' {
                    char::from(b).to_string()
                } else {
                    format!("%{b:02X}")
                }
            })
            .collect::<String>()
    };
    let mut path = format!("/api/feeds/{}?from={}", encode(&args.stream), args.from);
    if let Some(tenant) = &args.tenant {
        path += &format!("&tenant={}", encode(tenant));
    }
    if let Some(limit) = args.limit {
        path += &format!("&limit={limit}");
    }
    let mut response = Client::new(&args.address)?.stream(&path, "application/x-ndjson").await?;
    // JSON escapes control characters itself, so that the lines are safe for a terminal as they are.
    let mut partial = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|e| ClientError::Unreadable(e.to_string()))? {
        partial.extend_from_slice(&piece);
        let Some(end) = partial.iter().rposition(|b| *b == b'\n') else { continue };
        let rest = partial.split_off(end + 1);
        print(&String::from_utf8_lossy(&partial));
        partial = rest;
    }
    Ok(())
}
