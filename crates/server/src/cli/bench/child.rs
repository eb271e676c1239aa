//! The server under test: a process of its own, so that its processor time and memory are its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use super::Failure;

/// A running server, ended with this value.
pub(crate) struct Server {
    child: Child,
    pub(crate) grpc: String,
    pub(crate) http: String,
    folder: PathBuf,
}

fn free_port() -> Result<u16, Failure> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Server {
    /// Starts `lakegate serve` in an empty folder, with `settings` over the defaults.
    pub(crate) async fn start(folder: &Path, settings: &serde_json::Value) -> Result<Self, Failure> {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        let (grpc, http) = (free_port()?, free_port()?);
        let mut config = serde_json::json!({
            "node": { "data_dir": folder.join("data") },
            "ingestion": { "port": grpc, "http_port": http },
            "storage": { "warehouse": folder.join("data/warehouse") },
            "catalog": { "database": format!("sqlite://{}", folder.join("data/catalog.db").display()) },
        });
        merge(&mut config, settings);
        let file = folder.join("lakegate.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&config)?)?;
        let log = std::fs::File::create(folder.join("server.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--config").arg(&file).kill_on_drop(true);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        let mut server =
            Self { child, grpc: format!("127.0.0.1:{grpc}"), http: format!("http://127.0.0.1:{http}"), folder };
        server.wait_ready().await?;
        Ok(server)
    }

    async fn wait_ready(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!(
                    "the server ended with {status}; see {}",
                    self.folder.join("server.log").display()
                )
                .into());
            }
            if reqwest::get(format!("{}/readyz", self.http)).await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err("the server was not ready within 30 s".into())
    }

    /// The server's processor time so far, in nanoseconds.
    pub(crate) fn cpu_ns(&self) -> Result<u64, Failure> {
        let pid = self.child.id().ok_or("the server has ended")?;
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in brackets, may hold anything. Threads that have ended are in these two, unlike in those of tasks.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 =
            fields.get(11..13).unwrap_or_default().iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Ok(ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second()))
    }

    /// Waits until the server has nothing to do: what a flush leaves for the background is not part of a measurement.
    pub(crate) async fn settle(&self) -> Result<(), Failure> {
        const LOOK: Duration = Duration::from_millis(300);
        let until = std::time::Instant::now() + Duration::from_secs(20);
        let mut before = self.cpu_ns()?;
        while std::time::Instant::now() < until {
            tokio::time::sleep(LOOK).await;
            let now = self.cpu_ns()?;
            if now - before <= 20_000_000 {
                break;
            }
            before = now;
        }
        Ok(())
    }

    /// `host:port` of its HTTP.
    pub(crate) fn address(&self) -> String {
        self.http.trim_start_matches("http://").to_owned()
    }

    /// The most memory that the server ever had resident, in bytes.
    pub(crate) fn peak_memory(&self) -> Result<u64, Failure> {
        self.memory_of("VmHWM:")
    }

    /// The memory that it has resident, in bytes.
    pub(crate) fn memory(&self) -> Result<u64, Failure> {
        self.memory_of("VmRSS:")
    }

    fn memory_of(&self, name: &str) -> Result<u64, Failure> {
        let pid = self.child.id().ok_or("the server has ended")?;
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kib.ok_or_else(|| format!("/proc does not say {name}"))? * 1024)
    }

    /// One number by SQL.
    pub(crate) async fn count(&self, sql: &str) -> Result<u64, Failure> {
        let answer = reqwest::Client::new()
            .post(format!("{}/api/sql", self.http))
            .header("accept", "text/csv")
            .json(&serde_json::json!({ "sql": sql }))
            .send()
            .await?
            .error_for_status()?;
        let text = answer.text().await?;
        Ok(text.lines().nth(1).ok_or("no row")?.trim().parse()?)
    }

    /// Brings everything into the lake, so that what comes next finds memory and segments that were used before.
    pub(crate) async fn flush(&self) -> Result<(), Failure> {
        reqwest::Client::new().post(format!("{}/api/flush", self.http)).send().await?.error_for_status()?;
        Ok(())
    }

    /// Rows that are not in the lake yet.
    pub(crate) async fn waiting(&self) -> Result<u64, Failure> {
        let status: serde_json::Value = reqwest::get(format!("{}/api/status", self.http)).await?.json().await?;
        let streams = status.get("streams").and_then(|s| s.as_array()).cloned().unwrap_or_default();
        Ok(streams.iter().filter_map(|s| s.get("memtable_records")?.as_u64()).sum())
    }

    /// Ends the server and removes its folder.
    pub(crate) async fn end(mut self) -> Result<(), Failure> {
        self.child.kill().await?;
        std::fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}

fn merge(into: &mut serde_json::Value, more: &serde_json::Value) {
    match (into, more) {
        (serde_json::Value::Object(into), serde_json::Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key.clone()).or_insert(serde_json::Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

/// This thread's processor time, in nanoseconds (proc(5), schedstat).
pub(crate) fn thread_cpu_ns() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split_whitespace().next().ok_or("no schedstat")?.parse()?)
}
