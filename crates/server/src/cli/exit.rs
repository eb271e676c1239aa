//! Exit codes, the same for every command.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what it was asked.
    Done,
    /// It did not, or found something wrong.
    Failure,
    /// Not now: the server is away or has no room. Trying again later may help.
    Temporary,
    /// The configuration cannot be used.
    Config,
    /// Ctrl-C.
    Interrupted,
}

impl From<Exit> for ExitCode {
    /// 2 (wrong usage) comes from the parser of the command line itself.
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failure => 1,
            Exit::Temporary => 75,
            Exit::Config => 78,
            Exit::Interrupted => 130,
        })
    }
}
