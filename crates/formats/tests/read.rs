//! Files of other tools, read whole.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType, TimestampNanosecondType};
use arrow::record_batch::RecordBatch;
use lakegate_formats::{BytesInput, Mark, Piece, ReadError, ReadOptions, Rows, open};

fn pieces(name: &str, bytes: &[u8], options: &ReadOptions, from: Option<Mark>) -> Result<Vec<Piece>, ReadError> {
    let input = Arc::new(BytesInput::new(name, bytes.to_vec()));
    let mut reader = open(input, options, from)?;
    let mut out = Vec::new();
    while let Some(piece) = reader.next()? {
        assert!(piece.rows.len() + piece.bad.len() > 0 || piece.table.is_some());
        out.push(piece);
    }
    Ok(out)
}

fn batch(piece: &Piece) -> &RecordBatch {
    match &piece.rows {
        Rows::Columns(batch) => batch,
        Rows::Documents { .. } => panic!("documents"),
    }
}

fn documents(pieces: &[Piece]) -> Vec<String> {
    let mut out = Vec::new();
    for piece in pieces {
        let Rows::Documents { body, spans } = &piece.rows else { panic!("columns") };
        out.extend(spans.iter().map(|s| String::from_utf8(body[s.start as usize..s.end as usize].to_vec()).unwrap()));
    }
    out
}

fn rows(pieces: &[Piece]) -> usize {
    pieces.iter().map(|p| p.rows.len()).sum()
}

fn data(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Reading from each piece's mark on gives the same as reading on.
fn resumes_everywhere(name: &str, bytes: &[u8], options: &ReadOptions) {
    let whole = pieces(name, bytes, options, None).unwrap();
    for (at, piece) in whole.iter().enumerate() {
        let mark = Mark::from_bytes(&piece.next.to_bytes()).unwrap();
        let rest = pieces(name, bytes, options, Some(mark)).unwrap();
        assert_eq!(format!("{:?}", &whole[at + 1..]), format!("{rest:?}"), "{name}: after piece {at}");
    }
}

fn small() -> ReadOptions {
    ReadOptions { batch_rows: 17, ..ReadOptions::default() }
}

#[test]
fn parquet_of_pyarrow_is_read_in_every_codec_and_goes_on_from_every_mark() {
    for codec in ["gzip", "brotli", "zstd", "lz4", "none", "v2"] {
        let name = format!("flat.{codec}.parquet");
        let all = pieces(&name, &data(&name), &small(), None).unwrap();
        assert_eq!(rows(&all), 200, "{name}");
        let ids: i64 =
            all.iter().map(|p| batch(p)["id"].as_primitive::<Int64Type>().values().iter().sum::<i64>()).sum();
        assert_eq!(ids, 19_900, "{name}");
        let nulls: usize = all.iter().map(|p| batch(p)["name"].null_count()).sum();
        assert_eq!(nulls, 29, "{name}");
        resumes_everywhere(&name, &data(&name), &small());
    }
}

#[test]
fn nested_columns_stay_nested_and_projection_reads_only_what_is_asked_for() {
    let bytes = data("nested.snappy.parquet");
    let all = pieces("nested", &bytes, &small(), None).unwrap();
    assert_eq!(rows(&all), 100);
    let first = batch(&all[0]);
    assert_eq!(first["tags"].as_list::<i32>().value(2).len(), 2);
    assert_eq!(first["s"].as_struct()["a"].as_primitive::<Int64Type>().value(5), 5);
    assert_eq!(first["m"].as_map().value(3).len(), 1);
    let options = ReadOptions { columns: Some(vec!["s".into()]), ..small() };
    let only = pieces("nested", &bytes, &options, None).unwrap();
    assert_eq!(batch(&only[0]).num_columns(), 1);
    assert_eq!(rows(&only), 100);
    resumes_everywhere("nested", &bytes, &small());
}

#[test]
fn int96_times_legacy_lists_and_duckdbs_files_are_read() {
    let all = pieces("int96.parquet", &data("int96.parquet"), &ReadOptions::default(), None).unwrap();
    let at = &batch(&all[0])["at"];
    let value = match at.data_type() {
        arrow::datatypes::DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, _) => {
            at.as_primitive::<TimestampNanosecondType>().value(3) / 1_000
        }
        _ => at.as_primitive::<TimestampMicrosecondType>().value(3),
    };
    assert_eq!(value, 1_704_067_203_000_000);
    let all = pieces("l.parquet", &data("legacy_list.parquet"), &ReadOptions::default(), None).unwrap();
    assert_eq!(batch(&all[0])["tags"].as_list::<i32>().value(5).len(), 2);
    let all = pieces("d.parquet", &data("duckdb.parquet"), &ReadOptions::default(), None).unwrap();
    assert_eq!(rows(&all), 500);
}

#[test]
fn s29_no_flipped_or_missing_byte_of_a_parquet_file_panics_or_takes_memory() {
    for name in ["flat.none.parquet", "nested.snappy.parquet"] {
        let sound = data(name);
        for at in (0..sound.len()).step_by(7) {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at % 8);
            let _ = pieces(name, &bytes, &ReadOptions::default(), None);
        }
        for cut in (0..sound.len()).step_by(101) {
            assert!(
                pieces(name, &sound[..cut], &ReadOptions::default(), None).is_err() || cut == 0,
                "{name} cut at {cut}"
            );
        }
    }
}

#[test]
fn csv_keeps_the_neighbours_of_bad_rows() {
    let text = "id,note,at\n1,\"a, \"\"b\"\"\nsecond line\",2024-01-01 10:00:00\n2,short\nx3,bad number,2024-01-01 10:00:00\n4,NULL,\n5,\"NULL\",2024-01-02\n";
    let schema = arrow::datatypes::Schema::new(vec![arrow::datatypes::Field::new(
        "id",
        arrow::datatypes::DataType::Int64,
        true,
    )]);
    let mut options = ReadOptions::default();
    options.csv.types = Some(Arc::new(schema));
    let all = pieces("a.csv", text.as_bytes(), &options, None).unwrap();
    assert_eq!(rows(&all), 3);
    let first = batch(&all[0]);
    assert_eq!(first["id"].as_primitive::<Int64Type>().values(), &[1, 4, 5]);
    let notes = first["note"].as_string::<i32>();
    assert_eq!(notes.value(0), "a, \"b\"\nsecond line");
    assert!(notes.is_null(1));
    assert_eq!(notes.value(2), "NULL");
    let bad: Vec<(u64, &str)> = all[0].bad.iter().map(|b| (b.row, b.reason.as_str())).collect();
    assert_eq!(bad[0], (1, "2 fields; the first row has 3"));
    assert_eq!(bad[1].0, 2);
    assert_eq!(all[0].bad[1].field.as_deref(), Some("id"));
    assert_eq!(&all[0].bad[1].raw[..], b"x3,bad number,2024-01-01 10:00:00");
}

#[test]
fn f53_an_unclosed_quote_costs_its_line_and_no_other() {
    let text = "id,note\n1,a\n2,\"open\n3,c\n4,\"d\"\n5,e\n";
    let all = pieces("a.csv", text.as_bytes(), &ReadOptions::default(), None).unwrap();
    assert_eq!(batch(&all[0])["id"].as_primitive::<Int64Type>().values(), &[1, 3, 4, 5]);
    assert_eq!(all[0].bad.len(), 1);
    assert_eq!(all[0].bad[0].row, 1);
}

#[test]
fn csv_goes_on_from_every_mark_and_knows_utf16_latin1_and_tabs() {
    let text: String =
        std::iter::once("a\tb\n".to_owned()).chain((0..200).map(|i| format!("{i}\tv\u{e4}{i}\n"))).collect();
    resumes_everywhere("t.tsv", text.as_bytes(), &small());
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let all = pieces("t.tsv", &utf16, &small(), None).unwrap();
    assert_eq!(rows(&all), 200);
    assert_eq!(batch(&all[0])["b"].as_string::<i32>().value(1), "v\u{e4}1");
    resumes_everywhere("t.tsv", &utf16, &small());
    let latin1: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    let mut options = small();
    let bad: usize = pieces("t.tsv", &latin1, &options, None).unwrap().iter().map(|p| p.bad.len()).sum();
    assert_eq!(bad, 200, "not UTF-8");
    options.csv.encoding = lakegate_formats::Encoding::Windows1252;
    let all = pieces("t.tsv", &latin1, &options, None).unwrap();
    assert_eq!(batch(&all[0])["b"].as_string::<i32>().value(1), "v\u{e4}1");
}

#[test]
fn json_lines_arrays_and_objects_in_a_row_give_the_same_documents() {
    let objects: Vec<String> =
        (0..100).map(|i| format!("{{\"i\": {i}, \"t\": \"a}}\\\"{{\", \"n\": [{{}}]}}")).collect();
    for (name, text) in [
        ("a.jsonl", objects.join("\r\n\n")),
        ("a.json", format!(" [ {} ]\n", objects.join(" ,\n"))),
        ("b.json", objects.join(" ")),
        ("noname", objects.join("\n")),
    ] {
        let all = pieces(name, text.as_bytes(), &small(), None).unwrap();
        assert_eq!(documents(&all), objects, "{name}");
        resumes_everywhere(name, text.as_bytes(), &small());
    }
}

#[test]
fn a_line_over_the_limit_is_a_bad_row_with_its_head() {
    let mut options = ReadOptions::default();
    options.limits.row_bytes = 1 << 20;
    let long = "x".repeat(5 << 20);
    for (name, text) in [
        ("a.jsonl", format!("{{\"i\":1}}\n{{\"l\":\"{long}\"}}\n{{\"i\":2}}\n")),
        ("a.json", format!("[{{\"i\":1}},{{\"l\":\"{long}\"}},{{\"i\":2}}]")),
    ] {
        let all = pieces(name, text.as_bytes(), &options, None).unwrap();
        assert_eq!(documents(&all), ["{\"i\":1}", "{\"i\":2}"], "{name}");
        let bad: Vec<_> = all.iter().flat_map(|p| &p.bad).collect();
        assert_eq!((bad.len(), bad[0].row, bad[0].raw.len()), (1, 1, 64 << 10), "{name}");
    }
    let all = pieces("a.csv", format!("a,b\n1,2\n3,{long}\n5,6\n").as_bytes(), &options, None).unwrap();
    assert_eq!(rows(&all), 2);
    assert_eq!(all.iter().map(|p| p.bad.len()).sum::<usize>(), 1);
}

#[test]
fn log_lines_are_rows_and_a_pattern_takes_them_apart() {
    let text = "1.2.3.4 - - [17/May/2015:10:05:03 +0000] \"GET /a HTTP/1.1\" 200 203 \"http://r/\" \"Moz \\\"x\\\"\"\nnot a log line\n";
    let all = pieces("a.log", text.as_bytes(), &ReadOptions::default(), None).unwrap();
    assert_eq!(batch(&all[0])["line"].as_string::<i32>().value(1), "not a log line");
    let options = ReadOptions { lines: lakegate_formats::LinePattern::Combined, ..ReadOptions::default() };
    let all = pieces("a.log", text.as_bytes(), &options, None).unwrap();
    let first = batch(&all[0]);
    assert_eq!(first["time"].as_primitive::<TimestampMicrosecondType>().value(0), 1_431_857_103_000_000);
    assert_eq!(first["bytes"].as_primitive::<Int64Type>().value(0), 203);
    assert_eq!(all[0].bad[0].row, 1);
}
