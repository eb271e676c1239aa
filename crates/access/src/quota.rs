//! How much each client and each tenant may send: records and bytes a second, requests under way, streams open.
//!
//! A bucket (the library's GCRA) holds a second's worth, and at least the largest request there may be, so that every
//! request fits in a full one. What a refused request took from one bucket goes back, so that being refused costs
//! nothing.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use hashbrown::HashMap;
use lakegate_env::Clock;
use lakegate_model::TenantId;
use parking_lot::{Mutex, RwLock};

use crate::fair::{Fair, Turn};
use crate::principal::Principal;

/// Bytes are counted in steps of this size: fine enough for small requests, coarse enough for the library's 32 bits.
const STEP_BYTES: u64 = 64;
/// So many clients of a tenant are kept in mind; past that those that are idle are forgotten, with full buckets.
const CLIENTS_MAX: usize = 10_000;

/// What one client or tenant may send. 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Records a second.
    pub records_per_second: u64,
    /// Bytes a second.
    pub bytes_per_second: u64,
    /// Requests under way at once.
    pub requests: u32,
    /// Streams, sockets and feeds open at once.
    pub connections: u32,
    /// A tenant's share where several want more than there is.
    pub weight: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { records_per_second: 0, bytes_per_second: 0, requests: 0, connections: 0, weight: 1 }
    }
}

impl Limits {
    fn is_none(&self) -> bool {
        Self { weight: 1, ..*self } == Self::default()
    }
}

/// What all may send.
#[derive(Clone)]
pub struct QuotaOptions {
    /// Each client.
    pub client: Limits,
    /// Each tenant, all its clients together.
    pub tenant: Limits,
    /// Tenants of which something else is said.
    pub tenants: Vec<(TenantId, Limits)>,
    /// The most records of one request.
    pub request_records_max: u64,
    /// The most bytes of one request.
    pub request_bytes_max: u64,
    /// What all tenants together may have under way while several want more; divided by their weights.
    pub window_bytes: usize,
    /// What of one tenant may wait for its turn; past it requests are told to come back.
    pub queue_bytes: usize,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// A limit that a request would break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverQuota {
    /// Which, such as `tenant.records_per_second`.
    pub limit: &'static str,
    /// The setting that moves it.
    pub setting: String,
    /// For people.
    pub message: String,
    /// When to come back, in milliseconds.
    pub retry_after_ms: u64,
}

/// The library's view of our clock.
#[derive(Clone)]
struct Ticks(Arc<dyn Clock>);

impl governor::clock::Clock for Ticks {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.monotonic_us().saturating_mul(1000))
    }
}

struct Bucket {
    limiter: RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<Nanos>>,
    ticks: Ticks,
    step: u64,
    burst: u32,
    /// Given back, and used before the bucket is.
    credit: AtomicU32,
}

impl Bucket {
    /// `per_second` units, and room for `request_max` of them at once; none where there is no limit.
    fn new(per_second: u64, request_max: u64, step: u64, ticks: &Ticks) -> Option<Self> {
        let cells = |units: u64| u32::try_from(units.div_ceil(step)).unwrap_or(u32::MAX);
        let rate = NonZeroU32::new(cells(per_second).min(1_000_000_000))?;
        let burst = NonZeroU32::new(cells(per_second.max(request_max)))?;
        let limiter = RateLimiter::direct_with_clock(Quota::per_second(rate).allow_burst(burst), ticks.clone());
        Some(Self { limiter, ticks: ticks.clone(), step, burst: burst.get(), credit: AtomicU32::new(0) })
    }

    fn cells(&self, units: u64) -> u32 {
        u32::try_from(units.div_ceil(self.step)).unwrap_or(u32::MAX).min(self.burst)
    }

    /// Takes so many units; `Err`: in how many milliseconds they will be there.
    fn take(&self, units: u64) -> Result<(), u64> {
        let cells = self.cells(units);
        let mut used = 0;
        let _ = self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |credit| {
            used = credit.min(cells);
            Some(credit - used)
        });
        let Some(rest) = NonZeroU32::new(cells - used) else { return Ok(()) };
        match self.limiter.check_n(rest) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => {
                self.add_credit(used);
                let wait = not_until.wait_time_from(self.ticks.now());
                Err(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1))
            }
            // More than the bucket holds; it is made to hold the largest request.
            Err(_) => Ok(()),
        }
    }

    fn add_credit(&self, cells: u32) {
        let more = |credit: u32| Some(credit.saturating_add(cells).min(self.burst));
        let _ = self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn give_back(&self, units: u64) {
        self.add_credit(self.cells(units));
    }
}

/// What one client or tenant has taken.
struct Usage {
    limits: Limits,
    records: Option<Bucket>,
    bytes: Option<Bucket>,
    requests: AtomicUsize,
    connections: AtomicUsize,
    used_us: AtomicU64,
    told: Mutex<Told>,
}

/// What was last told to come back later.
#[derive(Clone, Copy, Default)]
struct Told {
    until_us: u64,
    /// The size of the request.
    bytes: u64,
    limit: &'static str,
    most: u64,
}

/// A place among those that may be taken at once; given back when it is dropped.
struct Place<'u>(&'u AtomicUsize, bool);

impl<'u> Place<'u> {
    fn take(count: &'u AtomicUsize, most: u32) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let place = Self(count, true);
        (most == 0 || before < most as usize).then_some(place)
    }

    /// It is kept; who keeps it gives it back.
    fn keep(mut self) {
        self.1 = false;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Usage {
    fn new(limits: Limits, options: &QuotaOptions, ticks: &Ticks) -> Self {
        Self {
            limits,
            records: Bucket::new(limits.records_per_second, options.request_records_max, 1, ticks),
            bytes: Bucket::new(limits.bytes_per_second, options.request_bytes_max, STEP_BYTES, ticks),
            requests: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            used_us: AtomicU64::new(0),
            told: Mutex::default(),
        }
    }

    /// What a request of so many bytes is told before it is looked at: that it comes before the time which one of no
    /// more bytes was told.
    fn comes_early(&self, bytes: u64, now_us: u64) -> Result<(), (&'static str, u64, u64)> {
        let told = *self.told.lock();
        if now_us >= told.until_us || bytes < told.bytes {
            return Ok(());
        }
        Err((told.limit, told.most, (told.until_us - now_us).div_ceil(1000)))
    }

    fn take(&self, records: u64, bytes: u64, now_us: u64) -> Result<(), (&'static str, u64, u64)> {
        self.take_some(records, bytes).inspect_err(|(limit, most, wait_ms)| {
            let until_us = now_us.saturating_add(wait_ms.saturating_mul(1000));
            *self.told.lock() = Told { until_us, bytes, limit, most: *most };
        })
    }

    fn take_some(&self, records: u64, bytes: u64) -> Result<(), (&'static str, u64, u64)> {
        if let Some(bucket) = &self.records {
            bucket.take(records).map_err(|wait| ("records_per_second", self.limits.records_per_second, wait))?;
        }
        let Some(bucket) = &self.bytes else { return Ok(()) };
        bucket.take(bytes).map_err(|wait| {
            self.give_back_records(records);
            ("bytes_per_second", self.limits.bytes_per_second, wait)
        })
    }

    fn give_back_records(&self, records: u64) {
        if let Some(bucket) = &self.records {
            bucket.give_back(records);
        }
    }

    fn give_back(&self, records: u64, bytes: u64) {
        self.give_back_records(records);
        if let Some(bucket) = &self.bytes {
            bucket.give_back(bytes);
        }
    }
}

struct Tenant {
    usage: Usage,
    is_named: bool,
    clients: RwLock<HashMap<Arc<str>, Arc<Usage>>>,
}

struct Inner {
    options: QuotaOptions,
    ticks: Ticks,
    tenants: RwLock<HashMap<TenantId, Arc<Tenant>>>,
    fair: Fair,
}

/// Holds what each may send. Clones share it.
#[derive(Clone)]
pub struct Quotas(Arc<Inner>);

impl std::fmt::Debug for Quotas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quotas").field("client", &self.0.options.client).finish_non_exhaustive()
    }
}

/// Who is told of a limit.
#[derive(Clone, Copy)]
enum Of<'a> {
    Client(&'a Principal),
    Tenant(&'a Principal, bool),
}

impl Of<'_> {
    fn over(self, limit: &'static str, most: u64, retry_after_ms: u64) -> OverQuota {
        let (whose, name, setting) = match self {
            Self::Client(principal) => ("client", principal.id.to_string(), "limits.rates.client".to_owned()),
            Self::Tenant(principal, true) => {
                let tenant = principal.tenant.as_str();
                ("tenant", tenant.to_owned(), format!("limits.rates.tenants.{tenant}"))
            }
            Self::Tenant(principal, false) => {
                ("tenant", principal.tenant.to_string(), "limits.rates.tenant".to_owned())
            }
        };
        let setting = format!("{setting}.{limit}");
        let message =
            format!("the {whose} {name} has used up its {limit}: {most} ({setting}); come back in {retry_after_ms} ms");
        OverQuota { limit: limit_name(whose, limit), setting, message, retry_after_ms }
    }
}

fn limit_name(whose: &str, limit: &str) -> &'static str {
    match (whose, limit) {
        ("client", "records_per_second") => "client.records_per_second",
        ("client", "bytes_per_second") => "client.bytes_per_second",
        ("client", "requests") => "client.requests",
        ("client", _) => "client.connections",
        (_, "records_per_second") => "tenant.records_per_second",
        (_, "bytes_per_second") => "tenant.bytes_per_second",
        (_, "requests") => "tenant.requests",
        (_, _) => "tenant.connections",
    }
}

/// When to come back where places are taken: they are given back with every answer.
const PLACE_WAIT_MS: u64 = 100;
/// Streams stay open longer.
const CONNECTION_WAIT_MS: u64 = 5_000;

/// A request's places; given back when it is dropped.
pub struct Admitted {
    tenant: Arc<Tenant>,
    client: Option<Arc<Usage>>,
    _turn: Turn,
}

impl std::fmt::Debug for Admitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admitted")
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.tenant.usage.requests.fetch_sub(1, Ordering::Relaxed);
        if let Some(client) = &self.client {
            client.requests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// An open stream's place; given back when it is dropped.
pub struct Opened {
    tenant: Arc<Tenant>,
    client: Option<Arc<Usage>>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opened")
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.tenant.usage.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(client) = &self.client {
            client.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Quotas {
    /// Nobody has taken anything yet.
    #[must_use]
    pub fn new(options: QuotaOptions) -> Self {
        let fair = Fair::new(options.window_bytes, options.queue_bytes, options.clock.clone());
        let ticks = Ticks(options.clock.clone());
        Self(Arc::new(Inner { options, ticks, tenants: RwLock::default(), fair }))
    }

    /// Lets a request in, if its client and its tenant may send so much now; waits while its tenant has more than its
    /// share under way and others want theirs. Requests of a tenant come out in the order in which they were first
    /// polled.
    ///
    /// # Errors
    /// The first limit that the request would break; nothing was taken.
    pub async fn admit(&self, principal: &Principal, records: u64, bytes: u64) -> Result<Admitted, OverQuota> {
        let tenant = self.tenant(&principal.tenant);
        let client = self.client(&tenant, principal);
        let (of_client, of_tenant) = (Of::Client(principal), Of::Tenant(principal, tenant.is_named));
        let own = client.as_ref().map(|client| (client, Place::take(&client.requests, client.limits.requests)));
        let own = match own {
            Some((client, None)) => {
                return Err(of_client.over("requests", u64::from(client.limits.requests), PLACE_WAIT_MS));
            }
            own => own.and_then(|(_, place)| place),
        };
        let (limits, now_us) = (tenant.usage.limits, self.0.options.clock.monotonic_us());
        let place = Place::take(&tenant.usage.requests, limits.requests)
            .ok_or_else(|| of_tenant.over("requests", u64::from(limits.requests), PLACE_WAIT_MS))?;
        if let Some(client) = &client {
            client.take(records, bytes, now_us).map_err(|(limit, most, wait)| of_client.over(limit, most, wait))?;
        }
        let give_back = || client.iter().for_each(|client| client.give_back(records, bytes));
        tenant.usage.take(records, bytes, now_us).map_err(|(limit, most, wait)| {
            give_back();
            of_tenant.over(limit, most, wait)
        })?;
        let turn =
            self.0.fair.enter(principal.tenant.clone(), limits.weight, usize::try_from(bytes).unwrap_or(usize::MAX));
        let turn = turn.await.inspect_err(|_| {
            give_back();
            tenant.usage.give_back(records, bytes);
        })?;
        place.keep();
        own.into_iter().for_each(Place::keep);
        Ok(Admitted { tenant, client: client.clone(), _turn: turn })
    }

    /// Refuses a request of so many bytes before it is looked at, where its client or tenant was told to come back later
    /// with no more than that.
    ///
    /// # Errors
    /// What it was told.
    pub fn check_early(&self, principal: &Principal, bytes: u64) -> Result<(), OverQuota> {
        let now_us = self.0.options.clock.monotonic_us();
        let tenant = self.tenant(&principal.tenant);
        let early = |of: Of<'_>, usage: &Usage| {
            usage.comes_early(bytes, now_us).map_err(|(limit, most, wait)| of.over(limit, most, wait))
        };
        if let Some(client) = self.client(&tenant, principal) {
            early(Of::Client(principal), &client)?;
        }
        early(Of::Tenant(principal, tenant.is_named), &tenant.usage)
    }

    /// A place for a stream, socket or feed, which is open until it is dropped.
    ///
    /// # Errors
    /// So many are open already.
    pub fn open(&self, principal: &Principal) -> Result<Opened, OverQuota> {
        let tenant = self.tenant(&principal.tenant);
        let client = self.client(&tenant, principal);
        let of_tenant = Of::Tenant(principal, tenant.is_named);
        let limits = tenant.usage.limits;
        let place = Place::take(&tenant.usage.connections, limits.connections)
            .ok_or_else(|| of_tenant.over("connections", u64::from(limits.connections), CONNECTION_WAIT_MS))?;
        if let Some(client) = &client {
            let most = client.limits.connections;
            let over = || Of::Client(principal).over("connections", u64::from(most), CONNECTION_WAIT_MS);
            Place::take(&client.connections, most).ok_or_else(over)?.keep();
        }
        place.keep();
        Ok(Opened { tenant, client: client.clone() })
    }

    fn tenant(&self, id: &TenantId) -> Arc<Tenant> {
        if let Some(known) = self.0.tenants.read().get(id) {
            return known.clone();
        }
        let options = &self.0.options;
        let named = options.tenants.iter().find(|(name, _)| name == id).map(|(_, limits)| *limits);
        let make = || {
            let usage = Usage::new(named.unwrap_or(options.tenant), options, &self.0.ticks);
            Arc::new(Tenant { usage, is_named: named.is_some(), clients: RwLock::default() })
        };
        self.0.tenants.write().entry(id.clone()).or_insert_with(make).clone()
    }

    /// What the client has taken; none where clients have no limits of their own.
    fn client(&self, tenant: &Tenant, principal: &Principal) -> Option<Arc<Usage>> {
        let options = &self.0.options;
        if options.client.is_none() {
            return None;
        }
        let now = options.clock.monotonic_us();
        let known = tenant.clients.read().get(&principal.id).cloned();
        let client = known.unwrap_or_else(|| {
            let mut clients = tenant.clients.write();
            if clients.len() >= CLIENTS_MAX {
                // Who sent nothing for a while has a full bucket, as a new one has.
                clients.retain(|_, one| {
                    Arc::strong_count(one) > 1 || one.used_us.load(Ordering::Relaxed) + 60_000_000 > now
                });
            }
            if clients.len() >= CLIENTS_MAX {
                clients.retain(|_, one| Arc::strong_count(one) > 1);
            }
            let make = || Arc::new(Usage::new(options.client, options, &self.0.ticks));
            clients.entry(principal.id.clone()).or_insert_with(make).clone()
        });
        client.used_us.store(now, Ordering::Relaxed);
        Some(client)
    }
}

#[cfg(test)]
mod tests;
