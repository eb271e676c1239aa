//! From a file to its reader.

use std::sync::Arc;

use crate::{Input, Mark, Pieces, ReadError, ReadOptions};

/// Begins to read a file, at its beginning or where a mark says.
///
/// # Errors
/// The file is of no known format, its head is damaged, or the mark does not fit it.
pub fn open(input: Arc<dyn Input>, options: &ReadOptions, resume: Option<Mark>) -> Result<Box<dyn Pieces>, ReadError> {
    let _ = (options, resume);
    Err(ReadError::Unsupported { name: input.name().to_owned(), reason: "no reader knows it".to_owned() })
}
