//! Shaping: a record's bytes to the values of its table's columns, read once.
//!
//! A [`Shaper`] is a contract made ready: a tree of the payload's members that columns take. One pass over the payload
//! finds them; each is read according to its column's type; what is wrong is told with the column, what was found and
//! what would be right. Values borrow from the request's bytes wherever nothing has to be unescaped.

mod clean;
mod envelope;
mod infer;
pub(crate) mod leaf;
mod payload;
mod plain;
mod record;
mod rules;

pub(crate) use envelope::{ClientOf, Envelope, RecordContext};
pub(crate) use infer::{column_name, unite, wider_of};
pub(crate) use payload::Found;
pub(crate) use plain::shape_plain;
pub(crate) use record::Shaper;
pub(crate) use rules::{Marks, SlotRules, Wanted};
