//! Figures and health, for people and for other rooms.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use lakegate_access::{Action, Principal, may_read};
use lakegate_log::LogHealth;
use lakegate_model::{StreamKey, StreamName, Tally, TenantId};

use crate::api::{ComponentHealth, GateStatus, HealthState, StreamStatus};
use crate::gate::{Gate, Inner};
use crate::streams::Stream;

/// Rows that wait longer for their commit than this, and three times the flush interval, are worth a word.
const COMMIT_PATIENCE_US: i64 = 10_000_000;

impl Gate {
    /// Figures of the streams that are asked for; all where nothing is said.
    #[must_use]
    pub fn status(&self, tenant: Option<&TenantId>, stream: Option<&StreamName>) -> GateStatus {
        let inner = &*self.inner;
        let balance = inner.sums();
        let asked = |key: &lakegate_model::StreamKey| {
            tenant.is_none_or(|tenant| *tenant == key.tenant) && stream.is_none_or(|stream| *stream == key.stream)
        };
        let mut totals = Tally::default();
        balance.iter().filter(|(key, _)| asked(key)).for_each(|(_, tally)| totals.add(tally));
        let mut streams: Vec<_> = inner.streams.all().into_iter().filter(|stream| asked(&stream.key)).collect();
        streams.sort_by(|a, b| (&a.key, &a.shaper.contract.part).cmp(&(&b.key, &b.shaper.contract.part)));
        let streams: Vec<_> = streams.iter().map(|s| inner.stream_status(s, tally_of(s, &balance))).collect();
        GateStatus {
            totals,
            rate_1m: streams.iter().map(|stream| stream.rate_1m).sum(),
            streams,
            memtable_bytes: inner.memtables.bytes() as u64,
            memory_budget: inner.settings.memory_budget as u64,
            inflight_bytes: inner.inflight.load(Ordering::Relaxed) as u64,
            durable_offset: inner.log.durable_offset(),
        }
    }

    /// How each component is.
    #[must_use]
    pub fn health(&self) -> Vec<ComponentHealth> {
        let inner = &*self.inner;
        vec![inner.wal_health(), inner.memory_health(), inner.lake_health(), inner.gate_health()]
    }
}

/// The counts of a stream are with its entry that has no event type.
fn tally_of(stream: &Stream, balance: &BTreeMap<StreamKey, Tally>) -> Tally {
    let counts = balance.get(&stream.key).filter(|_| stream.shaper.contract.part.is_empty());
    counts.copied().unwrap_or_default()
}

impl GateStatus {
    /// Leaves the streams that the principal may read; the totals are then theirs. What is of the whole server is for
    /// operators alone.
    pub fn keep_readable(&mut self, principal: &Principal) {
        if principal.is_operator() {
            return;
        }
        (self.memtable_bytes, self.memory_budget, self.inflight_bytes) = (0, 0, 0);
        if principal.may_all(Action::Read) {
            return;
        }
        self.streams.retain(|stream| may_read(Some(principal), stream.key.tenant.as_str(), stream.key.stream.as_str()));
        self.totals = Tally::default();
        self.streams.iter().for_each(|stream| self.totals.add(&stream.tally));
        self.rate_1m = self.streams.iter().map(|stream| stream.rate_1m).sum();
    }
}

impl Inner {
    fn stream_status(&self, stream: &Stream, tally: Tally) -> StreamStatus {
        let unit = &stream.unit;
        let stats = unit.memtable.stats();
        let now = self.clock.wall_us();
        #[allow(clippy::cast_precision_loss, reason = "seconds for people")]
        let seconds_since = |us: i64| (now - us).max(0) as f64 / 1e6;
        let last_commit_us = Some(unit.last_commit_us.load(Ordering::Relaxed)).filter(|us| *us > 0);
        StreamStatus {
            key: stream.key.clone(),
            part: stream.shaper.contract.part.clone(),
            table: unit.table.clone(),
            tally,
            rate_1m: stream.rate.per_second(),
            memtable_records: stats.records as u64,
            memtable_bytes: stats.bytes as u64,
            durable_offset: self.log.durable_offset(),
            absorbed_offset: unit.absorbed.load(Ordering::Acquire),
            lag_records: stats.records as u64,
            lag_seconds: stats.oldest_us.map_or(0.0, seconds_since),
            snapshot_id: unit.lake_table().and_then(|table| table.view().snapshot_id()),
            last_commit_us,
            seconds_since_commit: last_commit_us.map(seconds_since),
            last_error: unit.last_error(),
            sanitised: stream.noticed.sanitised(),
            rescued: stream.noticed.rescued(),
            clock_skewed: stream.noticed.skewed(),
        }
    }

    fn wal_health(&self) -> ComponentHealth {
        let status = self.log.status();
        let (state, message) = match status.health {
            LogHealth::Poisoned { reason } => {
                (HealthState::Unhealthy, format!("a write or sync failed and is final: {reason}; restart to recover"))
            }
            LogHealth::OutOfRoom { reason } => (HealthState::Unhealthy, reason.to_string()),
            LogHealth::Closed => (HealthState::Unhealthy, "the log is closed".to_owned()),
            LogHealth::Healthy if status.bytes >= status.quota_bytes / 10 * 9 => (
                HealthState::Degraded,
                format!("{} of {} bytes are taken (storage.wal.quota)", status.bytes, status.quota_bytes),
            ),
            LogHealth::Healthy => (HealthState::Healthy, String::new()),
        };
        ComponentHealth { name: "wal", state, message }
    }

    fn memory_health(&self) -> ComponentHealth {
        let (taken, budget) = (self.memtables.bytes(), self.settings.memory_budget);
        let full = taken > budget / 10 * 9;
        let state = if full { HealthState::Degraded } else { HealthState::Healthy };
        let message =
            if full { format!("{taken} of {budget} bytes are taken (ingestion.memory_budget)") } else { String::new() };
        ComponentHealth { name: "memory", state, message }
    }

    fn lake_health(&self) -> ComponentHealth {
        let units = self.streams.units();
        let failing: Vec<_> =
            units.iter().filter_map(|unit| unit.last_error().map(|error| format!("{}: {error}", unit.table))).collect();
        let halted = units.iter().any(|unit| unit.is_halted());
        let now = self.clock.wall_us();
        let patience_us = COMMIT_PATIENCE_US.max(self.settings.flush_interval_us.saturating_mul(3));
        let late = units.iter().filter_map(|unit| Some((unit, now - unit.memtable.frozen().first()?.oldest_us)));
        let late = late.filter(|(unit, age_us)| *age_us > patience_us && unit.last_error().is_none());
        let late = late
            .map(|(unit, age_us)| format!("{}: rows wait for their commit since {} s", unit.table, age_us / 1_000_000));
        let failing: Vec<_> = failing.into_iter().chain(late).collect();
        let state = if failing.is_empty() { HealthState::Healthy } else { HealthState::Degraded };
        let mut message = failing.join("; ");
        if halted {
            message.push_str("; this does not heal by itself");
        }
        ComponentHealth { name: "lake", state, message }
    }

    fn gate_health(&self) -> ComponentHealth {
        match self.closed_reason() {
            Some(message) => ComponentHealth { name: "gate", state: HealthState::Unhealthy, message },
            None => ComponentHealth { name: "gate", state: HealthState::Healthy, message: String::new() },
        }
    }
}
