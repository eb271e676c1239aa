//! Frozen rows in files, for as long as the lake is behind and memory is short.
//!
//! A file is an Arrow IPC file of the part's batches. It needs no sync: the log has the same rows, and after a restart
//! all such files are removed and the rows come from the log.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use lakegate_env::Disk;
use lakegate_memtable::FrozenPart;
use lakegate_model::TableName;
use parking_lot::Mutex;

/// A file of rows could not be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpillError {
    #[error("{path}: {source}")]
    Disk { path: PathBuf, source: std::io::Error },
    #[error("{path} does not hold the rows that were put there: {source}")]
    Arrow { path: PathBuf, source: ArrowError },
}

/// The folder of such files.
pub(crate) struct Spills {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    retired: Mutex<Vec<Arc<FrozenPart>>>,
}

impl Spills {
    /// Opens the folder and removes what an earlier process left.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Self, SpillError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| SpillError::Disk { path, source }
        };
        disk.create_dir_all(&dir).map_err(at(&dir))?;
        for name in disk.list(&dir).map_err(at(&dir))? {
            let path = dir.join(name);
            disk.remove(&path).map_err(at(&path))?;
        }
        Ok(Self { disk, dir, retired: Mutex::default() })
    }

    /// Writes a part's rows; returns the file.
    pub(crate) fn write(
        &self,
        table: &TableName,
        part: &FrozenPart,
        batches: &[RecordBatch],
    ) -> Result<PathBuf, SpillError> {
        let path = self.dir.join(format!("{table}-{}-{}.arrow", part.first_offset, part.next_offset));
        let arrow = |source| SpillError::Arrow { path: path.clone(), source };
        let Some(first) = batches.first() else { return Ok(path) };
        let mut bytes = Vec::with_capacity(part.bytes);
        let mut writer = FileWriter::try_new(&mut bytes, &first.schema()).map_err(arrow)?;
        for batch in batches {
            // Rows of an older contract lack columns; readers go by name, files have one schema each.
            let batch = fit(batch, first).map_err(arrow)?;
            writer.write(&batch).map_err(arrow)?;
        }
        writer.finish().map_err(arrow)?;
        drop(writer);
        let disk = |source| SpillError::Disk { path: path.clone(), source };
        match self.disk.remove(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(disk(error)),
            _ => {}
        }
        self.disk.create_new(&path).and_then(|file| file.write_all_at(&bytes, 0)).map_err(disk)?;
        Ok(path)
    }

    /// Reads a file back.
    pub(crate) fn read(&self, path: &Path) -> Result<Vec<RecordBatch>, SpillError> {
        let bytes = self.disk.read(path).map_err(|source| SpillError::Disk { path: path.to_owned(), source })?;
        let reader = FileReader::try_new(Cursor::new(bytes), None);
        let batches = reader.and_then(Iterator::collect::<Result<Vec<_>, _>>);
        batches.map_err(|source| SpillError::Arrow { path: path.to_owned(), source })
    }

    /// Takes parts that the lake has. Their files go once no query reads them any more.
    pub(crate) fn retire(&self, parts: Vec<Arc<FrozenPart>>) {
        self.retired.lock().extend(parts.into_iter().filter(|part| part.file().is_some()));
        self.sweep();
    }

    /// Removes the files of retired parts that nobody holds.
    pub(crate) fn sweep(&self) {
        self.retired.lock().retain(|part| {
            if Arc::strong_count(part) > 1 {
                return true;
            }
            if let Some(path) = part.file()
                && let Err(error) = self.disk.remove(&path)
            {
                tracing::warn!(path = %path.display(), %error, "a file of rows that the lake has could not be removed");
            }
            false
        });
    }
}

fn fit(batch: &RecordBatch, like: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    if batch.schema() == like.schema() {
        return Ok(batch.clone());
    }
    let schema = like.schema();
    let column = |field: &arrow::datatypes::FieldRef| match batch.column_by_name(field.name()) {
        Some(found) => arrow::compute::cast(found, field.data_type()),
        None => Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
    };
    let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(schema.clone(), columns)
}
