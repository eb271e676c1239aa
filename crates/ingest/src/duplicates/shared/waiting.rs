//! What Redis is told later, since it was away: keys that are confirmed, claims that are given up. And the lives of an
//! instance: a life begins when all is told that the one before it left, so that what is still claimed from then is void.
//! So that a crash leaves it to be told, the log keeps the records whose keys are not confirmed ([`Doubt`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use redis::{RedisError, Script};

use super::{SharedKey, SharedWindow};

/// The most keys that wait for Redis to come back, of each kind; past it the oldest are let go, which a claim that ends
/// by itself stands for.
const WAITING_KEYS: usize = 1_000_000;
/// The most keys of one exchange.
const STEP: usize = 10_000;
/// An instance's number of lives is known for longer than its claims stand, so many times.
const KNOWN_FOR: u64 = 2;

/// Begins a life of an instance: later than the one before it, and than its clock.
const BEGIN: &str = r"
local life = math.max(tonumber(redis.call('GET', KEYS[1]) or '0') + 1, tonumber(ARGV[1]))
redis.call('SET', KEYS[1], string.format('%.0f', life), 'PX', ARGV[2])
return life
";

/// Gives up what is still claimed under the token that goes with the key.
const GIVE_UP: &str = r"
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[i] then redis.call('DEL', KEYS[i]) end
end
return #KEYS
";

/// A claim that is given up: the token, and the key's name.
type GivenUp = (Vec<u8>, Vec<u8>);

/// Offsets of records whose keys are not confirmed, each with how many doubts begin there.
type Doubts = Mutex<BTreeMap<u64, usize>>;

/// Keys of records from an offset on are not confirmed, for as long as this is there.
#[derive(Debug)]
pub(crate) struct Doubt {
    offset: u64,
    all: Arc<Doubts>,
}

impl Drop for Doubt {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(count) = all.get_mut(&self.offset) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.offset);
            }
        }
    }
}

/// A key that is to be confirmed.
type Confirmed = (SharedKey, Option<Arc<Doubt>>);

/// What Redis is to be told, oldest first.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) doubts: Arc<Doubts>,
    confirmed: VecDeque<Confirmed>,
    given_up: VecDeque<GivenUp>,
}

/// Puts items in and lets the oldest go that are too many; gives how many those were.
fn put<T>(queue: &mut VecDeque<T>, items: impl IntoIterator<Item = T>) -> u64 {
    queue.extend(items);
    let over = queue.len().saturating_sub(WAITING_KEYS);
    queue.drain(..over);
    over as u64
}

fn step_of<T>(queue: &mut VecDeque<T>) -> Vec<T> {
    queue.drain(..queue.len().min(STEP)).collect()
}

impl SharedWindow {
    /// What is stored from an offset on is in doubt until its keys are confirmed.
    pub(crate) fn doubt(&self, offset: u64) -> Doubt {
        let all = self.waiting.lock().doubts.clone();
        *all.lock().entry(offset).or_default() += 1;
        Doubt { offset, all }
    }

    /// From where on the log is needed to tell Redis after a crash, if it is.
    pub(crate) fn oldest_doubt(&self) -> Option<u64> {
        let all = self.waiting.lock().doubts.clone();
        let all = all.lock();
        all.first_key_value().map(|(offset, _)| *offset)
    }

    /// Keeps keys of records that are stored, to confirm them later.
    pub(crate) fn put_off(&self, keys: Vec<SharedKey>, doubt: Option<Doubt>) {
        let doubt = doubt.map(Arc::new);
        self.put_off_each(keys.into_iter().map(|key| (key, doubt.clone())));
    }

    fn put_off_each(&self, keys: impl Iterator<Item = Confirmed>) {
        let lost = put(&mut self.waiting.lock().confirmed, keys);
        metrics::counter!("lakegate_shared_keys_unconfirmed_total").increment(lost);
    }

    /// Keeps claims that nothing was stored for, to give them up later.
    pub(super) fn put_off_giving_up(&self, token: &[u8], keys: &[SharedKey]) {
        if token.is_empty() {
            return;
        }
        let given_up = keys.iter().map(|key| (token.to_vec(), key.name.clone()));
        put(&mut self.waiting.lock().given_up, given_up);
    }

    /// Tells what waits, as far as Redis lets, and begins this life if it has not begun.
    pub(crate) async fn tell_waiting(&self) {
        let Ok(_one_by_one) = self.telling.try_lock() else { return };
        if let Err(error) = self.tell_and_begin().await {
            tracing::debug!(%error, "Redis is away; event keys are confirmed later");
        }
    }

    async fn tell_and_begin(&self) -> Result<(), RedisError> {
        self.try_tell().await?;
        if self.known_life().is_none() { self.begin().await } else { Ok(()) }
    }

    async fn try_tell(&self) -> Result<(), RedisError> {
        loop {
            let keys = step_of(&mut self.waiting.lock().confirmed);
            if keys.is_empty() {
                break;
            }
            if let Err(error) = self.try_confirm(keys.iter().map(|(key, _)| key)).await {
                self.put_off_each(keys.into_iter());
                return Err(error);
            }
        }
        loop {
            let claims = step_of(&mut self.waiting.lock().given_up);
            if claims.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.try_give_up(claims.iter().map(|(token, name)| (&**token, &**name))).await {
                put(&mut self.waiting.lock().given_up, claims);
                return Err(error);
            }
        }
    }

    pub(super) async fn try_give_up<'a>(
        &self,
        claims: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<(), RedisError> {
        let script = Script::new(GIVE_UP);
        let mut script = script.prepare_invoke();
        for (token, name) in claims {
            script.key(name).arg(token);
        }
        let mut connection = self.connect().await?;
        let answer: Result<u64, _> = script.invoke_async(&mut connection).await;
        self.keep_or_drop(answer).await.map(|_| ())
    }

    /// The number of this life, which begins when Redis is there for the first time and knows what earlier ones stored.
    pub(super) async fn life(&self) -> Result<u64, RedisError> {
        loop {
            if let Some(life) = self.known_life() {
                return Ok(life);
            }
            let _one_by_one = self.telling.lock().await;
            if self.known_life().is_none() {
                // Once in a process: not a part of each request's future.
                Box::pin(self.tell_and_begin()).await?;
            }
        }
    }

    fn known_life(&self) -> Option<u64> {
        Some(self.life.load(Ordering::Acquire)).filter(|life| *life > 0)
    }

    async fn begin(&self) -> Result<(), RedisError> {
        let script = Script::new(BEGIN);
        let mut script = script.prepare_invoke();
        let name = [self.lives_prefix().as_slice(), &self.instance].concat();
        let now_ms = (self.clock.wall_us() / 1000).max(1);
        script.key(name).arg(now_ms).arg(self.claim_ms().saturating_mul(KNOWN_FOR));
        let mut connection = self.connect().await?;
        let answer: Result<u64, _> = script.invoke_async(&mut connection).await;
        self.life.store(self.keep_or_drop(answer).await?, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_the_newest_stays() {
        let mut queue = VecDeque::new();
        assert_eq!(put(&mut queue, 0..WAITING_KEYS), 0);
        assert_eq!(put(&mut queue, [WAITING_KEYS, WAITING_KEYS + 1]), 2);
        assert_eq!((queue.front(), queue.back()), (Some(&2), Some(&(WAITING_KEYS + 1))));
        assert_eq!(step_of(&mut queue).len(), STEP);
        assert_eq!(queue.len(), WAITING_KEYS - STEP);
    }
}
