//! Text that comes in parts, cut anywhere: at every byte, and byte by byte.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lakegate_formats::{Input, ReadOptions, open};

/// A file whose reader stops at `cut`, and then gives at most `step` bytes at a time.
struct Parts {
    name: &'static str,
    bytes: Bytes,
    cut: usize,
    step: usize,
}

impl Input for Parts {
    fn name(&self) -> &str {
        self.name
    }

    fn len(&self) -> Option<u64> {
        Some(self.bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let from = usize::try_from(offset).unwrap();
        Ok(self.bytes.slice(from..from + len))
    }

    fn read_ranges(&self, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
        ranges.iter().map(|r| self.read_at(r.start, usize::try_from(r.end - r.start).unwrap())).collect()
    }

    fn stream(&self, from: u64) -> io::Result<Box<dyn Read + Send>> {
        let at = usize::try_from(from).unwrap();
        Ok(Box::new(PartsReader { bytes: self.bytes.clone(), at, cut: self.cut, step: self.step }))
    }
}

struct PartsReader {
    bytes: Bytes,
    at: usize,
    cut: usize,
    step: usize,
}

impl Read for PartsReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let until = if self.at < self.cut { self.cut } else { self.at + self.step };
        let count = (until.min(self.bytes.len()) - self.at).min(buffer.len());
        buffer[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// All rows and bad rows, as text, whatever pieces they came in.
fn rows(name: &'static str, text: &[u8], cut: usize, step: usize, options: &ReadOptions) -> Vec<String> {
    let input = Parts { name, bytes: Bytes::copy_from_slice(text), cut, step };
    let mut reader = open(Arc::new(input), options, None).unwrap();
    let mut found = Vec::new();
    while let Some(piece) = reader.next().unwrap() {
        let table = piece.table.map(|table| table.name).unwrap_or_default();
        match piece.rows {
            lakegate_formats::Rows::Columns(batch) => {
                for row in 0..batch.num_rows() {
                    let shown = |column: &arrow::array::ArrayRef| {
                        arrow::util::display::array_value_to_string(column, row).unwrap()
                    };
                    found.push(format!("{table} {:?}", batch.columns().iter().map(shown).collect::<Vec<_>>()));
                }
            }
            lakegate_formats::Rows::Documents { body, spans } => {
                let span = |span: &Range<u32>| &body[span.start as usize..span.end as usize];
                found.extend(spans.iter().map(|s| String::from_utf8_lossy(span(s)).into_owned()));
            }
        }
        found.extend(piece.bad.iter().map(|bad| format!("bad row {}: {}", bad.row, bad.reason)));
    }
    found
}

/// The head that formats and types are found by is always whole; what follows it is cut.
fn is_the_same_however_it_is_cut(name: &'static str, text: &[u8], expected: usize) {
    let options = ReadOptions { batch_rows: 3, batch_bytes: 64, ..ReadOptions::default() };
    let mut whole = rows(name, text, text.len(), text.len(), &ReadOptions::default());
    whole.sort();
    assert_eq!(whole.len(), expected, "{whole:#?}");
    for cut in 0..=text.len() {
        let mut found = rows(name, text, cut, text.len(), &options);
        found.sort();
        assert_eq!(found, whole, "{name} cut at byte {cut}");
    }
    for step in [1, 2, 3, 7] {
        let mut found = rows(name, text, 0, step, &options);
        found.sort();
        assert_eq!(found, whole, "{name} in steps of {step}");
    }
}

#[test]
fn csv_is_the_same_however_it_is_cut() {
    let text = "\u{feff}id,text,price\r\n1,\"a, \"\"b\"\"\r\nc\",1.5\r\n\r\n2,é€𝄞,NULL\r\n3,\"\",-2\n4,too,many,fields\n5,\"open\n6,x,7\n";
    is_the_same_however_it_is_cut("a.csv", text.as_bytes(), 6);
    is_the_same_however_it_is_cut("a.tsv", "a\tb\n1\tx\n2\t\"y\tz\"\n3\tlast".as_bytes(), 3);
}

#[test]
fn json_is_the_same_however_it_is_cut() {
    let lines = "{\"a\":1,\"b\":\"x\\\"}{\\n\"}\r\n\n{\"a\":[1,{\"c\":\"é€𝄞\"}]}\nnot json\n{\"a\":3}";
    is_the_same_however_it_is_cut("a.jsonl", lines.as_bytes(), 4);
    let array = " [ {\"a\":1,\"b\":\"],[\"} ,\n{\"a\":{\"b\":[[]]}},{\"a\":\"\\u00e9\\\\\"} ] \n";
    is_the_same_however_it_is_cut("a.json", array.as_bytes(), 3);
}

#[test]
fn s23_dumps_are_the_same_however_they_are_cut() {
    let mysql = "/*!40101 SET NAMES utf8 */;\nCREATE TABLE `t` (`a` int, `b` varchar(9) DEFAULT 'x;)', PRIMARY KEY (`a`));\n\
        INSERT INTO `t` VALUES (1,'it\\'s; (a)\\n'),(2,NULL),(3,'é''\"'); -- done; '\nDELIMITER ;;\nCREATE TRIGGER x BEGIN SELECT 1; END ;;\nDELIMITER ;\nINSERT INTO t (b,a) VALUES ('last',4);\n";
    is_the_same_however_it_is_cut("m.sql", mysql.as_bytes(), 4);
    let postgres = "CREATE TABLE public.t (\n    a integer NOT NULL,\n    b text\n);\nCOPY public.t (a, b) FROM stdin;\n1\ta\\tb\\\\\n2\t\\N\n3\té€\n\\.\n\n\
        CREATE FUNCTION f() RETURNS int AS $x$ SELECT 1; INSERT INTO t VALUES (9,'no'); $x$ LANGUAGE sql;\nINSERT INTO public.t VALUES (4, E'a\\nb');\n";
    is_the_same_however_it_is_cut("p.sql", postgres.as_bytes(), 4);
}
