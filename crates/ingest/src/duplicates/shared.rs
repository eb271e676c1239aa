//! A window that several instances share, in Redis.
//!
//! ```text
//! <prefix>k<u64 stream hash><96 bits of the event key>   "p" + token: claimed · "c" + u32 content: confirmed
//! <prefix>r<u128 request key>                            "p" + token: claimed · "c" + u64 content, u64 position, answer
//! <prefix>i<16 bytes of the instance>                    the number of its life
//! ```
//! A token is the instance (its log's id, 16 bytes), its life (16 decimal digits) and 16 bytes that no other claim has.
//! A request's keys are claimed before its append, all of them or none, by one script in one round trip; confirmed once
//! the request is durable, in another; given up if the append failed. While another instance holds a claim, the request
//! waits for what becomes of it: two requests never wait for each other, for who waits holds nothing. What a crash left
//! between append and confirmation, the replay confirms; then the instance's next life begins ([`waiting`]), and what it
//! claimed in an earlier one is void. Only the claims of an instance that stays away end by time: before it ends, nobody
//! can know what that instance has stored. The process's own window ([`super::window`]) stays the first to be asked:
//! what this instance stored is never stored twice by it, whatever Redis forgot.
//!
//! Promises: with Redis there, and keeping what it confirmed, a key is stored once over all instances. Refuses: to guess
//! while Redis is away; the setting says whether requests wait then, or are taken and marked.

mod imports;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lakegate_env::{Clock, Random};
use lakegate_model::LogId;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, Script, TlsCertificates};
use tokio::time::Instant;

pub(crate) use self::waiting::Doubt;
use self::waiting::Waiting;
use super::CONTENT_BITS;
use crate::requests::{Answered, Kept};

pub(crate) use imports::Importer;

/// Claims the keys, all or none. Gives what is confirmed, with an empty text for what is now claimed; nothing while
/// another's claim stands. Where the first key is a request's that was answered, its answer alone.
const CLAIM: &str = r"
local token, ttl, request, instances = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local seen, lives = {}, {}
local function is_over(claim)
  if #claim < 33 then return false end
  local instance = string.sub(claim, 2, 17)
  if not lives[instance] then lives[instance] = tonumber(redis.call('GET', instances .. instance) or '0') end
  return tonumber(string.sub(claim, 18, 33)) < lives[instance]
end
for from = 1, #KEYS, 4000 do
  local values = redis.call('MGET', unpack(KEYS, from, math.min(from + 3999, #KEYS)))
  for i = 1, #values do
    local value = values[i]
    if request == '1' and from == 1 and i == 1 and value and string.sub(value, 1, 1) == 'c' then return {value} end
    if value and string.sub(value, 1, 1) == 'p' and value ~= token then
      if not is_over(value) then return false end
      value = false
    end
    seen[#seen + 1] = value or ''
  end
end
for i = 1, #KEYS do
  if seen[i] == '' then redis.call('SET', KEYS[i], token, 'PX', ttl) end
end
return seen
";

/// Confirms the keys: for each its value and for how long. Where a key comes twice, what came first stands.
const CONFIRM: &str = r"
for i = #KEYS, 1, -1 do redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', ARGV[2 * i]) end
return #KEYS
";

/// How soon a claim that another holds is asked for again: first, and at most.
const AGAIN: std::ops::RangeInclusive<Duration> = Duration::from_millis(2)..=Duration::from_millis(50);
/// After a failure Redis counts as away for so long, where requests do not wait for it.
const AWAY_FOR_US: u64 = 500_000;

/// What is done with requests while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenAway {
    /// They wait, and are told to come back when that takes too long.
    Wait,
    /// They are taken by what this instance knows, marked in the log and counted.
    AcceptAndMark,
}

/// Where the shared window is, and how it is used.
#[derive(Clone)]
pub struct SharedSettings {
    /// Such as `redis://:password@host:6379/0`.
    pub url: String,
    /// The certificates (PEM) that sign its own, where the system does not know them.
    pub ca: Option<Vec<u8>>,
    /// What all keys begin with.
    pub prefix: String,
    /// What is done while it is away.
    pub when_away: WhenAway,
    /// How long a request waits for Redis, and for claims of others.
    pub wait: Duration,
    /// How long the claims stand of an instance that does not come back.
    pub claim: Duration,
    /// How long one exchange may take.
    pub timeout: Duration,
}

impl std::fmt::Debug for SharedSettings {
    /// Without the address: it may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { url: _, ca: _, prefix, when_away, wait, claim, timeout } = self;
        let mut shown = f.debug_struct("SharedSettings");
        shown.field("prefix", prefix).field("when_away", when_away).field("wait", wait);
        shown.field("claim", claim).field("timeout", timeout).finish_non_exhaustive()
    }
}

/// The address is not one of a Redis.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("duplicates.redis.url is not the address of a Redis: {0}; write redis://host:6379/0, or rediss:// for TLS")]
pub struct SharedUrlError(String);

/// One key with what it is confirmed as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedKey {
    name: Vec<u8>,
    value: Vec<u8>,
    window_ms: u64,
}

/// What came of a claim.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    token: Vec<u8>,
    /// The keys that are now claimed, or that nobody was asked about.
    pub(crate) claimed: Vec<SharedKey>,
    /// For each key that was asked for, in order, the content it was confirmed with: others stored it.
    pub(crate) seen: Vec<Option<u32>>,
    /// What the same request was answered, here or elsewhere.
    pub(crate) again: Option<Kept>,
    /// Redis was not asked.
    pub(crate) unchecked: bool,
}

/// Why a claim was not had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error("the window that tells duplicates cannot be asked: {0} (duplicates.redis)")]
    Away(String),
    #[error("another request with the same event keys is under way elsewhere and has not ended")]
    Busy,
}

/// The shared window.
pub(crate) struct SharedWindow {
    client: Client,
    settings: SharedSettings,
    connection: tokio::sync::Mutex<Option<MultiplexedConnection>>,
    claim: Script,
    confirm: Script,
    /// Who claims.
    instance: [u8; 16],
    /// Which of its lives this is; 0 until Redis has heard of it.
    life: AtomicU64,
    waiting: Mutex<Waiting>,
    /// Held by who tells Redis what waits.
    telling: tokio::sync::Mutex<()>,
    away_until_us: AtomicU64,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    /// Requests that are to stay in order take turns from claim to append.
    pub(crate) turns: Arc<tokio::sync::Mutex<()>>,
}

impl SharedWindow {
    pub(crate) fn open(
        settings: SharedSettings,
        instance: LogId,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Self, SharedUrlError> {
        let url = settings.url.as_str();
        let client = match settings.ca.clone() {
            // Its name is checked as well; the system's own certificates are not asked then.
            Some(ca) => Client::build_with_tls(url, TlsCertificates { client_tls: None, root_cert: Some(ca) }),
            None => Client::open(url),
        };
        let client = client.map_err(|error| SharedUrlError(error.to_string()))?;
        Ok(Self {
            client,
            settings,
            connection: tokio::sync::Mutex::default(),
            claim: Script::new(CLAIM),
            confirm: Script::new(CONFIRM),
            instance: instance.0.into_bytes(),
            life: AtomicU64::new(0),
            waiting: Mutex::default(),
            telling: tokio::sync::Mutex::default(),
            away_until_us: AtomicU64::new(0),
            clock,
            random,
            turns: Arc::default(),
        })
    }

    /// An event key of the stream whose name has that hash.
    pub(crate) fn event_key(&self, stream: u64, key: u128, window_ms: u64) -> SharedKey {
        let mut name = [self.settings.prefix.as_bytes(), b"k", &stream.to_be_bytes()].concat();
        name.extend_from_slice((key >> 32 << 32).to_be_bytes().get(..12).unwrap_or_default());
        let content = u32::try_from(key & CONTENT_BITS).unwrap_or(0);
        SharedKey { name, value: [&b"c"[..], &content.to_be_bytes()].concat(), window_ms: window_ms.max(1) }
    }

    /// A request's own id, with what it is answered.
    pub(crate) fn request_key(&self, key: u128, kept: &Kept, window_us: i64) -> SharedKey {
        let name = [self.settings.prefix.as_bytes(), b"r", &key.to_be_bytes()].concat();
        let Answered { content, answer, .. } = &kept.answered;
        let value = [&b"c"[..], &content.to_be_bytes(), &kept.position.to_be_bytes(), answer.as_slice()].concat();
        SharedKey { name, value, window_ms: (window_us / 1000).max(1).cast_unsigned() }
    }

    /// Claims keys; the first is a request's where `owner` is given. Waits while others hold them.
    pub(crate) async fn claim(&self, keys: Vec<SharedKey>, owner: Option<u64>) -> Result<Claim, ClaimError> {
        let accepts = self.settings.when_away == WhenAway::AcceptAndMark;
        if accepts && self.is_away() {
            return Ok(Claim { unchecked: true, claimed: keys, ..Claim::default() });
        }
        let deadline = Instant::now() + self.settings.wait;
        let (mut pause, mut token, mut in_doubt) = (*AGAIN.start(), Vec::new(), false);
        loop {
            let asked = self.try_claim_under(&mut token, &keys, owner.is_some());
            // Those who ask one after the other for a connection would wait for each other's time-outs.
            let answer = tokio::time::timeout_at(deadline + self.settings.timeout, asked).await;
            let why = match answer.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())) {
                Ok(Some(values)) => return Ok(claimed(token, keys, values, owner, self.clock.wall_us())),
                Ok(None) => ClaimError::Busy,
                Err(error) if accepts => {
                    self.note_away(&error);
                    return Ok(Claim { unchecked: true, token, claimed: keys, ..Claim::default() });
                }
                Err(error) => {
                    in_doubt = true;
                    ClaimError::Away(error.to_string())
                }
            };
            if Instant::now() + pause > deadline {
                if in_doubt {
                    // An answer that did not come may have been that all is claimed.
                    self.put_off_giving_up(&token, &keys);
                }
                return Err(why);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(*AGAIN.end());
        }
    }

    /// Claims under the token, which is made when this life's number is known.
    async fn try_claim_under(
        &self,
        token: &mut Vec<u8>,
        keys: &[SharedKey],
        with_request: bool,
    ) -> Result<Option<Vec<Vec<u8>>>, RedisError> {
        if token.is_empty() {
            *token = self.new_token(self.life().await?);
        }
        self.try_claim(token, keys, with_request).await
    }

    fn new_token(&self, life: u64) -> Vec<u8> {
        [&b"p"[..], &self.instance, format!("{life:016}").as_bytes(), &self.random.next_u128().to_be_bytes()].concat()
    }

    fn lives_prefix(&self) -> Vec<u8> {
        [self.settings.prefix.as_bytes(), b"i"].concat()
    }

    fn claim_ms(&self) -> u64 {
        u64::try_from(self.settings.claim.as_millis()).unwrap_or(u64::MAX)
    }

    async fn try_claim(
        &self,
        token: &[u8],
        keys: &[SharedKey],
        with_request: bool,
    ) -> Result<Option<Vec<Vec<u8>>>, RedisError> {
        let mut script = self.claim.prepare_invoke();
        keys.iter().for_each(|key| {
            script.key(key.name.as_slice());
        });
        script.arg(token).arg(self.claim_ms()).arg(u8::from(with_request)).arg(self.lives_prefix());
        let mut connection = self.connect().await?;
        let answer = script.invoke_async(&mut connection).await;
        self.keep_or_drop(answer).await
    }

    /// Confirms what was claimed, with what it is confirmed as now. Where Redis is away that is done when it is back.
    /// Gives whether it is done.
    pub(crate) async fn confirm(&self, keys: Vec<SharedKey>, doubt: Option<Doubt>) -> bool {
        if !self.is_away() {
            match self.try_confirm(keys.iter()).await {
                Ok(()) => return true,
                Err(error) => {
                    tracing::warn!(%error, keys = keys.len(), "event keys are confirmed when Redis is back");
                }
            }
        }
        self.put_off(keys, doubt);
        false
    }

    async fn try_confirm(&self, keys: impl ExactSizeIterator<Item = &SharedKey>) -> Result<(), RedisError> {
        if keys.len() == 0 {
            return Ok(());
        }
        let mut script = self.confirm.prepare_invoke();
        for key in keys {
            script.key(key.name.as_slice()).arg(key.value.as_slice()).arg(key.window_ms);
        }
        let mut connection = self.connect().await?;
        let answer: Result<u64, _> = script.invoke_async(&mut connection).await;
        self.keep_or_drop(answer).await.map(|_| ())
    }

    /// Gives a claim back, for nothing was stored. Where Redis is away that is done when it is back.
    pub(crate) async fn give_up(&self, claim: Claim) {
        let Claim { token, claimed, unchecked, .. } = claim;
        if claimed.is_empty() || token.is_empty() {
            return;
        }
        let names = claimed.iter().map(|key| (&*token, &*key.name));
        if unchecked || self.try_give_up(names).await.is_err() {
            self.put_off_giving_up(&token, &claimed);
        }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let mut place = self.connection.lock().await;
        if let Some(connection) = place.as_ref() {
            return Ok(connection.clone());
        }
        let timeout = Some(self.settings.timeout);
        let config = AsyncConnectionConfig::new().set_connection_timeout(timeout).set_response_timeout(timeout);
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        *place = Some(connection.clone());
        Ok(connection)
    }

    /// A connection that failed is made anew by the next who needs one.
    async fn keep_or_drop<T>(&self, answer: Result<T, RedisError>) -> Result<T, RedisError> {
        match &answer {
            Ok(_) => self.away_until_us.store(0, Ordering::Relaxed),
            Err(_) => *self.connection.lock().await = None,
        }
        answer
    }

    fn is_away(&self) -> bool {
        self.clock.monotonic_us() < self.away_until_us.load(Ordering::Relaxed)
    }

    fn note_away(&self, error: &RedisError) {
        let until_us = self.clock.monotonic_us() + AWAY_FOR_US;
        if self.away_until_us.swap(until_us, Ordering::Relaxed) == 0 {
            tracing::warn!(%error, "Redis is away: records are taken by what this instance knows, and marked");
        }
    }
}

impl Claim {
    /// The keys that are claimed, to be confirmed: a request's own with what it was answered.
    pub(crate) fn into_confirmed(self, request: Option<SharedKey>) -> Vec<SharedKey> {
        let own = |key: SharedKey| match &request {
            Some(request) if request.name == key.name => request.clone(),
            _ => key,
        };
        self.claimed.into_iter().map(own).collect()
    }
}

fn claimed(token: Vec<u8>, keys: Vec<SharedKey>, values: Vec<Vec<u8>>, owner: Option<u64>, now_us: i64) -> Claim {
    let mut claim = Claim { token, ..Claim::default() };
    let mut pairs = keys.into_iter().zip(values);
    if let Some(owner) = owner {
        match pairs.next() {
            Some((key, value)) if value.first() != Some(&b'c') => claim.claimed.push(key),
            Some((_, value)) => {
                claim.again = answered(&value, owner, now_us);
                return claim;
            }
            None => {}
        }
    }
    for (key, value) in pairs {
        match value.split_first() {
            // Our own token: it was claimed before by an exchange whose answer did not come.
            None | Some((b'p', _)) => {
                claim.claimed.push(key);
                claim.seen.push(None);
            }
            Some((_, content)) => {
                claim.seen.push(Some(content.try_into().map_or(0, u32::from_be_bytes)));
            }
        }
    }
    claim
}

/// What a request was answered that is confirmed.
fn answered(value: &[u8], owner: u64, received_us: i64) -> Option<Kept> {
    let (content, rest) = value.strip_prefix(b"c")?.split_first_chunk::<8>()?;
    let (position, answer) = rest.split_first_chunk::<8>()?;
    let answered = Answered { owner, content: u64::from_be_bytes(*content), answer: answer.to_vec() };
    Some(Kept { answered, position: u64::from_be_bytes(*position), received_us })
}
