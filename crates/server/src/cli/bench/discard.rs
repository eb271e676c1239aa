//! A ClickHouse that keeps nothing: it tells a version and the columns of the table that it was told to make, and takes
//! inserts as fast as they come, so that what is measured is ours.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::Failure;

/// Ended with this value.
pub(crate) struct Discard {
    pub(crate) url: String,
    /// When inserts came, and what was in them, while `listens` is set.
    pub(crate) inserts: mpsc::UnboundedReceiver<(Instant, Bytes)>,
    pub(crate) listens: Arc<AtomicBool>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    listens: Arc<AtomicBool>,
    inserts: mpsc::UnboundedSender<(Instant, Bytes)>,
    columns: std::sync::Mutex<String>,
}

impl Discard {
    /// Starts it, on a thread of its own.
    pub(crate) fn start() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let url = format!("http://{}", listener.local_addr()?);
        let (sender, inserts) = mpsc::unbounded_channel();
        let listens = Arc::new(AtomicBool::new(false));
        let shared =
            Arc::new(Shared { listens: listens.clone(), inserts: sender, columns: std::sync::Mutex::default() });
        runtime.spawn(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let shared = shared.clone();
                let answer = service_fn(move |request| answer(shared.clone(), request));
                let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer);
                tokio::spawn(async move {
                    let _ = served.await;
                });
            }
        });
        Ok(Self { url, inserts, listens, runtime: Some(runtime) })
    }
}

impl Drop for Discard {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_insert = request.uri().query().is_some_and(|query| query.contains("INSERT"));
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = if is_insert {
        if shared.listens.load(Ordering::Relaxed) {
            let _ = shared.inserts.send((Instant::now(), body));
        }
        String::new()
    } else {
        let statement = String::from_utf8_lossy(&body);
        let mut columns = shared.columns.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if statement.starts_with("CREATE TABLE") {
            *columns = columns_of(&statement);
        }
        match () {
            () if statement.starts_with("SELECT version()") => "26.1.1.1\n".to_owned(),
            () if statement.contains("system.columns") => columns.clone(),
            () => String::new(),
        }
    };
    Ok(Response::new(Full::new(Bytes::from(text))))
}

/// The columns of a `CREATE TABLE`, as the server would list them.
fn columns_of(statement: &str) -> String {
    let inner = statement.split_once('(').and_then(|(_, rest)| rest.split_once(") ENGINE"));
    let columns = inner.map_or("", |(columns, _)| columns).trim_start_matches('`');
    columns.split(", `").filter_map(|column| column.split_once("` ")).fold(String::new(), |mut all, (name, kind)| {
        all.push_str(&format!("{name}\t{kind}\n"));
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_told_as_they_were_made() {
        let statement = "CREATE TABLE IF NOT EXISTS `d`.`t` (`_key` String, `at` DateTime64(6, 'UTC'), `p` Nullable(Decimal(9, 2))) ENGINE = X() ORDER BY (`_key`)";
        assert_eq!(columns_of(statement), "_key\tString\nat\tDateTime64(6, 'UTC')\np\tNullable(Decimal(9, 2))\n");
    }
}
