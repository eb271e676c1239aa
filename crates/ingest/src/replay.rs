//! After a restart: the log's frames back into the memtables, as they were decided.
//!
//! A frame whose records the lake has is only counted; any other is shaped again from the same bytes, under the same
//! contract, by the same code, with the decisions that its header holds. While the lake cannot be asked how far a table
//! is, all of the table's records are put back, and what of them it has is let go once it answers.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use lakegate_model::{ReasonCode, Refusal};

use crate::api::Source;
use crate::batch::{Rules, Shaped, Wanted, shape_again};
use crate::columns::{Columns, shape_columns_again};
use crate::frame::{ExceptionKind, FrameBody, FrameHeader};
use crate::gate::{GateOpenError, Inner};
use crate::import::conform::Names;
use crate::rows::{Span, tables_of};
use crate::streams::Stream;
use crate::wire::{BatchRequest, WireError};

/// What replay did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Frames read.
    pub frames: u64,
    /// Records put back into memory.
    pub records: u64,
    /// Bytes of frames read.
    pub bytes: u64,
}

/// One frame of the log, read.
pub(crate) struct Frame {
    pub(crate) first_offset: u64,
    pub(crate) next_offset: u64,
    pub(crate) header: FrameHeader,
    pub(crate) body: Bytes,
}

impl Inner {
    /// Reads the log from its first frame. Memory stays within the budget: what is replayed is flushed, or moved to
    /// files, as it would be while running.
    pub(crate) async fn replay(&self) -> Result<Replayed, GateOpenError> {
        let mut replayed = Replayed::default();
        let counted_upto = self.balance.lock().upto_offset;
        let mut lacks = Lacks::default();
        for frame in self.log.read(self.log.first_offset()).map_err(GateOpenError::Log)? {
            let frame = frame.map_err(GateOpenError::Log)?;
            let next_offset = frame.first_offset + u64::from(frame.records);
            let (header, body) = FrameHeader::decode(&frame.payload)
                .map_err(|error| GateOpenError::Frame { offset: frame.first_offset, error })?;
            replayed.frames += 1;
            replayed.bytes += frame.payload.len() as u64;
            if frame.first_offset >= counted_upto {
                let mut balance = self.balance.lock();
                header.streams.iter().for_each(|stream| balance.add(&stream.key, &stream.tally));
            }
            self.remember(&header, frame.first_offset, next_offset);
            if header.body != FrameBody::None {
                let frame = Frame { first_offset: frame.first_offset, next_offset, header, body };
                replayed.records += self.replay_frame(&frame, &mut lacks).await?;
            }
            if self.memtables.bytes() > self.settings.memory_budget / 2 {
                self.freeze_due(true);
                self.flush_once().await;
                self.spill_excess();
            }
        }
        Ok(replayed)
    }

    async fn replay_frame(&self, frame: &Frame, lacks: &mut Lacks) -> Result<u64, GateOpenError> {
        let mut streams = Wanted::new();
        for touched in &frame.header.streams {
            if touched.fingerprint == 0 {
                continue;
            }
            let shaper = self.contracts.find(touched.fingerprint).map_err(GateOpenError::Contract)?;
            if self.dropped.has(&touched.key, &shaper.contract, frame.next_offset) {
                continue;
            }
            let stream = self.streams.resolve_as(&touched.key, touched.fingerprint, shaper);
            let stream = stream.map_err(|refusal| GateOpenError::Stream(refusal.message))?;
            let table = &stream.unit.table;
            if !lacks.from.contains_key(table) {
                let absorbed = self.absorbed_of(&stream, &mut lacks.lake_is_away).await?;
                lacks.from.insert(table.clone(), absorbed);
            }
            if lacks.from.get(table).is_some_and(|absorbed| *absorbed < frame.next_offset) {
                streams.entry(touched.key.clone()).or_default().push(stream);
            }
        }
        if streams.is_empty() {
            return Ok(0);
        }
        let malformed = |reason: String| GateOpenError::Body { offset: frame.first_offset, reason };
        let shaped = frame.shape_again(self, &streams).map_err(malformed)?;
        self.put_back(shaped, frame).map_err(malformed)
    }

    fn put_back(&self, mut shaped: Shaped<'_>, frame: &Frame) -> Result<u64, String> {
        let mut rows = Vec::with_capacity(shaped.groups.len());
        for group in &mut shaped.groups {
            rows.push(group.take_rows().map_err(|error| error.to_string())?);
        }
        let span =
            Span { first_offset: frame.first_offset, next_offset: frame.next_offset, now_us: self.clock.wall_us() };
        let units = tables_of(&rows);
        let mut count = 0;
        for group in rows {
            if group.is_empty() {
                continue;
            }
            if let Some(unit) = units.iter().find(|unit| Arc::ptr_eq(unit, &group.stream.unit)) {
                count += group.len() as u64;
                group.push(&mut unit.memtable.lock(), span).map_err(|error| error.to_string())?;
            }
        }
        Ok(count)
    }

    /// How far the lake has this stream's table. While the lake is away: nothing of it is known to be there.
    async fn absorbed_of(&self, stream: &Stream, lake_is_away: &mut bool) -> Result<u64, GateOpenError> {
        let unit = &stream.unit;
        // Each question takes its time to fail: one is enough.
        let found = if *lake_is_away { None } else { Some(self.lake.find_table(&unit.table).await) };
        let absorbed = match found {
            Some(Ok(table)) => table.map_or(0, |table| table.view().absorbed_next_offset(self.log.id())),
            Some(Err(error)) if !error.is_retryable() => {
                return Err(GateOpenError::Lake { table: unit.table.clone(), error: error.to_string() });
            }
            away => {
                if let Some(Err(error)) = away {
                    tracing::warn!(table = %unit.table, %error, "the lake is away: records are taken, and wait in the log");
                }
                *lake_is_away = true;
                unit.memtable.unsettle();
                0
            }
        };
        unit.absorbed.store(absorbed, std::sync::atomic::Ordering::Release);
        Ok(absorbed)
    }
}

/// What the lake lacks, as far as it could be asked.
#[derive(Default)]
struct Lacks {
    /// Of each table, the offset from which on.
    from: HashMap<lakegate_model::TableName, u64>,
    lake_is_away: bool,
}

/// What held for the records of a frame when it came.
pub(crate) fn rules_of<'r>(inner: &'r Inner, header: &'r FrameHeader) -> Rules<'r> {
    Rules {
        streams: &inner.streams,
        tenant: header.tenant.as_ref(),
        principal: None,
        source: Source::from_number(header.source).name(),
        received_us: header.received_us,
        id_base: header.id_base,
        payload_bytes_max: usize::MAX,
        atomic: false,
        in_order: true,
        client_address: header.client_address.as_str().into(),
        user_agent: &header.user_agent,
        correlation_id: &header.correlation_id,
        lake: None,
    }
}

/// What was decided about the records of a frame that were not accepted.
pub(crate) fn decisions(header: &FrameHeader) -> HashMap<u32, (ExceptionKind, Refusal)> {
    header.exceptions.iter().map(|e| (e.index, (e.kind, refusal_of(e.reason)))).collect()
}

impl Frame {
    /// Its records for the streams in `wanted`, as they were decided.
    ///
    /// # Errors
    /// The log and the contracts beside it do not fit.
    pub(crate) fn shape_again(&self, inner: &Inner, wanted: &Wanted) -> Result<Shaped<'_>, String> {
        let (rules, decided) = (rules_of(inner, &self.header), decisions(&self.header));
        if let FrameBody::Arrow { tenant, stream, by_name } = &self.header.body {
            // It was within its bounds when it came.
            let columns = Columns::read(&self.body, usize::MAX).map_err(|error| error.to_string())?;
            let request = BatchRequest::of_columns(&self.body, tenant.as_ref(), stream);
            let names = if *by_name { Names::Own } else { Names::Payload };
            return shape_columns_again(&request, &columns, names, &rules, wanted, &decided);
        }
        let request = self.request().map_err(|error| error.to_string())?;
        shape_again(&request, &rules, wanted, &decided)
    }

    /// What was asked for; of rows in columns there is none.
    pub(crate) fn request(&self) -> Result<BatchRequest<'_>, WireError> {
        match &self.header.body {
            FrameBody::Payloads { tenant, stream, spans } => {
                let tenant = tenant.as_ref().map_or("", lakegate_model::TenantId::as_str);
                BatchRequest::of_payloads(&self.body, spans, tenant, stream.as_str())
            }
            FrameBody::None | FrameBody::ProtoBatch | FrameBody::Arrow { .. } => BatchRequest::read(&self.body),
        }
    }
}

/// The refusal of a record whose decision the log holds, where shaping it again does not give the reason.
fn refusal_of(reason: u8) -> Refusal {
    let code = ReasonCode::from_number(reason).unwrap_or(ReasonCode::MalformedPayload);
    Refusal { code, field: None, message: "refused when it was received".to_owned() }
}
