//! The commands' way to a running server: HTTP, with errors that say what to do.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::StreamBody;
use hyper::body::Frame;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::Value;
use tokio_stream::wrappers::ReceiverStream;

use super::exit::Exit;
use super::output::plain;

/// Which server.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerAddress {
    /// The HTTP address of the server
    #[arg(long, env = "LAKEGATE_URL", hide_env_values = true, default_value = "http://127.0.0.1:3001")]
    pub(crate) url: String,
    /// A file with the API key or token to show; else the environment variable LAKEGATE_TOKEN holds it
    #[arg(long)]
    pub(crate) token_file: Option<PathBuf>,
    /// A file of the certificates (PEM) that sign the server's, where they are your own
    #[arg(long, env = "LAKEGATE_CA", hide_env_values = true)]
    pub(crate) ca: Option<PathBuf>,
}

impl ServerAddress {
    /// A server of our own on this machine.
    pub(crate) fn local(url: String) -> Self {
        Self { url, token_file: None, ca: None }
    }

    fn token(&self) -> Result<Option<String>, ClientError> {
        let text = match &self.token_file {
            Some(path) => std::fs::read_to_string(path).map_err(|e| ClientError::file(path, &e))?,
            None => std::env::var("LAKEGATE_TOKEN").unwrap_or_default(),
        };
        Ok(Some(text.trim().to_owned()).filter(|token| !token.is_empty()))
    }
}

/// Why the server did not answer as wished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No server there.
    #[error("no server at {url} ({reason}); start one with `lakegate serve`, or name another with --url")]
    Away {
        /// Where it was looked for.
        url: String,
        /// What happened.
        reason: String,
    },
    /// It refused.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// It broke off, or said something else than agreed.
    #[error("the server's answer could not be read: {0}")]
    Unreadable(String),
    /// A file that the command line names.
    #[error("{0}")]
    File(String),
    /// The address is not one.
    #[error("{0:?} is not an address of a server; write \"http://127.0.0.1:3001\"")]
    BadAddress(String),
}

impl ClientError {
    fn file(path: &Path, why: &dyn std::fmt::Display) -> Self {
        Self::File(format!("{}: {why}", path.display()))
    }

    /// How a command ends that meets this error.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Away { .. } | Self::Refused { status: 429 | 503, .. } => Exit::Temporary,
            Self::Refused { .. } | Self::Unreadable(_) | Self::File(_) | Self::BadAddress(_) => Exit::Failure,
        }
    }
}

/// A connection to a server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    pub(crate) fn new(address: &ServerAddress) -> Result<Self, ClientError> {
        let base = address.url.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            return Err(ClientError::BadAddress(address.url.clone()));
        }
        let mut headers = HeaderMap::new();
        if let Some(token) = address.token()? {
            let bearer = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut bearer =
                bearer.map_err(|_| ClientError::File("the token holds other than plain text".to_owned()))?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let mut http = reqwest::Client::builder().default_headers(headers);
        if let Some(path) = &address.ca {
            let pem = std::fs::read(path).map_err(|e| ClientError::file(path, &e))?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| ClientError::file(path, &e))?;
            http = roots.into_iter().fold(http, reqwest::ClientBuilder::add_root_certificate);
        }
        let http = http
            // A proxy of the environment is for the internet; the server is on this machine or beside it.
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .user_agent(concat!("lakegate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| ClientError::Unreadable(e.to_string()))?;
        Ok(Self { http, base })
    }

    /// A JSON document.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        let response = self.send(self.http.get(self.at(path)).header("accept", "application/json")).await?;
        response.json().await.map_err(|e| ClientError::Unreadable(e.to_string()))
    }

    /// Asks for something to be done; the answer is a JSON document.
    pub(crate) async fn post(&self, path: &str) -> Result<Value, ClientError> {
        let response = self.send(self.http.post(self.at(path)).header("accept", "application/json")).await?;
        response.json().await.map_err(|e| ClientError::Unreadable(e.to_string()))
    }

    /// Asks for something to be removed; the answer is a JSON document.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value, ClientError> {
        let response = self.send(self.http.delete(self.at(path)).header("accept", "application/json")).await?;
        response.json().await.map_err(|e| ClientError::Unreadable(e.to_string()))
    }

    /// Sends a JSON document, answered by one.
    pub(crate) async fn post_json(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let response = self.send(self.http.post(self.at(path)).json(body)).await?;
        response.json().await.map_err(|e| ClientError::Unreadable(e.to_string()))
    }

    /// Sends a file, as it is read.
    pub(crate) async fn upload(&self, path: &str, file: &Path) -> Result<Value, ClientError> {
        let mut opened =
            std::fs::File::open(file).map_err(|e| ClientError::Unreadable(format!("{}: {e}", file.display())))?;
        let (send, receive) = tokio::sync::mpsc::channel::<io::Result<Frame<Bytes>>>(4);
        tokio::task::spawn_blocking(move || {
            loop {
                let mut buffer = vec![0; 256 << 10];
                let piece = opened.read(&mut buffer).map(|read| {
                    buffer.truncate(read);
                    Frame::data(Bytes::from(buffer))
                });
                let is_end = piece.as_ref().is_ok_and(|piece| piece.data_ref().is_none_or(Bytes::is_empty));
                let failed = piece.is_err();
                if is_end || send.blocking_send(piece).is_err() || failed {
                    break;
                }
            }
        });
        let body = reqwest::Body::wrap(StreamBody::new(ReceiverStream::new(receive)));
        let response = self.send(self.http.put(self.at(path)).body(body)).await?;
        response.json().await.map_err(|e| ClientError::Unreadable(e.to_string()))
    }

    /// An answer that is read piece by piece.
    pub(crate) async fn stream(&self, path: &str, accept: &str) -> Result<reqwest::Response, ClientError> {
        self.send(self.http.get(self.at(path)).header("accept", accept)).await
    }

    /// Runs a query; the answer is in the format that `accept` names.
    pub(crate) async fn sql(&self, query: &str, accept: &str) -> Result<reqwest::Response, ClientError> {
        let body = serde_json::json!({ "sql": query });
        self.send(self.http.post(self.at("/api/sql")).header("accept", accept).json(&body)).await
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, ClientError> {
        let response = request.send().await.map_err(|e| self.describe(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        Err(ClientError::Refused { status: status.as_u16(), message: refusal(status, &text) })
    }

    fn describe(&self, error: &reqwest::Error) -> ClientError {
        let mut reason: &dyn std::error::Error = error;
        while let Some(deeper) = reason.source() {
            reason = deeper;
        }
        ClientError::Away { url: self.base.clone(), reason: reason.to_string() }
    }
}

/// What a problem document says, or the bare status where the body is none.
fn refusal(status: reqwest::StatusCode, body: &str) -> String {
    let problem: Value = serde_json::from_str(body).unwrap_or_default();
    let member = |name: &str| problem.get(name).and_then(Value::as_str);
    match member("detail").or_else(|| member("title")) {
        Some(detail) => detail.lines().map(plain).collect::<Vec<_>>().join("\n"),
        None => format!("the server answered {status}"),
    }
}
