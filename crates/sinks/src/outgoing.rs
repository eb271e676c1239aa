//! What goes into queues: one message for each record, or for each commit.

use serde_json::Value;

use crate::record::Rows;
use crate::route::Parcel;

/// A message.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) key: String,
    /// Messages that agree in it keep their order.
    pub(crate) order: String,
    pub(crate) tenant: String,
    pub(crate) stream: String,
    pub(crate) correlation_id: String,
    pub(crate) body: String,
}

impl Message {
    pub(crate) fn of(parcel: &Parcel, order: &[Vec<String>]) -> Self {
        let order = order_of(parcel, order);
        Self {
            order: order.unwrap_or_else(|| parcel.key.clone()),
            key: parcel.key.clone(),
            tenant: parcel.tenant.clone(),
            stream: parcel.stream.clone(),
            correlation_id: parcel.correlation_id.to_string(),
            body: parcel.event.to_string(),
        }
    }

    /// What goes beside the body.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("idempotency-key", &self.key),
            ("tenant", &self.tenant),
            ("stream", &self.stream),
            ("x-request-id", &self.correlation_id),
        ];
        all.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name, value.as_str()))
    }

    /// A topic's or stream's name for this message.
    pub(crate) fn place(&self, pattern: &str) -> String {
        pattern.replace("{tenant}", &self.tenant).replace("{stream}", &self.stream)
    }
}

/// The values in which records agree that go out one after the other; none where the order does not matter.
pub(crate) fn order_of(parcel: &Parcel, order: &[Vec<String>]) -> Option<String> {
    if order.is_empty() {
        return None;
    }
    let values: Vec<String> = order
        .iter()
        .map(|path| match crate::condition::find(&parcel.row, path) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        })
        .collect();
    Some(format!("{}/{}/{}", parcel.tenant, parcel.stream, values.join("/")))
}

/// The records of rows, each by itself.
pub(crate) fn parcels(rows: &Rows) -> Vec<Parcel> {
    let keys = rows.keys();
    let each = rows.objects().into_iter().zip(keys).enumerate();
    each.map(|(at, (row, key))| Parcel {
        key,
        tenant: rows.key.tenant.to_string(),
        stream: rows.key.stream.to_string(),
        received_us: rows.received_us(at),
        correlation_id: rows.correlation_id.clone(),
        event: rows.event_of(&row),
        row,
    })
    .collect()
}
