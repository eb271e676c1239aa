//! Records that break their contract: among the tenant's dead letters before the position passes them.
//!
//! Each is a request of its own, told by its partition and offset: one that is read again is not set aside again.

use bytes::Bytes;
use lakegate_model::Refusal;

use super::api::{UpstreamError, UpstreamRecords};
use super::{Upstream, shape};
use crate::api::SubmitError;
use crate::import::letters::{Letter, Sender};

impl Upstream {
    /// Sets records aside. Returns up to where our own log must be durable before the position moves.
    pub(super) fn set_aside(
        &self,
        records: &UpstreamRecords<'_>,
        bad: &[(usize, Refusal)],
    ) -> Result<u64, UpstreamError> {
        let mut upto = 0;
        let sender = || Sender {
            key: self.stream.key.clone(),
            source: self.target.source,
            place: records.place.to_owned(),
            unit: "offset",
            first: 0,
            file: records.partition,
            correlation_id: None,
        };
        for (place, refusal) in bad {
            let Some(record) = records.records.get(*place) else { continue };
            let raw = Bytes::copy_from_slice(shape::raw(records.body, record));
            let letter = Letter { row: record.offset, raw, refusal: refusal.clone() };
            let id = format!("{}-{:032x}-{}", self.target.source.name(), records.partition, record.offset);
            let ticket = self.gate.inner.append_letters(&sender(), &[letter], &id).map_err(|error| match error {
                SubmitError::OutOfRoom { message, .. } => UpstreamError::OutOfRoom(message),
                other => UpstreamError::Closed(other.to_string()),
            })?;
            upto = upto.max(ticket.next_offset());
        }
        Ok(upto)
    }
}
