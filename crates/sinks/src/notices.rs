//! Notices that new data is in a table: one for each commit, with the snapshot, the position of the log and the rows.
//!
//! What is kept is the newest commit of each table that was told; after a restart those that came since are told. A
//! commit whose snapshot was expired meanwhile is told with the next one, whose total counts it.

use std::convert::Infallible;
use std::time::Duration;

use lakegate_ingest::HistoryTable;
use lakegate_lake::SnapshotInfo;
use serde_json::json;

use crate::consumer::{Consumer, RunError};
use crate::outgoing::Message;
use crate::route::{Delivered, Parcel};
use crate::sink::Sink;

/// So often tables are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// So often tables are looked for that are not known yet.
const LISTS_EVERY: u32 = 20;

impl Consumer {
    pub(crate) async fn run_notices(&mut self) -> Result<Infallible, RunError> {
        let mut sink = match &self.route {
            Some(route) => {
                route.check(&self.ground.shared.hosts).await.map_err(RunError::Target)?;
                None
            }
            None => Some(Sink::open(&self.settings.target).map_err(RunError::Target)?),
        };
        let mut tables: Vec<HistoryTable> = Vec::new();
        let mut round = 0;
        loop {
            if round % LISTS_EVERY == 0 {
                let filter = self.settings.filter.clone();
                let found = self.ground.gate.history(|key| filter.wants(key)).await;
                tables = found.map_err(|error| RunError::Target(error.to_string()))?;
            }
            round += 1;
            for table in &tables {
                let name = table.table.to_string();
                let Some(known) = self.ground.gate.lake().known_table(&table.table) else { continue };
                let told = self.kept.told.get(&name).copied();
                let mut new: Vec<SnapshotInfo> = known.view().snapshots();
                new.retain(|snapshot| {
                    snapshot.operation == "append" && told.is_none_or(|t| snapshot.sequence_number > t)
                });
                new.sort_by_key(|snapshot| snapshot.sequence_number);
                let Some(last) = new.last().map(|snapshot| snapshot.sequence_number) else { continue };
                let parcels: Vec<Parcel> = new.iter().map(|snapshot| self.notice(table, snapshot)).collect();
                match &mut sink {
                    Some(sink) => {
                        let messages = parcels.iter().map(|parcel| Message::of(parcel, &[])).collect();
                        self.send_messages(sink, messages).await;
                    }
                    None => self.ask_each(&parcels).await,
                }
                self.kept.told.insert(name, last);
                self.kept.offset = self.ground.gate.durable_offset();
                self.kept.counts.matched += parcels.len() as u64;
                self.kept.counts.delivered += parcels.len() as u64;
                self.store().await?;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A notice that a service refuses is logged and gone: the next one says as much.
    async fn ask_each(&self, parcels: &[Parcel]) {
        let Some(route) = &self.route else { return };
        for parcel in parcels {
            if let Delivered::GivenUp { reason, .. } = route.deliver(parcel, &self.breaker, &self.live).await {
                tracing::warn!(consumer = %self.settings.name, %reason, "a notice was refused");
            }
        }
    }

    fn notice(&self, table: &HistoryTable, snapshot: &SnapshotInfo) -> Parcel {
        let number = |key: &str| snapshot.summary.get(key).and_then(|text| text.parse::<u64>().ok());
        let log = self.ground.gate.log_id();
        let stream = table.streams.first();
        let event = json!({
            "type": "new_data",
            "table": table.table.to_string(),
            "snapshotId": snapshot.snapshot_id.to_string(),
            "sequenceNumber": snapshot.sequence_number,
            "rows": number("added-records").unwrap_or(0),
            "totalRows": number("total-records"),
            "log": log.to_string(),
            "position": number(&format!("lakegate.wal.{log}")),
            "committedAtUs": snapshot.committed_at_us,
        });
        Parcel {
            key: format!("{}-{}", table.table, snapshot.snapshot_id),
            tenant: stream.map(|key| key.tenant.to_string()).unwrap_or_default(),
            stream: stream.map(|key| key.stream.to_string()).unwrap_or_default(),
            received_us: snapshot.committed_at_us,
            correlation_id: "".into(),
            row: event.as_object().cloned().unwrap_or_default(),
            event,
        }
    }
}
