//! Rows of files through the gate's log, as if each had been sent: the way in for streams whose rows wait in memory.
//!
//! Each piece is one request with an id made of the file and its first row, so that a piece which is given again
//! changes nothing. Which files are complete is kept in a file of its own.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lakegate_formats::{Mark, Piece, Rows};
use lakegate_ingest::{Client, Gate, Payloads, Source, Submission, SubmitError, Wire};
use lakegate_model::StreamName;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::sink::{Begun, FileSink, ImportError, ImportSummary, ImportTarget, Importing, PieceCounts};

/// Records of one request.
const RECORDS_MAX: usize = 50_000;
/// Bytes of one request.
const BYTES_MAX: usize = 8 << 20;

/// The way through the log.
pub struct ThroughLog {
    shared: Arc<Shared>,
}

struct Shared {
    gate: Gate,
    handle: Handle,
    complete: Mutex<(HashMap<(StreamName, u128), u64>, File)>,
}

impl ThroughLog {
    /// Opens the way; `kept` is the file of complete files.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(gate: Gate, handle: Handle, kept: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(kept).or_else(|e| match e.kind() {
            io::ErrorKind::NotFound => Ok(String::new()),
            _ => Err(e),
        })?;
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let stream = StreamName::new(words.next()?).ok()?;
            Some(((stream, u128::from_str_radix(words.next()?, 16).ok()?), words.next()?.parse().ok()?))
        };
        let complete = text.lines().filter_map(parse).collect();
        let file = OpenOptions::new().append(true).create(true).open(kept)?;
        Ok(Self { shared: Arc::new(Shared { gate, handle, complete: Mutex::new((complete, file)) }) })
    }
}

impl Importing for ThroughLog {
    fn begin(&self, target: ImportTarget) -> Result<Begun, ImportError> {
        let known = self.shared.complete.lock().0.get(&(target.stream.clone(), target.file)).copied();
        match known.filter(|_| !target.again) {
            Some(rows) => Ok(Begun::Absorbed { rows }),
            None => Ok(Begun::Import(Box::new(Sink { shared: self.shared.clone(), target, rows: 0 }))),
        }
    }
}

struct Sink {
    shared: Arc<Shared>,
    target: ImportTarget,
    rows: u64,
}

impl FileSink for Sink {
    fn resume_mark(&self) -> Option<Mark> {
        None
    }

    fn take(&mut self, piece: Piece) -> Result<PieceCounts, ImportError> {
        let (body, spans) = match piece.rows {
            Rows::Documents { body, spans } => (body, spans),
            Rows::Columns(batch) => documents(&batch)?,
        };
        let mut counts = PieceCounts { dead_lettered: piece.bad.len() as u64, ..PieceCounts::default() };
        let mut first = 0;
        while let Some(rest) = spans.get(first..).filter(|rest| !rest.is_empty()) {
            let from = rest.first().map_or(0, |span| span.start);
            let fits = |span: &&Range<u32>| (span.end - from) as usize <= BYTES_MAX;
            let count = rest.iter().take(RECORDS_MAX).take_while(fits).count().max(1);
            let some = rest.get(..count).unwrap_or_default();
            self.submit(&body, some, piece.first_row + first as u64, &mut counts)?;
            first += count;
        }
        self.rows += counts.accepted;
        Ok(counts)
    }

    fn finish(self: Box<Self>) -> Result<ImportSummary, ImportError> {
        let (complete, file) = &mut *self.shared.complete.lock();
        let line = format!("{} {:032x} {}\n", self.target.stream, self.target.file, self.rows);
        let kept = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
        kept.map_err(|e| ImportError {
            message: format!("that the file is complete could not be kept: {e}"),
            temporary: true,
        })?;
        complete.insert((self.target.stream.clone(), self.target.file), self.rows);
        Ok(ImportSummary { table: self.target.stream.to_string(), note: None })
    }
}

impl Sink {
    fn submit(
        &self,
        body: &Bytes,
        spans: &[Range<u32>],
        row: u64,
        counts: &mut PieceCounts,
    ) -> Result<(), ImportError> {
        let (body, spans) = with_event_type(body, spans, self.target.event_type.as_deref());
        loop {
            let again = if self.target.again { "again-" } else { "" };
            let submission = Submission {
                principal: self.target.principal.clone(),
                source: Source::File,
                wire: Wire::Payloads(Payloads {
                    tenant: Some(self.target.tenant.clone()),
                    stream: self.target.stream.clone(),
                    spans: spans.clone(),
                    atomic: false,
                    batch_id: format!("{again}file-{:032x}-{row}", self.target.file),
                }),
                body: body.clone(),
                correlation_id: self.target.correlation_id.clone(),
                client: Client::default(),
                in_order: false,
            };
            match self.shared.handle.block_on(self.shared.gate.submit(submission)) {
                Ok(outcome) => {
                    counts.accepted += outcome.accepted;
                    counts.duplicates += outcome.duplicates;
                    counts.dead_lettered += outcome.dead_lettered + outcome.rejected;
                    return Ok(());
                }
                Err(SubmitError::OutOfRoom { retry_after_ms, .. }) => {
                    std::thread::sleep(Duration::from_millis(retry_after_ms.clamp(10, 1000)));
                }
                Err(error) => {
                    let temporary = matches!(error, SubmitError::Unavailable { .. });
                    return Err(ImportError { message: error.to_string(), temporary });
                }
            }
        }
    }
}

fn documents(batch: &arrow::array::RecordBatch) -> Result<(Bytes, Vec<Range<u32>>), ImportError> {
    let failed = |e: arrow::error::ArrowError| ImportError { message: e.to_string(), temporary: false };
    let mut body = Vec::new();
    let mut writer = arrow::json::LineDelimitedWriter::new(&mut body);
    writer.write(batch).and_then(|()| writer.finish()).map_err(failed)?;
    drop(writer);
    let mut spans = Vec::with_capacity(batch.num_rows());
    let mut start = 0;
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        let end = start + u32::try_from(line.len()).unwrap_or(u32::MAX);
        spans.push(start..end.saturating_sub(1));
        start = end;
    }
    Ok((body.into(), spans))
}

/// The documents, each with the event type as its first member.
fn with_event_type(body: &Bytes, spans: &[Range<u32>], event_type: Option<&str>) -> (Bytes, Vec<Range<u32>>) {
    let Some(member) = event_type.and_then(|text| serde_json::to_string(text).ok()) else {
        let (start, end) = (spans.first().map_or(0, |s| s.start), spans.last().map_or(0, |s| s.end));
        let body = body.slice(start as usize..end as usize);
        return (body, spans.iter().map(|span| span.start - start..span.end - start).collect());
    };
    let mut out = Vec::new();
    let mut placed = Vec::with_capacity(spans.len());
    for span in spans {
        let document = body.get(span.start as usize..span.end as usize).unwrap_or_default();
        let start = u32::try_from(out.len()).unwrap_or(u32::MAX);
        match document.trim_ascii_start().strip_prefix(b"{") {
            Some(rest) => {
                let comma = if rest.trim_ascii_start().starts_with(b"}") { "" } else { "," };
                out.extend_from_slice(format!("{{\"event_type\":{member}{comma}").as_bytes());
                out.extend_from_slice(rest);
            }
            None => out.extend_from_slice(document),
        }
        placed.push(start..u32::try_from(out.len()).unwrap_or(u32::MAX));
    }
    (out.into(), placed)
}
