//! Arrow IPC, as a file or a stream. Both are read from front to back; a file's footer is not needed for that.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;

use crate::feed::{Feed, Stream};
use crate::open::Source;
use crate::{Mark, Piece, Pieces, ReadError, ReadOptions, Rows};

/// Reads record batches.
pub(crate) struct ArrowReader {
    source: Source,
    batches: StreamReader<Stream>,
    columns: Option<Vec<usize>>,
    row: u64,
    /// Rows to pass over: those before the mark.
    skip: u64,
    rows: usize,
    pending: Option<arrow::record_batch::RecordBatch>,
}

/// A feed as a stream, each message's length held against the limit.
struct Messages {
    feed: Feed,
}

impl Read for Messages {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.feed.window().is_empty() && !self.feed.fill()? {
            return Ok(0);
        }
        let mut window = self.feed.window();
        let read = window.read(buffer)?;
        self.feed.consume(read);
        Ok(read)
    }
}

impl ArrowReader {
    pub(crate) fn new(mut source: Source, options: &ReadOptions, resume: Option<Mark>) -> Result<Self, ReadError> {
        let (mut feed, _) = source.feed(None)?;
        while feed.window().len() < 8 && feed.fill().map_err(|e| source.io(0, e))? {}
        if feed.window().starts_with(b"ARROW1") {
            feed.consume(8);
        }
        let stream: Stream = Box::new(Messages { feed });
        let built = catch_unwind(AssertUnwindSafe(|| StreamReader::try_new(stream, None)));
        let batches = built
            .map_err(|_| source.damaged(0, "its decoder gave up".into()))?
            .map_err(|e| source.damaged(0, e.to_string()))?;
        let columns = options.columns.as_ref().map(|names| {
            let fields = batches.schema().fields().clone();
            (0..fields.len()).filter(|i| fields.get(*i).is_some_and(|f| names.contains(f.name()))).collect()
        });
        let skip = resume.map_or(0, |m| m.row);
        Ok(Self { source, batches, columns, row: 0, skip, rows: options.batch_rows.max(1), pending: None })
    }
}

impl Pieces for ArrowReader {
    fn next(&mut self) -> Result<Option<Piece>, ReadError> {
        loop {
            let batch = match self.pending.take() {
                Some(batch) => batch,
                None => {
                    let next = catch_unwind(AssertUnwindSafe(|| self.batches.next()));
                    let damaged = |reason: String| self.source.damaged(self.source.progress().0, reason);
                    match next.map_err(|_| damaged("its decoder gave up".into()))? {
                        None => return Ok(None),
                        Some(batch) => batch.map_err(|e| damaged(e.to_string()))?,
                    }
                }
            };
            let pass = usize::try_from(self.skip.saturating_sub(self.row)).unwrap_or(usize::MAX).min(batch.num_rows());
            self.row += pass as u64;
            let batch = batch.slice(pass, batch.num_rows() - pass);
            if batch.num_rows() == 0 {
                continue;
            }
            let count = self.rows.min(batch.num_rows());
            if count < batch.num_rows() {
                self.pending = Some(batch.slice(count, batch.num_rows() - count));
            }
            let mut batch = batch.slice(0, count);
            if let Some(columns) = &self.columns {
                batch = batch.project(columns).map_err(|e| self.source.damaged(0, e.to_string()))?;
            }
            let first_row = self.row;
            self.row += count as u64;
            let next = Mark { row: self.row, ..Mark::default() };
            return Ok(Some(Piece {
                member: None,
                table: None,
                first_row,
                next,
                rows: Rows::Columns(batch),
                bad: Vec::new(),
            }));
        }
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.source.progress()
    }

    fn schema(&self) -> Option<SchemaRef> {
        let schema = self.batches.schema();
        match &self.columns {
            None => Some(schema),
            Some(columns) => schema.project(columns).ok().map(std::sync::Arc::new),
        }
    }
}
