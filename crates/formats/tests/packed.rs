//! Codecs and archives.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::io::Write;
use std::sync::Arc;

use lakegate_formats::{BytesInput, Mark, Piece, ReadError, ReadOptions, Rows, open};

/// The pieces before the end or the error, and the error.
fn read(name: &str, bytes: &[u8], options: &ReadOptions, from: Option<Mark>) -> (Vec<Piece>, Option<ReadError>) {
    let input = Arc::new(BytesInput::new(name, bytes.to_vec()));
    let mut reader = match open(input, options, from) {
        Ok(reader) => reader,
        Err(e) => return (Vec::new(), Some(e)),
    };
    let mut out = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(piece)) => out.push(piece),
            Ok(None) => return (out, None),
            Err(e) => return (out, Some(e)),
        }
    }
}

fn rows(pieces: &[Piece]) -> usize {
    pieces.iter().map(|p| p.rows.len()).sum()
}

fn text(lines: usize) -> String {
    (0..lines).map(|i| format!("{{\"i\":{i},\"t\":\"{}\"}}\n", i * 7919)).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let info = lz4_flex::frame::FrameInfo::new().content_checksum(bytes.len().is_multiple_of(2));
    let mut out = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn snappy(bytes: &[u8]) -> Vec<u8> {
    let mut out = snap::write::FrameEncoder::new(Vec::new());
    out.write_all(bytes).unwrap();
    out.into_inner().unwrap()
}

#[test]
fn every_codec_is_unpacked_and_goes_on_from_a_mark() {
    let text = text(3_000);
    let bytes = text.as_bytes();
    let (half, other) = bytes.split_at(text.find("{\"i\":1500,").unwrap());
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let packed = [
        ("gz", gzip(bytes)),
        ("zst", zstd(bytes)),
        ("bz2", bzip2(bytes)),
        ("lz4", lz4(bytes)),
        ("sz", snappy(bytes)),
        ("xz", include_bytes!("data/lines.xz").to_vec()),
        ("gz of two members", [gzip(half), gzip(other)].concat()),
        ("zst of two frames", [zstd(half), zstd(other)].concat()),
        ("bz2 of two streams", [bzip2(half), bzip2(other)].concat()),
        ("lz4 of two frames", [lz4(half), lz4(other)].concat()),
        ("sz of two streams", [snappy(half), snappy(other)].concat()),
        // Made by xz 5: a stream, padding, and a stream of several blocks with another check.
        ("xz of two streams", include_bytes!("data/lines-streams.xz").to_vec()),
    ];
    for (codec, packed) in packed {
        let options = ReadOptions { batch_rows: 1_000, ..ReadOptions::default() };
        let (pieces, error) = read(&format!("a.jsonl.{codec}"), &packed, &options, None);
        assert!(error.is_none(), "{codec}: {error:?}");
        assert_eq!((rows(&pieces), pieces.len()), (3_000, 3), "{codec}");
        let (rest, _) = read("a.jsonl", &packed, &options, Some(pieces[1].next));
        assert_eq!(format!("{:?}", &pieces[2..]), format!("{rest:?}"), "{codec}");
    }
}

#[test]
fn f53_of_a_cut_off_gzip_what_was_readable_is_given_then_the_error() {
    let packed = gzip(text(100_000).as_bytes());
    let (pieces, error) = read("a.jsonl.gz", &packed[..packed.len() / 2], &ReadOptions::default(), None);
    assert!(rows(&pieces) > 30_000, "{}", rows(&pieces));
    let error = error.unwrap();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    let (pieces, error) = read("a.csv.gz", &gzip(b"a,b\n1,2\n")[..20], &ReadOptions::default(), None);
    assert!(pieces.is_empty() && error.is_some());
}

#[test]
fn f53_a_cut_in_a_second_member_is_an_error_wherever_it_is() {
    let text = text(40);
    let (half, other) = text.as_bytes().split_at(text.find("{\"i\":20,").unwrap());
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    for (codec, first, second) in [
        ("gz", gzip(half), gzip(other)),
        ("zst", zstd(half), zstd(other)),
        ("bz2", bzip2(half), bzip2(other)),
        ("lz4", lz4(half), lz4(other)),
    ] {
        let whole = [first.as_slice(), &second].concat();
        for end in first.len() + 5..whole.len() {
            let (pieces, error) = read("a.jsonl", &whole[..end], &ReadOptions::default(), None);
            assert!(error.is_some(), "{codec} cut at {end} of {}: {} rows", whole.len(), rows(&pieces));
        }
    }
}

#[test]
fn s28_a_huge_dictionary_is_refused_in_a_later_block_too_and_so_are_endless_empty_streams() {
    let packed = include_bytes!("data/lines-streams.xz").to_vec();
    // The headers of blocks: no sizes, one filter, LZMA2 with a dictionary of 8 MiB.
    let headers: Vec<usize> = memchr::memmem::find_iter(&packed, &[0x21, 0x01, 0x16]).collect();
    assert_eq!(headers.len(), 5);
    for at in headers {
        let mut hostile = packed.clone();
        hostile[at + 2] = 0x27;
        let (_, error) = read("a.jsonl", &hostile, &ReadOptions::default(), None);
        assert!(matches!(&error, Some(ReadError::Limit { .. })), "at {at}: {error:?}");
    }
    // Made by xz 5 of nothing.
    let empty = b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4F\0\0\0\0\x1c\xdfD!\x1f\xb6\xf3}\x01\0\0\0\0\x04YZ";
    let streams = |count: usize| [empty.repeat(count), packed.clone()].concat();
    let (pieces, error) = read("a.jsonl", &streams(30), &ReadOptions::default(), None);
    assert_eq!((rows(&pieces), error.map(|e| e.to_string())), (3_000, None));
    let (_, error) = read("a.jsonl", &streams(100_000), &ReadOptions::default(), None);
    assert!(matches!(&error, Some(ReadError::Limit { .. })), "{error:?}");
}

#[test]
fn s28_a_bomb_of_zeros_is_refused() {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(b"{\"a\":1}\n").unwrap();
    for _ in 0..128 {
        out.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    let (_, error) = read("a.jsonl.gz", &out.finish().unwrap(), &ReadOptions::default(), None);
    assert!(matches!(error, Some(ReadError::Limit { .. })), "{error:?}");
    let mut options = ReadOptions::default();
    options.limits.unpacked_bytes = 1_000;
    let (_, error) = read("a.jsonl.gz", &gzip(text(1_000).as_bytes()), &options, None);
    assert!(matches!(error, Some(ReadError::Limit { .. })), "{error:?}");
}

#[test]
fn s19_members_of_zip_and_tar_are_read_and_their_names_are_labels() {
    for name in ["members.zip", "members.tar", "members.tar.gz"] {
        let bytes = std::fs::read(format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let (pieces, error) = read(name, &bytes, &ReadOptions::default(), None);
        assert!(error.is_none(), "{name}: {error:?}");
        let members: Vec<(&str, usize)> = pieces.iter().map(|p| (p.member.as_deref().unwrap(), p.rows.len())).collect();
        assert_eq!(
            members,
            [("../../etc/a.csv", 2), ("folder/b.jsonl", 3), ("c.parquet", 70), ("c.parquet", 70), ("c.parquet", 60)],
            "{name}"
        );
        let (rest, _) = read(name, &bytes, &ReadOptions::default(), Some(pieces[0].next));
        assert_eq!(format!("{:?}", &pieces[1..]), format!("{rest:?}"), "{name}");
        for at in (0..bytes.len()).step_by(37) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            let _ = read(name, &flipped, &ReadOptions::default(), None);
            let _ = read(name, &bytes[..at], &ReadOptions::default(), None);
        }
    }
}

#[test]
fn s19_an_archive_within_an_archive_is_refused() {
    let inner = include_bytes!("data/members.tar");
    let mut header = [0_u8; 512];
    header[..5].copy_from_slice(b"a.tar");
    header[124..135].copy_from_slice(format!("{:011o}", inner.len()).as_bytes());
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let bytes = [&header[..], inner, &[0; 1024]].concat();
    let (_, error) = read("a.tar", &bytes, &ReadOptions::default(), None);
    assert!(matches!(error, Some(ReadError::Unsupported { .. })), "{error:?}");
}

#[test]
fn arrow_files_and_streams_are_read() {
    for name in ["flat.arrow", "flat.arrows"] {
        let bytes = std::fs::read(format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let options = ReadOptions { batch_rows: 64, ..ReadOptions::default() };
        let (pieces, error) = read(name, &bytes, &options, None);
        assert!(error.is_none(), "{name}: {error:?}");
        assert_eq!(rows(&pieces), 200, "{name}");
        let (rest, _) = read(name, &bytes, &options, Some(pieces[0].next));
        assert_eq!(rows(&rest), 136, "{name}");
        assert!(matches!(pieces[0].rows, Rows::Columns(_)));
    }
}
