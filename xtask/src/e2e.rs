//! The end-to-end tests: the real binary, real clients, other engines as judges. Written in Python (`tests/e2e`), run
//! by pytest in an environment of its own under `~/.cache/lakegate`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo;

/// Builds the binary.
///
/// As the Rust tests do: built by itself it would take other features of the dependencies, and so all of them anew.
pub(crate) fn build() -> Result<(), String> {
    crate::run(&mut cargo(&["test", "--workspace", "--locked", "--no-run"]))
}

/// Prepares the environment and runs the tests with the binary that was built.
pub(crate) fn run(root: &Path, filter: Option<&str>) -> Result<(), String> {
    let python = environment(root)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let mut tests = Command::new(python);
    tests.args(["-m", "pytest", "-q", "--color=no", "-ra", "tests/e2e"]);
    tests.env("LAKEGATE_BIN", target.join("debug/lakegate")).env("PYTHONDONTWRITEBYTECODE", "1");
    if let Some(filter) = filter {
        tests.args(["-k", filter]);
    }
    crate::run(&mut tests)
}

/// A Python with the pinned packages of `tests/e2e/requirements.txt`; made once for each version of that list.
fn environment(root: &Path) -> Result<PathBuf, String> {
    let list = std::fs::read_to_string(root.join("tests/e2e/requirements.txt")).map_err(|error| error.to_string())?;
    let mark = list
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let home = std::env::var_os("HOME").map_or_else(|| root.join("target"), PathBuf::from);
    let folder = home.join(".cache/lakegate").join(format!("python-{mark:016x}"));
    let python = folder.join("bin/python");
    if folder.join("ready").exists() {
        return Ok(python);
    }
    crate::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let packages =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "tests/e2e/requirements.txt"];
    crate::run(Command::new(&python).args(packages))?;
    std::fs::write(folder.join("ready"), "").map_err(|error| error.to_string())?;
    Ok(python)
}
