//! The real server, as a child process of the demo.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use crate::cli::client::{Client, ClientError, ServerAddress};

/// How long a server may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Why the demo's server is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServerError {
    /// It could not be started or stopped.
    #[error("the server could not be run: {0}")]
    Process(#[from] io::Error),
    /// It ended by itself.
    #[error("the server ended ({status}); its log is {log}:\n{tail}")]
    Ended { status: String, log: String, tail: String },
    /// It is not ready.
    #[error("the server was not ready within {within} s; its log is {log}")]
    NotReady { within: u64, log: String },
    /// The address is wrong.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// The demo's server: where it is, and the process while it runs.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) dir: PathBuf,
    pub(super) grpc_port: u16,
    pub(super) http: ServerAddress,
    http_port: u16,
    child: Option<Child>,
}

impl Server {
    /// Chooses free ports; starts nothing yet.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let (first, second) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let (grpc_port, http_port) = (first.local_addr()?.port(), second.local_addr()?.port());
        let http = ServerAddress::local(format!("http://127.0.0.1:{http_port}"));
        Ok(Self { dir: dir.to_owned(), grpc_port, http, http_port, child: None })
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// Starts the server and waits until it is ready; returns how long that took.
    pub(super) async fn start(&mut self) -> Result<Duration, ServerError> {
        let started = Instant::now();
        let log: File = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg("--config")
            .arg(self.dir.join("lakegate.json"))
            .args(["--port", &self.grpc_port.to_string(), "--http-port", &self.http_port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let child = self.child.insert(child);
        let client = Client::new(&self.http)?;
        while started.elapsed() < READY_WITHIN {
            if client.get("/readyz").await.is_ok() {
                return Ok(started.elapsed());
            }
            if let Some(status) = child.try_wait()? {
                let log = self.log_path();
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines.iter().rev().take(5).rev().copied().collect::<Vec<_>>().join("\n");
                return Err(ServerError::Ended { status: status.to_string(), log: log.display().to_string(), tail });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(ServerError::NotReady { within: READY_WITHIN.as_secs(), log: self.log_path().display().to_string() })
    }

    /// Ends the server as a power cut ends it: SIGKILL, nothing is flushed.
    pub(super) async fn kill(&mut self) -> Result<(), ServerError> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Ends the server as an operator ends it: SIGTERM, then it drains and commits.
    pub(super) async fn stop(&mut self) -> Result<(), ServerError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).map_err(io::Error::from)?;
        }
        if tokio::time::timeout(READY_WITHIN, child.wait()).await.is_err() {
            child.kill().await?;
        }
        Ok(())
    }
}
