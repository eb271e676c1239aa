//! Files: imports as jobs, folders that are watched, and files that are staged or uploaded.
//!
//! A job lists its files, reads several at once, and gives their rows to the gate, which commits them together with
//! how far the file was read. Promises: a job that was answered goes on after a crash; a file is absorbed once, whoever
//! brings it how often; errors name file and row, and harm no other file. Refuses: rules about rows (they are the
//! gate's), and places that the configuration does not allow (`lakegate-places` decides).

mod aside;
mod credentials;
mod imports;
mod job;
mod journal;
mod one;
mod request;
mod rows;
mod run;
mod watch;

pub use imports::{Imports, ImportsOptions, StartError};
pub use job::{FileChoice, JobKind, JobProblem, JobState, JobView};
pub use request::{After, Asker, ImportRequest, RequestError, stream_for};
pub use rows::{FileOptions, FileRows, FileRowsError};
pub use watch::{StagingOptions, WatchView};
