//! Requests made ahead, and sent as bytes: the load generator's own cost stays small.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;

use lakegate_sources::grpc::proto::IngestBatchResponse;

use super::{Failure, Payload, Shape};

/// The method that batches are sent to.
const INGEST_BATCH: &str = "/storage.IngestionService/IngestBatch";

/// A small generator of repeatable numbers (SplitMix64, by Sebastiano Vigna).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
        value >>= 7;
    }
    out.put_u8(u8::try_from(value).unwrap_or_default());
}

fn put_field(out: &mut BytesMut, number: u64, bytes: &[u8]) {
    put_varint(out, number << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Makes the bytes of a request of `records` records for the stream `stream`.
pub(crate) fn request(stream: &str, records: usize, payload: Payload, shape: Shape, numbers: &mut Numbers) -> Bytes {
    let mut out = BytesMut::with_capacity(records * 300);
    for _ in 0..records {
        let mut record = BytesMut::with_capacity(300);
        let id = format!("{:016x}{:016x}", numbers.next(), numbers.next());
        put_field(&mut record, 3, id.as_bytes());
        put_field(&mut record, 4, payload_of(payload, shape, numbers).as_bytes());
        let mut time = BytesMut::new();
        time.put_u8(0x08);
        put_varint(&mut time, 1_700_000_000 + numbers.next() % 86_400);
        put_field(&mut record, 6, &time);
        let kinds = ["page_viewed", "cart_updated", "purchase_completed", "cart_abandoned"];
        let kind = usize::try_from(numbers.next() % 4).ok().and_then(|at| kinds.get(at)).copied().unwrap_or_default();
        put_field(&mut record, 7, kind.as_bytes());
        record.put_u8(8 << 3);
        put_varint(&mut record, numbers.next() % 100);
        put_field(&mut out, 1, &record);
    }
    put_field(&mut out, 3, stream.as_bytes());
    out.freeze()
}

fn payload_of(payload: Payload, shape: Shape, numbers: &mut Numbers) -> String {
    let text = |numbers: &mut Numbers, words: u64| match payload {
        Payload::Random => (0..words * 2).map(|_| format!("{:x}", numbers.next())).collect::<String>(),
        Payload::Plain => (0..words)
            .map(|_| match numbers.next() % 3 {
                0 => "alpha ",
                1 => "beta ",
                _ => "gamma ",
            })
            .collect(),
    };
    match shape {
        Shape::Opaque => text(numbers, 8),
        Shape::Json => format!(
            r#"{{"user":"u{}","session":"{:x}","page":"/p/{}","amount":{}.{:02},"count":{},"ok":{},"at":"2026-03-0{}T12:{:02}:00Z","note":"{}"}}"#,
            numbers.next() % 100_000,
            numbers.next(),
            numbers.next() % 500,
            numbers.next() % 1000,
            numbers.next() % 100,
            numbers.next() % 50,
            numbers.next().is_multiple_of(2),
            numbers.next() % 9 + 1,
            numbers.next() % 60,
            text(numbers, 3).trim_end()
        ),
    }
}

/// The declaration of the stream that such requests go to.
pub(crate) fn stream_settings(shape: Shape) -> serde_json::Value {
    let envelope = serde_json::json!([
        {"name": "event_id", "type": "string", "envelope": "event_id", "required": true},
        {"name": "event_type", "type": "string", "envelope": "event_type"},
        {"name": "event_time", "type": "timestamptz", "envelope": "event_time", "required": true},
        {"name": "version", "type": "long", "envelope": "version", "required": true},
    ]);
    let own = match shape {
        Shape::Opaque => serde_json::json!([{"name": "payload", "type": "binary", "envelope": "payload"}]),
        Shape::Json => serde_json::json!([
            {"name": "user", "type": "string", "path": "user"}, {"name": "session", "type": "string", "path": "session"},
            {"name": "page", "type": "string", "path": "page"}, {"name": "amount", "type": "double", "path": "amount"},
            {"name": "count", "type": "long", "path": "count"}, {"name": "ok", "type": "boolean", "path": "ok"},
            {"name": "at", "type": "timestamptz", "path": "at"}, {"name": "note", "type": "string", "path": "note"},
        ]),
    };
    let mut columns = envelope.as_array().cloned().unwrap_or_default();
    columns.extend(own.as_array().cloned().unwrap_or_default());
    let payload = if shape == Shape::Opaque { "opaque" } else { "json" };
    serde_json::json!({ "payload": payload, "columns": columns, "partitions": ["day(event_time)"] })
}

/// Bytes out, a batch's answer in.
#[derive(Debug, Clone, Copy, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = IngestBatchResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = IngestBatchResponse;
    type Error = tonic::Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, tonic::Status> {
        IngestBatchResponse::decode(bytes).map(Some).map_err(|error| tonic::Status::internal(error.to_string()))
    }
}

/// Sends one request and waits for its answer.
pub(crate) async fn send(channel: Channel, request: Bytes) -> Result<IngestBatchResponse, tonic::Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(INGEST_BATCH);
    grpc.unary(tonic::Request::new(request), path, RawCodec).await.map(tonic::Response::into_inner)
}

/// A connection to a server.
pub(crate) async fn connect(address: &str) -> Result<Channel, Failure> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?;
    let endpoint =
        endpoint.tcp_nodelay(true).initial_stream_window_size(4 << 20).initial_connection_window_size(16 << 20);
    Ok(endpoint.connect().await?)
}
