//! A file that is written piece by piece.

use std::fs::File;
use std::io::{self, Write};

use bytes::Bytes;

use super::WarehouseError;
use super::bucket::Upload;
use super::disk::{path_of, sync_folder};

/// A file being written.
#[derive(Debug)]
pub(crate) struct Sink {
    location: String,
    to: SinkTo,
}

#[derive(Debug)]
pub(super) enum SinkTo {
    File(File),
    Object(Box<Upload>),
    Memory(Vec<u8>),
}

/// A file written to its end.
#[derive(Debug)]
pub(crate) enum Finished {
    /// On disk, synced with its folder.
    Disk,
    /// Still to be completed in the bucket; dropped, nothing of it is left.
    Object(Box<Upload>),
    /// Still to be put into the memory's store.
    Memory { location: String, bytes: Bytes },
}

impl Sink {
    pub(super) fn new(location: &str, to: SinkTo) -> Self {
        Self { location: location.to_owned(), to }
    }

    /// Syncs file and folder.
    pub(crate) fn sync(self) -> Result<Finished, WarehouseError> {
        let Self { location, to } = self;
        match to {
            SinkTo::File(file) => {
                let wrong = |source| WarehouseError::Io { action: "sync", location: location.clone(), source };
                file.sync_data().map_err(wrong)?;
                sync_folder(path_of(&location).parent())?;
                Ok(Finished::Disk)
            }
            SinkTo::Object(upload) => Ok(Finished::Object(upload)),
            SinkTo::Memory(bytes) => Ok(Finished::Memory { location, bytes: Bytes::from(bytes) }),
        }
    }

    /// Removes what was written so far; an upload that is dropped leaves nothing.
    pub(crate) fn abandon(location: &str) {
        let path = path_of(location);
        if location.starts_with("file:")
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(%location, %error, "an unfinished data file could not be removed");
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            SinkTo::File(file) => file.write(bytes),
            SinkTo::Object(upload) => upload.write(bytes),
            SinkTo::Memory(buffer) => buffer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
