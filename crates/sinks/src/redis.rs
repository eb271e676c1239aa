//! Records as entries of Redis streams (`XADD`), in pipelines, each stream trimmed to about a length.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};

use crate::outgoing::Message;

/// A stream of a Redis.
#[derive(Clone)]
pub struct RedisSettings {
    /// Its address.
    pub url: String,
    /// The stream's key; `{tenant}` and `{stream}` stand for those of the record.
    pub key: String,
    /// About so many entries are kept.
    pub entries_max: u64,
    /// How long one exchange may take.
    pub timeout: Duration,
}

impl std::fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSettings").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Feeds one Redis.
pub(crate) struct Redis {
    settings: RedisSettings,
    client: Client,
    connection: Option<MultiplexedConnection>,
}

impl Redis {
    pub(crate) fn open(settings: RedisSettings) -> Result<Self, String> {
        // The address may hold a password, which the library's message would show.
        let client =
            Client::open(settings.url.as_str()).map_err(|_| "the address of Redis cannot be read".to_owned())?;
        Ok(Self { settings, client, connection: None })
    }

    /// Sends a batch; answers when the server has all of it.
    pub(crate) async fn deliver(&mut self, batch: &[Message]) -> Result<(), String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(self.settings.timeout))
                    .set_response_timeout(Some(self.settings.timeout));
                self.client
                    .get_multiplexed_async_connection_with_config(&config)
                    .await
                    .map_err(|error| format!("Redis cannot be reached: {error}"))?
            }
        };
        let mut pipeline = redis::pipe();
        for message in batch {
            let command = pipeline.cmd("XADD").arg(message.place(&self.settings.key));
            command.arg("MAXLEN").arg("~").arg(self.settings.entries_max).arg("*");
            for (name, value) in message.headers() {
                command.arg(name).arg(value);
            }
            command.arg("body").arg(&message.body).ignore();
        }
        let sent: Result<(), redis::RedisError> = pipeline.query_async(&mut connection).await;
        sent.map_err(|error| format!("Redis refused: {error}"))?;
        self.connection = Some(connection);
        Ok(())
    }
}
