//! Arrow Flight and Flight SQL on the gRPC port (their specifications at arrow.apache.org).
//!
//! `DoPut` with a path brings columns to a stream ([`put`]); everything else is SQL, done by the same statements as over
//! HTTP. Promises: a batch is acknowledged when it is durable; a query runs when its rows are fetched, a statement that
//! changes something when it is asked for, each once; what a client keeps here (prepared statements) is bounded. Refuses:
//! transactions, Substrait.

mod answers;
mod literals;
mod prepared;
mod put;
mod sql;

use std::pin::Pin;
use std::sync::Arc;

use arrow_flight::FlightData;
use arrow_flight::flight_service_server::FlightServiceServer;
use futures::Stream;
use lakegate_ingest::{Client, Gate};
use lakegate_sources::grpc::{Asking, TonicService};
use tonic::{Extensions, Status};

use self::prepared::Prepared;
use crate::statements::{Asker, Kind, StatementError, Statements};

/// Columns come in larger messages than records do; a frame of the log holds no more.
const MESSAGE_BYTES_MAX: usize = 32 << 20;

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service. Clones share everything.
#[derive(Clone)]
pub(crate) struct Flight {
    statements: Statements,
    gate: Gate,
    prepared: Arc<Prepared>,
    batch_rows_max: usize,
}

/// The service as the gRPC listener mounts it.
pub(crate) fn service(
    statements: Statements,
    gate: Gate,
    message_bytes_max: usize,
    batch_rows_max: usize,
) -> TonicService {
    let flight = Flight { statements, gate, prepared: Arc::default(), batch_rows_max };
    let service = FlightServiceServer::new(flight).max_decoding_message_size(message_bytes_max.max(MESSAGE_BYTES_MAX));
    TonicService::new(service)
}

/// Who asks, as the listener found.
fn asker_of(extensions: &Extensions) -> Result<Asker, Status> {
    let asking = extensions.get::<Asking>().ok_or_else(|| Status::unauthenticated("nobody is known"))?;
    let scope = lakegate_access::scope(asking.principal.as_deref(), None);
    let scope = scope.map_err(|error| Status::permission_denied(error.to_string()))?;
    let client = Client { address: asking.address, user_agent: asking.user_agent.clone() };
    Ok(Asker { principal: asking.principal.clone(), scope, client, correlation_id: None })
}

fn status_of(error: &StatementError) -> Status {
    let message = error.message.clone();
    match error.kind {
        Kind::Invalid => Status::invalid_argument(message),
        Kind::NotFound => Status::not_found(message),
        Kind::Exists => Status::already_exists(message),
        Kind::Denied => Status::permission_denied(message),
        Kind::TooLarge => Status::out_of_range(message),
        Kind::Cancelled => Status::cancelled(message),
        Kind::Timeout => Status::deadline_exceeded(message),
        Kind::Later => Status::unavailable(message),
        Kind::Internal => Status::internal(message),
    }
}

/// One message of a stream of columns, as an Arrow IPC stream has it.
fn put_message(out: &mut Vec<u8>, data: &FlightData) {
    let padded = data.data_header.len().next_multiple_of(8);
    out.extend_from_slice(&u32::MAX.to_le_bytes());
    out.extend_from_slice(&u32::try_from(padded).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&data.data_header);
    out.resize(out.len() + padded - data.data_header.len(), 0);
    out.extend_from_slice(&data.data_body);
}
