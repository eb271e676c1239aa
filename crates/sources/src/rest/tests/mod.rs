//! What clients of the HTTP way in may rely on.

mod documents;
mod events;
mod harness;
