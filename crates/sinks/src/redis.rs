//! Records as entries of Redis streams (`XADD`), in pipelines, each stream trimmed to about a length.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, Value};

use crate::outgoing::Message;
use crate::sink::Refused;

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

    /// Sends a batch; answers when the server has all of it but the entries that it refused.
    pub(crate) async fn deliver(&mut self, batch: &[Message]) -> Result<Vec<Refused>, String> {
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
        pipeline.ignore_errors();
        for message in batch {
            let command = pipeline.cmd("XADD").arg(message.place(&self.settings.key));
            command.arg("MAXLEN").arg("~").arg(self.settings.entries_max).arg("*");
            for (name, value) in message.headers() {
                command.arg(name).arg(value);
            }
            command.arg("body").arg(&message.body);
        }
        let answers: Result<Vec<RedisResult<Value>>, RedisError> = pipeline.query_async(&mut connection).await;
        let answers = answers.map_err(|error| format!("Redis refused: {error}"))?;
        self.connection = Some(connection);
        let mut refused = Vec::new();
        for (at, answer) in answers.into_iter().enumerate() {
            let Err(error) = answer else { continue };
            if !is_of_entry(&error) {
                return Err(format!("Redis refused: {error}"));
            }
            refused.push(Refused { at, reason: format!("Redis refused: {error}") });
        }
        Ok(refused)
    }
}

/// Whether others may be taken: the entry is too large, or what its key names is no stream.
fn is_of_entry(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE") || error.detail().is_some_and(|text| text.contains("too large"))
}
