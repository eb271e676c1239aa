//! `lakegate version`.

use super::exit::Exit;
use super::output::print;

/// The version of this build.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn run(json: bool) -> Exit {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    print(&if json {
        format!(
            "{}\n",
            serde_json::json!({ "name": "lakegate", "version": VERSION, "profile": profile, "target": target })
        )
    } else {
        format!("lakegate {VERSION} ({profile}, {target})\n")
    });
    Exit::Done
}
