//! A table with lines, for people.

use datafusion::arrow::array::{Array, RecordBatch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};

/// The rows that the widths are taken from; later ones that are wider stand out.
const MEASURED_ROWS: usize = 1_000;

/// Writes rows under one heading.
pub(super) struct TableWriter {
    headings: Vec<String>,
    widths: Vec<usize>,
    /// Rows that wait until enough are there to measure.
    waiting: Option<Vec<Vec<String>>>,
    rows: u64,
}

impl TableWriter {
    pub(super) fn new(schema: &SchemaRef) -> Self {
        let headings: Vec<String> = schema.fields().iter().map(|f| printable(f.name())).collect();
        Self {
            widths: headings.iter().map(|h| h.chars().count()).collect(),
            headings,
            waiting: Some(Vec::new()),
            rows: 0,
        }
    }

    pub(super) fn rows(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
        self.rows += batch.num_rows() as u64;
        let cells = cells(batch)?;
        let Some(waiting) = &mut self.waiting else { return Ok(self.lines(&cells).into_bytes()) };
        waiting.extend(cells);
        if waiting.len() >= MEASURED_ROWS { Ok(self.begin().into_bytes()) } else { Ok(Vec::new()) }
    }

    pub(super) fn end(&mut self) -> Result<Vec<u8>, ArrowError> {
        let mut text = self.begin();
        text.push_str(&self.rule());
        text.push_str(&format!("({} row{})\n", self.rows, if self.rows == 1 { "" } else { "s" }));
        Ok(text.into_bytes())
    }

    /// The heading and the rows that waited; nothing when that was written before.
    fn begin(&mut self) -> String {
        let Some(waiting) = self.waiting.take() else { return String::new() };
        for row in &waiting {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let rule = self.rule();
        let heading = self.lines(std::slice::from_ref(&self.headings));
        format!("{rule}{heading}{rule}{}", self.lines(&waiting))
    }

    fn rule(&self) -> String {
        let columns: Vec<String> = self.widths.iter().map(|width| "-".repeat(width + 2)).collect();
        format!("+{}+\n", columns.join("+"))
    }

    fn lines(&self, rows: &[Vec<String>]) -> String {
        let mut text = String::new();
        for row in rows {
            for (cell, width) in row.iter().zip(&self.widths) {
                text.push_str(&format!("| {cell:<width$} "));
            }
            text.push_str("|\n");
        }
        text
    }
}

fn cells(batch: &RecordBatch) -> Result<Vec<Vec<String>>, ArrowError> {
    let options = FormatOptions::default().with_display_error(true).with_null("NULL");
    let formatters = batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref() as &dyn Array, &options));
    let formatters = formatters.collect::<Result<Vec<_>, _>>()?;
    let row = |at: usize| formatters.iter().map(|f| printable(&f.value(at).to_string())).collect();
    Ok((0..batch.num_rows()).map(row).collect())
}

/// A terminal must not obey what a value holds, nor may a value break the lines.
fn printable(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}
