//! House rules that are checks: the crate graph is the one that `ARCHITECTURE.md` draws, files stay short, and nothing
//! half-done is left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of a source file, tests aside.
const FILE_LINES_MAX: usize = 500;
/// What no source file may hold, spelled so that this file does not.
const HALF_DONE: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("to", "do!("),
    concat!("un", "implemented!("),
];

/// Checks all rules; the error lists every breach.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let mut breaches = crate_graph(root)?;
    for file in sources(&root.join("crates")) {
        breaches.extend(check_file(root, &file)?);
    }
    if breaches.is_empty() { Ok(()) } else { Err(format!("house rules are broken:\n  {}", breaches.join("\n  "))) }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn check_file(root: &Path, path: &Path) -> Result<Vec<String>, String> {
    let text = read(path)?;
    let name = path.strip_prefix(root).unwrap_or(path).display().to_string();
    let mut breaches = Vec::new();
    let apart = ["/tests/", "/tests.rs", "/generated/", "_tests.rs", "/benches/", "/examples/"];
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().count();
    if lines > FILE_LINES_MAX && !apart.iter().any(|part| name.contains(part)) {
        breaches.push(format!("{name}: {lines} lines, at most {FILE_LINES_MAX}"));
    }
    for (number, line) in text.lines().enumerate() {
        if HALF_DONE.iter().any(|word| line.contains(word)) {
            breaches.push(format!("{name}:{}: half-done: {}", number + 1, line.trim()));
        }
    }
    Ok(breaches)
}

/// Compares the crates' dependencies on each other with the table in `ARCHITECTURE.md`, whose rows read
/// ``| `name` | job | `dependency` `dependency` | never |``.
fn crate_graph(root: &Path) -> Result<Vec<String>, String> {
    let drawn = drawn_graph(&read(&root.join("ARCHITECTURE.md"))?);
    let real = real_graph(root)?;
    let mut breaches = Vec::new();
    for name in drawn.keys().chain(real.keys()).collect::<BTreeSet<_>>() {
        let (drawn, real) = (drawn.get(name), real.get(name));
        if drawn != real {
            breaches.push(format!("crate {name}: ARCHITECTURE.md says {drawn:?}, Cargo.toml says {real:?}"));
        }
    }
    let longest = real.keys().map(|name| chain(&real, name)).max().unwrap_or_default();
    if longest > 6 {
        breaches.push(format!("the longest chain of crates has {longest}, at most 6"));
    }
    Ok(breaches)
}

type Graph = BTreeMap<String, BTreeSet<String>>;

fn drawn_graph(text: &str) -> Graph {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    cells
        .filter_map(|cells| match cells.as_slice() {
            ["", name, _, dependencies, _, ""] => Some((name.trim_matches('`').to_owned(), words(dependencies))),
            _ => None,
        })
        .collect()
}

fn words(cell: &str) -> BTreeSet<String> {
    cell.split_whitespace().map(|word| word.trim_matches('`').to_owned()).filter(|word| word != "–").collect()
}

fn real_graph(root: &Path) -> Result<Graph, String> {
    let mut graph = Graph::new();
    let crates = fs::read_dir(root.join("crates")).map_err(|error| error.to_string())?;
    for entry in crates.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let manifest = read(&entry.path().join("Cargo.toml"))?;
        let product = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        let own = |line: &str| line.strip_prefix("lakegate-")?.split(['.', ' ', '=']).next().map(str::to_owned);
        graph.insert(name, product.lines().filter_map(own).collect());
    }
    Ok(graph)
}

fn chain(graph: &Graph, name: &str) -> usize {
    1 + graph.get(name).into_iter().flatten().map(|next| chain(graph, next)).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_house_rules_hold() {
        check(&crate::root()).unwrap();
    }

    #[test]
    fn a_row_of_the_table_is_read_with_its_dependencies() {
        let graph = drawn_graph("| `log` | durable bytes | `env` `model` | arrow |\n| other | row |");
        assert_eq!(graph["log"], ["env", "model"].map(String::from).into());
    }
}
