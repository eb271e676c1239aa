use std::time::Duration;

use lakegate_model::{Column, ColumnSource, ColumnType, Contract, StreamName, TenantId};
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::api::Source;
use crate::test_gate::{Ground, Opened};

const PARTITION: u128 = 77;

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
        ..Contract::undeclared_default()
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn target() -> UpstreamTarget {
    UpstreamTarget {
        tenant: TenantId::new("acme").unwrap(),
        stream: StreamName::new("plain").unwrap(),
        source: Source::Kafka,
        name: "kafka".to_owned(),
        content_type: String::new(),
    }
}

/// An upstream that goes on from where the table is; and that place.
fn open(runtime: &Runtime, opened: &Opened) -> (Upstream, u64) {
    let mut upstream = runtime.block_on(opened.gate.open_upstream(target())).unwrap();
    let position = runtime.block_on(upstream.positions(&[PARTITION])).unwrap().remove(0);
    let next = position.as_ref().map_or(0, |p| u64::from_le_bytes(p.state.clone().try_into().unwrap()));
    upstream.begin(PARTITION, position);
    (upstream, next)
}

/// Brings the texts as records from `first` on.
fn bring(upstream: &mut Upstream, first: u64, texts: &[&str]) -> UpstreamTaken {
    let (mut body, mut records) = (Vec::new(), Vec::new());
    for (offset, text) in (first..).zip(texts) {
        let start = u32::try_from(body.len()).unwrap();
        body.extend_from_slice(text.as_bytes());
        let raw = start..u32::try_from(body.len()).unwrap();
        records.push(UpstreamRecord { offset, raw, time_us: None, payload: UpstreamPayload::Raw });
    }
    let next = first + texts.len() as u64;
    let records = UpstreamRecords {
        partition: PARTITION,
        label_name: "kafka.kafka.t.0",
        label: format!("next offset {next}"),
        place: "Kafka topic t, partition 0",
        attributes: &[],
        body: &body,
        records: &records,
        next: next.to_le_bytes().to_vec(),
    };
    upstream.take(&records).unwrap()
}

fn commit(runtime: &Runtime, upstream: &mut Upstream) -> Result<Option<UpstreamCommit>, UpstreamError> {
    upstream.begin_commit(runtime.handle());
    upstream.wait_commit(runtime.handle(), Duration::from_secs(20));
    upstream.poll_commit(runtime.handle())
}

fn in_lake(runtime: &Runtime, upstream: &Upstream) -> u64 {
    runtime.block_on(upstream.table.refresh()).unwrap().total_records()
}

#[test]
fn rows_and_position_are_committed_together_and_a_restart_goes_on_from_there() {
    let (runtime, ground) = (runtime(), Ground::new(&[("plain", contract())]));
    let opened = runtime.block_on(ground.open());
    let (mut upstream, next) = open(&runtime, &opened);
    assert_eq!(next, 0);
    bring(&mut upstream, 0, &[r#"{"id":"a","n":1}"#, r#"{"id":"b"}"#]);
    let done = commit(&runtime, &mut upstream).unwrap().unwrap();
    assert_eq!((done.rows, done.positions), (2, vec![(PARTITION, 2_u64.to_le_bytes().to_vec())]));
    // Taken, seen, and lost with the process: not committed.
    bring(&mut upstream, 2, &[r#"{"id":"c"}"#]);
    assert_eq!(opened.gate.status(None, None).streams[0].memtable_records, 1);
    drop(upstream);
    opened.close();
    let opened = runtime.block_on(ground.open());
    let (mut upstream, next) = open(&runtime, &opened);
    assert_eq!(next, 2);
    bring(&mut upstream, 2, &[r#"{"id":"c"}"#]);
    commit(&runtime, &mut upstream).unwrap().unwrap();
    assert_eq!(in_lake(&runtime, &upstream), 3);
    let properties = upstream.table.view().properties().clone();
    assert_eq!(properties.get("kafka.kafka.t.0").map(String::as_str), Some("next offset 3"));
    opened.close();
}

#[test]
fn f36_of_two_that_read_one_partition_the_second_to_commit_is_refused_and_adds_nothing() {
    let (runtime, ground) = (runtime(), Ground::new(&[("plain", contract())]));
    let opened = runtime.block_on(ground.open());
    let (mut zombie, _) = open(&runtime, &opened);
    let other = UpstreamTarget { name: "other".to_owned(), ..target() };
    let mut winner = runtime.block_on(opened.gate.open_upstream(other)).unwrap();
    winner.begin(PARTITION, None);
    bring(&mut zombie, 0, &[r#"{"id":"a"}"#]);
    bring(&mut winner, 0, &[r#"{"id":"a"}"#, r#"{"id":"b"}"#]);
    commit(&runtime, &mut winner).unwrap().unwrap();
    let refused = commit(&runtime, &mut zombie).unwrap_err();
    assert!(matches!(refused, UpstreamError::TakenOver(_)), "{refused}");
    drop(zombie);
    let (mut zombie, next) = open(&runtime, &opened);
    assert_eq!(next, 2);
    bring(&mut zombie, 2, &[r#"{"id":"c"}"#]);
    commit(&runtime, &mut zombie).unwrap().unwrap();
    assert_eq!(in_lake(&runtime, &zombie), 3);
    assert_eq!(opened.gate.status(None, None).memtable_bytes, 0);
    opened.close();
}

#[test]
fn a_record_that_breaks_its_contract_is_set_aside_once_and_the_balance_closes() {
    let (runtime, ground) = (runtime(), Ground::new(&[("plain", contract())]));
    let opened = runtime.block_on(ground.open());
    let texts = [r#"{"id":"a"}"#, "poison", r#"{"n":1}"#, r#"{"id":"b"}"#];
    let (mut upstream, _) = open(&runtime, &opened);
    let taken = bring(&mut upstream, 0, &texts);
    assert_eq!(taken, UpstreamTaken { accepted: 2, dead_lettered: 2 });
    // The process forgets them before the commit, and reads them again in other batches.
    drop(upstream);
    let (mut upstream, _) = open(&runtime, &opened);
    bring(&mut upstream, 0, &texts[..2]);
    bring(&mut upstream, 2, &texts[2..]);
    commit(&runtime, &mut upstream).unwrap().unwrap();
    let key = StreamKey { tenant: TenantId::new("acme").unwrap(), stream: StreamName::new("plain").unwrap() };
    let tally = opened.gate.balance()[&key];
    assert!(tally.closes(), "{tally:?}");
    assert_eq!((tally.accepted, tally.dead_lettered), (2, 2));
    runtime.block_on(opened.gate.flush_all());
    let letters = opened.gate.status(None, Some(&StreamName::new("dead_letters").unwrap()));
    let table = runtime.block_on(upstream.gate.inner.lake.find_table(&letters.streams[0].table)).unwrap().unwrap();
    assert_eq!(table.view().total_records(), 2);
    opened.close();
}

#[test]
fn what_one_life_gives_up_takes_nothing_from_the_next() {
    let (runtime, ground) = (runtime(), Ground::new(&[("plain", contract())]));
    let opened = runtime.block_on(ground.open());
    let (mut before, _) = open(&runtime, &opened);
    bring(&mut before, 0, &[r#"{"id":"a"}"#]);
    let (mut after, _) = open(&runtime, &opened);
    bring(&mut after, 0, &[r#"{"id":"a"}"#, r#"{"id":"b"}"#]);
    before.give_up(runtime.handle(), Duration::from_secs(1));
    drop(before);
    assert_eq!(opened.gate.status(None, None).streams[0].memtable_records, 2);
    let done = commit(&runtime, &mut after).unwrap().unwrap();
    assert_eq!((done.rows, in_lake(&runtime, &after)), (2, 2));
    opened.close();
}

#[test]
fn a_position_may_be_committed_without_rows() {
    let (runtime, ground) = (runtime(), Ground::new(&[("plain", contract())]));
    let opened = runtime.block_on(ground.open());
    let (mut upstream, _) = open(&runtime, &opened);
    upstream.advance(PARTITION, 0, 9_u64.to_le_bytes().to_vec());
    commit(&runtime, &mut upstream).unwrap().unwrap();
    drop(upstream);
    assert_eq!(open(&runtime, &opened).1, 9);
    opened.close();
}
