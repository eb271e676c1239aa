//! The reference of the command line, made from the command line's own help.

use std::fmt::Write as _;

use clap::CommandFactory;

use crate::cli::Cli;
use crate::config::tests::assert_generated;

const INTRODUCTION: &str = "\
# Command line reference

Generated from the commands' own help; `UPDATE_GENERATED=1 cargo test -p lakegate-server drift` writes it anew.

Data goes to the standard output, everything else to the standard error. Exit codes: 0 done, 1 failed or found
something wrong, 2 wrong usage, 75 not now (the server is away or has no room), 78 wrong configuration, 130 Ctrl-C.
Colours are off when `NO_COLOR` is set or the output is not a terminal.
";

fn write_command(text: &mut String, path: &str, command: &mut clap::Command) {
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    let _ = write!(text, "\n## `{path}`\n\n```text\n{}\n```\n", help.join("\n"));
    let names: Vec<String> =
        command.get_subcommands().map(|c| c.get_name().to_owned()).filter(|n| n != "help").collect();
    for name in names {
        if let Some(sub) = command.find_subcommand_mut(&name) {
            write_command(text, &format!("{path} {name}"), sub);
        }
    }
}

#[test]
fn drift_of_the_command_line_reference_is_seen() {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut text = INTRODUCTION.to_owned();
    write_command(&mut text, "lakegate", &mut command);
    assert_generated("cli.md", &text);
}
