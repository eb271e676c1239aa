//! The floors: the least that must be done for a record, measured on this machine in the same run.
//!
//! For batches: the request's bytes over loopback TCP, one copy, one CRC-32C, a walk over the Protocol Buffers fields
//! straight into Arrow builders with UTF-8 checked, by one thread; and, for the committed table, the Parquet encoding
//! of the same batches at the product's settings. No answer, no HTTP/2, no disk.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Builder, LargeBinaryBuilder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use bytes::Bytes;

use super::Failure;
use super::child::thread_cpu_ns;

/// What the floor cost.
pub(crate) struct FloorCost {
    /// Nanoseconds of the thread's processor time for each record, into Arrow.
    pub(crate) to_arrow_ns: f64,
    /// The same for encoding as Parquet besides.
    pub(crate) parquet_ns: f64,
}

/// Runs the floor for `seconds` over `requests` of `records` records each.
pub(crate) fn run(
    requests: Vec<Bytes>,
    records: usize,
    seconds: f64,
    with_parquet: bool,
) -> Result<FloorCost, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let mut socket = TcpStream::connect(address)?;
        let end = std::time::Instant::now() + std::time::Duration::from_secs_f64(seconds);
        while std::time::Instant::now() < end {
            for request in &requests {
                let length = u32::try_from(request.len()).unwrap_or_default();
                socket.write_all(&length.to_le_bytes())?;
                socket.write_all(request)?;
            }
        }
        Ok(())
    });
    let receiver = std::thread::spawn(move || receive(&listener, records, with_parquet));
    sender.join().map_err(|_| "the floor's sender failed")??;
    receiver.join().map_err(|_| "the floor's receiver failed")?
}

fn receive(listener: &TcpListener, records: usize, with_parquet: bool) -> Result<FloorCost, Failure> {
    let (mut socket, _) = listener.accept()?;
    let (mut count, mut parquet_ns, mut checksum) = (0_u64, 0_u64, 0_u32);
    let mut kept: Vec<RecordBatch> = Vec::new();
    let before = thread_cpu_ns()?;
    loop {
        let mut length = [0; 4];
        if socket.read_exact(&mut length).is_err() {
            break;
        }
        let mut body = vec![0; usize::try_from(u32::from_le_bytes(length))?];
        socket.read_exact(&mut body)?;
        let copy = body.clone();
        checksum ^= crc32c::crc32c(&copy);
        let batch = decode(&copy, records)?;
        count += batch.num_rows() as u64;
        if with_parquet {
            kept.push(batch);
            if kept.len() == 128 {
                let start = thread_cpu_ns()?;
                encode(&std::mem::take(&mut kept))?;
                parquet_ns += thread_cpu_ns()? - start;
            }
        }
    }
    let rows_left = kept.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
    let total = thread_cpu_ns()? - before;
    std::hint::black_box(checksum);
    let real = super::report::real;
    Ok(FloorCost {
        to_arrow_ns: real(total - parquet_ns) / real(count.max(1)),
        parquet_ns: real(parquet_ns) / real((count - rows_left).max(1)),
    })
}

/// The five columns of the benchmark's stream, by hand.
fn decode(bytes: &[u8], records: usize) -> Result<RecordBatch, Failure> {
    let mut ids = StringBuilder::with_capacity(records, records * 32);
    let mut kinds = StringBuilder::with_capacity(records, records * 16);
    let mut times = TimestampMicrosecondBuilder::with_capacity(records);
    let mut versions = Int64Builder::with_capacity(records);
    let mut payloads = LargeBinaryBuilder::with_capacity(records, records * 64);
    let mut at = 0;
    while at < bytes.len() {
        let (number, _, field, next) = field(bytes, at)?;
        at = next;
        if number != 1 {
            continue;
        }
        let (mut id, mut kind, mut payload): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
        let (mut time, mut version, mut inner) = (0, 0, 0);
        while inner < field.len() {
            let (number, value, part, next) = self::field(field, inner)?;
            inner = next;
            match number {
                3 => id = part,
                4 => payload = part,
                6 => time = self::field(part, 0)?.1,
                7 => kind = part,
                8 => version = value,
                _ => {}
            }
        }
        ids.append_value(std::str::from_utf8(id)?);
        kinds.append_value(std::str::from_utf8(kind)?);
        times.append_value(time.cast_signed() * 1_000_000);
        versions.append_value(version.cast_signed());
        payloads.append_value(payload);
    }
    let columns: [(&str, ArrayRef); 5] = [
        ("event_id", Arc::new(ids.finish())),
        ("event_type", Arc::new(kinds.finish())),
        ("event_time", Arc::new(times.finish())),
        ("version", Arc::new(versions.finish())),
        ("payload", Arc::new(payloads.finish())),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}

/// Number, varint value, bytes, and where the next field begins.
fn field(bytes: &[u8], at: usize) -> Result<(u64, u64, &[u8], usize), Failure> {
    let (key, at) = varint(bytes, at)?;
    let (value, at) = varint(bytes, at)?;
    if key & 7 == 0 {
        return Ok((key >> 3, value, &[], at));
    }
    let end = at + usize::try_from(value)?;
    Ok((key >> 3, 0, bytes.get(at..end).ok_or("cut")?, end))
}

fn varint(bytes: &[u8], mut at: usize) -> Result<(u64, usize), Failure> {
    let (mut value, mut shift) = (0_u64, 0);
    loop {
        let byte = *bytes.get(at).ok_or("cut")?;
        at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((value, at));
        }
        shift += 7;
    }
}

/// One Parquet file in memory, as the lake writes it.
fn encode(batches: &[RecordBatch]) -> Result<(), Failure> {
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::schema::types::ColumnPath;
    let Some(first) = batches.first() else { return Ok(()) };
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_column_dictionary_enabled(ColumnPath::from("event_id"), false)
        .set_column_dictionary_enabled(ColumnPath::from("payload"), false)
        .build();
    let mut out = Vec::with_capacity(16 << 20);
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut out, first.schema(), Some(properties))?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.close()?;
    std::hint::black_box(out.len());
    Ok(())
}
