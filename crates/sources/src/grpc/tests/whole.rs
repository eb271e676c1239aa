//! The whole way in: over the wire into the real gate, log and memtables.

use std::sync::Arc;

use bytes::Bytes;
use lakegate_env::{Clock, Disk, MemDisk, Random, SeededRandom, SystemClock};
use lakegate_ingest::{Gate, GateOptions, GateSettings, StreamDeclaration};
use lakegate_lake::testing::MemoryCatalog;
use lakegate_lake::{Compression, Lake, LakeOptions, Offload, TokioPause, Warehouse, Writer};
use lakegate_log::{Log, LogOptions};
use lakegate_memtable::Memtables;
use lakegate_model::{Column, ColumnSource, ColumnType, Contract, StreamName, TableName};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_types::StatusExt;

use super::harness::{Server, batch, record, within};
use crate::grpc::options::GrpcLimits;
use crate::grpc::proto;

/// A gate over a disk in memory, with a declared stream `orders` that needs a number `id`.
async fn open_gate() -> (Gate, Arc<Memtables>) {
    let (disk, clock): (Arc<dyn Disk>, Arc<dyn Clock>) = (Arc::new(MemDisk::new()), Arc::new(SystemClock::default()));
    let random: Arc<dyn Random> = Arc::new(SeededRandom::new(7));
    disk.create_dir_all("/data/wal".as_ref()).unwrap();
    let log_options = LogOptions { segment_bytes: 1 << 20, realtime: false, ..LogOptions::new("/data/wal") };
    let log = Log::open(disk.clone(), clock.clone(), random.clone(), log_options).unwrap();
    let warehouse = Warehouse::in_memory();
    let lake = Lake::open(LakeOptions {
        catalog: Arc::new(MemoryCatalog::new(warehouse.clone(), random.clone())),
        warehouse,
        clock: clock.clone(),
        random: random.clone(),
        pause: Arc::new(TokioPause),
        writer: Writer {
            log: log.id(),
            partition: 0,
            epoch: log.epoch(),
            instance: uuid::Uuid::nil(),
            node: "n".to_owned(),
        },
        compression: Compression::Zstd,
        target_file_bytes: 1 << 20,
        offload: Offload::BlockingThreads,
        commit_attempts: 3,
    });
    let memtables = Arc::new(Memtables::new(log.id(), log.durable_handle()));
    let mut contract = Contract::undeclared_default();
    let source = ColumnSource::Path(vec!["id".to_owned()]);
    contract.columns.push(Column { name: "id".to_owned(), column_type: ColumnType::Long, source, required: true });
    let settings = GateSettings {
        data_dir: "/data".into(),
        batch_size_max: 1000,
        payload_bytes_max: 1 << 20,
        memory_budget: 64 << 20,
        commit_bytes: 8 << 20,
        flush_interval_us: 60_000_000,
        undeclared_streams: false,
        max_streams: 10,
        longest_window_us: 0,
        duplicates: lakegate_ingest::DuplicateSettings::default(),
    };
    let streams = vec![StreamDeclaration { name: StreamName::new("orders").unwrap(), contract }];
    let options = GateOptions { settings, streams, log, lake, memtables: memtables.clone(), disk, clock, random };
    (Gate::open(options).await.unwrap().0, memtables)
}

async fn start() -> (Server<Gate>, Arc<Memtables>) {
    let (gate, memtables) = open_gate().await;
    (Server::start_over(gate, GrpcLimits::default()).await, memtables)
}

fn rows(memtables: &Memtables) -> usize {
    let table = memtables.get(&TableName::new("default", "orders").unwrap()).unwrap();
    table.snapshot().unwrap().rows_after(0)
}

fn order(id: u64) -> proto::DataRecord {
    proto::DataRecord { payload: Bytes::from(format!("{{\"id\":{id}}}")), ..record(&format!("e{id}")) }
}

#[tokio::test]
async fn what_is_answered_as_accepted_is_in_the_memtable() {
    let (server, memtables) = start().await;
    let mut client = server.client().await;
    let answer =
        client.ingest_record(proto::IngestRecordRequest { record: Some(order(1)) }).await.unwrap().into_inner();
    assert_eq!((answer.status(), answer.event_id.as_str()), (proto::RecordStatus::Accepted, "e1"));
    assert_eq!(rows(&memtables), 1);
    let nameless = proto::DataRecord { event_id: String::new(), ..order(2) };
    let answer =
        client.ingest_record(proto::IngestRecordRequest { record: Some(nameless) }).await.unwrap().into_inner();
    assert_eq!(uuid::Uuid::parse_str(&answer.event_id).unwrap().get_version_num(), 7);
    let records = (3..103).map(order).collect();
    let request = proto::IngestBatchRequest { records, batch_id: "b".to_owned(), ..Default::default() };
    assert_eq!(client.ingest_batch(request).await.unwrap().into_inner().accepted, 100);
    assert_eq!(rows(&memtables), 102);
    let status = client.get_ingestion_status(proto::IngestionStatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(status.streams.iter().map(|stream| stream.totals.unwrap().accepted).sum::<u64>(), 102);
    assert_eq!(status.totals.unwrap().memtable_records, 102);
    let health = client.health_check(proto::HealthCheckRequest {}).await.unwrap().into_inner();
    assert!(health.components.iter().any(|component| component.name == "wal"), "{health:?}");
}

#[tokio::test]
async fn f52_bad_records_of_a_batch_are_listed_and_the_others_stored_or_none_where_all_or_nothing_is_asked() {
    let (server, memtables) = start().await;
    let mut client = server.client().await;
    let bad =
        |payload: &'static [u8], id: &str| proto::DataRecord { payload: Bytes::from_static(payload), ..record(id) };
    let stranger = proto::DataRecord { endpoint_id: "nowhere".to_owned(), ..order(9) };
    let records = vec![order(1), bad(b"{\"id\":", "broken"), bad(b"{}", "without"), stranger, order(2)];
    let mut request = proto::IngestBatchRequest { records, ..Default::default() };
    let answer = client.ingest_batch(request.clone()).await.unwrap().into_inner();
    let listed: Vec<_> = answer.errors.iter().map(|error| (error.index, error.code.as_str())).collect();
    assert_eq!((answer.accepted, answer.rejected), (2, 3));
    assert_eq!(listed, [(1, "MALFORMED_PAYLOAD"), (2, "MISSING_FIELD"), (3, "UNKNOWN_STREAM")]);
    assert_eq!(rows(&memtables), 2);
    request.atomic = true;
    let status = client.ingest_batch(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.get_details_bad_request().unwrap().field_violations.len(), 3);
    assert_eq!(rows(&memtables), 2);
}

#[tokio::test]
async fn a_lone_record_at_fault_is_an_error_of_the_request_or_of_the_contract() {
    let (server, _) = start().await;
    let mut client = server.client().await;
    let mut send = async |record| client.ingest_record(proto::IngestRecordRequest { record: Some(record) }).await;
    let without = proto::DataRecord { payload: Bytes::from_static(b"{}"), ..record("e") };
    assert_eq!(send(without).await.unwrap().into_inner().status(), proto::RecordStatus::Rejected);
    for (record, reason) in [
        (proto::DataRecord { payload: Bytes::from_static(b"{"), ..order(1) }, "MALFORMED_PAYLOAD"),
        (proto::DataRecord { endpoint_id: "nowhere".into(), ..order(1) }, "UNKNOWN_STREAM"),
        (proto::DataRecord { tenant_id: "NOT A NAME".into(), ..order(1) }, "INVALID_NAME"),
    ] {
        let status = send(record).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{reason}");
        assert_eq!(status.get_details_error_info().unwrap().reason, reason);
    }
}

#[tokio::test]
async fn limits_of_the_gate_and_empty_batches_are_answered() {
    let (server, _) = start().await;
    let mut client = server.client().await;
    let empty = proto::IngestBatchRequest { batch_id: "nothing".to_owned(), ..Default::default() };
    let answer = client.ingest_batch(empty).await.unwrap().into_inner();
    assert_eq!((answer.batch_id.as_str(), answer.accepted, answer.rejected), ("nothing", 0, 0));
    let status = client.ingest_batch(batch("large", 1001)).await.unwrap_err();
    assert_eq!(status.get_details_error_info().unwrap().reason, "BATCH_TOO_LARGE");
    server.gate.close("the test says so");
    assert_eq!(client.ingest_batch(batch("late", 1)).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_stream_stores_all_its_batches_in_the_order_of_sending() {
    let (server, memtables) = start().await;
    let requests = (0..100_u64).map(|sequence| proto::IngestStreamRequest {
        sequence,
        batch: Some(proto::IngestBatchRequest {
            records: (0..50).map(|index| order(sequence * 50 + index)).collect(),
            ..Default::default()
        }),
    });
    let mut client = server.client().await;
    let mut answers = client.ingest_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let (mut acked, mut last_position) = (0, None);
    while let Some(answer) = within(answers.next()).await {
        let answer = answer.unwrap();
        let result = answer.result.unwrap();
        assert_eq!((answer.acked_sequence, result.accepted), (acked, 50));
        assert!(last_position.is_none_or(|last| last < result.position), "batches were appended out of order");
        (acked, last_position) = (acked + 1, Some(result.position));
    }
    assert_eq!((acked, rows(&memtables)), (100, 5000));
}
