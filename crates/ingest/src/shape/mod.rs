//! Shaping: a record's bytes to the values of its table's columns, read once.
//!
//! A [`Shaper`] is a contract made ready: a tree of the payload's members that columns take. One pass over the payload
//! finds them; each is read according to its column's type; what is wrong is told with the column, what was found and
//! what would be right. Values borrow from the request's bytes wherever nothing has to be unescaped.

pub(crate) mod leaf;
mod payload;
mod record;

pub(crate) use record::{Envelope, RecordContext, Shaper};
