//! Files as tables of a query: those that it names by their places, and external tables.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::StreamExt;
use lakegate_access::Action;
use lakegate_model::{LogId, TableName};
use lakegate_places::PlaceError;
use lakegate_query::{BesideName, LakeView, QueryError, RowStream, TablesBeside, ViewScan};
use lakegate_sources::files::{FileOptions, FileRows, FileRowsError, Imports};
use parking_lot::Mutex;
use tokio_stream::wrappers::ReceiverStream;

use super::{Asker, Inner, Statements};

/// Pieces of a file that may wait for the query.
const WAITING_PIECES: usize = 1;

impl Statements {
    pub(super) fn beside(&self, asker: &Asker) -> Arc<dyn TablesBeside> {
        let tenant = asker.scope.as_ref().map(|tenant| tenant.as_str().to_owned());
        let may_import = lakegate_access::check_some(asker.principal.as_deref(), Action::Write).is_ok();
        Arc::new(Files { inner: self.inner.clone(), tenant, may_import })
    }
}

struct Files {
    inner: Arc<Inner>,
    tenant: Option<String>,
    /// Files are read by who may import them.
    may_import: bool,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

#[async_trait]
impl TablesBeside for Files {
    fn names(&self) -> Vec<TableName> {
        self.inner.external.names()
    }

    async fn view(&self, name: BesideName<'_>) -> Result<Option<Arc<dyn LakeView>>, QueryError> {
        let (location, options) = match name {
            BesideName::Place(_) if !self.may_import => {
                let why = "reading files takes the permission to write to some stream, as importing them does";
                return Err(QueryError::NotAllowed(why.to_owned()));
            }
            BesideName::Place(place) => (place.to_owned(), FileOptions::default()),
            BesideName::Table(table) => match self.inner.external.get(table) {
                Some(external) => (external.location.clone(), external.options()),
                None => return Ok(None),
            },
        };
        let file = File { imports: self.inner.imports.clone(), location, tenant: self.tenant.clone(), options };
        let (rows, file) = file.open().await?;
        Ok(Some(Arc::new(FileView { schema: rows.schema(), file, first: Mutex::new(Some(rows)) })))
    }
}

/// A file and how it is read.
#[derive(Clone)]
struct File {
    imports: Imports,
    location: String,
    tenant: Option<String>,
    options: FileOptions,
}

impl File {
    async fn open(self) -> Result<(FileRows, Self), QueryError> {
        let opened = tokio::task::spawn_blocking(move || {
            let rows = self.imports.open_rows(&self.location, self.tenant.as_deref(), &self.options);
            rows.map(|rows| (rows, self))
        });
        let opened = opened.await.map_err(|error| QueryError::Internal(error.to_string()))?;
        opened.map_err(|error| sorted(&error))
    }
}

/// What went wrong with a file, as an error of the query.
pub(super) fn sorted(error: &FileRowsError) -> QueryError {
    let text = error.to_string();
    match error {
        FileRowsError::Place(PlaceError::Forbidden { .. } | PlaceError::Denied { .. }) => QueryError::NotAllowed(text),
        FileRowsError::Place(error) if error.is_temporary() => QueryError::Unavailable(text),
        FileRowsError::Place(_) | FileRowsError::NoTable { .. } => QueryError::Plan(text),
        FileRowsError::Read(_) | FileRowsError::Row { .. } => QueryError::Failed(text),
    }
}

/// A file as one state of a table.
struct FileView {
    schema: SchemaRef,
    file: File,
    /// Opened to see the columns; the first scan goes on with it.
    first: Mutex<Option<FileRows>>,
}

impl fmt::Debug for FileView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileView").field("location", &self.file.location).finish_non_exhaustive()
    }
}

#[async_trait]
impl LakeView for FileView {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn absorbed_next_offset(&self, _: LogId) -> u64 {
        u64::MAX
    }

    fn counter(&self, _: &str) -> u64 {
        0
    }

    fn total_records(&self) -> u64 {
        0
    }

    fn is_count_exact(&self) -> bool {
        false
    }

    fn data_files(&self) -> u64 {
        1
    }

    async fn scan(&self, request: ViewScan) -> Result<Vec<RowStream>, QueryError> {
        let first = self.first.lock().take();
        let rows = match first {
            Some(rows) => rows,
            None => self.file.clone().open().await?.0,
        };
        let places: Vec<usize> = request.columns.iter().filter_map(|name| self.schema.index_of(name).ok()).collect();
        Ok(vec![read(rows, places, request.batch_rows.max(1))])
    }
}

/// Reads on a thread of its own, one piece ahead.
fn read(mut rows: FileRows, places: Vec<usize>, batch_rows: usize) -> RowStream {
    let (sender, receiver) = tokio::sync::mpsc::channel(WAITING_PIECES);
    tokio::task::spawn_blocking(move || {
        loop {
            let next = rows.next_rows().map_err(|error| sorted(&error)).transpose();
            let Some(next) = next else { return };
            let projected =
                next.and_then(|batch| batch.project(&places).map_err(|error| QueryError::Internal(error.to_string())));
            let is_over = projected.is_err();
            let parts = match projected {
                Ok(batch) => slices(&batch, batch_rows).into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            for part in parts {
                if sender.blocking_send(part).is_err() {
                    return;
                }
            }
            if is_over {
                return;
            }
        }
    });
    ReceiverStream::new(receiver).boxed()
}

fn slices(batch: &RecordBatch, rows: usize) -> Vec<RecordBatch> {
    let starts = (0..batch.num_rows()).step_by(rows);
    starts.map(|start| batch.slice(start, rows.min(batch.num_rows() - start))).collect()
}
