//! Keeps what must outlive the log's oldest frames, then removes from the log what every table has.

use crate::gate::{Inner, SEGMENTS_KEPT, TRIM_EVERY_US};

impl Inner {
    /// Keeps the balance, then removes from the log what every table has.
    pub(crate) fn trim(&self, now: bool) {
        let clock_us = self.clock.monotonic_us();
        let mut trimmed = self.trimmed.lock();
        if !now && clock_us < trimmed.at_us + TRIM_EVERY_US {
            return;
        }
        trimmed.at_us = clock_us;
        // Read first: rows that come in meanwhile have higher offsets.
        let durable = self.log.durable_offset();
        let pending = self.streams.units().iter().filter_map(|unit| unit.memtable.first_pending_offset()).min();
        let offset = pending.unwrap_or(durable).min(durable);
        let status = self.log.status();
        let in_doubt = self.shared.as_ref().and_then(|shared| shared.oldest_doubt());
        let held =
            self.holds.oldest().into_iter().chain(in_doubt).min().filter(|_| status.bytes < status.quota_bytes / 2);
        let offset = offset.min(held.unwrap_or(offset));
        let removable = now || status.segments > SEGMENTS_KEPT;
        if offset <= trimmed.offset || !removable {
            return;
        }
        if let Err(error) = self.keep_balance(offset) {
            tracing::warn!(%error, "the log is not trimmed");
            return;
        }
        if let Err(error) = self.keep_keys(&mut trimmed, offset) {
            tracing::warn!(%error, "the log is not trimmed: its event keys could not be kept");
            return;
        }
        match self.log.trim(offset) {
            Ok(_) => trimmed.offset = offset,
            Err(error) => tracing::warn!(%error, "the log could not be trimmed; it is tried again"),
        }
    }

    /// Keeps sums that cover at least everything below `offset`, all of it durable.
    fn keep_balance(&self, offset: u64) -> Result<(), String> {
        let sums = {
            let _exclusive = self.balance_gate.write();
            let mut sums = self.balance.lock().clone();
            sums.upto_offset = self.log.next_offset();
            sums
        };
        debug_assert!(sums.upto_offset >= offset, "the log's end lies behind what is trimmed");
        if self.log.durable_offset() < sums.upto_offset {
            // Sums of frames that a crash may still take must not be kept; soon they are durable.
            return Err("the newest records are not durable yet".to_owned());
        }
        let path = self.settings.data_dir.join("balance.json");
        sums.store(&*self.disk, &path, self.log.id()).map_err(|error| error.to_string())
    }
}
