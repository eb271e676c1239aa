use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lakegate_model::{Column, ColumnSource, ColumnType, Contract, OnConflict, StreamKey, StreamName, TenantId};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};

use super::send::partition_of;
use super::*;
use crate::api::{Client, Payloads, Source, Submission, SubmissionOutcome, SubmitError, Wire};
use crate::test_gate::{Ground, Opened};
use crate::upstream::UpstreamError;
use crate::wire::testing::{batch, record};

/// A shared log in memory; while it is away nothing is written.
#[derive(Default)]
struct Shared {
    partitions: Mutex<[Vec<Bytes>; 4]>,
    away: std::sync::atomic::AtomicBool,
}

impl RemoteLog for Shared {
    fn partitions(&self) -> u32 {
        4
    }

    fn append(self: Arc<Self>, partition: u32, _: &str, frame: &[Bytes]) -> Result<RemoteTicket, RemoteError> {
        if self.away.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(RemoteError::Away("nobody answers".to_owned()));
        }
        let mut partitions = self.partitions.lock();
        let frames = &mut partitions[partition as usize];
        frames.push(frame.concat().into());
        let offset = frames.len() as u64 - 1;
        Ok(Box::pin(async move { Ok(offset) }))
    }
}

impl Shared {
    fn frames(&self) -> usize {
        self.partitions.lock().iter().map(Vec::len).sum()
    }
}

fn contract() -> Contract {
    let column = |name: &str, column_type, required| Column {
        name: name.to_owned(),
        column_type,
        source: ColumnSource::Path(vec![name.to_owned()]),
        required,
    };
    Contract {
        columns: vec![column("id", ColumnType::String, true), column("n", ColumnType::Long, false)],
        partitions: Vec::new(),
        sort: Vec::new(),
        malformed: lakegate_model::Malformed::Skip,
        ..Contract::undeclared_default()
    }
}

fn keyed() -> Contract {
    Contract {
        event_key: vec!["id".to_owned()],
        duplicate_window_ms: 3_600_000,
        on_conflict: OnConflict::Reject,
        ..contract()
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn ground() -> Ground {
    Ground::new(&[
        ("plain", contract()),
        ("keyed", keyed()),
        ("strict", Contract { malformed: lakegate_model::Malformed::Reject, ..contract() }),
    ])
}

/// An instance whose requests go to the shared log.
fn open(runtime: &Runtime, ground: &Ground, log: &Arc<Shared>) -> Opened {
    let opened = runtime.block_on(ground.open());
    opened.gate.write_to(log.clone());
    opened
}

fn hash(frame: &Bytes) -> u64 {
    xxhash_rust::xxh3::xxh3_64(frame)
}

fn position(offset: u64, frame: &Bytes) -> Vec<u8> {
    [(offset + 1).to_le_bytes(), hash(frame).to_le_bytes()].concat()
}

/// A writer that reads all partitions from `from` on.
fn writer(runtime: &Runtime, opened: &Opened, from: u64) -> LogWriter {
    let judge = |_, state: &[u8]| {
        let number = |at: usize| u64::from_le_bytes(state[at..at + 8].try_into().unwrap());
        Ok(Absorbed { next: number(0), witness: number(8) })
    };
    let mut writer = opened.gate.write_from("test", Box::new(judge));
    let partitions = (0..4_u32).map(|p| (u128::from(p), from, format!("log.test.{p}"))).collect();
    runtime.block_on(writer.begin(partitions)).unwrap();
    writer
}

/// Brings the frames of all partitions, from an offset on and before another.
fn bring(runtime: &Runtime, writer: &mut LogWriter, log: &Shared, from: u64, before: u64) -> Result<(), UpstreamError> {
    let partitions = log.partitions.lock().clone();
    for (number, frames) in partitions.iter().enumerate() {
        for (offset, payload) in (0..).zip(frames).skip_while(|(o, _)| *o < from).take_while(|(o, _)| *o < before) {
            let frame = LogFrame {
                partition: number as u128,
                place: "the test's log",
                offset,
                hash: hash(payload),
                position: &position(offset, payload),
                payload: payload.clone(),
            };
            runtime.block_on(writer.take(&frame))?;
        }
    }
    writer.turn(runtime.handle()).map(|_| ())
}

fn commit(runtime: &Runtime, writer: &mut LogWriter) {
    assert!(writer.commit_within(runtime.handle(), Duration::from_secs(30)).unwrap());
}

/// How many rows a table has in the lake.
fn in_lake(runtime: &Runtime, opened: &Opened, table: &str) -> u64 {
    let name = lakegate_model::TableName { namespace: "default".to_owned(), name: table.to_owned() };
    let found = runtime.block_on(opened.gate.inner.lake.find_table(&name)).unwrap();
    found.map_or(0, |table| runtime.block_on(table.refresh()).unwrap().total_records())
}

fn tallies(opened: &Opened) -> BTreeMap<String, lakegate_model::Tally> {
    let sums = opened.gate.balance();
    assert!(sums.values().all(lakegate_model::Tally::closes), "{sums:?}");
    sums.into_iter().map(|(key, tally)| (key.stream.to_string(), tally)).collect()
}

fn send_as(
    runtime: &Runtime,
    opened: &Opened,
    stream: &str,
    batch_id: &str,
    payloads: &[&str],
) -> Result<SubmissionOutcome, SubmitError> {
    let (mut body, mut spans) = (Vec::new(), Vec::new());
    for payload in payloads {
        let start = u32::try_from(body.len()).unwrap();
        body.extend_from_slice(payload.as_bytes());
        spans.push(start..u32::try_from(body.len()).unwrap());
    }
    let stream = StreamName::new(stream).unwrap();
    let payloads = Payloads { tenant: None, stream, spans, atomic: false, batch_id: batch_id.to_owned() };
    runtime.block_on(opened.gate.submit(Submission {
        principal: None,
        source: Source::Rest,
        wire: Wire::Payloads(payloads),
        body: Bytes::from(body),
        correlation_id: None,
        client: Client::default(),
        in_order: false,
    }))
}

fn send(runtime: &Runtime, opened: &Opened, stream: &str, payloads: &[&str]) -> SubmissionOutcome {
    send_as(runtime, opened, stream, "", payloads).unwrap()
}

#[test]
fn what_gateways_take_is_in_the_table_once_whoever_writes_and_dies() {
    let (runtime, log, ground) = (runtime(), Arc::new(Shared::default()), ground());
    let beside = ground.beside();
    let (one, two) = (open(&runtime, &ground, &log), open(&runtime, &beside, &log));
    for n in 0..20 {
        let text = format!(r#"{{"id":"e{n}","n":{n}}}"#);
        let outcome = send(&runtime, if n % 2 == 0 { &one } else { &two }, "plain", &[&text]);
        assert_eq!((outcome.accepted, outcome.position), (1, n));
    }
    assert_eq!(one.gate.status(None, None).memtable_bytes, 0);
    let mut first = writer(&runtime, &one, 0);
    bring(&runtime, &mut first, &log, 0, 8).unwrap();
    commit(&runtime, &mut first);
    // Seen there, and lost with the writer.
    bring(&runtime, &mut first, &log, 8, 14).unwrap();
    assert_eq!(one.gate.status(None, None).streams[0].memtable_records, 6);
    let partition = u128::from(partition_of(&key("plain"), 4));
    assert_eq!(first.lacks_from(partition), Some(8));
    // The other begins early, and passes over what the table has.
    let mut second = writer(&runtime, &two, 0);
    bring(&runtime, &mut second, &log, 0, 100).unwrap();
    commit(&runtime, &mut second);
    assert_eq!(second.lacks_from(partition), None);
    // Whoever comes too late is refused.
    assert!(first.commit_within(runtime.handle(), Duration::from_secs(30)).is_err());
    assert_eq!(in_lake(&runtime, &one, "plain"), 20);
    first.give_up(runtime.handle(), Duration::from_secs(5));
    assert_eq!(one.gate.status(None, None).memtable_bytes, 0);
    let sum = tallies(&two).get("plain").unwrap().accepted + tallies(&one).get("plain").unwrap().accepted;
    assert_eq!(sum, 20);
    one.close();
    two.close();
}

fn key(stream: &str) -> StreamKey {
    StreamKey { tenant: TenantId::new("default").unwrap(), stream: StreamName::new(stream).unwrap() }
}

#[test]
fn an_event_that_two_gateways_take_is_stored_once_and_counted_twice() {
    let (runtime, log, ground) = (runtime(), Arc::new(Shared::default()), ground());
    let beside = ground.beside();
    let (one, two) = (open(&runtime, &ground, &log), open(&runtime, &beside, &log));
    let (a, b) = (r#"{"id":"a","n":1}"#, r#"{"id":"b","n":1}"#);
    send(&runtime, &one, "keyed", &[a, b]);
    let mut first = writer(&runtime, &one, 0);
    bring(&runtime, &mut first, &log, 0, 1).unwrap();
    commit(&runtime, &mut first);
    drop(first);
    // The second writer never took the first frame; it reads far enough back to know its keys.
    send(&runtime, &two, "keyed", &[a, r#"{"id":"c"}"#, r#"{"id":"b","n":2}"#]);
    let mut second = writer(&runtime, &two, 0);
    bring(&runtime, &mut second, &log, 0, 100).unwrap();
    commit(&runtime, &mut second);
    assert_eq!(in_lake(&runtime, &two, "keyed"), 3);
    assert_eq!(in_lake(&runtime, &two, "dead_letters"), 1);
    let tally = tallies(&two)["keyed"];
    assert_eq!((tally.received, tally.accepted, tally.duplicate, tally.dead_lettered), (3, 1, 1, 1));
    one.close();
    two.close();
}

#[test]
fn a_frame_that_is_read_again_is_not_its_own_duplicate() {
    let (runtime, log, ground) = (runtime(), Arc::new(Shared::default()), ground());
    let one = open(&runtime, &ground, &log);
    send_as(&runtime, &one, "keyed", "b-1", &[r#"{"id":"a"}"#]).unwrap();
    let mut forgotten = writer(&runtime, &one, 0);
    bring(&runtime, &mut forgotten, &log, 0, 100).unwrap();
    forgotten.give_up(runtime.handle(), Duration::from_secs(5));
    drop(forgotten);
    let mut writer = writer(&runtime, &one, 0);
    bring(&runtime, &mut writer, &log, 0, 100).unwrap();
    commit(&runtime, &mut writer);
    assert_eq!(in_lake(&runtime, &one, "keyed"), 1);
    one.close();
}

#[test]
fn a_request_that_is_sent_again_is_stored_once_and_answered_again_where_it_is_known() {
    let (runtime, log, ground) = (runtime(), Arc::new(Shared::default()), ground());
    let beside = ground.beside();
    let (one, two) = (open(&runtime, &ground, &log), open(&runtime, &beside, &log));
    let texts = [r#"{"id":"a"}"#, r#"{"id":"b"}"#];
    let first = send_as(&runtime, &one, "plain", "b-1", &texts).unwrap();
    assert_eq!(send_as(&runtime, &one, "plain", "b-1", &texts).unwrap(), first);
    let other = send_as(&runtime, &one, "plain", "b-1", &texts[..1]);
    assert!(matches!(other, Err(SubmitError::Invalid { .. })), "{other:?}");
    assert_eq!(log.frames(), 1);
    // Another gateway does not know it: the writer does.
    assert_eq!(send_as(&runtime, &two, "plain", "b-1", &texts).unwrap().accepted, 2);
    assert_eq!(log.frames(), 2);
    let mut writer = writer(&runtime, &two, 0);
    bring(&runtime, &mut writer, &log, 0, 100).unwrap();
    commit(&runtime, &mut writer);
    assert_eq!(in_lake(&runtime, &two, "plain"), 2);
    let tally = tallies(&two)["plain"];
    assert_eq!((tally.accepted, tally.duplicate), (2, 2));
    one.close();
    two.close();
}

#[test]
fn what_is_given_back_is_counted_by_the_gateway_and_what_is_set_aside_by_the_writer() {
    let (runtime, log, ground) = (runtime(), Arc::new(Shared::default()), ground());
    let one = open(&runtime, &ground, &log);
    let outcome = send(&runtime, &one, "plain", &[r#"{"id":"a"}"#, "poison", r#"{"n":1}"#, r#"{"id":"b"}"#]);
    assert_eq!((outcome.accepted, outcome.dead_lettered), (2, 2));
    let outcome = send(&runtime, &one, "strict", &["poison", r#"{"id":"c"}"#]);
    assert_eq!((outcome.accepted, outcome.rejected), (1, 1));
    assert_eq!(send(&runtime, &one, "strict", &["poison"]).rejected, 1);
    assert_eq!(log.frames(), 2);
    let mut writer = writer(&runtime, &one, 0);
    bring(&runtime, &mut writer, &log, 0, 100).unwrap();
    let before = tallies(&one);
    commit(&runtime, &mut writer);
    assert_eq!(tallies(&one), before);
    assert_eq!((before["plain"].accepted, before["plain"].dead_lettered), (2, 2));
    assert_eq!((before["strict"].received, before["strict"].rejected), (3, 2));
    assert_eq!((in_lake(&runtime, &one, "plain"), in_lake(&runtime, &one, "strict")), (2, 1));
    assert_eq!(in_lake(&runtime, &one, "dead_letters"), 2);
    one.close();
}

#[test]
fn a_request_of_several_streams_goes_to_the_partition_of_each_and_is_stored_once() {
    let (runtime, log, ground) = (runtime(), Arc::new(Shared::default()), ground());
    let one = open(&runtime, &ground, &log);
    let streams = ["plain", "s1", "s2", "s3", "s4", "s5"];
    let records: Vec<_> = streams.iter().map(|stream| record(stream, "1", br#"{"id":"x"}"#)).collect();
    let submission = Submission {
        principal: None,
        source: Source::Grpc,
        wire: Wire::ProtoBatch,
        body: batch(&records, false),
        correlation_id: None,
        client: Client::default(),
        in_order: false,
    };
    assert_eq!(runtime.block_on(one.gate.submit(submission)).unwrap().accepted, 6);
    let partitions: std::collections::BTreeSet<u32> = streams.iter().map(|s| partition_of(&key(s), 4)).collect();
    assert!(partitions.len() > 1);
    assert_eq!(log.frames(), partitions.len());
    let mut writer = writer(&runtime, &one, 0);
    bring(&runtime, &mut writer, &log, 0, 100).unwrap();
    commit(&runtime, &mut writer);
    for stream in streams {
        assert_eq!(in_lake(&runtime, &one, stream), 1, "{stream}");
    }
    one.close();
}

#[test]
fn f56_frames_of_a_log_that_was_made_anew_are_refused() {
    let (runtime, log, ground) = (runtime(), Arc::new(Shared::default()), ground());
    let one = open(&runtime, &ground, &log);
    for n in 0..3 {
        send(&runtime, &one, "plain", &[&format!(r#"{{"id":"e{n}"}}"#)]);
    }
    let mut before = writer(&runtime, &one, 0);
    bring(&runtime, &mut before, &log, 0, 100).unwrap();
    commit(&runtime, &mut before);
    drop(before);
    *log.partitions.lock() = Default::default();
    for n in 0..5 {
        send(&runtime, &one, "plain", &[&format!(r#"{{"id":"f{n}"}}"#)]);
    }
    let mut after = writer(&runtime, &one, 0);
    let partition = u128::from(partition_of(&key("plain"), 4));
    bring(&runtime, &mut after, &log, 0, 2).unwrap();
    // Passed over on the word of a witness that was not seen: not to be forgotten.
    assert_eq!(after.lacks_from(partition), Some(0));
    let refused = bring(&runtime, &mut after, &log, 2, 3).unwrap_err();
    assert!(matches!(&refused, UpstreamError::Halted(why) if why.contains("made anew")), "{refused}");
    one.close();
}

#[test]
fn while_the_log_is_away_nothing_is_taken() {
    let (runtime, log, ground) = (runtime(), Arc::new(Shared::default()), ground());
    let one = open(&runtime, &ground, &log);
    log.away.store(true, std::sync::atomic::Ordering::Relaxed);
    let refused = send_as(&runtime, &one, "plain", "b", &[r#"{"id":"a"}"#]);
    assert!(matches!(refused, Err(SubmitError::Unavailable { .. })), "{refused:?}");
    log.away.store(false, std::sync::atomic::Ordering::Relaxed);
    // The same request, now taken: the refused one left nothing that it could meet.
    assert_eq!(send_as(&runtime, &one, "plain", "b", &[r#"{"id":"a"}"#]).unwrap().accepted, 1);
    assert_eq!(log.frames(), 1);
    one.close();
}

#[test]
fn what_nobody_of_us_wrote_is_set_aside() {
    let (runtime, log, ground) = (runtime(), Arc::new(Shared::default()), ground());
    let one = open(&runtime, &ground, &log);
    log.partitions.lock()[0].push(Bytes::from_static(b"hello"));
    send(&runtime, &one, "plain", &[r#"{"id":"a"}"#]);
    let mut writer = writer(&runtime, &one, 0);
    bring(&runtime, &mut writer, &log, 0, 100).unwrap();
    commit(&runtime, &mut writer);
    runtime.block_on(one.gate.flush_all());
    assert_eq!((in_lake(&runtime, &one, "plain"), in_lake(&runtime, &one, "dead_letters")), (1, 1));
    one.close();
}

#[test]
fn letters_that_another_writer_set_aside_hold_up_nobody_who_decides_otherwise() {
    let (runtime, log, ground) = (runtime(), Arc::new(Shared::default()), ground());
    let one = open(&runtime, &ground, &log);
    send(&runtime, &one, "keyed", &[r#"{"id":"a","n":1}"#]);
    send(&runtime, &one, "keyed", &[r#"{"id":"a","n":2}"#]);
    let mut first = writer(&runtime, &one, 0);
    bring(&runtime, &mut first, &log, 0, 100).unwrap();
    commit(&runtime, &mut first);
    drop(first);
    assert_eq!(in_lake(&runtime, &one, "dead_letters"), 1);
    // The next writer does not shape what the stream's table has, and so never comes by the letter again.
    send(&runtime, &one, "keyed", &["poison", r#"{"id":"b"}"#]);
    let mut second = writer(&runtime, &one, 1);
    bring(&runtime, &mut second, &log, 1, 100).unwrap();
    commit(&runtime, &mut second);
    assert_eq!((in_lake(&runtime, &one, "keyed"), in_lake(&runtime, &one, "dead_letters")), (2, 2));
    assert_eq!(second.lacks_from(u128::from(partition_of(&key("keyed"), 4))), None);
    one.close();
}
