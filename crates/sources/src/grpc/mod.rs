//! The gRPC way in: `storage.IngestionService`, `grpc.health.v1`, server reflection and `GET /health`, on one port.
//!
//! A message goes to the gate as the bytes that came: it is not decoded here, and not copied where one frame of the
//! connection holds it whole. [`serve`] runs the listener until its token is cancelled, then drains.
//!
//! Promises: every refusal is an answer with `google.rpc` details, never a dropped connection; what is read into
//! memory is bounded per message, per connection and over all, counted after decompression; a stream answers in the
//! order of sending. Refuses: rules about records, identity, storage.

mod answer;
mod calls;
mod compression;
mod connection;
mod error;
mod message;
mod observe;
mod options;
mod preface;
mod reply;
mod route;
mod server;
mod shared;
mod stream;
mod wire;

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "made of proto/storage; the protos say what a field means"
)]
#[rustfmt::skip]
#[path = "generated/storage.rs"]
pub mod proto;

#[cfg(test)]
mod tests;

use crate::intake;

pub use options::{Asking, GrpcLimits, GrpcOptions};
pub use server::{ServeError, serve};
pub use shared::TonicService;

/// The descriptors of all messages and services, as server reflection gives them out.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/storage.descriptors.bin");
