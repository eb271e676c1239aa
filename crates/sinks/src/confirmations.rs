//! Confirmations for subscribers of other instances, over a Redis channel that all of them listen to.
//!
//! They are news, not records: while Redis is away they are dropped and counted, and nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, Client};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// So many go out at once.
const AT_ONCE: usize = 256;
/// The pause before Redis is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long one exchange may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How the channel is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChannelState {
    /// How long the last exchange took, in milliseconds.
    pub latency_ms: f64,
    /// Why it is away; none while it is there.
    pub error: Option<String>,
}

/// Brings confirmations to the channel and from it.
pub struct Confirmations {
    client: Client,
    channel: String,
    state: Arc<Mutex<ChannelState>>,
}

impl Confirmations {
    /// Over the Redis at that address.
    ///
    /// # Errors
    /// The address cannot be read.
    pub fn open(url: &str, channel: String) -> Result<Self, String> {
        // The library's message would repeat the address, which may hold a password.
        let client = Client::open(url).map_err(|_| "the address of Redis cannot be read".to_owned())?;
        let state = ChannelState { latency_ms: 0.0, error: Some("it was not reached yet".to_owned()) };
        Ok(Self { client, channel, state: Arc::new(Mutex::new(state)) })
    }

    /// How the channel is, from now on.
    #[must_use]
    pub fn state(&self) -> Arc<Mutex<ChannelState>> {
        self.state.clone()
    }

    /// Sends what comes from `outgoing` and hands what others sent to `heard`, until `stop`.
    pub async fn run(self, mut outgoing: mpsc::Receiver<Bytes>, heard: impl Fn(&[u8]), stop: CancellationToken) {
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.exchange(&mut outgoing, &heard) => ended,
            };
            let why = ended.err().map_or_else(|| "the connection ended".to_owned(), |error| error.to_string());
            self.away(why);
            let until = Instant::now() + PAUSE;
            // What waits is old by the time that Redis is back.
            while let Ok(Some(_)) = tokio::time::timeout_at(until, outgoing.recv()).await {
                metrics::counter!("lakegate_confirmations_not_relayed_total").increment(1);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    async fn exchange(
        &self,
        outgoing: &mut mpsc::Receiver<Bytes>,
        heard: &impl Fn(&[u8]),
    ) -> Result<(), redis::RedisError> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(TIMEOUT));
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut listening = self.client.get_async_pubsub().await?;
        listening.subscribe(&self.channel).await?;
        let mut messages = listening.into_on_message();
        self.well(Instant::now());
        let mut some = Vec::with_capacity(AT_ONCE);
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => heard(message.get_payload_bytes()),
                    None => return Ok(()),
                },
                count = outgoing.recv_many(&mut some, AT_ONCE) => {
                    if count == 0 {
                        return std::future::pending().await;
                    }
                    let mut pipeline = redis::pipe();
                    for text in some.drain(..) {
                        pipeline.cmd("PUBLISH").arg(&self.channel).arg(&*text).ignore();
                    }
                    let started = Instant::now();
                    pipeline.query_async::<()>(&mut connection).await?;
                    self.well(started);
                }
            }
        }
    }

    fn away(&self, why: String) {
        let mut state = self.state.lock();
        if state.error.is_none() {
            tracing::warn!(error = %why, "confirmations do not reach other instances: Redis is away");
        }
        state.error = Some(why);
    }

    fn well(&self, started: Instant) {
        *self.state.lock() = ChannelState { latency_ms: started.elapsed().as_secs_f64() * 1e3, error: None };
    }
}
