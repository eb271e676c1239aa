//! Claims of rows that are imported: many keys under one token, held from their reading to their commit.
//!
//! Unlike a request's, they are claimed in steps, and asked about once more right before the commit: what ended
//! meanwhile is claimed anew, and where another took it the rows are not committed.

use std::sync::{Arc, OnceLock};

use redis::{RedisError, Script};

use super::{CONTENT_BITS, ClaimError, SharedKey, SharedWindow, WhenAway};

/// The most keys of one exchange.
const STEP: usize = 10_000;

/// Keeps claims for as long again, all or none; 0 where one of the keys is another's by now.
const HOLD: &str = r"
local token, ttl = ARGV[1], ARGV[2]
for from = 1, #KEYS, 4000 do
  local values = redis.call('MGET', unpack(KEYS, from, math.min(from + 3999, #KEYS)))
  for i = 1, #values do
    if values[i] and values[i] ~= token then return 0 end
  end
end
for i = 1, #KEYS do redis.call('SET', KEYS[i], token, 'PX', ttl) end
return 1
";

/// The keys of one stream's rows, and who imports them.
#[derive(Debug, Clone)]
pub(crate) struct Importer {
    /// The hash of the stream's name.
    pub(crate) stream: u64,
    pub(crate) window_ms: u64,
    /// Empty until this life's number is known.
    token: Arc<OnceLock<Vec<u8>>>,
}

impl SharedWindow {
    /// Somebody who imports into a stream.
    pub(crate) fn importer(&self, stream: u64, window_ms: u64) -> Importer {
        Importer { stream, window_ms, token: Arc::default() }
    }

    async fn token_of<'i>(&self, importer: &'i Importer) -> Result<&'i [u8], RedisError> {
        if let Some(token) = importer.token.get() {
            return Ok(token);
        }
        let life = self.life().await?;
        Ok(importer.token.get_or_init(|| self.new_token(life)))
    }

    /// After so long claims that nobody confirms are over.
    pub(crate) fn claims_last_us(&self) -> u64 {
        u64::try_from(self.settings.claim.as_micros()).unwrap_or(u64::MAX)
    }

    fn named(&self, importer: &Importer, keys: &[u128]) -> Vec<SharedKey> {
        // Nothing is known of the contents of a file's row that could be compared with a record's.
        keys.iter().map(|key| self.event_key(importer.stream, key & !CONTENT_BITS, importer.window_ms)).collect()
    }

    /// Claims keys. For each, whether another has stored it; none where nobody was asked.
    ///
    /// # Errors
    /// Another holds one of them, or nobody can be asked; then none of these is claimed.
    pub(crate) async fn claim_rows(&self, importer: &Importer, keys: &[u128]) -> Result<Option<Vec<bool>>, ClaimError> {
        let accepts = self.settings.when_away == WhenAway::AcceptAndMark;
        if accepts && self.is_away() {
            return Ok(None);
        }
        let mut stored = Vec::with_capacity(keys.len());
        for step in keys.chunks(STEP) {
            let why = match self.try_claim_rows(importer, step).await {
                Ok(Some(values)) => {
                    stored.extend(values.iter().map(|value| value.first() == Some(&b'c')));
                    continue;
                }
                Ok(None) => Ok(ClaimError::Busy),
                Err(error) => Err(error),
            };
            // The last step's answer may be all that is missing.
            self.release_rows(importer, keys.get(..stored.len() + step.len()).unwrap_or_default()).await;
            return match why {
                Ok(busy) => Err(busy),
                Err(error) if accepts => {
                    self.note_away(&error);
                    Ok(None)
                }
                Err(error) => Err(ClaimError::Away(error.to_string())),
            };
        }
        Ok(Some(stored))
    }

    async fn try_claim_rows(&self, importer: &Importer, keys: &[u128]) -> Result<Option<Vec<Vec<u8>>>, RedisError> {
        let token = self.token_of(importer).await?;
        self.try_claim(token, &self.named(importer, keys), false).await
    }

    /// Whether the keys are still the importer's: the commit of their rows may be tried.
    ///
    /// # Errors
    /// Nobody can be asked.
    pub(crate) async fn hold_rows(&self, importer: &Importer, keys: &[u128]) -> Result<bool, ClaimError> {
        let accepts = self.settings.when_away == WhenAway::AcceptAndMark;
        for step in keys.chunks(STEP) {
            if accepts && self.is_away() {
                return Ok(true);
            }
            match self.try_hold(importer, &self.named(importer, step)).await {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) if accepts => self.note_away(&error),
                Err(error) => return Err(ClaimError::Away(error.to_string())),
            }
        }
        Ok(true)
    }

    async fn try_hold(&self, importer: &Importer, keys: &[SharedKey]) -> Result<bool, RedisError> {
        let script = Script::new(HOLD);
        let mut script = script.prepare_invoke();
        keys.iter().for_each(|key| {
            script.key(key.name.as_slice());
        });
        script.arg(self.token_of(importer).await?).arg(self.claim_ms());
        let mut connection = self.connect().await?;
        let answer: Result<u64, _> = script.invoke_async(&mut connection).await;
        self.keep_or_drop(answer).await.map(|held| held == 1)
    }

    /// Tells the others that the rows are stored. Gives whether all of them were told now.
    pub(crate) async fn confirm_rows(&self, importer: &Importer, keys: &[u128]) -> bool {
        let mut told = true;
        for step in keys.chunks(STEP) {
            told &= self.confirm(self.named(importer, step), None).await;
        }
        told
    }

    /// Gives claims back. Where Redis is away that is done when it is back.
    pub(crate) async fn release_rows(&self, importer: &Importer, keys: &[u128]) {
        let Some(token) = importer.token.get() else { return };
        for step in keys.chunks(STEP) {
            let claimed = self.named(importer, step);
            self.give_up(super::Claim { token: token.clone(), claimed, ..super::Claim::default() }).await;
        }
    }

    /// Gives claims back, soon.
    pub(crate) fn release_rows_later(&self, importer: &Importer, keys: &[u128]) {
        if let Some(token) = importer.token.get() {
            self.put_off_giving_up(token, &self.named(importer, keys));
        }
    }

    /// Tells the others of rows whose commit an earlier process did not see through, once they can be told.
    pub(crate) fn confirm_later(&self, stream: u64, key: u128, window_ms: u64) {
        self.put_off(vec![self.event_key(stream, key & !CONTENT_BITS, window_ms)], None);
    }
}
