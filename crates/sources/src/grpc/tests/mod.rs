//! The protocol, against a gate of the tests' own, and the whole way in, against the real one.

mod generation;
mod harness;
mod listener;
mod refusals;
mod streaming;
mod unary;
mod whole;
