//! `lakegate config`: checks, shows and describes configurations without starting anything.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::exit::Exit;
use super::output::{note, print};
use crate::config::{Config, Flags, Inputs, Problems, ShowWhat, schema_text, show};

/// `lakegate config …`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether a file can be used; exits with 78 and every problem where it cannot
    #[command(after_help = "Example:\n  lakegate config check lakegate.json")]
    Check {
        /// The configuration file
        file: PathBuf,
        /// Leave the environment variables LAKEGATE__… out of it
        #[arg(long)]
        no_environment: bool,
    },
    /// Print the settings as they are, secrets masked
    #[command(
        after_help = "Examples:\n  lakegate config show --effective --origin\n  lakegate config show --config lakegate.json"
    )]
    Show(ShowArgs),
    /// Print the JSON Schema of the file, for editors
    #[command(after_help = "Example:\n  lakegate config schema > config.schema.json")]
    Schema,
}

/// What to show.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The configuration file
    #[arg(long, env = "LAKEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// The defaults too
    #[arg(long)]
    effective: bool,
    /// One setting a line, with where it comes from
    #[arg(long)]
    origin: bool,
}

pub(crate) fn run(command: ConfigCommand) -> Exit {
    match command {
        ConfigCommand::Check { file, no_environment } => check(&file, no_environment),
        ConfigCommand::Show(args) => match load(args.config.as_deref(), Flags::default()) {
            Ok(config) => {
                print(&show(&config, ShowWhat { effective: args.effective, origin: args.origin }));
                Exit::Done
            }
            Err(exit) => exit,
        },
        ConfigCommand::Schema => {
            print(&schema_text());
            Exit::Done
        }
    }
}

fn check(file: &Path, no_environment: bool) -> Exit {
    let inputs = Inputs::read(Some(file), Flags::default()).map(|mut inputs| {
        if no_environment {
            inputs.environment.clear();
        }
        inputs
    });
    match inputs.and_then(Config::load) {
        Ok(config) => {
            for warning in &config.warnings {
                note(&format!("warning: {warning}"));
            }
            print(&format!("{} is right\n", file.display()));
            Exit::Done
        }
        Err(problems) => refuse(&problems),
    }
}

/// Loads a configuration, or says what is wrong with it.
pub(crate) fn load(file: Option<&Path>, flags: Flags) -> Result<Config, Exit> {
    Inputs::read(file, flags).and_then(Config::load).map_err(|problems| refuse(&problems))
}

fn refuse(problems: &Problems) -> Exit {
    let count = problems.0.len();
    note(&problems.to_string());
    note(&format!("{count} problem{} in the configuration; nothing was started", if count == 1 { "" } else { "s" }));
    Exit::Config
}
